"""Study and harness as one script."""

import json
import subprocess

import harness
from experiment import STUDY

import pytest
from conftest import ROOT, launch
from training import CPU

TINY = "--n_layers 1 --n_heads 2 --d_model 16 --batch_size 8 --n_test 16 --seq_len 4 --device cpu".split()
GRID = [*TINY, "--tasks", "2", "3", "--steps", "10", "20"]


def bundle(*arguments) -> subprocess.CompletedProcess:
    return launch("bundle", *arguments, script=ROOT / "harness.py")


def test_one_script_is_printed_or_written_and_shows_the_study_s_help(tmp_path):
    printed = bundle(ROOT / "experiment.py")
    assert (printed.returncode, printed.stderr) == (0, "")
    single = tmp_path / "single.py"
    assert bundle(ROOT / "experiment.py", "-o", single).returncode == 0 and single.read_text() == printed.stdout
    shown = launch("--help", script=single, cwd=tmp_path).stdout
    assert "Balls & Urns under full lex-invariance" in shown and "--n_colors" in shown


IMPORT = "from harness import Study, Trajectory, run_study\n"
REFUSED = {
    "an import from the future": ("from __future__ import annotations\n" + IMPORT, "__future__"),
    "a syntax error": ("def f(:\n" + IMPORT, "invalid syntax"),
    "a script that is no study": ("import json\n", "imports harness"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_one_script_is_refused_with_one_line(tmp_path, what):
    source, word = REFUSED[what]
    (tmp_path / "study.py").write_text(source)
    done = bundle(tmp_path / "study.py", "-o", tmp_path / "single.py")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and word in done.stderr, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["study.py"]


def test_the_study_itself_is_never_written_over(tmp_path):
    (tmp_path / "study.py").write_text(IMPORT)
    done = bundle(tmp_path / "study.py", "-o", tmp_path / "study.py")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert (tmp_path / "study.py").read_text() == IMPORT


def test_a_study_that_is_not_there_is_refused_with_one_line(tmp_path):
    done = bundle(tmp_path / "nothing.py")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "nothing.py" in done.stderr


def test_the_harness_may_be_imported_in_any_way(tmp_path):
    """As a whole, by another name, beside another import and inside of functions; names may be those of the harness."""
    (tmp_path / "alone").mkdir()
    study = (ROOT / "tests" / "small_study.py").read_text()
    start, end = study.index("from harness import"), study.index("import torch  # noqa")
    ways = "import sys; from harness import Study as Kind\nimport harness\nfrom harness import stream, require\n"
    study = study[:start] + ways + study[end:].replace("(Trajectory)", "(harness.Trajectory)")
    study = study.replace("STUDY = Study(", "STUDY = Kind(").replace(
        "return run_study(", "from harness import run_study\n    return run_study("
    )
    (tmp_path / "study.py").write_text("def train(): pass\ndef repr(): pass\nfrom time import time\n" + study)
    assert bundle(tmp_path / "study.py", "-o", tmp_path / "alone" / "single.py").returncode == 0
    done = launch("--preset=quick", "--out_dir=run_1", script=tmp_path / "alone" / "single.py", cwd=tmp_path / "alone")
    assert (done.returncode, done.stderr) == (0, "")


def test_faults_and_the_yardstick_of_one_script_are_those_of_two(tmp_path):
    """The lines of the harness are found where they stand."""
    assert bundle(ROOT / "experiment.py", "-o", tmp_path / "single.py").returncode == 0
    text = (tmp_path / "single.py").read_text()
    wrong = 'numbers[f"{self.best}mixture_residual"] = residual'
    assert text.count(wrong) == 1
    (tmp_path / "wrong.py").write_text(text.replace(wrong, "numbers['loss'] = torch.ones(1)"))
    done = launch(*GRID, "--plain", "--out_dir=run_1", script=tmp_path / "wrong.py", cwd=tmp_path)
    line = text[: text.index('raise TypeError(f"{name} must be numbers')].count("\n") + 1
    assert done.returncode == 1 and f"line {line} in plain: raise TypeError" in done.stderr, done.stderr
    done = launch(*GRID, "--out_dir=run_2", script=tmp_path / "single.py", cwd=tmp_path)
    environment = json.loads((tmp_path / "run_2" / "all_results.json").read_bytes())["environment"]
    assert environment["yardstick_sha256"] == harness.environment(STUDY, CPU)["yardstick_sha256"]
