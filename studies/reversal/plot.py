#!/usr/bin/env python3
"""Draw every figure of the runs that experiment.py wrote, from their all_results.json alone.

    python plot.py        # the runs in the current folder (run_*), else those in results/
    python plot.py DIR    # the runs in DIR, or DIR itself if it is a run

Every figure goes into that folder, and is the same in every environment:
    arms.png              how far every arm of the runs in `labels`, else of all runs, gets: a dot per seed
    lengths_<run>.png     accuracy over every length; lengths that were trained on are shaded
    loops_<run>.png       accuracy by length and number of loops, for arms that loop
    states_<run>.png      what is answered from loop to loop, how surely, and how the state moves
    stopping_<run>.png    when to stop: as many loops as tokens, the least doubt, a learned gate
    exits_<run>.png       after how many loops these rules stop
The numbers of arms.png are printed as well. Exit status: 1 if nothing could be drawn or a figure not be written, 2 if
DIR is no folder.
"""

import argparse
import contextlib
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
marks = {}  # what the titles of runs add that were measured otherwise than the first one

# Colors of Okabe & Ito; lines and markers tell apart without color.
SCORES = {
    "exact": ("whole sequences right", {"color": "#0072B2", "ls": "-"}),
    "token": ("tokens right", {"color": "#E69F00", "ls": "--"}),
    "other_exact": (
        "whole sequences right, padding the other way round",
        {"color": "#D55E00", "ls": "", "marker": "x"},
    ),
}
RULES = {
    "oracle": ("as many loops as tokens", {"color": "#000000", "ls": ":"}),
    "confidence": ("the loop of least doubt", {"color": "#E69F00", "ls": "--"}),
    "gate_0.1": ("the gate, ended with probability 0.1", {"color": "#CC79A7", "ls": "-."}),
    "gate_0.5": ("the gate, ended with probability 0.5", {"color": "#0072B2", "ls": "-"}),
    "gate_0.9": ("the gate, ended with probability 0.9", {"color": "#009E73", "ls": (0, (5, 1, 1, 1, 1, 1))}),
}
SHOWN = ("#0072B2", "-"), ("#E69F00", "--"), ("#D55E00", ":"), ("#009E73", "-.")
STATES = {"token": "tokens right", "doubt": "confidence", "change": "relative change\nof the state"}
CONTROLS = ("oracle", "reference")  # which need no training


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
    """All seeds of every arm: the numbers of a cell with the `settings` and, in columns, the scores `by_length`."""
    models = {(t["arm"], t["seed"]): t for t in results["trajectories"]}
    found = {}
    for cell in results["cells"]:
        settings = models[cell["cell"], cell["seed"]]
        told = {"settings": settings, "by_length": settings["curves"]["by_length"][-1]}
        told["trained"] = cell["trained"] or cell["cell"] in CONTROLS
        found.setdefault(cell["cell"], []).append(cell | told)
    return found


def looping(results: dict, but: tuple[str, ...] = CONTROLS) -> dict[str, list[dict]]:
    """The arms with more than one loop, but these."""
    arms = arms_of(results)
    return {arm: arms[arm] for arm in arms if arms[arm][0]["settings"]["loops"] != "1" and arm not in but}


def label_of(name: str) -> str:
    return (str(labels.get(name) or name) + marks.get(name, "")).encode("utf-8", "backslashreplace").decode()


def title_of(name: str, results: dict) -> str:
    """A run's label or name, its lengths of training and its budget."""
    config = results["config"]
    told = f"{label_of(name)}, {config['min_len']} to {config['max_len']} tokens, {config['num_steps']:,} updates"
    return told + ", falling rate" * (config["schedule"] == "cosine")


# ==== Figures =========================================================================================================


def add_title(figure: plt.Figure, title: str, question: str) -> None:
    """Title of a figure, in as many lines as its width asks for."""
    figure.suptitle(textwrap.fill(f"{title}: {question}", int(9 * figure.get_figwidth())), fontsize=12)


