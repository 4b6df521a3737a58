#!/usr/bin/env python3
"""Draw every figure of the runs that experiment.py wrote, from their all_results.json alone.

    python plot.py        # the runs in the current folder (run_*), else those in results/
    python plot.py DIR    # the runs in DIR, or DIR itself if it is a run

Every figure goes into that folder, and is the same in every environment:
    stages_<run>.png      memorizing, composition, analogy over training: did analogy come, when, and did it stay?
    energy_<run>.png      energy of the functor's pairs against that of all other pairs, and what became of analogy
    embeddings_<run>.png  entities on their principal plane at the start, at the least energy and at the end
    sweep.png             analogy against whatever differs between the cells of the runs in `labels`, else of all runs
The numbers of sweep.png are printed as well. Exit status: 1 if nothing could be drawn or a figure not be written, 2 if
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

# Titles of runs, {"run_0": "readme", ..}. sweep.png shows the runs named here; without any, all.
labels = {}

# Colors of Okabe & Ito; lines and markers tell apart without color. The thresholds are those of experiment.py.
STAGES = {
    "train_acc": ("memorizing: accuracy on what is trained (triangle: a seed is at 0.99)", "#000000", ":", "t_mem"),
    "near_ood_compositional_acc": (
        "composition: accuracy on held-out pairs of hops (triangle: 0.99)",
        "#E69F00",
        "--",
        "t_comp",
    ),
    "ood_analogical_prob": ("analogy: probability of held-out images (triangle: 0.5)", "#0072B2", "-", "t_ana"),
}
ENERGIES = {
    "energy_id": ("trained pairs", "#E69F00", "--"),
    "energy_ood": ("held-out pairs", "#0072B2", "-"),
    "energy_null": ("all other pairs of the categories", "#000000", ":"),
}
FIELDS = {
    "num_entities": "entities",
    "num_relations": "relations",
    "analogical_ood_ratio": "held out",
    "weight_decay": "weight decay",
    "d_model": "width",
}


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
        if cells_of(results):
            return results
        say(f"{path}: skipped, its all_results.json has no cell")
    except FileNotFoundError:
        say(f"{path}: skipped, it holds no all_results.json")
    except (ValueError, KeyError, IndexError, TypeError, OSError) as error:
        say(f"{path}: skipped, its all_results.json is not that of a run ({type(error).__name__}: {error})")


def cells_of(results: dict) -> dict[tuple, list[dict]]:
    """All seeds of every cell, by the values of FIELDS: a cell's numbers with `curves` and `pairs` of its model."""
    place = lambda told: tuple(told[field] for field in FIELDS)  # noqa: E731
    models = {(place(t), t["seed"]): {key: t[key] for key in ("curves", "pairs")} for t in results["trajectories"]}
    found = {}
    for cell in results["cells"]:
        found.setdefault(place(cell), []).append(cell | models[place(cell), cell["seed"]])
    return dict(sorted(found.items()))


def differing(places: list[tuple]) -> list[int]:
    """Which of FIELDS are not the same in all of these cells."""
    return [i for i in range(len(FIELDS)) if len({place[i] for place in places}) > 1]


def in_words(place: tuple, which: list[int]) -> str:
    """The values of these fields: `relations 100, width 64`."""
    names = [*FIELDS.values()]
    return ", ".join(f"{names[i]} {place[i]:,}" if i < 2 else f"{names[i]} {place[i]:g}" for i in which)


def median(cells: list[dict], key: str) -> float | None:
    """Of a number of updates over seeds, where None, never, is more than any; None if that is the median."""
    value = np.median([np.inf if cell[key] is None else cell[key] for cell in cells])
    return float(value) if np.isfinite(value) else None


def finding(seeds: list[dict]) -> str:
    """Whether analogy came, when, and whether it stayed."""
    came, n = [seed for seed in seeds if seed["t_ana"] is not None], len(seeds)
    if any(seed["ood_analogical_prob"] is None for seed in seeds):
        return "no analogical fact is held out"
    if not came:
        return f"analogy in 0 of {n} seeds"
    stayed = sum(seed["ood_analogical_prob"] >= 0.5 for seed in came)
    when = sorted(seed["t_ana"] for seed in came)
    span = f"update {when[0]:,}" if when[0] == when[-1] else f"updates {when[0]:,} to {when[-1]:,}"
    return f"analogy in {len(came)} of {n} seeds, first at {span}; at the end in {stayed}"


def title_of(name: str) -> str:
    return str(labels.get(name) or name).encode("utf-8", "backslashreplace").decode()  # half a character is not drawn


# ==== Figures =========================================================================================================


def add_title(figure: plt.Figure, title: str, question: str) -> None:
    """Title of a figure, in as many lines as its width asks for."""
    figure.suptitle(textwrap.fill(f"{title}: {question}", int(9 * figure.get_figwidth())), fontsize=12)


