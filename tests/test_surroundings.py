"""A run in bad company: nobody reads what it prints, its terminal is gone, other programs run it, its files change."""

import contextlib
import errno
import hashlib
import json
import os
import pty
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import replace
from operator import attrgetter
from pathlib import Path

import experiment
import harness

import numpy as np
import pytest
import torch
from conftest import ROOT, forks, launch

SMALL = "--n_layers 1 --n_heads 2 --d_model 16 --batch_size 8 --n_test 8 --seq_len 4 --device cpu --tasks 2 3".split()
SMALL += ["--steps", "10", "30"]


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> bytes:
    folder = tmp_path_factory.mktemp("expected") / "run"
    assert experiment.main([*SMALL, "--out_dir", str(folder)]) == 0
    return (folder / "final_info.json").read_bytes()


# ---- Standard output and standard error ------------------------------------------------------------------------------


def no_reader() -> int:
    reader, writer = os.pipe()
    os.close(reader)
    return writer


def no_terminal() -> int:
    master, slave = pty.openpty()
    os.close(master)
    return slave


def no_room() -> int:
    return os.open("/dev/full", os.O_WRONLY)


NOBODY = {"no reader": no_reader, "no terminal": no_terminal, "no room": no_room, "closed": None}


def main_without(streams: dict[int, str], arguments: list[str], gone_at: int | None) -> None:
    """experiment.main() with these streams replaced, from the update `gone_at` on or from the start."""

    def replace():
        for number, how in streams.items():
            if NOBODY[how] is None:
                os.close(number)
            else:
                os.dup2(NOBODY[how](), number)
        if gone_at is None:  # as Python finds closed ones when it starts
            sys.stdout = None if streams.get(1) == "closed" else sys.stdout
            sys.stderr = None if streams.get(2) == "closed" else sys.stderr

    report = harness.Tally.report
    made = [0]

    def watched(tally, updates, skipped, loss):
        made[0] += updates
        if gone_at and made[0] >= gone_at > made[0] - updates:
            replace()
        report(tally, updates, skipped, loss)

    harness.Tally.report = watched
    if gone_at is None:
        replace()
    sys.exit(experiment.main(arguments))


@pytest.mark.parametrize("gone_at", [None, 20], ids=["from the start", "while it trains"])
@pytest.mark.parametrize("how", NOBODY)
@pytest.mark.parametrize("numbers", [(1,), (2,), (1, 2)], ids=["output", "error", "both"])
def test_streams_that_nobody_reads_end_nothing(tmp_path, expected, numbers, how, gone_at):
    arguments = [*SMALL, "--out_dir", str(tmp_path / "run")]
    process = forks.Process(target=main_without, args=(dict.fromkeys(numbers, how), arguments, gone_at))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    assert (tmp_path / "run" / "final_info.json").read_bytes() == expected
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == list(harness.RunDirectory.RESULTS)


@pytest.mark.parametrize("redirection", [">/dev/full 2>&1", ">&- 2>&- <&-", "2>&- | true"])
def test_the_exit_status_is_that_of_the_run(tmp_path, expected, redirection):
    """Also when Python flushes its streams at the end."""
    command = f"{sys.executable} {ROOT / 'experiment.py'} {' '.join(SMALL)} --out_dir {tmp_path / 'run'} {redirection}"
    done = subprocess.run(["bash", "-c", f"{command}; exit ${{PIPESTATUS[0]}}"], capture_output=True)
    assert done.returncode == 0
    assert (tmp_path / "run" / "final_info.json").read_bytes() == expected


def test_a_fault_ends_with_its_status_though_nobody_reads_it(tmp_path):
    diverges = [*SMALL, "--out_dir", str(tmp_path / "run"), "--lr", "1e38"]
    for arguments, status in ((diverges, 1), (["--lr", "x"], 2)):
        process = forks.Process(target=main_without, args=({1: "no room", 2: "closed"}, arguments, None))
        process.start()
        process.join(120)
        assert process.exitcode == status


def test_text_that_an_output_cannot_encode_is_escaped(tmp_path, monkeypatch):
    with open(tmp_path / "out", "w", encoding="ascii") as file:
        monkeypatch.setattr(sys, "stdout", file)
        assert experiment.main([*SMALL, "--out_dir", str(tmp_path / "rün")]) == 0
        assert experiment.main([*SMALL, "--out_dir", str(tmp_path / "rün")]) == 0
    assert r"r\xfcn is complete" in (tmp_path / "out").read_text()


