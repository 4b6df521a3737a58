#!/usr/bin/env python3
"""Emergent analogy: does a small Transformer find the map between two categories that it was taught in part?

Two categories of entities have the same structure: a relation between two entities of the first holds between their
images under a bijection F, the functor, in the second. The model learns facts: atomic (entity, relation, entity), over
two hops, and analogical (entity, functor, its image), of which some are held out. Does it answer these, when, for how
long, and what do its embeddings look like then? After Minegishi, Feng, Furuta, Kojima, Iwasawa & Matsuo 2026, "Emergent
Analogical Reasoning in Transformers" (arXiv 2602.01992).

    python experiment.py --out_dir=run_1
"""

# harness.py, which needs no edit, trains what this file describes: `Config`, whose fields are the flags, and
# `plan(config)`, the models to train, each a `Trajectory` with these methods, written for one model:
#   data                               what batches and measurements rest on, made once
#   model()                            nn.Module at its start
#   batches(first, n, device)          {name: tensor [n, ..]} for updates first to first + n - 1, random by
#                                      self.stream("..", first // n), or by epoch; what changes in training is in them
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
from collections import Counter
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import NamedTuple

sys.path.append(str(Path(__file__).resolve().parent.parent.parent))  # harness.py is there, if not beside this script
from harness import Study, Trajectory, require, run_study  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn as nn  # noqa: E402
import torch.nn.functional as F  # noqa: E402

# ==== Configuration ===================================================================================================


@dataclass(frozen=True)
class Config:
    """Every knob of the study; each is also a flag of the same name. UserError if one is out of range."""

    preset: str = "readme"  # readme, yaml, paper, nb_dynamics or nb_energy: what the sources of the original say
    num_entities: tuple[int, ...] = (10,)  # entities of the vocabulary
    num_relations: tuple[int, ...] = (10000,)  # size of the alphabet that edges get their labels from
    analogical_ood_ratio: tuple[float, ...] = (0.4,)  # share of analogical facts that are held out
    weight_decay: tuple[float, ...] = (0.0,)  # Adam, coupled: added to the gradient of every parameter
    d_model: tuple[int, ...] = (128,)  # width of the residual stream
    sub_size: int | None = None  # entities of a category; none: half of all
    atomic_ood_ratio: float = 0.0  # share of the first category's edges that are held out
    compositional_ood_ratio: float = 0.1  # share of two-hop facts of trained edges that are held out
    duplicate_relation: bool = False  # whether several edges of an entity may have the same label
    vocab_mode: str = "full"  # full, or used (only relations that occur)
    n_layer: int = 1  # Transformer blocks
    n_head: int = 1  # attention heads per block
    mlp_ratio: int = 4  # width of the MLP over d_model; 0: attention alone
    rope_base: float = 100.0  # base of the rotary positions
    tie_weights: bool = False  # whether the read-out is the embedding
    batch_size: int = 64  # facts per update; the last batch of an epoch is shorter
    epochs: int = 1000  # passes over the training facts
    lr: float = 1e-4  # Adam learning rate
    warmup: int = 0  # updates during which it rises linearly
    seeds: int = 5  # how many seeds, of data and model alike
    seed: int = 42  # the first seed
    dump_data: bool = False  # whether all_results.json keeps every fact
    precision: str = "float32"  # matrix products in float32, tf32 (CUDA only) or bf16
    device: str = "auto"  # auto (CUDA, else Apple MPS, else CPU), cpu, cuda or mps

    def __post_init__(self):
        grid = ("num_entities", "num_relations", "analogical_ood_ratio", "weight_decay", "d_model")
        for flag in grid:
            values = tuple(getattr(self, flag))
            object.__setattr__(self, flag, values)
            require(self, flag, len(set(values)) == len(values) > 0, "one or more different values")
        for flag in ("n_layer", "n_head", "batch_size", "epochs", "seeds"):
            require(self, flag, getattr(self, flag) >= 1, "at least 1")
        for flag in ("mlp_ratio", "warmup", "seed"):
            require(self, flag, getattr(self, flag) >= 0, "at least 0")
        require(self, "lr", 0 <= self.lr < math.inf, "finite and not negative")
        require(self, "weight_decay", all(0 <= x < math.inf for x in self.weight_decay), "finite and not negative")
        require(self, "rope_base", 1 < self.rope_base < math.inf, "finite and above 1")
        require(self, "vocab_mode", self.vocab_mode in ("full", "used"), "full or used")
        for flag in ("atomic_ood_ratio", "compositional_ood_ratio"):
            require(self, flag, 0 <= getattr(self, flag) < 1, "at least 0 and below 1")
        require(self, "analogical_ood_ratio", all(0 <= x < 1 for x in self.analogical_ood_ratio), "at least 0, below 1")
        sizes = [self.category_size(entities) for entities in self.num_entities]
        flag = "num_entities" if self.sub_size is None else "sub_size"
        require(self, flag, min(sizes) >= 3, "so that a category has at least 3 entities")
        room = all(2 * n <= entities for n, entities in zip(sizes, self.num_entities, strict=True))
        require(self, "sub_size", room, f"at most half of --num_entities {min(self.num_entities)}")
        least = 1 if self.duplicate_relation else max(sizes) - 1
        allowed = f"at least {least}, for every entity has that many edges (or come with --duplicate_relation)"
        require(self, "num_relations", min(self.num_relations) >= least, allowed)
        even = all(d >= 1 and d % (2 * self.n_head) == 0 for d in self.d_model)
        require(self, "d_model", even, f"divisible by twice the number of heads, {2 * self.n_head}")

    def category_size(self, entities: int) -> int:
        return entities // 2 if self.sub_size is None else self.sub_size


