#!/usr/bin/env python3
"""Draw every figure of the runs that experiment.py wrote, from their all_results.json alone.

    python plot.py        # the runs in the current folder (run_*), else those in results/
    python plot.py DIR    # the runs in DIR, or DIR itself if it is a run

Every figure goes into that folder, and is the same in every environment:
    law.png               accuracy on unseen tasks against the law, for all cells of the runs in `labels`, else of all
    accuracy_<run>.png    accuracy on unseen tasks over the number of training tasks, with the law's curve
    tasks_<run>.png       every task against its law 2^-u, and steps with and without a trained coordinate
    ideals_<run>.png      memorizer or composer, over training and the number of training tasks
    examples_<run>.png    accuracy after 1, 2, .. examples, with that of the composer
The numbers of law.png are printed as well. Exit status: 1 if nothing could be drawn or a figure not be written, 2 if
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

# Titles of runs, {"run_0": "baseline", ..}. law.png shows the runs named here; without any, all.
labels = {}

# Colors of Okabe & Ito; markers and lines tell apart without color.
STYLES = [("#0072B2", "o", "-"), ("#D55E00", "s", "--"), ("#009E73", "^", "-."), ("#000000", "D", ":")]
STYLES += [("#CC79A7", "v", "-"), ("#56B4E9", "P", "--")]
PANELS = {"layout": "constrained", "squeeze": False}


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
    """All seeds of every (variant, d, n): a cell's numbers with `curves` of its model and `tasks` at the end."""
    models = {(t["variant"], t["d"], t["n_train_tasks"], t["seed"]): t["curves"] for t in results["trajectories"]}
    found = {}
    for cell in results["cells"]:
        place = (cell["variant"], cell["d"], cell["n_train_tasks"])
        curves = models[(*place, cell["seed"])]
        found.setdefault(place, []).append(cell | {"curves": curves, "tasks": curves["tasks"][-1]})
    return dict(sorted(found.items()))


def rows_of(results: dict) -> dict[tuple, dict[int, list[dict]]]:
    """The cells by (variant, d), and in these by n."""
    rows = {}
    for (variant, d, n), seeds in cells_of(results).items():
        rows.setdefault((variant, d), {})[n] = seeds
    return rows


def values(seeds: list[dict], key: str) -> list[float]:
    """A number of all seeds that have it."""
    return [seed[key] for seed in seeds if seed[key] is not None]


def row_in_words(variant: str, d: int) -> str:
    return f"d = {d}" + ("" if variant == "ordered" else f", {variant.replace('_', ' ')}")


def format_of(results: dict) -> str:
    """What of the format has to be named wherever numbers are shown."""
    c = results["config"]
    told = f"{c['tokens']} tokens, {c['positions']} positions"
    return told + (", curriculum" if c["curriculum"] else "")


def title_of(name: str) -> str:
    return str(labels.get(name) or name).encode("utf-8", "backslashreplace").decode()  # half a character is not drawn


# ==== Figures =========================================================================================================


def add_title(figure: plt.Figure, title: str, question: str) -> None:
    """Title of a figure, in as many lines as its width asks for."""
    figure.suptitle(textwrap.fill(f"{title}: {question}", int(9 * figure.get_figwidth())), fontsize=12)


def draw_accuracy(results: dict, title: str) -> plt.Figure:
    """Exact accuracy on unseen tasks against the number of training tasks: seeds, their mean, and the law's mean."""
    rows = rows_of(results)
    figure, axes = plt.subplots(1, len(rows), figsize=(2 + 4.2 * len(rows), 4.6), **PANELS, sharey=True)
    for panel, ((variant, d), cells) in zip(axes[0], rows.items(), strict=True):
        for x, seeds in enumerate(cells.values()):
            for seed in (seed for seed in seeds if seed["unseen_exact"] is not None):
                fill = "#0072B2" if seed["trained"] else "white"
                panel.plot(x, seed["unseen_exact"], "o", color="#0072B2", mfc=fill, ms=5)
        for key, label, color, line in (
            ("law", "law: mean of 2^-u, no free parameter", "#000000", "--"),
            ("unseen_exact", "seen on unseen tasks (open: not trained)", "#0072B2", "-"),
        ):
            means = {x: np.mean(own) for x, seeds in enumerate(cells.values()) if (own := values(seeds, key))}
            panel.plot(means.keys(), means.values(), color=color, ls=line, lw=1.8, label=label)
        panel.axhline(2.0 ** -results["config"]["dim_k"], color="0.6", lw=0.8)
        panel.set_xticks(range(len(cells)), cells)
        panel.set(xlabel="training tasks n", ylim=(-0.03, 1.03), title=row_in_words(variant, d))
        panel.grid(color="0.92")
        panel.set_axisbelow(True)
    axes[0, 0].set_ylabel("whole chains right")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2, frameon=False)
    add_title(figure, title, f"from how many tasks on are unseen ones solved? (gray: memorizer; {format_of(results)})")
    return figure


