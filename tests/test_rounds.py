"""A loop at work on a copy of every study: fixed commands, scripts kept with runs, means read, failures between."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import ROOT, launch
from every_study import SMALL, copy, folder_of

SHARED = ("experiment.py", "plot.py", "prompt.json", "seed_ideas.json", "README.md")
LAYERS = r"nn\.ModuleList\((.+?) for \w+ in range\((.+?)\)\)"
NORM = '''class Norm(nn.BatchNorm1d):
    """Batch norm in the place of layer norm."""

    def __init__(self, d, **_):
        super().__init__(d)

    def forward(self, x):
        return super().forward(x.flatten(0, -2)).reshape(x.shape)


'''
AVERAGED = '''import copy


class Averaged(nn.Module):
    """A model that is evaluated with an average of its parameters over the updates."""

    def __init__(self, model):
        super().__init__()
        self.own, self.average = model, copy.deepcopy(model).requires_grad_(False)

    def __getattr__(self, name):
        if name in ("own", "average"):
            return super().__getattr__(name)
        return getattr(self.own if self.training else self.average, name)

    def forward(self, *arguments):
        if not self.training:
            return self.average(*arguments)
        with torch.no_grad():
            for average, now in zip(self.average.parameters(), self.own.parameters(), strict=True):
                average.lerp_(now, 0.1)
        return self.own(*arguments)


'''
RATE = "    def learning_rate(self, update: int, updates: int) -> float:\n"
HEADLINES = "def headlines(config: Config) -> tuple[str, ...]:\n"
MEASURE = "update: int, recent: dict[str, list[float]], points: list[dict]) -> dict:"
CELL = "    def cell(self, points: list[dict]) -> dict:\n"
DROPPED = {  # where a study's MLP, or what else it has, is made or called
    "balls_and_urns": ("F.gelu(self.mlp_in(self.mlp_norm(x)))", "F.dropout({}, 0.3, self.training)"),
    "grokking": ("nn.GELU()", "nn.Sequential({}, nn.Dropout(0.3))"),
    "analogy": ("nn.GELU()", "nn.Sequential({}, nn.Dropout(0.3))"),
    "reversal": ("F.relu(self.mlp_in(x))", "F.dropout({}, 0.3, self.training)"),
    "parity": ("dropout: float = 0.0", "dropout: float = 0.3"),
    "recall": ('"dropout": 0.0', '"dropout": 0.3'),
}
SMOOTHED = {
    "balls_and_urns": (
        '        return loss, {"loss": loss}',
        "        smooth = model(tokens[:, :-1], codes).log_softmax(-1).mean()\n"
        '        return 0.9 * loss - 0.1 * smooth, {"loss": loss}',
    ),
    "grokking": ("model(a, b), answers)", "model(a, b), answers, label_smoothing=0.1)"),
    "analogy": ('targets, reduction="none")', 'targets, reduction="none", label_smoothing=0.1)'),
    "reversal": ('targets, reduction="none")', 'targets, reduction="none", label_smoothing=0.1)'),
    "parity": ("targets.flatten())", "targets.flatten(), label_smoothing=0.1)"),
    "recall": ("answers)\n        return loss", "answers, label_smoothing=0.1)\n        return loss"),
}
MORE = {  # a number of a cell that is no headline
    "balls_and_urns": "kl_to_orbit",
    "grokking": "final_weight_norm",
    "analogy": "macro_ce",
    "reversal": "trained_token",
    "parity": "unseen_ce",
    "recall": "layers",
}


def edits(study: str) -> dict[str, list[tuple[str, str]]]:
    """By name: texts of the script, as regular expressions, and what they become."""
    own = lambda pair: [(re.escape(pair[0]), lambda _: pair[1].replace("{}", pair[0]))]  # noqa: E731
    before = lambda text, new: [(re.escape(text), lambda m: new + m[0])]  # noqa: E731
    full_rate = RATE.replace("learning_rate", "full_rate")
    falling = f"{RATE}        return self.full_rate(update, updates) * (1 - update / updates)\n\n{full_rate}"
    more = f'{HEADLINES}    return (*usual(config), "{MORE[study]}")\n\n\n{HEADLINES.replace("headlines", "usual")}'
    return {
        "schedule": [(re.escape(RATE), falling)],
        "dropout": own(DROPPED[study]),
        "batch norm": [(r"nn\.LayerNorm\(", "Norm("), (r"class (Block|Model)\(", lambda m: NORM + m[0])],
        "SGD": [(r"torch\.optim\.Adam\w*\(.*\)", "torch.optim.SGD(params.values(), lr=lr, momentum=0.9)")],
        "tied layers": [(LAYERS, r"nn.ModuleList([\1] * (\2))")],
        "more seeds": [(r"    seeds: int = 1 ", "    seeds: int = 2 ")],
        "label smoothing": own(SMOOTHED[study]),
        "averaged weights": [
            (r"class (Block|Model)\(", lambda m: AVERAGED + m[0]),
            (
                r"    def model\(self\) -> .*:\n",
                "    def model(self):\n        return Averaged(self.start())\n\n    def start(self):\n",
            ),
        ],
        "early end": before(CELL, '    def finished(self, points):\n        return points[-1]["step"] >= 10\n\n'),
        "another headline": [(re.escape(HEADLINES), more)],
        "another measure": [(re.escape(MEASURE), MEASURE.replace(") -> dict", ", digits: int = 4) -> dict"))],
    }


def changed(text: str, replacements: list[tuple[str, str]]) -> str:
    for old, new in replacements:
        found = re.compile(old).search(text)
        assert found, old
        text = re.sub(old, new, text, count=0 if "LayerNorm" in old else 1)
    return text


FAULTS = {  # what an edit may get wrong, by the line that it makes
    "a slip of the pen": (RATE, "    def learning_rate(self, update, updates:\n"),
    "a name that there is not": (CELL, f"{CELL}        no_such_name\n"),
}


def means(folder: Path) -> dict:
    final_info = json.loads((folder / "final_info.json").read_bytes(), parse_constant=pytest.fail)
    return {cell: numbers["means"] for cell, numbers in final_info.items()}


def everything(folder: Path) -> tuple[list, list, str]:
    results = json.loads((folder / "all_results.json").read_bytes())
    return results["trajectories"], results["cells"], results["environment"]["yardstick_sha256"]


def template(study: str, folder: Path) -> Path:
    """What the command of the README makes of the study, then with small defaults."""
    if study != "recall":
        (command,) = re.findall(r"^S=\. T=\S+; (.*)$", (ROOT / "README.md").read_text(), re.M)
        repository = folder.with_name("repository")
        shutil.copytree(folder_of(study), repository / "study", ignore=lambda path, names: {*names} - {*SHARED})
        for name in ("harness.py", "requirements.txt"):
            shutil.copy(ROOT / name, repository)
        (repository / "study" / "results" / "run_0").mkdir(parents=True)
        subprocess.run(["bash", "-euc", f"S=study T={folder}; {command}"], cwd=repository, check=True)
        assert {"run_0", "requirements.txt", "harness.py", *SHARED} == {path.name for path in folder.iterdir()}
    return copy(study, folder)


@pytest.mark.parametrize("study", SMALL)
def test_ten_rounds_of_typical_edits_with_failures_between(study, tmp_path):
    """A round is an edit of the script as it was, the fixed command, and the script kept beside its results."""
    folder = template(study, tmp_path / "template")
    script = folder / "experiment.py"
    original = script.read_text()

    def attempt(text: str, i: int):
        script.write_text(text)
        shutil.copy(script, folder / f"run_{i}.py")
        return launch(f"--out_dir=run_{i}", script=script, cwd=folder)

    assert attempt(original, 0).returncode == 0
    baseline, (*curves, yardstick) = means(folder / "run_0"), everything(folder / "run_0")
    for i, (name, replacements) in enumerate(edits(study).items(), start=1):
        if i in (2, 5):  # a failure, after which the loop removes the folder and tries again
            old, new = [*FAULTS.values()][i == 5]
            done = attempt(original.replace(old, new), i)
            assert done.returncode == 1 and new.splitlines()[-1].strip() in done.stderr[-1500:], done.stderr
            assert not (folder / f"run_{i}" / "final_info.json").exists()
            shutil.rmtree(folder / f"run_{i}", ignore_errors=True)
        done = attempt(changed(original, replacements), i)
        assert (done.returncode, done.stderr) == (0, ""), (name, done.stderr)
        found, (*others, another) = means(folder / f"run_{i}"), everything(folder / f"run_{i}")
        assert found.keys() == baseline.keys(), name
        if name in ("another headline", "another measure"):
            assert others == curves
            assert name == "another measure" or all(found[cell].items() > baseline[cell].items() for cell in found)
        else:
            assert others != curves, name
        assert (another == yardstick) == (name != "another measure"), name
    text = (folder / "plot.py").read_text()
    assert text.count("\nlabels = {}") == 1
    labels = {f"run_{i}": name for i, name in enumerate(["baseline", *edits(study)]) if i < 3}
    (folder / "plot.py").write_text(text.replace("\nlabels = {}", f"\nlabels = {labels}"))
    drawn = launch(script=folder / "plot.py", cwd=folder)
    assert (drawn.returncode, drawn.stderr) == (0, "") and [*folder.glob("*.png")]
