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
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

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
    n_train_tasks: tuple[int, ...] = (4, 8, 16, 32, 64)  # training tasks n
    variants: tuple[str, ...] = (
        "ordered",
    )  # ordered tuples, sorted ones; of sorted ones those without a coordinate at
    # a step (missing_coordinate) or a pair (missing_pair); ordered ones whose steps are not shown (no_cot)
    dim_k: int = 3  # coordinates k of a task
    missing_coordinate: tuple[int, int] = (
        2,
        5,
    )  # step, from 1, and coordinate, from 0, that no training task has there
    missing_pair: tuple[int, int] = (4, 6)  # coordinates that no training task has together
    context_length: int = 16  # examples of a sequence; the last one counts
    tokens: str = (
        "vector"  # vector: the bits of an example are one token; bits: d tokens and a constant, as in the paper
    )
    positions: str = "factored"  # factored: number of the example and place in it; absolute
    curriculum: bool = True  # whether bits beyond the first few are 0 at first, all of them random from half-way on
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
    n_test_tasks: int = 40  # tasks of every kind that are tested, at most
    n_test_sequences: int = 16  # sequences for each of them
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
        choices = {
            "tokens": ("vector", "bits"),
            "positions": ("factored", "absolute"),
            "schedule": ("cosine", "constant"),
        }
        for flag, known in choices.items():
            require(self, flag, getattr(self, flag) in known, " or ".join(known))
        least = min(self.dim_ambient)
        require(self, "dim_k", self.dim_k <= least, f"at most --dim_ambient {least}")
        require(self, "n_train_tasks", min(self.n_train_tasks) >= 1, "at least 1")
        if "missing_coordinate" in self.variants:
            step, coordinate = self.missing_coordinate
            inside = 1 <= step <= self.dim_k and 0 <= coordinate < least
            require(
                self, "missing_coordinate", inside, f"a step of 1 to {self.dim_k}, a coordinate of 0 to {least - 1}"
            )
        if "missing_pair" in self.variants:
            one, other = self.missing_pair
            inside = one != other and 0 <= min(one, other) and max(one, other) < least
            require(self, "missing_pair", inside, f"two different coordinates of 0 to {least - 1}")
        for d, variant in itertools.product(self.dim_ambient, self.variants):
            tasks = Tasks(d, self.dim_k, variant, self.missing_coordinate, self.missing_pair)
            require(self, "dim_k", tasks.count <= 10**7, f"so that there are at most 10^7 tasks, not {tasks.count}")
            allowed = f"below {tasks.n_allowed}, the number of tasks that may be trained on ({variant}, d = {d})"
            require(self, "n_train_tasks", max(self.n_train_tasks) < tasks.n_allowed, allowed)
            length = self.context_length * self.example_length(d, variant)
            fits = self.positions == "factored" or length <= POSITIONS
            require(self, "context_length", fits, f"so that {length} tokens fit {POSITIONS} absolute positions")
        least = max(self.n_train_tasks)
        require(self, "n_train_total", not 0 < self.n_train_total < least, f"0, or at least --n_train_tasks {least}")

    def chain(self, variant: str) -> int:
        """How many parities an example shows: of every step, or the last one alone."""
        return 1 if variant == "no_cot" else self.dim_k

    def example_length(self, d: int, variant: str) -> int:
        """Tokens of an example: its bits, in the paper's format a constant, and its parities."""
        return (1 if self.tokens == "vector" else d + 1) + self.chain(variant)


PAPER = {"tokens": "bits", "positions": "absolute", "curriculum": False, "context_length": 40, "n_heads": 1}
PAPER |= {"gpt2_width": 192, "dropout": 0.1, "max_lr": 8e-5, "schedule": "constant", "warmup": 0, "clip_norm": None}
PAPER |= {"dim_ambient": (15,), "n_train_tasks": (121,), "variants": ("sorted",), "n_train_total": 25000}
PRESETS = {"cpu": {}, "paper": PAPER | {"steps": 31200, "n_test_tasks": 200, "n_test_sequences": 500}}
POSITIONS = 2048  # absolute ones, as in GPT-2

# ==== Tasks ===========================================================================================================


