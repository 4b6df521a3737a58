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
from collections import Counter, defaultdict
from dataclasses import dataclass
from functools import cached_property, lru_cache
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

sys.path.append(str(Path(__file__).resolve().parent.parent.parent))  # harness.py is there, if not beside this script
from harness import Study, Trajectory, require, run_study  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.nn as nn  # noqa: E402
import torch.nn.functional as F  # noqa: E402

# ==== Configuration ===================================================================================================

GRID = ("num_entities", "num_relations", "analogical_ood_ratio", "weight_decay", "d_model")  # of which runs are made


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
        for flag in GRID:
            values = getattr(self, flag)
            require(self, flag, len(set(values)) == len(values) > 0, "one or more different values")
        for flag in ("n_layer", "n_head", "batch_size", "epochs", "seeds"):
            require(self, flag, getattr(self, flag) >= 1, "at least 1")
        for flag in ("mlp_ratio", "warmup", "seed"):
            require(self, flag, getattr(self, flag) >= 0, "at least 0")
        for flag in ("lr", "weight_decay"):
            numbers = np.ravel(getattr(self, flag))
            require(self, flag, all(0 <= x < math.inf for x in numbers), "finite and not negative")
        for flag in ("atomic_ood_ratio", "compositional_ood_ratio", "analogical_ood_ratio"):
            require(self, flag, all(0 <= x < 1 for x in np.ravel(getattr(self, flag))), "at least 0 and below 1")
        require(self, "rope_base", 1 < self.rope_base < math.inf, "finite and above 1")
        require(self, "vocab_mode", self.vocab_mode in ("full", "used"), "full or used")
        sizes = [self.category_size(entities) for entities in self.num_entities]
        flag = "num_entities" if self.sub_size is None else "sub_size"
        require(self, flag, min(sizes) >= 3, "so that a category has at least 3 entities")
        room = 2 * max(sizes) <= min(self.num_entities) or self.sub_size is None
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
    "yaml": dict(analogical_ood_ratio=(0.1,), n_layer=2, epochs=100),
    "paper": dict(num_entities=(20,), analogical_ood_ratio=(0.1,), epochs=100),
    "nb_dynamics": dict(n_layer=2, tie_weights=True, lr=1e-2, weight_decay=(0.01,)),
    "nb_energy": dict(analogical_ood_ratio=(0.1,), mlp_ratio=0, tie_weights=True, weight_decay=(1e-5,), epochs=300),
}

# ==== Facts ===========================================================================================================

# Far-OOD facts have a held-out edge: as their first hop alone, or as their second one.
TRAINED = ("id_atomic", "id_compositional", "id_analogical")
FAR = ("far_ood_first_hop", "far_ood_second_hop")
KINDS = (*TRAINED, "ood_atomic", "near_ood_compositional", *FAR, "ood_analogical")


# Of every kind, in the order of KINDS, as numbers of entities and of relations: (h, r, t), (h, r1, r2, t) or (e, F(e)).
Facts = dict[str, list[tuple[int, ...]]]


@lru_cache(maxsize=64)
def build_graph(config: Config, entities: int, relations: int, held_out: float, seed: int) -> Facts:
    """All facts, by the original's order of random draws.

    As many entities as a category has are the first one, as many others the second, and the rest has a complete graph
    of its own. In the first category every entity has an edge to every other one, with a label that no other edge of
    that entity has (duplicate_relation: may have). A share atomic_ood_ratio of these edges is held out; the image of
    the others under the functor is the second category. Paths over two edges that do not lead back are facts, held out
    (near) with probability compositional_ood_ratio if both edges are trained on, else far. Of the functor's pairs a
    share `held_out` is held out.
    """
    rng, n = np.random.default_rng(seed), config.category_size(entities)
    first, second, others = np.split(rng.permutation(entities), [n, 2 * n])
    first, second, others = first.tolist(), rng.permutation(second).tolist(), others.tolist()
    image = dict(zip(first, second, strict=True))
    labels = rng.choice(relations, size=relations, replace=False).tolist()
    atomic, used = [], {h: set() for h in first}
    for h, t in itertools.permutations(first, 2):
        r = int(rng.choice([label for label in labels if label not in used[h]]))
        used[h] |= set() if config.duplicate_relation else {r}
        atomic.append((h, r, t))
    atomic += [(h, int(rng.choice(labels)), t) for h, t in itertools.permutations(others, 2)]

    def split(facts: list, held_out: float) -> tuple[list, list]:
        rng.shuffle(facts)
        kept = round(len(facts) * (1 - held_out))  # half to even
        return facts[:kept], facts[kept:]

    known, new = split(atomic, config.atomic_ood_ratio)
    mirror = [(image[h], r, image[t]) for h, r, t in known if h in image]
    facts = {kind: [] for kind in KINDS} | {"id_atomic": known + mirror, "ood_atomic": new}
    edges, missing = {h: [] for h in range(entities)}, set(new)
    for edge in (*known, *new, *mirror):
        edges[edge[0]].append(edge)
    hops = [(one, other) for h in range(entities) for one in edges[h] for other in edges[one[2]] if other[2] != h]
    for one, other in hops:
        if one in missing or other in missing:
            kind = FAR[other in missing]
        else:
            kind = "id_compositional" if rng.uniform() > config.compositional_ood_ratio else "near_ood_compositional"
        facts[kind].append((*one[:2], *other[1:]))
    facts["id_analogical"], facts["ood_analogical"] = split([*image.items()], held_out)
    return facts


