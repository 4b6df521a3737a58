#!/usr/bin/env python3
"""Grokking and capacity: when does a small Transformer that has memorized half of a table know the other half?

The table is that of an operation, x / y, x - y and x + y modulo a prime or the product of two permutations. Half of its
entries are for training. After a few hundred updates the model knows them by heart, and thousands of updates later,
suddenly, the others as well (Power et al. 2022, "Grokking: Generalization beyond overfitting on small algorithmic
datasets"). For every operation and architecture the script finds when either happens and whether it stays so.

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
#   finished(points)                   whether to end early
#   cell(points), extras(points)       the numbers of a cell of the grid; what else the results keep
# headlines() go to final_info.json, YARDSTICK measures them. What a list of the grid means for a trajectory is in its
# fields, beside clip_norm, and not read off self.config: a complete run may grow.

import itertools
import math
import re
import sys
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

OPERATIONS = ("x_div_y", "x_minus_y", "x_plus_y", "permutation")


class Architecture(NamedTuple):
    """Size of a model; as text L2_d128_h4."""

    layers: int
    width: int
    heads: int

    def __str__(self):
        return "L{}_d{}_h{}".format(*self)


BASELINE = Architecture(2, 128, 4)  # its cells are called by the operation alone


@dataclass(frozen=True)
class Config:
    """Every knob of the study; each is also a flag of the same name. UserError if one is out of range."""

    operations: tuple[str, ...] = OPERATIONS  # x_div_y, x_minus_y, x_plus_y modulo a prime, permutation (of 5 things)
    layers: tuple[int, ...] = (2,)  # Transformer blocks
    widths: tuple[int, ...] = (128,)  # of the residual stream, divisible by the heads
    heads: tuple[int, ...] = (4,)  # attention heads per block
    architectures: tuple[str, ...] = ()  # such as L4_d64_h4: these, not all combinations of layers, widths and heads
    seeds: int = 3  # how many seeds
    seed: int = 0  # the first seed
    updates: int = 7500  # training steps
    modulus: int = 97  # of the three arithmetic operations: a prime
    train_fraction: float = 0.5  # share of the table that is trained on
    batch_size: int = 512  # entries per update, drawn with replacement
    lr: float = 1e-3  # AdamW learning rate after the warm-up
    warmup: int = 50  # updates during which it rises linearly from 0
    weight_decay: float = 0.5  # AdamW weight decay, of every parameter
    early_stop: bool = False  # whether training ends 1000 updates after grokking, once that has been sustained
    precision: str = "float32"  # matrix products in float32, tf32 (CUDA only) or bf16
    device: str = "auto"  # auto (CUDA, else Apple MPS, else CPU), cpu, cuda or mps

    def __post_init__(self):
        for flag in ("operations", "layers", "widths", "heads", "architectures"):
            values = getattr(self, flag)
            require(self, flag, len(set(values)) == len(values), "different from each other")
        require(self, "operations", {*self.operations} <= {*OPERATIONS}, f"of {' '.join(OPERATIONS)}")
        for flag in ("layers", "widths", "heads"):
            require(self, flag, all(n >= 1 for n in getattr(self, flag)), "whole numbers of at least 1")
        for flag in ("seeds", "updates", "batch_size"):
            require(self, flag, getattr(self, flag) >= 1, "at least 1")
        for flag in ("lr", "weight_decay"):
            require(self, flag, 0 <= getattr(self, flag) < math.inf, "finite and not negative")
        require(self, "seed", self.seed >= 0, "at least 0")
        require(self, "warmup", self.warmup >= 0, "at least 0")
        form = all(re.fullmatch(r"L[1-9]\d*_d[1-9]\d*_h[1-9]\d*", text) for text in self.architectures)
        require(self, "architectures", form, "layers, width and heads, such as L4_d64_h4")
        flag, allowed = "architectures" if self.architectures else "heads", "so that heads divide every width"
        require(self, flag, all(size.width % size.heads == 0 for size in self.sizes), allowed)
        prime = 2 <= self.modulus < 1000 and all(self.modulus % k for k in range(2, math.isqrt(self.modulus) + 1))
        require(self, "modulus", prime, "a prime below 1000")
        require(self, "train_fraction", 0 < self.train_fraction < 1, "between 0 and 1")
        for operation in self.operations:
            n = len(table(operation, self.modulus)[0])
            allowed = f"so that both parts of the {n} entries of {operation} have some"
            require(self, "train_fraction", 0 < train_size(n, self.train_fraction) < n, allowed)

    @property
    def sizes(self) -> list[Architecture]:
        """The architectures of the grid."""
        if self.architectures:
            return [Architecture(*map(int, re.findall(r"\d+", text))) for text in self.architectures]
        return [Architecture(*size) for size in itertools.product(self.layers, self.widths, self.heads)]


# ==== Tables ==========================================================================================================


def n_elements(operation: str, modulus: int) -> int:
    """How many things the operation is about: residues, or the permutations of 5 things."""
    return 120 if operation == "permutation" else modulus


def table(operation: str, modulus: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """All entries (a, b, answer) of an operation, each [n] int64, as numbers of elements.

    Elements are the residues 0, 1, .. of the modulus, or the permutations of 5 things in lexicographic order, whose
    product is to do b first and then a. Division is by the inverse b^(modulus - 2), of all b but 0.
    """
    n = n_elements(operation, modulus)
    a, b = torch.cartesian_prod(torch.arange(n), torch.arange(n)).unbind(1)
    if operation == "permutation":
        elements = torch.tensor(list(itertools.permutations(range(5))))
        place = 5 ** torch.arange(4, -1, -1)  # read as a number, permutations are in the order of their numbers
        return a, b, torch.searchsorted((elements * place).sum(1), (elements[a].gather(1, elements[b]) * place).sum(1))
    if operation == "x_div_y":
        a, b = a[b > 0], b[b > 0]
        inverse = torch.tensor([pow(y, modulus - 2, modulus) for y in range(modulus)])
        return a, b, a * inverse[b] % modulus
    return a, b, (a - b if operation == "x_minus_y" else a + b) % modulus


def train_size(n: int, fraction: float) -> int:
    """How many of n entries are for training: the whole part of their share."""
    return math.floor(fraction * n + 1e-9)


class Split(NamedTuple):
    """The entries of a table, [n] each, those for training first."""

    a: torch.Tensor
    b: torch.Tensor
    answers: torch.Tensor
    n_train: int


def split(operation: str, config: Config, seed: int) -> Split:
    """The table in a random order: of a seed the same one for every architecture, so that these can be compared."""
    entries = table(operation, config.modulus)
    order = torch.randperm(len(entries[0]), generator=stream(seed, operation, "split"))
    return Split(*(part[order] for part in entries), train_size(len(order), config.train_fraction))


# ==== Model ===========================================================================================================


class Block(nn.Module):
    """Transformer block with the norms after attention and MLP: x = norm(x + attention(x)), x = norm(x + mlp(x)).

    It is given what the four positions of `a o b =` hold, and because no position sees those after it, the first two
    depend on a alone: `prefix` [n_elements, 2, d] has them once for every a, and not for every entry. `suffix`
    [B, 2, d] has the others of every entry. In the first block what they hold depends on b alone: there suffix has it
    for every b, and `b` [B] says which rows are an entry's. The last block is asked for the last position only.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.attention = nn.MultiheadAttention(width, heads)  # for its parameters and their start; attend() computes
        self.attention_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.mlp_norm = nn.LayerNorm(width)

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        """Attention of the last Q of K positions [n, Q, d] to themselves and those before: keys, values [n, K, d]."""
        q, k, v = (x.unflatten(-1, (self.heads, -1)) for x in (q, k, v))  # [n, positions, heads, d / heads]
        scores = (q[:, :, None] * k[:, None]).sum(-1) * q.shape[-1] ** -0.5  # [n, Q, K, heads]
        Q, K = scores.shape[1:3]
        later = torch.ones(Q, K, dtype=torch.bool, device=q.device).triu(K - Q + 1)
        weights = scores.masked_fill(later[..., None], -math.inf).softmax(2)
        return (weights[..., None] * v[:, None]).sum(2).flatten(-2)

    def finish(self, x: torch.Tensor, attended: torch.Tensor) -> torch.Tensor:
        x = self.attention_norm(x + self.attention.out_proj(attended))
        return self.mlp_norm(x + self.mlp(x))

    def forward(self, prefix: torch.Tensor, suffix: torch.Tensor, a: torch.Tensor, b: torch.Tensor | None, last: bool):
        """(prefix, suffix) after this block; of the last one only suffix [B, 1, d]."""
        weight, bias = self.attention.in_proj_weight, self.attention.in_proj_bias
        of_a, own = (F.linear(x, weight, bias).chunk(3, -1) for x in (prefix, suffix))  # queries, keys, values
        if b is not None:
            suffix, *own = (rows(x, b) for x in (suffix, *own))
        k, v = (torch.cat([rows(of_a[i], a), own[i]], 1) for i in (1, 2))
        asked = slice(1, 2) if last else slice(0, 2)
        suffix = self.finish(suffix[:, asked], self.attend(own[0][:, asked], k, v))
        return None if last else self.finish(prefix, self.attend(*of_a)), suffix


