#!/usr/bin/env python3
"""Compositional parity: from how many training tasks on does a Transformer solve tasks that it never saw?

A task is a tuple of k of d coordinates. A sequence shows examples of one task: d random bits and, step by step, the
parity of the bits at the task's coordinates. If steps are learned one by one, a task of which u steps use a coordinate
that no training task has at that step is solved with probability 2^-u: a law without free parameters. The script trains
models on n tasks, tests them task by task on others, and compares them with the law and with three ideal predictors.
After Abedsoltan et al. 2025, "Task Generalization With AutoRegressive Compositional Structure" (arXiv 2502.08991).

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

import itertools
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent.parent))  # harness.py is there, if not beside this script
from harness import Study, Trajectory, require, run_study, stream  # noqa: E402

import torch  # noqa: E402
import torch.nn as nn  # noqa: E402
import torch.nn.functional as F  # noqa: E402

# ==== Configuration ===================================================================================================

VARIANTS = ("ordered", "sorted", "missing_coordinate", "missing_pair", "no_cot")


@dataclass(frozen=True)
class Config:
    """Every knob of the study; each is also a flag of the same name. UserError if one is out of range."""

    preset: str = "cpu"  # cpu, or paper: format, size and training of the original
    dim_ambient: tuple[int, ...] = (6, 10)  # bits d of an example
    n_train_tasks: tuple[int, ...] = (8, 12, 16, 24, 32, 48, 64)  # training tasks n
    variants: tuple[str, ...] = ("ordered",)  # ordered, sorted, missing_coordinate, missing_pair, no_cot
    dim_k: int = 3  # coordinates k of a task
    missing_coordinate: tuple[int, int] = (2, 5)  # step, from 1, and coordinate, from 0, of no training task
    missing_pair: tuple[int, int] = (4, 6)  # coordinates that no training task has both of
    context_length: int = 16  # examples of a sequence; the last one counts
    tokens: str = "vector"  # vector: the bits of an example are one token; bits: each is one, and a constant follows
    positions: str = "factored"  # factored: number of the example and place in it; absolute
    curriculum: bool = True  # whether bits beyond the first three are 0 at first and join one by one, before half-way
    n_train_total: int = 0  # sequences of a fixed training set; 0: fresh ones in every update
    n_layers: int = 3  # Transformer blocks
    n_heads: int = 4  # attention heads per block
    gpt2_width: int = 64  # width of the residual stream, divisible by the heads
    dropout: float = 0.0  # of embeddings, attention and residual branches
    max_lr: float = 2e-3  # AdamW learning rate after the warm-up
    schedule: str = "cosine"  # to 0 after the warm-up, or constant
    warmup: int = 200  # updates during which the rate rises linearly
    weight_decay: float = 0.01  # AdamW weight decay
    clip_norm: float | None = 1.0  # largest norm of the gradient, or none
    batch_size: int = 64  # sequences per update
    steps: int = 6000  # updates
    n_test_tasks: int = 80  # tasks of every kind that are tested, at most
    n_test_sequences: int = 32  # sequences for each of them
    seeds: int = 1  # how many seeds
    seed: int = 42  # the first seed
    precision: str = "float32"  # matrix products in float32, tf32 (CUDA only) or bf16
    device: str = "auto"  # auto (CUDA, else Apple MPS, else CPU), cpu, cuda or mps

    def __post_init__(self):
        for flag in ("dim_ambient", "n_train_tasks", "variants"):
            values = tuple(getattr(self, flag))
            object.__setattr__(self, flag, values)
            require(self, flag, len(set(values)) == len(values) > 0, "one or more different values")
        require(self, "variants", {*self.variants} <= {*VARIANTS}, f"of {' '.join(VARIANTS)}")
        whole = ("dim_k", "context_length", "n_layers", "n_heads", "gpt2_width", "batch_size", "steps")
        for flag in (*whole, "n_test_tasks", "n_test_sequences", "seeds"):
            require(self, flag, getattr(self, flag) >= 1, "at least 1")
        for flag in ("n_train_total", "warmup", "seed"):
            require(self, flag, getattr(self, flag) >= 0, "at least 0")
        for flag in ("max_lr", "weight_decay"):
            require(self, flag, 0 <= getattr(self, flag) < math.inf, "finite and not negative")
        require(self, "dropout", 0 <= self.dropout < 1, "at least 0 and below 1")
        require(self, "clip_norm", self.clip_norm is None or 0 < self.clip_norm < math.inf, "above 0, or none")
        require(self, "gpt2_width", self.gpt2_width % self.n_heads == 0, f"divisible by --n_heads {self.n_heads}")
        require(self, "warmup", self.warmup < self.steps, f"below --steps {self.steps}")
        choices = {"tokens": ("vector", "bits"), "positions": ("factored", "absolute")}
        choices["schedule"] = ("cosine", "constant")
        for flag, known in choices.items():
            require(self, flag, getattr(self, flag) in known, " or ".join(known))
        least = min(self.dim_ambient)
        require(self, "dim_k", self.dim_k <= least, f"at most --dim_ambient {least}")
        require(self, "n_train_tasks", min(self.n_train_tasks) >= 1, "at least 1")
        if "missing_coordinate" in self.variants:
            step, coordinate = self.missing_coordinate
            inside = 1 <= step <= self.dim_k and 0 <= coordinate < least
            allowed = f"a step of 1 to {self.dim_k}, a coordinate of 0 to {least - 1}"
            require(self, "missing_coordinate", inside, allowed)
        if "missing_pair" in self.variants:
            one, other = self.missing_pair
            inside = one != other and 0 <= min(one, other) and max(one, other) < least
            require(self, "missing_pair", inside, f"two different coordinates of 0 to {least - 1}")
        for d, variant in itertools.product(self.dim_ambient, self.variants):
            tasks = Tasks(d, self.dim_k, variant, self.missing_coordinate, self.missing_pair)
            require(self, "dim_k", tasks.count <= 10**6, f"so that there are at most 10^6 tasks, not {tasks.count}")
            if variant in ("missing_coordinate", "missing_pair"):
                is_some = tasks.n_allowed < tasks.count
                require(self, variant, is_some, f"of some task (d = {d}, k = {self.dim_k})")
            allowed = f"below {tasks.n_allowed}, the number of tasks that may be trained on ({variant}, d = {d})"
            require(self, "n_train_tasks", max(self.n_train_tasks) < tasks.n_allowed, allowed)
            length = self.context_length * self.example_length(d, self.chain(variant))
            fits = self.positions == "factored" or length <= POSITIONS
            require(self, "context_length", fits, f"so that {length} tokens fit {POSITIONS} absolute positions")
        least = max(self.n_train_tasks)
        require(self, "n_train_total", not 0 < self.n_train_total < least, f"0, or at least --n_train_tasks {least}")

    def chain(self, variant: str) -> int:
        """How many parities an example shows: of every step, or the last one alone."""
        return 1 if variant == "no_cot" else self.dim_k

    def example_length(self, d: int, chain: int) -> int:
        """Tokens of an example: its bits, in the paper's format a constant, and its parities."""
        return (1 if self.tokens == "vector" else d + 1) + chain


