"""Search for settings of least loss with Optuna: python sweeps/optuna_search.py 20 makes 20 more trials.

Each is a run of the script into sweep/run_0, run_1, .. of the current folder, where the search is kept as well.
"""

import json
import subprocess
import sys
from pathlib import Path

import optuna

SCRIPT = Path(__file__).resolve().parent.parent / "experiment.py"
FIXED = "--tasks 32 --steps 1000".split()
CELL, NUMBER = "D32_N1000", "train_loss_mean"  # what of final_info.json is minimized


def objective(trial: optuna.Trial) -> float:
    settings = {
        "lr": trial.suggest_float("lr", 1e-5, 1e-2, log=True),
        "n_layers": trial.suggest_int("n_layers", 1, 6),
        "schedule": trial.suggest_categorical("schedule", ["constant", "linear", "cosine"]),
    }
    out_dir = Path("sweep", f"run_{trial.number}")
    flags = [f"--{key}={value}" for key, value in settings.items()]
    done = subprocess.run([sys.executable, SCRIPT, f"--out_dir={out_dir}", *FIXED, *flags], stderr=subprocess.PIPE)
    if done.returncode != 0:  # a loss that is not finite, say; the other trials go on
        raise optuna.TrialPruned(done.stderr.decode()[-1500:])
    return json.loads((out_dir / "final_info.json").read_text())[CELL]["means"][NUMBER]


if __name__ == "__main__":
    Path("sweep").mkdir(exist_ok=True)
    study = optuna.create_study(storage="sqlite:///sweep/search.db", study_name=NUMBER, load_if_exists=True)
    study.optimize(objective, n_trials=int(sys.argv[1]))
    print(f"best: {study.best_value:.4f} with {study.best_params}")