def answered_by_lookup(facts: Facts) -> torch.Tensor:
    """Which of the held-out (near) two-hop facts [n] a table without reasoning answers: with what training facts of the
    same category with this last relation have most often."""
    image = dict(facts["id_analogical"] + facts["ood_analogical"])
    category = dict.fromkeys(image, 1) | dict.fromkeys(image.values(), 2)
    table = defaultdict(Counter)
    for h, *_, r, t in facts["id_atomic"] + facts["id_compositional"]:
        table[category.get(h), r][t] += 1
    near = facts["near_ood_compositional"]
    return torch.tensor([t == table[category.get(h), r].most_common(1)[0][0] for h, *_, r, t in near]).bool()


class Texts(NamedTuple):
    """Facts as tokens: entities, then relations, then the functor. Those that are trained on come first."""

    tokens: torch.Tensor  # [N, 3] int64, padded on the right
    last: torch.Tensor  # [N] position of the last token
    targets: torch.Tensor  # [N]
    n_train: int
    vocabulary: int


def tokenize(facts: Facts, entities: int, relations: int, vocab_mode: str) -> Texts:
    """Every fact as a sequence of tokens whose last one is asked for."""
    every, names = [fact for kind in KINDS for fact in facts[kind]], range(relations)
    if vocab_mode == "used":
        names = sorted({r for fact in every for r in fact[1:-1]})
    token = {r: entities + i for i, r in enumerate(names)}
    functor, rows = entities + len(token), []
    for h, *middle, t in every:
        text = [h, *(token[r] for r in middle)] if middle else [h, functor]
        rows.append([*text, *[0] * (3 - len(text)), len(text) - 1, t])
    rows = torch.tensor(rows)
    return Texts(rows[:, :3], rows[:, 3], rows[:, 4], sum(len(facts[kind]) for kind in TRAINED), functor + 1)


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
        self.mlp = None
        if config.mlp_ratio:
            wide = config.mlp_ratio * d
            self.mlp = nn.Sequential(nn.LayerNorm(d), nn.Linear(d, wide), nn.GELU(), nn.Linear(wide, d))

    def attend(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Attention weights [B, heads, T, T] and values [B, heads, T, d / heads] of the normed stream."""
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        scores = rotate(q, self.base) @ rotate(k, self.base).mT * q.shape[-1] ** -0.5
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=x.device).triu(1)
        return scores.masked_fill(later, -math.inf).softmax(-1), v

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights, values = self.attend(self.attention_norm(x))
        x = x + self.attention_out((weights @ values).transpose(1, 2).flatten(-2))
        return x if self.mlp is None else x + self.mlp(x)


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


def mean(values: torch.Tensor) -> float | None:
    """None, if there are none."""
    return values.double().mean().item() if len(values) else None


def against_null(table: torch.Tensor, trained: torch.Tensor) -> dict[str, tuple[float | None, float | None]]:
    """Means of numbers [n, n] of entities (rows) and images (columns) over the functor's pairs, the diagonal, and over
    all others, the null: of everything, and among the pairs that are trained on ("_id") or held out ("_ood") alone."""
    found = {}
    for part, which in (("", trained | True), ("_id", trained), ("_ood", ~trained)):
        own = table[which][:, which]
        found[part] = mean(own.diagonal()), mean(own[~torch.eye(len(own), dtype=torch.bool)])
    return found


def energies(x: torch.Tensor, pairs: torch.Tensor, trained: torch.Tensor) -> dict[str, float | None]:
    """Dirichlet energies of the functor's pairs [n, 2], of which [n] are trained on, in embeddings [entities, d]: the
    mean of |x - y|^2 over rows of unit length, 2 - 2 cos, 0 to 4.

    The norm of embeddings and what all of a category have in common move the energy alone. They move its null too, the
    same mean over all other pairs of the two categories, so that the ratio tells of the functor.
    """
    one, other = x[pairs.T]
    raw, numbers = (one - other).square().sum(1), {}
    for part, (energy, null) in against_null(2 - 2 * F.normalize(one) @ F.normalize(other).T, trained).items():
        numbers |= {f"energy{part}": energy, f"energy_null{part}": null}
        numbers[f"energy_ratio{part}"] = energy / null if null else None
    norm = x.square().sum(1).mean()
    return numbers | {"energy_raw": raw.sum().item(), "energy_relative_to_norm": (raw.mean() / norm).item()}


def principal_plane(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Coordinates [n, 2] of rows [n, d] on their first two principal components, and the shares of variance [2]."""
    U, S, _ = torch.linalg.svd(x - x.mean(0), full_matrices=False)
    return (U * S)[:, :2], (S.square() / S.square().sum())[:2]


# ==== Training ========================================================================================================

EVAL_BATCH = 512  # facts per forward pass of the evaluation: their logits are over the whole vocabulary
SCORES = ("ce", "prob", "acc")  # of a fact: loss in nats, probability of the target, whether that is the most probable
GROUPS = (*KINDS, "far_ood_compositional")  # the last one is the two kinds of FAR
# What only the functor explains, of the pairs that are trained on and of the held-out ones.
EXPLAINED = ("read_out_energy_ratio", "energy_ratio", "parallelism_excess")
EXPLAINED = [f"{key}_{part}" for key in EXPLAINED for part in ("id", "ood")]


def first_update(points: list[dict], key: str, least: float) -> int | None:
    """After which update a number is first measured to be at least so much; None: never."""
    return next((point["step"] for point in points if (point.get(key) or 0) >= least), None)


@dataclass(frozen=True, kw_only=True, eq=False)
class AnalogyTrajectory(Trajectory):
    """One model of a graph: a value of each list of the grid, and a seed."""

    num_entities: int
    num_relations: int
    analogical_ood_ratio: float
    weight_decay: float
    d_model: int

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
        return torch.optim.Adam(params.values(), lr=lr, weight_decay=self.weight_decay, fused=True)

    # ---- What is trained ---------------------------------------------------------------------------------------------

    @cached_property
    def facts(self) -> Facts:
        return build_graph(self.config, self.num_entities, self.num_relations, self.analogical_ood_ratio, self.seed)

    @cached_property
    def data(self) -> Texts:
        return tokenize(self.facts, self.num_entities, self.num_relations, self.config.vocab_mode)

    def model(self) -> Model:
        return Model(self.config, self.data.vocabulary, self.d_model)

    def batches(self, first: int, n: int, device: torch.device) -> dict[str, torch.Tensor]:
        """tokens [n, B, 3], last, targets [n, B], and weights [n, B], which are 0 where a short batch is padded."""
        size, per_epoch = self.config.batch_size, self.window
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
        known, new = (self.facts[f"{part}_analogical"] for part in ("id", "ood"))
        return torch.tensor(known + new), torch.arange(len(known + new)) < len(known)

    def observe(self, model: Model, update: int) -> dict[str, torch.Tensor]:
        """SCORES of every fact [N]; of those with one of k held-out images log-probabilities of these images [k, k];
        embeddings of entities and functor [entities + 1, d], read-out of entities [entities, d], and attention from
        functor to source [n], in the first block."""
        device, found = model.tokens.weight.device, []
        data = [part.to(device) for part in self.data[:3]]
        known = len(data[2]) - len(self.facts["ood_analogical"])  # which come last
        for tokens, last, targets in zip(*(part.split(EVAL_BATCH) for part in data), strict=True):
            log_p = model(tokens, last).float().log_softmax(1)
            own = log_p.gather(1, targets[:, None])[:, 0]
            found.append((-own, own.exp(), (log_p.argmax(1) == targets).float(), log_p[:, data[2][known:]]))
        *scores, images = (torch.cat(values).cpu() for values in zip(*found, strict=True))
        functor = self.data.vocabulary - 1
        asked = torch.tensor([(e, functor) for e in self.pairs[0][:, 0].tolist()], device=device)
        return dict(zip(SCORES, scores, strict=True)) | {
            "images": images[known:],
            "embeddings": model.tokens.weight[[*range(self.num_entities), functor]].double().cpu(),
            "read_out": model.answer.weight[: self.num_entities].double().cpu(),
            "attention": model.first_attention(asked)[:, 1, 0].double().cpu(),
        }

    def measure(self, observed: dict, update: int, recent: dict[str, list[float]], points: list[dict]) -> dict:
        """Means over the facts of every kind that has some, and what of the embeddings tells of the functor."""
        numbers = {"train_loss": float(np.mean(recent["loss"])) if recent else None}
        numbers["train_acc"] = mean(observed["acc"][: self.data.n_train])
        for key in SCORES:
            own = dict(zip(KINDS, observed[key].split([len(self.facts[kind]) for kind in KINDS]), strict=True))
            own["far_ood_compositional"] = torch.cat([own[kind] for kind in FAR])
            means = {group: mean(values) for group, values in own.items() if len(values)}
            numbers |= {f"{group}_{key}": value for group, value in means.items()}
            seven = [value for group, value in means.items() if group not in FAR]
            numbers[f"macro_{key}"] = sum(seven) / len(seven)
            if key == "acc":
                missed = own["near_ood_compositional"][~answered_by_lookup(self.facts)]
                numbers["near_ood_beyond_lookup_acc"] = mean(missed)
        choice = observed["images"].softmax(1).diagonal()
        numbers["ood_analogical_choice"] = mean(choice) if len(choice) > 1 else None
        (pairs, trained), x, read_out = self.pairs, observed["embeddings"], observed["read_out"]
        numbers |= energies(x[:-1], pairs, trained)
        if not self.config.tie_weights:
            numbers |= {f"read_out_{key}": value for key, value in energies(read_out, pairs, trained).items()}
        steps = read_out[pairs[:, 1]] - x[pairs[:, 0], None]  # [n, n, d], from every entity to every image
        parallel = against_null(F.cosine_similarity(steps, x[-1], dim=2), trained)
        for part, which in (("_id", trained), ("_ood", ~trained)):
            value, null = parallel[part]
            numbers |= {f"parallelism{part}": value, f"parallelism_null{part}": null}
            numbers[f"parallelism_excess{part}"] = None if null is None else value - null
            numbers[f"attention{part}"] = mean(observed["attention"][which])
        numbers = {key: None if value is None else float(f"{value:.6g}") for key, value in numbers.items()}
        rows, energy = (x[:-1], "energy") if self.config.tie_weights else (read_out, "read_out_energy")
        least = min((point[energy] for point in points), default=math.inf)
        if update in (0, self.updates) or numbers[energy] < least:
            plane, shares = (part.round(decimals=4).tolist() for part in principal_plane(rows))
            numbers |= {"plane": plane, "plane_shares": shares}
        return numbers

    # ---- What is reported --------------------------------------------------------------------------------------------

    @property
    def place(self) -> dict[str, float]:
        return {field: getattr(self, field) for field in GRID}

    def cell(self, points: list[dict]) -> dict:
        """Numbers at the end; the updates of the three stages (None: never), how high analogy rose and for which share
        of the updates it stayed; where the energies were least; what only the functor explains, as the change from the
        start to the last point before analogy came and to the end; and what needs no reasoning."""
        if self.config.tie_weights:  # of one matrix
            of_energy = [key for key in points[0] if key.startswith("energy")]
            points = [{f"read_out_{key}": point[key] for key in of_energy} | point for point in points]
        numbers = self.place | dict.fromkeys(f"{group}_{key}" for group in GROUPS for key in SCORES) | points[-1]
        for group in GROUPS:
            ce = numbers[f"{group}_ce"]
            numbers[f"{group}_ppl"] = None if ce is None else math.exp(min(20, ce))
        numbers["t_mem"] = first_update(points, "train_acc", 0.99)
        numbers["t_comp"] = first_update(points, "near_ood_compositional_acc", 0.99)
        spans = np.diff([point["step"] for point in points])
        for name, key, least in (("t_ana", "prob", 0.5), ("t_ana_acc", "acc", 0.99), ("t_ana_choice", "choice", 0.9)):
            key = f"ood_analogical_{key}"
            values = [point.get(key) for point in points]
            there = None not in values
            numbers[name] = first_update(points, key, least)
            numbers[f"{key}_max"] = max(values) if there else None
            numbers[f"{key}_share"] = np.average(np.array(values[1:]) >= least, weights=spans) if there else None
        for rows in ("", "read_out_"):
            least = min(points, key=itemgetter(f"{rows}energy"))
            numbers |= {f"t_{rows}energy_least": least["step"], f"{rows}energy_least": least[f"{rows}energy"]}
            numbers[f"{rows}energy_ratio_at_least"] = least[f"{rows}energy_ratio"]
        before = [point for point in points if point["step"] < (numbers["t_ana_acc"] or 0)]
        for moment, until in (("change_before", before), ("change", points)):
            for key in EXPLAINED:
                there = until and points[0][key] is not None
                numbers[f"{key}_{moment}"] = until[-1][key] - points[0][key] if there else None
        numbers["lookup_near_ood_acc"] = mean(answered_by_lookup(self.facts))
        held_out = len(self.facts["ood_analogical"])
        numbers["elimination_ood_analogical_acc"] = 1 / held_out if held_out else None
        return {key: value for key, value in numbers.items() if key not in ("step", "plane", "plane_shares")}

    def extras(self, points: list[dict]) -> dict:
        counts = {kind: len(facts) for kind, facts in self.facts.items()}
        counts["far_ood_compositional"] = sum(counts[kind] for kind in FAR)
        told = self.place | {"vocabulary": self.data.vocabulary, "updates_per_epoch": self.window, "counts": counts}
        told["pairs"] = self.pairs[0].tolist()
        return told | ({"facts": self.facts} if self.config.dump_data else {})


def measured_epochs(epochs: int) -> list[int]:
    """The start and every epoch up to 50, then each time 4% more; the last epoch is measured anyway."""
    later = (round(50 * 1.04**i) for i in itertools.count(1))
    return [*range(min(51, epochs)), *itertools.takewhile(lambda epoch: epoch < epochs, later)]


def plan(config: Config) -> list[AnalogyTrajectory]:
    """One trajectory per combination of the lists and seed."""
    trajectories = []
    for values in itertools.product(*(getattr(config, field) for field in GRID)):
        cell = "E{}_R{}_ood{:g}_wd{:g}_d{}".format(*values)
        for seed in range(config.seed, config.seed + config.seeds):
            data = tokenize(build_graph(config, *values[:3], seed), *values[:2], config.vocab_mode)
            per_epoch = -(-data.n_train // config.batch_size)
            trajectories.append(
                AnalogyTrajectory(
                    config=config,
                    name=f"{cell}, seed={seed}",
                    seed=seed,
                    cells={config.epochs * per_epoch: cell},
                    streams=(seed,),
                    measured=tuple(epoch * per_epoch for epoch in measured_epochs(config.epochs)),
                    shape=(data.vocabulary, *values[3:]),
                    window=per_epoch,
                    **dict(zip(GRID, values, strict=True)),
                )
            )
    return trajectories


def headlines(config: Config) -> tuple[str, ...]:
    """The numbers of a cell that final_info.json has."""
    analogy = [f"ood_analogical_{key}{end}" for key in ("prob", "acc", "choice") for end in ("", "_max", "_share")]
    stages = ("t_mem", "t_comp", "t_ana", "t_ana_acc", "t_ana_choice", "t_energy_least", "t_read_out_energy_least")
    changes = [f"{key}_{moment}" for key in EXPLAINED for moment in ("change_before", "change")]
    known = ("train_loss", "train_acc", "id_analogical_acc", "near_ood_compositional_acc", "lookup_near_ood_acc")
    return (*analogy, "elimination_ood_analogical_acc", *stages, *changes, *known, "near_ood_beyond_lookup_acc")


# What the headline numbers are measured with: all_results.json records a hash of the source of exactly these.
YARDSTICK = (build_graph, answered_by_lookup, tokenize, mean, against_null, energies, principal_plane, first_update)
YARDSTICK += (AnalogyTrajectory.observe, AnalogyTrajectory.measure, AnalogyTrajectory.cell)

# ==== Main ============================================================================================================

STUDY = Study(Config, plan, headlines, YARDSTICK, PRESETS)


def main(argv: list[str] | None = None) -> int:
    """Run the study; returns the exit status: 0 complete, 1 failed, 2 bad input, 130 or 143 interrupted."""
    return run_study(STUDY, argv)


if __name__ == "__main__":
    sys.exit(main())