def panels_of(arms: dict, columns: int = 4, height: float = 2.5, each: int = 1):
    """A figure with so many panels below each other for each arm, and these, [arms, each]. An arm has a mark if a seed
    of it does not reverse the lengths of its training."""
    columns = min(columns, len(arms))
    rows = -(-len(arms) // columns)
    size = (1.2 + max(3.1, 7 / columns) * columns, 1.5 + height * rows * each)
    figure, axes = plt.subplots(rows * each, columns, figsize=size, layout="constrained", squeeze=False)
    axes = axes.reshape(rows, each, columns).swapaxes(1, 2).reshape(-1, each)
    for panel in axes[len(arms) :].flat:
        panel.set_axis_off()
    for panel, (arm, seeds) in zip(axes[:, 0], arms.items(), strict=False):
        short = sum(not seed["trained"] for seed in seeds)
        mark = f"\nNOT TRAINED in {short} of {len(seeds)} seeds" if short else ""
        panel.set_title(arm + mark, fontsize=9, color="0.5" if short else "black")
    for panel in axes[: len(arms)].flat:
        panel.grid(color="0.93")
    return figure, axes[: len(arms)]


def stopped(seeds: list[dict], key: str):
    """A line over the mapped lengths for every stopping rule."""
    for rule, (label, style) in RULES.items():
        if rule in seeds[0]["by_length"]["stopping"]:
            values = [seed["by_length"]["stopping"][rule][key] for seed in seeds]
            yield label, style, seeds[0]["by_length"]["mapped"], values


def over_length(results: dict, arms: dict, lines, title: tuple, top: float | None = 1.03) -> plt.Figure | None:
    """Of every arm the lines(seeds), a label, a style, lengths and values [seeds, lengths] each: seeds thin, their mean
    thick, lengths of training shaded."""
    if not arms:
        return None
    (figure, panels), found = panels_of(arms), {}
    for (panel,), seeds in zip(panels, arms.values(), strict=True):
        panel.axvspan(results["config"]["min_len"], results["config"]["max_len"], color="0.9", lw=0)
        for label, style, lengths, values in lines(seeds):
            panel.plot(lengths, np.transpose(values), **style, lw=0.6, ms=2, alpha=0.5)
            (found[label],) = panel.plot(lengths, np.mean(values, 0), **style, lw=2, ms=5)
        panel.set(ylim=(-0.03, top), xlabel="tokens")
        panel.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=3, frameon=False)
    add_title(figure, *title)
    return figure


def draw_lengths(results: dict, title: str) -> plt.Figure:
    """Exact and token accuracy against length, in the arm's own frame and in the other one."""

    def lines(seeds):
        for key, (label, style) in SCORES.items():
            lengths = seeds[0]["by_length"]["mapped" if "other" in key else "lengths"]
            yield label, style, lengths, [seed["by_length"][key] for seed in seeds]

    question = "how far beyond the lengths of training (gray) does an arm reverse? (thick: mean over seeds)"
    return over_length(results, arms_of(results), lines, (title, question))


def draw_stopping(results: dict, title: str) -> plt.Figure | None:
    """Exact accuracy by stopping rule on the same weights against length, beside that after the loops of training."""

    def lines(seeds):
        own = [seed["by_length"]["exact"] for seed in seeds]
        yield "loops of training", {"color": "0.6", "ls": "-"}, seeds[0]["by_length"]["lengths"], own
        yield from stopped(seeds, "exact")

    question = "does a rule find the right number of loops? (whole sequences right, same weights)"
    return over_length(results, looping(results), lines, (title, question))


def draw_exits(results: dict, title: str) -> plt.Figure | None:
    """Mean number of loops by stopping rule against length."""
    question = "after how many loops does a rule stop?"
    return over_length(results, looping(results), lambda seeds: stopped(seeds, "loops"), (title, question), None)


def draw_loops(results: dict, title: str) -> plt.Figure | None:
    """Maps of exact accuracy, mean over seeds: length by number of loops, those of training dashed."""
    arms = looping(results, ())
    if not arms:
        return None
    figure, panels = panels_of(arms, 3, 3.0)
    for (panel,), seeds in zip(panels, arms.values(), strict=True):
        lengths, settings = seeds[0]["by_length"]["mapped"], seeds[0]["settings"]
        grid = np.full((max(map(len, seeds[0]["by_length"]["exact_by_loop"])), len(lengths)), np.nan)
        for x, columns in enumerate(zip(*(seed["by_length"]["exact_by_loop"] for seed in seeds), strict=True)):
            grid[: len(columns[0]), x] = np.mean(columns, 0)
        extent = (-0.5, len(lengths) - 0.5, 0.5, len(grid) + 0.5)
        style = {"cmap": "viridis", "vmin": 0, "vmax": 1, "origin": "lower", "aspect": "auto", "extent": extent}
        image = panel.imshow(np.ma.masked_invalid(grid), **style)
        panel.set_facecolor("0.85")
        asked = [n if settings["loops"] == "length" else settings["trained_loops"] for n in lengths]
        panel.plot(asked, color="white", lw=1.5)
        panel.plot(asked, color="black", lw=1.5, ls=(0, (4, 4)))
        panel.axvline(lengths.index(results["config"]["max_len"]) + 0.5, color="white", lw=1)
        panel.set_xticks(range(len(lengths)), lengths, fontsize=6)
        panel.yaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
        panel.set(xlabel="tokens", ylabel="loops", xlim=extent[:2], ylim=extent[2:])
        panel.grid(False)
    figure.colorbar(image, ax=panels.ravel().tolist(), label="whole sequences right", shrink=0.5)
    add_title(figure, title, "what do more loops do? (dashed: loops of training; right of the line: longer sequences)")
    return figure