def rows(x: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
    """x[which] for x [n, 2, d], with a gradient that is summed in order."""
    return F.embedding(which, x.flatten(1)).unflatten(1, x.shape[1:])


class Model(nn.Module):
    """Transformer that reads `a o b =` and answers at the last position: a [B], b [B] -> logits [B, n_elements].

    Embeddings, projections and norms start as PyTorch starts them; steps to grokking depend on that. There are five
    positions, of which four are used, and two norms after the last block, as in the protocol.
    """

    def __init__(self, n_elements: int, size: Architecture):
        super().__init__()
        self.tokens = nn.Embedding(2 + n_elements, size.width)  # operator, equals sign, elements
        self.positions = nn.Embedding(5, size.width)
        self.blocks = nn.ModuleList(Block(size.width, size.heads) for _ in range(size.layers))
        self.norm = nn.LayerNorm(size.width)
        self.answer = nn.Linear(size.width, n_elements)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        operator, equals, elements = self.tokens.weight.tensor_split([1, 2])
        operator, equals = operator.expand_as(elements), equals.expand_as(elements)
        prefix = torch.stack([elements, operator], 1) + self.positions.weight[:2]
        suffix = torch.stack([elements, equals], 1) + self.positions.weight[2:4]
        for i, block in enumerate(self.blocks):
            prefix, suffix = block(prefix, suffix, a, None if i else b, last=i == len(self.blocks) - 1)
        return self.answer(self.norm(suffix[:, 0]))


def flops_per_update(size: Architecture, n_elements: int, batch_size: int) -> int:
    """Floating point operations in the matrix products of an update, all four positions through every block, two for a
    multiplication and three for forward and backward: what the protocol costs, not what the savings above leave of it.
    """
    d, positions = size.width, 4
    block = 12 * d**2 * positions + 2 * d * positions**2
    return 3 * 2 * batch_size * (size.layers * block + d * n_elements)


def flops_with_savings(size: Architecture, n_elements: int, batch_size: int) -> int:
    """The same of an update as Block makes it. What it saves is a larger part of a shallow model than of a deep one."""
    d, products = size.width, size.width * n_elements * batch_size
    for i in range(size.layers):
        last = i == size.layers - 1
        asked, prefix = (batch_size, 0) if last else (2 * batch_size, 2 * n_elements)
        projected = 2 * n_elements + 2 * (batch_size if i else n_elements)
        products += 3 * d**2 * projected + 9 * d**2 * (asked + prefix) + 2 * d * (4 * asked + 2 * prefix)
    return 3 * 2 * products


def bucket(parameters: int) -> str:
    """Class of capacity. The edges are fixed: thirds of a grid of three widths would be the widths."""
    return "small" if parameters < 150_000 else "medium" if parameters <= 500_000 else "large"


# ==== Training ========================================================================================================


class Criteria:
    """What is called memorized, grokked and stable."""

    EVERY = 10  # updates from one measurement to the next
    ABOVE = 0.99  # the accuracy that has to be exceeded
    IN_A_ROW = 10  # measurements that do, for grokking to count as sustained
    WINDOW = 1000  # updates after grokking, in which its stability is looked at


EVAL_BATCH = {"cpu": 1024, "mps": 1024, "cuda": 16384}  # entries per forward pass of the evaluation


def first_step(points: list[dict], key: str, in_a_row: int = 1) -> int | None:
    """The first step at which a number, and in_a_row measurements together, exceed Criteria.ABOVE; None: never."""
    above = 0
    for i, point in enumerate(points):
        above = above + 1 if point[key] > Criteria.ABOVE else 0
        if above == in_a_row:
            return points[i + 1 - in_a_row]["step"]
    return None


def stability(points: list[dict]) -> dict:
    """What happens to accuracy in the 1000 updates after grokking; None if they are not all there."""
    start = first_step(points, "val_acc")
    complete = start is not None and points[-1]["step"] >= start + Criteria.WINDOW
    after = [point for point in points if complete and start < point["step"] <= start + Criteria.WINDOW]
    below = [len(list(run)) for low, run in itertools.groupby(after, lambda p: p["val_acc"] < 0.95) if low]
    return {
        "stable_share": sum(p["val_acc"] >= Criteria.ABOVE for p in after) / len(after) if after else None,
        "stable_least_val_acc": min((p["val_acc"] for p in after), default=None),
        "stable_least_train_acc": min((p["train_acc"] for p in after), default=None),
        "stable_dips": len(below) if after else None,  # below 0.95
        "stable_longest_dip": Criteria.EVERY * max(below, default=0) if after else None,  # updates
        "stable_at_end": int(after[-1]["val_acc"] >= Criteria.ABOVE) if after else None,
    }


@dataclass(frozen=True, kw_only=True, eq=False)
class TableTrajectory(Trajectory):
    """One model of an operation, an architecture and a seed."""

    operation: str
    size: Architecture

    # ---- Learning rate, loss and update ------------------------------------------------------------------------------

    def learning_rate(self, update: int, updates: int) -> float:
        """Rate of update `update` (from 0): that of the first one is 0, as in the protocol."""
        return self.config.lr * min(1.0, update / self.config.warmup if self.config.warmup else 1.0)

    def loss(self, model: Model, a: torch.Tensor, b: torch.Tensor, answers: torch.Tensor) -> tuple[torch.Tensor, dict]:
        """Cross-entropy of the answers, in nats."""
        return F.cross_entropy(model(a, b), answers), {}

    def optimizer(self, params: dict[str, torch.Tensor], lr: float) -> torch.optim.Optimizer:
        decay = self.config.weight_decay
        return torch.optim.AdamW(params.values(), lr=lr, betas=(0.9, 0.98), weight_decay=decay, fused=True)

    # ---- What is trained ---------------------------------------------------------------------------------------------

    @cached_property
    def data(self) -> Split:
        return split(self.operation, self.config, self.seed)

    def model(self) -> Model:
        return Model(n_elements(self.operation, self.config.modulus), self.size)

    def batches(self, first: int, n: int, device: torch.device) -> dict[str, torch.Tensor]:
        """Training entries a, b, answers [n, B], drawn with replacement: the same for every architecture."""
        generator, data = self.stream("batches", first // n), self.data
        which = torch.randint(data.n_train, (n, self.config.batch_size), generator=generator)
        return {"a": data.a[which], "b": data.b[which], "answers": data.answers[which]}

    # ---- What is measured --------------------------------------------------------------------------------------------

    def observe(self, model: Model, update: int) -> dict[str, torch.Tensor]:
        """Of every entry the loss in nats, float32 [n], and whether it is right [n]; the norm of all parameters."""
        parameters = list(model.parameters())
        device, found = parameters[0].device, []
        entries = (part.to(device).split(EVAL_BATCH[device.type]) for part in self.data[:3])
        for a, b, answers in zip(*entries, strict=True):
            logits = model(a, b).float()
            found.append((F.cross_entropy(logits, answers, reduction="none"), logits.argmax(1) == answers))
        losses, right = (torch.cat(parts).cpu() for parts in zip(*found, strict=True))
        norm = torch.stack([p.norm() for p in parameters]).norm().cpu()  # in float32: Apple's GPUs have no float64
        return {"losses": losses, "right": right, "norm": norm}

    def measure(self, observed: dict, update: int, recent: dict[str, list[float]], points: list[dict]) -> dict:
        """Exact losses and accuracies of both parts of the table, to four and to six digits.

        collapsed: share of training entries whose loss is 0 in float32, because the other answers' probabilities are
        lost beside that of the right one: they no longer teach anything (Prieto et al. 2025, "Grokking at the Edge of
        Numerical Stability").
        """
        numbers, n = {}, self.data.n_train
        for part, which in (("train", slice(None, n)), ("val", slice(n, None))):
            numbers[f"{part}_loss"] = observed["losses"][which].double().mean().item()
            numbers[f"{part}_acc"] = observed["right"][which].double().mean().item()
        numbers["collapsed"] = (observed["losses"][:n] == 0).double().mean().item()
        numbers["weight_norm"] = observed["norm"].item()
        return {key: float(f"{number:.{6 if 'acc' in key else 4}g}") for key, number in numbers.items()}

    def finished(self, points: list[dict]) -> bool:
        """With early_stop: when stability can be told, and grokking has been sustained."""
        known = (stability(points)["stable_share"], first_step(points, "val_acc", Criteria.IN_A_ROW))
        return self.config.early_stop and None not in known

    # ---- What is reported --------------------------------------------------------------------------------------------

    def cell(self, points: list[dict]) -> dict:
        """When it memorized, when it grokked, how that lasted, and the numbers at the end. None stands for never; only
        step_val_acc_99, as in the template of The AI Scientist, has the number of updates for it."""
        memorize, grok = (first_step(points, key) for key in ("train_acc", "val_acc"))
        per_update = (self.size, n_elements(self.operation, self.config.modulus), self.config.batch_size)
        with torch.device("meta"):
            parameters = sum(p.numel() for p in self.model().parameters())
        return {
            "operation": self.operation,
            **self.size._asdict(),
            **{f"final_{key}": number for key, number in points[-1].items() if key != "step"},
            "step_val_acc_99": self.updates if grok is None else grok,
            "step_memorize": memorize,
            "step_grok": grok,
            "step_grok_sustained": first_step(points, "val_acc", in_a_row=Criteria.IN_A_ROW),
            "grokked": int(grok is not None),
            "delay": None if None in (memorize, grok) else grok - memorize,
            **stability(points),
            "stopped_at": points[-1]["step"],
            "flops_per_update": flops_per_update(*per_update),
            "flops_per_update_with_savings": flops_with_savings(*per_update),
            "most_collapsed": max(point["collapsed"] for point in points),
            "parameters": parameters,
            "bucket": bucket(parameters),
        }

    def extras(self, points: list[dict]) -> dict:
        return {"operation": self.operation, **self.size._asdict()}


def plan(config: Config) -> list[TableTrajectory]:
    """One trajectory per (operation, architecture, seed), measured every 10 updates."""
    return [
        TableTrajectory(
            config=config,
            name=f"{operation}, {size}, seed={seed}",
            seed=seed,
            operation=operation,
            size=size,
            cells={config.updates: operation if size == BASELINE else f"{operation}/{size}"},
            streams=(seed, operation),
            measured=tuple(range(Criteria.EVERY, config.updates, Criteria.EVERY)),
            shape=(n_elements(operation, config.modulus), size),
        )
        for operation in config.operations
        for size in config.sizes
        for seed in range(config.seed, config.seed + config.seeds)
    ]


def headlines(config: Config) -> tuple[str, ...]:
    """The numbers of a cell that final_info.json has: first the five of The AI Scientist's template."""
    template = ("final_train_loss", "final_val_loss", "final_train_acc", "final_val_acc", "step_val_acc_99")
    return (*template, "grokked", "step_memorize", "step_grok", "step_grok_sustained", "delay", "stable_share")


# What the headline numbers are measured with: all_results.json records a hash of the source of exactly these.
YARDSTICK = (Criteria, n_elements, table, train_size, split, first_step, stability, flops_per_update)
YARDSTICK += (flops_with_savings, TableTrajectory.observe, TableTrajectory.measure, TableTrajectory.cell)

# ==== Main ============================================================================================================

STUDY = Study(Config, plan, headlines, YARDSTICK)


def main(argv: list[str] | None = None) -> int:
    """Run the study; returns the exit status: 0 complete, 1 failed, 2 bad input, 130 or 143 interrupted."""
    return run_study(STUDY, argv)


if __name__ == "__main__":
    sys.exit(main())
