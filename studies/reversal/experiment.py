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
from dataclasses import asdict, dataclass, fields, replace
from itertools import accumulate
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent.parent))  # harness.py is there, if not beside this script
from harness import Study, Trajectory, require, run_study, stream  # noqa: E402

import torch  # noqa: E402
import torch.nn as nn  # noqa: E402
import torch.nn.functional as F  # noqa: E402

# ==== Configuration ===================================================================================================


@dataclass(frozen=True)
class Arm:
    """What an arm is. Every field is also a flag, which then holds for all arms: see Config."""

    layers: int = 1
    loops: str = "1"
    inject: bool = False
    positions: str = "sinusoidal"
    layout: str = "inplace"
    train_pad: int = 0
    test_pad: int = 0
    gate: bool = False
    aligned: bool = False
    loss_on: str = "all"

    @property
    def numbers(self) -> tuple[int | None, int | None] | None:
        """T and b of the loops window:T:b, None and K of K, None and None of length; None of anything else."""
        found = re.fullmatch(r"length|(?:window:([1-9]\d*):)?([1-9]\d*)", self.loops)
        return found and tuple(number and int(number) for number in found.groups())


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
    "looped_aligned": Arm(loops="length", positions="rotary", train_pad=1, test_pad=1, aligned=True),
    "looped_gate": Arm(loops="6", positions="ends_shift", gate=True),
}
CONTROLS = ("oracle", "reference")  # not trained: a network that reverses by swaps of neighbours, and the identity
POSITIONS = {  # by layout: with none only a causal mask tells tokens apart, and it hides the last token from the first
    "inplace": ("sinusoidal", "rotary", "random", "ends", "ends_shift", "ends_random"),
    "append": ("sinusoidal", "nope", "rotary"),
}


@dataclass(frozen=True)
class Config:
    """Every knob of the study; each is also a flag of the same name. UserError if one is out of range."""

    arms: tuple[str, ...] = (*ARMS, *CONTROLS)  # what is trained and compared; see ARMS
    layers: int | None = None  # of every arm, in place of its own: blocks with weights of their own
    loops: str | None = None  # how often: a number, length (as many as tokens), or window:5:10 (the last 5 of 10 count)
    inject: bool | None = None  # whether the input is added before every loop, which starts from 0
    positions: str | None = None  # sinusoidal, nope (none), rotary, random, ends, ends_shift or ends_random
    layout: str | None = None  # inplace: the answer in place of the input; append: behind it, causal
    train_pad: int | None = None  # padding at the end of every training sequence beyond the longest
    test_pad: int | None = None  # padding at the end of test sequences beyond the lengths of training
    gate: bool | None = None  # whether a learned gate weighs the answers after every loop
    aligned: bool | None = None  # whether loop t is taught round t of swaps, and told the parities of loop and index
    loss_on: str | None = None  # all slots of the answer, padding included, or content alone
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
        return replace(ARMS[name], **{f.name: x for f in fields(Arm) if (x := getattr(self, f.name)) is not None})

    def check(self, arm: Arm) -> None:
        def check(flag: str, ok: bool, allowed: str) -> None:  # the flag may not be given: the arm's own value counts
            require(self if getattr(self, flag) is not None else arm, flag, ok, allowed)

        check("layout", arm.layout in POSITIONS, " or ".join(POSITIONS))
        kinds = POSITIONS[arm.layout]
        check("positions", arm.positions in kinds, f"{' or '.join(kinds)} with --layout {arm.layout}")
        check("loss_on", arm.loss_on in ("all", "content"), "all or content")
        check("layers", arm.layers >= 1, "at least 1")
        for flag in ("train_pad", "test_pad"):
            check(flag, getattr(arm, flag) >= 0, "at least 0")
        window, most = arm.numbers or (None, None)
        form = arm.loops == "length" or most is not None and (window or 1) <= most
        check("loops", form, "a number of at least 1, length, or window:T:b with 1 <= T <= b")
        whole = window in (None, most) or arm.inject
        check("loops", whole, "a window of all its loops unless --inject: else no gradient reaches the embedding")
        check("gate", not arm.gate or window is None and (most or 0) > 1, "off unless --loops is at least 2")
        rounds = arm.loops == "length" and arm.layout == "inplace"
        check("aligned", not arm.aligned or rounds, "off unless --loops length --layout inplace")
        if arm.positions in ("random", "ends_shift", "ends_random"):
            longest = max(self.max_len + arm.train_pad, max(self.lengths) + max(arm.test_pad, 1))
            require(self, "position_range", self.position_range >= longest, f"at least {longest}, the longest sequence")

    @property
    def lengths(self) -> range:
        """Every length that is tested."""
        return range(self.min_len, max(*self.test_lengths, self.max_len) + 1)

    @property
    def mapped(self) -> list[int]:
        """Those that are tested in two frames and after every number of loops."""
        return [n for n in self.lengths if n <= self.max_len + 2 or n % 5 == 0 or n in self.test_lengths]