def add_legend(figure: plt.Figure, panels: list[plt.Axes], columns: int) -> None:
    """Below the panels, every line that one of them has."""
    named = {}
    for panel in panels:
        named |= {text: handle for handle, text in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=columns, frameon=False)


def label_decades(axis, form: str = "{:,.10g}", subs: tuple[int, ...] = (1, 2, 5)) -> None:
    """Plain numbers on a logarithmic axis, at 1, 2 and 5 of every decade."""
    axis.set_major_locator(matplotlib.ticker.LogLocator(subs=subs))
    axis.set_major_formatter(lambda x, _: form.format(x))
    axis.set_minor_locator(matplotlib.ticker.NullLocator())


def draw_lines(panel: plt.Axes, seeds: list[dict], lines: dict[str, tuple]) -> None:
    """Numbers against updates on a logarithmic axis: every seed thin, the median thick. The start is left out."""
    for key, (label, color, line, *_) in lines.items():
        curves = [dict(zip(seed["curves"]["step"], seed["curves"][key], strict=True)) for seed in seeds]
        curves = [{step: y for step, y in curve.items() if step and y is not None} for curve in curves]
        for curve in curves:
            panel.plot(curve.keys(), curve.values(), color=color, lw=0.6, alpha=0.5)
        steps = sorted(set.intersection(*map(set, curves)))  # an epoch may have another number of updates
        if steps:
            middle = np.median([[curve[step] for step in steps] for curve in curves], 0)
            panel.plot(steps, middle, color=color, ls=line, lw=2.2, label=label)
    panel.set_xscale("log")
    label_decades(panel.xaxis, subs=(1, 3))
    panel.grid(color="0.9")
    panel.set_axisbelow(True)


