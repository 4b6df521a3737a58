#!/usr/bin/env python3
"""Balls & Urns under full lex-invariance: does a small Transformer generalize or memorize?

Every sequence shows draws from one of D urns. In the default mode every sequence also gets its own random token
embeddings, so that nothing about a color can be remembered from one sequence to the next. For every cell of the grid
D (urns) x N (training steps) the script measures how far the model's next-draw distribution is from ideal
generalizers and memorizers, and writes `final_info.json` and `all_results.json` to `--out_dir`.

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
from dataclasses import dataclass, replace
from functools import cached_property

from harness import Study, Trajectory, require, run_study, stream

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

# ==== Configuration ===================================================================================================


@dataclass(frozen=True)
class Config:
    """Every knob of the study; each is also a flag of the same name. UserError if one is out of range."""

    n_colors: int = 4  # colors m in every urn (2 to 8)
    seq_len: int = 8  # draws per sequence; the last one is predicted from the others
    tasks: tuple[int, ...] = (4, 8, 16, 32)  # numbers of urns D: rows of the grid
    steps: tuple[int, ...] = (1000, 5000, 10000, 20000)  # training steps N: columns of the grid
    seeds: int = 1  # how many seeds
    seed: int = 0  # the first seed
    alpha: float = 1.0  # urns are drawn from Dirichlet(alpha, ..., alpha)
    embedding: str = "gaussian"  # gaussian or permutation (fresh for every sequence), or fixed (the control)
    n_layers: int = 4  # decoder blocks
    n_heads: int = 4  # attention heads per block
    d_model: int = 128  # width of the residual stream, divisible by n_heads
    lr: float = 1e-4  # AdamW learning rate, the highest of the schedule
    schedule: str = "constant"  # of the learning rate: constant, or linear or cosine to 0 at the end of every N
    warmup: int = 0  # first updates, during which the learning rate rises linearly
    weight_decay: float = 0.01  # AdamW weight decay
    batch_size: int = 64  # fresh sequences per training step
    n_test: int = 256  # sampled test sequences per cell
    precision: str = "float32"  # matrix products in float32, tf32 (CUDA only) or bf16
    device: str = "auto"  # auto (CUDA, else Apple MPS, else CPU), cpu, cuda or mps

    def __post_init__(self):
        for flag in ("tasks", "steps"):
            values = tuple(getattr(self, flag))
            object.__setattr__(self, flag, values)
            different = len(set(values)) == len(values) > 0
            allowed = "one or more different whole numbers of at least 1"
            require(self, flag, different and min(values) >= 1, allowed)
        for flag in ("seeds", "n_layers", "n_heads", "d_model", "batch_size", "n_test"):
            require(self, flag, getattr(self, flag) >= 1, "at least 1")
        for flag in ("lr", "weight_decay"):
            require(self, flag, 0 <= getattr(self, flag) < math.inf, "finite and not negative")
        require(self, "n_colors", 2 <= self.n_colors <= 8, "2 to 8 (predictor O sums over all n_colors! relabellings)")
        require(self, "seq_len", self.seq_len >= 2, "at least 2")
        require(self, "seed", self.seed >= 0, "at least 0")
        require(self, "alpha", 1e-6 <= self.alpha <= 1e6, "1e-6 to 1e6")
        require(self, "d_model", self.d_model % self.n_heads == 0, f"divisible by --n_heads {self.n_heads}")
        require(self, "warmup", 0 <= self.warmup < min(self.steps), f"0 to {min(self.steps) - 1}, less than every N")
        kinds = {"embedding": ("gaussian", "permutation", "fixed"), "schedule": ("constant", "linear", "cosine")}
        for flag, values in kinds.items():
            require(self, flag, getattr(self, flag) in values, " or ".join(values))


# ==== Urns and sequences ==============================================================================================


def sample_urns(n_tasks: int, n_colors: int, alpha: float, generator: torch.Generator) -> torch.Tensor:
    """The first n_tasks urns [D, m] float64 of the generator's endless table, each row ~ Dirichlet(alpha, ..., alpha).

    Rows are drawn one after the other: row k is the same for every n_tasks > k. NumPy's sampler is used because it is
    exact for small alpha as well, where normalized Gamma draws underflow to 0/0.
    """
    seed = torch.randint(2**62, (1,), generator=generator, device=generator.device).item()
    return torch.from_numpy(np.random.default_rng(seed).dirichlet([alpha] * n_colors, size=n_tasks))


def color_counts(contexts: torch.Tensor, n_colors: int) -> torch.Tensor:
    """How often each color occurs in each context: [n, C] int64 -> [n, m] float64."""
    return F.one_hot(contexts, n_colors).sum(1).double()


def posterior_mean_predictor(contexts: torch.Tensor, n_colors: int, alpha: float) -> torch.Tensor:
    """S, the Bayes-optimal generalizer: (n_k + alpha) / (C + m alpha), the mean of the posterior. [n, C] -> [n, m].

    This and sample_urns are the two faces of the prior: whoever changes one changes the other.
    """
    return (color_counts(contexts, n_colors) + alpha) / (contexts.shape[1] + n_colors * alpha)


def sample_sequences(urns: torch.Tensor, n: int, length: int, generator: torch.Generator):
    """n sequences of `length` draws [n, length] int64, each from its own urn [n], uniform over the urns [D, m]."""
    urn = torch.randint(len(urns), (n,), generator=generator, device=generator.device)
    cumulative = urns.to(generator.device).cumsum(1)
    upper = (cumulative / cumulative[:, -1:])[urn, None, :-1]  # [n, 1, m - 1]; impossible colors have no width
    uniform = torch.rand(n, length, 1, generator=generator, device=generator.device, dtype=torch.float64)
    return (uniform >= upper).sum(-1), urn


# ==== Embeddings ======================================================================================================


def draw_codes(config: Config, n: int, generator: torch.Generator) -> torch.Tensor:
    """Random codes of n sequences: [n, m, d_model] float32 (gaussian) or [n, m] int64 (permutation, fixed)."""
    m, device = config.n_colors, generator.device
    if config.embedding == "gaussian":
        return torch.randn(n, m, config.d_model, generator=generator, device=device)
    if config.embedding == "permutation":
        return torch.rand(n, m, generator=generator, device=device).argsort(1)
    return torch.arange(m, device=device).expand(n, -1)


class Embeddings(nn.Module):
    """The embedding matrix [m, d_model] of every sequence, made from its code.

    gaussian: the code is the matrix itself, independent N(0, 1) entries, never trained (Huang, Zelikman, Chen, Wu,
    Valiant & Liang 2023, "Lexinvariant Language Models"). permutation: the code orders the rows of one learned table.
    fixed: one learned table for all sequences, the ordinary Transformer.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.mode = config.embedding
        if self.mode != "gaussian":
            self.table = nn.Parameter(torch.randn(config.n_colors, config.d_model))

    def forward(self, codes: torch.Tensor) -> torch.Tensor:
        return codes if self.mode == "gaussian" else F.embedding(codes, self.table)