def draw_tasks(results: dict, title: str) -> plt.Figure:
    """Accuracy of every unseen and excluded task by its number of uncovered steps, against 2^-u; below, steps."""
    rows = rows_of(results)
    figure, axes = plt.subplots(2, len(rows), figsize=(2 + 4.2 * len(rows), 7), **PANELS, sharey="row")
    jitter = np.random.default_rng(0)
    for (top, low), ((variant, d), cells) in zip(axes.T, rows.items(), strict=True):
        for (n, seeds), (color, marker, line) in zip(cells.items(), itertools.cycle(STYLES), strict=False):
            points = [
                (sum(steps), exact)
                for seed in seeds
                for kind in ("unseen", "excluded")
                if kind in seed["tasks"]
                for steps, exact in zip(seed["tasks"][kind]["uncovered"], seed["tasks"][kind]["exact"], strict=True)
            ]
            if points:
                u, exact = np.array(points, float).T
                top.plot(u + jitter.uniform(-0.3, 0.3, len(u)), exact, marker, color=color, ms=3, alpha=0.35)
                groups = {x: exact[u == x] for x in sorted(set(u))}
                means = [group.mean() for group in groups.values()]
                errors = [1.96 * group.std() / np.sqrt(len(group)) for group in groups.values()]
                top.errorbar([*groups], means, errors, color=color, marker=marker, ls=line, capsize=3, label=f"n = {n}")
        u = range(results["config"]["dim_k"] + 1)
        top.plot(u, [2.0**-x for x in u], color="black", lw=2, ls=":", label="2^-u")
        top.set(xlabel="steps u without a trained coordinate", ylim=(-0.03, 1.03), title=row_in_words(variant, d))
        top.set_xticks(u)
        top.legend(fontsize=8, frameon=False)
        for key, label, color, marker in (
            ("unseen_covered_steps", "coordinate trained at this step", "#0072B2", "o"),
            ("unseen_uncovered_steps", "not trained there", "#D55E00", "s"),
        ):
            for x, seeds in enumerate(cells.values()):
                low.plot([x] * len(values(seeds, key)), values(seeds, key), marker, color=color, ms=5)
            low.plot([], [], marker, color=color, label=label)
        low.axhline(0.5, color="0.6", lw=0.8)
        low.set_xticks(range(len(cells)), cells)
        low.set(xlabel="training tasks n", ylim=(0.3, 1.03))
        low.legend(fontsize=8, frameon=False, loc="lower right")
        for panel in (top, low):
            panel.grid(color="0.92")
            panel.set_axisbelow(True)
    axes[0, 0].set_ylabel("whole chains right, per task")
    axes[1, 0].set_ylabel("steps right")
    add_title(figure, title, f"do tasks fail where steps were never trained? ({format_of(results)})")
    return figure


