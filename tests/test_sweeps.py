"""The examples of sweeps, on a small copy of the script."""

import json
import os
import re
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

from experiment import STUDY
from harness import parse_arguments

import pytest
import yaml
from conftest import ROOT
from every_study import copy
from test_trackers import in_wandb


@pytest.fixture
def folder(tmp_path) -> Path:
    """A copy of the repository with a small study, and the search for the best of its loss at D = 3."""
    copy("balls_and_urns", tmp_path)
    shutil.copytree(ROOT / "sweeps", tmp_path / "sweeps")
    search = tmp_path / "sweeps" / "optuna_search.py"
    text = search.read_text()
    assert text.count("\n") <= 40
    small = {"--tasks 32 --steps 1000": "--tasks 3 --steps 5", "D32_N1000": "D3_N5"}
    search.write_text(re.sub("|".join(small), lambda found: small[found[0]], text))
    return tmp_path


def python(folder: Path, script: str, *words, **variables) -> str:
    command = [sys.executable, f"sweeps/{script}", *words]
    done = subprocess.run(command, cwd=folder, env=os.environ | variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_optuna_minimizes_a_number_of_final_info_and_goes_on(folder):
    for n in (1, 2):
        told = python(folder, "optuna_search.py", "1")
        runs = [json.loads(path.read_bytes()) for path in folder.glob("sweep/run_*/final_info.json")]
        assert len(runs) == n
        best = min(final_info["D3_N5"]["means"]["train_loss_mean"] for final_info in runs)
        assert re.search(r"^best: (\S+) with", told, re.M)[1] == f"{best:.4f}"


def test_a_wandb_sweep_passes_lists_and_has_the_means_of_final_info(folder, tmp_path):
    sweep = yaml.safe_load((folder / "sweeps" / "wandb_sweep.yaml").read_text())
    choices = [told.get("values") or [told["value"]] for told in sweep["parameters"].values()]
    for values in product(*choices):
        words = []
        for key, x in zip(sweep["parameters"], values, strict=True):
            words += [f"--{key}", *map(str, x if isinstance(x, list) else [x])]
        config = parse_arguments(STUDY, words)[0]
        assert sweep["metric"]["name"] == f"D{config.tasks[0]}_N{config.steps[0]}/train_loss"
        assert sweep["program"] == "sweeps/wandb_run.py"
    settings = {"tasks": [2, 3], "steps": [5], "lr": 0.01}
    (tmp_path / "settings.yaml").write_text(yaml.safe_dump({key: {"value": x} for key, x in settings.items()}))
    sweep = {"WANDB_SWEEP_ID": "sweep", "WANDB_SWEEP_PARAM_PATH": str(tmp_path / "settings.yaml")}
    python(folder, "wandb_run.py", WANDB_MODE="offline", WANDB_RUN_ID="agent", **sweep)
    final_info = json.loads((folder / "sweep" / "agent" / "final_info.json").read_bytes())
    assert [*final_info] == ["D2_N5", "D3_N5"]
    (path,) = folder.glob("wandb/offline-run-*/run-agent.wandb")
    own, _ = in_wandb(path)
    assert json.loads({item.key: item.value_json for item in own.config.update}["tasks"]) == [2, 3]
    assert b"D3_N5/train_loss" in path.read_bytes()
