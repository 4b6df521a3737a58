import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
torch.set_num_threads(1)  # tests share the machine with the processes they launch


def launch(*arguments, script=ROOT / "experiment.py", cwd=None) -> subprocess.CompletedProcess:
    """Run a script as a loop does: its own process, output captured, not a terminal."""
    command = [sys.executable, str(script), *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=600)


def pytest_collection_modifyitems(items):
    items.sort(
        key=lambda item: "ordinary_transformer" not in item.name and "learns_to_count" not in item.name
    )  # longest