PAPER = {"tokens": "bits", "positions": "absolute", "curriculum": False, "context_length": 40, "n_heads": 1}
PAPER |= {"gpt2_width": 192, "dropout": 0.1, "max_lr": 8e-5, "schedule": "constant", "warmup": 0, "clip_norm": None}
PAPER |= {"dim_ambient": (15,), "n_train_tasks": (121,), "variants": ("sorted",), "n_train_total": 25000}
PRESETS = {"cpu": {}, "paper": PAPER | {"steps": 31200, "n_test_tasks": 200, "n_test_sequences": 500}}
POSITIONS = 2048  # absolute ones, as in GPT-2

# ==== Tasks ===========================================================================================================


@dataclass(frozen=True)
class Tasks:
    """The tuples of k of d coordinates, ordered or sorted, of which some may not be trained on."""

    d: int
    k: int
    variant: str
    missing_coordinate: tuple[int, int]
    missing_pair: tuple[int, int]

    @property
    def ordered(self) -> bool:
        return self.variant == "ordered"  # without a chain, the order changes nothing

    @property
    def count(self) -> int:
        return math.perm(self.d, self.k) if self.ordered else math.comb(self.d, self.k)

    @cached_property
    def every(self) -> list[tuple[int, ...]]:
        return [*(itertools.permutations if self.ordered else itertools.combinations)(range(self.d), self.k)]

    @cached_property
    def n_allowed(self) -> int:
        """How many tasks may be trained on."""
        return sum(map(self.allowed, self.every))

    def allowed(self, task: tuple[int, ...]) -> bool:
        """Whether it may be trained on."""
        if self.variant == "missing_coordinate":
            return task[self.missing_coordinate[0] - 1] != self.missing_coordinate[1]
        return self.variant != "missing_pair" or not {*self.missing_pair} <= {*task}

    def split(self, n: int, n_test: int, seed: int) -> dict[str, list[tuple[int, ...]]]:
        """train: n tasks; unseen: up to n_test others that might have been trained on; excluded: up to n_test that may
        not be. One random order of all tasks serves every n: those for training are its first ones, those for tests its
        last, so that few training tasks are among many."""
        order = torch.randperm(self.count, generator=stream(seed, "tasks", self.d, self.k, self.ordered)).tolist()
        tasks = [self.every[i] for i in order]
        allowed = [task for task in tasks if self.allowed(task)]
        excluded = [task for task in tasks if not self.allowed(task)]
        return {"train": allowed[:n], "unseen": allowed[n:][::-1][:n_test], "excluded": excluded[::-1][:n_test]}


