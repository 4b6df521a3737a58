"""A run is never lost: every promise of the run directory is broken on purpose."""

import contextlib
import ctypes
import hashlib
import itertools
import json
import multiprocessing
import os
import pickle
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import experiment
import harness

import pytest
import torch
from conftest import ROOT, forks, launch

TINY = "--n_layers 1 --n_heads 2 --d_model 16 --batch_size 8 --n_test 16 --seq_len 4 --device cpu".split()
STEPS = range(5, 81, 5)  # a checkpoint after every 5 steps
GRID = [*TINY, "--tasks", "4", "8", "--steps", *map(str, STEPS)]
TOTAL = 2 * max(STEPS)
ONE_TRAJECTORY = [*TINY, "--tasks", "4", "--steps", *map(str, STEPS)]
SMALL = [*TINY, "--tasks", "4", "--steps", "5", "10"]
DEADLINE = 120  # seconds; nothing here takes long, so only a hang comes near it
KILL, TERM, INT = signal.SIGKILL, signal.SIGTERM, signal.SIGINT


# ---- Launching -------------------------------------------------------------------------------------------------------


def sabotage(strike=None, pause=0.0, file_limit=None, no_privileges=False) -> None:
    """Prepare this process, which is about to run experiment.py, for what shall go wrong.

    strike: (signal, pattern, count): the process gets the signal just before the count-th event that matches, in itself
        or in one that it has started (which is killed with it); an event is "step" or a file operation such as
        "open PATH", "os.rename FROM TO" (also a replacement), "os.remove PATH" or "os.mkdir PATH".
    pause: seconds that every training step takes longer. Every step prints "(step)" first.
    file_limit: no file can grow beyond this many bytes, as on a full disk.
    no_privileges: permissions of files hold for root as well.
    """
    harness.check_continuation = lambda *_: None  # its updates are not those of the run
    backward = torch.Tensor.backward

    def step(loss):
        sys.audit("step")
        if pause:
            print("(step)", flush=True)
            time.sleep(pause)
        backward(loss)

    torch.Tensor.backward = step
    if strike:
        number, pattern, count = strike
        moment, process = multiprocessing.Value("i", 0), os.getpid()

        def watch(event, details):
            if event in ("step", "open", "os.rename", "os.remove", "os.mkdir", "os.rmdir"):
                if re.search(pattern, " ".join([event, *map(str, details)])):
                    with moment.get_lock():
                        moment.value += 1
                        struck = moment.value == count
                    if struck:
                        os.kill(process, number)
                        if number == KILL:
                            os.kill(os.getpid(), number)

        sys.addaudithook(watch)
    if file_limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    if no_privileges and os.geteuid() == 0:
        assert ctypes.CDLL(None).capset((ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()) == 0


def experiment_process(arguments: list[str], output: Path, faults: dict) -> None:
    for number, suffix in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(output.with_suffix(suffix), os.O_WRONLY | os.O_CREAT, 0o644), number)
    multiprocessing.current_process()._config["daemon"] = False  # which could not start processes of its own
    sabotage(**faults)
    sys.exit(experiment.main(arguments))


class Run:
    """experiment.py on one folder, in a process of its own."""

    count = itertools.count()

    def __init__(self, folder: Path, *arguments, grid=GRID, **faults):
        self.output = folder.parent / f"process_{next(self.count)}"
        arguments = [*grid, "--out_dir", str(folder), *arguments]
        self.process = forks.Process(target=experiment_process, args=(arguments, self.output, faults))
        self.process.daemon = True
        self.process.start()

    def send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # it may just have ended
            os.kill(self.process.pid, number)

    def text(self, suffix: str) -> str:
        path = self.output.with_suffix(suffix)
        return path.read_text() if path.exists() else ""

    def wait_for_steps(self, n: int) -> None:
        """Until it has begun n paused training steps."""
        deadline = time.monotonic() + DEADLINE
        while self.text(".out").count("(step)") < n:
            assert self.process.is_alive() and time.monotonic() < deadline, self.text(".err")
            time.sleep(0.02)

    def end(self) -> tuple[int, str, str]:
        """Exit status (negative: died of that signal), standard output and standard error."""
        self.process.join(DEADLINE)
        assert not self.process.is_alive(), "hangs"
        return self.process.exitcode, self.text(".out"), self.text(".err")


