#!/usr/bin/env python3
"""Draw every figure of the runs that experiment.py wrote, from their all_results.json alone.

    python plot.py        # the runs in the current folder (run_*), else those in results/
    python plot.py DIR    # the runs in DIR, or DIR itself if it is a run

Every figure goes into that folder, and is the same in every environment:
    arms.png              how far every arm of the runs in `labels`, else of all runs, gets: a dot per seed
    lengths_<run>.png     accuracy over every length; lengths that were trained on are shaded
    loops_<run>.png       accuracy by length and number of loops, for arms that loop
    states_<run>.png      how the state moves from loop to loop, and what it answers
    stopping_<run>.png    when to stop: as many loops as tokens, the least doubt, a learned gate
The numbers of arms.png are printed as well. Exit status: 1 if nothing could be drawn or a figure not be written, 2 if
DIR is no folder.
"""

import argparse
import contextlib
import itertools
import json
import logging
import os
import sys
import tempfile
import textwrap
import warnings
from pathlib import Path

# Backend, settings, fonts and how they are drawn are not taken from the environment, and there is no cache to write:
# matplotlib then takes a temporary folder. What it remarks on that, or on letters its font lacks, helps no reader.
os.environ |= {"MPLBACKEND": "Agg", "MPL_IGNORE_SYSTEM_FONTS": "1", "FREETYPE_PROPERTIES": ""}
os.environ |= {"MATPLOTLIBRC": os.devnull, "MPLCONFIGDIR": os.devnull}
logging.getLogger("matplotlib").setLevel(logging.ERROR)
warnings.simplefilter("ignore")
# A matplotlibrc in the current folder would come first, and end the import if it cannot be read.
with contextlib.chdir(Path(os.__file__).parent) if os.path.exists("matplotlibrc") else contextlib.nullcontext():
    import matplotlib
matplotlib.rcdefaults()  # a program that runs this one may have settings of its own
matplotlib.use("Agg", force=True)
import matplotlib.pyplot as plt  # noqa: E402
import matplotlib.ticker  # noqa: E402
import numpy as np  # noqa: E402

plt.rcParams["text.parse_math"] = False  # a label is plain text: a dollar sign in it is one

# Titles of runs, {"run_0": "all arms", ..}. arms.png shows the runs named here; without any, all.
labels = {}

# Colors of Okabe & Ito; lines and markers tell apart without color.
RULES = {
    "oracle": ("as many loops as tokens", "#000000", ":"),
    "confidence": ("the loop of least doubt", "#E69F00", "--"),
    "gate": ("the learned gate", "#0072B2", "-"),
}
SHOWN = ("#0072B2", "-"), ("#E69F00", "--"), ("#D55E00", ":"), ("#009E73", "-.")


# ==== Reading =========================================================================================================


def name_of(path: Path) -> str:
    """A folder's name as text, whatever the locale makes of it. Only "." and ".." take theirs from where they lead."""
    name = (path.resolve() if path.name in ("", "..") else path).name
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def find_runs(folder: Path) -> dict[str, Path]:
    """The run_* folders in `folder`, or the folder itself if it is a run, by name."""
    if os.path.exists(folder / "all_results.json"):
        return {name_of(folder): folder}
    found = {name_of(path): path for path in folder.glob("run_*") if os.path.isdir(path)}
    return dict(sorted(found.items(), key=lambda run: (len(run[0]), run[0])))


def read_run(path: Path) -> dict | None:
    """The contents of all_results.json; None, with a line that says why, if `path` holds no readable run."""
    try:
        results = json.loads((path / "all_results.json").read_bytes())
        if arms_of(results):
            return results
        say(f"{path}: skipped, its all_results.json has no arm")
    except FileNotFoundError:
        say(f"{path}: skipped, it holds no all_results.json")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, OSError) as error:
        say(f"{path}: skipped, its all_results.json is not that of a run ({type(error).__name__}: {error})")


def arms_of(results: dict) -> dict[str, list[dict]]:
    """All seeds of every arm: the numbers of a cell with its `settings` and the scores `by_length`, {length: ..}."""
    models = {(t["arm"], t["seed"]): t for t in results["trajectories"]}
    found = {}
    for cell in results["cells"]:
        settings = models[cell["arm"], cell["seed"]]
        by_length = {int(length): told for length, told in settings["curves"]["by_length"][-1].items()}
        found.setdefault(cell["arm"], []).append(cell | {"settings": settings, "by_length": by_length})
    return found


