"""What every study keeps: its files, its commands, and what a loop that edits it meets."""

import csv
import json
import math
import re
import shutil
import statistics
from dataclasses import fields
from pathlib import Path

import matplotlib
import pytest
import torch
from conftest import ROOT, launch
from every_study import SMALL, copy, folder_of, load

RESULTS = ("all_results.json", "cells.csv", "final_info.json")
FEW = {  # updates, contexts and lengths
    "balls_and_urns": "--steps 5 10 --seq_len 5",
    "grokking": "--updates 10",
    "analogy": "--epochs 2",
    "reversal": "--num_steps 5 --test_lengths 10 12",
    "parity": "--steps 10 --warmup 1",
    "recall": "--updates 10",
}
STUDIES = pytest.mark.parametrize("study", SMALL)


def read(path: Path) -> dict:
    """Strict JSON: NaN and Infinity are errors."""
    return json.loads(path.read_bytes(), parse_constant=pytest.fail)


def run(folder: Path, *arguments, cwd: Path | None = None, status: int = 0, **faults):
    done = launch(*arguments, script=folder / "experiment.py", cwd=cwd or folder, **faults)
    assert done.returncode == status, done.stderr
    return done


def same_bytes(*folders: Path) -> bool:
    one, other = ([(folder / name).read_bytes() for name in RESULTS[1:]] for folder in folders)
    return one == other


@pytest.fixture(scope="session")
def complete(tmp_path_factory):
    """By study: a copy with small defaults, a complete run of two seeds in it, run_0, and what that said."""
    known = {}

    def complete(study: str):
        if study not in known:
            folder = copy(study, tmp_path_factory.mktemp(study))
            known[study] = folder, run(folder, "--out_dir=run_0", "--seeds=2")
        return known[study]

    return complete


@pytest.fixture
def own_settings():
    """What a plot.py sets for its process, other tests do not have."""
    with matplotlib.rc_context():
        yield


# ---- Files -----------------------------------------------------------------------------------------------------------


@STUDIES
def test_files_are_what_loops_and_spreadsheets_read(complete, study):
    folder, done = complete(study)
    assert sorted(path.name for path in (folder / "run_0").iterdir()) == sorted(RESULTS)
    results, final_info = (read(folder / "run_0" / name) for name in (RESULTS[0], RESULTS[2]))
    assert set(results) == {"config", "environment", "trajectories", "cells", "timing"}
    assert {"script_sha256", "harness_sha256", "yardstick_sha256"} <= set(results["environment"])
    told = {"name", "seed", "updates", "rungs", "curves"}
    for trajectory in results["trajectories"]:
        assert told <= trajectory.keys() and trajectory["updates"] == trajectory["curves"]["step"][-1]
    assert results["config"]["seeds"] == 2 and len(results["cells"]) == 2 * len(final_info)
    for i, (name, cell) in enumerate(final_info.items()):
        assert list(cell) == ["means", "stderrs", "final_info_dict"]
        for key, values in cell["final_info_dict"].items():
            assert values == [seed[key] for seed in results["cells"][2 * i : 2 * i + 2]]
            there = [value for value in values if value is not None]
            mean, error = cell["means"][f"{key}_mean"], cell["stderrs"][f"{key}_stderr"]
            assert mean == (pytest.approx(statistics.mean(there)) if there else None)
            assert len(there) < 2 or error == pytest.approx(statistics.stdev(there) / math.sqrt(2))
            shown = re.search(rf"^{re.escape(name)}_{key}: (\S+)( \(\d of 2\))?$", done.stdout, re.M)
            assert float(shown[1]) == pytest.approx(mean, abs=6e-5, rel=1e-3) if there else shown[1] == "nan"
            assert bool(shown[2]) == (len(there) < 2)
    with (folder / "run_0" / "cells.csv").open() as file:
        rows = [*csv.DictReader(file)]
    for row, seed in zip(rows, results["cells"], strict=True):
        flat = {key: value for key, value in seed.items() if not isinstance(value, dict | list | bool)}
        for key, value in flat.items():
            assert row[key] == ("" if value is None else str(value)) or float(row[key]) == value
    assert done.stderr == "" and re.search(r"^seconds_total: \d", done.stdout, re.M)
    assert len(re.findall("^progress: ", done.stdout, re.M)) <= 20