def run(folder: Path, *arguments, **faults) -> tuple[int, str, str]:
    return Run(folder, *arguments, **faults).end()


def torchrun(
    folder: Path, *arguments, grid=ONE_TRAJECTORY, script: Path = ROOT / "experiment.py", restarts: int = 0
) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of two ranks on this machine."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    command += [f"--max-restarts={restarts}", str(script), *grid, "--out_dir", str(folder), *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        out, err = process.communicate(timeout=2 * DEADLINE)
    except subprocess.TimeoutExpired:
        process.terminate()  # it takes its ranks with it
        out, err = process.communicate()
        pytest.fail(f"hangs: {out} {err}")
    return process.returncode, out, err


@pytest.fixture(scope="module")
def complete(tmp_path_factory) -> Path:
    """The folder of an uninterrupted run with --save_models; not to be changed."""
    folder = tmp_path_factory.mktemp("complete") / "run_0"
    assert run(folder, "--save_models")[0] == 0
    return folder


@pytest.fixture(scope="module")
def half(tmp_path_factory) -> Path:
    """The folder of a run that was killed half-way, with a checkpoint of both trajectories; not to be changed."""
    folder = tmp_path_factory.mktemp("half") / "run_0"
    assert run(folder, strike=(KILL, "^step", 110))[0] == -KILL
    return folder


@pytest.fixture
def interrupted(half, tmp_path) -> Path:
    """A copy of that folder for one test."""
    return shutil.copytree(half, tmp_path / "run_0")


@pytest.fixture
def same_bytes(complete):
    """Whether a run has ended like the uninterrupted one."""
    return lambda folder: (folder / "final_info.json").read_bytes() == (complete / "final_info.json").read_bytes()