class Tasks(NamedTuple):
    """The tuples of k of d coordinates, ordered or sorted, of which some may not be trained on."""

    d: int
    k: int
    variant: str
    missing_coordinate: tuple[int, int]
    missing_pair: tuple[int, int]

    @property
    def ordered(self) -> bool:
        return self.variant in ("ordered", "no_cot")

    @property
    def count(self) -> int:
        return math.perm(self.d, self.k) if self.ordered else math.comb(self.d, self.k)

    @property
    def n_allowed(self) -> int:
        """How many tasks may be trained on."""
        d, k = self.d, self.k
        if self.variant == "missing_coordinate":  # those that have v at this step: steps before are below it
            step, v = self.missing_coordinate
            return self.count - math.comb(v, step - 1) * math.comb(d - 1 - v, k - step)
        return self.count - (math.comb(d - 2, k - 2) if self.variant == "missing_pair" and k > 1 else 0)

    def task(self, number: int) -> tuple[int, ...]:
        """The tuple of this number, in lexicographic order."""
        left, chosen = list(range(self.d)), []
        for remaining in range(self.k - 1, -1, -1):
            for i in range(len(left)):
                after = len(left) - 1 if self.ordered else len(left) - 1 - i
                block = math.perm(after, remaining) if self.ordered else math.comb(after, remaining)
                if number < block:
                    break
                number -= block
            chosen.append(left[i])
            left = [*left[:i], *left[i + 1 :]] if self.ordered else left[i + 1 :]
        return tuple(chosen)

    def allowed(self, task: tuple[int, ...]) -> bool:
        """Whether it may be trained on."""
        if self.variant == "missing_coordinate":
            return task[self.missing_coordinate[0] - 1] != self.missing_coordinate[1]
        return self.variant != "missing_pair" or not {*self.missing_pair} <= {*task}

    def split(self, n: int, n_test: int, seed: int) -> dict[str, list[tuple[int, ...]]]:
        """train: n tasks; unseen: up to n_test others that might have been trained on; excluded: up to n_test that may
        not be. One random order of all tasks serves every n: those for training are its first ones, those for tests its
        last, so that few training tasks are among many, and tested on the same others."""
        order = torch.randperm(self.count, generator=stream(seed, "tasks", self.d, self.k, self.ordered)).tolist()

        def taken(numbers: Iterator[int], most: int, kind: bool) -> list[tuple[int, ...]]:
            of_kind = (task for task in map(self.task, numbers) if self.allowed(task) == kind)
            return list(itertools.islice(of_kind, most))

        train = taken(iter(order), n, True)
        unseen = taken(reversed(order), min(n_test, self.n_allowed - n), True)
        excluded = taken(reversed(order), min(n_test, self.count - self.n_allowed), False)
        return {"train": train, "unseen": unseen, "excluded": excluded}


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
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for part in self.qkv(self.attention_norm(x)).chunk(3, -1)
        )
        rate = self.dropout if self.training else 0.0
        attended = F.scaled_dot_product_attention(q, k, v, dropout_p=rate, is_causal=True)
        x = x + self.drop(self.attention_out(attended.transpose(1, 2).flatten(-2)))
        return x + self.drop(self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x)), approximate="tanh")))