def draw_states(results: dict, title: str) -> plt.Figure | None:
    """Token accuracy, confidence and relative change of the state against loops at some lengths; means over seeds."""
    arms, lengths = looping(results), results["config"]["test_lengths"]
    if not arms:
        return None
    figure, panels = panels_of(arms, 5, 2.0, 3)
    for own, seeds in zip(panels, arms.values(), strict=True):
        for n, (color, line) in zip(dict.fromkeys((*lengths[:3], lengths[-1])), SHOWN, strict=False):
            found = [[seed["by_length"][f"{key}_by_loop"][lengths.index(n)] for seed in seeds] for key in STATES]
            tokens, doubt, change = np.mean(found, 1)
            change[0] = np.nan  # there is none before the first loop
            for panel, values in zip(own, (tokens, np.exp(-doubt), change), strict=True):
                loops = range(1, len(values) + 1)
                panel.plot(loops, values, color=color, ls=line, lw=1.8, label=f"{n} tokens")
        for panel in own:
            panel.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
        own[2].set(yscale="log", xlabel="loops")
        own[2].yaxis.set_major_formatter("{x:g}")
        own[2].yaxis.set_minor_formatter("")
    plt.setp(panels[:, :2].ravel().tolist(), ylim=(-0.03, 1.03))
    ends = [panel.get_ylim() for panel in panels[:, 2]]
    ends = min(low for low, _ in ends), max(high for _, high in ends)
    plt.setp(panels[:, 2].tolist(), ylim=ends)
    for own in panels[::5]:
        for panel, label in zip(own, STATES.values(), strict=True):
            panel.set_ylabel(label)
    figure.legend(*panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    add_title(figure, title, "does the state come to rest, and is it right? (means over seeds)")
    return figure


def draw_arms(arms: dict[tuple[str, str], list[dict]], lengths: list[int], titles: dict[str, str]) -> plt.Figure:
    """Exact accuracy at some lengths: a row per (run, arm), a dot per seed; open and gray if it is not trained."""
    size = (1.5 + 2.1 * len(lengths) + 2.5, 1.8 + 0.34 * len(arms))
    figure, axes = plt.subplots(1, len(lengths), figsize=size, layout="constrained", sharey=True, squeeze=False)
    for panel, n in zip(axes[0], lengths, strict=True):
        for y, seeds in enumerate(arms.values()):
            lanes = (np.arange(len(seeds)) - (len(seeds) - 1) / 2) * 0.5 / len(seeds)
            for seed, lane in zip(seeds, lanes, strict=True):
                color, fill = ("#0072B2", "#0072B2") if seed["trained"] else ("0.55", "white")
                if f"exact_L{n}" in seed:
                    panel.plot(seed[f"exact_L{n}"], y + lane, "o", color=color, mfc=fill, ms=4.5)
        panel.set(xlim=(-0.05, 1.05), ylim=(len(arms) - 0.5, -0.5), xlabel=f"{n} tokens")
        panel.grid(color="0.93")
        panel.set_axisbelow(True)
    names = [f"{label_of(run)}: {arm}" if len(titles) > 1 else arm for run, arm in arms]
    axes[0, 0].set_yticks(range(len(arms)), names)
    figure.supxlabel("whole sequences right, a dot per seed; open: below 0.9 on the lengths of training", fontsize=9)
    add_title(figure, "; ".join(titles.values()), "which arm reverses longer sequences than it was trained on?")
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


def print_table(arms: dict[tuple[str, str], list[dict]], lengths: list[int], titles: dict[str, str]) -> None:
    """One line per arm: mean exact accuracies, and seeds that are trained."""
    for (run, arm), seeds in arms.items():
        keys = {"lengths of training": "trained_exact"} | {n: f"exact_L{n}" for n in lengths}
        told = (f"{n}: {np.mean([seed[key] for seed in seeds]):.3f}" for n, key in keys.items() if key in seeds[0])
        trained = sum(seed["trained"] for seed in seeds)
        known = "a control" if arm in CONTROLS else f"trained in {trained} of {len(seeds)} seeds"
        say(f"{titles[run]}: {arm}: exact at {', '.join(told)}; {known}")


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
    hashes = {name: (results.get("environment") or {}).get("yardstick_sha256") for name, results in runs.items()}
    first = next((name for name in runs if name in labels), next(iter(runs)))
    marks.clear()
    for name in (name for name in runs if hashes[name] != hashes[first]):
        marks[name] = f" (another yardstick than {first})"
        say(f"{name}: measured with another yardstick than {first} (yardstick_sha256): compare with care")
    for name in labels:
        if name not in paths:
            say(f"{name}: in labels, but there is no such run here")
    unwritten = []
    figures = {"lengths": draw_lengths, "loops": draw_loops, "states": draw_states, "stopping": draw_stopping}
    figures["exits"] = draw_exits
    for name, results in runs.items():
        for kind, draw in figures.items():
            if figure := draw(results, title_of(name, results)):
                unwritten.append(save(figure, folder / os.fsdecode(f"{kind}_{name}.png".encode())))
    shown = {name: results for name, results in runs.items() if name in labels} or runs
    titles = {name: title_of(name, results) for name, results in shown.items()}
    arms = {(name, arm): seeds for name, results in shown.items() for arm, seeds in arms_of(results).items()}
    lengths = sorted({n for results in shown.values() for n in results["config"]["test_lengths"]})
    unwritten.append(save(draw_arms(arms, lengths, titles), folder / "arms.png"))
    print_table(arms, lengths, titles)
    return int(any(unwritten))


if __name__ == "__main__":
    sys.exit(main())
