#!/usr/bin/env python3
"""How fast every study trains beside a plain loop of the same models, and how long its default run takes.

    python benchmarks/studies.py             # all five, about eight minutes on two quiet cores
    python benchmarks/studies.py grokking    # one of them

As in a run every core has a process: all measure the same. In each the study's trainer and a plain loop (loss,
zero_grad, backward, step) take turns on one model of every shape of the default run. Times per update are means over
the updates of that run; ratios are those of a round, and the median is told. The minutes of the run are computed.
"""

import importlib.util
import multiprocessing
import resource
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from harness import CHUNK, Ensemble, Progress, cpu_count, planned, prepare_thread  # noqa: E402

STUDIES = {"balls_and_urns": ROOT} | {
    name: ROOT / "studies" / name for name in ("grokking", "analogy", "reversal", "parity")
}
CPU, ROUNDS, SECONDS = torch.device("cpu"), 5, 0.5  # rounds, and how long one is about


def trainer(trajectory):
    """A function that makes n updates as a run does."""
    ensemble = Ensemble([Progress(trajectory)], CPU)

    def train(n: int) -> None:
        while n:
            ensemble.step %= trajectory.updates
            part = min(n, CHUNK - ensemble.step % CHUNK, trajectory.updates - ensemble.step)
            ensemble.advance(part, SimpleNamespace(value=False))
            n -= part

    return train


def plain_loop(trajectory):
    """The same by hand, with its batches from the same function."""
    model = trajectory.model()
    rates = [trajectory.learning_rate(update, trajectory.updates) for update in range(trajectory.updates)]
    optimizer = trajectory.optimizer(dict(model.named_parameters()), max(rates))
    batches, step = {}, 0

    def train(n: int) -> None:
        nonlocal batches, step
        for _ in range(n):
            step %= trajectory.updates
            if not batches or step % CHUNK == 0:
                batches = trajectory.batches(step // CHUNK * CHUNK, CHUNK, CPU)
            for options in optimizer.param_groups:
                options["lr"] = rates[step]
            loss, _ = trajectory.loss(model, **{key: values[step % CHUNK] for key, values in batches.items()})
            optimizer.zero_grad()
            loss.backward()
            if trajectory.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), trajectory.clip_norm)
            optimizer.step()
            step += 1

    return train


def evaluation(trajectory, update: int) -> float:
    """Seconds that a measurement takes."""
    ensemble = Ensemble([Progress(trajectory)], CPU)
    ensemble.step = update
    seconds = []
    for _ in range(2):  # what is made once, test sequences, is made in the first
        start = time.perf_counter()
        trajectory.measure(ensemble.observe(0), update, {"loss": [0.0]}, [])
        seconds.append(time.perf_counter() - start)
    return seconds[1]


def measure(name: str, pipe) -> None:
    """Of a study's default run: models, updates, of every round seconds per update by hand and here, seconds of all its
    measurements; peak memory of this process in MB."""
    prepare_thread(CPU)
    spec = importlib.util.spec_from_file_location(name, STUDIES[name] / "experiment.py")
    study = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(study)
    plan = [progress.trajectory for progress in planned(study.STUDY, study.Config(device="cpu"))]
    shapes, total = {}, sum(trajectory.updates for trajectory in plan)
    for trajectory in plan:
        shapes.setdefault(trajectory.shape, []).append(trajectory)
    rounds, measuring = [[0.0, 0.0] for _ in range(ROUNDS)], 0.0
    for own in shapes.values():
        variants, weight = (plain_loop(own[0]), trainer(own[0])), sum(trajectory.updates for trajectory in own) / total
        for variant in variants:
            variant(3)
        start = time.perf_counter()
        variants[0](3)
        n = max(3, round(3 * SECONDS / (time.perf_counter() - start)))
        for seconds in rounds:
            for i, variant in enumerate(variants):
                start = time.perf_counter()
                variant(n)
                seconds[i] += weight * (time.perf_counter() - start) / n
        last = evaluation(own[0], own[0].updates)
        between = evaluation(own[0], own[0].measured[-1]) if own[0].measured else 0.0
        measuring += sum(len({*t.measured, *t.cells} - {t.updates}) * between + last for t in own)
    pipe.send((len(plan), total, rounds, measuring, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))


def main(names: list[str]) -> None:
    context, cores = multiprocessing.get_context("spawn"), cpu_count()
    print(f"{cores} cores, torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}\n")
    columns = (
        "study, models x updates, ms per update: plain loop, here, ratio (range of rounds), measuring, default run, MB"
    )
    print(f"| {columns.replace(', ', ' | ')} |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for name in names or STUDIES:
        pipes = []
        for _ in range(cores):
            ours, theirs = context.Pipe()
            context.Process(target=measure, args=(name, theirs), daemon=True).start()
            theirs.close()
            pipes.append(ours)
        models, updates, _, _, _ = found = (*zip(*(pipe.recv() for pipe in pipes), strict=True),)
        rounds, measuring, memory = [row for rows in found[2] for row in rows], statistics.mean(found[3]), max(found[4])
        plain, here = (1000 * statistics.median(row[i] for row in rounds) for i in (0, 1))
        ratios = [by_hand / own for by_hand, own in rounds]
        workers = min(cores, models[0])
        minutes = (updates[0] * here / 1000 + measuring) / workers / 60
        print(
            f"| {name} | {models[0]} x {updates[0] // models[0]} | {plain:.1f} | {here:.1f} | "
            f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}) | "
            f"{measuring / workers / 60:.1f} min | {minutes:.0f} min | {memory:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