def covered(train: list[tuple[int, ...]], d: int) -> torch.Tensor:
    """Which coordinates training tasks have at every step: [k, d] bool."""
    seen = torch.zeros(len(train[0]), d, dtype=torch.bool)
    seen[torch.arange(len(train[0])).repeat(len(train)), torch.tensor(train).flatten()] = True
    return seen


def uncovered_steps(tasks: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Of tasks [m, k] which steps have a coordinate that no training task has there: [m, k] bool."""
    return ~seen[torch.arange(tasks.shape[1]), tasks]


def parities(bits: torch.Tensor, tasks: torch.Tensor) -> torch.Tensor:
    """p_t, the parity of the first t coordinates' bits: bits [m, N, d], tasks [m, k] -> [m, N, k] int64."""
    chosen = bits.gather(2, tasks[:, None].expand(-1, bits.shape[1], -1))
    return chosen.cumsum(2) % 2


# ==== Ideal predictors ================================================================================================


def per_step_bayes(bits: torch.Tensor, p: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
    """Probability that p_t is 1 for whoever knows that step t adds one coordinate of candidates [k, d], of which the
    examples before tell: bits [m, N, d], parities p [m, N, k] -> [m, N, k] float64. 1/2 where no candidate is left."""
    before = F.pad(p[..., :-1], (1, 0))
    added = p ^ before  # [m, N, k]
    fits = (bits[:, :, None] == added[..., None]).double()  # [m, N, k, d]
    known = fits.cumprod(1).roll(1, 1)
    known[:, 0] = 1
    weights = known * candidates
    ones = ((bits[:, :, None] ^ before[..., None]) * weights).sum(-1)
    total = weights.sum(-1)
    return torch.where(total > 0, ones / total.clamp(min=1), 0.5)


def memorizer_bayes(bits: torch.Tensor, p: torch.Tensor, train: torch.Tensor) -> torch.Tensor:
    """The same for whoever knows that the task is one of train [n, k], and takes the steps of this example into account
    that came before."""
    m, N, k = p.shape
    theirs = torch.stack([parities(bits, task.expand(m, -1)) for task in train], -1)  # [m, N, k, n]
    fits = (theirs == p[..., None]).double()
    known = fits.prod(2).cumprod(1).roll(1, 1)
    known[:, 0] = 1
    within = F.pad(fits[:, :, :-1].cumprod(2), (0, 0, 1, 0), value=1.0)
    weights = known[:, :, None] * within
    total = weights.sum(-1)
    return torch.where(total > 0, (weights * theirs).sum(-1) / total.clamp(min=1), 0.5)


def binary_kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """KL in nats from the probability p of a 1 to that of q."""
    return torch.special.xlogy(p, p / q) + torch.special.xlogy(1 - p, (1 - p) / (1 - q))


# ==== Scores ==========================================================================================================


def mean(values: torch.Tensor) -> float | None:
    """None of nothing."""
    return values.double().mean().item() if values.numel() else None


def of_answers(P: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
    """Probability of the right parities p, from those of a 1."""
    return torch.where(p == 1, P, 1 - P)


def cross_entropy(P: torch.Tensor, p: torch.Tensor) -> float:
    """In nats, mean over parities."""
    return -of_answers(P, p).clamp(min=1e-12).log().mean().item()


def right_by_example(P: torch.Tensor, p: torch.Tensor) -> list[float]:
    """Share of whole chains that are right, by the number of the example; who cannot tell guesses: [m, N, c] -> N."""
    own = of_answers(P, p)
    right = torch.where(own == 0.5, 0.5, (own > 0.5).double()).prod(2).mean(0)
    return [round(x, 4) for x in right.tolist()]


def words(values: Iterable) -> str:
    return " ".join(map(str, values))


def worst_decile(exact: torch.Tensor) -> torch.Tensor:
    """Mean over the tenth of tasks that do worst: [.., m] -> [..]."""
    return exact.sort(-1).values[..., : max(1, exact.shape[-1] // 10)].mean(-1)


# ==== Model ===========================================================================================================


class Block(nn.Module):
    """Pre-LayerNorm GPT-2 block: [B, T, w] -> [B, T, w]."""

    def __init__(self, config: Config):
        super().__init__()
        w = config.gpt2_width
        self.heads, self.dropout = config.n_heads, config.dropout
        self.attention_norm, self.mlp_norm = nn.LayerNorm(w), nn.LayerNorm(w)
        self.qkv, self.attention_out = nn.Linear(w, 3 * w), nn.Linear(w, w)
        self.mlp_in, self.mlp_out = nn.Linear(w, 4 * w), nn.Linear(4 * w, w)
        self.drop = nn.Dropout(config.dropout)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        qkv = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        rate = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, dropout_p=rate, is_causal=True)
        x = x + self.drop(self.attention_out(attended.transpose(1, 2).flatten(-2)))
        return x + self.drop(self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x)), approximate="tanh")))