def draw_ideals(results: dict, title: str) -> plt.Figure | None:
    """Where models stand between memorizer (0) and covered composer (1), by updates and number of training tasks."""
    rows = {row: cells for row, cells in rows_of(results).items() if row[0] != "no_cot"}
    if not rows:
        return None
    figure, axes = plt.subplots(1, len(rows), figsize=(2.6 + 3.8 * len(rows), 4.4), **PANELS)
    for panel, ((variant, d), cells) in zip(axes[0], rows.items(), strict=True):
        steps = [*cells.values()][0][0]["curves"]["step"]
        curves = [[seed["curves"]["relative_divergence"] for seed in seeds] for seeds in cells.values()]
        grid = np.array([np.mean(np.array(own, float), 0) for own in curves])
        image = panel.imshow(grid, cmap="cividis", vmin=0, vmax=1, origin="lower", aspect="auto")
        at = sorted({0, len(steps) // 2, len(steps) - 1})
        panel.set_xticks(at, [f"{steps[i]:,}" for i in at])
        panel.set_yticks(range(len(cells)), [str(n) for n in cells])
        panel.set(xlabel="updates", ylabel="training tasks n", title=row_in_words(variant, d))
    bar = figure.colorbar(image, ax=list(axes[0]), ticks=[0, 0.5, 1])
    bar.ax.set_yticklabels(["0  like the\n   memorizer", "0.5", "1  like the\n   covered composer"])
    add_title(figure, title, f"does it know tasks, or coordinates at steps? (unseen tasks; {format_of(results)})")
    return figure


def draw_examples(results: dict, title: str) -> plt.Figure:
    """Accuracy on unseen tasks by the number of the example in its sequence, beside that of the composer."""
    rows = rows_of(results)
    figure, axes = plt.subplots(1, len(rows), figsize=(2 + 4.2 * len(rows), 4.4), **PANELS, sharey=True)
    for panel, ((variant, d), cells) in zip(axes[0], rows.items(), strict=True):
        for (n, seeds), (color, marker, line) in zip(cells.items(), itertools.cycle(STYLES), strict=False):
            own = [seed["curves"]["unseen_by_example"][-1] for seed in seeds if "unseen_by_example" in seed["curves"]]
            if own:
                x = range(1, len(own[0]) + 1)
                panel.plot(x, np.mean(own, 0), color=color, marker=marker, ls=line, ms=3.5, label=f"n = {n}")
        ideal = [
            seed["curves"]["composer_by_example"][-1]
            for seeds in cells.values()
            for seed in seeds
            if "composer_by_example" in seed["curves"]
        ]
        if ideal:
            panel.plot(range(1, len(ideal[0]) + 1), np.mean(ideal, 0), color="black", lw=2, ls=":", label="composer")
        panel.set(xlabel="number of the example", ylim=(-0.03, 1.03), title=row_in_words(variant, d))
        panel.legend(fontsize=8, frameon=False)
        panel.grid(color="0.92")
        panel.set_axisbelow(True)
    axes[0, 0].set_ylabel("whole chains right")
    add_title(figure, title, f"how many examples does it need? (unseen tasks; {format_of(results)})")
    return figure


def draw_law(cells: dict[tuple, list[dict]], title: str) -> plt.Figure:
    """Observed against predicted accuracy on unseen tasks, and on excluded ones: a mark per seed of every cell."""
    figure, panel = plt.subplots(figsize=(7.5, 7), layout="constrained")
    kinds = {"unseen_exact": ("law", "unseen", "o"), "excluded_exact": ("law_excluded", "excluded from training", "s")}
    names = list(dict.fromkeys(place[:3] for place in cells))
    colors = {name: STYLES[i % len(STYLES)][0] for i, name in enumerate(names)}
    for (name, variant, d, _), seeds in cells.items():
        for key, (law, _, marker) in kinds.items():
            for seed in seeds:
                if seed[key] is not None:
                    color = colors[name, variant, d]
                    fill = color if seed["trained"] else "white"
                    panel.plot(seed[law], seed[key], marker, color=color, mfc=fill, ms=6)
    panel.plot([0, 1], [0, 1], color="black", lw=1.5, ls=":")
    many = len({name for name, _, _ in names}) > 1
    for name, variant, d in names:
        words = (f"{name}: " if many else "") + row_in_words(variant, d)
        panel.plot([], [], "o", color=colors[name, variant, d], label=words)
    for _, label, marker in kinds.values():
        panel.plot([], [], marker, color="0.3", label=label)
    panel.plot([], [], "o", color="0.3", mfc="white", label="not trained")
    panel.legend(fontsize=8, frameon=False, loc="upper left")
    panel.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    panel.set(xlabel="law: mean of 2^-u of the tasks tested", ylabel="whole chains right")
    panel.grid(color="0.92")
    panel.set_axisbelow(True)
    add_title(figure, title, "does coverage of coordinates at steps predict accuracy?")
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


def print_table(cells: dict[tuple, list[dict]]) -> None:
    """One line per cell: means over seeds."""
    keys = ("unseen_exact", "law", "train_exact", "unseen_worst_decile", "excluded_exact", "law_excluded")
    for (name, variant, d, n), seeds in cells.items():
        told = (f"{key} {np.mean(values(seeds, key)):.3f}" for key in keys if values(seeds, key))
        say(f"{name} {row_in_words(variant, d)}, n = {n}: {', '.join(told)}; {len(seeds)} seeds")


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
    figures = {"accuracy": draw_accuracy, "tasks": draw_tasks, "ideals": draw_ideals, "examples": draw_examples}
    for name, results in runs.items():
        for kind, draw in figures.items():
            if figure := draw(results, title_of(name)):
                unwritten.append(save(figure, folder / os.fsdecode(f"{kind}_{name}.png".encode())))
    shown = {name: results for name, results in runs.items() if name in labels} or runs
    cells = {(title_of(name), *place): own for name, run in shown.items() for place, own in cells_of(run).items()}
    unwritten.append(save(draw_law(cells, ", ".join(map(title_of, shown))), folder / "law.png"))
    print_table(cells)
    return int(any(unwritten))


if __name__ == "__main__":
    sys.exit(main())