@STUDIES
def test_elsewhere_interrupted_and_grown_it_ends_with_the_same_bytes(complete, study, tmp_path):
    """The script and the harness alone, started from another folder by path; stopped in the middle of a model. That of
    a sibling study may also have the harness two folders above it."""
    folder, _ = complete(study)
    own = copy(study, tmp_path / "a folder" / "studies" / study)
    (own / "plot.py").unlink()
    if study != "balls_and_urns":
        (own / "harness.py").rename(own.parent.parent / "harness.py")
    there = ("--out_dir", tmp_path / "run", "--seeds")
    stopped = run(own, *there, 1, cwd=tmp_path, status=143, interrupted=18)
    assert stopped.stderr.count("\n") == 1 and not (tmp_path / "run" / "final_info.json").exists()
    assert re.search(r"^continuing \S+ after step \d+$", run(own, *there, 1, cwd=tmp_path).stdout, re.M)
    one = read(tmp_path / "run" / RESULTS[2]).values()
    assert {error for cell in one for error in cell["stderrs"].values()} <= {0.0, None}
    run(own, *there, 2, cwd=tmp_path)
    assert same_bytes(tmp_path / "run", folder / "run_0")
    assert read(tmp_path / "run" / RESULTS[0])["trajectories"] == read(folder / "run_0" / RESULTS[0])["trajectories"]


@STUDIES
def test_as_one_script_it_gives_the_same_bytes(complete, study, tmp_path):
    folder, _ = complete(study)
    assert (
        launch("bundle", folder / "experiment.py", "-o", tmp_path / "one.py", script=ROOT / "harness.py").returncode
        == 0
    )
    assert launch("--seeds=2", script=tmp_path / "one.py", cwd=tmp_path).returncode == 0
    assert same_bytes(tmp_path / "run_0", folder / "run_0")


