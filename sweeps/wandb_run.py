"""One run of a W&B sweep: the script with its settings as flags, then the means of final_info.json as its summary.

The sweep's run is one for all models of the script. Add --track=wandb for one of each model beside it.
"""

import json
import subprocess
import sys
from pathlib import Path

import wandb

SCRIPT = Path(__file__).resolve().parent.parent / "experiment.py"

with wandb.init() as run:
    flags = []
    for key, value in run.config.items():
        flags += [f"--{key}", *map(str, value if isinstance(value, list) else [value])]
    out_dir = Path("sweep", run.id)
    subprocess.run([sys.executable, SCRIPT, f"--out_dir={out_dir}", *flags], check=True)
    for cell, numbers in json.loads((out_dir / "final_info.json").read_text()).items():
        run.summary.update({f"{cell}/{key.removesuffix('_mean')}": x for key, x in numbers["means"].items()})