def test_results_are_written_before_the_summary_is_printed(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(harness, "summary", lambda *_: seen.extend(os.listdir(tmp_path / "run")) or "")
    assert experiment.main([*SMALL, "--out_dir", str(tmp_path / "run")]) == 0
    assert sorted(seen) == list(harness.RunDirectory.RESULTS)


def slow_main(arguments: list[str], begun) -> None:
    save = harness.RunDirectory.save

    def saved(*values):
        save(*values)
        begun.set()
        time.sleep(0.1)

    harness.RunDirectory.save = saved
    sys.exit(experiment.main(arguments))


def test_a_terminal_that_is_closed_ends_nothing(tmp_path, expected):
    begun = forks.Event()
    process = forks.Process(target=slow_main, args=([*SMALL, "--out_dir", str(tmp_path / "run")], begun))
    process.start()
    assert begun.wait(120)
    os.kill(process.pid, signal.SIGHUP)
    process.join(120)
    assert process.exitcode == 0
    assert (tmp_path / "run" / "final_info.json").read_bytes() == expected


# ---- Another program -------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def as_it_was():
    """What a program may have set is the same afterwards."""

    def state():
        handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
        threads = [thread for thread in threading.enumerate() if thread.daemon is False]
        draws = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist())
        numbers = (torch.get_num_threads(), torch.get_float32_matmul_precision(), torch.is_grad_enabled())
        return handlers, threads, draws, numbers, list(warnings.filters), sys.stdout, sys.stderr, os.getcwd()

    before = state()
    yield
    assert state() == before


@pytest.mark.parametrize("place", ["main thread", "thread"])
@pytest.mark.parametrize("arguments, status", [([], 0), (["--plain"], 0), (["--lr", "1e38"], 1), (["--lr", "x"], 2)])
def test_main_leaves_another_program_as_it_was(tmp_path, expected, place, arguments, status):
    results, signals = [], []
    torch.set_num_threads(2)
    signal.signal(signal.SIGTERM, lambda *_: signals.append("mine"))
    try:
        with as_it_was(), warnings.catch_warnings():
            warnings.simplefilter("error")

            def call():
                results.append(experiment.main([*SMALL, "--out_dir", str(tmp_path / "run"), *arguments]))

            if place == "thread":
                thread = threading.Thread(target=call)
                thread.start()
                thread.join(120)
            else:
                call()
        assert results == [status]
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals == ["mine"]
        assert status or (tmp_path / "run" / "final_info.json").read_bytes() == expected
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        torch.set_num_threads(1)


def test_two_runs_in_two_threads_end_like_one(tmp_path, expected):
    threads = [
        threading.Thread(target=experiment.main, args=([*SMALL, "--out_dir", str(tmp_path / name)],)) for name in "ab"
    ]
    with as_it_was():
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
    for name in "ab":
        assert (tmp_path / name / "final_info.json").read_bytes() == expected