@STUDIES
def test_figures_are_drawn_from_all_results_alone(complete, study, tmp_path):
    folder, _ = complete(study)
    (tmp_path / "run_0").mkdir()
    shutil.copy(folder / "run_0" / "all_results.json", tmp_path / "run_0")
    shutil.copy(folder / "plot.py", tmp_path)
    done = launch(script=tmp_path / "plot.py", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    figures = [*tmp_path.glob("*.png")]
    assert figures and all(figure.read_bytes().startswith(b"\x89PNG") for figure in figures)
    assert {path.name for path in tmp_path.iterdir()} == {"run_0", "plot.py", *(figure.name for figure in figures)}
    assert [path.name for path in (tmp_path / "run_0").iterdir()] == ["all_results.json"]


@pytest.mark.parametrize("study", [study for study in SMALL if study != "recall"])
def test_figures_say_which_run_was_measured_otherwise(complete, study, tmp_path, capsys, monkeypatch, own_settings):
    folder, _ = complete(study)
    results = read(folder / "run_0" / RESULTS[0])
    for name, yardstick in {"run_0": "a", "run_1": "b", "run_2": "a"}.items():
        (tmp_path / name).mkdir()
        results["environment"]["yardstick_sha256"] = yardstick
        (tmp_path / name / RESULTS[0]).write_text(json.dumps(results))
    plot, titles = load(folder / "plot.py", f"plot_{study}"), []

    def save(figure, path):
        titles.append((path.name, figure.get_suptitle()))
        plot.plt.close(figure)

    monkeypatch.setattr(plot, "save", save)
    assert plot.main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "run_1: measured with another yardstick than run_0" in out and "run_2: measured" not in out
    for name, title in titles:
        marked = "another yardstick than run_0" in " ".join(title.split())
        assert marked == name.endswith("_run_1.png") or "_run_" not in name, (name, title)
    titles.clear()
    shutil.copy(tmp_path / "run_0" / RESULTS[0], tmp_path / "run_1")
    assert plot.main([str(tmp_path)]) == 0
    assert titles and not any("yardstick" in title for _, title in titles)


@STUDIES
def test_the_one_minute_command_trains_and_draws(study, tmp_path):
    """With the models that it has, but a few updates."""
    folder = copy(study, tmp_path / study, small=False)
    page = (ROOT / "studies" if study == "recall" else folder_of(study)) / "README.md"
    (command,) = re.findall(r"^<!-- try it -->\n```sh\n(.*?)\n```$", page.read_text(), re.M | re.S)
    train, draw = command.replace("\\\n", " ").split(" && ")
    for words in (f"{train} {FEW[study]}", draw):
        python, script, *flags = words.split()
        done = launch(*flags, script=folder / script, cwd=folder)
        assert python.endswith("python") and (done.returncode, done.stderr) == (0, "")
    assert [*folder.rglob("*.png")]


@pytest.mark.parametrize("study", [study for study in SMALL if study != "recall"])
def test_loops_find_their_prompt_and_ideas_and_researchers_the_same_sections(study):
    folder = folder_of(study)
    assert list(read(folder / "prompt.json")) == ["system", "task_description"]
    ideas = read(folder / "seed_ideas.json")
    assert len(ideas) >= 6 and len({idea["Name"] for idea in ideas}) == len(ideas)
    for idea in ideas:
        assert list(idea) == ["Name", "Title", "Experiment", "Interestingness", "Feasibility", "Novelty"]
        assert all(1 <= idea[key] <= 10 for key in list(idea)[3:])
        assert idea["Name"].isidentifier() and idea["Name"] == idea["Name"].lower()
    sections = re.findall("^## (.*)$", (folder / "README.md").read_text(), re.M)
    wanted = ["The answer", "Run it", "What the numbers mean", "What is compared", "What differs from the original"]
    assert sections == wanted if study != "balls_and_urns" else sections[:2] == wanted[:2]


def test_the_page_of_all_studies_quotes_their_own_answers():
    page = (ROOT / "studies" / "README.md").read_text().split("\nAnswers, ")[1].split("\n## ")[0]
    own = [(folder_of(study) / "README.md").read_text() for study in SMALL if study != "recall"]
    answers = " ".join(text.split("\n## The answer\n")[1].split("\n## ")[0] for text in own)
    number = r"-?\d+\.\d+(?: ± \d+\.\d+| \[.*?\])?|\d+,\d{3}|\b\d{3}\b"
    told, known = (re.findall(number, " ".join(text.split())) for text in (page, answers))
    assert told and set(told) <= {*known}


# ---- Commands --------------------------------------------------------------------------------------------------------


@STUDIES
@pytest.mark.parametrize("words", ["--nothing 1", "--seeds 0", "--seeds many", "--device abacus", "--out_dir a_file"])
def test_bad_input_is_one_line_and_touches_nothing(complete, study, tmp_path, monkeypatch, capsys, words):
    module = load(complete(study)[0] / "experiment.py", f"small_{study}")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_file").write_text("mine")
    assert module.main(words.split()) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1 and words.split()[0] in told.err
    assert [path.name for path in tmp_path.iterdir()] == ["a_file"] and (tmp_path / "a_file").read_text() == "mine"


@STUDIES
def test_help_says_what_every_flag_is(complete, study, capsys):
    module = load(complete(study)[0] / "experiment.py", f"small_{study}")
    with pytest.raises(SystemExit):
        module.main(["--help"])
    told = " ".join(capsys.readouterr().out.split()).split("options:")[1]
    for field in fields(module.Config):
        own = re.search(rf"--{field.name} \[?X.*?\(default", told).group()
        assert len(own.split("X")[-1].split()) > 1, own


# ---- On a GPU --------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@STUDIES
def test_gpu_models_of_every_study_train_side_by_side_in_a_graph_and_beside_it_on_cpus(study, tmp_path):
    folder = copy(study, tmp_path)
    done = run(folder, "--out_dir=gpu", "--device=cuda", "--seeds=2")
    assert "not stacked" not in done.stderr and "not captured" not in done.stderr
    assert {"captured"} <= {rung for t in read(folder / "gpu" / RESULTS[0])["trajectories"] for rung in t["rungs"]}
    run(folder, "--out_dir=cpu", "--device=cpu", "--seeds=2")
