#!/usr/bin/env python3
"""Reversal, standard against looped Transformers: why do they fail beyond the lengths that they were trained on?

A model reads a sequence of 3 to 10 tokens and writes it backwards. Asked for 20 to 50 tokens, neither a standard nor a
looped Transformer does it, and more loops than in training make it worse. Arms that differ in positions, in what a loop
is asked for and in the layout of the sequence tell what stands in the way.

    python experiment.py --out_dir=run_1
"""

# harness.py, which needs no edit, trains what this file describes: `Config`, whose fields are the flags, and
# `plan(config)`, the models to train, each a `Trajectory` with these methods, written for one model:
#   data                               what batches and measurements rest on, made once
#   model()                            nn.Module at its start
#   batches(first, n, device)          {name: tensor [n, ..]} for updates first to first + n - 1, random by
#                                      self.stream("..", first // n); what changes during training is in them
#   loss(model, **batch)               objective and {name: what to report}, scalar tensors, for a batch without the [n]
#   optimizer(params, lr)              of parameters by name, on a GPU [models, ..]; lr is the highest rate
#   learning_rate(update, updates)     where it depends on `updates`, every cell is trained on its own
#   observe(model, update)             tensors on the CPU, read off the model
#   measure(observed, update, recent, points)  a dict of numbers; recent: {name: [what loss() reported lately]}
#   finished(points)                   whether to end early; not defined here: never
#   cell(points), extras(points)       the numbers of a cell of the grid; what else the results keep
# headlines() go to final_info.json, YARDSTICK measures them. What a list of the grid means for a trajectory is in its
# fields, beside clip_norm, and not read off self.config: a complete run may grow.

import math
import re
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent.parent))  # harness.py is there, if not beside this script
from harness import Study, Trajectory, require, run_study, stream  # noqa: E402

import torch  # noqa: E402
import torch.nn as nn  # noqa: E402
import torch.nn.functional as F  # noqa: E402

# ==== Configuration ===================================================================================================


@dataclass(frozen=True)
class Arm:
    """What an arm is: every field is also a flag, which then holds for all arms."""

    layers: int = 1  # blocks with weights of their own
    loops: str = "1"  # how often they are applied: a number, length (as many as tokens), or window:5:10 (the loss is
    # the mean over the last 5 of 10 loops, and gradients end there)
    inject: bool = False  # whether the input is added before every loop, which starts from 0
    positions: str = "sinusoidal"  # sinusoidal, nope (none), rotary, random, ends, ends_shift or ends_random
    layout: str = "inplace"  # inplace: the answer in place of the input; append: behind it, causal
    train_pad: int = 0  # positions of padding at the end of every training sequence beyond the longest
    test_pad: int = 0  # and at the end of every test sequence
    gate: bool = False  # whether a learned gate weighs the answers after every loop
    loss_on: str = "all"  # all positions, padding included, or content alone


ARMS = {
    "standard": Arm(layers=2),
    "looped_k2": Arm(loops="2"),
    "looped_k6": Arm(loops="6"),
    "looped_k6_rotary": Arm(loops="6", positions="rotary"),
    "looped_k6_random": Arm(loops="6", positions="random"),
    "standard_ends": Arm(layers=2, positions="ends"),
    "looped_k2_ends_shift": Arm(loops="2", positions="ends_shift"),
    "looped_k2_ends_random": Arm(loops="2", positions="ends_random"),
    "standard_ends_random": Arm(layers=2, positions="ends_random"),
    "looped_n_rotary": Arm(loops="length", inject=True, positions="rotary", train_pad=1, test_pad=1),
    "looped_n_nope": Arm(loops="length", inject=True, positions="nope", layout="append"),
    "looped_gate": Arm(loops="6", positions="ends_shift", gate=True),
}
CONTROLS = ("oracle", "reference")  # not trained: a network that reverses by swaps of neighbours, and the identity


