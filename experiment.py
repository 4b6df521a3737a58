#!/usr/bin/env python3
"""Balls & Urns under full lex-invariance: does a small Transformer generalize or memorize?

Every sequence shows draws from one of D urns. In the default mode every sequence also gets its own random token
embeddings, so that nothing about a color can be remembered from one sequence to the next. For every cell of the grid
D (urns) x N (training steps) the script measures how far the model's next-draw distribution is from ideal
generalizers and memorizers, and writes `final_info.json` and `all_results.json` to `--out_dir`.

    python experiment.py --out_dir=run_1
"""

import argparse
import contextlib
import hashlib
import inspect
import io
import itertools
import json
import math
import os
import platform
import re
import signal
import sys
import threading
import time
import traceback
import warnings
from collections import deque
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import MISSING, asdict, dataclass, fields
from datetime import timedelta
from functools import cached_property, partial
from numbers import Real
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

import numpy as np
import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from tqdm import tqdm

try:
    import fcntl
except ImportError:  # Windows: run folders are not locked
    fcntl = None

# ==== Configuration ===================================================================================================


class UserError(ValueError):
    """Bad input: one line for standard error that names the flag, its value and what is allowed; exit status 2."""


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
    lr: float = 1e-4  # AdamW learning rate, constant
    weight_decay: float = 0.01  # AdamW weight decay
    batch_size: int = 64  # fresh sequences per training step
    n_test: int = 256  # sampled test sequences per cell
    precision: str = "float32"  # matrix products in float32, tf32 (CUDA only) or bf16
    device: str = "auto"  # auto (CUDA, else Apple MPS, else CPU), cpu, cuda or mps

    def __post_init__(self):
        def require(ok: bool, flag: str, allowed: str):
            if not ok:
                value = getattr(self, flag)
                shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
                raise UserError(f"--{flag} {shown}: must be {allowed}")

        for flag in ("tasks", "steps"):
            values = tuple(getattr(self, flag))
            object.__setattr__(self, flag, values)
            different = len(set(values)) == len(values) > 0
            require(different and min(values) >= 1, flag, "one or more different whole numbers of at least 1")
        for flag in ("seeds", "n_layers", "n_heads", "d_model", "batch_size", "n_test"):
            require(getattr(self, flag) >= 1, flag, "at least 1")
        for flag in ("lr", "weight_decay"):
            require(0 <= getattr(self, flag) < math.inf, flag, "finite and not negative")
        require(2 <= self.n_colors <= 8, "n_colors", "2 to 8 (predictor O sums over all n_colors! relabellings)")
        require(self.seq_len >= 2, "seq_len", "at least 2")
        require(self.seed >= 0, "seed", "at least 0")
        require(1e-6 <= self.alpha <= 1e6, "alpha", "1e-6 to 1e6")
        require(self.d_model % self.n_heads == 0, "d_model", f"divisible by --n_heads {self.n_heads}")
        for flag, allowed in {
            "embedding": ("gaussian", "permutation", "fixed"),
            "precision": ("float32", "tf32", "bf16"),
            "device": ("auto", "cpu", "cuda", "mps"),
        }.items():
            require(getattr(self, flag) in allowed, flag, " or ".join(allowed))
        there = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
        require(there.get(self.device, lambda: True)(), "device", "a device that this machine has; auto picks one")