class Model(nn.Module):
    """GPT-2 on sequences of examples: bits [B, N, d] and parities [B, N, c] -> logits [B, N, c, 2] of the parities,
    each at the token before it. In the paper's format also those of the constant, which come first."""

    def __init__(self, config: Config, d: int, chain: int):
        super().__init__()
        w, length = config.gpt2_width, config.example_length(d, chain)
        self.vector, self.factored = config.tokens == "vector", config.positions == "factored"
        self.tokens = nn.Embedding(2, w)  # 0 and 1, which it also answers with
        self.bits = nn.Linear(d, w) if self.vector else None
        self.examples = nn.Embedding(config.context_length, w) if self.factored else None
        self.places = nn.Embedding(length if self.factored else POSITIONS, w)
        self.drop = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = nn.LayerNorm(w)
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                deep = name.endswith("_out")  # what is added to the stream starts smaller, by its depth
                nn.init.normal_(module.weight, std=0.02 / math.sqrt(2 * config.n_layers) if deep else 0.02)
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)

    def forward(self, bits: torch.Tensor, p: torch.Tensor) -> torch.Tensor:
        B, N, chain = p.shape
        if self.vector:
            x = torch.cat([self.bits(2.0 * bits - 1)[:, :, None], self.tokens(p)], 2)
        else:
            x = self.tokens(torch.cat([bits, torch.zeros_like(p[..., :1]), p], 2))
        length = x.shape[2]
        if self.factored:
            x = x + self.examples.weight[:N, None] + self.places.weight
        else:
            x = x + self.places.weight[: N * length].unflatten(0, (N, length))
        x = self.drop(x.flatten(1, 2))
        for block in self.blocks:
            x = block(x)
        x = self.norm(x).unflatten(1, (N, length))[:, :, length - 1 - chain - (not self.vector) : length - 1]
        return x @ self.tokens.weight.T


