#!/usr/bin/env python3
"""Updates per second of the grokking study's baseline: the plain protocol, and the study as it is, in turns.

    python benchmarks/grokking.py               # one core, about two minutes
    python benchmarks/grokking.py --trajectory  # the accuracies of both ways, from the same start, until memorizing

The plain protocol is a script as one would first write it: pairs of Python numbers become a batch one by one, every
position goes through every layer, and every 10 updates the accuracy is estimated from 8 batches of other entries. The
study evaluates both halves of the table instead. Medians over rounds; a ratio is the median of the rounds' own.
"""

import argparse
import importlib.util
import random
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn as nn
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parent.parent
spec = importlib.util.spec_from_file_location("grokking", ROOT / "studies" / "grokking" / "experiment.py")
study = sys.modules["grokking"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(study)
from harness import Ensemble, Progress  # noqa: E402  (the study has found it)


class PlainModel(nn.Module):
    """The protocol's Transformer from PyTorch's own layers: tokens [B, 4] -> logits [B, n] of the last position."""

    def __init__(self, n: int, size):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(n + 2, size.width), nn.Embedding(5, size.width)
        layer = nn.TransformerEncoderLayer(size.width, size.heads, 4 * size.width, 0.0, F.gelu, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, size.layers, nn.LayerNorm(size.width), enable_nested_tensor=False)
        self.answer = nn.Linear(size.width, n)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.tokens(tokens) + self.positions(torch.arange(4))
        return self.answer(self.layers(x, nn.Transformer.generate_square_subsequent_mask(4), is_causal=True)[:, -1])


class PlainProtocol:
    def __init__(self, trajectory):
        data, self.batch_size = trajectory.data, trajectory.config.batch_size
        entries = list(zip(data.a.tolist(), data.b.tolist(), data.answers.tolist(), strict=True))
        self.train_entries, self.val_entries = entries[: data.n_train], entries[data.n_train :]
        self.model = PlainModel(len(set(data.answers.tolist())), trajectory.size)
        self.optimizer = trajectory.optimizer(dict(self.model.named_parameters()), trajectory.config.lr)

    def batch(self, entries: list) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = [random.choice(entries) for _ in range(self.batch_size)]
        return torch.tensor([[a + 2, 0, b + 2, 1] for a, b, _ in chosen]), torch.tensor([c for *_, c in chosen])

    def train(self, updates: int) -> None:
        for _ in range(updates):
            tokens, answers = self.batch(self.train_entries)
            loss = F.cross_entropy(self.model(tokens), answers)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

    @torch.no_grad()
    def evaluate(self) -> None:
        for tokens, answers in (self.batch(self.val_entries) for _ in range(8)):
            (self.model(tokens).argmax(1) == answers).sum().item()


class Study:
    def __init__(self, trajectory):
        self.trajectory, self.ensemble = trajectory, Ensemble([Progress(trajectory)], torch.device("cpu"))

    def train(self, updates: int) -> None:
        self.ensemble.advance(updates, SimpleNamespace(value=False))

    def evaluate(self) -> dict[str, float]:
        return self.trajectory.measure(self.ensemble.observe(0), self.ensemble.step, {}, [])


NAMES = {"blocks.": "layers.layers.", ".attention.": ".self_attn.", "mlp.0": "linear1", "mlp.2": "linear2"}
NAMES |= {"attention_norm": "norm1", "mlp_norm": "norm2"}


def compare_trajectories(updates: int) -> None:
    """Both ways from the same start and through the same batches, in float32, the plain one with AdamW as it comes and
    a LambdaLR. Prints the largest difference of exact accuracies, every 10 updates until memorizing."""
    trajectory = study.plan(study.Config(operations=("x_div_y",), seeds=1))[0]
    own, data, plain = Study(trajectory), trajectory.data, PlainModel(97, trajectory.size)
    for name, start in own.ensemble.model.state_dict().items():
        for ours, theirs in NAMES.items():
            name = name.replace(ours, theirs)
        plain.get_parameter("layers.norm" + name[4:] if name.startswith("norm.") else name).data.copy_(start)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.5, foreach=False)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: min(k / 50, 1))

    def tokens_of(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return torch.stack([a + 2, torch.zeros_like(a), b + 2, torch.ones_like(a)], 1)

    far = {"train_acc": 0.0, "val_acc": 0.0}
    for step in range(10, updates + 1, 10):
        batches = trajectory.batches((step - 10) // 100 * 100, 100, own.ensemble.device)
        for k in range((step - 10) % 100, (step - 10) % 100 + 10):
            loss = F.cross_entropy(plain(tokens_of(batches["a"][k], batches["b"][k])), batches["answers"][k])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            found = [plain(tokens_of(*part)) for part in zip(data.a.split(1024), data.b.split(1024), strict=True)]
        right = (torch.cat(found).argmax(1) == data.answers).double()
        parts = {"train_acc": right[: data.n_train], "val_acc": right[data.n_train :]}
        there = {key: float(f"{part.mean().item():.6g}") for key, part in parts.items()}  # as the study rounds
        own.train(10)
        here = own.evaluate()
        far = {key: max(far[key], abs(there[key] - here[key])) for key in far}
        if min(there["train_acc"], here["train_acc"]) > 0.99:
            break
    print(f"updates: {step}")
    for key, difference in far.items():
        print(f"largest_difference_of_{key}: {difference:.6f}")


def seconds(action) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="rounds of 10 updates and an evaluation each (default 9)")
    parser.add_argument("--trajectory", action="store_true", help="compare accuracies, for at most 900 updates")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.trajectory:
        return compare_trajectories(900)
    for operation in ("x_div_y", "permutation"):
        trajectory = study.plan(study.Config(operations=(operation,), seeds=1))[0]
        variants = {"plain": PlainProtocol(trajectory), "study": Study(trajectory)}
        spent = {name: [] for name in variants}
        for round_ in range(options.rounds + 1):
            for name, variant in variants.items():
                took = seconds(lambda: variant.train(10)), seconds(variant.evaluate)  # noqa: B023
                spent[name] += [took] if round_ else []  # the first one warms up
        for name, took in spent.items():
            update, evaluation = (statistics.median(parts) for parts in zip(*took, strict=True))
            whole = statistics.median(10 / sum(parts) for parts in took)
            print(f"{operation}_{name}_updates_per_second: {whole:.2f}")
            print(f"{operation}_{name}_ms: {100 * update:.1f} per update, {1000 * evaluation:.0f} per evaluation")
        pairs = list(zip(spent["plain"], spent["study"], strict=True))
        print(f"{operation}_ratio_of_updates: {statistics.median(p[0] / s[0] for p, s in pairs):.2f}")
        print(f"{operation}_ratio_with_evaluation: {statistics.median(sum(p) / sum(s) for p, s in pairs):.2f}")


if __name__ == "__main__":
    main()