def stream(*name, device="cpu") -> torch.Generator:
    """Generator of the random stream with this name, e.g. stream(seed, n_tasks, "draws", chunk).

    All randomness comes from named streams, so no number depends on what else ran before or beside it.
    """
    digest = hashlib.sha256(repr(name).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little"))


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


class Embeddings(nn.Module):
    """The embedding matrix [m, d_model] of every sequence, made from a random code that is drawn outside the model.

    gaussian: the code is the matrix itself, independent N(0, 1) entries, never trained (Huang, Zelikman, Chen, Wu,
    Valiant & Liang 2023, "Lexinvariant Language Models"). permutation: the code orders the rows of one learned table.
    fixed: one learned table for all sequences, the ordinary Transformer.
    """

    def __init__(self, config: Config):
        super().__init__()
        self.mode, self.n_colors, self.d_model = config.embedding, config.n_colors, config.d_model
        if self.mode != "gaussian":
            self.table = nn.Parameter(torch.randn(config.n_colors, config.d_model))

    def draw(self, n: int, generator: torch.Generator) -> torch.Tensor:
        """Codes of n sequences: [n, m, d_model] float32 (gaussian) or [n, m] int64 (permutation, fixed)."""
        device = generator.device
        if self.mode == "gaussian":
            return torch.randn(n, self.n_colors, self.d_model, generator=generator, device=device)
        if self.mode == "permutation":
            return torch.rand(n, self.n_colors, generator=generator, device=device).argsort(1)
        return torch.arange(self.n_colors, device=device).expand(n, -1)

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


# ==== Divergences and evaluation ======================================================================================


def kl_divergence(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """KL(p || q) in nats of each row, [n, m], [n, m] -> [n] float64; 0 log 0 = 0, infinite where q = 0 < p."""
    p, q = p.double(), q.double()
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum(-1).clamp(min=0)


def relative_divergence(kl_to_g: float, kl_to_m: float) -> float:
    """kl_to_g / (kl_to_g + kl_to_m): 0 behaves like the generalizer, 1 like the memorizer, 0.5 when equally far."""
    if kl_to_g == kl_to_m:
        return 0.5
    return 1.0 if kl_to_g == math.inf else float(kl_to_g / (kl_to_g + kl_to_m))


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
    x = torch.full((len(Q),), 1 / len(Q), dtype=torch.float64)
    faces = [list(face) for k in range(len(Q)) for face in itertools.combinations(range(len(Q)), k + 1)]
    for _ in range(100):
        ratio = Q / (x @ Q)
        g, H = ratio @ mass, (ratio * mass) @ ratio.T
        if g.max() <= 1 + 1e-12:  # nats above the minimum, at most
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
        if step <= 1e-12:  # no progress: as near as rounding allows
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
    STRATEGIES = {"posterior_mean": "posterior_mean", "orbit": "orbit", "memorizing": "m"}  # name: as in kl_to_...

    def __init__(self, config: Config, n_tasks: int, seed: int):
        m, C, n, alpha = config.n_colors, config.seq_len - 1, config.n_test, config.alpha
        self.urns = sample_urns(n_tasks, m, alpha, stream(seed, "urns"))
        fresh_urns = sample_urns(n, m, alpha, stream(seed, n_tasks, "fresh urns"))
        test = sample_sequences(self.urns, n, C + 1, stream(seed, n_tasks, "test sequences"))[0][:, :C]
        fresh = sample_sequences(fresh_urns, n, C + 1, stream(seed, n_tasks, "fresh sequences"))[0][:, :C]
        exact = torch.cartesian_prod(*[torch.arange(m)] * C).view(-1, C) if m**C <= self.EXACT_LIMIT else test[:0]
        self.contexts = torch.cat([test, fresh, exact])

        ideals = []
        for length in range(1, C + 1):
            # Ideal predictors see only how often each color occurs: one computation for all orders of the same draws.
            draws = self.contexts[:, :length].sort(1).values
            distinct, which = draws.unique(dim=0, return_inverse=True)
            predictions = {
                "g": counting_predictor(distinct, m),
                "m": memorizing_predictor(distinct, self.urns),
                "posterior_mean": posterior_mean_predictor(distinct, m, alpha),
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
            self.reference[name] = self.scores(P, self.best) | self.by_length(P)
            self.reference[name]["expected_loss"] = self.mean(loss, self.best)

    def mean(self, values: torch.Tensor, expectation: str) -> float:
        """Expectation of values [n]. Contexts that are too rare to matter do not count even where underflow made their
        value infinite."""
        weights = self.weights[expectation]
        return (weights @ torch.where(weights > 1e-100, values, 0)).item()

    def scores(self, P: torch.Tensor, expectation: str) -> dict[str, float]:
        """The divergences in nats of distributions P [n, C, m] for the last draw, and what follows from them."""
        P, ideals = P[:, -1], {name: ideal[:, -1] for name, ideal in self.ideals.items()}
        kl = {f"kl_to_{name}": self.mean(kl_divergence(ideal, P), expectation) for name, ideal in ideals.items()}
        if "fresh" in expectation:
            return {key: kl[key] for key in ("kl_to_posterior_mean", "kl_to_m")}

        def symmetrized(p, q):
            return self.mean((kl_divergence(p, q) + kl_divergence(q, p)) / 2, expectation)

        S, M = ideals["posterior_mean"], ideals["m"]
        r = (symmetrized(P, S) - symmetrized(P, M)) / (symmetrized(S, M) or math.inf)
        return kl | {
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
        numbers = {prefix + k: v for prefix in self.weights for k, v in self.scores(P, prefix).items()}
        strategies = torch.stack([self.ideals[key][:, -1] for key in self.STRATEGIES.values()])
        coefficients, residual = mixture_weights(P[:, -1], strategies, self.weights[self.best])
        weights = zip(self.STRATEGIES, coefficients.tolist(), strict=True)
        numbers |= {f"{self.best}weight_{name}": x for name, x in weights}
        numbers[f"{self.best}mixture_residual"] = residual
        return numbers | {self.best + key: values for key, values in self.by_length(P).items()}


# ==== Training ========================================================================================================

CHUNK = 100  # training steps whose random draws are made at once: part of what defines the random streams
EVAL_BATCH = {"cpu": 512, "mps": 512, "cuda": 4096}  # contexts per forward pass of the evaluation
LOSS_WINDOW = 100  # steps that a reported training loss is the mean of
CHECKPOINT_SECONDS = 60


class NotFiniteError(RuntimeError):
    """The training loss stopped being finite; the message names D, seed and step."""


def learning_rate(config: Config, step: int, n_steps: int) -> float:
    """Learning rate of update `step` (from 0) of n_steps, for all parameters. Once it depends on n_steps, every N is
    trained on its own.

    The only place for a schedule, and n_steps its length: max(config.steps) would be that of another model.
    """
    return config.lr


def next_draw_loss(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    """Cross-entropy in nats, mean over all next-draw positions: logits [.., B, T, m], tokens [.., B, T + 1] -> [..]."""
    log_probs = logits.float().log_softmax(-1).gather(-1, tokens[..., 1:, None])
    return -log_probs.mean((-3, -2, -1))


class FaultsNameCells(contextlib.AbstractContextManager):
    """An exception raised while this lasts gets a note with the cells, at most four, of these trajectories: those of
    n_steps steps or, if not given, those that are to be measured next."""

    def __init__(self, trajectories: "list[Trajectory]", n_steps: int | None = None):
        self.trajectories, self.n_steps = trajectories, n_steps

    def __exit__(self, kind, error, traceback):
        if error is not None and not any(note.startswith("in cell") for note in getattr(error, "__notes__", [])):
            first = self.trajectories[0]
            measured = {point["step"] for point in first.points}
            left = [N for N in first.n_steps if N not in measured] or first.n_steps
            N = self.n_steps or min(left)
            cells = ", ".join(f"D{t.n_tasks}_N{N} (seed {t.seed})" for t in self.trajectories[:4])
            error.add_note(f"in cell {cells}, after step {first.step}")


class Trajectory:
    """One model of D urns and one seed: where it starts, its test bed, and what was measured on its way.

    The state after N steps is the model trained for N steps, so one trajectory serves every N in n_steps.
    """

    def __init__(self, config: Config, n_tasks: int, seed: int, n_steps: tuple[int, ...]):
        self.config, self.n_tasks, self.seed, self.n_steps = config, n_tasks, seed, n_steps
        self.name = f"D{n_tasks}_N{max(n_steps)}_s{seed}"
        self.step, self.state = 0, None  # where a checkpoint continues
        self.recent_losses: deque[float] = deque(maxlen=LOSS_WINDOW)
        self.points: list[dict] = []  # what was measured, in the order of the steps
        with torch.random.fork_rng(devices=[]), FaultsNameCells([self]):
            torch.manual_seed(self.stream("initial weights").initial_seed())
            self.model = Model(config)

    @cached_property
    def test_bed(self) -> TestBed:
        with FaultsNameCells([self]):
            return TestBed(self.config, self.n_tasks, self.seed)

    def require_finite(self, values: torch.Tensor, step: int) -> None:
        if not values.isfinite().all():
            raise NotFiniteError(f"the loss is not finite at D={self.n_tasks}, seed={self.seed}, step={step}")

    def stream(self, *purpose, device="cpu") -> torch.Generator:
        return stream(self.seed, self.n_tasks, *purpose, device=device)

    def measured_steps(self) -> list[int]:
        """Every N and, for the curves, 100, 200, 300, 500, 1000, ... up to the last N."""
        curve = (k * 10**e for e in range(2, 10) for k in (1, 2, 3, 5))
        return sorted({*self.n_steps, *(step for step in curve if step < max(self.n_steps))})

    def measure(self, predictions: torch.Tensor) -> None:
        """Add a point for the model as it is, from its predictions [n, C, m] on the contexts of the test bed."""
        with FaultsNameCells([self]):
            loss = math.fsum(self.recent_losses) / len(self.recent_losses)
            point = {"step": self.step, "loss": loss, **self.test_bed.measure(predictions)}
            strict_json(point)  # a value that the results cannot hold fails here, not after hours
            self.points.append(point)

    def cell(self, n_steps: int) -> dict:
        """The numbers of the model after n_steps steps, and what the ideal predictors would score in its place."""
        with FaultsNameCells([self], n_steps):
            numbers = next(dict(point) for point in self.points if point["step"] == n_steps)
            del numbers["step"]
            return {"train_loss": numbers.pop("loss"), **numbers, "reference": self.test_bed.reference}


def plan_trajectories(config: Config) -> list[Trajectory]:
    """All trajectories of the grid: one per (D, seed), or one per (D, seed, N) if the learning rate depends on N."""
    seeds = range(config.seed, config.seed + config.seeds)
    plan = [Trajectory(config, n_tasks, seed, config.steps) for n_tasks in config.tasks for seed in seeds]
    rates = {}
    for N in config.steps:
        with FaultsNameCells(plan, N):
            rates[N] = [learning_rate(config, step, N) for step in range(N)]
            for step, rate in enumerate(rates[N]):
                if not (isinstance(rate, Real) and 0 <= rate < math.inf):
                    raise ValueError(
                        f"learning_rate() must be a finite number of at least 0, is {rate!r} at step {step}"
                    )
    if all(rates[N] == rates[max(config.steps)][:N] for N in config.steps):
        return plan
    return [Trajectory(config, t.n_tasks, t.seed, (N,)) for t in plan for N in config.steps]


class Ensemble:
    """E trajectories trained in lockstep; none of them depends on what else is in the ensemble.

    On a GPU all models are one program: their parameters are stacked, and one update of all of them is captured as a
    CUDA graph and replayed without host synchronization. On a CPU every ensemble holds one model, and several run side
    by side.
    """

    def __init__(self, config: Config, trajectories: list[Trajectory], device: torch.device, stacked: bool):
        self.config, self.trajectories, self.device, self.stacked = config, trajectories, device, stacked
        self.step, self.last, self.lr = 0, max(trajectories[0].n_steps), config.lr
        models = [trajectory.model.to(device) for trajectory in trajectories]
        self.model, self.params = models[0], dict(models[0].named_parameters())
        if stacked:
            self.params, self.buffers = torch.func.stack_module_state(models)
        # AdamW on stacked parameters is AdamW on each of them; what goes by their shapes or norms must know that these
        # are [E, ..]. A graph reads its learning rate from the device.
        self.optimizer = torch.optim.AdamW(
            self.params.values(),
            lr=torch.tensor(config.lr, device=device) if device.type == "cuda" else config.lr,
            weight_decay=config.weight_decay,
            fused=True,
            capturable=device.type == "cuda",
        )
        self.tokens, self.codes = (draws.to(device) for draws in self.sample(0))
        self.chunk, self.ahead = 0, {}
        self.losses = torch.zeros(CHUNK, len(trajectories), device=device)
        self.cursor = torch.zeros(1, dtype=torch.int64, device=device)
        self.rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        self.graphed, self.graph, self.warm_up = device.type == "cuda", None, 3
        self.side = torch.cuda.Stream(device) if device.type == "cuda" else None

    def sample(self, chunk: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens [CHUNK, E, B, seq_len] and codes [CHUNK, E, B, ..] of the training steps from chunk * CHUNK on."""
        n, length = CHUNK * self.config.batch_size, self.config.seq_len
        tokens, codes = [], []
        for trajectory in self.trajectories:
            draws = trajectory.stream("training sequences", chunk)
            tokens.append(sample_sequences(trajectory.test_bed.urns, n, length, draws)[0])
            codes.append(self.model.embeddings.draw(n, trajectory.stream("embeddings", chunk, device=self.device)))
        return tuple(torch.stack([x.unflatten(0, (CHUNK, -1)) for x in draws], 1) for draws in (tokens, codes))

    def logits(self, tokens: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """tokens [E, n, T], codes [E, n, ..] -> logits [E, n, T, m]."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            if not self.stacked:
                return self.model(tokens[0], codes[0])[None]
            one_model = partial(torch.func.functional_call, self.model)
            each_model = torch.vmap(lambda params, *inputs: one_model(params, inputs), randomness="different")
            return each_model(self.params | self.buffers, tokens, codes)

    def update(self) -> None:
        """One training step of every model, on the batch under the cursor, without host synchronization."""
        tokens, codes = (draws.index_select(0, self.cursor)[0] for draws in (self.tokens, self.codes))
        losses = next_draw_loss(self.logits(tokens[..., :-1], codes), tokens)  # what train_loss reports
        objective = losses.sum()  # the models share no parameter: the gradient of the sum is every model's own
        self.optimizer.zero_grad(set_to_none=True)
        objective.backward()
        self.optimizer.step()
        self.losses.index_copy_(0, self.cursor, losses.detach()[None])
        self.cursor += 1

    def replay(self) -> None:
        """update() as a CUDA graph. The first ones run as they are: the graph needs what they allocate."""
        if self.warm_up:
            self.warm_up -= 1
            self.side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.side):
                self.update()
            torch.cuda.current_stream().wait_stream(self.side)
            return
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):  # records, and runs nothing
                self.update()
        self.graph.replay()

    def advance(self, n_steps: int, stop: threading.Event) -> torch.Tensor:
        """Train up to n_steps steps of one chunk, fewer if stop is set; their losses [steps, E] on the CPU."""
        chunk, start = divmod(self.step, CHUNK)
        if chunk != self.chunk:
            draws = self.ahead.pop(chunk, None) or self.sample(chunk)
            self.tokens.copy_(draws[0])
            self.codes.copy_(draws[1])
            self.chunk, draws = chunk, None
        self.cursor.fill_(start)
        first = self.step
        while self.step < first + n_steps and not stop.is_set():
            lr = learning_rate(self.config, self.step, self.last)
            if lr != self.lr:
                for group in self.optimizer.param_groups:
                    if isinstance(group["lr"], torch.Tensor):
                        group["lr"].fill_(lr)
                    else:  # a number is part of the graph: it is captured anew
                        group["lr"], self.graph, self.warm_up = lr, None, 3
                self.lr, self.rates = lr, [lr] * len(self.rates)
            self.replay() if self.graphed else self.update()
            self.step += 1
        if self.device.type == "cuda" and chunk + 1 not in self.ahead and (chunk + 1) * CHUNK < self.last:
            self.ahead = {chunk + 1: self.sample(chunk + 1)}  # drawn while the GPU works
        losses = self.losses[start : start + self.step - first].clone().cpu()
        if not losses.isfinite().all():
            step, member = (~losses.isfinite()).nonzero()[0].tolist()
            self.trajectories[member].require_finite(losses[step, member], first + step + 1)
        rates = [float(group["lr"]) for group in self.optimizer.param_groups]
        if not np.allclose(rates, self.rates, rtol=1e-6, atol=1e-30):  # tensors hold float32
            raise RuntimeError("a schedule belongs in learning_rate(): elsewhere nothing notices that it depends on N")
        return losses

    @torch.no_grad()
    def predict(self) -> torch.Tensor:
        """Next-draw distributions [E, n, C, m] float64 after each draw of the test beds, each with own embeddings."""
        generators = [t.stream("evaluation embeddings", device=self.device) for t in self.trajectories]
        predictions = []
        self.model.eval()
        for contexts in torch.stack([t.test_bed.contexts for t in self.trajectories]).split(
            EVAL_BATCH[self.device.type], 1
        ):
            codes = torch.stack([self.model.embeddings.draw(contexts.shape[1], g) for g in generators])
            predictions.append(self.logits(contexts.to(self.device), codes).cpu().double().softmax(-1))
        self.model.train()
        predictions = torch.cat(predictions, 1)
        for trajectory, own in zip(self.trajectories, predictions, strict=True):
            trajectory.require_finite(own, self.step)
        return predictions

    def states(self) -> list[dict[str, dict[str, torch.Tensor]]]:
        """Parameter and optimizer state of every member, by parameter name, on the CPU."""
        states = [{name: {} for name in self.params} for _ in self.trajectories]
        for name, p in self.params.items():
            for key, value in {"parameter": p, **self.optimizer.state[p]}.items():
                value = torch.as_tensor(value).detach().cpu()
                for member, state in enumerate(states):
                    per_member = self.stacked and value.shape == p.shape
                    state[name][key] = (value[member] if per_member else value).clone()
        return states

    @torch.no_grad()
    def restore(self) -> None:
        """Continue where the checkpoints of all members, of the same step, stopped."""
        self.step = self.trajectories[0].step
        states = [trajectory.state for trajectory in self.trajectories]
        for name, p in self.params.items():
            for key, first in states[0][name].items():
                per_member = self.stacked and first.shape == p.shape[1:]
                value = (torch.stack([state[name][key] for state in states]) if per_member else first).to(p.device)
                target = p if key == "parameter" else self.optimizer.state[p].setdefault(key, value)
                target.copy_(value)


def bytes_per_member(config: Config) -> int:
    """Generous estimate of one ensemble member's memory: weights and optimizer, chunks of draws, activations."""
    d, length = config.d_model, config.seq_len
    weights = 24 * (12 * config.n_layers * d * d + (length + config.n_colors) * d)
    draws = 3 * CHUNK * config.batch_size * (4 * config.n_colors * d + 8 * length)
    tokens = (config.n_layers * config.batch_size + EVAL_BATCH["cuda"]) * length
    return weights + draws + 4 * tokens * (40 * d + 8 * config.n_heads * length)


def plan_ensembles(config: Config, trajectories: list[Trajectory], device: torch.device) -> list[list[Trajectory]]:
    """Which trajectories train together: on a CPU each alone, on a GPU as many as fit that are at the same step."""
    if device.type != "cuda":
        return [[trajectory] for trajectory in trajectories]
    size = max(1, int(0.8 * torch.cuda.mem_get_info(device)[0] / bytes_per_member(config)))

    def stage(trajectory):
        return max(trajectory.n_steps), trajectory.step

    groups = [list(group) for _, group in itertools.groupby(sorted(trajectories, key=stage), stage)]
    if any(len(group) > size for group in groups):
        print(f"the GPU's memory holds {size} models at a time: training in groups", flush=True)
    return [group[i : i + size] for group in groups for i in range(0, len(group), size)]


def prepare_thread(device: torch.device) -> None:
    """One core and one device per thread: both are properties of a thread in PyTorch."""
    torch.set_num_threads(1)
    if device.type == "cuda":
        torch.cuda.set_device(device)


def train(config: Config, group: list[Trajectory], device: torch.device, run, progress, stop, failed) -> None:
    """Train a group of trajectories to their last N, or until stop is set; measure and checkpoint on the way, but not
    because another group has failed."""
    if stop.is_set() or group[0].step == max(group[0].n_steps):
        return
    measured, saved = group[0].measured_steps(), time.monotonic()
    members = ThreadPoolExecutor(min(len(group), cpu_count()), initializer=prepare_thread, initargs=(device,))
    with FaultsNameCells(group), members:
        list(members.map(lambda trajectory: trajectory.test_bed, group))  # built side by side
        ensemble = Ensemble(config, group, device, stacked=device.type == "cuda")
        if group[0].step:
            ensemble.restore()
        progress.start()
        goals = {*range(CHUNK, ensemble.last, CHUNK), *measured}
        for goal in sorted(goal for goal in goals if goal > ensemble.step):
            losses = ensemble.advance(goal - ensemble.step, stop).T.tolist()
            progress.update(losses)
            for trajectory, values in zip(group, losses, strict=True):
                trajectory.step = ensemble.step
                trajectory.recent_losses.extend(values)
            if failed.is_set():  # another group has: what was saved is enough
                return
            if ensemble.step == goal and goal in measured:
                list(members.map(Trajectory.measure, group, ensemble.predict()))
            if stop.is_set() or goal in group[0].n_steps or time.monotonic() - saved > CHECKPOINT_SECONDS:
                list(members.map(run.save, group, ensemble.states()))
                saved = time.monotonic()
            if stop.is_set():
                return


# ==== Run directory ===================================================================================================


class WriteError(Exception):
    """A file of the run could not be written; what was written before is intact."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write, flush and rename: a reader sees the old file or the new one, never a part. WriteError if it fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise WriteError(f"cannot write {path}: {error.strerror}") from None


def strict_json(value) -> bytes:
    """JSON in which NaN and infinity are null."""
    strict = json.loads(json.dumps(value), parse_constant=lambda constant: None)
    return (json.dumps(strict, indent=1) + "\n").encode()


class RunDirectory:
    """The folder of a run. While it trains: a fingerprint and a checkpoint per trajectory. At the end: the results."""

    def __init__(self, path: Path, config: Config, device: torch.device):
        self.path, self.config, self.checkpoints, self.lock = path, config, path / "checkpoint", None
        self.results = [path / "final_info.json", path / "all_results.json"]
        self.environment = environment(device)  # read now: a loop may edit the script while it runs
        own = {"config": asdict(config)} | {key: self.environment[key] for key in ("script_sha256", "device")}
        self.fingerprint = json.loads(strict_json(own))

    def found(self) -> dict | None:
        """Fingerprint of the run that the folder holds: {} if it cannot be told, None if there is no run."""
        try:
            if (self.checkpoints / "fingerprint.json").exists():
                return json.loads((self.checkpoints / "fingerprint.json").read_bytes())
            if self.results[1].exists():
                results = json.loads(self.results[1].read_bytes())
                return {"config": results["config"]} | {
                    k: results["environment"][k] for k in ("script_sha256", "device")
                }
        except (ValueError, KeyError, TypeError):
            return {}
        return {} if self.results[0].exists() else None

    def open(self, overwrite: bool) -> bool:
        """Lock the folder for this process. True if it holds this run complete; UserError if it holds another."""
        missing = []
        try:
            missing = [path for path in (self.path, *self.path.parents) if not path.exists()]
            if not missing and not self.path.is_dir():
                raise NotADirectoryError("is a file")
            self.path.mkdir(parents=True, exist_ok=True)
            if fcntl:
                self.lock = os.open(self.path, os.O_RDONLY)
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = self.found()
            if found not in (None, self.fingerprint) and not overwrite:
                raise UserError(
                    f"--out_dir {self.path}: holds another run ({self.changed(found)}); must be a new folder, "
                    "one of the same run, or come with --overwrite"
                )
            for folder in (self.path, self.checkpoints, self.path / "models"):
                self.remove(folder, ".*.json.*.tmp", ".D*_N*_s*.pt.*.tmp")  # a killed process left them
            if overwrite:
                self.remove(self.path, "final_info.json", "all_results.json")
                self.remove(self.checkpoints, "fingerprint.json", "D*_N*_s*.pt", "D*_N*_s*.pt.damaged-*")
                self.remove(self.path / "models", "D*_N*_s*.pt")
            elif all(path.exists() for path in self.results) and not (self.checkpoints / "fingerprint.json").exists():
                self.remove(self.checkpoints, "D*_N*_s*.pt")
                return True
            write_atomically(self.checkpoints / "fingerprint.json", strict_json(self.fingerprint))
        except BlockingIOError:
            raise UserError(f"--out_dir {self.path}: another process is running in it; must be a free folder") from None
        except (OSError, WriteError) as error:
            for path in missing:  # leave nothing behind
                with contextlib.suppress(OSError):
                    path.rmdir()
            raise UserError(f"--out_dir {self.path}: must be a folder that can be written ({error})") from None
        return False

    def changed(self, found: dict) -> str:
        """What differs between the fingerprint of the run in the folder and that of this one."""
        if not found:
            return "no readable fingerprint"
        was, now = ({**f["config"], "script_sha256": f["script_sha256"]} for f in (found, self.fingerprint))
        if was == now:  # of the same configuration, "auto" has picked another device
            was, now = found, self.fingerprint
        return ", ".join(f"{key} {was.get(key)} -> {now[key]}" for key in now if was.get(key) != now[key])

    def close(self) -> None:
        """Release the lock."""
        if self.lock is not None:
            os.close(self.lock)

    def abandon(self) -> None:
        """After a failure: a folder in which nothing was saved is free for the next attempt."""
        with contextlib.suppress(OSError):
            if not list(self.checkpoints.glob("*.pt*")):
                self.remove(self.checkpoints, "fingerprint.json")

    def remove(self, folder: Path, *patterns: str) -> None:
        """Remove files of a run, and a subfolder if nothing else is in it."""
        for path in [path for pattern in patterns for path in folder.glob(pattern)]:
            path.unlink()
        if folder != self.path and folder.exists() and not any(folder.iterdir()):
            folder.rmdir()

    def save(self, trajectory: Trajectory, state: dict) -> None:
        """Replace the trajectory's checkpoint, led by its SHA-256; at an N of the grid also save that model."""

        def serialized(value) -> bytes:
            torch.save(value, buffer := io.BytesIO())
            return buffer.getvalue()

        seen = {"points": trajectory.points, "recent_losses": list(trajectory.recent_losses)}
        content = serialized({"step": trajectory.step, "state": state, **seen})
        if trajectory.step in trajectory.n_steps:
            model = self.path / "models" / f"D{trajectory.n_tasks}_N{trajectory.step}_s{trajectory.seed}.pt"
            write_atomically(model, serialized({name: tensors["parameter"] for name, tensors in state.items()}))
        # After the model: what a checkpoint says is done is not done again.
        write_atomically(self.checkpoints / f"{trajectory.name}.pt", self.seal(content) + content)

    def seal(self, content: bytes) -> bytes:
        """The first 32 bytes of a checkpoint: it is intact and belongs to this run."""
        return hashlib.sha256(strict_json(self.fingerprint) + content).digest()

    def load(self, trajectory: Trajectory) -> None:
        """Bring a trajectory to its checkpoint, if it has one. A damaged one is set aside and training starts anew."""
        path = self.checkpoints / f"{trajectory.name}.pt"
        if not path.exists():
            return
        content = path.read_bytes()
        try:
            if self.seal(content[32:]) != content[:32]:
                raise ValueError
            saved = torch.load(io.BytesIO(content[32:]), weights_only=True)
        except Exception:
            aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
            path.rename(aside)
            print(f"{path} is damaged: set aside as {aside.name}, {trajectory.name} starts anew", flush=True)
            return
        trajectory.step, trajectory.state, trajectory.points = saved["step"], saved["state"], saved["points"]
        trajectory.recent_losses = deque(saved["recent_losses"], maxlen=LOSS_WINDOW)

    def finish(self, trajectories: list[Trajectory], timing: dict, save_models: bool) -> None:
        """Print the summary, write all_results.json, then final_info.json, then remove the checkpoints."""
        curves = [
            {
                "n_tasks": t.n_tasks,
                "seed": t.seed,
                "n_steps": t.n_steps,
                "urns": t.test_bed.urns.tolist(),
                "curves": {key: [point[key] for point in t.points] for key in t.points[0]},
            }
            for t in trajectories
        ]
        cells = [
            {"n_tasks": D, "n_steps": N, "seed": t.seed, **t.cell(N)}
            for D, N in itertools.product(self.config.tasks, self.config.steps)
            for t in trajectories
            if t.n_tasks == D and N in t.n_steps
        ]
        results = {"config": asdict(self.config), "environment": self.environment}
        results |= {"trajectories": curves, "cells": cells, "timing": timing}
        final_info = summarize(cells)
        short, long = strict_json(final_info), strict_json(results)  # whatever fails, fails before a file is there
        print(summary(final_info, timing), flush=True)
        write_atomically(self.results[1], long)
        write_atomically(self.results[0], short)
        if not save_models:
            self.remove(self.path / "models", "D*_N*_s*.pt")
        self.remove(self.checkpoints, "fingerprint.json", "*.pt")


def summarize(cells: list[dict]) -> dict:
    """final_info: mean, standard error and the value of every seed of the headline numbers, by cell."""
    headlines = ("kl_to_g", "kl_to_m", "relative_divergence", "relative_divergence_posterior_mean")
    headlines += ("exact_relative_divergence", "train_loss")
    final_info = {}
    for (D, N), group in itertools.groupby(cells, lambda cell: (cell["n_tasks"], cell["n_steps"])):
        try:
            seeds = list(group)
            values = {key: [cell[key] for cell in seeds] for key in headlines if key in seeds[0]}
            stderr = {key: np.std(v, ddof=1) / math.sqrt(len(v)) if len(v) > 1 else 0.0 for key, v in values.items()}
            final_info[f"D{D}_N{N}"] = {
                "means": {f"{key}_mean": float(np.mean(v)) for key, v in values.items()},
                "stderrs": {f"{key}_stderr": float(v) for key, v in stderr.items()},
                "final_info_dict": values,
            }
            strict_json(final_info[f"D{D}_N{N}"])  # a value that the file cannot hold fails here, with its cell
        except Exception as error:
            error.add_note(f"in cell D{D}_N{N}")
            raise
    return final_info


# What the headline numbers are measured with: all_results.json records a hash of the source of exactly these.
YARDSTICK = (sample_urns, sample_sequences, color_counts, counting_predictor, posterior_mean_predictor)
YARDSTICK += (bayes_over_urns, memorizing_predictor, orbit_memorizing_predictor, kl_divergence, relative_divergence)
YARDSTICK += (mixture_weights, TestBed, next_draw_loss, Ensemble.predict, Trajectory.measure, Trajectory.cell)
YARDSTICK += (summarize,)


# ==== Main ============================================================================================================


class Progress:
    """Model steps done: a bar on a terminal, elsewhere at most one plain line per 5% on standard output."""

    def __init__(self, total: int, done: int, workers: int, silent: bool):
        self.total, self.done, self.trained, self.started = total, done, 0, None
        self.announce = min(workers * CHUNK, total - done)  # model steps from which the speed is known
        self.silent, self.lock = silent, threading.Lock()
        self.bar = tqdm(total=total, initial=done, unit="step", disable=silent or not sys.stderr.isatty())

    def start(self) -> None:
        """Training begins; what came before is not paid for every step."""
        self.started = self.started or time.monotonic()

    def update(self, losses: list[list[float]]) -> None:
        """Count newly trained steps by their losses [E][steps]."""
        new = sum(map(len, losses))
        with self.lock:
            before, self.done, self.trained = self.done, self.done + new, self.trained + new
            loss = np.mean(losses) if new else math.nan
            self.bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
            self.bar.update(new)
            if self.silent or not self.bar.disable or not new:
                return
            left = (time.monotonic() - self.started) / self.trained * (self.total - self.done) / 60
            if self.trained - new < self.announce <= self.trained:
                print(f"expected to take {left:.1f} min for the other {self.total - self.done} model steps", flush=True)
            if 20 * self.done // self.total > 20 * before // self.total:
                print(f"progress: {self.done} of {self.total} steps, loss {loss:.3f}, {left:.1f} min left", flush=True)


class Interrupted(BaseException):
    """SIGINT or SIGTERM, by its number, has ended the run."""


@contextlib.contextmanager
def on_signals(handle):
    """While this lasts, SIGINT and SIGTERM call handle(number, frame)."""
    with contextlib.ExitStack() as restore:
        for number in (signal.SIGINT, signal.SIGTERM):
            restore.callback(signal.signal, number, signal.signal(number, handle))
        yield


def parse_arguments(argv: list[str]) -> tuple[Config, argparse.Namespace]:
    """The configuration and the options of this call. UserError names a bad flag, its value and what is allowed."""

    class Parser(argparse.ArgumentParser):
        def error(self, message):
            raise UserError(message)

    def read(kind, name, word):
        try:
            return kind(word)
        except (ValueError, KeyError):
            raise argparse.ArgumentTypeError(f"{word.strip()} must be {name}") from None

    kinds = {float: (float, "a number"), int: (int, "a whole number"), str: (str.strip, "text")}
    kinds |= {bool: ({"true": True, "false": False}.__getitem__, "true or false")}
    comments = dict(re.findall(r"^    (\w+):.*?  # (.*)$", inspect.getsource(Config), re.M))
    parser = Parser("experiment.py", description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    for field in fields(Config):
        hint = get_type_hints(Config)[field.name]
        many = get_origin(hint) is tuple
        kind = next((kind for kind in kinds if kind in (hint, *get_args(hint))), None)
        if kind is None or field.default is MISSING:
            raise TypeError(f"Config.{field.name} must be a number, text, bool or tuple[int, ...], and have a default")
        shown = " ".join(map(str, field.default)) if many else field.default
        parser.add_argument(
            f"--{field.name}",
            type=partial(read, *kinds[kind]),
            nargs="*" if many else None,
            default=field.default,
            metavar="X",
            help=f"{comments.get(field.name, '')} (default {shown})".replace("%", "%%"),
        )
    parser.add_argument("--out_dir", type=Path, default=Path("run_0"), help="where the results go (default run_0)")
    parser.add_argument("--overwrite", action="store_true", help="remove what another run wrote to OUT_DIR")
    parser.add_argument("--save_models", action="store_true", help="keep the weights of every cell in OUT_DIR/models")
    # No flag has a single dash: "-1e-4" is a value that is out of range, not a flag that is unknown.
    options = parser.parse_args([f" {word}" if re.match(r"-[^-h]", word) else word for word in argv])
    return Config(**{field.name: getattr(options, field.name) for field in fields(Config)}), options


def pick_device(config: Config) -> torch.device:
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    name = config.device if config.device != "auto" else "cuda" if cuda else "mps" if mps else "cpu"
    if name != "cuda":
        return torch.device(name)
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())


def cpu_count() -> int:
    """Cores that this process may use; under torchrun its share of them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def summary(final_info: dict, timing: dict) -> str:
    """One greppable `key: value` line per number."""
    lines = []
    for cell, numbers in final_info.items():
        for key in numbers["final_info_dict"]:
            mean = numbers["means"][f"{key}_mean"]
            lines.append(f"{cell}_{key}: {math.nan if mean is None else mean:.4f}")
    return "\n".join([*lines, *(f"{key}: {value}" for key, value in timing.items())])


def environment(device: torch.device) -> dict[str, str]:
    """What the numbers may depend on besides the configuration."""
    cuda_name = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "device": device.type,
        "device_name": cuda_name or f"{platform.machine()}, {cpu_count()} cores",
        "script_sha256": hashlib.sha256(Path(__file__).read_bytes()).hexdigest(),
        "yardstick_sha256": hashlib.sha256("".join(map(inspect.getsource, YARDSTICK)).encode()).hexdigest(),
    }


def train_all(config: Config, trajectories: list[Trajectory], device: torch.device, run: RunDirectory, silent: bool):
    """Train the trajectories of this process and return the number of model steps. Interrupted after a signal.

    On a CPU every model has one thread: two models side by side on two cores are faster than one model on both, and no
    number depends on how many cores there are.
    """
    groups = plan_ensembles(config, trajectories, device)
    workers = min(len(groups), cpu_count()) if device.type == "cpu" else 1
    total, done = sum(max(t.n_steps) for t in trajectories), sum(t.step for t in trajectories)
    progress = Progress(total, done, workers, silent)
    stop, failed, signals = threading.Event(), threading.Event(), []

    def handle(number, frame):
        if signals:  # the second signal ends the process at once
            os._exit(128 + number)
        signals.append(number)
        stop.set()

    pool = ThreadPoolExecutor(max(1, workers), initializer=prepare_thread, initargs=(device,))
    with on_signals(handle), pool:
        futures = [pool.submit(train, config, group, device, run, progress, stop, failed) for group in groups]
        if any(future.exception() for future in wait(futures, return_when=FIRST_EXCEPTION).done):
            failed.set()
            stop.set()
    progress.bar.close()
    for future in futures:
        future.result()
    if signals:
        raise Interrupted(signals[0])
    return progress.trained


def run_study(config: Config, options: argparse.Namespace, device: torch.device, run: RunDirectory) -> None:
    """Train, measure and write what the command line asks for."""
    started = time.monotonic()
    prepare_thread(device)  # see train_all
    torch.set_float32_matmul_precision("high" if config.precision == "tf32" else "highest")

    # Under torchrun every rank trains its share of the trajectories; the first one owns the folder.
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    complete = [rank == 0 and run.open(options.overwrite and attempt == "0")]
    if world > 1:
        store = next(dist.rendezvous("env://", rank, world))[0]
        store = dist.PrefixStore(attempt, store)  # not the last attempt's keys
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(days=30))
        dist.broadcast_object_list(complete)
    if complete[0]:
        if rank == 0:
            print(f"{options.out_dir} is complete: nothing to train (--overwrite trains it anew)")
            final_info, results = (json.loads(path.read_bytes()) for path in run.results)
            print(summary(final_info, results["timing"]))
        return

    trajectories = plan_trajectories(config)
    if rank == 0 and world > len(trajectories):
        print(f"{world} processes for {len(trajectories)} trajectories: {world - len(trajectories)} have nothing to do")
    own = trajectories[rank::world]
    for trajectory in own:
        run.load(trajectory)
        if trajectory.step:
            print(f"continuing {trajectory.name} after step {trajectory.step}", flush=True)

    training_started = time.monotonic()
    trained = train_all(config, own, device, run, silent=rank > 0)
    if world > 1:
        dist.all_reduce(trained := torch.tensor(trained))  # also waits for all ranks
    if rank > 0:
        return

    for trajectory in trajectories:
        run.load(trajectory)
        if not trajectory.points:
            raise WriteError(f"no checkpoint of {trajectory.name} in {run.path}, which all processes must share")
    seconds = time.monotonic() - training_started
    timing = {
        "seconds_total": round(time.monotonic() - started, 2),
        "seconds_training": round(seconds, 2),
        "model_steps": int(trained),
        "model_steps_per_second": round(int(trained) / seconds, 2),
    }
    run.finish(trajectories, timing, options.save_models)


def one_line(text: str, room: int) -> str:
    """The text without line breaks, cut in the middle to at most `room` characters."""
    text = " ".join(text.split())
    return text if len(text) <= room else f"{text[: room // 2 - 5]} ... {text[-room // 2 :]}"


def describe(error: BaseException) -> str:
    """The last lines of standard error: frames of this script, cells and exception, after those of its first cause.

    At most 1500 characters, which is what loops read.
    """

    def frames(fault, n):
        own = [frame for frame in traceback.extract_tb(fault.__traceback__) if frame.filename == __file__]
        return [f"  line {frame.lineno} in {frame.name}: {frame.line[:100]}" for frame in own[-n:]]

    def message(fault, room):
        return one_line(f"{type(fault).__name__}: {fault}", room)

    cause, seen = error, []
    while cause not in [None, *seen]:
        seen.append(cause)
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    lines = [*frames(seen[-1], 1), f"  {message(seen[-1], 200)}", "which led to"] if len(seen) > 1 else []
    lines += frames(error, 3)
    lines += [f"  {note[:200]}" for note in getattr(error, "__notes__", [])[-2:]]
    lines.append("experiment.py failed: ")
    return "\n".join(lines) + message(error, 1490 - len("\n".join(lines)))


def main(argv: list[str] | None = None) -> int:
    """Run the study; returns the exit status: 0 complete, 1 failed, 2 bad input, 130 or 143 interrupted."""

    def interrupt(number, frame):
        raise Interrupted(number)

    if not sys.stderr.isatty():
        warnings.simplefilter("ignore")  # loops read only the end of standard error
    run = None
    alone = int(os.environ.get("WORLD_SIZE", 1)) == 1  # a rank that waits for others dies of the signal
    again = "the same command continues"
    try:
        with on_signals(interrupt) if alone else contextlib.nullcontext():
            config, options = parse_arguments(sys.argv[1:] if argv is None else argv)
            again = "the same command without --overwrite continues" if options.overwrite else again
            device = pick_device(config)
            run = RunDirectory(options.out_dir, config, device)
            run_study(config, options, device, run)
            if not alone:
                sys.stdout.flush()
                os._exit(0)  # gloo's threads may still want the interpreter's lock: at its end that would abort
            return 0
    except Interrupted as error:
        print(f"interrupted by {signal.Signals(error.args[0]).name}: {again}", file=sys.stderr)
        return 128 + error.args[0]
    except NotFiniteError as error:
        print(f"experiment.py: {error}", file=sys.stderr)
    except WriteError as error:
        print(f"experiment.py: {error}; once that is mended {again}", file=sys.stderr)
    except BaseException as error:
        if isinstance(error, SystemExit) and {"-h", "--help"} & set(sys.argv[1:] if argv is None else argv):
            raise
        if isinstance(error, UserError) and not hasattr(error, "__notes__"):  # of no cell
            print(f"experiment.py: {one_line(str(error), 1400)}", file=sys.stderr)
            return 2
        print(describe(error), file=sys.stderr)
    finally:
        if run:
            run.close()
    if run and int(os.environ.get("RANK", 0)) == 0:
        run.abandon()
    return 1


if __name__ == "__main__":
    sys.exit(main())
