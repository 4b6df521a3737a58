import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # tests share the machine with the processes they launch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

# Processes are forked from one that has imported PyTorch (the first optimizer imports torch._dynamo) and done nothing
# else, which saves seconds of processor time at every start.
forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(["torch._dynamo", "matplotlib.pyplot", "tqdm"])


def run_script(command: list[str], cwd: str | None, output: str) -> None:
    for number, suffix in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(output + suffix, os.O_WRONLY | os.O_CREAT, 0o644), number)
    os.chdir(cwd or ".")
    sys.argv, sys.path[0] = command, str(Path(command[0]).parent)
    runpy.run_path(command[0], run_name="__main__")


def launch(*arguments, script=ROOT / "experiment.py", cwd=None) -> subprocess.CompletedProcess:
    """Run a script in its own process, output captured, not a terminal."""
    command = [str(script), *map(str, arguments)]
    with tempfile.TemporaryDirectory() as folder:
        output = f"{folder}/process"
        process = forks.Process(target=run_script, args=(command, cwd and str(cwd), output))
        process.start()
        process.join(600)
        assert process.exitcode is not None, "hangs"
        out, err = (Path(output + suffix).read_text() for suffix in (".out", ".err"))
        return subprocess.CompletedProcess(command, process.exitcode, out, err)


def pytest_collection_modifyitems(items):
    longest = ("ordinary_transformer", "learns_to_count", "edit_run_read_plot")
    items.sort(key=lambda item: not any(name in item.name for name in longest))