PRESETS = {
    "readme": {},
    "yaml": {"analogical_ood_ratio": (0.1,), "n_layer": 2, "epochs": 100},
    "paper": {"num_entities": (20,), "analogical_ood_ratio": (0.1,), "epochs": 100},
    "nb_dynamics": {"n_layer": 2, "tie_weights": True, "lr": 1e-2, "weight_decay": (0.01,)},
    "nb_energy": {
        "analogical_ood_ratio": (0.1,),
        "mlp_ratio": 0,
        "tie_weights": True,
        "weight_decay": (1e-5,),
        "epochs": 300,
    },
}

# ==== Facts ===========================================================================================================

# Far-OOD facts have a held-out edge: as their first hop alone, or as their second one.
TRAINED = ("id_atomic", "id_compositional", "id_analogical")
KINDS = (*TRAINED, "ood_atomic", "near_ood_compositional", "far_ood_first_hop", "far_ood_second_hop", "ood_analogical")


class Graph(NamedTuple):
    """Facts of two categories and the functor between them, as numbers of entities and of relations."""

    functor: dict[int, int]  # the image of every entity of the first category
    facts: dict[str, list[tuple[int, ...]]]  # of every kind: (h, r, t), (h, r1, r2, t) or (e, F(e))


@lru_cache(maxsize=64)
def build_graph(
    entities: int, n: int, relations: int, ratios: tuple[float, float, float], repeat: bool, seed: int
) -> Graph:
    """All facts, by the original's order of random draws.

    n entities are the first category, n others the second, and the rest has a complete graph of its own. In the first
    category every entity has an edge to every other one, with a label that no other edge of that entity has (repeat:
    may have). A share ratios[0] of these edges is held out; the image of the others under the functor is the second
    category. Paths over two edges that do not lead back are facts, held out (near) with probability ratios[1] if both
    edges are trained on, else far. A share ratios[2] of the functor's pairs is held out.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(entities)
    first, second, others = order[:n].tolist(), order[n : 2 * n], order[2 * n :].tolist()
    functor = dict(zip(first, rng.permutation(second).tolist(), strict=True))
    labels = rng.choice(relations, size=relations, replace=False).tolist()
    atomic = []
    for h in first:
        used = set()
        for t in (t for t in first if t != h):
            r = int(rng.choice([label for label in labels if label not in used]))
            used |= set() if repeat else {r}
            atomic.append((h, r, t))
    atomic += [(h, int(rng.choice(labels)), t) for h, t in itertools.permutations(others, 2)]

    def parts(facts: list, held_out: float) -> tuple[list, list]:
        rng.shuffle(facts)
        facts = [tuple(map(int, fact)) for fact in facts]
        kept = round(len(facts) * (1 - held_out))  # half to even
        return facts[:kept], facts[kept:]

    known, new = parts(atomic, ratios[0])
    mirror = [(functor[h], r, functor[t]) for h, r, t in known if h in functor]
    facts = {"id_atomic": known + mirror, "ood_atomic": new}
    facts |= {kind: [] for kind in KINDS if kind not in facts}
    held_out, edges = set(new), {}
    for edge in (*known, *new, *mirror):
        edges.setdefault(edge[0], []).append(edge)
    for h in range(entities):
        for hop in edges.get(h, ()):
            for following in edges.get(hop[2], ()):
                if following[2] == h:
                    continue
                if following in held_out or hop in held_out:
                    kind = "far_ood_second_hop" if following in held_out else "far_ood_first_hop"
                else:
                    kind = "id_compositional" if rng.uniform() > ratios[1] else "near_ood_compositional"
                facts[kind].append((h, hop[1], following[1], following[2]))
    facts["id_analogical"], facts["ood_analogical"] = parts([*functor.items()], ratios[2])
    return Graph(functor, facts)


def lookup_accuracy(graph: Graph) -> float | None:
    """What the held-out (near) two-hop facts yield to a table without reasoning: the answer that training facts of the
    same category with this last relation have most often."""
    category = {e: part for part, own in enumerate((graph.functor.keys(), graph.functor.values())) for e in own}
    seen = {}
    for h, *_, r, t in graph.facts["id_atomic"] + graph.facts["id_compositional"]:
        seen.setdefault((category.get(h), r), Counter())[t] += 1
    near = graph.facts["near_ood_compositional"]
    right = [t == seen.get((category.get(h), r), Counter({None: 1})).most_common(1)[0][0] for h, *_, r, t in near]
    return sum(right) / len(right) if right else None


class Facts(NamedTuple):
    """Facts as tokens: entities, then relations, then the functor."""

    tokens: torch.Tensor  # [N, 3] int64, padded on the right
    last: torch.Tensor  # [N] position of the last token
    targets: torch.Tensor  # [N]
    kinds: torch.Tensor  # [N] numbers in KINDS; those that are trained on come first
    n_train: int
    vocabulary: int


def tokenize(graph: Graph, entities: int, relations: int, vocab_mode: str) -> Facts:
    """Every fact as a sequence of tokens whose last one is asked for."""
    names = range(relations)
    if vocab_mode == "used":
        names = sorted({r for facts in graph.facts.values() for fact in facts for r in fact[1:-1]})
    token = {r: entities + i for i, r in enumerate(names)}
    functor = entities + len(token)
    rows = []
    for kind, facts in ((i, graph.facts[kind]) for i, kind in enumerate(KINDS)):
        for h, *middle, t in facts:
            sequence = [h, *(token[r] for r in middle)] if middle else [h, functor]
            rows.append([*sequence, *[0] * (3 - len(sequence)), len(sequence) - 1, t, kind])
    rows = torch.tensor(rows)
    n_train = sum(len(graph.facts[kind]) for kind in TRAINED)
    return Facts(rows[:, :3], *rows[:, 3:].unbind(1), n_train, functor + 1)


# ==== Model ===========================================================================================================


def rotate(x: torch.Tensor, base: float) -> torch.Tensor:
    """Rotary positions 0, 1, .. (Su et al. 2021): [B, heads, T, e], where number i goes with number i + e / 2."""
    T, half = x.shape[-2], x.shape[-1] // 2
    rates = base ** (-torch.arange(half, device=x.device) / half)
    angles = torch.arange(T, device=x.device)[:, None] * rates
    one, other = x[..., :half], x[..., half:]
    return torch.cat([one * angles.cos() - other * angles.sin(), other * angles.cos() + one * angles.sin()], -1)


class Block(nn.Module):
    """Pre-LayerNorm Transformer block: causal attention, then a GELU MLP if it has one. [B, T, d] -> [B, T, d]."""

    def __init__(self, config: Config, d: int):
        super().__init__()
        self.heads, self.base = config.n_head, config.rope_base
        self.attention_norm = nn.LayerNorm(d)
        self.qkv, self.attention_out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.mlp_norm, self.mlp = nn.LayerNorm(d), None
        if config.mlp_ratio:
            wide = config.mlp_ratio * d
            self.mlp = nn.Sequential(nn.Linear(d, wide), nn.GELU(), nn.Linear(wide, d))

    def attend(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention weights [B, heads, T, T] and values [B, heads, T, d / heads] of the normed stream."""
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        scores = rotate(q, self.base) @ rotate(k, self.base).mT * q.shape[-1] ** -0.5
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
        return scores.masked_fill(later, -math.inf).softmax(-1), v

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights, values = self.attend(self.attention_norm(x))
        x = x + self.attention_out((weights @ values).transpose(1, 2).flatten(-2))
        return x if self.mlp is None else x + self.mlp(self.mlp_norm(x))