# ==== Training ========================================================================================================


@dataclass(frozen=True, kw_only=True, eq=False)
class ParityTrajectory(Trajectory):
    """One model of a number of bits and of training tasks, a variant and a seed."""

    d: int
    n_tasks: int
    variant: str

    # ---- Learning rate, loss and update ------------------------------------------------------------------------------

    def learning_rate(self, update: int, updates: int) -> float:
        """After a linear warm-up constant, or by a cosine to 0."""
        c = self.config
        if update < c.warmup:
            return c.max_lr * (update + 1) / c.warmup
        done = (update - c.warmup) / (updates - c.warmup)
        return c.max_lr * ((1 + math.cos(math.pi * done)) / 2 if c.schedule == "cosine" else 1)

    def loss(self, model: Model, bits: torch.Tensor, p: torch.Tensor) -> tuple[torch.Tensor, dict]:
        """Cross-entropy in nats, mean over all parities of all examples, and the constant where there is one."""
        logits = model(bits, p)
        targets = F.pad(p, (logits.shape[2] - p.shape[2], 0))
        loss = F.cross_entropy(logits.flatten(0, 2), targets.flatten())
        return loss, {"loss": loss}

    def optimizer(self, params: dict[str, torch.Tensor], lr: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW(params.values(), lr=lr, weight_decay=self.config.weight_decay, fused=True)

    # ---- What is trained ---------------------------------------------------------------------------------------------

    @cached_property
    def data(self) -> dict[str, torch.Tensor]:
        """Tasks for training and tests, [.., k]."""
        c = self.config
        tasks = Tasks(self.d, c.dim_k, self.variant, c.missing_coordinate, c.missing_pair)
        split = tasks.split(self.n_tasks, c.n_test_tasks, self.seed)
        return {kind: torch.tensor(own).view(-1, c.dim_k) for kind, own in split.items()}

    @cached_property
    def training_bits(self) -> torch.Tensor:
        """Of a fixed training set with as many sequences of every task: [sequences, N, d]."""
        c, total = self.config, self.config.n_train_total // self.n_tasks * self.n_tasks
        return torch.randint(2, (total, c.context_length, self.d), generator=self.stream("training set"))

    def model(self) -> Model:
        return Model(self.config, self.d, self.config.chain(self.variant))

    def shown(self, bits: torch.Tensor, tasks: torch.Tensor) -> torch.Tensor:
        """The parities that an example shows."""
        p = parities(bits, tasks)
        return p[..., -self.config.chain(self.variant) :]

    def active(self, update: int) -> int:
        """How many bits are random: with a curriculum 3 at the start, and all a little before half of the updates."""
        if not self.config.curriculum:
            return self.d
        return min(self.d, 3 + int((self.d - 2) * update / (self.updates / 2)))

    def batches(self, first: int, n: int, device: torch.device) -> dict[str, torch.Tensor]:
        """bits [n, B, N, d] and the parities shown [n, B, N, c] of tasks that are drawn uniformly."""
        c, generator = self.config, self.stream("training sequences", first // n)
        train = self.data["train"]
        if c.n_train_total:  # in a new order in every epoch
            total = len(self.training_bits)
            epochs = range(first * c.batch_size // total, (first + n) * c.batch_size // total + 1)
            order = torch.cat([torch.randperm(total, generator=self.stream("epoch", epoch)) for epoch in epochs])
            which = order[first * c.batch_size - epochs[0] * total :][: n * c.batch_size]
            tasks, bits = train[which % len(train)], self.training_bits[which]
        else:
            tasks = train[torch.randint(len(train), (n * c.batch_size,), generator=generator)]
            bits = torch.randint(2, (len(tasks), c.context_length, self.d), generator=generator)
        active = torch.tensor([*map(self.active, range(first, first + n))]).repeat_interleave(c.batch_size)
        bits = torch.where(torch.arange(self.d) < active[:, None, None], bits, 0)
        batch = {"bits": bits, "p": self.shown(bits, tasks)}
        return {key: values.unflatten(0, (n, -1)) for key, values in batch.items()}

    # ---- What is measured --------------------------------------------------------------------------------------------

    @cached_property
    def tests(self) -> dict[str, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
        """Of training, unseen and excluded tasks: tasks [m, k], fresh bits [m * sequences, N, d] and the parities that
        are shown [m * sequences, N, c]."""
        c, found = self.config, {}
        for kind, tasks in self.data.items():
            tasks = tasks[: c.n_test_tasks]
            generator = stream(self.seed, "test sequences", kind, self.d)
            bits = torch.randint(2, (len(tasks) * c.n_test_sequences, c.context_length, self.d), generator=generator)
            found[kind] = tasks, bits, self.shown(bits, tasks.repeat_interleave(c.n_test_sequences, 0))
        return {kind: told for kind, told in found.items() if len(told[0])}

    @cached_property
    def uncovered(self) -> dict[str, torch.Tensor]:
        """Which steps of the tested tasks have a coordinate that no training task has there, [m, k] by kind."""
        seen = covered(self.data["train"].tolist(), self.d)
        return {kind: uncovered_steps(tasks, seen) for kind, (tasks, _, _) in self.tests.items()}

    @cached_property
    def ideals(self) -> dict[str, dict[str, torch.Tensor]]:
        """Probabilities of a 1 by the ideal predictors for the sequences of training and unseen tasks, [.., N, k]."""
        train, found = self.data["train"], {}
        seen = covered(train.tolist(), self.d)
        for kind in ("train", "unseen") if self.variant != "no_cot" else ():
            _, bits, p = self.tests[kind]
            parts = [*zip(bits.split(128), p.split(128), strict=True)]
            found[kind] = {
                "memorizer": torch.cat([memorizer_bayes(x, y, train) for x, y in parts]),
                "covered": torch.cat([per_step_bayes(x, y, seen) for x, y in parts]),
                "composer": torch.cat([per_step_bayes(x, y, torch.ones_like(seen)) for x, y in parts]),
            }
        return found

    @cached_property
    def constants(self) -> dict[str, float | None]:
        """The law for these very tasks, and the ideal predictors' cross-entropy on training tasks."""
        if self.variant == "no_cot":  # a law of steps says nothing about whole parities
            return {}
        law = {kind: 0.5 ** steps.sum(1).double() for kind, steps in self.uncovered.items()}
        n, p = self.config.n_test_sequences, self.tests["train"][2]
        chances = law["unseen"].expand(1000, -1)  # the worst of many tasks are also the unlucky ones: drawn as they are
        drawn = torch.binomial(torch.full_like(chances, n), chances, generator=stream(self.seed, "worst decile")) / n
        numbers = {"law": mean(law["unseen"]), "law_worst_decile": mean(worst_decile(drawn))}
        numbers["law_excluded"] = mean(law["excluded"]) if "excluded" in law else None
        return numbers | {f"floor_{who}": cross_entropy(P, p) for who, P in self.ideals["train"].items()}

    def observe(self, model: Model, update: int) -> dict[str, torch.Tensor]:
        """Probabilities of a 1 for the constant, if there is one, and every parity of the test sequences, float64
        [sequences, N, (1 +) c], by kind of task."""
        device, found = next(model.parameters()).device, {}
        for kind, (_, bits, p) in self.tests.items():
            parts = zip(bits.to(device).split(128), p.to(device).split(128), strict=True)
            logits = torch.cat([model(x, y).float().cpu() for x, y in parts])
            found[kind] = logits.double().softmax(-1)[..., 1]
        return found

    def measure(self, observed: dict, update: int, recent: dict[str, list[float]], points: list[dict]) -> dict:
        """Scores by kind of task, and where the model stands between ideal predictors; at the end every task."""
        numbers = {"loss": math.fsum(recent["loss"]) / len(recent["loss"]) if recent else None}
        chain = self.config.chain(self.variant)
        shown = {kind: P[..., -chain:] for kind, P in observed.items()}
        for kind, P in shown.items():
            p, constant = self.tests[kind][2], observed[kind][:, -1, :-chain] <= 0.5  # [sequences, 0 or 1]
            exact = ((P > 0.5) == (p == 1))[:, -1].all(1)
            numbers |= {f"{kind}_exact": mean(exact), f"{kind}_ce": cross_entropy(P, p)}
            numbers[f"{kind}_accuracy_all"] = mean(exact[:, None] & constant)
        if self.variant != "no_cot":
            numbers |= self.steps(shown["unseen"]) | self.nearness(shown["unseen"], numbers["train_ce"])
        if update == self.updates:
            numbers["tasks"] = {kind: self.by_task(kind, P) for kind, P in shown.items()}
            numbers["by_example"] = {}
            for kind, P in shown.items():
                every = {"model": P} | self.ideals.get(kind, {})
                own = {who: right_by_example(Q, self.tests[kind][2]) for who, Q in every.items()}
                numbers["by_example"][kind] = own
        return numbers

    def last_example(self, kind: str, P: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Of tests by task which parities are right [m, sequences, c], and for every coordinate the share of sequences
        in which the step adds its bit [m, c, d]."""
        last = (x[:, -1].unflatten(0, (-1, self.config.n_test_sequences)) for x in (*self.tests[kind][1:], P > 0.5))
        bits, p, answers = last
        added = answers ^ F.pad(p[..., :-1], (1, 0))
        return answers == p, (added[..., None] == bits[:, :, None]).double().mean(1)

    def steps(self, P: torch.Tensor) -> dict[str, float | None]:
        """Of unseen tasks: the worst, those of u uncovered steps, steps of either kind, and covered ones that fail,
        which are right in less than 0.9 of the sequences: whether they read one coordinate, a wrong one."""
        right, agreement = self.last_example("unseen", P)
        exact, steps, uncovered = right.all(2).double().mean(1), right.double().mean(1), self.uncovered["unseen"]
        numbers = {"unseen_worst_decile": worst_decile(exact).item()}
        numbers |= {f"unseen_u{u}": mean(exact[uncovered.sum(1) == u]) for u in range(3)}
        numbers |= {"unseen_covered_steps": mean(steps[~uncovered]), "unseen_uncovered_steps": mean(steps[uncovered])}
        failing = (steps < 0.9) & ~uncovered
        numbers["failing_covered_steps"] = mean(failing[~uncovered])
        return numbers | {"failing_read_one": mean(agreement.max(2).values[failing] >= 0.9)}

    def nearness(self, P: torch.Tensor, train_ce: float) -> dict[str, float | None]:
        """KL from ideal predictors, mean over covered steps of unseen tasks: elsewhere no ideal but the composer knows
        anything. Position of the cross-entropy on training tasks: 0 covered composer, 1 memorizer."""
        steps = ~self.uncovered["unseen"].repeat_interleave(self.config.n_test_sequences, 0)  # [sequences, k]
        last = P[:, -1].clamp(1e-12, 1 - 1e-12)
        kl = {who: mean(binary_kl(Q[:, -1], last)[steps]) for who, Q in self.ideals["unseen"].items()}
        numbers = {f"kl_to_{who}": value for who, value in kl.items()}
        between = kl["memorizer"] + kl["covered"] if steps.any() else 0
        numbers["relative_divergence"] = kl["memorizer"] / between if between else None
        width = self.constants["floor_covered"] - self.constants["floor_memorizer"]
        return numbers | {"position": (self.constants["floor_covered"] - train_ce) / width if width else None}

    def by_task(self, kind: str, P: torch.Tensor) -> list[str]:
        """Of every task "7 2 5|010|32 17 31|16|7 - 5": coordinates; uncovered steps; in how many sequences a step is
        right, and in how many all are; the coordinate that a step reads in at least 0.9 of them."""
        right, agreement = self.last_example(kind, P)
        most, reads = agreement.max(2)
        told = (self.tests[kind][0], self.uncovered[kind].int(), right.sum(1), right.all(2).sum(1), reads, most >= 0.9)
        return [
            f"{words(task)}|{''.join(map(str, uncovered))}|{words(steps)}|{exact}|"
            + words(v if sure else "-" for v, sure in zip(reads, known, strict=True))
            for task, uncovered, steps, exact, reads, known in zip(*(x.tolist() for x in told), strict=True)
        ]

    # ---- What is reported --------------------------------------------------------------------------------------------

    @property
    def about(self) -> dict:
        return {"d": self.d, "n_train_tasks": self.n_tasks, "variant": self.variant}

    def cell(self, points: list[dict]) -> dict:
        """The numbers at the end beside the law. A model is trained if it is right on at least 0.9 of the sequences of
        its training tasks."""
        last = {key: x for key, x in points[-1].items() if key not in ("step", "tasks", "by_example")}
        trained = {"trained": int(last["train_exact"] >= 0.9)}
        return self.about | dict.fromkeys(headlines(self.config)) | self.constants | last | trained

    def extras(self, points: list[dict]) -> dict:
        return self.about | {"train_tasks": [words(task) for task in self.data["train"].tolist()]}


def plan(config: Config) -> list[ParityTrajectory]:
    """One trajectory per (d, n, variant, seed), measured ten times."""
    grid = itertools.product(config.dim_ambient, config.n_train_tasks, config.variants)
    return [
        ParityTrajectory(
            config=config,
            name=f"d={d}, n={n}, {variant}, seed={seed}",
            seed=seed,
            d=d,
            n_tasks=n,
            variant=variant,
            cells={config.steps: f"d{d}_n{n}" + ("" if variant == "ordered" else f"_{variant}")},
            streams=(seed, d, n, variant),
            measured=tuple(sorted({config.steps * k // 10 for k in range(1, 10)} - {0})),
            shape=(d, variant == "no_cot"),
            clip_norm=config.clip_norm,
        )
        for d, n, variant in grid
        for seed in range(config.seed, config.seed + config.seeds)
    ]


def headlines(config: Config) -> tuple[str, ...]:
    """The numbers of a cell that final_info.json has."""
    exact = ("unseen_exact", "law", "train_exact", "trained", "unseen_worst_decile", "law_worst_decile", "unseen_u0")
    steps = ("unseen_covered_steps", "unseen_uncovered_steps", "failing_covered_steps", "failing_read_one")
    ideals = ("kl_to_memorizer", "kl_to_covered", "kl_to_composer", "relative_divergence", "position")
    return (*exact, "excluded_exact", "law_excluded", *steps, *ideals, "loss")


# What the headline numbers are measured with: all_results.json records a hash of the source of exactly these.
YARDSTICK = (Tasks, covered, uncovered_steps, parities, per_step_bayes, memorizer_bayes, binary_kl, of_answers)
YARDSTICK += (mean, cross_entropy, right_by_example, worst_decile)
MEASURING = "data tests shown uncovered ideals constants observe measure last_example steps nearness by_task cell"
YARDSTICK += tuple(getattr(own := getattr(ParityTrajectory, name), "func", own) for name in MEASURING.split())

# ==== Main ============================================================================================================

STUDY = Study(Config, plan, headlines, YARDSTICK, PRESETS)


def main(argv: list[str] | None = None) -> int:
    """Run the study; returns the exit status: 0 complete, 1 failed, 2 bad input, 130 or 143 interrupted."""
    return run_study(STUDY, argv)


if __name__ == "__main__":
    sys.exit(main())