@dataclass(frozen=True)
class Config:
    """Every knob of the study; each is also a flag of the same name. UserError if one is out of range."""

    arms: tuple[str, ...] = (*ARMS, *CONTROLS)  # what is trained and compared; see ARMS
    layers: int | None = None  # of every arm, in place of its own: blocks with weights of their own
    loops: str | None = None  # a number, length, or window:5:10
    inject: bool | None = None  # whether the input is added before every loop
    positions: str | None = None  # sinusoidal, nope (none), rotary, random, ends, ends_shift or ends_random
    layout: str | None = None  # inplace or append
    train_pad: int | None = None  # padding at the end of every training sequence beyond the longest
    test_pad: int | None = None  # padding at the end of every test sequence
    gate: bool | None = None  # whether a learned gate weighs the answers after every loop
    loss_on: str | None = None  # all or content
    vocab_size: int = 100  # tokens; 0 is padding
    min_len: int = 3  # shortest sequence in training
    max_len: int = 10  # longest sequence in training
    hidden_size: int = 64  # width, divisible by the heads
    n_heads: int = 4  # attention heads
    mlp_ratio: int = 4  # width of the MLP over hidden_size
    position_range: int = 128  # random positions and offsets are below this
    num_steps: int = 5000  # updates
    batch_size: int = 32  # fresh sequences per update
    learning_rate: float = 1e-3  # Adam
    schedule: str = "constant"  # constant or cosine to 0
    gate_entropy: float = 0.05  # how much the loss of a gated arm rewards an even distribution over loops
    test_lengths: tuple[int, ...] = (10, 20, 30, 40, 50)  # lengths in final_info.json; the curves have every length
    inference_iterations_list: tuple[int, ...] = (2, 6, 10, 20)  # loops that looped arms are also tested with
    n_test: int = 320  # test sequences per length
    seeds: int = 3  # how many seeds
    seed: int = 0  # the first seed
    precision: str = "float32"  # matrix products in float32, tf32 (CUDA only) or bf16
    device: str = "auto"  # auto (CUDA, else Apple MPS, else CPU), cpu, cuda or mps

    def __post_init__(self):
        for flag in ("arms", "test_lengths", "inference_iterations_list"):
            values = tuple(getattr(self, flag))
            object.__setattr__(self, flag, values)
            require(self, flag, len(set(values)) == len(values) > 0, "one or more different values")
        known = (*ARMS, *CONTROLS)
        require(self, "arms", {*self.arms} <= {*known}, f"of {' '.join(known)}")
        for flag in ("hidden_size", "n_heads", "mlp_ratio", "num_steps", "batch_size", "n_test", "seeds", "min_len"):
            require(self, flag, getattr(self, flag) >= 1, "at least 1")
        for flag in ("test_lengths", "inference_iterations_list"):
            least = self.min_len if flag == "test_lengths" else 1
            require(self, flag, min(getattr(self, flag)) >= least, f"whole numbers of at least {least}")
        require(self, "max_len", self.max_len >= self.min_len, f"at least --min_len {self.min_len}")
        require(self, "vocab_size", self.vocab_size >= 3, "at least 3")
        require(self, "seed", self.seed >= 0, "at least 0")
        even = self.hidden_size % (4 * self.n_heads) == 0
        require(self, "hidden_size", even, f"divisible by four times the number of heads, {4 * self.n_heads}")
        require(self, "learning_rate", 0 <= self.learning_rate < math.inf, "finite and not negative")
        require(self, "gate_entropy", 0 <= self.gate_entropy < math.inf, "finite and not negative")
        require(self, "schedule", self.schedule in ("constant", "cosine"), "constant or cosine")
        for arm in (self.arm(name) for name in self.arms if name in ARMS):
            self.check(arm)

    def arm(self, name: str) -> Arm:
        """An arm with the flags that are given."""
        given = {field.name: getattr(self, field.name) for field in fields(Arm)}
        return replace(ARMS[name], **{key: value for key, value in given.items() if value is not None})

    def check(self, arm: Arm) -> None:
        def check(flag: str, ok: bool, allowed: str) -> None:  # the flag may not be given: the arm's own value counts
            require(self if getattr(self, flag, None) is not None else arm, flag, ok, allowed)

        kinds = ("sinusoidal", "nope", "rotary", "random", "ends", "ends_shift", "ends_random")
        check("positions", arm.positions in kinds, " or ".join(kinds))
        check("layout", arm.layout in ("inplace", "append"), "inplace or append")
        check("loss_on", arm.loss_on in ("all", "content"), "all or content")
        check("layers", arm.layers >= 1, "at least 1")
        for flag in ("train_pad", "test_pad"):
            check(flag, getattr(arm, flag) >= 0, "at least 0")
        kind, *numbers = arm.loops.split(":")
        whole = [int(x) for x in numbers or [kind] if re.fullmatch(r"[1-9]\d*", x)]
        number, window = bool(whole) and not numbers, kind == "window" and len(whole) == len(numbers) == 2
        form = number or arm.loops == "length" or window and whole[0] <= whole[1]
        check("loops", form, "a number of at least 1, length, or window:T:b with 1 <= T <= b")
        cut = window and whole[0] < whole[1] and not arm.inject
        check("loops", not cut, "a window of all its loops unless --inject: else no gradient reaches the embedding")
        check("gate", not arm.gate or number and whole[0] > 1, "off unless --loops is at least 2")
        seen = "one that tells where a token is, unless --layout append, whose causal mask does"
        check("positions", arm.positions != "nope" or arm.layout == "append", seen)
        behind = "sinusoidal or nope or rotary with --layout append"
        check("positions", arm.layout == "inplace" or arm.positions in ("sinusoidal", "nope", "rotary"), behind)
        if arm.positions in ("random", "ends_shift", "ends_random"):
            longest = max(self.max_len + arm.train_pad, max(self.lengths) + arm.test_pad)
            require(self, "position_range", self.position_range >= longest, f"at least {longest}, the longest sequence")

    @property
    def lengths(self) -> range:
        """Every length that is tested."""
        return range(self.min_len, max(*self.test_lengths, self.max_len) + 1)