class Model(nn.Module):
    """GPT with rotary positions: tokens [B, T] and the positions of the last ones [B] -> logits [B, vocabulary]."""

    def __init__(self, config: Config, vocabulary: int, d: int):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, d)
        self.blocks = nn.ModuleList(Block(config, d) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(d)
        self.answer = nn.Linear(d, vocabulary, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            if getattr(module, "bias", None) is not None:
                nn.init.zeros_(module.bias)
        if config.tie_weights:
            self.answer.weight = self.tokens.weight

    def forward(self, tokens: torch.Tensor, last: torch.Tensor) -> torch.Tensor:
        x = self.tokens(tokens)
        for block in self.blocks:
            x = block(x)
        x = x.gather(1, last[:, None, None].expand(-1, -1, x.shape[-1]))[:, 0]  # only what is asked for is read out
        return self.answer(self.norm(x))

    def first_attention(self, tokens: torch.Tensor) -> torch.Tensor:
        """Attention weights of the first block, mean over heads: [B, T, T]."""
        return self.blocks[0].attend(self.blocks[0].attention_norm(self.tokens(tokens)))[0].mean(1)


# ==== Embeddings ======================================================================================================


def dirichlet_energy(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Mean of |x - y|^2 over rows of unit length: 2 - 2 cos, 0 to 4. [n, d], [n, d] -> scalar; NaN without rows."""
    return (F.normalize(x, dim=1) - F.normalize(y, dim=1)).square().sum(1).mean()


def energies(x: torch.Tensor, functor: torch.Tensor, trained: torch.Tensor) -> dict[str, float | None]:
    """Dirichlet energies of the functor's pairs [n, 2], of which [n] are trained on, in embeddings [entities, d].

    The norm of embeddings and what all of a category have in common move the energy alone. The null has them too: the
    same mean over all other pairs of the two categories. A ratio below 1 is what only the functor explains.
    """
    one, other = x[functor[:, 0]], x[functor[:, 1]]
    n = len(functor)
    away = ~torch.eye(n, dtype=torch.bool)
    null = dirichlet_energy(one.repeat_interleave(n, 0)[away.flatten()], other.repeat(n, 1)[away.flatten()]).item()
    raw = (one - other).square().sum(1)
    numbers = {"energy_null": null, "energy_raw": raw.sum().item()}
    numbers["energy_relative_to_norm"] = (raw.mean() / x.square().sum(1).mean()).item()
    for name, which in (("", trained | True), ("_id", trained), ("_ood", ~trained)):
        energy = dirichlet_energy(one[which], other[which]).item() if which.any() else None
        numbers |= {f"energy{name}": energy, f"energy_ratio{name}": None if energy is None else energy / null}
    return numbers


def principal_plane(x: torch.Tensor) -> tuple[torch.Tensor, list[float]]:
    """Coordinates [n, 2] of rows [n, d] on their first two principal components, and the shares of variance there. The
    sign is that for which the farthest coordinate is positive."""
    U, S, _ = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    plane = (U * S)[:, :2]
    plane = plane * plane.gather(0, plane.abs().argmax(0, keepdim=True)).sign()
    return plane, (S.square() / S.square().sum())[:2].tolist()


# ==== Training ========================================================================================================

EVAL_BATCH = 512  # facts per forward pass of the evaluation: their logits are over the whole vocabulary
GROUPS = {kind: (kind,) for kind in KINDS} | {"far_ood_compositional": ("far_ood_first_hop", "far_ood_second_hop")}
SEVEN = [group for group in GROUPS if "hop" not in group]  # of which macro averages are


def first_update(points: list[dict], key: str, least: float) -> int | None:
    """After which update a number is first measured to be at least so much; None: never."""
    return next((point["step"] for point in points if point[key] is not None and point[key] >= least), None)


@dataclass(frozen=True, kw_only=True, eq=False)
class AnalogyTrajectory(Trajectory):
    """One model of a graph: as many entities and relations, a width and a decay, and a seed."""

    entities: int
    relations: int
    held_out: float  # share of analogical facts
    decay: float
    width: int

    # ---- Learning rate, loss and update ------------------------------------------------------------------------------

    def learning_rate(self, update: int, updates: int) -> float:
        """Constant after a linear warm-up."""
        return self.config.lr * min(1.0, (update + 1) / max(1, self.config.warmup))

    def loss(
        self, model: Model, tokens: torch.Tensor, last: torch.Tensor, targets: torch.Tensor, weights: torch.Tensor
    ):
        """Cross-entropy in nats of the facts' last tokens, over the whole vocabulary."""
        losses = F.cross_entropy(model(tokens, last), targets, reduction="none")
        loss = (weights * losses).sum() / weights.sum()
        return loss, {"loss": loss}

    def optimizer(self, params: dict[str, torch.Tensor], lr: float) -> torch.optim.Optimizer:
        return torch.optim.Adam(params.values(), lr=lr, weight_decay=self.decay, fused=True)

    # ---- What is trained ---------------------------------------------------------------------------------------------

    @cached_property
    def graph(self) -> Graph:
        c, n = self.config, self.config.category_size(self.entities)
        ratios = (c.atomic_ood_ratio, c.compositional_ood_ratio, self.held_out)
        return build_graph(self.entities, n, self.relations, ratios, c.duplicate_relation, self.seed)

    @cached_property
    def data(self) -> Facts:
        return tokenize(self.graph, self.entities, self.relations, self.config.vocab_mode)

    @property
    def updates_per_epoch(self) -> int:
        return -(-self.data.n_train // self.config.batch_size)

    def model(self) -> Model:
        return Model(self.config, self.data.vocabulary, self.width)

    def batches(self, first: int, n: int, device: torch.device) -> dict[str, torch.Tensor]:
        """tokens [n, B, 3], last, targets [n, B], and weights [n, B], which are 0 where a short batch is padded."""
        size, per_epoch = self.config.batch_size, self.updates_per_epoch
        epochs = range(first // per_epoch, (first + n - 1) // per_epoch + 1)
        orders = [torch.randperm(self.data.n_train, generator=self.stream("epoch", epoch)) for epoch in epochs]
        orders = [F.pad(order, (0, per_epoch * size - len(order)), value=-1) for order in orders]
        which = torch.cat(orders).view(-1, size)[first - epochs[0] * per_epoch :][:n]
        batch = {key: getattr(self.data, key)[which.clamp(min=0)] for key in ("tokens", "last", "targets")}
        return batch | {"weights": (which >= 0).float()}

    # ---- What is measured --------------------------------------------------------------------------------------------

    @cached_property
    def pairs(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The functor's pairs (e, F(e)) [n, 2], and whether they are trained on [n]."""
        known, new = (self.graph.facts[f"{part}_analogical"] for part in ("id", "ood"))
        return torch.tensor(known + new), torch.arange(len(known + new)) < len(known)

    def observe(self, model: Model, update: int) -> dict[str, torch.Tensor]:
        """Of every fact the loss in nats, its target's probability and whether that is the most probable token [N];
        embeddings of entities and functor [entities + 1, d], read-out of entities [entities, d], and attention from
        functor to source [n], in the first block."""
        device, found = model.tokens.weight.device, []
        parts = (part.to(device).split(EVAL_BATCH) for part in self.data[:3])
        for tokens, last, targets in zip(*parts, strict=True):
            log_p = model(tokens, last).float().log_softmax(1)
            own = log_p.gather(1, targets[:, None])[:, 0]
            found.append((-own, own.exp(), (log_p.argmax(1) == targets).float()))
        ce, prob, acc = (torch.cat(values).cpu() for values in zip(*found, strict=True))
        functor = torch.tensor([self.data.vocabulary - 1])
        asked = torch.stack([self.pairs[0][:, 0], functor.expand(len(self.pairs[0]))], 1).to(device)
        which = torch.cat([torch.arange(self.entities), functor]).to(device)
        return {
            "ce": ce,
            "prob": prob,
            "acc": acc,
            "embeddings": model.tokens.weight[which].double().cpu(),
            "read_out": model.answer.weight[: self.entities].double().cpu(),
            "attention": model.first_attention(asked)[:, 1, 0].double().cpu(),
        }

    def measure(self, observed: dict, update: int, recent: dict[str, list[float]], points: list[dict]) -> dict:
        """Means over the facts of every kind, and what of the embeddings tells of the functor."""
        numbers = {"train_loss": math.fsum(recent["loss"]) / len(recent["loss"]) if recent else None}
        for group, kinds in GROUPS.items():
            own = torch.isin(self.data.kinds, torch.tensor([KINDS.index(kind) for kind in kinds]))
            means = (
                {key: observed[key][own].double().mean().item() for key in ("ce", "prob", "acc")} if own.any() else {}
            )
            numbers |= {f"{group}_{key}": means.get(key) for key in ("ce", "prob", "acc")}
        numbers["train_acc"] = observed["acc"][: self.data.n_train].double().mean().item()
        for key in ("ce", "acc"):
            there = [numbers[f"{group}_{key}"] for group in SEVEN if numbers[f"{group}_{key}"] is not None]
            numbers[f"macro_{key}"] = sum(there) / len(there)
        (pairs, trained), x = self.pairs, observed["embeddings"]
        numbers |= energies(x[:-1], pairs, trained)
        step = observed["read_out"][pairs[:, 1]] - x[pairs[:, 0]]
        parallel = F.cosine_similarity(step, x[-1:], dim=1)
        for part, which in (("id", trained), ("ood", ~trained)):
            numbers[f"parallelism_{part}"] = parallel[which].mean().item() if which.any() else None
            numbers[f"attention_{part}"] = observed["attention"][which].mean().item() if which.any() else None
        numbers = {key: None if value is None else float(f"{value:.6g}") for key, value in numbers.items()}
        plane, shares = principal_plane(x[:-1])
        return numbers | {"plane": [[round(v, 4) for v in row] for row in plane.tolist()], "plane_shares": shares}

    # ---- What is reported --------------------------------------------------------------------------------------------

    def cell(self, points: list[dict]) -> dict:
        """Numbers at the end, the updates of the three stages (None: never), how high analogy rose and how long it
        stayed, where the energy was least, and what needs no reasoning."""
        numbers = {key: value for key, value in points[-1].items() if key not in ("step", "plane", "plane_shares")}
        probs = [point["ood_analogical_prob"] for point in points]
        spans = [later["step"] - point["step"] for point, later in itertools.pairwise(points)]
        above = [span for span, prob in zip(spans, probs[1:], strict=True) if prob is not None and prob >= 0.5]
        least = min(points, key=lambda point: point["energy"])
        there = None not in probs
        held_out = len(self.graph.facts["ood_analogical"])
        return {
            "num_entities": self.entities,
            "num_relations": self.relations,
            "analogical_ood_ratio": self.held_out,
            "weight_decay": self.decay,
            "d_model": self.width,
            "t_mem": first_update(points, "train_acc", 0.99),
            "t_comp": first_update(points, "near_ood_compositional_acc", 0.99),
            "t_ana": first_update(points, "ood_analogical_prob", 0.5),
            "ood_analogical_prob_max": max(probs) if there else None,
            "ood_analogical_share": sum(above) / sum(spans) if there and spans else None,
            "t_energy_least": least["step"],
            "energy_least": least["energy"],
            "energy_ratio_least": min(point["energy_ratio"] for point in points),
            "energy_start": points[0]["energy"],
            **numbers,
            **{f"{group}_ppl": math.exp(min(20, ce)) for group in GROUPS if (ce := numbers[f"{group}_ce"]) is not None},
            "lookup_near_ood_acc": lookup_accuracy(self.graph),
            "elimination_ood_analogical_acc": 1 / held_out if held_out else None,
        }

    def extras(self, points: list[dict]) -> dict:
        counts = {kind: len(facts) for kind, facts in self.graph.facts.items()}
        told = {"num_entities": self.entities, "num_relations": self.relations, "analogical_ood_ratio": self.held_out}
        told |= {"weight_decay": self.decay, "d_model": self.width, "vocabulary": self.data.vocabulary}
        told |= {"updates_per_epoch": self.updates_per_epoch, "counts": counts, "pairs": self.pairs[0].tolist()}
        return told | ({"facts": self.graph.facts} if self.config.dump_data else {})


def plan(config: Config) -> list[AnalogyTrajectory]:
    """One trajectory per combination of the lists and seed, measured at the start, after each of the first 100 epochs
    and after every tenth one."""
    grid = (config.num_entities, config.num_relations, config.analogical_ood_ratio, config.weight_decay, config.d_model)
    trajectories = []
    for entities, relations, held_out, decay, width in itertools.product(*grid):
        cell = f"E{entities}_R{relations}_ood{held_out:g}_wd{decay:g}_d{width}"
        for seed in range(config.seed, config.seed + config.seeds):
            settings = {"config": config, "seed": seed, "entities": entities, "relations": relations}
            settings |= {"held_out": held_out, "decay": decay, "width": width, "streams": (seed,)}
            alone = AnalogyTrajectory(name="", cells={1: cell}, **settings)
            per_epoch = alone.updates_per_epoch
            measured = [epoch for epoch in range(config.epochs) if epoch <= 100 or epoch % 10 == 0]
            trajectories.append(
                AnalogyTrajectory(
                    name=f"{cell}, seed={seed}",
                    cells={config.epochs * per_epoch: cell},
                    measured=tuple(epoch * per_epoch for epoch in measured),
                    shape=(alone.data.vocabulary, width, decay, len(alone.pairs[0])),
                    window=per_epoch,
                    **settings,
                )
            )
    return trajectories


def headlines(config: Config) -> tuple[str, ...]:
    """The numbers of a cell that final_info.json has."""
    analogy = ("ood_analogical_prob", "ood_analogical_acc", "ood_analogical_prob_max", "ood_analogical_share")
    others = ("train_acc", "near_ood_compositional_acc", "id_analogical_acc", "energy", "energy_ratio", "train_loss")
    return (*analogy, "t_mem", "t_comp", "t_ana", *others, "lookup_near_ood_acc")


# What the headline numbers are measured with: all_results.json records a hash of the source of exactly these.
YARDSTICK = (build_graph, lookup_accuracy, tokenize, dirichlet_energy, energies, principal_plane, first_update)
YARDSTICK += (AnalogyTrajectory.observe, AnalogyTrajectory.measure, AnalogyTrajectory.cell)

# ==== Main ============================================================================================================

STUDY = Study(Config, plan, headlines, YARDSTICK, PRESETS)


def main(argv: list[str] | None = None) -> int:
    """Run the study; returns the exit status: 0 complete, 1 failed, 2 bad input, 130 or 143 interrupted."""
    return run_study(STUDY, argv)


if __name__ == "__main__":
    sys.exit(main())
