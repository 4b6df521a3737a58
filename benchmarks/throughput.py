#!/usr/bin/env python3
"""Training speed: a plain textbook loop, this repository's trainer and the matrix-product floor, side by side.

    python benchmarks/throughput.py                  # this machine's CPU, about five minutes
    python benchmarks/throughput.py --device cuda    # also times whole runs of experiment.py
    python benchmarks/throughput.py --side_by_side   # models side by side on a CPU: threads against processes

The variants take turns; every figure is the median over the rounds, every ratio the median of the rounds' own ratios,
so that a machine whose speed drifts does not favor one of them.
"""

import argparse
import math
import multiprocessing.connection
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn as nn

sys.path.insert(0, str(Path(__file__).parent.parent))
from experiment import STUDY, Config, sample_sequences, sample_urns
from harness import CHUNK, Ensemble, Progress, cpu_count, plan_groups, planned, prepare_thread


class PlainModel(nn.Module):
    """The same architecture from PyTorch's own layers."""

    def __init__(self, c: Config):
        super().__init__()
        layer = nn.TransformerEncoderLayer(
            c.d_model, c.n_heads, 4 * c.d_model, 0.0, "gelu", batch_first=True, norm_first=True, bias=False
        )
        self.blocks = nn.TransformerEncoder(layer, c.n_layers, nn.LayerNorm(c.d_model), enable_nested_tensor=False)
        self.positions = nn.Parameter(0.02 * torch.randn(c.seq_len, c.d_model))
        mask = nn.Transformer.generate_square_subsequent_mask(c.seq_len - 1)
        self.register_buffer("mask", mask)

    def forward(self, tokens, embeddings):
        x = embeddings[torch.arange(len(tokens), device=tokens.device)[:, None], tokens]
        x = self.blocks(x + self.positions[: tokens.shape[1]], mask=self.mask, is_causal=True)
        return x @ embeddings.transpose(1, 2) / math.sqrt(x.shape[-1])


class PlainLoop:
    """One model, one batch after the other, as a first script would do it."""

    def __init__(self, c: Config, device: torch.device):
        self.c, self.device = c, device
        self.generator = torch.Generator().manual_seed(0)
        self.urns = sample_urns(c.tasks[0], c.n_colors, c.alpha, self.generator)
        self.model = PlainModel(c).to(device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=c.lr, weight_decay=c.weight_decay)

    def train(self, n_steps: int) -> None:
        c = self.c
        for _ in range(n_steps):
            tokens = sample_sequences(self.urns, c.batch_size, c.seq_len, self.generator)[0].to(self.device)
            embeddings = torch.randn(c.batch_size, c.n_colors, c.d_model, device=self.device)
            logits = self.model(tokens[:, :-1], embeddings)
            loss = nn.functional.cross_entropy(logits.reshape(-1, c.n_colors), tokens[:, 1:].reshape(-1))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()