def looping(results: dict) -> dict[str, list[dict]]:
    """The arms that were tested with more than one loop."""
    loops = {
        arm: {len(told["exact"]) for told in own[0]["by_length"].values()} for arm, own in arms_of(results).items()
    }
    return {arm: seeds for arm, seeds in arms_of(results).items() if max(loops[arm]) > 1}


def asked(seed: dict, length: int) -> int:
    """After how many loops the arm is asked for its answer."""
    return length if seed["settings"]["loops"] == "length" else seed["settings"]["trained_loops"]


def at_length(seeds: list[dict], key: str) -> np.ndarray:
    """Scores at the arm's own number of loops: [seeds, lengths]."""
    return np.array([[told[key][asked(seed, n) - 1] for n, told in seed["by_length"].items()] for seed in seeds])


def is_trained(seeds: list[dict]) -> bool:
    """Also what needs no training."""
    return seeds[0]["arm"] in ("oracle", "reference") or all(seed["trained"] for seed in seeds)


def name_in_words(arm: str, seeds: list[dict]) -> str:
    """The arm, with a mark if a seed of it does not reverse the lengths of its training."""
    short = 0 if is_trained(seeds) else sum(not seed["trained"] for seed in seeds)
    return arm + (f"\nNOT TRAINED in {short} of {len(seeds)} seeds" if short else "")


def lengths_of(results: dict) -> list[int]:
    return [int(n) for n in results["config"]["test_lengths"]]


def title_of(name: str) -> str:
    return str(labels.get(name) or name).encode("utf-8", "backslashreplace").decode()  # half a character is not drawn


# ==== Figures =========================================================================================================


def add_title(figure: plt.Figure, title: str, question: str) -> None:
    """Title of a figure, in as many lines as its width asks for."""
    figure.suptitle(textwrap.fill(f"{title}: {question}", int(9 * figure.get_figwidth())), fontsize=12)


