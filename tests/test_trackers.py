"""Trackers get every number of every trajectory, and whatever they do, the run ends as without them."""

import json
import multiprocessing
import os
import re
import struct
import subprocess
import sys
import threading

import experiment
import harness

import pytest
from conftest import ROOT, launch

TINY = "--n_layers 1 --n_heads 1 --d_model 16 --batch_size 8 --n_test 8 --seq_len 4 --device cpu".split()
GRID = [*TINY, "--tasks", "2", "--steps", "150", "250", "--seeds", "2"]
STEMS = ["D2_N250_s0", "D2_N250_s1"]


@pytest.fixture(scope="module")
def without(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trackers") / "run_0"
    done = launch(*GRID, "--out_dir", folder)
    assert done.returncode == 0, done.stderr
    return folder


def wanted(folder, seed: int) -> dict[str, dict[int, float]]:
    """Of a trajectory every measured number by step, and the mean training loss there."""
    trajectory = json.loads((folder / "all_results.json").read_bytes())["trajectories"][seed]
    curves = trajectory["curves"]
    rows = {key: dict(zip(curves["step"], values, strict=True)) for key, values in curves.items() if key != "step"}
    return {key: row for key, row in rows.items() if not isinstance([*row.values()][-1], list | dict)}


def check(found: dict[str, dict[int, float]], folder, seed: int) -> None:
    """The numbers that a tracker has, by name and step: all that were measured, and the loss of every update."""
    for key, row in wanted(folder, seed).items():
        assert found[key] == pytest.approx({step: x for step, x in row.items() if x is not None}, rel=1e-6), key
    losses = found["train/loss"]
    assert [*losses] == [*range(1, 251)]
    for step, mean in wanted(folder, seed)["loss"].items():
        last = [losses[update] for update in range(max(1, step - 99), step + 1)]
        assert sum(last) / len(last) == pytest.approx(mean, rel=1e-5)


def in_tensorboard(folder, stem: str) -> dict[str, dict[int, float]]:
    """What TensorBoard shows."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard" / stem), size_guidance={"scalars": 0}).Reload()
    found = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert all(len(dict(row)) == len(row) for row in found.values()), "a step is there twice"
    return {tag: dict(row) for tag, row in found.items()}


def in_wandb(path) -> tuple[object, dict[str, dict[int, float]]]:
    """What `wandb sync` would send: the run, and its history. The file is a log of blocks as in LevelDB."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, records, place = path.read_bytes(), [], 7
    while len(content) - place > 7:
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
        size, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        part, place = content[place + 7 : place + 7 + size], place + 7 + size
        if kind in (1, 2):
            records.append(b"")
        records[-1] += part
    found, run = {}, None
    for record in map(Record.FromString, records):
        if record.WhichOneof("record_type") == "run":
            run = record.run
        row = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
        for key in row.keys() - {"_step"}:
            found.setdefault(key, {})[row["_step"]] = row[key]
    return run, found


def test_tensorboard_has_every_number_of_every_trajectory(tmp_path, without):
    done = launch(*GRID, "--out_dir", tmp_path / "run", "--track", "tensorboard")
    assert done.returncode == 0 and done.stderr == ""
    assert (tmp_path / "run" / "final_info.json").read_bytes() == (without / "final_info.json").read_bytes()
    assert sorted(path.name for path in (tmp_path / "run" / "tensorboard").iterdir()) == STEMS
    for seed, stem in enumerate(STEMS):
        check(in_tensorboard(tmp_path / "run", stem), without, seed)
    launch(*GRID, "--out_dir", tmp_path / "run", "--overwrite")
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_wandb_has_every_number_in_a_run_per_trajectory_grouped_by_folder(tmp_path, without, monkeypatch, capfd):
    """Offline; a killed run is continued in the same ones, also below an agent of a sweep, which has one run."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_PROJECT", "urns")
    folder = tmp_path / "run"
    kill(folder, "wandb")
    monkeypatch.setenv("WANDB_SWEEP_ID", "sweep")
    monkeypatch.setenv("WANDB_RUN_ID", "agent")
    assert experiment.main([*GRID, "--out_dir", str(folder), "--track", "wandb"]) == 0
    assert capfd.readouterr().err == ""
    assert (folder / "final_info.json").read_bytes() == (without / "final_info.json").read_bytes()
    ids, histories = {stem: set() for stem in STEMS}, {stem: {} for stem in STEMS}
    for path in sorted(folder.glob("wandb/offline-run-*/run-*.wandb")):
        own, found = in_wandb(path)
        assert (own.project, own.run_group) == ("urns", "run")
        assert json.loads({item.key: item.value_json for item in own.config.update}["alpha"]) == 1.0
        ids[own.display_name].add(own.run_id)
        for key, row in found.items():
            histories[own.display_name].setdefault(key, {}).update(row)
    assert [len(own) for own in ids.values()] == [1, 1] and len(set.union(*ids.values())) == 2
    for seed, history in enumerate(histories.values()):
        check({key: dict(sorted(row.items())) for key, row in history.items()}, without, seed)


def test_a_continued_run_continues_in_tensorboard_and_no_update_is_there_twice(tmp_path, without, capfd):
    kill(tmp_path / "run", "tensorboard")
    assert experiment.main([*GRID, "--out_dir", str(tmp_path / "run"), "--track", "tensorboard"]) == 0
    out, err = capfd.readouterr()
    after = re.findall(r"after step (\d+)", out)  # one of the two processes may have been faster
    assert err == "" and len(after) == 2 and "150" in after
    for seed, stem in enumerate(STEMS):
        check(in_tensorboard(tmp_path / "run", stem), without, seed)


def kill(folder, kind: str) -> None:
    """A run of which one trajectory at least is between its checkpoints of 150 and 250 updates, and its processes, are
    killed."""
    arguments = [*GRID, "--out_dir", str(folder), "--track", kind]
    code = f"import experiment, test_run_directory as t; t.sabotage((9, '^step', 450)); experiment.main({arguments})"
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path}, capture_output=True)
    assert done.returncode == -9, done.stderr


def fails(*_):
    raise ConnectionError("no network:\nthe key is bad")


def fails_later(*_):
    return lambda step, numbers: step > 100 and fails(), None


def fails_at_the_end(*_):
    return lambda step, numbers: None, fails


def hangs(*_):
    threading.Event().wait()


def dies(*_):
    os._exit(3)


def prints(*_):
    os.write(2, b"noise\n")
    print("noise", flush=True)
    return lambda step, numbers: os.write(1, b"noise\n"), lambda: None


@pytest.mark.parametrize("plain", [[], ["--plain"]])
@pytest.mark.parametrize(
    ("logger", "line"),
    [(fails, "ConnectionError: no network: the key is bad"), (fails_later, "ConnectionError"), (prints, None)]
    + [(fails_at_the_end, "ConnectionError"), (hangs, "not ready 0.5 seconds after"), (dies, "does not listen")],
)
def test_whatever_a_tracker_does_costs_one_line(tmp_path, without, monkeypatch, capfd, logger, line, plain):
    monkeypatch.setitem(harness.TRACKERS, "wandb", logger)
    monkeypatch.setattr(harness, "TRACKER_SECONDS", 0.5 if logger is hangs else 60)
    capfd.readouterr()
    assert experiment.main([*GRID, "--out_dir", str(tmp_path / "run"), "--track", "wandb", *plain]) == 0
    out, err = capfd.readouterr()
    assert "noise" not in out + err
    if line:
        (said,) = err.splitlines()
        assert said.startswith("--track wandb has ended, the run goes on: ") and line in said
    else:
        assert err == ""
    assert (tmp_path / "run" / "final_info.json").read_bytes() == (without / "final_info.json").read_bytes()
    assert {path.name for path in (tmp_path / "run").iterdir()} == {path.name for path in without.iterdir()}
    assert not multiprocessing.active_children()


def test_two_runs_are_two_of_a_tracker_too(tmp_path, monkeypatch):
    """Another folder, and the same one trained anew: the ids of trajectories that are called the same differ."""

    def tell(path, run_id, *_):
        with open(tmp_path / "ids", "a") as file:
            file.write(f"{run_id}\n")
        return lambda step, numbers: None, lambda: None

    monkeypatch.setitem(harness.TRACKERS, "wandb", tell)
    for arguments in (["run_0"], ["run_1"], ["run_1", "--overwrite"]):
        short = [*TINY, "--tasks", "2", "--steps", "5", "--track", "wandb", "--out_dir"]
        assert experiment.main([*short, str(tmp_path / arguments[0]), *arguments[1:]]) == 0
    assert len({*(tmp_path / "ids").read_text().split()}) == 3


def test_a_tracker_that_is_not_there_is_named_and_nothing_is_touched(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "wandb").mkdir()  # which is no package
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    assert experiment.main([*GRID, "--track", "wandb"]) == 2
    assert "--track wandb: must be installed (pip install wandb)" in capsys.readouterr().err
    assert experiment.main([*GRID, "--track", "mlflow"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--track" in line and "mlflow" in line and "tensorboard" in line
    assert [path.name for path in tmp_path.iterdir()] == ["wandb"]
