import contextlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest.mock import MagicMock

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # tests share the machine with the processes they launch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

# Processes are forked from one that has imported PyTorch (the first optimizer imports torch._dynamo) and done nothing
# else, which saves seconds of processor time at every start.
forks = multiprocessing.get_context("forkserver")
forks.set_forkserver_preload(["torch._dynamo", "matplotlib.pyplot", "tqdm"])


def interrupt_at(n: int) -> None:
    """Let this process, which is about to run a script, get SIGTERM at the n-th update of itself and its workers."""
    import torch

    count, process, backward = multiprocessing.Value("i", 0), os.getpid(), torch.Tensor.backward

    def step(loss):
        with count.get_lock():
            count.value += 1
            if count.value == n:
                os.kill(process, signal.SIGTERM)
        backward(loss)

    torch.Tensor.backward = step


def run_script(command: list[str], cwd: str | None, output: str, interrupted: int | None) -> None:
    for number, suffix in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(output + suffix, os.O_WRONLY | os.O_CREAT, 0o644), number)
    os.chdir(cwd or ".")
    if interrupted:
        interrupt_at(interrupted)
    sys.argv, sys.path[0] = command, str(Path(command[0]).parent)
    runpy.run_path(command[0], run_name="__main__")


def launch(
    *arguments, script=ROOT / "experiment.py", cwd=None, interrupted: int | None = None
) -> subprocess.CompletedProcess:
    """Run a script in its own process, output captured, not a terminal; with SIGTERM at its `interrupted`-th update."""
    command = [str(script), *map(str, arguments)]
    with tempfile.TemporaryDirectory() as folder:
        output = f"{folder}/process"
        process = forks.Process(target=run_script, args=(command, cwd and str(cwd), output, interrupted))
        process.start()
        process.join(600)
        assert process.exitcode is not None, "hangs"
        out, err = (Path(output + suffix).read_text() for suffix in (".out", ".err"))
        return subprocess.CompletedProcess(command, process.exitcode, out, err)


@pytest.fixture
def fake_graphs(monkeypatch):
    """CUDA graphs on a CPU: they record only the learning rates, a number by its value and a tensor by its place, and
    the places of the batches, and replay by running an update. Yields the graphs that were recorded."""
    from harness import Ensemble

    import torch

    recorded, recording, update = [], [], Ensemble.update

    class Graph:
        replayed = 0

        def replay(self):
            self.replayed += 1
            options = self.ensemble.options
            now, self.ensemble.batches = ([o["lr"] for o in options], self.ensemble.batches), self.batches
            for o, lr in zip(options, self.rates, strict=True):
                o["lr"] = lr
            update(self.ensemble)
            self.ensemble.batches = now[1]
            for o, lr in zip(options, now[0], strict=True):
                o["lr"] = lr

    def update_or_record(ensemble):
        if not recording:
            return update(ensemble)
        graph = recording[0]
        graph.ensemble, graph.batches = ensemble, dict(ensemble.batches)
        graph.rates = [o["lr"] for o in ensemble.options]

    @contextlib.contextmanager
    def graph(graph):
        recording.append(graph)
        recorded.append(graph)
        yield
        recording.clear()

    monkeypatch.setattr(Ensemble, "update", update_or_record)
    for name, fake in {
        "CUDAGraph": Graph,
        "graph": graph,
        "Stream": MagicMock(),
        "current_stream": MagicMock(),
    }.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    return recorded


def pytest_collection_modifyitems(items):
    longest = ("ordinary_transformer", "learns_to_count", "edit_run_read_plot")
    items.sort(key=lambda item: not any(name in item.name for name in longest))