# ==== Decoder =========================================================================================================


class Block(nn.Module):
    """Pre-LayerNorm Transformer block without biases: causal attention, then a GELU MLP. [T, B, d] -> [T, B, d]."""

    def __init__(self, config: Config):
        super().__init__()
        d = config.d_model
        self.n_heads = config.n_heads
        self.attention_norm = nn.LayerNorm(d, bias=False)
        self.qkv = nn.Linear(d, 3 * d, bias=False)
        self.attention_out = nn.Linear(d, d, bias=False)
        self.mlp_norm = nn.LayerNorm(d, bias=False)
        self.mlp_in = nn.Linear(d, 4 * d, bias=False)
        self.mlp_out = nn.Linear(4 * d, d, bias=False)

    def attention(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        # With so few draws the copies and the many small matrix products are what attention costs. Draws come first and
        # every head has its query, key and value together, so the heads of all sequences are one batch without a copy;
        # scores are [B * heads, key, query], with the softmax over a leading axis, which is what small products like.
        T, B, d = x.shape
        heads = self.qkv(x).view(T, B * self.n_heads, 3, d // self.n_heads)
        q, k, v = (part.transpose(0, 1) for part in heads.unbind(2))  # [B * heads, T, d / heads] each
        scores = torch.add(mask, k @ q.mT, alpha=(d // self.n_heads) ** -0.5)
        weights = scores.movedim(1, 0).softmax(0).movedim(0, 1)
        return self.attention_out((weights.mT @ v).transpose(0, 1).reshape(T, B, d))

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.attention_norm(x), mask)
        return x + self.mlp_out(F.gelu(self.mlp_in(self.mlp_norm(x))))


class Decoder(nn.Module):
    """GPT decoder that reads and writes through the embedding matrix of each sequence.

    decoder(tokens [B, T] int64, embeddings [B, m, d_model]) -> logits [B, T, m] of the next draw, T <= seq_len.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.positions = nn.Parameter(torch.randn(config.seq_len, config.d_model))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = nn.LayerNorm(config.d_model, bias=False)
        # The stream still carries the last draw's embedding, which scores sqrt(d_model) against itself: with weights of
        # one the first losses are far above log m, and thousands of steps go into scale.
        nn.init.constant_(self.norm.weight, config.d_model**-0.5)
        # mask[key, query]: a draw sees itself and the draws before it.
        mask = torch.full((config.seq_len, config.seq_len), -math.inf).tril(-1)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, tokens: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        T, d = tokens.shape[1], embeddings.shape[2]
        x = embeddings.transpose(0, 1).gather(0, tokens.T[..., None].expand(-1, -1, d))  # [T, B, d]
        x = x + self.positions[:T, None]
        for block in self.blocks:
            x = block(x, self.mask[:T, :T])
        return self.norm(x).transpose(0, 1) @ embeddings.mT / math.sqrt(d)


class Model(nn.Module):
    """What is trained: embeddings and decoder. (tokens [B, T], codes of B sequences) -> logits [B, T, m]."""

    def __init__(self, config: Config):
        super().__init__()
        self.embeddings = Embeddings(config)
        self.decoder = Decoder(config)

    def forward(self, tokens: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        return self.decoder(tokens, self.embeddings(codes))


# ==== Ideal predictors ================================================================================================


def counting_predictor(contexts: torch.Tensor, n_colors: int) -> torch.Tensor:
    """G, the requested generalizer: relative frequencies n_k / C. [n, C] -> [n, m] float64."""
    return color_counts(contexts, n_colors) / contexts.shape[1]


def bayes_over_urns(counts: torch.Tensor, urns: torch.Tensor) -> torch.Tensor:
    """sum_d w_d U_d with w_d ~ prod_k U_dk^n_k: color counts [n, m], urns [D, m] -> next-draw distributions [n, m].

    Counts that no urn can produce keep the uniform prior.
    """
    urns = urns.double()
    log_urns = torch.where(urns > 0, urns, 1).log().T
    predictions = []
    for block in counts.split(max(1, 2**23 // len(urns))):  # bounds the memory of the [block, D] likelihoods
        log_likelihood = (block @ log_urns).masked_fill(block @ (urns == 0).double().T > 0, -math.inf)
        possible = log_likelihood.isfinite().any(1, keepdim=True)
        predictions.append(torch.where(possible, log_likelihood, 0).softmax(1) @ urns)
    return torch.cat(predictions)


def memorizing_predictor(contexts: torch.Tensor, urns: torch.Tensor) -> torch.Tensor:
    """M, Bayes over the urns [D, m] with a uniform prior. [n, C] -> [n, m]."""
    return bayes_over_urns(color_counts(contexts, urns.shape[1]), urns)


def orbit_memorizing_predictor(contexts: torch.Tensor, urns: torch.Tensor) -> torch.Tensor:
    """O, Bayes over all D m! relabelled urns: the best that any lex-invariant learner can do. [n, C] -> [n, m].

    Renaming the colors of a context renames those of the prediction: only sorted counts are computed.
    """
    relabellings = torch.tensor(list(itertools.permutations(range(urns.shape[1]))))
    counts, order = color_counts(contexts, urns.shape[1]).sort(dim=1, stable=True)
    distinct, which = counts.unique(dim=0, return_inverse=True)
    return bayes_over_urns(distinct, urns[:, relabellings].flatten(0, 1))[which].gather(1, order.argsort(1))


def best_counting_a(urns: torch.Tensor, length: int) -> float:
    """The a of least expected KL(M || (n_k + a) / (C + m a)) over contexts of C = length draws from the urns [D, m].

    But for a constant that is log(C + m a) - sum_j w_j log(j + a), where w_j is the probability that the next draw has
    a color that occurs j times in the context. It falls while the sum over j of w_j (C - m j) / (j + a) is positive,
    which changes sign once because C - m j does (1 / (j + a) is totally positive). The search is from 1e-9, where it
    ends if no smoothing is best (every urn has a single color), to 1e9 (the best a is infinite: all urns are uniform).
    """
    urns, j, m = urns.double(), torch.arange(length + 1, dtype=torch.float64), urns.shape[1]
    binomial = torch.distributions.Binomial(length, urns[..., None], validate_args=False)  # n_k by urn and color
    w = (urns[..., None] * binomial.log_prob(j).exp()).sum(1).mean(0)
    low, high = 1e-9, 1e9
    for _ in range(100):
        a = math.sqrt(low * high)
        falling = (w * (length - m * j) / (j + a)).sum() > 0
        low, high = (a, high) if falling else (low, a)
    return a


def best_counting_predictor(contexts: torch.Tensor, urns: torch.Tensor) -> torch.Tensor:
    """R, the best counting rule: (n_k + a) / (C + m a) with the best a for these urns [D, m]. [n, C] -> [n, m]."""
    C, m = contexts.shape[1], urns.shape[1]
    a = best_counting_a(urns, C)
    return (color_counts(contexts, m) + a) / (C + m * a)


# ==== Divergences and test bed ========================================================================================


def kl_divergence(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """KL(p || q) in nats of each row, [n, m], [n, m] -> [n] float64; 0 log 0 = 0, infinite where q = 0 < p."""
    p, q = p.double(), q.double()
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(-1).clamp(min=0)


def relative_divergence(kl_to_g: float, kl_to_m: float) -> float:
    """kl_to_g / (kl_to_g + kl_to_m): 0 behaves like the generalizer, 1 like the memorizer, 0.5 when equally far."""
    if kl_to_g == kl_to_m:
        return 0.5
    return 1.0 if kl_to_g == math.inf else float(kl_to_g / (kl_to_g + kl_to_m))


def coordinate(kl_a_p: float, kl_b_p: float, kl_a_b: float, kl_b_a: float) -> float | None:
    """Where P stands between predictors A and B, by the expected KL(A || P), KL(B || P), KL(A || B), KL(B || A): 0 at
    A, 1 at B, t at the normalized A^(1 - t) B^t. None where A equals B up to rounding or one of them is infinite."""
    apart = kl_a_b + kl_b_a
    if apart < 1e-12 or not math.isfinite(apart + kl_a_p + kl_b_p):
        return None
    return (kl_a_p - kl_b_p + kl_b_a) / apart


def group_mean(values: torch.Tensor, groups: torch.Tensor) -> torch.Tensor:
    """Every row of values [n, m] replaced by the mean of its group: those whose rows of groups [n, ..] are equal."""
    _, group, sizes = groups.unique(dim=0, return_inverse=True, return_counts=True)
    sums = values.new_zeros(len(sizes), values.shape[1]).index_add(0, group, values)
    return (sums / sizes[:, None])[group]


def mixture_weights(P: torch.Tensor, components: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Convex combination of the components [J, n, m] nearest to P [n, m]: coefficients [J] and distance, the mean
    of KL(P || combination) in nats over the contexts with these weights [n].

    min sum(x) - E log(x @ components) over x >= 0 has the same solution, which sums to one. Its quadratic models are
    solved on every face of x >= 0: sequential quadratic programming (Kim, Carbonetto, Stephens & Anitescu 2020). By
    convexity the largest component of the gradient bounds the distance from the minimum. No coefficient is below 1e-10,
    which costs less than 1e-9 nats and keeps the ratios finite where a component is almost zero.
    """
    mass, floor = (weights[:, None] * P).flatten(), 1e-10
    Q = components.flatten(1)[:, mass > 0]
    Q, mass = (1 - len(Q) * floor) * Q + floor * Q.sum(0), mass[mass > 0] / mass.sum()
    x, gap = torch.full((len(Q),), 1 / len(Q), dtype=torch.float64), math.inf
    faces = [list(face) for k in range(len(Q)) for face in itertools.combinations(range(len(Q)), k + 1)]
    for _ in range(100):
        ratio = Q / (x @ Q)
        g, H = ratio @ mass, (ratio * mass) @ ratio.T
        last, gap = gap, g.max().item() - 1  # nats above the minimum, at most
        if gap <= 1e-12 or last / 2 < gap < 5e-9:  # as near as rounding allows
            break
        scale, models = H.diagonal().rsqrt(), []  # to the unit diagonal: entries differ by many orders of magnitude
        H, linear = scale[:, None] * H * scale, scale * (2 * g - 1)
        for face in faces:
            y = torch.zeros_like(x)
            y[face] = torch.linalg.lstsq(H[face][:, face], linear[face], driver="gelsd").solution.clamp(min=0)
            models.append((y @ H @ y / 2 - linear @ y, scale * y))
        direction = min(models, key=lambda model: model[0])[1] - x

        def objective(step, x=x, direction=direction):
            return (x + step * direction).sum() - mass @ ((x + step * direction) @ Q).log()

        step = 1.0
        while step > 1e-12 and not objective(step) <= objective(0) + step / 100 * ((1 - g) @ direction):
            step /= 2
        if step <= 1e-12:  # no progress
            break
        x = x + step * direction
        x /= x.sum()
    x = (1 - len(Q) * floor) * x + floor
    kl = kl_divergence(P, (components * x[:, None, None]).sum(0))
    return x, (weights @ torch.where(weights > 0, kl, 0)).item()


class TestBed:
    """What the models of one (D, seed) are measured on: contexts [n, C], the ideal predictions [n, C, m] after each of
    their draws, and for every kind of expectation the contexts' weights [n], which sum to one:

    ""             n_test contexts sampled from the D urns, as requested
    "fresh_"       n_test contexts sampled from urns of the same prior that no model has seen
    "exact_"       every context, weighted by its probability under the mixture of the D urns
    "exact_fresh_" every context, weighted by its probability under the prior: draw by draw, S of the draws before
    """

    EXACT_LIMIT = 131072  # exact expectations enumerate all m^C contexts up to this many
    EMBEDDING_DRAWS = 16  # of gaussian embeddings, for every context, that embedding noise is measured with
    STRATEGIES = {name: name for name in ("posterior_mean", "best_counting", "orbit")} | {"memorizing": "m"}  # kl_to_..

    def __init__(self, config: Config, n_tasks: int, seed: int):
        m, C, n, alpha = config.n_colors, config.seq_len - 1, config.n_test, config.alpha
        self.urns = sample_urns(n_tasks, m, alpha, stream(seed, "urns"))
        fresh_urns = sample_urns(n, m, alpha, stream(seed, n_tasks, "fresh urns"))
        test = sample_sequences(self.urns, n, C + 1, stream(seed, n_tasks, "test sequences"))[0][:, :C]
        fresh = sample_sequences(fresh_urns, n, C + 1, stream(seed, n_tasks, "fresh sequences"))[0][:, :C]
        exact = torch.cartesian_prod(*[torch.arange(m)] * C).view(-1, C) if m**C <= self.EXACT_LIMIT else test[:0]
        self.contexts, self.exact = torch.cat([test, fresh, exact]), exact

        ideals = []
        for length in range(1, C + 1):
            # Ideal predictors see only how often each color occurs: one computation for all orders of the same draws.
            draws = self.contexts[:, :length].sort(1).values
            distinct, which = draws.unique(dim=0, return_inverse=True)
            predictions = {
                "g": counting_predictor(distinct, m),
                "m": memorizing_predictor(distinct, self.urns),
                "posterior_mean": posterior_mean_predictor(distinct, m, alpha),
                "best_counting": best_counting_predictor(distinct, self.urns),  # the best of this length
                "orbit": orbit_memorizing_predictor(distinct, self.urns),
            }
            ideals.append({name: prediction[which] for name, prediction in predictions.items()})
        self.ideals = {name: torch.stack([ideal[name] for ideal in ideals], 1) for name in ideals[0]}

        sampled = torch.full((n,), 1 / n, dtype=torch.float64)
        self.weights = {"": F.pad(sampled, (0, n + len(exact))), "fresh_": F.pad(sampled, (n, len(exact)))}
        if len(exact):
            likelihood = (self.urns ** color_counts(exact, m)[:, None]).prod(2).mean(1)
            S = self.ideals["posterior_mean"][2 * n :, :-1].gather(2, exact[:, 1:, None])[..., 0].prod(1)
            first = posterior_mean_predictor(exact[:, :0], m, alpha).gather(1, exact[:, :1])[:, 0]
            self.weights["exact_"] = F.pad(likelihood, (2 * n, 0))
            self.weights["exact_fresh_"] = F.pad(first * S, (2 * n, 0))
        self.best = "exact_" if len(exact) else ""

        self.reference = {}
        for name, key in self.STRATEGIES.items():
            P = self.ideals[key]
            loss = -torch.xlogy(self.ideals["m"], P).sum(2).mean(1)  # training draws follow M
            self.reference[name] = self.scores(P[:, -1], self.best) | self.by_length(P)
            self.reference[name]["expected_loss"] = self.mean(loss, self.best)

    def mean(self, values: torch.Tensor, expectation: str) -> float:
        """Expectation of values [n]. Contexts that are too rare to matter do not count even where underflow made their
        value infinite."""
        weights = self.weights[expectation]
        return (weights @ torch.where(weights > 1e-100, values, 0)).item()

    def scores(self, P: torch.Tensor, expectation: str) -> dict[str, float]:
        """The divergences in nats of distributions P [n, m] after all draws, and what follows from them."""
        ideals = {name: ideal[:, -1] for name, ideal in self.ideals.items()}
        kl = {f"kl_to_{name}": self.mean(kl_divergence(ideal, P), expectation) for name, ideal in ideals.items()}
        if "fresh" in expectation:
            return {key: kl[key] for key in ("kl_to_posterior_mean", "kl_to_m")}

        def symmetrized(p, q):
            return self.mean((kl_divergence(p, q) + kl_divergence(q, p)) / 2, expectation)

        S, M, r_and_o = ideals["posterior_mean"], ideals["m"], (ideals["best_counting"], ideals["orbit"])
        r = (symmetrized(P, S) - symmetrized(P, M)) / (symmetrized(S, M) or math.inf)
        apart = (self.mean(kl_divergence(*pair), expectation) for pair in itertools.permutations(r_and_o))
        return kl | {
            "coordinate_r_o": coordinate(kl["kl_to_best_counting"], kl["kl_to_orbit"], *apart),
            "relative_divergence": relative_divergence(kl["kl_to_g"], kl["kl_to_m"]),
            "relative_divergence_posterior_mean": relative_divergence(kl["kl_to_posterior_mean"], kl["kl_to_m"]),
            "d_rel": min(max((r + 1) / 2, 0.0), 1.0),  # Wurgaft et al. 2025
        }

    def by_length(self, P: torch.Tensor) -> dict[str, list[float]]:
        """KL in nats from the strategies to P [n, C, m] after 1, 2, .. C draws."""
        kl = {f"kl_to_{key}_by_length": kl_divergence(self.ideals[key], P).T for key in self.STRATEGIES.values()}
        return {key: [self.mean(values, self.best) for values in divergences] for key, divergences in kl.items()}

    def measure(self, P: torch.Tensor) -> dict:
        """Every number of a model with the distributions P [n, C, m] after each draw of self.contexts."""
        last = P[:, -1]
        numbers = {prefix + k: v for prefix in self.weights for k, v in self.scores(last, prefix).items()}
        numbers["coordinate_r_o"] = numbers.pop(f"{self.best}coordinate_r_o")
        strategies = torch.stack([self.ideals[key][:, -1] for key in self.STRATEGIES.values()])
        coefficients, residual = mixture_weights(last, strategies, self.weights[self.best])
        weights = zip(self.STRATEGIES, coefficients.tolist(), strict=True)
        numbers |= {f"{self.best}weight_{name}": x for name, x in weights}
        numbers[f"{self.best}mixture_residual"] = residual
        return numbers | {self.best + key: values for key, values in self.by_length(P).items()}

    def decompose(self, log_p: torch.Tensor, embedding: str) -> dict:
        """What a model's distance from the ideal predictors is made of, in nats, by its log-probabilities log_p of the
        next draw after every context under K draws of the embeddings E, [K, m^C, m].

        With Pbar the geometric mean of P_E over E and Z the sum by which it is normalized, KL(A || P_E) has the mean
        KL(A || Pbar) - log Z for every A: -log Z is embedding noise. The same for Pbar over the orders of a context's
        draws, which matter to no ideal A, gives order noise, and bias is what is left: exactly, mean KL(A || P_E) =
        bias to A + order noise + embedding noise. As R and O have the same noise, it does not move the coordinate.

        K draws leave about 1 / K of the embedding noise out, as a variance over K draws does. It is in the order noise,
        or in the bias where a context has one order only. permutation needs one code: the answer under another one is
        the renamed answer to the renamed context. fixed has no embedding noise.

        bias_predictions is what is left without noise, to six digits: a distribution for every multiset of draws, in
        the lexicographic order of contexts with their draws sorted. Other rivals than R can be compared with it.
        """
        mean = log_p.mean(0)
        if embedding == "permutation":
            n, m = mean.shape
            draws = torch.cat([self.exact.repeat_interleave(m, 0), torch.arange(m).repeat(n)[:, None]], 1)
            first = (draws[:, :, None] == draws[:, None]).byte().argmax(2)  # where a color came first, not which it is
            mean = group_mean(mean.view(-1, 1), first).view(n, m)
        draws = self.exact.sort(1).values
        by_counts = group_mean(mean.log_softmax(1), draws)
        ascending = (self.exact == draws).all(1)
        others = len(self.contexts) - len(self.exact)
        weights, P = self.weights["exact_"][others:], F.pad(by_counts.softmax(1), (0, 0, others, 0))
        scores = self.scores(P, "exact_")
        return {
            "exact_embedding_noise": 0.0 if embedding == "fixed" else -(weights @ mean.logsumexp(1)).item(),
            "exact_order_noise": -(weights @ by_counts.logsumexp(1)).item(),
            **{f"exact_bias_to_{name}": scores[f"kl_to_{name}"] for name in self.ideals},
            "bias_coordinate_r_o": scores["coordinate_r_o"],
            "bias_predictions": [[float(f"{x:.6g}") for x in row] for row in by_counts[ascending].softmax(1).tolist()],
        }


# ==== Training ========================================================================================================


EVAL_BATCH = {"cpu": 512, "mps": 512, "cuda": 4096}  # contexts per forward pass of the evaluation


def next_draw_loss(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Cross-entropy in nats, mean over all next-draw positions: logits [B, T, m], tokens [B, T + 1] -> scalar."""
    return -logits.float().log_softmax(-1).gather(-1, tokens[:, 1:, None]).mean()


@dataclass(frozen=True, kw_only=True, eq=False)
class UrnTrajectory(Trajectory):
    """One model of D urns and one seed.

    The data do not depend on N. Where the learning rate does not either (schedule constant), the state after N updates
    is the model trained for N steps, and one trajectory serves every N; else every N is trained on its own.
    """

    n_tasks: int

    # ---- Learning rate, loss and update ------------------------------------------------------------------------------

    def learning_rate(self, update: int, updates: int) -> float:
        """Rate of update `update` (from 0) for all parameters. A schedule has the length `updates`: max(config.steps)
        would be that of another model. Warm-up ends at the full rate, from which the updates after it decay."""
        warmup = self.config.warmup
        if update < warmup:
            return self.config.lr * (update + 1) / warmup
        done = (update - warmup) / (updates - warmup)
        decay = {"constant": 1, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
        return self.config.lr * decay[self.config.schedule]

    def loss(self, model: Model, tokens: torch.Tensor, codes: torch.Tensor) -> tuple[torch.Tensor, dict]:
        """The objective, and what train_loss reports: another objective leaves the latter as it is."""
        loss = next_draw_loss(model(tokens[:, :-1], codes), tokens)
        return loss, {"loss": loss}

    def optimizer(self, params: dict[str, torch.Tensor], lr: float) -> torch.optim.Optimizer:
        return torch.optim.AdamW(params.values(), lr=lr, weight_decay=self.config.weight_decay, fused=True)

    # ---- What is trained ---------------------------------------------------------------------------------------------

    @cached_property
    def data(self) -> TestBed:
        return TestBed(self.config, self.n_tasks, self.seed)

    def model(self) -> Model:
        return Model(self.config)

    def batches(self, first: int, n: int, device: torch.device) -> dict[str, torch.Tensor]:
        """Fresh sequences, each from its own urn: tokens [n, B, seq_len] int64, codes [n, B, ..]."""
        chunk, sequences = first // n, n * self.config.batch_size
        draws, codes = self.stream("training sequences", chunk), self.stream("embeddings", chunk, device=device)
        tokens = sample_sequences(self.data.urns, sequences, self.config.seq_len, draws)[0]
        batches = {"tokens": tokens, "codes": draw_codes(self.config, sequences, codes)}
        return {name: values.unflatten(0, (n, -1)) for name, values in batches.items()}

    # ---- What is measured --------------------------------------------------------------------------------------------

    def observe(self, model: Model, update: int) -> dict[str, torch.Tensor]:
        """P: next-draw distributions [n, C, m] float64 after each draw of the test bed, each context with own codes.
        After the last update, if contexts are enumerated, also log_p: log-probabilities [K, m^C, m] after all draws,
        under the codes of P (fixed), those and others (gaussian) or the code 0, 1, .. (permutation)."""
        device = next(model.parameters()).device
        codes, exact = self.stream("evaluation embeddings", device=device), self.data.exact

        def logits(contexts, config=self.config):
            batches = contexts.split(EVAL_BATCH[device.type])
            return torch.cat([model(x.to(device), draw_codes(config, len(x), codes)).cpu().double() for x in batches])

        first = logits(self.data.contexts)
        if update < self.updates or not len(exact):
            return {"P": first.softmax(-1)}
        draws = [first[-len(exact) :, -1]]
        if self.config.embedding == "gaussian":
            draws += [logits(exact)[:, -1] for _ in range(TestBed.EMBEDDING_DRAWS - 1)]
        if self.config.embedding == "permutation":
            draws = [logits(exact, replace(self.config, embedding="fixed"))[:, -1]]
        return {"P": first.softmax(-1), "log_p": torch.stack(draws).log_softmax(-1)}

    def measure(self, observed: dict, update: int, recent: dict[str, list[float]], points: list[dict]) -> dict:
        """Every number of a model with these predictions, by length only for cells, and the mean training loss of the
        last 100 steps."""
        numbers = {"loss": math.fsum(recent["loss"]) / len(recent["loss"]), **self.data.measure(observed["P"])}
        if update not in self.cells:
            numbers = {key: value for key, value in numbers.items() if not key.endswith("_by_length")}
        if "log_p" in observed:
            numbers |= self.data.decompose(observed["log_p"], self.config.embedding)
        return numbers

    # ---- What is reported --------------------------------------------------------------------------------------------

    def cell(self, points: list[dict]) -> dict:
        """The numbers of the last point, and what the ideal predictors would score in the model's place."""
        numbers = {key: value for key, value in points[-1].items() if key != "bias_predictions"}
        place = {"n_tasks": self.n_tasks, "n_steps": numbers.pop("step"), "train_loss": numbers.pop("loss")}
        return place | numbers | {"reference": self.data.reference}

    def extras(self, points: list[dict]) -> dict:
        told = {"n_tasks": self.n_tasks, "n_steps": list(self.cells), "urns": self.data.urns.tolist()}
        return told | {"best_counting_a": best_counting_a(self.data.urns, self.config.seq_len - 1)}


def plan(config: Config) -> list[UrnTrajectory]:
    """One trajectory per (D, seed), measured at every N and, for the curves, at 100, 200, 300, 500, 1000, .. steps."""
    last = max(config.steps)
    curve = tuple(k * 10**e for e in range(2, 10) for k in (1, 2, 3, 5) if k * 10**e < last)
    return [
        UrnTrajectory(
            config=config,
            name=f"D={n_tasks}, seed={seed}",
            seed=seed,
            n_tasks=n_tasks,
            cells={N: f"D{n_tasks}_N{N}" for N in config.steps},
            streams=(seed, n_tasks),
            measured=curve,
            shape="decoder",
        )
        for n_tasks in config.tasks
        for seed in range(config.seed, config.seed + config.seeds)
    ]


def headlines(config: Config) -> tuple[str, ...]:
    """The numbers of a cell that final_info.json has: the exact one only where contexts can be enumerated."""
    exact = ("exact_relative_divergence",) if config.n_colors ** (config.seq_len - 1) <= TestBed.EXACT_LIMIT else ()
    sampled = ("kl_to_g", "kl_to_m", "relative_divergence", "relative_divergence_posterior_mean")
    return (*sampled, *exact, "coordinate_r_o", "train_loss")


# What the headline numbers are measured with: all_results.json records a hash of the source of exactly these.
YARDSTICK = (sample_urns, sample_sequences, color_counts, counting_predictor, posterior_mean_predictor)
YARDSTICK += (bayes_over_urns, memorizing_predictor, orbit_memorizing_predictor, best_counting_a)
YARDSTICK += (best_counting_predictor, kl_divergence, relative_divergence, coordinate, group_mean, mixture_weights)
YARDSTICK += (TestBed, next_draw_loss, UrnTrajectory.observe, UrnTrajectory.measure, UrnTrajectory.cell)

# ==== Main ============================================================================================================

STUDY = Study(Config, plan, headlines, YARDSTICK)


def main(argv: list[str] | None = None) -> int:
    """Run the study; returns the exit status: 0 complete, 1 failed, 2 bad input, 130 or 143 interrupted."""
    return run_study(STUDY, argv)


if __name__ == "__main__":
    sys.exit(main())