def matrix_products(c: Config, n_models: int, device: torch.device):
    """A function that does one step's matrix products of n_models models, forward and backward, and nothing else: the
    linear layers, attention's scores and sums, and the read-out through the embeddings."""
    d, m, B, T, heads = c.d_model, c.n_colors, c.batch_size, c.seq_len - 1, c.n_heads

    def random(*shape):
        return torch.randn(*([n_models] if n_models > 1 else []), *shape, device=device)

    shapes = [(d, 3 * d), (d, d), (d, 4 * d), (4 * d, d)]
    linear = [(random(B * T, k), random(n, k), random(B * T, n)) for k, n in shapes]
    q, k, v, g = (random(B, heads, d // heads, T) for _ in range(4))
    attention = random(B, heads, T, T)
    h, E, read_out = random(B, T, d), random(B, m, d), random(B, T, m)

    def step():
        for _ in range(c.n_layers):
            for x, w, gradient in linear:
                x @ w.mT  # forward
                gradient @ w  # gradient of the input
                gradient.mT @ x  # gradient of the weight
            k.mT @ q, v @ attention  # forward
            k @ attention, q @ attention.mT, v.mT @ g, g @ attention.mT  # gradients
        h @ E.mT, read_out @ E

    if device.type != "cuda":
        return step
    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()  # one by one the launches, not the products, would be the floor
    with torch.cuda.graph(graph):
        step()

    def replay(read=step):  # which holds what the graph reads
        graph.replay()

    return replay


def advance(ensemble: Ensemble, updates: int) -> None:
    """Make this many updates, chunk by chunk of batches."""
    while updates:
        part = min(updates, CHUNK - ensemble.step % CHUNK)
        ensemble.advance(part, SimpleNamespace(value=False))
        updates -= part


def evaluate(ensemble: Ensemble) -> None:
    for member, progress in enumerate(ensemble.group):
        progress.recent, progress.step = {"loss": [0.0]}, 0
        progress.measure(ensemble.observe(member))


class Processes:
    """Every group of trajectories in a process of one core, as harness.train_in_processes has them."""

    def __init__(self, groups: list[list[Progress]], actions: dict, device: torch.device):
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        self.pipes = []
        for group in groups:
            ours, theirs = context.Pipe()
            context.Process(target=self.serve, args=(group, actions, device, theirs), daemon=True).start()
            self.pipes.append(ours)

    @staticmethod
    def serve(group, actions, device, pipe) -> None:
        prepare_thread(device)
        ensemble = Ensemble(group, device)
        while True:
            name, *arguments = pipe.recv()
            actions[name](ensemble, *arguments)
            pipe.send("done")

    def __call__(self, name: str, *arguments) -> None:
        """Let all of them do this, as many at a time as there are cores."""
        waiting, running = list(self.pipes), []
        while waiting or running:
            while waiting and len(running) < cpu_count():
                running.append(waiting.pop(0))
                running[-1].send((name, *arguments))
            for pipe in multiprocessing.connection.wait(running):
                pipe.recv()
                running.remove(pipe)


def side_by_side(rounds: int) -> None:
    """Two models on two cores: time per model step in two threads and in two processes, and the ratio of speeds."""
    device = torch.device("cpu")
    small = {"n_layers": 1, "n_heads": 2, "d_model": 32, "batch_size": 16, "n_test": 16}
    for name, settings, updates in (("default model", {}, 30), ("small model", small, 800)):
        plan = planned(STUDY, Config(tasks=(4, 8), steps=(100_000,), device="cpu", **settings))
        processes = Processes([[progress] for progress in plan], {"advance": advance}, device)
        pool = ThreadPoolExecutor(2, initializer=prepare_thread, initargs=(device,))
        ensembles = [Ensemble([progress], device) for progress in plan]
        ways = {
            "threads": lambda n, pool=pool, own=ensembles: list(pool.map(lambda one: advance(one, n), own)),
            "processes": lambda n, processes=processes: processes("advance", n),
        }
        times = {way: [] for way in ways}
        for action in ways.values():
            action(5)
        for _ in range(rounds):
            for way, action in ways.items():
                started = time.perf_counter()
                action(updates)
                times[way].append(500 * (time.perf_counter() - started) / updates)
        told = ", ".join(f"{way} {statistics.median(values):.2f} ms" for way, values in times.items())
        ratio = statistics.median(a / b for a, b in zip(*times.values(), strict=True))
        print(f"{name}: {told} per model step; speed of processes over threads {ratio:.2f}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, help="steps of every model per round and variant (default 25, CUDA 300)")
    parser.add_argument("--precision", default="float32", choices=["float32", "tf32", "bf16"])
    parser.add_argument("--side_by_side", action="store_true", help="only compare threads with processes, on a CPU")
    options = parser.parse_args()
    device = torch.device(options.device, 0) if options.device == "cuda" else torch.device("cpu")
    if options.side_by_side:
        side_by_side(options.rounds)
        return 0
    steps = options.steps or (3 * CHUNK if device.type == "cuda" else 25)
    c, threads = Config(device=options.device, precision=options.precision), torch.get_num_threads()
    torch.set_float32_matmul_precision("high" if c.precision == "tf32" else "highest")
    warnings.simplefilter("ignore")

    plan = planned(STUDY, c)
    groups, n_models = plan_groups(plan, device), len(plan)
    actions = {"advance": advance, "evaluate": evaluate}
    if device.type == "cpu":
        trainer = Processes([group for group, _ in groups], actions, device)
    else:
        ensembles = [Ensemble(group, device, rung) for group, rung in groups]

        def trainer(name, *arguments):
            for ensemble in ensembles:
                actions[name](ensemble, *arguments)

    workers = min(cpu_count(), len(groups)) if device.type == "cpu" else 1
    pool = ThreadPoolExecutor(workers, initializer=prepare_thread, initargs=(device,))
    plain, products = PlainLoop(c, device), [matrix_products(c, len(group), device) for group, _ in groups]

    def seconds(action) -> float:
        """Of one step of one model."""
        torch.set_num_threads(threads)
        started = time.perf_counter()
        action()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - started) / steps

    def floor():
        list(pool.map(lambda step: [step() for _ in range(steps)], products))

    variants = {
        "plain loop": lambda: seconds(lambda: plain.train(steps)),
        "this trainer": lambda: seconds(lambda: trainer("advance", steps)) / n_models,
        "matrix products": lambda: seconds(floor) / n_models,
    }
    for variant in variants.values():  # warm up
        variant()
    times = {name: [] for name in variants}
    for _ in range(options.rounds):
        for name, variant in variants.items():
            times[name].append(variant())

    evaluation = statistics.median(seconds(lambda: trainer("evaluate")) for _ in range(3)) * steps

    def ratio(a, b):
        return statistics.median(x / y for x, y in zip(times[a], times[b], strict=True))

    median = {name: statistics.median(values) for name, values in times.items()}
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{cpu_count()} CPU cores"
    points = len({*plan[0].trajectory.measured, *plan[0].trajectory.cells})
    ours = median["this trainer"] * n_models * max(c.steps) + evaluation * points
    scratch = median["plain loop"] * len(c.tasks) * sum(c.steps)
    print(f"{name}, {platform.machine()}, Python {platform.python_version()}, torch {torch.__version__}")
    for variant, value in median.items():
        spread = f"{1e3 * min(times[variant]):.2f} to {1e3 * max(times[variant]):.2f}"
        print(f"{variant:16} {1 / value:8.1f} model steps/s   {1e3 * value:7.2f} ms/model step ({spread})")
    T, d = c.seq_len - 1, c.d_model
    flops = c.batch_size * T * (c.n_layers * (6 * 12 * d * d + 12 * T * d) + 4 * c.n_colors * d)
    print(f"floor_gflops_per_second: {flops / median['matrix products'] / 1e9:.0f}")
    print(f"steps_ratio_this_to_plain: {ratio('plain loop', 'this trainer'):.2f}")
    print(f"step_time_over_floor: {ratio('this trainer', 'matrix products'):.2f}")
    print(f"default_grid_minutes_plain: {scratch / 60:.1f}")
    print(f"default_grid_minutes_this: {ours / 60:.1f} ({evaluation * points / 60:.1f} of them evaluation)")
    print(f"default_grid_ratio: {scratch / ours:.2f}")

    if device.type == "cuda":
        wall = {seeds: [] for seeds in (1, 8)}
        for seeds in (1, 1, 8, 1, 8):  # the first one warms the file cache
            with tempfile.TemporaryDirectory() as folder:
                script = Path(__file__).parent.parent / "experiment.py"
                command = [sys.executable, str(script), "--device", "cuda", "--precision", c.precision]
                started = time.perf_counter()
                done = subprocess.run(
                    [*command, "--seeds", str(seeds), "--out_dir", f"{folder}/run"], capture_output=True, text=True
                )
                if done.returncode:
                    print(f"the whole run with {seeds} seeds failed: {done.stderr}")
                    return 1
                wall[seeds].append(time.perf_counter() - started)
        one, eight = statistics.median(wall[1][1:]), statistics.median(wall[8])
        print(f"whole_run_seconds_1_seed: {one:.1f}")
        print(f"whole_run_seconds_8_seeds: {eight:.1f}")
        print(f"whole_run_ratio_8_seeds_to_1: {eight / one:.2f}")
        print(f"whole_run_ratio_plain_to_this: {scratch / one:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