@pytest.fixture
def same_cells(complete):
    """Whether the cells of a run on a part of the grid have the numbers of the uninterrupted run."""
    expected = json.loads((complete / "final_info.json").read_bytes())
    return lambda folder: json.loads((folder / "final_info.json").read_bytes()).items() <= expected.items()


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def listing(folder: Path) -> dict[str, tuple]:
    """Everything in a folder: names, times of the last change, contents."""
    paths = [folder, *folder.rglob("*")]
    return {str(path): (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in paths}


def continued(output: str) -> dict[str, int]:
    """Where the trajectories continued: {"D4_N80_s0": 35, ...}."""
    return {name: int(step) for name, step in re.findall(r"^continuing (\w+) after step (\d+)$", output, re.M)}


def model_steps(folder: Path) -> int:
    """How many training steps the last process of a complete run has done."""
    return json.loads((folder / "all_results.json").read_bytes())["timing"]["model_steps"]


def checkpoint(folder: Path, n_tasks: int) -> Path:
    return folder / "checkpoint" / f"D{n_tasks}_N{max(STEPS)}_s0.pt"


# ---- Killed ----------------------------------------------------------------------------------------------------------


def test_a_run_killed_ten_times_ends_with_the_same_bytes_and_repeats_no_finished_cell(tmp_path, complete, same_bytes):
    folder, chance = tmp_path / "run_0", random.Random(0)
    anything = f"^step|{re.escape(str(folder))}"
    for _ in range(10):
        finished = [re.fullmatch(r"D(\d+)_N(\d+)_s0", path.stem).groups() for path in folder.glob("models/*.pt")]
        newest = {f"D{D}_N{max(STEPS)}_s0": max(int(N) for d, N in finished if d == D) for D, _ in finished}
        status, out, err = run(folder, "--save_models", strike=(KILL, anything, chance.randint(10, 40)))
        assert status == -KILL, out + err
        for name, step in continued(out).items():
            assert step >= newest.get(name, 0) - 5
    status, out, err = run(folder, "--save_models")
    assert (status, err) == (0, "")
    assert same_bytes(folder)
    assert model_steps(folder) + sum(continued(out).values()) == TOTAL
    for name in contents(complete / "models"):
        ours, theirs = (torch.load(where / "models" / name, weights_only=True) for where in (folder, complete))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_killed_before_each_of_its_file_operations_in_turn_it_completes_and_leaves_nothing_behind(tmp_path, same_cells):
    folder = tmp_path / "run_0"
    for moment in itertools.count(1):
        status, _, err = run(folder, grid=SMALL, strike=(KILL, re.escape(str(folder)), moment))
        if status == 0:
            break
        assert status == -KILL, err
    assert moment > 5
    assert run(folder, grid=SMALL)[0] == 0
    assert same_cells(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["all_results.json", "cells.csv", "final_info.json"]


def test_killed_just_before_a_model_is_written_the_model_is_written_later(tmp_path):
    folder = tmp_path / "run_0"
    assert run(folder, "--save_models", grid=SMALL, strike=(KILL, "open .*models.*D4_N5_", 1))[0] == -KILL
    assert run(folder, "--save_models", grid=SMALL)[0] == 0
    assert sorted(contents(folder / "models")) == ["D4_N10_s0.pt", "D4_N5_s0.pt"]


def test_checkpoints_that_a_killed_run_left_are_not_continued_by_another_configuration(tmp_path):
    folder = tmp_path / "run_0"
    assert run(folder, "--save_models", grid=SMALL, strike=(KILL, r"os.remove .*\.pt", 1))[0] == -KILL
    (folder / "final_info.json").unlink()
    (folder / "all_results.json").unlink()
    status, _, err = run(folder, "--lr", "0.01", grid=SMALL)
    if status != 2:
        assert (status, err) == (0, "")
        assert run(tmp_path / "clean", "--lr", "0.01", grid=SMALL)[0] == 0
        assert (folder / "final_info.json").read_bytes() == (tmp_path / "clean" / "final_info.json").read_bytes()


# ---- Interrupted -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number, expected", [(TERM, 143), (INT, 130)])
def test_a_signal_ends_the_run_with_one_line_and_the_same_command_completes_it(tmp_path, same_bytes, number, expected):
    folder = tmp_path / "run_0"
    first = Run(folder, pause=0.2)
    first.wait_for_steps(12)
    first.send(number)
    status, out, err = first.end()
    assert status == expected
    assert len(err.splitlines()) == 1 and "the same command continues" in err and "--overwrite" not in err
    begun = out.count("(step)")
    status, out, err = run(folder)
    assert (status, err) == (0, "")
    assert sum(continued(out).values()) == begun
    assert model_steps(folder) == TOTAL - begun
    assert same_bytes(folder)


def test_a_second_signal_ends_the_run_at_once(tmp_path, same_bytes):
    folder = tmp_path / "run_0"
    first = Run(folder, pause=10 * DEADLINE)
    first.wait_for_steps(1)
    deadline = time.monotonic() + DEADLINE
    while first.process.is_alive() and time.monotonic() < deadline:
        first.send(INT)
        first.process.join(0.1)
    status, _, err = first.end()
    assert status == 130 and err == "experiment.py: killed by a second signal: the same command continues\n"
    assert run(folder)[0] == 0 and same_bytes(folder)


@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK", "LOCAL_WORLD_SIZE"])
@pytest.mark.parametrize("value", ["", " ", "two", "-1", "1.5"])
def test_what_torchrun_tells_is_a_number_or_nothing(tmp_path, monkeypatch, capsys, name, value):
    """Schedulers and shells leave such variables behind."""
    if name != "WORLD_SIZE" and value.strip():
        monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(name, value)
    status = experiment.main([*SMALL, "--out_dir", str(tmp_path / "run_0")])
    if not value.strip():
        assert status == 0
        return
    out, err = capsys.readouterr()
    assert (status, out) == (2, "")
    assert err == f"experiment.py: {name}={value}: must be a whole number, as torchrun sets it\n"
    assert not list(tmp_path.iterdir())


def test_two_signals_at_once_are_one_as_timeout_sends_them(tmp_path, same_bytes):
    folder = tmp_path / "run_0"
    first = Run(folder, pause=0.2)
    first.wait_for_steps(12)
    first.send(TERM)
    first.send(TERM)
    status, _, err = first.end()
    assert status == 143 and err == "interrupted by SIGTERM: the same command continues\n"
    assert run(folder)[0] == 0 and same_bytes(folder)


@pytest.mark.parametrize("number, expected", [(TERM, 143), (INT, 130)])
@pytest.mark.parametrize("moment", ["os.mkdir .*checkpoint", "os.rename .*all_results"], ids=["starts", "finishes"])
def test_a_signal_while_the_run_starts_or_finishes_is_answered_in_the_same_way(tmp_path, number, expected, moment):
    folder = tmp_path / "run_0"
    status, _, err = run(folder, grid=SMALL, strike=(number, moment, 1))
    assert (status, len(err.splitlines())) in [(expected, 1), (0, 0)]
    assert run(folder, grid=SMALL)[0] == 0


def test_the_line_on_how_to_continue_says_to_leave_out_overwrite(tmp_path):
    first = Run(tmp_path / "run_0", "--overwrite", pause=0.2)
    first.wait_for_steps(1)
    first.send(TERM)
    status, _, err = first.end()
    assert status == 143 and "--overwrite" in err


# ---- Damaged ---------------------------------------------------------------------------------------------------------

DAMAGE = {
    "flipped byte": lambda content: content[:9000] + bytes([content[9000] ^ 1]) + content[9001:],
    "flipped byte in the checksum": lambda content: bytes([content[0] ^ 1]) + content[1:],
    "truncated": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_named_and_set_aside_and_the_run_completes(interrupted, same_bytes, damage):
    path = checkpoint(interrupted, 4)
    damaged = DAMAGE[damage](path.read_bytes())
    path.write_bytes(damaged)
    status, out, err = run(interrupted)
    assert (status, err) == (0, "")
    assert str(path) in out
    assert list(continued(out)) == [f"D8_N{max(STEPS)}_s0"]
    assert damaged in contents(interrupted).values()
    assert same_bytes(interrupted)


def test_checkpoints_that_changed_places_are_damaged_ones(interrupted, same_bytes):
    """Each is whole and of this run, but of another trajectory."""
    first, second, between = checkpoint(interrupted, 4), checkpoint(interrupted, 8), interrupted / "between"
    first.rename(between), second.rename(first), between.rename(second)
    status, out, err = run(interrupted)
    assert (status, err) == (0, "") and out.count("is damaged") == 2
    assert same_bytes(interrupted)


class Attack:
    """Unpickling this object creates a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_loading_a_checkpoint_executes_nothing_that_is_in_it(interrupted, same_bytes, tmp_path):
    executed = tmp_path / "executed"
    config = harness.parse_arguments(experiment.STUDY, GRID)[0]
    progress = harness.planned(experiment.STUDY, config)[0]
    progress.step = 1
    run_directory = harness.RunDirectory(interrupted, experiment.STUDY, config, torch.device("cpu"))
    run_directory.save(progress, {"parameters": {"weights": Attack(executed)}, "buffers": {}})
    attack = pickle.dumps(Attack(executed))
    checkpoint(interrupted, 8).write_bytes(hashlib.sha256(attack).digest() + attack)
    status, _, err = run(interrupted)
    assert not executed.exists()
    if status:
        assert status in (1, 2) and len(err.splitlines()) == 1
    else:
        assert err == "" and same_bytes(interrupted)


# ---- Another run, the same run, two runs -----------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["complete", "half"])
def test_a_changed_configuration_is_named_and_nothing_is_touched(request, state):
    folder = request.getfixturevalue(state)
    before = listing(folder)
    status, out, err = run(folder, "--lr", "0.01", "--seeds", "2")
    assert (status, out) == (2, "")
    assert len(err.splitlines()) == 1 and "lr 0.0001 -> 0.01" in err and "seeds 1 -> 2" in err and "steps" not in err
    assert listing(folder) == before


def test_a_changed_script_is_named_and_nothing_is_touched(half, tmp_path):
    script = tmp_path / "experiment.py"
    script.write_text((ROOT / "experiment.py").read_text() + "# changed\n")
    before = listing(half)
    refused = launch(*GRID, "--out_dir", half, script=script)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert len(refused.stderr.splitlines()) == 1 and "script" in refused.stderr and "lr" not in refused.stderr
    assert listing(half) == before


def test_another_kind_of_device_is_named(complete, tmp_path):
    folder = shutil.copytree(complete, tmp_path / "run_0")
    results = json.loads((folder / "all_results.json").read_bytes())
    results["environment"]["device"] = "cuda"
    (folder / "all_results.json").write_text(json.dumps(results))
    status, _, err = run(folder)
    assert status == 2 and "device cuda -> cpu" in err


def test_overwrite_starts_anew_and_removes_only_what_a_run_wrote(complete, half, tmp_path):
    folder = shutil.copytree(complete, tmp_path / "run_0")
    shutil.copytree(half / "checkpoint", folder / "checkpoint")
    others = [
        "notes.txt",
        "models/mine_s1.pt",
        "checkpoint/mine_s1.pt",
        "models/best.pt",
        "models/old/notes.txt",
        "checkpoint/notes.txt",
        "checkpoint/old/D4.pt",
    ]
    for name in others:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("not from a run")
    before = listing(folder)
    status, out, err = run(folder, "--overwrite", "--lr", "0.01", grid=SMALL)
    assert (status, err, continued(out)) == (0, "", {})
    assert sorted(contents(folder)) == sorted(["all_results.json", "cells.csv", "final_info.json", *others])
    after = listing(folder)
    assert all(after[str(folder / name)] == before[str(folder / name)] for name in others)
    assert list(json.loads((folder / "final_info.json").read_bytes())) == ["D4_N5", "D4_N10"]


def test_a_complete_run_is_not_trained_again_and_shows_its_summary(complete):
    before = listing(complete)
    status, out, err = run(complete, strike=(KILL, "^step", 1))
    assert (status, err) == (0, "")
    numbers = json.loads((complete / "final_info.json").read_bytes())
    for cell in numbers:
        assert f"\n{cell}_kl_to_g: {numbers[cell]['means']['kl_to_g_mean']:.4f}\n" in out
    assert "complete" in out
    assert listing(complete) == before


def test_a_second_start_is_refused_at_once_and_a_dead_process_holds_no_lock(tmp_path, same_bytes):
    folder = tmp_path / "run_0"
    first = Run(folder, pause=10 * DEADLINE)
    first.wait_for_steps(1)
    before = listing(folder)
    for arguments in [], ["--overwrite"]:
        status, out, err = run(folder, *arguments)
        assert (status, out) == (2, "")
        assert len(err.splitlines()) == 1 and "another process" in err
        assert listing(folder) == before
    first.send(KILL)
    assert first.end()[0] == -KILL
    status, _, err = run(folder)
    assert (status, err) == (0, "")
    assert same_bytes(folder)


# ---- The disk --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("written", ["checkpoint", "results"])
def test_a_full_disk_ends_the_run_with_one_line_and_it_continues_when_there_is_room(
    interrupted, complete, same_bytes, written
):
    # Checkpoints grow, and the trajectories may have come differently far: below the smaller one none can be written.
    files = {"checkpoint": [checkpoint(interrupted, D) for D in (4, 8)], "results": [complete / "all_results.json"]}
    size = min(path.stat().st_size for path in files[written])
    before = contents(interrupted)
    status, _, err = run(interrupted, file_limit=size - 1000)
    assert status == 1
    assert len(err.splitlines()) == 1 and "File too large" in err
    after = contents(interrupted)
    temporary = {name for name in before if name.endswith(".tmp")}  # left by the kill
    if written == "checkpoint":
        assert all(after[name] == before[name] for name in before.keys() - temporary)
    assert not [name for name in after.keys() - temporary if re.search(r"final_info|all_results|\.tmp$", name)]
    assert run(interrupted)[0] == 0 and same_bytes(interrupted)


@pytest.mark.parametrize("begun", [1, 12], ids=["before the first checkpoint", "after the first checkpoint"])
@pytest.mark.parametrize("cause", ["removed", "not writable"])
def test_a_folder_that_is_lost_ends_the_run_with_one_line_and_it_continues_when_it_is_back(
    tmp_path, same_bytes, cause, begun
):
    folder = tmp_path / "run_0"
    first = Run(folder, pause=0.2, no_privileges=True)
    first.wait_for_steps(begun)
    if cause == "removed":
        folder.rename(tmp_path / "elsewhere")
    else:
        locked = [folder, *(path for path in folder.iterdir() if path.is_dir())]
        for path in locked:
            path.chmod(0o500)
    status, _, err = first.end()
    assert status == 1
    assert len(err.splitlines()) == 1 and err.startswith("experiment.py: ")
    if cause == "removed":
        (tmp_path / "elsewhere").rename(folder)
    else:
        for path in locked:
            path.chmod(0o700)
    status, out, err = run(folder)
    assert (status, err) == (0, "")
    assert begun == 1 or sum(continued(out).values()) > 0
    assert same_bytes(folder)


# ---- Several processes -----------------------------------------------------------------------------------------------


def test_two_ranks_write_the_same_bytes_as_one_process(tmp_path, same_bytes):
    """Also where a rank does not soon let gloo's threads have the interpreter's lock: they aborted at its end."""
    script = tmp_path / "slow_to_let_go.py"
    script.write_text(f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
import experiment, harness
all_reduce = harness.dist.all_reduce

def slow(*arguments):
    all_reduce(*arguments)
    sys.setswitchinterval(2)

harness.dist.all_reduce = slow
sys.exit(experiment.main())
""")
    status, _, err = torchrun(tmp_path / "run_0", grid=GRID, script=script)
    assert status == 0, err
    assert same_bytes(tmp_path / "run_0")


@pytest.fixture
def a_rank_is_killed(tmp_path) -> Path:
    """experiment.py, but the rank that trains is killed before its 38th step; not again after a restart."""
    script = tmp_path / "a_rank_is_killed.py"
    script.write_text(f"""
import os, sys
sys.path[:0] = [{str(ROOT)!r}, {str(Path(__file__).parent)!r}]
import experiment, {Path(__file__).stem} as this
if os.environ["TORCHELASTIC_RESTART_COUNT"] == "0":
    this.sabotage(strike=(this.KILL, "^step", 38))
sys.exit(experiment.main())
""")
    return script


def test_a_killed_rank_ends_the_whole_run_and_one_process_completes_it(tmp_path, same_cells, a_rank_is_killed):
    folder = tmp_path / "run_0"
    assert torchrun(folder, script=a_rank_is_killed)[0] != 0
    status, out, err = run(folder, grid=ONE_TRAJECTORY)
    assert (status, err) == (0, "")
    assert list(continued(out).values()) == [35]
    assert same_cells(folder)


def test_a_restarted_group_of_ranks_continues_from_its_checkpoints(tmp_path, same_cells, a_rank_is_killed):
    folder = tmp_path / "run_0"
    status, out, err = torchrun(folder, "--overwrite", script=a_rank_is_killed, restarts=1)
    assert status == 0, err
    assert list(continued(out).values()) == [35]
    assert "2 processes for 1 trajectories" in out  # one has nothing to do
    assert same_cells(folder)


# ---- Models ----------------------------------------------------------------------------------------------------------


def test_saved_models_load_as_plain_weights_into_the_model(complete):
    config = experiment.Config(**json.loads((complete / "all_results.json").read_bytes())["config"])
    assert sorted(contents(complete / "models")) == sorted(f"D{D}_N{N}_s0.pt" for D in (4, 8) for N in STEPS)
    for path in (complete / "models").iterdir():
        model = experiment.Model(config)
        model.load_state_dict(torch.load(path, weights_only=True))


def test_without_save_models_only_the_results_remain(interrupted, complete):
    assert run(interrupted)[0] == 0
    assert sorted(path.name for path in interrupted.iterdir()) == ["all_results.json", "cells.csv", "final_info.json"]
    assert sorted(path.name for path in complete.iterdir()) == [
        "all_results.json",
        "cells.csv",
        "final_info.json",
        "models",
    ]