def panels_of(arms: dict, columns: int = 4, height: float = 2.5):
    """A figure with a panel for each arm, and the panels."""
    columns = min(columns, len(arms))
    rows = -(-len(arms) // columns)
    size = (1.2 + max(3.1, 7 / columns) * columns, 1.5 + height * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for panel in axes.flat[len(arms) :]:
        panel.set_axis_off()
    for panel, (arm, seeds) in zip(axes.flat, arms.items(), strict=False):
        panel.set_title(name_in_words(arm, seeds), fontsize=9, color="black" if is_trained(seeds) else "0.5")
    return figure, axes.flat[: len(arms)]


def draw_lengths(results: dict, title: str) -> plt.Figure:
    """Exact and token accuracy against length, every seed thin, the mean thick."""
    arms, config = arms_of(results), results["config"]
    figure, panels = panels_of(arms)
    for panel, seeds in zip(panels, arms.values(), strict=True):
        panel.axvspan(config["min_len"], config["max_len"], color="0.9", lw=0)
        for key, label, color, line in (
            ("exact", "whole sequences right", "#0072B2", "-"),
            ("token", "tokens right", "#E69F00", "--"),
        ):
            values = at_length(seeds, key)
            panel.plot([*seeds[0]["by_length"]], values.T, color=color, lw=0.6, alpha=0.5)
            panel.plot([*seeds[0]["by_length"]], values.mean(0), color=color, ls=line, lw=2, label=label)
        panel.set(ylim=(-0.03, 1.03), xlabel="tokens")
        panel.grid(color="0.93")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    add_title(figure, title, "how far beyond the lengths of training (gray) does an arm reverse?")
    return figure


def draw_loops(results: dict, title: str) -> plt.Figure | None:
    """Maps of exact accuracy, mean over seeds: length by number of loops, those of training framed."""
    arms = looping(results)
    if not arms:
        return None
    figure, panels = panels_of(arms, 3, 3.0)
    for panel, seeds in zip(panels, arms.values(), strict=True):
        lengths = [*seeds[0]["by_length"]]
        most = max(len(told["exact"]) for told in seeds[0]["by_length"].values())
        grid = np.full((most, len(lengths)), np.nan)
        for j, n in enumerate(lengths):
            values = np.mean([seed["by_length"][n]["exact"] for seed in seeds], 0)
            grid[: len(values), j] = values
        extent = (lengths[0] - 0.5, lengths[-1] + 0.5, 0.5, most + 0.5)
        image = panel.imshow(
            np.ma.masked_invalid(grid), cmap="viridis", vmin=0, vmax=1, origin="lower", aspect="auto", extent=extent
        )
        panel.set_facecolor("0.85")
        panel.plot(lengths, [asked(seeds[0], n) for n in lengths], color="white", lw=1.5)
        panel.plot(lengths, [asked(seeds[0], n) for n in lengths], color="black", lw=1.5, ls=(0, (4, 4)))
        panel.axvline(results["config"]["max_len"] + 0.5, color="white", lw=1)
        panel.set(xlabel="tokens", ylabel="loops")
    figure.colorbar(image, ax=list(panels), label="whole sequences right")
    add_title(figure, title, "what do more loops do? (dashed: loops of training; right of the line: longer sequences)")
    return figure


def draw_states(results: dict, title: str) -> plt.Figure | None:
    """Relative change of the state and token accuracy against loops, at some lengths; means over seeds."""
    arms = looping(results)
    if not arms:
        return None
    lengths = sorted({results["config"]["max_len"], *lengths_of(results)[1::2]})[:4]
    columns = min(6, len(arms))
    shape = (2 * -(-len(arms) // columns), columns)
    size = (2.2 + 2.9 * columns, 1.4 + 2.2 * shape[0])
    figure, axes = plt.subplots(*shape, figsize=size, layout="constrained", squeeze=False)
    pairs = [pair for top in range(0, shape[0], 2) for pair in zip(axes[top], axes[top + 1], strict=True)]
    for panel in itertools.chain(*pairs[len(arms) :]):
        panel.set_axis_off()
    for (top, low), (arm, seeds) in zip(pairs, arms.items(), strict=False):
        for n, (color, line) in zip(lengths, SHOWN, strict=False):
            for panel, key in ((top, "token"), (low, "change")):
                values = np.mean([seed["by_length"][n][key] for seed in seeds], 0)
                start = int(key == "change")  # there is no change before the first loop
                loops = range(1 + start, len(values) + 1)
                panel.plot(loops, values[start:], color=color, ls=line, lw=1.8, label=f"{n} tokens")
        top.set_title(name_in_words(arm, seeds), fontsize=9, color="black" if is_trained(seeds) else "0.5")
        top.set_ylim(-0.03, 1.03)
        low.set(yscale="log", xlabel="loops")
        low.yaxis.set_major_formatter("{x:g}")
        low.yaxis.set_minor_formatter("")
        for panel in (top, low):
            panel.grid(color="0.93")
    for top, low in pairs[::columns]:
        top.set_ylabel("tokens right")
        low.set_ylabel("relative change\nof the state")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    add_title(figure, title, "does the state come to rest?")
    return figure


def draw_stopping(results: dict, title: str) -> plt.Figure | None:
    """Exact accuracy by stopping rule on the same weights, mean over seeds, against length."""
    arms = {arm: seeds for arm, seeds in arms_of(results).items() if seeds[0]["settings"]["loops"] != "1"}
    if not arms:
        return None
    figure, panels = panels_of(arms, 4)
    found = {}
    for panel, seeds in zip(panels, arms.values(), strict=True):
        panel.axvspan(results["config"]["min_len"], results["config"]["max_len"], color="0.9", lw=0)
        lengths = [*seeds[0]["by_length"]]
        for rule, (label, color, line) in RULES.items():
            if rule in seeds[0]["by_length"][lengths[0]]["stopping"]:
                values = [np.mean([seed["by_length"][n]["stopping"][rule]["exact"] for seed in seeds]) for n in lengths]
                (found[label],) = panel.plot(lengths, values, color=color, ls=line, lw=1.8)
        (found["loops of training"],) = panel.plot(lengths, at_length(seeds, "exact").mean(0), color="0.6", lw=1)
        panel.set(ylim=(-0.03, 1.03), xlabel="tokens")
        panel.grid(color="0.93")
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=4, frameon=False)
    add_title(figure, title, "does a rule find the right number of loops? (whole sequences right, same weights)")
    return figure


def draw_arms(arms: dict[tuple[str, str], list[dict]], lengths: list[int], title: str) -> plt.Figure:
    """Exact accuracy at some lengths: a row per arm, a dot per seed; open and gray if it is not trained."""
    size = (1.5 + 2.1 * len(lengths) + 2.5, 1.8 + 0.34 * len(arms))
    figure, axes = plt.subplots(1, len(lengths), figsize=size, layout="constrained", sharey=True, squeeze=False)
    for panel, n in zip(axes[0], lengths, strict=True):
        for y, seeds in enumerate(arms.values()):
            for seed, lane in zip(seeds, np.linspace(-0.22, 0.22, len(seeds)), strict=True):
                if n in seed["by_length"]:
                    value = seed["by_length"][n]["exact"][asked(seed, n) - 1]
                    color = "#0072B2" if seed["trained"] else "0.55"
                    panel.plot(value, y + lane, "o", color=color, mfc=color if seed["trained"] else "white", ms=4.5)
        panel.set(xlim=(-0.05, 1.05), ylim=(len(arms) - 0.5, -0.5), xlabel=f"{n} tokens")
        panel.grid(color="0.93")
        panel.set_axisbelow(True)
    names = [f"{run}: {arm}" if len({run for run, _ in arms}) > 1 else arm for run, arm in arms]
    axes[0, 0].set_yticks(range(len(arms)), names)
    figure.supxlabel("whole sequences right, a dot per seed; open: below 0.9 at the longest in training", fontsize=9)
    add_title(figure, title, "which arm reverses longer sequences than it was trained on?")
    return figure


# ==== Main ============================================================================================================


def say(line: object, stream: str = "stdout") -> None:
    """Print a line where that can be done: words are a convenience, the figures are the result."""
    try:
        file = getattr(sys, stream)
        encoding = getattr(file, "encoding", None) or "utf-8"
        text = str(line).replace("\n", "\\n").encode(encoding, "backslashreplace").decode(encoding)
        file.write(f"{text}\n")
        file.flush()
    except (OSError, AttributeError):  # full, closed, or nobody reads: Python itself would try again and fail at exit
        setattr(sys, stream, None)


def print_table(arms: dict[tuple[str, str], list[dict]], lengths: list[int]) -> None:
    """One line per arm: mean exact accuracies, and seeds that are trained."""
    for (run, arm), seeds in arms.items():
        shown = [n for n in lengths if n in seeds[0]["by_length"]]
        means = (np.mean([seed["by_length"][n]["exact"][asked(seed, n) - 1] for seed in seeds]) for n in shown)
        told = ", ".join(f"{n}: {mean:.3f}" for n, mean in zip(shown, means, strict=True))
        say(f"{run} {arm}: exact at {told}; trained in {sum(seed['trained'] for seed in seeds)} of {len(seeds)} seeds")


def save(figure: plt.Figure, path: Path) -> bool:
    """Put a whole figure in the place of what has its name, be it a link. True, with a line, if that cannot be done."""
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".plot_", ignore_cleanup_errors=True) as draft:
            figure.savefig(f"{draft}/figure.png", dpi=150)
            os.replace(f"{draft}/figure.png", path)
    except OSError as error:
        say(f"plot.py: {path} cannot be written: {error.strerror or error}", "stderr")
        return True
    finally:
        plt.close(figure)
    say(path)
    return False


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", metavar="DIR", help="folder with the runs")
    asked = parser.parse_args(argv).folder
    if asked is not None and not os.path.isdir(asked):
        say(f"plot.py: DIR must be a folder, not {asked!r}", "stderr")
        return 2
    paths = find_runs(folder := Path(asked or "."))
    if asked is None and not paths:
        paths = find_runs(folder := Path("results"))
    runs = {name: results for name, path in paths.items() if (results := read_run(path)) is not None}
    if not runs:
        say(f"plot.py: no run to draw in {asked or 'this folder or results/'}", "stderr")
        return 1
    for name in labels:
        if name not in paths:
            say(f"{name}: in labels, but there is no such run here")
    unwritten = []
    figures = {"lengths": draw_lengths, "loops": draw_loops, "states": draw_states, "stopping": draw_stopping}
    for name, results in runs.items():
        for kind, draw in figures.items():
            if figure := draw(results, title_of(name)):
                unwritten.append(save(figure, folder / os.fsdecode(f"{kind}_{name}.png".encode())))
    shown = {name: results for name, results in runs.items() if name in labels} or runs
    arms = {(title_of(name), arm): seeds for name, results in shown.items() for arm, seeds in arms_of(results).items()}
    lengths = sorted({n for results in shown.values() for n in lengths_of(results)})
    unwritten.append(save(draw_arms(arms, lengths, ", ".join(map(title_of, shown))), folder / "arms.png"))
    print_table(arms, lengths)
    return int(any(unwritten))


if __name__ == "__main__":
    sys.exit(main())