# ---- The code that runs ----------------------------------------------------------------------------------------------


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_recorded_hashes_are_of_the_code_that_runs(tmp_path):
    """Both scripts are edited while they start, as a loop may do: before the packages are imported."""
    before = {name: (ROOT / name).read_bytes() for name in ("experiment.py", "harness.py")}
    edit = b"import pathlib\nfor name in ('experiment.py', 'harness.py'):\n"
    edit += b"    pathlib.Path(name).write_text('raise SystemExit(7)  # another')\n"
    before["experiment.py"] = before["experiment.py"].replace(b"import numpy as np\n", edit + b"import numpy as np\n")
    for name, content in before.items():
        (tmp_path / name).write_bytes(content)
    done = launch(*SMALL, "--out_dir=run", script=tmp_path / "experiment.py", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert b"another" in (tmp_path / "harness.py").read_bytes()
    environment = json.loads((tmp_path / "run" / "all_results.json").read_bytes())["environment"]
    assert environment["script_sha256"] == sha256(before["experiment.py"])
    assert environment["harness_sha256"] == sha256(before["harness.py"])
    assert environment["yardstick_sha256"] == yardstick()


def test_the_harness_reads_the_scripts_before_it_imports_packages():
    """The seconds that these take are enough for an edit."""
    for script in ("experiment.py", "tests/small_study.py"):
        imports = re.findall(r"^(?:import|from) (\w+)", (ROOT / script).read_text(), re.M)
        assert imports.index("harness") < imports.index("torch")
    source = (ROOT / "harness.py").read_text()
    assert source.index("source_of(importer.") < min(source.index(f"\nimport {name}") for name in ("numpy", "torch"))


def yardstick() -> str:
    return harness.environment(experiment.STUDY, torch.device("cpu"))["yardstick_sha256"]


def another(*_, **__):
    return 1.0


OVERWRITTEN = {
    "function": ("relative_divergence", another),
    "function by one without a source": ("kl_divergence", max),
    "function by what is none": ("kl_divergence", 3),
    "function by a wrapped one": ("kl_divergence", torch.no_grad()(experiment.kl_divergence)),
    "class": ("TestBed", type("TestBed", (experiment.TestBed,), {})),
    "method of a class": ("TestBed.scores", another),
    "method by another method": ("TestBed.scores", experiment.TestBed.by_length),
    "constant of a class": ("TestBed.EXACT_LIMIT", 5),
    "constant of a class that has parts": ("TestBed.STRATEGIES", {"orbit": "orbit"}),
    "default of a function": ("kl_divergence.__defaults__", (1e-9,)),
    "default of a method": ("TestBed.scores.__defaults__", ("exact_",)),
    "operator of a class": ("TestBed.__getattr__", another),
    "method of the trajectory": ("UrnTrajectory.observe", another),
    "part of the harness": ("summarize", another),
    "method of the harness": ("Progress.measure", another),
}


@pytest.mark.parametrize("what", OVERWRITTEN)
def test_a_definition_of_the_yardstick_that_is_overwritten_is_another_yardstick(monkeypatch, what):
    name, value = OVERWRITTEN[what]
    before = yardstick()
    assert re.fullmatch("[0-9a-f]{64}", before) and yardstick() == before
    where, _, method = name.rpartition(".")
    module = harness if "harness" in what else experiment
    with monkeypatch.context() as patch:
        patch.setattr(attrgetter(where)(module) if where else module, method, value, raising=False)
        assert yardstick() == yardstick() != before
    assert yardstick() == before


@pytest.mark.parametrize("how", ["BOM", "CRLF", "latin-1", "form feed"])
def test_a_script_in_another_dress_runs_and_names_its_lines(tmp_path, how):
    shutil.copy(ROOT / "harness.py", tmp_path)
    source = (ROOT / "experiment.py").read_text()
    wrong = source.replace("        loss = next_draw_loss(", "        loss = missing(")
    head = {"latin-1": "# coding: latin-1\n# ä\n", "form feed": "# \x0c \u2028\n"}.get(how, "")
    line = (head + wrong).split("\n").index(next(line for line in wrong.split("\n") if "loss = missing(" in line)) + 1
    for text, status in ((head + source, 0), (head + wrong, 1)):
        content = text.encode("latin-1" if how == "latin-1" else "utf-8-sig" if how == "BOM" else "utf-8")
        (tmp_path / "experiment.py").write_bytes(content.replace(b"\n", b"\r\n") if how == "CRLF" else content)
        done = launch(*SMALL, "--out_dir", tmp_path / str(status), script=tmp_path / "experiment.py")
        assert done.returncode == status
    assert f"line {line} in loss: loss = missing(" in done.stderr, done.stderr


def test_a_study_may_go_to_another_folder(tmp_path, monkeypatch, expected):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    model = experiment.UrnTrajectory.model
    monkeypatch.setattr(experiment.UrnTrajectory, "model", lambda self: os.chdir(tmp_path / "elsewhere") or model(self))
    assert experiment.main([*SMALL, "--plain", "--out_dir", "run"]) == 0
    assert (tmp_path / "run" / "final_info.json").read_bytes() == expected


def test_a_file_system_without_locks_is_no_obstacle(tmp_path, monkeypatch, expected):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(harness.fcntl, "flock", no_locks)
    assert experiment.main([*SMALL, "--out_dir", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "final_info.json").read_bytes() == expected


def test_numbers_of_a_study_do_not_overwrite_what_tells_cells_apart(tmp_path, monkeypatch):
    cell = experiment.UrnTrajectory.cell
    monkeypatch.setattr(
        experiment.UrnTrajectory, "cell", lambda self, points: cell(self, points) | {"cell": "x", "seed": 7}
    )
    assert experiment.main([*SMALL, "--out_dir", str(tmp_path / "run")]) == 0
    cells = json.loads((tmp_path / "run" / "all_results.json").read_bytes())["cells"]
    assert [(cell["cell"], cell["seed"]) for cell in cells] == [(f"D{D}_N{N}", 0) for D in (2, 3) for N in (10, 30)]


def test_a_rank_that_was_left_over_in_the_environment_is_none(tmp_path, monkeypatch, expected):
    monkeypatch.setenv("RANK", "1")
    assert experiment.main([*SMALL, "--out_dir", str(tmp_path / "run")]) == 0
    assert (tmp_path / "run" / "final_info.json").read_bytes() == expected


def test_a_script_that_a_notebook_loads_again_is_recorded_as_it_is_now(tmp_path):
    """Also one that is imported long after the harness."""
    shutil.copy(ROOT / "harness.py", tmp_path)
    script = tmp_path / "study.py"
    program = """
import harness, hashlib, importlib, pathlib, sys, torch
for edit in ("", "# edited", "# edited twice"):
    path = pathlib.Path("study.py")
    path.write_text(path.read_text() + edit)
    study = importlib.reload(sys.modules["study"]) if edit else importlib.import_module("study")
    wanted = hashlib.sha256(path.read_bytes()).hexdigest()
    path.write_text(path.read_text() + "\\n# a second later\\n")
    assert harness.environment(study.STUDY, torch.device("cpu"))["script_sha256"] == wanted, edit
"""
    script.write_text((ROOT / "experiment.py").read_text())
    done = subprocess.run([sys.executable, "-B", "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_reader_that_is_slow_does_not_lose_its_stream(monkeypatch):
    """What cannot be written at once to a pipe that does not wait is left out, and the rest is not."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with os.fdopen(writer, "w") as stream:
        output = harness.Output(stream)
        output.write("x" * 10**6)
        os.read(reader, 10**7)
        assert os.fstat(stream.fileno()).st_ino == os.fstat(reader).st_ino
    os.close(reader)


def test_variables_of_the_progress_bar_change_nothing(tmp_path):
    """tqdm reads its defaults from the environment."""
    arguments = ["--n_layers=1", "--d_model=16", "--n_test=4", "--seq_len=4", "--tasks=4", "--steps=20", "--device=cpu"]
    told = []
    for variables in ({}, {"TQDM_DISABLE": "1"}):
        folder = tmp_path / f"run_{len(variables)}"
        command = [sys.executable, str(ROOT / "experiment.py"), *arguments, "--out_dir", str(folder)]
        done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=True)
        told.append([line.partition(",")[0] for line in done.stdout.splitlines() if line.startswith("progress")])
    assert told[0] == told[1] != []


def test_the_settings_of_the_program_around_change_no_number_and_stay(tmp_path):
    arguments = ["--n_layers=1", "--d_model=16", "--n_test=4", "--seq_len=4", "--tasks=4", "--steps=5", "--device=cpu"]
    assert experiment.main([*arguments, "--out_dir", str(tmp_path / "usual")]) == 0
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_grad_enabled(False)
    try:
        assert experiment.main([*arguments, "--out_dir", str(tmp_path / "here")]) == 0
        found = (torch.get_default_dtype(), torch.get_default_device().type, torch.is_grad_enabled())
        assert found == (torch.float64, "meta", False)
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
        torch.set_grad_enabled(True)
    usual, here = ((tmp_path / name / "final_info.json").read_bytes() for name in ("usual", "here"))
    assert usual == here


def test_a_study_that_is_made_twice_is_still_the_script_that_was_read(tmp_path, monkeypatch):
    script = str(Path(experiment.__file__))
    before = harness.environment(experiment.STUDY, torch.device("cpu"))["script_sha256"]
    monkeypatch.setattr(harness.Path, "read_bytes", lambda path: b"# edited since")
    replace(experiment.STUDY)
    assert harness.environment(experiment.STUDY, torch.device("cpu"))["script_sha256"] == before and script


def test_a_full_disk_below_standard_output_takes_nothing_from_the_program_around(tmp_path):
    """What it prints later, when there is room again, arrives; no descriptor is lost."""
    program = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
import os, resource, signal, experiment
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (8, resource.RLIM_INFINITY))
print("1234567", flush=True)
before = len(os.listdir("/proc/self/fd"))
import harness
with harness.as_found():
    print("lost")
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
assert len(os.listdir("/proc/self/fd")) == before
print("kept")
"""
    with open(tmp_path / "out", "wb") as out:
        done = subprocess.run([sys.executable, "-B", "-c", program], stdout=out, stderr=subprocess.PIPE, text=True)
    assert (done.returncode, (tmp_path / "out").read_text()) == (0, "1234567\nkept\n"), done.stderr