def panels_of(results: dict, rows: int, title: str, question: str):
    """A figure with `rows` panels for each cell of a run, and the cells with their panels."""
    cells = cells_of(results)
    columns = min(3, len(cells))
    shape = (rows * -(-len(cells) // columns), columns)
    size = (1.5 + max(4.8, 9 / columns) * columns, 1.6 + 2.8 * shape[0])
    figure, axes = plt.subplots(*shape, figsize=size, layout="constrained", squeeze=False)
    which, places = differing([*cells]), []
    for i, (place, seeds) in enumerate(cells.items()):
        own = [axes[rows * (i // columns) + row, i % columns] for row in range(rows)]
        own[0].set_title("\n".join(filter(None, [in_words(place, which), finding(seeds)])), fontsize=9)
        own[-1].set_xlabel("updates")
        places.append((seeds, own))
    for i in range(len(cells), columns * shape[0] // rows):
        for row in range(rows):
            axes[rows * (i // columns) + row, i % columns].set_axis_off()
    add_title(figure, title, question)
    return figure, places


def draw_stages(results: dict, title: str) -> plt.Figure:
    """Memorizing, composition and analogy, and where each first reached its threshold."""
    figure, places = panels_of(
        results, 1, title, "did analogy come, when, and did it stay? (a line per seed, thick: median)"
    )
    for seeds, (panel,) in places:
        draw_lines(panel, seeds, STAGES)
        for _, color, _, key in STAGES.values():
            reached = [seed[key] for seed in seeds if seed[key]]
            panel.plot(reached, [1.05] * len(reached), "v", color=color, ms=6)
        panel.axhline(0.5, color="0.6", lw=0.8)
        panel.set(ylim=(-0.03, 1.1), ylabel="accuracy or probability")
    add_legend(figure, [panel for _, (panel,) in places], 1)
    return figure


def draw_energy(results: dict, title: str) -> plt.Figure:
    """Probability of held-out images above, energies of the functor's pairs and their null below."""
    figure, places = panels_of(results, 2, title, "does the energy fall before analogy comes, and below the null?")
    for seeds, (top, low) in places:
        draw_lines(top, seeds, {"ood_analogical_prob": STAGES["ood_analogical_prob"]})
        top.set(ylim=(-0.03, 1.03), ylabel="probability of\nheld-out images")
        draw_lines(low, seeds, ENERGIES)
        low.set_ylabel("Dirichlet energy\n(unit rows)")
    add_legend(figure, [low for _, (_, low) in places], 3)
    return figure


def draw_embeddings(results: dict, title: str) -> plt.Figure:
    """Entities of the first seed on their principal plane, with an arrow from each to its image."""
    cells = cells_of(results)
    which, moments = differing([*cells]), ("start", "least energy", "end")
    size = (11, 1.4 + 3.4 * len(cells))
    figure, axes = plt.subplots(len(cells), 3, figsize=size, layout="constrained", squeeze=False)
    for (place, seeds), line in zip(cells.items(), axes, strict=True):
        seed = seeds[0]
        curves, held_out = seed["curves"], place[2]
        known = round(len(seed["pairs"]) * (1 - held_out))
        at = {"start": 0, "least energy": int(np.argmin(curves["energy"])), "end": -1}
        for panel, moment in zip(line, moments, strict=True):
            xy = np.array(curves["plane"][at[moment]])
            for i, (one, other) in enumerate(seed["pairs"]):
                style = {"color": "#E69F00", "ls": "-"} if i < known else {"color": "#0072B2", "ls": "--"}
                panel.annotate("", xy[other], xy[one], arrowprops={"arrowstyle": "->", "lw": 1.4, **style})
            for marker, column, fill in (("o", 0, "black"), ("s", 1, "white")):
                own = xy[[pair[column] for pair in seed["pairs"]]]
                panel.plot(*own.T, marker, color="black", mfc=fill, ms=5)
            shares = curves["plane_shares"][at[moment]]
            words = f"{moment}, update {curves['step'][at[moment]]:,}: {100 * sum(shares):.0f}% of variance"
            panel.set_title(words, fontsize=9)
            panel.set(xticks=[], yticks=[], aspect="equal", adjustable="datalim")
        line[0].set_ylabel("\n".join(filter(None, [in_words(place, which), f"seed {seed['seed']}"])))
    kinds = {"trained pair": ("#E69F00", "-"), "held-out pair": ("#0072B2", "--")}
    handles = [plt.Line2D([], [], color=color, ls=line, label=label) for label, (color, line) in kinds.items()]
    marks = {"first category": "black", "second category": "white"}
    for label, fill in marks.items():
        marker = "o" if fill == "black" else "s"
        handles.append(plt.Line2D([], [], color="black", marker=marker, mfc=fill, ls="", label=label))
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    add_title(figure, title, "do arrows from entities to their images become parallel?")
    return figure


def draw_sweep(cells: dict[tuple, list[dict]], which: list[int], title: str) -> plt.Figure:
    """How high analogy rose, how long it stayed and where it was at the end: a mark per seed of every cell."""
    quantities = {
        "ood_analogical_prob_max": "highest probability\nof held-out images",
        "ood_analogical_share": "share of training\nwith at least 0.5",
        "ood_analogical_prob": "probability\nat the end",
    }
    size = (11, 1.8 + 0.55 * len(cells))
    figure, axes = plt.subplots(1, 3, figsize=size, layout="constrained", sharey=True)
    for panel, (key, label) in zip(axes, quantities.items(), strict=True):
        for y, seeds in enumerate(cells.values()):
            values = [seed[key] for seed in seeds if seed[key] is not None]
            lanes = np.linspace(-0.2, 0.2, len(values)) if len(values) > 1 else 0
            panel.plot(values, y + lanes + np.zeros(len(values)), "o", color="#0072B2", ms=4)
            panel.plot(
                [np.median(values)] * 2 if values else [], [y - 0.35, y + 0.35] if values else [], color="black", lw=2
            )
        panel.axvline(0.5, color="0.6", lw=0.8)
        panel.set(xlim=(-0.03, 1.03), xlabel=label, ylim=(len(cells) - 0.5, -0.5))
        panel.grid(color="0.9", axis="x")
        panel.set_axisbelow(True)
    names = [f"{name}: {in_words(place, which)}".removesuffix(": ") for name, place in cells]
    axes[0].set_yticks(range(len(cells)), names)
    for y, seeds in enumerate(cells.values()):
        came = sum(seed["t_ana"] is not None for seed in seeds)
        held_out = all(seed["ood_analogical_prob"] is not None for seed in seeds)
        words = f"came in {came} of {len(seeds)}" if held_out else "nothing held out"
        axes[2].text(1.06, y, words, va="center", fontsize=8)
    add_title(figure, title, "where does analogy come, and where does it stay? (a dot per seed, line: median)")
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


def print_table(cells: dict[tuple, list[dict]], which: list[int]) -> None:
    """One line per cell."""
    for (name, place), seeds in cells.items():
        steps = ((key, median(seeds, key)) for key in ("t_mem", "t_comp", "t_ana"))
        told = ", ".join(f"{key} {'never' if x is None else f'{x:,.0f}'}" for key, x in steps)
        say(f"{f'{name} {in_words(place, which)}'.strip()}: {finding(seeds)}; medians: {told}")


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
    unwritten, figures = [], {"stages": draw_stages, "energy": draw_energy, "embeddings": draw_embeddings}
    for name, results in runs.items():
        for kind, draw in figures.items():
            file_name = os.fsdecode(f"{kind}_{name}.png".encode())
            unwritten.append(save(draw(results, title_of(name)), folder / file_name))
    shown = {name: results for name, results in runs.items() if name in labels} or runs
    cells = {(title_of(name), place): own for name, run in shown.items() for place, own in cells_of(run).items()}
    which = differing([place for _, place in cells])
    unwritten.append(save(draw_sweep(cells, which, ", ".join(map(title_of, shown))), folder / "sweep.png"))
    print_table(cells, which)
    return int(any(unwritten))


if __name__ == "__main__":
    sys.exit(main())