# ==== Sequences =======================================================================================================


def sample_tokens(n: int, lengths: torch.Tensor, size: int, vocab: int, generator: torch.Generator) -> torch.Tensor:
    """n sequences [n, size] int64 of so many tokens [n] from 1 to vocab - 1, padded with 0."""
    tokens = torch.randint(1, vocab, (n, size), generator=generator)
    return torch.where(torch.arange(size) < lengths[:, None], tokens, 0)


def reverse(tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """The first lengths[i] tokens of every row backwards, the padding as it is."""
    at = torch.arange(tokens.shape[1])
    return tokens.gather(1, torch.where(at < lengths[:, None], lengths[:, None] - 1 - at, at))


def swap(tokens: torch.Tensor, loop: int) -> torch.Tensor:
    """Round `loop` of an odd-even transposition network, [n, size] -> [n, size]: the neighbours 0 and 1, 2 and 3, ..
    (even) or 1 and 2, 3 and 4, .. (odd) change places, whatever they are. n rounds reverse n tokens."""
    at, lengths = torch.arange(tokens.shape[1], device=tokens.device), (tokens > 0).sum(1, keepdim=True)
    other = at + torch.where(at % 2 == loop % 2, 1, -1)
    return tokens.gather(1, torch.where((other >= 0) & (torch.maximum(at, other) < lengths), other, at))


def lay_out(tokens: torch.Tensor, lengths: torch.Tensor, layout: str, vocab: int) -> tuple[torch.Tensor, ...]:
    """What the model reads, what it should answer, 0 where nothing is asked for, and the number of the slot of the
    answer at every position, below 0 where there is none: [n, T] each.

    inplace: the sequence, and its reversal. append: the sequence, the token `vocab`, then slots for the reversal and at
    least one more, which stays empty (Fan et al. 2024, "Looped Transformers for Length Generalization").
    """
    n, size = tokens.shape
    if layout == "inplace":
        return tokens, reverse(tokens, lengths), torch.arange(size).expand(n, -1)
    shown = F.pad(tokens, (0, size + 2)).scatter(1, lengths[:, None], vocab)
    slots = torch.arange(2 * size + 2) - lengths[:, None] - 1
    answer = reverse(tokens, lengths).gather(1, slots.clamp(0, size - 1))
    return shown, torch.where((slots >= 0) & (slots < lengths[:, None]), answer, 0), slots


def coordinates(kind: str, size: int, lengths: torch.Tensor, limit: int, generator: torch.Generator) -> torch.Tensor:
    """Where every token is, [n, size, 2] float32: counted from the start, and from the end of the content, going on
    below 0 behind it.

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
    back = lengths[:, None] - 1 - at
    from_end = places.gather(1, torch.where(back >= 0, back, -1 - back))
    return torch.stack([places, torch.where(back >= 0, from_end, -1 - from_end)], 2).float()


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
        self.parities = nn.Embedding(4, d) if arm.aligned else None  # of index and loop
        for module in self.modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=d**-0.5)
            if isinstance(module, nn.Linear):
                std = module.in_features**-0.5 / 0.87962566103423978  # that of the cut distribution is in_features^-0.5
                nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
                nn.init.zeros_(module.bias)

    def forward(self, tokens, coordinates, loops: int, start: int = 0) -> list[torch.Tensor]:
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
            if self.parities is not None:
                index = torch.arange(x.shape[1], device=x.device)
                state = state + self.parities(2 * (index % 2) + loop % 2)
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
    """What is not learned, called like a Model. Its states are answers, one-hot after every loop: of the oracle after a
    round of swaps, of the reference the sequence as it is."""

    def __init__(self, config: Config, kind: str):
        super().__init__()
        self.kind, self.vocab = kind, config.vocab_size
        self.nothing = nn.Parameter(torch.zeros(()))  # an optimizer needs one

    def forward(self, tokens, coordinates, loops: int, start: int = 0) -> list[torch.Tensor]:
        words, states = torch.arange(self.vocab, device=tokens.device), []
        for loop in range(loops):
            tokens = swap(tokens, loop) if self.kind == "oracle" else tokens
            states.append(10.0 * (tokens[..., None] == words) + 0 * self.nothing)
        return states[start:]

    def answer(self, state: torch.Tensor) -> torch.Tensor:
        return state


# ==== Evaluation ======================================================================================================

EXITS = (0.1, 0.3, 0.5, 0.7, 0.9)  # a sequence leaves once the gate has ended with such a probability


def score(logits, targets, content, slots) -> dict[str, torch.Tensor]:
    """Of every sequence, all of L tokens, by logits [B, T, V] and targets, content, slots [B, T]: whether the content
    is right, and every slot of the answer [B]; the share of tokens that are right [B], and which [B, L]; the mean of
    -log of the greatest probability over the content [B]."""
    hits = logits.argmax(-1) == targets
    right = hits[content].view(len(hits), -1).float()
    doubt = -logits[content].float().log_softmax(-1).amax(-1).view(len(hits), -1)
    found = {"exact": right.amin(1), "exact_all": (hits | ~slots).all(1).float()}
    return found | {"token": right.mean(1), "profile": right, "doubt": doubt.mean(1)}


def short(x: float | list, form: str = ".4f"):
    """A number, or nested lists of them, with fewer digits."""
    return [short(inner, form) for inner in x] if isinstance(x, list) else float(f"{x:{form}}")


# ==== Training ========================================================================================================


@dataclass(frozen=True, kw_only=True, eq=False)
class ReversalTrajectory(Trajectory):
    """One model of an arm and a seed."""

    arm_name: str

    @property
    def arm(self) -> Arm:
        return self.config.arm(self.arm_name) if self.arm_name in ARMS else Arm(loops="length")

    def asked(self, length: int) -> int:
        """After how many loops the arm is asked for its answer: as many as in training, or as tokens."""
        return self.arm.numbers[1] or length

    @property
    def trained_loops(self) -> int:
        """How many loops training makes of a sequence of the greatest length."""
        return self.asked(self.config.max_len)

    # ---- Learning rate, loss and update ------------------------------------------------------------------------------

    def learning_rate(self, update: int, updates: int) -> float:
        decay = (1 + math.cos(math.pi * update / updates)) / 2 if self.config.schedule == "cosine" else 1
        return self.config.learning_rate * decay

    def loss(self, model, tokens, targets, content, slots, coordinates, lengths) -> tuple[torch.Tensor, dict]:
        """Cross-entropy in nats of the answer: after the last loop, or after as many loops as tokens; over a window its
        mean; with a gate the mean by its exit probabilities, less what rewards their entropy; aligned the mean over all
        loops, the answer of each being its round of swaps."""
        window, most = self.arm.numbers
        loops = self.trained_loops
        states = model(tokens, coordinates, loops, loops - window if window else 0)
        weights = (slots if self.arm.loss_on == "all" else content).float()

        def losses(state: torch.Tensor, targets: torch.Tensor = targets) -> torch.Tensor:  # of every sequence
            own = F.cross_entropy(model.answer(state).transpose(1, 2), targets, reduction="none") * weights
            return own.sum(1) * len(own) / weights.sum()

        if self.arm.aligned:
            _, *rounds = accumulate(range(loops), swap, initial=tokens)
            loss = torch.stack([losses(*pair) for pair in zip(states, rounds, strict=True)]).mean()
        elif window:
            loss = torch.stack([losses(state) for state in states]).mean()
        elif self.arm.gate:
            exits = model.exits(states)
            entropy = -torch.special.xlogy(exits, exits.clamp(min=1e-9)).sum(1)
            loss = (exits * torch.stack([losses(state) for state in states], 1)).sum(1)
            loss = (loss - self.config.gate_entropy * entropy).mean()
        else:
            every = torch.arange(len(lengths), device=lengths.device)
            loss = losses(states[-1] if most else torch.stack(states)[lengths - 1, every]).mean()
        return loss, {"loss": loss}

    def optimizer(self, params: dict[str, torch.Tensor], lr: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(params.values(), lr=lr, fused=True)

    # ---- What is trained ---------------------------------------------------------------------------------------------

    def model(self) -> nn.Module:
        return Control(self.config, self.arm_name) if self.arm_name in CONTROLS else Model(self.config, self.arm)

    def sequences(self, lengths: torch.Tensor, size: int, pad: int, generator: torch.Generator) -> dict:
        """Sequences of these lengths, at most size, padded: tokens, targets, content, slots [n, T], coordinates
        [n, T, 2], lengths [n]. What they are depends neither on the arm nor on the padding."""
        c, arm = self.config, self.arm
        shown = F.pad(sample_tokens(len(lengths), lengths, size, c.vocab_size, generator), (0, pad))
        tokens, targets, number = lay_out(shown, lengths, arm.layout, c.vocab_size)
        batch = {"tokens": tokens, "targets": targets, "slots": number >= 0, "lengths": lengths}
        batch["content"] = (number >= 0) & (number < lengths[:, None])
        batch["coordinates"] = coordinates(arm.positions, tokens.shape[1], lengths, c.position_range, generator)
        return batch

    def batches(self, first: int, n: int, device: torch.device) -> dict[str, torch.Tensor]:
        """Fresh sequences of random lengths; arms that share a seed see the same ones."""
        c, generator = self.config, self.stream("training sequences", first // n)
        lengths = torch.randint(c.min_len, c.max_len + 1, (n * c.batch_size,), generator=generator)
        batch = self.sequences(lengths, c.max_len, self.arm.train_pad, generator)
        return {key: values.unflatten(0, (n, -1)) for key, values in batch.items()}

    # ---- What is measured --------------------------------------------------------------------------------------------

    def loops_at(self, length: int) -> int:
        """How many loops are looked at for this length."""
        most = max(20, length + 5, self.trained_loops, *self.config.inference_iterations_list)
        return 1 if self.arm.loops == "1" else most

    def pads(self, length: int) -> tuple[int, int]:
        """Padding at the end of test sequences, in two frames: the arm's own, which is that of training up to max_len,
        and the other one, without padding where the own one has some."""
        room = self.config.max_len + self.arm.train_pad - length
        own = room if length <= self.config.max_len else self.arm.test_pad
        return own, 0 if own else max(1, room)

    def scores(self, model: nn.Module, length: int, pad: int, loops: int, start: int) -> dict[str, torch.Tensor]:
        """Scores of test sequences after each of the loops start + 1, .. loops [n_test, loops - start, ..], relative
        changes of the state, and if all loops are there for the gate its exit probabilities [n_test, loops]."""
        generator = stream(self.seed, "test sequences", length)
        batch = self.sequences(torch.full((self.config.n_test,), length), length, pad, generator)
        batch = {key: values.to(next(model.parameters()).device) for key, values in batch.items()}
        states = model(batch["tokens"], batch["coordinates"], loops, start)
        told = (batch["targets"], batch["content"], batch["slots"])
        rows = [score(model.answer(state), *told) for state in states]
        for row, before, state in zip(rows, [states[0], *states], states, strict=False):
            row["change"] = (state - before).flatten(1).norm(dim=1) / state.flatten(1).norm(dim=1)
        found = {key: torch.stack([row[key] for row in rows], 1).cpu().double() for key in rows[0]}
        if self.arm.gate and start == 0:
            found["exits"] = model.exits(states[: self.trained_loops]).cpu().double()
        return found

    def observe(self, model: nn.Module, update: int) -> dict[str, torch.Tensor]:
        """Scores of test sequences in the arm's own frame after its own number of loops, "length/score" [n_test, ..],
        for the lengths of training, after the last update for all. Then for the mapped lengths also those in the other
        frame, "length/other_score", and those after every loop, "length/score_by_loop" [n_test, loops]."""
        c, found, last = self.config, {}, update == self.updates
        for length in c.lengths if last else range(c.min_len, c.max_len + 1):
            (own, other), asked, mapped = self.pads(length), self.asked(length), last and length in c.mapped
            loops, start = (self.loops_at(length), 0) if mapped else (asked, asked - 1)
            scores = self.scores(model, length, own, loops, start)
            found |= {f"{length}/{key}": scores[key][:, asked - 1 - start] for key in scores if key != "exits"}
            if mapped:
                found |= {f"{length}/{key}_by_loop": values for key, values in scores.items() if key != "profile"}
                scores = self.scores(model, length, other, asked, asked - 1)
                found |= {f"{length}/other_{key}": scores[key][:, 0] for key in ("exact", "token")}
        return found

    def measure(self, observed: dict, update: int, recent: dict[str, list[float]], points: list[dict]) -> dict:
        """Means over test sequences: of the lengths of training; at the end of every length, in columns."""

        def mean(key: str, lengths, form: str = ".4f") -> list:
            return short([observed[f"{length}/{key}"].mean(0).tolist() for length in lengths], form)

        c, numbers = self.config, {"loss": math.fsum(recent["loss"]) / len(recent["loss"]) if recent else None}
        for key in ("exact", "exact_all", "token"):
            trained = [observed[f"{length}/{key}"] for length in range(c.min_len, c.max_len + 1)]
            numbers[f"trained_{key}"] = torch.stack(trained).mean().item()
        if update < self.updates:
            return numbers
        told = {"lengths": [*c.lengths]} | {key: mean(key, c.lengths) for key in ("exact", "exact_all", "token")}
        told |= {"mapped": c.mapped} | {key: mean(key, c.mapped) for key in ("other_exact", "other_token")}
        told["profile"] = mean("profile", c.test_lengths)
        if self.arm.loops != "1":
            told |= {"exact_by_loop": mean("exact_by_loop", c.mapped), "stopping": self.stopping(observed)}
        if self.arm.loops != "1" and self.arm_name in ARMS:
            keys = ("token_by_loop", "doubt_by_loop", "change_by_loop")
            told |= {key: mean(key, c.test_lengths, ".3g") for key in keys}
        return numbers | {"by_length": told}

    def stopping(self, observed: dict[str, torch.Tensor]) -> dict[str, dict[str, list]]:
        """Exact accuracy and mean number of loops at the mapped lengths by rules on the same weights: as many loops as
        tokens (oracle), the loop of least doubt (Fan et al. 2024), the gate."""
        columns = {}
        for length in self.config.mapped:
            exact, doubt = observed[f"{length}/exact_by_loop"], observed[f"{length}/doubt_by_loop"]
            rules = {"oracle": torch.full((len(exact),), length - 1)}
            if self.arm_name in ARMS:  # controls are sure of everything
                rules["confidence"] = doubt.argmin(1)
            for q in EXITS if self.arm.gate else ():
                rules[f"gate_{q}"] = (observed[f"{length}/exits_by_loop"].cumsum(1) >= q).int().argmax(1)
            for rule, at in rules.items():
                column = columns.setdefault(rule, {"exact": [], "loops": []})
                column["exact"].append(short(exact.gather(1, at[:, None]).mean().item()))
                column["loops"].append(short(at.double().mean().item() + 1))
        return columns

    # ---- What is reported --------------------------------------------------------------------------------------------

    def cell(self, points: list[dict]) -> dict:
        """Accuracies at the arm's own number of loops by length, and with those of inference_iterations_list. An arm is
        trained if it is right on at least 0.9 of the sequences of its training, and gets as far as the last length
        before the first with less."""
        last, c = points[-1], self.config
        numbers = {key: last[key] for key in ("trained_exact", "trained_exact_all", "trained_token", "loss")}
        numbers["trained"] = int(last["trained_exact"] >= 0.9)
        told = last.get("by_length")  # at the end alone
        for length in c.test_lengths:
            for key in ("exact", "token"):
                numbers[f"{key}_L{length}"] = told and told[key][length - c.min_len]
            for loops in c.inference_iterations_list if self.arm.loops != "1" else ():
                by_loop = told and told["exact_by_loop"][c.mapped.index(length)]
                numbers[f"exact_L{length}_K{loops}"] = by_loop and by_loop[loops - 1]
        right = [x >= 0.9 for x in told["exact"]] if told else []
        reached = [*right, False].index(False)
        return numbers | {"longest": c.min_len + reached - 1 if reached else None}

    def extras(self, points: list[dict]) -> dict:
        parameters = sum(p.numel() for p in self.model().parameters())
        told = {"arm": self.arm_name, "trained_loops": self.trained_loops, "parameters": parameters}
        return told | asdict(self.arm)


def plan(config: Config) -> list[ReversalTrajectory]:
    """One trajectory per (arm, seed), measured ten times on the lengths of training, and at the end on all."""
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
YARDSTICK = (sample_tokens, reverse, swap, lay_out, Control, score, short)
YARDSTICK += tuple(
    getattr(ReversalTrajectory, name)
    for name in "asked sequences loops_at pads scores observe measure stopping cell".split()
)

# ==== Main ============================================================================================================

STUDY = Study(Config, plan, headlines, YARDSTICK)


def main(argv: list[str] | None = None) -> int:
    """Run the study; returns the exit status: 0 complete, 1 failed, 2 bad input, 130 or 143 interrupted."""
    return run_study(STUDY, argv)


if __name__ == "__main__":
    sys.exit(main())
