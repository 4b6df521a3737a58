"""The harness under a study that is not Balls & Urns: its numbers are those of an ordinary training loop, whatever
happened to the run."""

import dataclasses
import hashlib
import itertools
import json
import math
import multiprocessing
import os
import re
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import harness

import numpy as np
import pytest
import small_study
import torch
import torch.nn as nn
import torch.nn.functional as F
from conftest import ROOT, forks, launch

SCRIPT = ROOT / "tests" / "small_study.py"
UPDATES = {6: (84, 252), 12: (42, 126)}  # by width, to each of its cells
SEEDS = range(3)
CPU = ["--device", "cpu"]
count = itertools.count()


# ---- An ordinary training loop ---------------------------------------------------------------------------------------


def generator(*name) -> torch.Generator:
    digest = hashlib.sha256(repr(name).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))


@cache
def points_of(width: int, seed: int) -> list[dict]:
    """What is measured of a network after 0, 5, 10, .. updates and at its cells, if training does not end early."""
    points = -1 + 3 * torch.rand(40, 2, generator=generator(seed, "points"), dtype=torch.float64)
    sides = (points[:, 0] * points[:, 1] > 0).long()
    train, test = torch.randperm(40, generator=generator(seed, "split")).split([24, 16])

    torch.manual_seed(generator(seed, width, "initial weights").initial_seed())
    model = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Dropout(0.05), nn.Linear(width, 2))
    kind = torch.float64 if width == 12 else torch.float32
    model.to(kind)
    slow = {"params": [model[0].weight, model[3].weight], "weight_decay": 0.01}
    fast = {"params": [model[0].bias, model[3].bias], "weight_decay": 0}
    optimizer = torch.optim.AdamW([slow, fast])
    own_draws = generator(seed, width, "own draws").initial_seed()

    measured, losses, accuracies = [], [], []
    for update in range(UPDATES[width][1] + 1):
        if update % 5 == 0 or update in UPDATES[width]:
            with torch.no_grad():
                logits = {"train": model.eval()(points[train].to(kind)), "test": model(points[test].to(kind))}
            right = {part: logits[part].argmax(1) == sides[which] for part, which in (("train", train), ("test", test))}
            point = {"step": update, "weights": model[0].weight.tolist()}
            point |= {f"{part}_accuracy": values.sum().item() / len(values) for part, values in right.items()}
            point["test_loss"] = F.cross_entropy(logits["test"].double(), sides[test]).item()
            if update:
                point["recent_loss"] = sum(losses[-20:]) / len(losses[-20:])
                point["recent_accuracy"] = sum(accuracies[-20:]) / len(accuracies[-20:])
            measured.append(point)

        order = train[torch.randperm(24, generator=generator(seed, width, "epoch", update // 3))]
        # The last four of an epoch are filled up to ten: what dropout draws depends on how many there are.
        which = F.pad(order, (0, 6), value=train[-1].item())[update % 3 * 10 :][:10]
        real = torch.arange(10) < (10, 10, 4)[update % 3]
        for group, scale in zip(optimizer.param_groups, (1, 2), strict=True):
            group["lr"] = scale * 0.03 * min(1.0, (update + 1) / 10)
        torch.manual_seed((own_draws + update) % 2**63)
        logits = model.train()(points[which].to(kind))
        loss = (F.cross_entropy(logits, sides[which], reduction="none") * real.double()).sum() / real.sum()
        optimizer.zero_grad()
        loss.backward()
        if width == 12:
            nn.utils.clip_grad_norm_(model.parameters(), 0.25)
        optimizer.step()
        losses.append(loss.item())
        accuracies.append(((logits.argmax(1) == sides[which]) & real).sum().item() / real.sum().item())
    return measured


def fitted(points: list[dict], target=0.95) -> int | None:
    return next((point["step"] for point in points if point["train_accuracy"] >= target), None)


def until_early_end(points: list[dict]) -> list[dict]:
    ends = (i for i, p in enumerate(points) if fitted(points) is not None and p["step"] >= fitted(points) + 15)
    return points[: next(ends, len(points)) + 1]


# ---- Launching -------------------------------------------------------------------------------------------------------


def study_process(arguments: list[str], output: str, cores: int, strike: tuple[int, int] | None, ranks: dict) -> None:
    """Run the study on so many cores, with a checkpoint at every point. strike: (signal, update): the process gets the
    signal just before it or one that it has started makes this update, counted over all of them. ranks: what torchrun
    tells a process."""
    os.environ |= ranks
    for number, suffix in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(output + suffix, os.O_WRONLY | os.O_CREAT, 0o644), number)
    harness.CHECKPOINT_SECONDS = -1
    if cores == 1:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    else:
        harness.cpu_count = lambda: cores
    backward, made, process = torch.Tensor.backward, multiprocessing.Value("i", 0), os.getpid()

    def update(loss):
        with made.get_lock():
            made.value += 1
            struck = strike and made.value == strike[1]
        if struck:
            os.kill(process, strike[0])
            if strike[0] == signal.SIGKILL:
                os.kill(os.getpid(), signal.SIGKILL)
        backward(loss)

    torch.Tensor.backward = update
    sys.exit(small_study.main(arguments))


def run(folder: Path, *arguments, cores=3, strike=None, ranks=None) -> tuple[int, str, str]:
    """Exit status (negative: died of that signal), standard output and standard error of the study on one folder."""
    output = f"{folder.parent}/process_{next(count)}"
    arguments = [*CPU, *map(str, arguments), "--out_dir", str(folder)]
    process = forks.Process(target=study_process, args=(arguments, output, cores, strike, ranks or {}))
    process.start()
    process.join(120)
    assert process.exitcode is not None, "hangs"
    return process.exitcode, Path(f"{output}.out").read_text(), Path(f"{output}.err").read_text()


def read(folder: Path) -> tuple[dict, dict]:
    """final_info.json and all_results.json, without what may differ between runs."""
    final_info, results = (json.loads((folder / f"{name}.json").read_bytes()) for name in ("final_info", "all_results"))
    del results["timing"], results["environment"]
    return final_info, results


def model_steps(folder: Path) -> int:
    return json.loads((folder / "all_results.json").read_bytes())["timing"]["model_steps"]


@pytest.fixture(scope="module")
def complete(tmp_path_factory) -> tuple[Path, str]:
    """The folder of an uninterrupted run in three processes, not to be changed, and what the run said."""
    folder = tmp_path_factory.mktemp("complete") / "run_0"
    status, out, err = run(folder)
    assert (status, err) == (0, "")
    return folder, out


# ---- Numbers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("early_end", [True, False])
def test_every_number_is_that_of_an_ordinary_training_loop_to_the_last_bit(tmp_path, complete, early_end):
    """With an early end as well: no number before it depends on it, and it is the end of every later cell."""
    folder = complete[0] if early_end else tmp_path / "run_0"
    assert early_end or run(folder, "--early_end", "false")[0] == 0
    final_info, results = read(folder)
    trajectories, cells = iter(results["trajectories"]), {}
    for width, updates in UPDATES.items():
        for seed in SEEDS:
            points = points_of(width, seed)
            points = until_early_end(points) if early_end else points
            trajectory = next(trajectories)
            assert (trajectory["name"], trajectory["width"]) == (f"width={width}, seed={seed}", width)
            curves = trajectory["curves"]
            assert curves.keys() == {key for point in points for key in point}
            for key, values in curves.items():  # what a point does not have is null in the curves
                expected = [point.get(key) for point in points]
                if key == "weights":  # kept at the start and the end
                    expected[1:-1] = [None] * (len(points) - 2)
                assert values == expected
            for n, epochs in zip(updates, (14, 42), strict=True):
                until = [point for point in points if point["step"] <= n]
                cell = {"cell": f"width_{width}_epochs_{epochs}", "seed": seed, "width": width}
                cell |= {"stopped_at": until[-1]["step"], "fitted": fitted(until)}
                cell |= {key: until[-1][key] for key in ("test_loss", "test_accuracy", "train_accuracy", "recent_loss")}
                cell["steps"] = [fitted(until, 0.8), fitted(until)]
                cells.setdefault(cell["cell"], []).append(cell)
    assert results["cells"] == [cell for seeds in cells.values() for cell in seeds]
    ends = {cell["stopped_at"] for cell in results["cells"] if cell["cell"] == "width_6_epochs_42"}
    assert (len(ends) == 3 and min(ends) < 84 < max(ends) < 252) if early_end else ends == {252}
    assert model_steps(folder) == sum(t["curves"]["step"][-1] for t in results["trajectories"])

    for name, numbers in final_info.items():
        assert list(numbers["final_info_dict"]) == list(small_study.headlines(None))
        for key, values in numbers["final_info_dict"].items():
            assert values == [cell[key] for cell in cells[name]]
            there = [value for value in values if value is not None]
            error = np.std(there, ddof=1) / math.sqrt(len(there)) if len(there) > 1 else 0.0
            assert numbers["means"][f"{key}_mean"] == (np.mean(there) if there else None)
            assert numbers["stderrs"][f"{key}_stderr"] == (error if there else None)
            counted = {k: n for k, n in numbers["means"].items() if k in (f"{key}_k", f"{key}_n")}
            assert counted == ({f"{key}_k": len(there), f"{key}_n": 3} if len(there) < 3 else {})


def test_never_is_counted_and_is_in_no_mean(complete):
    folder, out = complete
    means = {name: numbers["means"] for name, numbers in read(folder)[0].items()}
    assert means["width_6_epochs_14"]["fitted_mean"] == 65 and "fitted_k" not in means["width_6_epochs_42"]
    assert means["width_12_epochs_14"]["fitted_mean"] is None
    assert "\nwidth_6_epochs_14_fitted: 65.0000 (1 of 3)\n" in out
    assert "\nwidth_12_epochs_14_fitted: nan (0 of 3)\n" in out
    assert re.search(r"\nwidth_6_epochs_42_fitted: [\d.]+\n", out)


# ---- Interrupted, spread ---------------------------------------------------------------------------------------------


def test_killed_in_the_middle_of_chunks_one_process_ends_with_the_same_numbers(tmp_path, complete):
    folder = tmp_path / "run_0"
    for update, stem in ((43, "width_6_epochs_42_s0"), (185, "width_6_epochs_42_s1")):
        assert run(folder, cores=1, strike=(signal.SIGKILL, update))[0] == -signal.SIGKILL
        assert (folder / "checkpoint" / f"{stem}.pt").exists()
    status, out, err = run(folder, cores=1)
    assert (status, err) == (0, "")
    continued = {stem: int(step) for stem, step in re.findall(r"^continuing (\S+) after step (\d+)$", out, re.M)}
    assert continued == {"width_6_epochs_42_s0": 80, "width_6_epochs_42_s1": 130}
    assert model_steps(folder) + sum(continued.values()) == model_steps(complete[0])
    assert read(folder) == read(complete[0])


def test_interrupted_in_several_processes_it_ends_with_the_same_numbers(tmp_path, complete):
    folder = tmp_path / "run_0"
    status, out, err = run(folder, strike=(signal.SIGTERM, 240))
    assert (status, len(err.splitlines())) == (143, 1) and "the same command continues" in err
    status, out, err = run(folder, cores=2)
    assert (status, err) == (0, "")
    assert len(re.findall("^continuing ", out, re.M)) >= 3
    assert 0 < model_steps(folder) < model_steps(complete[0])
    assert read(folder) == read(complete[0])


def test_two_ranks_end_with_the_same_numbers(tmp_path, complete):
    with socket.create_server(("localhost", 0)) as free:
        port = str(free.getsockname()[1])
    ranks = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    with ThreadPoolExecutor(2) as pool:
        starts = [pool.submit(run, tmp_path / "run_0", ranks=ranks | {"RANK": rank}, cores=1) for rank in "01"]
        ends = [start.result() for start in starts]
    assert [status for status, _, _ in ends] == [0, 0], ends
    assert model_steps(tmp_path / "run_0") == model_steps(complete[0])
    assert read(tmp_path / "run_0") == read(complete[0])


def test_as_one_script_with_the_harness_it_ends_with_the_same_numbers(tmp_path, complete):
    """Also where the import is of several lines and the path to the harness leads nowhere."""
    script = tmp_path / "single.py"
    script.write_text(harness.bundle(SCRIPT))
    done = launch(*CPU, "--out_dir=run_0", script=script, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert read(tmp_path / "run_0") == read(complete[0])


# ---- Faults ----------------------------------------------------------------------------------------------------------

FAULTS = {  # what is replaced in the study, by what, and what standard error says
    "a loss of nothing": (
        "loss = (weights * losses).sum() / weights.sum()",
        "loss = (weights * losses).sum() / (weights.sum() - 4)",
        r"small_study\.py: the loss is not finite at width=\d+, seed=0, step=3\n",
    ),
    "what is observed is no number": (
        'return logits | {"weights"',
        'return {part: values / 0 * 0 for part, values in logits.items()} | {"weights"',
        r"small_study\.py: .* not finite at width=\d+, seed=0, step=0\n",
    ),
    "a number that no file can hold": (
        'numbers[f"{part}_accuracy"] = accuracy(',
        'numbers[f"{part}_accuracy"] = torch.ones(1).numpy()[0] * accuracy(',
        r"(?s).*  in cell width_\d+_epochs_\d \(seed 0\), after step 0\nsmall_study\.py failed: TypeError: .*float32.*",
    ),
    "an error in the loss": (
        "losses = F.cross_entropy(",
        "losses = [][len(weights)] + F.cross_entropy(",
        r"(?s).*  line LINE in loss: losses = .*\n  in cell width_\d+_epochs_\d \(seed 0\), after step 0\n"
        r"small_study\.py failed: IndexError: list index out of range\n",
    ),
    "an error in the last cell": (
        "steps = self.first_steps(points)\n",
        "steps = self.first_steps(points) if len(points) < 4 else 1 / 0\n",
        r"(?s).*  line LINE in cell: steps = .*\n  in cell width_\d+_epochs_4 \(seed 0\), after step \d+\n"
        r"small_study\.py failed: ZeroDivisionError: division by zero\n",
    ),
    "two trajectories of one name": (
        'cells={n: f"width_{width}_epochs_{e}"',
        'cells={n: f"epochs_{e}"',
        r"(?s).*ValueError: plan\(\) must have a cell once per seed: epochs_1_s0 is there twice\n",
    ),
}


@pytest.mark.parametrize("what", FAULTS)
def test_a_fault_tells_the_line_of_the_study_and_the_cell_and_leaves_nothing_unmended(tmp_path, what):
    right, wrong, told = FAULTS[what]
    source, script = SCRIPT.read_text(), tmp_path / "small_study.py"
    assert source.count(right) == 1
    script.write_text(source.replace(right, wrong))
    arguments = [*CPU, "--preset", "quick", "--out_dir", tmp_path / "run_0"]
    done = launch(*arguments, script=script)
    told = told.replace("LINE", str(source[: source.index(right)].count("\n") + 1))
    assert done.returncode == 1 and re.fullmatch(told, done.stderr), done.stderr
    assert len(done.stderr) <= 1500 and not (tmp_path / "run_0" / "final_info.json").exists()
    if "last cell" not in what:  # there the first cells were saved, by another script
        assert launch(*arguments, script=SCRIPT).returncode == 0


def first_point_only(monkeypatch) -> list[int]:
    """After which updates a model is observed."""
    observe, steps = harness.Ensemble.observe, []
    monkeypatch.setattr(
        harness.Ensemble, "observe", lambda ensemble, e: steps.append(ensemble.step) or observe(ensemble, e)
    )
    return steps


def none_at_all(config):
    return {}["edited"]


SLIPS = {
    "a misspelt headline": ("headlines", lambda config: ("test_accuracy", "tset_loss"), "headline tset_loss of"),
    "a headline that is text": ("headlines", lambda config: ("cell",), "headline cell of"),
    "a headline that is a list": ("headlines", lambda config: ("steps",), "headline steps of"),
    "headlines that fail": ("headlines", none_at_all, "edited"),
    "no headlines": ("headlines", lambda config: None, "<lambda>(), or what it returned"),
    "final numbers": ("cell", lambda self, points: {"test_loss": points[-1]["no such number"]}, "no such number"),
    "final numbers that are none": ("cell", lambda self, points: None, "<lambda>(), or what it returned"),
    "a final number of the wrong kind": ("cell", lambda self, points: {"test_loss": {1, 2}}, "test_loss must be"),
    "what else is kept": ("extras", lambda self, points: self.nothing, "nothing"),
    "what else is kept, of the wrong kind": ("extras", lambda self, points: {"kept": b""}, "kept must be"),
    "what else is kept, by a name that is taken": ("extras", lambda self, points: {"seed": 0}, "must leave seed to"),
    "an objective that is no scalar": (
        "loss",
        lambda self, model, **_: (torch.ones(2), {}),
        "objective is tensor([1., 1",
    ),
    "a report that is no tensor": (
        "loss",
        lambda self, model, **_: (torch.ones(()), {"a": 1.0}),
        "scalar tensors: a is 1.0",
    ),
    "a measured number of the wrong kind": ("measure", lambda self, *_: {"loss": torch.ones(1)}, "loss must be"),
}


@pytest.mark.parametrize("what", SLIPS)
def test_a_slip_after_training_shows_at_the_first_measured_point(tmp_path, monkeypatch, capsys, what):
    place, wrong, told = SLIPS[what]
    if place == "headlines":
        study = dataclasses.replace(small_study.STUDY, headlines=wrong)
        monkeypatch.setattr(small_study, "STUDY", study)
    else:
        monkeypatch.setattr(small_study.CrossTrajectory, place, wrong)
    steps = first_point_only(monkeypatch)
    assert small_study.main([*CPU, "--plain", "--out_dir", str(tmp_path / "run")]) == 1
    first = 0 if place in ("measure", "loss") else 5
    assert max(steps, default=0) == first
    err = capsys.readouterr().err
    assert told in err and f"in cell width_6_epochs_14 (seed 0), after step {first}" in err, err


@pytest.mark.parametrize("yardstick", [(3,), ("accuracy",), (max,)])
def test_a_yardstick_that_is_none_shows_before_anything_is_written(tmp_path, monkeypatch, capsys, yardstick):
    monkeypatch.setattr(small_study, "STUDY", dataclasses.replace(small_study.STUDY, yardstick=yardstick))
    assert small_study.main([*CPU, "--out_dir", str(tmp_path / "run")]) == 1
    assert "YARDSTICK" in capsys.readouterr().err and not (tmp_path / "run").exists()