class Model(nn.Module):
    """GPT-2 on sequences of examples: bits [B, N, d] and parities [B, N, c] -> logits [B, N, c, 2] of the parities,
    each at the token before it. In the paper's format also those of the constant, which come first."""

    def __init__(self, config: Config, d: int, chain: int):
        super().__init__()
        w, length = config.gpt2_width, chain + (1 if config.tokens == "vector" else d + 1)
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

    def model(self) -> Model:
        return Model(self.config, self.d, self.config.chain(self.variant))

    def shown(self, bits: torch.Tensor, tasks: torch.Tensor) -> torch.Tensor:
        """The parities that an example shows."""
        p = parities(bits, tasks)
        return p[..., -self.config.chain(self.variant) :]

    def active(self, update: int) -> int:
        """How many bits are random: with a curriculum 3 at the start and all from half of the updates on."""
        if not self.config.curriculum:
            return self.d
        return min(self.d, 3 + int((self.d - 2) * update / (self.updates / 2)))

    def batches(self, first: int, n: int, device: torch.device) -> dict[str, torch.Tensor]:
        """bits [n, B, N, d] and the parities shown [n, B, N, c] of tasks that are drawn uniformly."""
        c, generator = self.config, self.stream("training sequences", first // n)
        train = self.data["train"]
        if c.n_train_total:  # as many sequences of every task, in a new order in every epoch
            per_task = c.n_train_total // len(train)
            total = per_task * len(train)
            epochs = range(first * c.batch_size // total, (first + n) * c.batch_size // total + 1)
            order = torch.cat([torch.randperm(total, generator=self.stream("epoch", epoch)) for epoch in epochs])
            which = order[first * c.batch_size - epochs[0] * total :][: n * c.batch_size]
            tasks, bits = train[which % len(train)], self.fixed_bits(total)[which]
        else:
            tasks = train[torch.randint(len(train), (n * c.batch_size,), generator=generator)]
            bits = torch.randint(2, (len(tasks), c.context_length, self.d), generator=generator)
        limits = torch.tensor([self.active(update) for update in range(first, first + n)]).repeat_interleave(
            c.batch_size
        )
        bits = torch.where(torch.arange(self.d) < limits[:, None, None], bits, 0)
        batch = {"bits": bits, "p": self.shown(bits, tasks)}
        return {key: values.unflatten(0, (n, -1)) for key, values in batch.items()}

    def fixed_bits(self, total: int) -> torch.Tensor:
        """The bits of a fixed training set."""
        return torch.randint(2, (total, self.config.context_length, self.d), generator=self.stream("training set"))

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
    def ideals(self) -> dict[str, torch.Tensor]:
        """Probabilities of a 1 by the ideal predictors for the unseen tasks' sequences, [.., N, k]: memorizer, covered
        composer, composer."""
        tasks, bits, _ = self.tests["unseen"]
        p = parities(bits, tasks.repeat_interleave(self.config.n_test_sequences, 0))
        seen = covered(self.data["train"].tolist(), self.d)
        return {
            "memorizer": memorizer_bayes(bits, p, self.data["train"]),
            "covered": per_step_bayes(bits, p, seen),
            "composer": per_step_bayes(bits, p, torch.ones_like(seen)),
        }

    def observe(self, model: Model, update: int) -> dict[str, torch.Tensor]:
        """Probabilities of a 1 for every parity of the test sequences, float64 [sequences, N, c], by kind of task."""
        device, found = next(model.parameters()).device, {}
        for kind, (_, bits, p) in self.tests.items():
            parts = zip(bits.to(device).split(128), p.to(device).split(128), strict=True)
            logits = torch.cat([model(x, y)[:, :, -p.shape[2] :].float().cpu() for x, y in parts])
            found[kind] = logits.double().softmax(-1)[..., 1]
        return found

    def measure(self, observed: dict, update: int, recent: dict[str, list[float]], points: list[dict]) -> dict:
        """Accuracy of whole chains in the last example, by kind of task; on unseen ones KL from ideal predictors."""
        numbers = {"loss": math.fsum(recent["loss"]) / len(recent["loss"]) if recent else None}
        numbers |= {"unseen_exact": None, "excluded_exact": None}
        for kind, P in observed.items():
            numbers[f"{kind}_exact"] = self.right(kind, P)[:, -1].all(1).double().mean().item()
        if "unseen" in observed and self.variant != "no_cot":
            last = observed["unseen"][:, -1].clamp(1e-12, 1 - 1e-12)
            for name, ideal in self.ideals.items():
                numbers[f"kl_to_{name}"] = binary_kl(ideal[:, -1], last).sum(1).mean().item()
            between = numbers["kl_to_memorizer"] + numbers["kl_to_covered"]
            numbers["relative_divergence"] = numbers["kl_to_memorizer"] / between if between else 0.5
        if update == self.updates:
            numbers |= {"tasks": {kind: self.by_task(kind, P) for kind, P in observed.items()}}
            if "unseen" in observed:
                numbers["unseen_by_example"] = self.right("unseen", observed["unseen"]).all(2).double().mean(0).tolist()
                if self.variant != "no_cot":
                    own = torch.where(
                        self.tests["unseen"][2] == 1, self.ideals["composer"], 1 - self.ideals["composer"]
                    )
                    right = torch.where(own == 0.5, 0.5, (own > 0.5).double())  # who cannot tell guesses
                    numbers["composer_by_example"] = right.prod(2).mean(0).tolist()
        return numbers

    def right(self, kind: str, P: torch.Tensor) -> torch.Tensor:
        """Which parities are answered right: [sequences, N, c] bool."""
        return (P > 0.5) == (self.tests[kind][2] == 1)

    def by_task(self, kind: str, P: torch.Tensor) -> dict[str, list]:
        """Of every task its tuple, uncovered steps, and accuracy in the last example: of the chain, of each step."""
        tasks, n = self.tests[kind][0], self.config.n_test_sequences
        right = self.right(kind, P)[:, -1].unflatten(0, (-1, n))
        missing = uncovered_steps(tasks, covered(self.data["train"].tolist(), self.d))
        return {
            "task": tasks.tolist(),
            "uncovered": missing.int().tolist(),
            "exact": right.all(2).double().mean(1).tolist(),
            "steps": [[round(x, 4) for x in row] for row in right.double().mean(1).tolist()],
        }

    # ---- What is reported --------------------------------------------------------------------------------------------

    def cell(self, points: list[dict]) -> dict:
        """Accuracies at the end beside the law for these very tasks, the mean of 2^-u. A model is trained if it is
        right on at least 0.9 of the sequences of its training tasks."""
        last, numbers = points[-1], {"d": self.d, "n_train_tasks": self.n_tasks, "variant": self.variant}
        for kind in ("train", "unseen", "excluded"):
            told = last.get("tasks", {}).get(kind)
            laws = [2.0 ** -sum(steps) for steps in told["uncovered"]] if told else []
            numbers[f"{kind}_exact"] = last.get(f"{kind}_exact")
            numbers["law" if kind == "unseen" else f"law_{kind}"] = sum(laws) / len(laws) if laws else None
            for name, wanted in (("covered", 0), ("uncovered", 1)):
                pairs = zip(told["uncovered"], told["steps"], strict=True) if told and self.variant != "no_cot" else ()
                own = [x for steps, right in pairs for u, x in zip(steps, right, strict=True) if u == wanted]
                numbers[f"{kind}_{name}_steps"] = sum(own) / len(own) if own else None
        exact = sorted(last.get("tasks", {}).get("unseen", {}).get("exact", []))
        worst = exact[: max(1, len(exact) // 10)]
        numbers["unseen_worst_decile"] = sum(worst) / len(worst) if worst else None
        numbers["trained"] = int(numbers["train_exact"] >= 0.9)
        kept = ("kl_to_memorizer", "kl_to_covered", "kl_to_composer", "relative_divergence", "loss")
        return numbers | {key: last.get(key) for key in kept}

    def extras(self, points: list[dict]) -> dict:
        told = {"d": self.d, "n_train_tasks": self.n_tasks, "variant": self.variant}
        return told | {
            "train_tasks": self.data["train"].tolist(),
            "format": [self.config.tokens, self.config.positions],
        }


def plan(config: Config) -> list[ParityTrajectory]:
    """One trajectory per (d, n, variant, seed), measured twenty times."""
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
            measured=tuple(sorted({config.steps * k // 20 for k in range(1, 20)} - {0})),
            shape=(d, variant == "no_cot"),
            clip_norm=config.clip_norm,
        )
        for d, n, variant in grid
        for seed in range(config.seed, config.seed + config.seeds)
    ]


def headlines(config: Config) -> tuple[str, ...]:
    """The numbers of a cell that final_info.json has."""
    exact = ("unseen_exact", "law", "train_exact", "trained", "unseen_worst_decile", "excluded_exact", "law_excluded")
    return (*exact, "kl_to_memorizer", "kl_to_covered", "kl_to_composer", "relative_divergence", "loss")


# What the headline numbers are measured with: all_results.json records a hash of the source of exactly these.
YARDSTICK = (Tasks, covered, uncovered_steps, parities, per_step_bayes, memorizer_bayes, binary_kl)
YARDSTICK += (ParityTrajectory.observe, ParityTrajectory.measure, ParityTrajectory.right, ParityTrajectory.by_task)
YARDSTICK += (ParityTrajectory.cell,)

# ==== Main ============================================================================================================

STUDY = Study(Config, plan, headlines, YARDSTICK, PRESETS)


def main(argv: list[str] | None = None) -> int:
    """Run the study; returns the exit status: 0 complete, 1 failed, 2 bad input, 130 or 143 interrupted."""
    return run_study(STUDY, argv)


if __name__ == "__main__":
    sys.exit(main())
