"""Results of a complete run: what grows is trained where it is missing, what was lost is written again."""

import csv
import json
import math
import re
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

import experiment
import harness

import numpy as np
import pandas
import pytest
import small_study
import torch
from conftest import ROOT, launch

TINY = "--n_layers 1 --n_heads 2 --d_model 16 --batch_size 8 --n_test 8 --seq_len 4 --device cpu".split()
SMALL = [*TINY, "--tasks", "3", "--steps", "10"]
RESULTS = ("all_results.json", "cells.csv", "final_info.json")
main = experiment.main


def run(folder: Path, *arguments, grid=SMALL, main=main) -> int:
    return main([*grid, *map(str, arguments), "--out_dir", str(folder)])


def results(folder: Path) -> tuple[bytes, bytes, dict]:
    """What must be the same bytes, and what else must be the same."""
    everything = json.loads((folder / "all_results.json").read_bytes())
    del everything["timing"]
    return (folder / "final_info.json").read_bytes(), (folder / "cells.csv").read_bytes(), everything


def steps(folder: Path) -> int:
    return json.loads((folder / "all_results.json").read_bytes())["timing"]["model_steps"]


def listing(folder: Path) -> dict[str, tuple]:
    paths = [folder, *folder.rglob("*")]
    return {str(path): (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in paths}


@pytest.fixture(scope="module")
def complete(tmp_path_factory) -> Path:
    """The folder of a complete run of one seed, not to be changed."""
    folder = tmp_path_factory.mktemp("complete") / "run_0"
    assert run(folder) == 0
    return folder


@pytest.fixture
def folder(complete, tmp_path) -> Path:
    return shutil.copytree(complete, tmp_path / "run_0")


# ---- More cells ------------------------------------------------------------------------------------------------------


def test_one_seed_grows_to_two_and_three_and_ends_with_the_same_bytes(folder, tmp_path):
    for seeds in (2, 3):
        assert run(folder, "--seeds", seeds) == 0
        assert steps(folder) == 10
        assert run(tmp_path / f"{seeds}", "--seeds", seeds) == 0 and steps(tmp_path / f"{seeds}") == 10 * seeds
        assert results(folder) == results(tmp_path / f"{seeds}")
    assert sorted(path.name for path in folder.iterdir()) == sorted(RESULTS)


def test_a_run_of_several_cells_per_model_grows_though_only_its_last_points_have_every_number(tmp_path):
    """What a point does not have is null in the curves of a complete run."""
    grid = ["--steps", "5", "10", "150"]
    assert run(tmp_path / "run", *grid) == 0
    assert run(tmp_path / "run", *grid, "--seeds", 2) == 0 and steps(tmp_path / "run") == 150
    assert run(tmp_path / "run", *grid, "--seeds", 2, "--tasks", 3, 5) == 0 and steps(tmp_path / "run") == 300
    assert run(tmp_path / "anew", *grid, "--seeds", 2, "--tasks", 3, 5) == 0
    assert results(tmp_path / "run") == results(tmp_path / "anew")


def test_how_long_a_model_took_stays_known_when_the_run_grows(folder):
    def seconds() -> dict[str, float]:
        return json.loads((folder / "all_results.json").read_bytes())["timing"]["seconds_by_model"]

    before = seconds()
    assert run(folder, "--seeds", 2) == 0
    grown = seconds()
    assert [*grown] == ["D3_N10_s0", "D3_N10_s1"] and min(grown.values()) > 0
    assert grown["D3_N10_s0"] == before["D3_N10_s0"]
    (folder / "final_info.json").unlink()
    assert run(folder, "--seeds", 2) == 0 and seconds() == grown


@pytest.mark.parametrize(
    "arguments, missing",
    [
        (["--tasks", "3", "5"], 10),
        (["--tasks", "5", "3"], 10),
        (["--tasks", "2", "3", "5", "--seeds", "2"], 50),
        (["--steps", "10", "30"], 30),  # the model of 10 steps is gone
        (["--steps", "5", "10", "--tasks", "3", "5"], 20),
    ],
)
def test_more_of_a_grid_is_trained_where_it_is_missing(folder, tmp_path, arguments, missing):
    assert run(folder, *arguments) == 0 and steps(folder) == missing
    assert run(tmp_path / "anew", *arguments) == 0
    assert results(folder) == results(tmp_path / "anew")


def test_where_every_number_of_steps_is_trained_alone_only_new_ones_are(tmp_path, monkeypatch):
    decay = lambda self, update, updates: 0.01 * (1 - update / updates)  # noqa: E731
    monkeypatch.setattr(experiment.UrnTrajectory, "learning_rate", decay)
    assert run(tmp_path / "run", "--steps", 10, 20) == 0
    assert run(tmp_path / "run", "--steps", 10, 15, 20) == 0 and steps(tmp_path / "run") == 15
    assert run(tmp_path / "anew", "--steps", 10, 15, 20) == 0
    assert results(tmp_path / "run") == results(tmp_path / "anew")


def test_another_study_grows_as_well(tmp_path):
    grid = ["--device=cpu", "--epochs", "1", "4", "--widths", "6", "12"]
    assert run(tmp_path / "run", "--seeds", 1, grid=grid, main=small_study.main) == 0
    assert run(tmp_path / "run", "--seeds", 2, grid=grid, main=small_study.main) == 0
    grid[-2:] = ["4", "6", "12"]
    assert run(tmp_path / "run", "--seeds", 2, grid=grid, main=small_study.main) == 0
    assert run(tmp_path / "anew", "--seeds", 2, grid=grid, main=small_study.main) == 0
    assert results(tmp_path / "run") == results(tmp_path / "anew")


@pytest.mark.parametrize(
    "arguments, told",
    [
        (["--widths", "6", "12", "24"], "widths [6, 12] -> [6, 12, 24]"),  # others would be trained otherwise
        (["--targets", "0.5", "0.8", "0.95"], "targets"),  # a list that is no axis of the grid
        (["--dropout", "0.1", "--seeds", "2"], "dropout 0.05 -> 0.1"),
        (["--widths", "12"], "widths"),
        (["--seed", "1"], "seed 0 -> 1"),
        (["--seeds", "2", "--epochs", "4"], "epochs"),
    ],
)
def test_whatever_else_differs_is_refused_and_nothing_is_touched(tmp_path, capsys, arguments, told):
    grid = ["--device=cpu", "--epochs", "1", "4", "--seeds", "1"]
    assert run(tmp_path / "run", grid=grid, main=small_study.main) == 0
    before = listing(tmp_path)
    capsys.readouterr()
    assert run(tmp_path / "run", *arguments, grid=grid, main=small_study.main) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and told in err
    assert listing(tmp_path) == before


@pytest.mark.parametrize("method", ["batches", "loss", "observe", "model"])
def test_what_a_method_reads_off_a_list_that_grows_is_noticed(folder, monkeypatch, capsys, method):
    """A model of three trained beside another one would not be what it is alone."""
    right = getattr(experiment.UrnTrajectory, method)

    def reading(self, *arguments, **named):
        torch.default_generator.manual_seed(len(self.config.tasks))
        found = right(self, *arguments, **named)
        if method == "batches":
            return found | {"codes": found["codes"] * len(self.config.tasks)}
        if method == "loss":
            return found[0] * len(self.config.tasks), found[1]
        if method == "observe":
            return {name: values * len(self.config.tasks) for name, values in found.items()}
        return found

    before = listing(folder)
    monkeypatch.setattr(experiment.UrnTrajectory, method, reading)
    capsys.readouterr()
    assert run(folder, "--tasks", 3, 5) == 2 and listing(folder) == before
    told = capsys.readouterr().err
    assert "tasks [3] -> [3, 5]" in told and ("read off config" in told or method == "observe")
    assert run(folder, "--seeds", 2) == (2 if method == "observe" else 0)  # another yardstick, else no difference


def test_fewer_are_refused_and_nothing_is_touched(folder, capsys):
    assert run(folder, "--seeds", 2, "--tasks", 3, 5) == 0
    before = listing(folder)
    for arguments in (["--seeds", 1, "--tasks", 3, 5], ["--seeds", 2], []):
        capsys.readouterr()
        assert run(folder, *arguments) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert listing(folder) == before


def test_a_run_that_grows_may_be_interrupted_and_meanwhile_keeps_what_it_had(folder, tmp_path, monkeypatch, capsys):
    before, advance = results(folder), harness.Ensemble.advance

    def fails(ensemble, *arguments):
        if ensemble.first.seed == 2:
            raise OSError("edited")
        return advance(ensemble, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(harness.Ensemble, "advance", fails)
        assert run(folder, "--seeds", 3, "--plain") == 1
    assert results(folder) == before
    assert run(folder) == 2 and run(folder, "--seeds", 2) == 2  # it is one of three seeds now
    assert run(folder, "--seeds", 3) == 0 and steps(folder) == 10
    assert run(tmp_path / "anew", "--seeds", 3) == 0
    assert results(folder) == results(tmp_path / "anew")


def test_a_run_that_cannot_grow_at_all_stays_what_it_was(folder, monkeypatch):
    before = listing(folder)
    with monkeypatch.context() as patch:
        patch.setattr(harness, "train", lambda *_: 1 / 0)
        assert run(folder, "--seeds", 3, "--plain") == 1
    assert {name: content for name, (_, content) in listing(folder).items()} == {
        name: content for name, (_, content) in before.items()
    }
    assert run(folder) == 0


def test_an_edited_script_does_not_grow_a_run(complete, tmp_path):
    folder = shutil.copytree(complete, tmp_path / "run_0")
    for name in ("experiment.py", "harness.py"):
        for script in ("experiment.py", "harness.py"):
            shutil.copy(ROOT / script, tmp_path)
        (tmp_path / name).write_text((ROOT / name).read_text() + "\n# edited\n")
        before = listing(folder)
        done = launch(*SMALL, "--seeds=2", "--out_dir", folder, script=tmp_path / "experiment.py")
        told = {"experiment.py": "script_sha256", "harness.py": "harness_sha256"}[name]
        assert done.returncode == 2 and re.search(rf"{told} \w{{8}} -> \w{{8}}[,)]", done.stderr), done.stderr
        assert done.stderr.count("\n") == 1
        assert listing(folder) == before


@dataclass(frozen=True)
class Unlimited(experiment.Config):
    """With values that strict JSON does not have."""

    limit: float = math.inf
    center: float = math.nan


@dataclass(frozen=True, kw_only=True, eq=False)
class Arrayed(experiment.UrnTrajectory):
    """With settings that cannot be compared by ==."""

    weights: torch.Tensor = field(default_factory=lambda: torch.ones(3))
    table: np.ndarray = field(default_factory=lambda: np.ones(3))
    rule: object = field(default_factory=lambda: lambda: None)


def test_a_complete_run_is_known_whatever_its_settings_are(tmp_path, capsys):
    def plan(config):
        return [Arrayed(**vars(trajectory)) for trajectory in experiment.plan(config)]

    study = replace(experiment.STUDY, Config=Unlimited, plan=plan)
    again = lambda argv: harness.run_study(study, argv)  # noqa: E731
    assert run(tmp_path / "run", main=again) == 0
    before = listing(tmp_path / "run")
    assert run(tmp_path / "run", main=again) == 0 and listing(tmp_path / "run") == before
    assert "is complete" in capsys.readouterr().out
    assert run(tmp_path / "run", "--limit", "3", main=again) == 2
    assert "limit None -> 3.0" in capsys.readouterr().err


# ---- The table of cells ----------------------------------------------------------------------------------------------


def test_the_table_has_a_row_per_cell_and_seed_and_the_numbers_of_the_json(tmp_path):
    folder = tmp_path / "run_0"
    assert run(folder, "--tasks", 3, 2, "--steps", 10, 5, "--seeds", 2, "--alpha", 0.001) == 0
    cells = json.loads((folder / "all_results.json").read_bytes())["cells"]
    table = pandas.read_csv(folder / "cells.csv")
    assert list(zip(table["cell"], table["seed"], strict=True)) == [(cell["cell"], cell["seed"]) for cell in cells]
    nulls = 0
    with open(folder / "cells.csv", newline="") as file:
        for row, text, cell in zip(table.to_dict("records"), csv.DictReader(file), cells, strict=True):
            assert row["reference.orbit.kl_to_m"] == cell["reference"]["orbit"]["kl_to_m"]
            assert row["exact_kl_to_m_by_length.2"] == cell["exact_kl_to_m_by_length"][2]
            assert row.keys() == text.keys() >= dict(harness.leaves(cell)).keys()
            assert all(text[key] == "" for key in text.keys() - dict(harness.leaves(cell)).keys())
            for key, value in harness.leaves(cell):
                nulls += value is None
                assert text[key] == ("" if value is None else str(value))
                assert math.isnan(row[key]) if value is None else row[key] == value
    assert nulls > 0  # an urn that never shows a color is infinitely far from some predictions


def test_text_lists_and_booleans_have_columns_and_what_a_cell_lacks_is_empty():
    trajectories = harness.planned(small_study.STUDY, small_study.Config(seeds=1, epochs=(1,)))
    cells = [{"a": 'x, "y"\nz', "b": [1, {"c": True}]}, {"d": float("nan"), "b": None}]
    for progress, cell in zip(trajectories, cells, strict=True):
        progress.cells = {
            progress.trajectory.cells[progress.trajectory.updates]: cell | dict.fromkeys(small_study.headlines(None), 1)
        }
    here = harness.RunDirectory(Path("nowhere"), small_study.STUDY, small_study.Config(), torch.device("cpu"))
    rows = list(csv.DictReader(here.contents(trajectories, {})["cells.csv"].decode().splitlines(keepends=True)))
    assert [row["a"] for row in rows] == ['x, "y"\nz', ""] and [row["b.1.c"] for row in rows] == ["True", ""]
    assert [row["b.0"] for row in rows] == ["1", ""] and [row["d"] for row in rows] == ["", ""]


# ---- Lost and damaged ------------------------------------------------------------------------------------------------

DAMAGE = {
    "empty": lambda content: b"",
    "cut": lambda content: content[: len(content) // 2],
    "placeholder": lambda content: b"{}",
    "another placeholder": lambda content: b'{"status": "running"}\n',
    "null": lambda content: b"null",
    "no JSON": lambda content: b"\x00\xff\xfe",
    "removed": None,
}


def damage(path: Path, how: str) -> None:
    path.unlink() if DAMAGE[how] is None else path.write_bytes(DAMAGE[how](path.read_bytes()))


@pytest.mark.parametrize("name", ["final_info.json", "cells.csv"])
@pytest.mark.parametrize("how", DAMAGE)
def test_a_result_that_was_lost_is_written_again_from_all_results(folder, complete, monkeypatch, name, how):
    damage(folder / name, how)
    monkeypatch.setattr(harness.Ensemble, "__init__", lambda *_: 1 / 0)  # nothing is trained
    assert run(folder) == 0
    for result in RESULTS:
        assert (folder / result).read_bytes() == (complete / result).read_bytes()


@pytest.mark.parametrize("how", [how for how in DAMAGE if how != "placeholder"])
@pytest.mark.parametrize("both", [False, True])
def test_where_all_results_is_lost_one_line_names_it_and_overwrite(folder, complete, capsys, how, both):
    damage(folder / "all_results.json", how)
    if both:
        damage(folder / "final_info.json", "cut")
    before = listing(folder)
    capsys.readouterr()
    assert run(folder) == 2
    out, err = capsys.readouterr()
    name = "final_info.json is there" if how == "removed" else "all_results.json is there"
    assert out == "" and err.count("\n") == 1 and name in err and "--overwrite" in err, err
    assert listing(folder) == before
    assert run(folder, "--overwrite") == 0
    assert results(folder) == results(complete)


@pytest.mark.parametrize("timing", [None, [], "text", 3])
def test_all_results_of_another_form_is_not_whole(folder, capsys, timing):
    everything = json.loads((folder / "all_results.json").read_bytes())
    cells = [cell | {"kl_to_g": "text"} for cell in everything["cells"]]
    twice = everything["cells"] + [everything["cells"][0] | {"kl_to_g": 1.0}]
    for wrong in ({"timing": timing}, {"cells": cells}, {"cells": [["cell", "seed"]]}, {"cells": twice}):
        (folder / "all_results.json").write_text(json.dumps(everything | wrong))
        capsys.readouterr()
        assert run(folder) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and "all_results.json" in err and "--overwrite" in err


def test_a_field_that_this_script_does_not_have_is_told(folder, capsys):
    everything = json.loads((folder / "all_results.json").read_bytes())
    everything["config"]["momentum"] = 0.9
    (folder / "all_results.json").write_text(json.dumps(everything))
    assert run(folder) == 2 and "(momentum 0.9 -> None)" in capsys.readouterr().err


def test_results_that_disagree_are_told_and_not_touched(folder, capsys):
    text = (folder / "all_results.json").read_text()
    everything = json.loads(text)
    everything["cells"][0]["kl_to_g"] += 1
    (folder / "all_results.json").write_text(json.dumps(everything))
    before = listing(folder)
    assert run(folder) == 2 and listing(folder) == before
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "all_results.json" in err and "final_info.json" in err and "--overwrite" in err


def test_a_run_with_a_value_that_json_lacks_grows(tmp_path):
    study = replace(experiment.STUDY, Config=Unlimited)
    again = lambda argv: harness.run_study(study, argv)  # noqa: E731
    assert run(tmp_path / "run", main=again) == 0
    assert run(tmp_path / "run", "--seeds", 2, main=again) == 0 and steps(tmp_path / "run") == 10
    assert run(tmp_path / "anew", "--seeds", 2, main=again) == 0
    assert results(tmp_path / "run")[:2] == results(tmp_path / "anew")[:2]


@pytest.mark.parametrize("part", ["last_task", "late", "measure", "finished", "cell", "extras"])
def test_what_is_read_off_a_list_late_or_of_one_model_alone_is_noticed(tmp_path, monkeypatch, capsys, part):
    right = experiment.UrnTrajectory

    def optimizer(self, params, lr):
        return torch.optim.AdamW(params.values(), lr=lr * (5 if self.n_tasks == self.config.tasks[-1] else 1))

    def batches(self, first, n, device):
        found = batches.right(self, first, n, device)
        return found | {"codes": found["codes"] * (1 if first < 200 else len(self.config.tasks))}

    batches.right = right.batches
    cell, extras, measure = right.cell, right.extras, right.measure
    edits = {
        "last_task": ("optimizer", optimizer),
        "late": ("batches", batches),
        "cell": ("cell", lambda self, points: cell(self, points) | {"tasks": len(self.config.tasks)}),
        "measure": ("measure", lambda self, *found: measure(self, *found) | {"tasks": len(self.config.tasks)}),
        "finished": ("finished", lambda self, points: len(self.config.tasks) > 2),
        "extras": ("extras", lambda self, points: extras(self, points) | {"tasks": len(self.config.tasks)}),
    }
    monkeypatch.setattr(right, *edits[part])
    grid = ["--tasks", 2, 3, "--steps", 250 if part == "late" else 10]
    assert run(tmp_path / "run", *grid) == 0
    capsys.readouterr()
    assert run(tmp_path / "run", "--tasks", 2, 3, 4, *grid[3:]) == 2
    assert "): what its methods read off config makes " in capsys.readouterr().err


def test_a_yardstick_that_was_overwritten_does_not_grow_a_run(folder, monkeypatch, capsys):
    right = experiment.kl_divergence
    monkeypatch.setattr(experiment, "kl_divergence", lambda p, q: 2 * right(p, q))
    assert run(folder, "--seeds", 2) == 2 and "yardstick_sha256" in capsys.readouterr().err


def test_a_run_that_grows_on_another_machine_says_where_its_parts_are_from(folder, monkeypatch):
    first = json.loads((folder / "all_results.json").read_bytes())["environment"]
    monkeypatch.setattr(harness.platform, "platform", lambda: "another")
    assert run(folder, "--seeds", 2) == 0
    everything = json.loads((folder / "all_results.json").read_bytes())
    assert everything["environment"]["platform"] == "another" and everything["earlier_environments"] == [first]
    before = listing(folder)
    assert run(folder, "--seeds", 2) == 0 and listing(folder) == before


def test_a_folder_where_a_result_should_be_is_one_line(folder, capsys):
    (folder / "final_info.json").unlink()
    (folder / "final_info.json").mkdir()
    assert run(folder) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot write" in line and "final_info.json" in line


@pytest.mark.parametrize("how", [how for how in DAMAGE if how != "removed"])
def test_a_damaged_marker_beside_whole_results_does_not_matter(folder, complete, how):
    """The run was killed while it removed its checkpoints."""
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint" / "fingerprint.json").write_bytes(json.dumps({"config": {}}).encode())
    damage(folder / "checkpoint" / "fingerprint.json", how)
    assert run(folder) == 0
    assert results(folder) == results(complete) and not (folder / "checkpoint").exists()


@pytest.mark.parametrize("cell", [{"a": {"b": 1}, "a.b": 2}, {"a": {1: 1.0, "1": 2.0}}])
def test_two_numbers_of_one_name_are_refused(cell):
    with pytest.raises(TypeError, match=r"a\.[b1] must be one number"):
        harness.plain(cell)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_the_same_when_it_is_read_again(tmp_path, monkeypatch, value):
    cell = experiment.UrnTrajectory.cell
    monkeypatch.setattr(experiment.UrnTrajectory, "cell", lambda self, points: cell(self, points) | {"kl_to_g": value})
    assert run(tmp_path / "run") == 0
    before = listing(tmp_path / "run")
    assert run(tmp_path / "run") == 0 and listing(tmp_path / "run") == before
    assert run(tmp_path / "run", "--seeds", 2) == 0 and run(tmp_path / "anew", "--seeds", 2) == 0
    assert results(tmp_path / "run") == results(tmp_path / "anew")


@pytest.mark.parametrize("place", ["measure", "extras"])
def test_a_run_with_numbers_that_are_not_finite_grows(tmp_path, monkeypatch, place):
    """What a cell makes of its points is the same whether they were just measured or read again: infinity is None."""
    right, cell = getattr(experiment.UrnTrajectory, place), experiment.UrnTrajectory.cell
    monkeypatch.setattr(experiment.UrnTrajectory, place, lambda self, *given: right(self, *given) | {"odds": math.inf})
    seen = lambda self, points: cell(self, points) | {"odds": repr(points[-1].get("odds"))}  # noqa: E731
    monkeypatch.setattr(experiment.UrnTrajectory, "cell", seen)
    assert run(tmp_path / "run") == 0 and run(tmp_path / "run", "--seeds", 2) == 0
    assert steps(tmp_path / "run") == 10 and json.loads(results(tmp_path / "run")[0])
    assert {cell["odds"] for cell in results(tmp_path / "run")[2]["cells"]} == {"None"}


def test_cells_that_change_the_points_they_are_given_change_nothing(tmp_path, complete, monkeypatch):
    cell = experiment.UrnTrajectory.cell
    monkeypatch.setattr(experiment.UrnTrajectory, "cell", lambda self, points: [cell(self, points), points.clear()][0])
    assert run(tmp_path / "run") == 0 and results(tmp_path / "run")[:2] == results(complete)[:2]
    assert results(tmp_path / "run")[2]["trajectories"] == results(complete)[2]["trajectories"]


@pytest.mark.parametrize("part", ["trajectories", "cells", "environment", "config"])
def test_all_results_that_lacks_a_part_is_not_whole(folder, capsys, part):
    everything = json.loads((folder / "all_results.json").read_bytes())
    everything[part] = everything[part][:-1] if isinstance(everything[part], list) else {}
    (folder / "all_results.json").write_text(json.dumps(everything))
    assert run(folder) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "--overwrite" in err and str(folder) in err


def test_a_complete_run_is_not_touched_on_another_machine(folder, monkeypatch):
    """Its record is of the machine that trained it."""
    before = listing(folder)
    monkeypatch.setattr(harness.platform, "platform", lambda: "another")
    assert run(folder) == 0 and listing(folder) == before


# ---- Models ----------------------------------------------------------------------------------------------------------


def models(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "models").glob("*"))


def test_a_complete_run_says_why_it_has_no_models_and_keeps_those_it_has(folder, capsys, tmp_path):
    before = listing(folder)
    assert run(folder, "--save_models") == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "models" in line]
    assert "D3_N10_s0" in line and "--overwrite --save_models" in line
    assert listing(folder) == before
    assert run(tmp_path / "run_1", "--save_models") == 0 and models(tmp_path / "run_1") == ["D3_N10_s0.pt"]
    before = listing(tmp_path / "run_1")
    capsys.readouterr()
    for arguments in ([], ["--save_models"]):
        assert run(tmp_path / "run_1", *arguments) == 0 and "no models" not in capsys.readouterr().out
    assert listing(tmp_path / "run_1") == before


def test_a_run_whose_checkpoints_are_still_there_writes_its_models(tmp_path, monkeypatch):
    """It was interrupted while it wrote its results, and had not been asked for models before."""
    with monkeypatch.context() as patch:
        patch.setattr(harness.RunDirectory, "remove", lambda *_: 1 / 0)
        assert run(tmp_path / "run", "--steps", 5, 10) == 1
    assert (tmp_path / "run" / "final_info.json").exists()
    assert run(tmp_path / "run", "--steps", 5, 10, "--save_models") == 0
    assert models(tmp_path / "run") == ["D3_N10_s0.pt", "D3_N5_s0.pt"]
    assert run(tmp_path / "anew", "--steps", 5, 10, "--save_models") == 0
    for name in models(tmp_path / "run"):
        one, other = (torch.load(tmp_path / where / "models" / name, weights_only=True) for where in ("run", "anew"))
        assert all(torch.equal(one[key], other[key]) for key in one | other)
    assert not (tmp_path / "run" / "checkpoint").exists()


def test_a_run_that_grows_keeps_the_models_it_has(tmp_path, capsys):
    assert run(tmp_path / "run", "--save_models") == 0
    assert run(tmp_path / "run", "--seeds", 2, "--save_models") == 0
    assert models(tmp_path / "run") == ["D3_N10_s0.pt", "D3_N10_s1.pt"]
    capsys.readouterr()
    assert run(tmp_path / "run", "--seeds", 3) == 0
    assert models(tmp_path / "run") == ["D3_N10_s0.pt", "D3_N10_s1.pt"]
    assert run(tmp_path / "run", "--seeds", 4, "--save_models") == 0
    assert models(tmp_path / "run") == ["D3_N10_s0.pt", "D3_N10_s1.pt", "D3_N10_s3.pt"]
    assert re.search(r"^no models of D3_N10_s2: ", capsys.readouterr().out, re.M)


# ---- Clocks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", [[], ["--plain"]], ids=["processes", "plain"])
def test_a_clock_that_stands_still_divides_nothing_by_zero(tmp_path, monkeypatch, capsys, way):
    for clock in ("monotonic", "time", "perf_counter"):
        monkeypatch.setattr(harness.time, clock, lambda: 1000.0)
    assert run(tmp_path / "run", *way) == 0
    timing = json.loads((tmp_path / "run" / "all_results.json").read_bytes())["timing"]
    assert timing["model_steps"] == 10 and timing["model_steps_per_second"] is None