# ==== Sequences =======================================================================================================


def sample_tokens(n: int, lengths: torch.Tensor, size: int, vocab: int, generator: torch.Generator) -> torch.Tensor:
    """n sequences [n, size] int64 of so many tokens [n] from 1 to vocab - 1, padded with 0."""
    tokens = torch.randint(1, vocab, (n, size), generator=generator)
    return torch.where(torch.arange(size) < lengths[:, None], tokens, 0)


def reverse(tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """The first lengths[i] tokens of every row backwards, the padding as it is."""
    at = torch.arange(tokens.shape[1])
    return tokens.gather(1, torch.where(at < lengths[:, None], lengths[:, None] - 1 - at, at))


def lay_out(tokens: torch.Tensor, lengths: torch.Tensor, layout: str, vocab: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What the model reads and what it should answer, [n, T] each, 0 where nothing is asked for.

    inplace: the sequence, and its reversal. append: the sequence, the token `vocab`, then empty slots, and the reversal
    in these.
    """
    if layout == "inplace":
        return tokens, reverse(tokens, lengths)
    n, size = tokens.shape
    shown = F.pad(tokens, (0, size + 1)).scatter(1, lengths[:, None], vocab)
    slots = torch.arange(2 * size + 1) - lengths[:, None] - 1  # number of the slot at every position
    answer = reverse(tokens, lengths).gather(1, slots.clamp(0, size - 1))
    return shown, torch.where((slots >= 0) & (slots < lengths[:, None]), answer, 0)


def coordinates(kind: str, size: int, lengths: torch.Tensor, limit: int, generator: torch.Generator) -> torch.Tensor:
    """Where every token is, [n, size, 2] float32: counted from the start, and from the end of the content, going on
    below behind it.

    random: a sorted random subset of 0 .. limit - 1, drawn for every sequence, in place of 0, 1, .. (Ruoss et al. 2023,
    "Randomized Positional Encodings Boost Length Generalization of Transformers"). ends_shift: one random offset for
    every sequence. ends_random: the random subset, and read backwards as what counts from the end.
    """
    n, at = len(lengths), torch.arange(size)
    places = at.expand(n, -1)
    if kind in ("random", "ends_random"):
        places = torch.rand(n, limit, generator=generator).argsort(1)[:, :size].sort(1).values
    if kind == "ends_shift":
        places = places + torch.randint(limit - size + 1, (n, 1), generator=generator)
    if kind == "ends_shift":
        from_end = lengths[:, None] - 1 - at + places[:, :1]
    else:  # behind the content the count goes on below 0
        back = lengths[:, None] - 1 - at
        from_end = torch.where(
            back >= 0, places.gather(1, back.clamp(min=0)), -1 - places.gather(1, (-1 - back).clamp(min=0))
        )
    return torch.stack([places, from_end], 2).float()


# ==== Model ===========================================================================================================


def sinusoids(x: torch.Tensor, d: int) -> torch.Tensor:
    """Sinusoidal encoding of coordinates: [..] -> [.., d], sine on even and cosine on odd dimensions, base 10000."""
    angles = x[..., None] * 10000 ** (-torch.arange(0, d, 2, device=x.device) / d)
    return torch.stack([angles.sin(), angles.cos()], -1).flatten(-2)


def rotate(x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Rotary positions: x [B, heads, T, e] at places [B, T]."""
    angles = places[:, None, :, None] * 10000 ** (-torch.arange(0, x.shape[-1], 2, device=x.device) / x.shape[-1])
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = (even * angles.cos() - odd * angles.sin(), even * angles.sin() + odd * angles.cos())
    return torch.stack(turned, -1).flatten(-2)


class Block(nn.Module):
    """Transformer block with the norms after attention and ReLU MLP, [B, T, d] -> [B, T, d]. No mask but a causal one
    in the append layout: padding is attended to, as in the original."""

    def __init__(self, config: Config, arm: Arm):
        super().__init__()
        d = config.hidden_size
        self.heads, self.rotary, self.causal = config.n_heads, arm.positions == "rotary", arm.layout == "append"
        self.qkv, self.attention_out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.attention_norm, self.mlp_norm = nn.LayerNorm(d, eps=1e-6), nn.LayerNorm(d, eps=1e-6)
        self.mlp_in, self.mlp_out = nn.Linear(d, config.mlp_ratio * d), nn.Linear(config.mlp_ratio * d, d)

    def forward(self, x: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        if self.rotary:
            q, k = rotate(q, places), rotate(k, places)
        scores = q @ k.mT * q.shape[-1] ** -0.5
        if self.causal:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
            scores = scores.masked_fill(later, -math.inf)
        attended = (scores.softmax(-1) @ v).transpose(1, 2).flatten(-2)
        x = self.attention_norm(x + self.attention_out(attended))
        return self.mlp_norm(x + self.mlp_out(F.relu(self.mlp_in(x))))


class Model(nn.Module):
    """An arm's Transformer: tokens [B, T] and coordinates [B, T, 2] -> its states after every loop.

    Parameters start as those of the original, in Flax: embeddings with variance 1 / d, kernels by LeCun with a normal
    distribution that is cut at two standard deviations, biases at 0.
    """

    def __init__(self, config: Config, arm: Arm):
        super().__init__()
        d = config.hidden_size
        self.inject, self.positions = arm.inject, arm.positions
        self.tokens = nn.Embedding(config.vocab_size + (arm.layout == "append"), d)
        self.blocks = nn.ModuleList(Block(config, arm) for _ in range(arm.layers))
        self.answer = nn.Linear(d, config.vocab_size)
        self.gate = nn.Linear(d, 1) if arm.gate else None
        nn.init.normal_(self.tokens.weight, std=d**-0.5)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                std = module.in_features**-0.5 / 0.87962566103423978  # that of the cut distribution is in_features^-0.5
                nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
                nn.init.zeros_(module.bias)

    def forward(
        self, tokens: torch.Tensor, coordinates: torch.Tensor, loops: int, start: int = 0
    ) -> list[torch.Tensor]:
        """States [B, T, d] after the loops start + 1, .. loops; gradients end before these."""
        x = self.tokens(tokens)
        if self.positions.startswith("ends"):
            half = x.shape[-1] // 2
            x = x + torch.cat([sinusoids(coordinates[..., i], half) for i in range(2)], -1)
        elif self.positions in ("sinusoidal", "random"):
            x = x + sinusoids(coordinates[..., 0], x.shape[-1])
        state, states = torch.zeros_like(x) if self.inject else x, []
        for loop in range(loops):
            if loop and loop == start:
                state = state.detach()
            state = state + x if self.inject else state
            for block in self.blocks:
                state = block(state, coordinates[..., 0])
            states += [state] if loop >= start else []
        return states

    def exits(self, states: list[torch.Tensor]) -> torch.Tensor:
        """Probability [B, loops] that the gate ends after every loop; the last one takes the rest (Ouro 2025)."""
        leave = torch.stack([self.gate(state.mean(1))[:, 0].sigmoid() for state in states[:-1]], 1)
        stay = (1 - leave).cumprod(1)
        return torch.cat([leave * F.pad(stay[:, :-1], (1, 0), value=1.0), stay[:, -1:]], 1)


class Control(nn.Module):
    """What is not learned, through the same evaluation: tokens -> one-hot answers after every loop.

    oracle: round t of an odd-even transposition network swaps the neighbours 0 and 1, 2 and 3, .. (even t) or 1 and 2,
    3 and 4, .. (odd t), whatever they are: n rounds reverse n tokens. reference: the sequence as it is.
    """

    def __init__(self, config: Config, kind: str):
        super().__init__()
        self.kind, self.vocab = kind, config.vocab_size
        self.scale = nn.Parameter(torch.ones(()))  # something to train

    def rounds(self, tokens: torch.Tensor, lengths: torch.Tensor, loops: int) -> list[torch.Tensor]:
        answers, at = [], torch.arange(tokens.shape[1], device=tokens.device)
        for loop in range(loops):
            other = at + torch.where(at % 2 == loop % 2, 1, -1)
            inside = (other >= 0) & (other < lengths[:, None])
            if self.kind == "oracle":
                tokens = tokens.gather(1, torch.where(inside & (at < lengths[:, None]), other, at))
            answers.append(self.scale * 10 * F.one_hot(tokens, self.vocab).float())
        return answers


# ==== Evaluation ======================================================================================================

MOST_LOOPS = 20  # of looped arms in the map of lengths and loops, and as many as tokens


def score(logits: torch.Tensor, targets: torch.Tensor, content: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of every sequence: whether all content is right, and all positions; the share of content that is right; and the
    mean of -log of the greatest probability over the content. logits [B, T, V], targets, content [B, T] -> [B]."""
    right = logits.argmax(-1) == targets
    doubt = -logits.float().log_softmax(-1).amax(-1)
    n = content.sum(1)
    return {
        "exact": (right | ~content).all(1).double(),
        "exact_all": right.all(1).double(),
        "token": (right & content).sum(1) / n.double(),
        "doubt": (doubt * content).sum(1) / n.double(),
    }


# ==== Training ========================================================================================================


@dataclass(frozen=True, kw_only=True, eq=False)
class ReversalTrajectory(Trajectory):
    """One model of an arm and a seed."""

    arm_name: str

    @property
    def arm(self) -> Arm:
        return self.config.arm(self.arm_name) if self.arm_name in ARMS else Arm(loops="length")

    @property
    def trained_loops(self) -> int:
        """How many loops training makes of a sequence of the greatest length."""
        kind, *numbers = self.arm.loops.split(":")
        return self.config.max_len if kind == "length" else int((numbers or [kind])[-1])

    # ---- Learning rate, loss and update ------------------------------------------------------------------------------

    def learning_rate(self, update: int, updates: int) -> float:
        decay = (1 + math.cos(math.pi * update / updates)) / 2 if self.config.schedule == "cosine" else 1
        return self.config.learning_rate * decay

    def loss(self, model: nn.Module, tokens, targets, content, coordinates, lengths) -> tuple[torch.Tensor, dict]:
        """Cross-entropy in nats of the answer: after the last loop, or after as many loops as tokens; over a window its
        mean; with a gate the mean by its exit probabilities, less what rewards their entropy."""
        if isinstance(model, Control):
            loss = 0 * model.scale
            return loss, {"loss": loss}
        kind, *numbers = self.arm.loops.split(":")
        start = self.trained_loops - int(numbers[0]) if kind == "window" else 0
        states = model(tokens, coordinates, self.trained_loops, start)
        weights = (torch.ones_like(content) if self.arm.loss_on == "all" else content).float()

        def losses(state):  # of every sequence
            own = F.cross_entropy(model.answer(state).transpose(1, 2), targets, reduction="none") * weights
            return own.sum(1) * len(own) / weights.sum()

        if kind == "window":
            loss = torch.stack([losses(state).mean() for state in states]).mean()
        elif kind == "length":
            own = torch.stack(states, 1).gather(
                1, (lengths - 1)[:, None, None, None].expand(-1, 1, *states[0].shape[1:])
            )
            loss = losses(own[:, 0]).mean()
        elif self.arm.gate:
            exits = model.exits(states)
            entropy = -torch.special.xlogy(exits, exits.clamp(min=1e-9)).sum(1)
            loss = (exits * torch.stack([losses(state) for state in states], 1)).sum(1)
            loss = (loss - self.config.gate_entropy * entropy).mean()
        else:
            loss = losses(states[-1]).mean()
        return loss, {"loss": loss}

    def optimizer(self, params: dict[str, torch.Tensor], lr: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(params.values(), lr=lr, fused=True)

    # ---- What is trained ---------------------------------------------------------------------------------------------

    def model(self) -> nn.Module:
        return Control(self.config, self.arm_name) if self.arm_name in CONTROLS else Model(self.config, self.arm)

    def sequences(self, lengths: torch.Tensor, size: int, pad: int, generator: torch.Generator) -> dict:
        """Sequences of these lengths, at most size, padded: tokens, targets, content [n, T], coordinates [n, T, 2],
        lengths [n]. What they are does not depend on the arm."""
        c, layout, n = self.config, self.arm.layout, len(lengths)
        shown = F.pad(sample_tokens(n, lengths, size, c.vocab_size, generator), (0, pad))
        tokens, targets = lay_out(shown, lengths, layout, c.vocab_size)
        where = coordinates(self.arm.positions, tokens.shape[1], lengths, c.position_range, generator)
        at = torch.arange(tokens.shape[1]) - (lengths[:, None] + 1 if layout == "append" else 0)
        content = (at >= 0) & (at < lengths[:, None])
        return {"tokens": tokens, "targets": targets, "content": content, "coordinates": where, "lengths": lengths}

    def batches(self, first: int, n: int, device: torch.device) -> dict[str, torch.Tensor]:
        """Fresh sequences of random lengths; arms that share a seed see the same ones."""
        c, generator = self.config, self.stream("training sequences", first // n)
        lengths = torch.randint(c.min_len, c.max_len + 1, (n * c.batch_size,), generator=generator)
        batch = self.sequences(lengths, c.max_len, self.arm.train_pad, generator)
        return {key: values.unflatten(0, (n, -1)) for key, values in batch.items()}

    # ---- What is measured --------------------------------------------------------------------------------------------

    def loops_at(self, length: int) -> int:
        """How many loops are looked at for this length."""
        if self.arm.loops == "1":
            return 1
        own = max(self.trained_loops, *self.config.inference_iterations_list)
        return max(own, length + 5) if self.arm.loops == "length" else max(own, MOST_LOOPS)

    def observe(self, model: nn.Module, update: int) -> dict[str, torch.Tensor]:
        """After the last update scores of test sequences of every length, after every loop: {"length/score":
        [loops, n_test]}, and for the gate its exit probabilities [loops, n_test]. Before it, those of max_len alone."""
        device, found = next(model.parameters()).device, {}
        for length in self.config.lengths if update == self.updates else [self.config.max_len]:
            generator = stream(self.seed, "test sequences", length)
            lengths = torch.full((self.config.n_test,), length)
            batch = self.sequences(lengths, length, self.arm.test_pad, generator)
            batch = {key: values.to(device) for key, values in batch.items()}
            loops, before, rows = self.loops_at(length), None, []
            if isinstance(model, Control):
                states = model.rounds(batch["tokens"], batch["lengths"], loops)
            else:
                states = model(batch["tokens"], batch["coordinates"], loops)
            for state in states:
                logits = state if isinstance(model, Control) else model.answer(state)
                numbers = score(logits, batch["targets"], batch["content"])
                moved = torch.zeros(()) if before is None else (state - before).flatten(1).norm(dim=1)
                numbers["change"] = (moved / state.flatten(1).norm(dim=1)).double()
                before = state
                rows.append(numbers)
            found |= {f"{length}/{key}": torch.stack([row[key] for row in rows]).cpu() for key in rows[0]}
            if self.arm.gate:
                found[f"{length}/exits"] = model.exits(states[: self.trained_loops]).T.double().cpu()
            last = states[self.asked(length) - 1]
            last = last if isinstance(model, Control) else model.answer(last)
            right = (last.argmax(-1) == batch["targets"])[batch["content"]].view(-1, length)
            found[f"{length}/profile"] = right.double().mean(0).cpu()
        return found

    def asked(self, length: int) -> int:
        """After how many loops the arm is asked for its answer: as many as in training, or as tokens."""
        return length if self.arm.loops == "length" else self.trained_loops

    def measure(self, observed: dict, update: int, recent: dict[str, list[float]], points: list[dict]) -> dict:
        """Means over test sequences; at the end for every length, and by loops."""
        numbers = {"loss": math.fsum(recent["loss"]) / len(recent["loss"]) if recent else None}
        L = self.config.max_len
        for key in ("exact", "exact_all", "token"):
            numbers[f"trained_{key}"] = observed[f"{L}/{key}"][self.asked(L) - 1].mean().item()
        if update < self.updates:
            return numbers
        by_length = {}
        for length in self.config.lengths:
            own = {key: observed[f"{length}/{key}"] for key in ("exact", "exact_all", "token", "doubt", "change")}
            told = {key: [float(f"{x:.6g}") for x in values.mean(1).tolist()] for key, values in own.items()}
            told["profile"] = [float(f"{x:.6g}") for x in observed[f"{length}/profile"].tolist()]
            told["stopping"] = self.stopping(own, observed.get(f"{length}/exits"), length)
            by_length[str(length)] = told
        return numbers | {"by_length": by_length}

    def stopping(self, own: dict[str, torch.Tensor], exits: torch.Tensor | None, length: int) -> dict:
        """Exact accuracy and mean number of loops by three rules on the same weights: as many loops as tokens (oracle),
        the loop of least doubt (Fan et al. 2024, "Looped Transformers for Length Generalization"), the gate."""
        exact, rules = own["exact"], {}
        rules["oracle"] = torch.full((exact.shape[1],), min(length, len(exact)) - 1)
        if self.arm_name in ARMS:  # controls are sure of everything
            rules["confidence"] = own["doubt"].argmin(0)
        if exits is not None:
            rules["gate"] = (exits.cumsum(0) >= 0.5).int().argmax(0)
        return {
            name: {"exact": exact.gather(0, at[None])[0].mean().item(), "loops": at.double().mean().item() + 1}
            for name, at in rules.items()
        }

    # ---- What is reported --------------------------------------------------------------------------------------------

    def cell(self, points: list[dict]) -> dict:
        """Accuracies at the arm's own number of loops by length, and with those of inference_iterations_list. An arm is
        trained if it is right on at least 0.9 of the sequences of the greatest length in training."""
        last = points[-1]
        by_length, L = last.get("by_length", {}), self.config.max_len
        numbers = {
            "arm": self.arm_name,
            "trained_exact": last["trained_exact"],
            "trained": int(last["trained_exact"] >= 0.9),
        }
        for length in self.config.test_lengths:
            told = by_length.get(str(length), {})
            for key in ("exact", "exact_all", "token"):
                numbers[f"{key}_L{length}"] = told[key][self.asked(length) - 1] if told else None
            for loops in self.config.inference_iterations_list if self.arm.loops != "1" else ():
                numbers[f"exact_L{length}_K{loops}"] = told["exact"][loops - 1] if told else None
        reached = [
            int(length) for length, told in by_length.items() if told["exact"][self.asked(int(length)) - 1] >= 0.9
        ]
        numbers["longest"] = max(reached, default=None)
        numbers["loss"] = last["loss"]
        return numbers | {"parameters": sum(p.numel() for p in self.model().parameters()), "max_len": L}

    def extras(self, points: list[dict]) -> dict:
        told = {field.name: getattr(self.arm, field.name) for field in fields(Arm)}
        return {"arm": self.arm_name, "trained_loops": self.trained_loops} | told


def plan(config: Config) -> list[ReversalTrajectory]:
    """One trajectory per (arm, seed), measured ten times on the greatest length in training, and at the end on all."""
    return [
        ReversalTrajectory(
            config=config,
            name=f"{arm}, seed={seed}",
            seed=seed,
            arm_name=arm,
            cells={1 if arm in CONTROLS else config.num_steps: arm},
            streams=(seed,),
            measured=() if arm in CONTROLS else tuple(sorted({config.num_steps * k // 10 for k in range(1, 10)} - {0})),
            shape=arm,
        )
        for arm in config.arms
        for seed in range(config.seed, config.seed + config.seeds)
    ]


def headlines(config: Config) -> tuple[str, ...]:
    """The numbers of a cell that final_info.json has; exact means content alone."""
    by_length = [f"{key}_L{length}" for key in ("exact", "token") for length in config.test_lengths]
    return (*by_length, "trained_exact", "trained", "longest", "loss")


# What the headline numbers are measured with: all_results.json records a hash of the source of exactly these.
YARDSTICK = (sample_tokens, reverse, lay_out, Control, score, ReversalTrajectory.observe, ReversalTrajectory.asked)
YARDSTICK += (ReversalTrajectory.measure, ReversalTrajectory.stopping, ReversalTrajectory.cell)

# ==== Main ============================================================================================================

STUDY = Study(Config, plan, headlines, YARDSTICK)


def main(argv: list[str] | None = None) -> int:
    """Run the study; returns the exit status: 0 complete, 1 failed, 2 bad input, 130 or 143 interrupted."""
    return run_study(STUDY, argv)


if __name__ == "__main__":
    sys.exit(main())
