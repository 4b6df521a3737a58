#!/usr/bin/env python3
"""Draw every figure of the runs that experiment.py wrote, from their all_results.json alone.

    python plot.py        # the runs in the current folder (run_*), else those in results/
    python plot.py DIR    # the runs in DIR, or DIR itself if it is a run

Every figure goes into that folder, and is the same in every environment:
    law.png               accuracy on unseen tasks against the law, for all cells of the runs in `labels`, else of all
    thresholds.png        training tasks that are needed, over d, of the same runs, if they have two values of d
    accuracy_<run>.png    accuracy on unseen tasks over the number of training tasks, with the law's curve
    tasks_<run>.png       every task against its law 2^-u, and steps with and without a trained coordinate
    ideals_<run>.png      memorizer or composer, over training and the number of training tasks
    examples_<run>.png    accuracy after 1, 2, .. examples, with that of ideal predictors
What is averaged and printed is of trained seeds alone. Exit status: 1 if nothing could be drawn or a figure not be
written, 2 if DIR is no folder.
"""

import argparse
import contextlib
import itertools
import json
import logging
import math
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

plt.rcParams |= {"text.parse_math": False}  # a label is plain text: a dollar sign in it is one
plt.rcParams |= {"axes.grid": True, "grid.color": "0.92", "axes.axisbelow": True, "legend.frameon": False}

# Titles of runs, {"run_0": "baseline", ..}. law.png and thresholds.png show the runs named here; without any, all.
labels = {}
marks = {}  # what the titles of runs add that were measured otherwise than the first one

VARIANTS = ["ordered", "sorted", "missing_coordinate", "missing_pair", "no_cot"]
MARKERS = "osD^vP*X"  # of numbers of training tasks, beside colors by their logarithm
REACHED = {"unseen tasks": ("unseen_exact", "law"), "worst tenth": ("unseen_worst_decile", "law_worst_decile")}
SEEN, LAW, WORST, OTHER = "#0072B2", "#000000", "#D55E00", "#009E73"  # colors of Okabe & Ito


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
    """All seeds of every (variant, d, n): a cell's numbers with `curves` of its model and, for every kind of tested
    tasks, (uncovered steps, share of sequences that are right) of each."""
    models = {(t["variant"], t["d"], t["n_train_tasks"], t["seed"]): t["curves"] for t in results["trajectories"]}
    found, sequences = {}, results["config"]["n_test_sequences"]
    for cell in results["cells"]:
        place = (cell["variant"], cell["d"], cell["n_train_tasks"])
        curves, tasks = models[(*place, cell["seed"])], {}
        for kind, told in curves["tasks"][-1].items():
            parts = [task.split("|") for task in told]
            tasks[kind] = [(uncovered.count("1"), int(exact) / sequences) for _, uncovered, _, exact, _ in parts]
        found.setdefault(place, []).append(cell | {"curves": curves, "tasks": tasks})
    order = {variant: i for i, variant in enumerate(VARIANTS)}
    return dict(sorted(found.items(), key=lambda item: (order.get(item[0][0], len(order)), *item[0])))


def rows_of(results: dict, chained: bool = False) -> dict[tuple, dict[int, list[dict]]]:
    """The cells by (variant, d), and in these by n; if `chained`, only those that a law of steps is about."""
    rows = {}
    for (variant, d, n), seeds in cells_of(results).items():
        if not (chained and variant == "no_cot"):
            rows.setdefault((variant, d), {})[n] = seeds
    return rows


def trained(seeds: list[dict], least: float = 0.9) -> list[dict]:
    """The seeds whose training tasks are learned: others prove nothing about unseen ones."""
    return [seed for seed in seeds if seed["train_exact"] >= least]


def values(seeds: list[dict], key: str) -> list[float]:
    """A number of all seeds that have it."""
    return [seed[key] for seed in seeds if seed[key] is not None]


def row_in_words(variant: str, d: int) -> str:
    return f"d = {d}" + ("" if variant == "ordered" else f", {variant.replace('_', ' ')}")


def format_of(results: dict) -> str:
    """What of the format has to be named wherever numbers are shown."""
    c = results["config"]
    told = f"k = {c['dim_k']}, {c['tokens']} tokens, {c['positions']} positions"
    return told + (", curriculum" if c["curriculum"] else ", no curriculum")


def title_of(name: str) -> str:
    return (str(labels.get(name) or name) + marks.get(name, "")).encode("utf-8", "backslashreplace").decode()


# ==== Comparing =======================================================================================================


def student_quantile(n: int) -> float:
    """What Student's t of n degrees of freedom exceeds in size with probability 5%: for t = sqrt(n) tan(x), the density
    of x is proportional to cos(x)^(n - 1)."""
    x = np.linspace(0, np.pi / 2, 10_001)
    below = np.cumsum(np.cos((x[1:] + x[:-1]) / 2) ** (n - 1))
    return float(np.sqrt(n) * np.tan(np.interp(0.95 * below[-1], below, x[1:])))


def interval(own: list[float]) -> tuple[float, float, float]:
    """Mean over seeds and the ends of its 95% t interval, NaN with fewer than three seeds."""
    middle = float(np.mean(own)) if len(own) else np.nan
    half = student_quantile(len(own) - 1) * np.std(own, ddof=1) / np.sqrt(len(own)) if len(own) > 2 else np.nan
    return middle, middle - half, middle + half


def in_words(own: list[float]) -> str:
    middle, low, high = interval(own)
    return f"{middle:.3f}" + (f" [{low:.3f}, {high:.3f}]" if low == low else "")


def gaps(seeds: list[dict], least: float = 0.9) -> dict[int, float]:
    """How much less is seen than the law says, by trained seed."""
    return {s["seed"]: s["law"] - s["unseen_exact"] for s in trained(seeds, least) if s["law"] is not None}


def groups(seeds: list[dict], kind: str) -> dict[int, list[float]]:
    """By number u of uncovered steps the mean over such tasks of every trained seed."""
    found = {}
    for seed in trained(seeds):
        tasks = seed["tasks"].get(kind, [])
        for u in {u for u, _ in tasks}:
            found.setdefault(u, []).append(float(np.mean([exact for own, exact in tasks if own == u])))
    return dict(sorted(found.items()))


def needed(cells: dict[int, list[dict]], key: str) -> dict[int, float]:
    """From which n on a number is at least 0.9, by trained seed: on a straight line over log n between the last n below
    and the next one. Infinite if the largest n is below, 0 if none is."""
    found = {}
    for seed in sorted({seed["seed"] for seeds in cells.values() for seed in seeds}):
        own = [(math.log(n), s[key]) for n in sorted(cells) for s in trained(cells[n]) if s["seed"] == seed]
        low = [i for i, (_, y) in enumerate(own) if y < 0.9]
        if own and low and low[-1] + 1 < len(own):
            (x, y), (after, above) = own[low[-1]], own[low[-1] + 1]
            found[seed] = math.exp(x + (after - x) * (0.9 - y) / (above - y))
        elif own:
            found[seed] = math.inf if low else 0.0
    return found


def is_known(own: list[float]) -> bool:
    """Whether every seed has its number within the n that were trained."""
    return bool(own) and 0 < min(own) and max(own) < math.inf


GROWTH = {"c d": lambda d: d, "c d ln d": lambda d: d * math.log(d)}


def fits(means: dict[int, float]) -> dict[str, tuple[float, dict[int, float]]]:
    """Both laws of growth: c by least squares of logarithms, and seen over fitted by d; none of fewer than two d."""
    found = {}
    for name, growth in GROWTH.items() if len(means) > 1 else ():
        c = math.exp(np.mean([math.log(n / growth(d)) for d, n in means.items()]))
        found[name] = c, {d: n / (c * growth(d)) for d, n in means.items()}
    return found


def rows_by_d(runs: dict[str, dict]) -> dict[int, tuple[str, dict[int, list[dict]]]]:
    """The cells of ordered tuples by d, in the first run's format, and whose they are: of runs that have the same d, of
    the one of most trained models."""
    found, first = {}, format_of(next(iter(runs.values())))
    for name, results in runs.items():
        for (variant, d), cells in rows_of(results).items():
            if variant == "ordered" and format_of(results) == first:
                models = sum(len(trained(seeds)) for seeds in cells.values())
                found[d] = max(found.get(d, (0, "", {})), (models, name, cells), key=lambda known: known[0])
    return {d: (name, cells) for d, (_, name, cells) in sorted(found.items())}


# ==== Figures =========================================================================================================


def add_title(figure: plt.Figure, title: str, question: str) -> None:
    """Title of a figure, in as many lines as its width asks for."""
    words = f"{title}: {question}".replace(" = ", "\u00a0=\u00a0")  # no line ends there
    figure.suptitle(textwrap.fill(words, int(9 * figure.get_figwidth())), fontsize=12)


def panels(names: list[str], lines: int, height: float) -> tuple[plt.Figure, list[np.ndarray]]:
    """A figure with a column of panels for each name, at most three of them side by side, and the columns."""
    columns = min(3, len(names))
    blocks = -(-len(names) // columns)
    size = (1 + max(4.3, 6.5 / columns) * columns, 1.8 + height * lines * blocks)
    figure, axes = plt.subplots(lines * blocks, columns, figsize=size, layout="constrained", squeeze=False)
    places = [axes[lines * i : lines * (i + 1), j] for i in range(blocks) for j in range(columns)]
    for name, place in itertools.zip_longest(names, places):
        place[0].set_title(name or "", fontsize=10)
        for panel in () if name else place:
            panel.set_axis_off()
    return figure, places[: len(names)]


def add_legend(figure: plt.Figure, columns: int) -> None:
    """Below the panels, every line that one of them has."""
    named = {}
    for panel in figure.axes:
        named |= {text: handle for handle, text in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=columns, fontsize=9)


def styles_of(numbers: set[int]) -> dict[int, dict]:
    """Color, from dark to light by the logarithm, and marker of every number of training tasks."""
    least, most = math.log(min(numbers)), math.log(max(numbers))
    shades = {n: plt.get_cmap("plasma")(0.88 * (math.log(n) - least) / (most - least or 1)) for n in sorted(numbers)}
    return {n: {"color": shades[n], "marker": MARKERS[i % len(MARKERS)]} for i, n in enumerate(shades)}


def add_bar(panel: plt.Axes, x: float, own: list[float], **style) -> None:
    """Mean over seeds with its interval, which ends at 0 and 1 as shares do."""
    middle, low, high = interval(own)
    error = None if low != low else [[middle - max(low, 0)], [min(high, 1) - middle]]
    panel.errorbar(x, middle, error, **{"capsize": 3, "ls": "", "ms": 6} | style)


def add_line(panel: plt.Axes, cells: dict[int, list[dict]], key: str, bars: bool = True, **style) -> None:
    """Means of trained seeds over n, with intervals."""
    own = {n: told for n, seeds in cells.items() if (told := values(trained(seeds), key))}
    panel.plot(own.keys(), [np.mean(told) for told in own.values()], **style)
    for n, told in own.items() if bars else ():
        add_bar(panel, n, told, color=style["color"], marker=style["marker"])


def add_groups(panel: plt.Axes, cells: dict[int, list[dict]], styles: dict[int, dict], k: int, dots: bool) -> None:
    """By n the mean over tasks of u uncovered steps beside the law 2^-u; with dots every task."""
    jitter = np.random.default_rng(0)
    lanes = np.linspace(-0.38, 0.38, len(cells) + 2)
    for (n, seeds), lane in zip(cells.items(), lanes[1:-1], strict=True):
        panel.plot([], [], **styles[n], ls="", label=f"n = {n}")
        for kind, edge, x in (("unseen", None, lane), ("excluded", "black", lane + (lanes[1] - lanes[0]) / 3)):
            for u, own in groups(seeds, kind).items():
                add_bar(panel, x - u, own, **styles[n], mec=edge)
            tasks = [task for seed in trained(seeds) for task in seed["tasks"].get(kind, ())] if dots else []
            at = [x - u + jitter.uniform(-0.03, 0.03) for u, _ in tasks]
            panel.plot(at, [exact for _, exact in tasks], ".", color=styles[n]["color"], ms=3, alpha=0.3)
    for u in range(k + 1):
        panel.plot([-u - 0.42, -u + 0.42], [2.0**-u] * 2, color=LAW, lw=1.5, label="law 2^-u")
    panel.set_xticks([-u for u in range(k + 1)], [f"{2.0**-u:g}\nu = {u}" for u in range(k + 1)])
    panel.set(xlabel="law 2^-u, u steps without a trained coordinate", ylabel="whole chains right", ylim=(-0.03, 1.03))


def number_tasks(panel: plt.Axes, cells: dict[int, list[dict]]) -> None:
    """A logarithmic axis of n; below every n how many of the seeds are trained."""
    panel.set_xscale("log")
    panel.set_xticks([*cells], [f"{n}\n{len(trained(seeds))}/{len(seeds)}" for n, seeds in cells.items()], fontsize=8)
    panel.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    panel.set(xlabel="training tasks n, trained seeds of all", xlim=(min(cells) / 1.15, max(cells) * 1.15))


def draw_accuracy(results: dict, title: str) -> plt.Figure:
    """Exact accuracy on unseen tasks and on the worst tenth of them against n, with the law's curves."""
    rows = rows_of(results)
    figure, places = panels([row_in_words(*row) for row in rows], 1, 3.6)
    for (panel,), ((variant, _), cells) in zip(places, rows.items(), strict=True):
        for seed in (seed for seeds in cells.values() for seed in seeds if not seed["trained"]):
            n, accuracy = seed["n_train_tasks"], seed["unseen_exact"]
            panel.plot(n, accuracy, "o", color=SEEN, mfc="white", ms=6, label="seen, not trained")
        for (what, (key, law)), color, marker in zip(REACHED.items(), (SEEN, WORST), "os", strict=True):
            add_line(panel, cells, law, bars=False, color=color, marker="_", ms=12, ls="--", label=f"law, {what}")
            add_line(panel, cells, key, color=color, marker=marker, lw=1.8, label=f"seen, {what}")
        add_line(panel, cells, "train_exact", bars=False, color="0.45", marker="_", lw=1, label="seen, training tasks")
        chance = 0.5 if variant == "no_cot" else 2.0 ** -results["config"]["dim_k"]
        panel.axhline(chance, color="0.6", lw=0.8, ls=":", label="chance, or a memorizer")
        number_tasks(panel, cells)
        panel.set(ylim=(-0.03, 1.03), ylabel="whole chains right")
    add_legend(figure, 3)
    add_title(figure, title, f"from how many tasks on are unseen ones solved? (95% over seeds; {format_of(results)})")
    return figure


def draw_tasks(results: dict, title: str) -> plt.Figure | None:
    """Accuracy of every unseen and excluded task by its number of uncovered steps, against 2^-u; below, steps."""
    if not (rows := rows_of(results, chained=True)):
        return None
    figure, places = panels([row_in_words(*row) for row in rows], 2, 3.2)
    styles = styles_of({n for cells in rows.values() for n in cells})
    for (top, low), cells in zip(places, rows.values(), strict=True):
        add_groups(top, cells, styles, results["config"]["dim_k"], dots=True)
        for key, color, marker, label in (
            ("unseen_covered_steps", SEEN, "o", "covered steps right"),
            ("unseen_uncovered_steps", WORST, "s", "uncovered steps right"),
            ("failing_read_one", OTHER, "^", "failing: read one wrong coordinate"),
        ):
            add_line(low, cells, key, color=color, marker=marker, label=label)
        low.axhline(0.5, color="0.6", lw=0.8)
        number_tasks(low, cells)
        low.set(ylabel="share", ylim=(-0.03, 1.03))
    add_legend(figure, 4)
    question = "do tasks fail where steps were never trained? (a dot per task, marks: means, 95% over seeds"
    add_title(figure, title, f"{question}; black edge: excluded from training; {format_of(results)})")
    return figure


def draw_ideals(results: dict, title: str) -> plt.Figure | None:
    """Between memorizer (0) and covered composer (1), by updates and n: answers to unseen tasks; below, cross-entropy
    on training tasks."""
    if not (rows := rows_of(results, chained=True)):
        return None
    figure, places = panels([f"{row_in_words(*row)}\nanswers to unseen tasks" for row in rows], 2, 2.9)
    for place, ((_, d), cells) in zip(places, rows.items(), strict=True):
        steps = next(iter(cells.values()))[0]["curves"]["step"]
        for panel, key in zip(place, ("relative_divergence", "position"), strict=True):
            grid = np.full((len(cells), len(steps)), np.nan)
            for i, seeds in enumerate(cells.values()):
                if own := [seed["curves"][key] for seed in trained(seeds)]:
                    grid[i] = np.array(own, float).mean(0)
            if key == "position":  # where even the covered composer is much better there is nothing between the two
                grid = np.where(grid < -0.5, np.nan, 1 - grid)
            image = panel.imshow(grid.clip(0, 1), cmap="viridis", vmin=0, vmax=1, origin="lower", aspect="auto")
            if results["config"]["curriculum"] and d > 3:
                whole = steps[-1] / 2 * (d - 3) / (d - 2)
                panel.axvline(np.interp(whole, steps, range(len(steps))), color="white", lw=1.5, ls="--")
            panel.set_xticks(at := sorted({0, len(steps) // 2, len(steps) - 1}), [f"{steps[i]:,}" for i in at])
            panel.set_yticks(range(len(cells)), cells)
            panel.set(xlabel="updates", ylabel="training tasks n", facecolor="0.8")
            panel.grid(False)
        place[1].set_title("cross-entropy on training tasks", fontsize=10)
    bar = figure.colorbar(image, ax=figure.axes, ticks=[0, 0.5, 1])
    bar.ax.set_yticklabels(["0  memorizer", "0.5", "1  covered\n   composer"])
    told = "gray: far from both; "
    if results["config"]["curriculum"]:
        told += "right of the dashed line all bits are random; "
    add_title(figure, title, f"does it know tasks, or coordinates at steps? ({told}{format_of(results)})")
    return figure


def draw_examples(results: dict, title: str) -> plt.Figure:
    """Accuracy by the number of the example in its sequence, for four n at most, beside ideal predictors: above unseen
    tasks, below training tasks."""
    rows = rows_of(results)
    figure, places = panels([f"{row_in_words(*row)}\nunseen tasks" for row in rows], 2, 2.9)
    styles = styles_of({n for cells in rows.values() for n in cells})
    lines = {"model": "-", "memorizer": "--", "covered": ":", "composer": "-."}
    for place, cells in zip(places, rows.values(), strict=True):
        shown = {[*cells][round(i)] for i in np.linspace(0, len(cells) - 1, 4)}
        for (panel, kind), n in itertools.product(zip(place, ("unseen", "train"), strict=True), sorted(shown)):
            own = [seed["curves"]["by_example"][-1][kind] for seed in trained(cells[n])]
            for who, line in lines.items():
                if own and who in own[0] and (kind, who) not in (("unseen", "memorizer"), ("train", "composer")):
                    y, known = np.mean([told[who] for told in own], 0), who in ("model", "composer")
                    color = LAW if who == "composer" else styles[n]["color"]
                    panel.plot(range(1, len(y) + 1), y, ls=line, color=color, lw=1.8 if known else 1)
            panel.set(xlabel="number of the example", ylabel="whole chains right", ylim=(-0.03, 1.03))
            panel.plot([], [], color=styles[n]["color"], lw=3, label=f"n = {n}")
        place[1].set_title("training tasks", fontsize=10)
    for who, line in lines.items():
        figure.axes[0].plot([], [], color="black", ls=line, label=f"{who} composer" if who == "covered" else who)
    add_legend(figure, 4)
    add_title(figure, title, f"how many examples does it need? (trained seeds; {format_of(results)})")
    return figure


def draw_law(runs: dict[str, dict]) -> plt.Figure | None:
    """Observed against predicted accuracy: a mark per cell and group of tasks with equally many uncovered steps."""
    rows = {(name, *row): cells for name, run in runs.items() for row, cells in rows_of(run, chained=True).items()}
    if not rows:
        return None
    formats, names = {format_of(run) for run in runs.values()}, []
    for name, *row in rows:
        words = f"{title_of(name)}: {row_in_words(*row)}"
        names.append(words + (f"\n{format_of(runs[name])}" if len(formats) > 1 else ""))
    figure, places = panels(names, 1, 3.6)
    styles = styles_of({n for cells in rows.values() for n in cells})
    for (panel,), ((name, *_), cells) in zip(places, rows.items(), strict=True):
        add_groups(panel, cells, styles, runs[name]["config"]["dim_k"], dots=False)
    add_legend(figure, 5)
    told = f"; {formats.pop()}" if len(formats) == 1 else ""
    question = "does coverage of coordinates at steps predict accuracy? (black edge: excluded from training"
    add_title(figure, "unseen tasks", f"{question}; mean and 95% over trained seeds{told})")
    return figure


def draw_thresholds(runs: dict[str, dict]) -> plt.Figure | None:
    """From which n on 0.9 is reached, over d, by the mean over tasks and the worst tenth, with both laws of growth."""
    if len(rows := rows_by_d(runs)) < 2:
        return None
    figure, places = panels([*REACHED], 1, 3.8)
    for (panel,), (seen, law) in zip(places, REACHED.values(), strict=True):
        means = {}
        for key, label, color, marker, shift in ((seen, "seen", SEEN, "o", 1), (law, "by the law", LAW, "s", 1.03)):
            panel.plot([], [], marker, color=color, label=label)
            for d, (_, cells) in rows.items():
                own = [*needed(cells, key).values()]
                for n in own:
                    mark, y = {math.inf: ("^", max(cells)), 0.0: ("v", min(cells))}.get(n, (marker, n))
                    panel.plot(d * shift, y, mark, color=color, mfc="white", ms=4)
                if is_known(own):
                    middle, low, high = np.exp(interval(np.log(own)))
                    error = None if low != low else [[middle - low], [high - middle]]
                    panel.errorbar(d * shift, middle, error, color=color, marker=marker, capsize=3)
                    means |= {d: middle} if key == seen else {}
        x = np.linspace(min(rows), max(rows), 50)
        for (name, (c, _)), line in zip(fits(means).items(), ("--", ":"), strict=False):
            panel.plot(x, [c * GROWTH[name](d) for d in x], color=SEEN, ls=line, label=f"{name}, c = {c:.2f}")
        panel.set(xscale="log", yscale="log", xlabel="bits d", ylabel="training tasks for 0.9")
        panel.set_xticks([*rows], [*rows])
        panel.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 4, 8)))
        panel.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_minor_locator(matplotlib.ticker.NullLocator())
        panel.legend(fontsize=8)
    names = dict.fromkeys(name for name, _ in rows.values())
    told = "open: seeds; triangles: beyond the n trained; bars: 95% over seeds"
    question = f"how many tasks are needed? ({told}; {format_of(runs[next(iter(names))])})"
    add_title(figure, ", ".join(map(title_of, names)), question)
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


def print_numbers(runs: dict[str, dict]) -> None:
    """Means over trained seeds of every cell with their intervals, and what is compared."""
    keys = "unseen_exact law train_exact unseen_u0 unseen_covered_steps unseen_uncovered_steps unseen_worst_decile "
    keys += "law_worst_decile failing_covered_steps failing_read_one position excluded_exact law_excluded"
    cells = {(name, *place): seeds for name, run in runs.items() for place, seeds in cells_of(run).items()}
    for (name, variant, d, n), seeds in cells.items():
        told = [f"{key} {in_words(own)}" for key in keys.split() if (own := values(trained(seeds), key))]
        told += [f"gap at {x} {in_words([*own.values()])}" for x in (0.9, 0.98) if (own := gaps(seeds, x))]
        told += [f"trained {len(trained(seeds))} of {len(seeds)} seeds"]
        say(f"{title_of(name)} {row_in_words(variant, d)}, n = {n}: {', '.join(told)}")
    for (one, *place), (other, *there) in itertools.combinations(cells, 2):
        left, right = gaps(cells[one, *place]), gaps(cells[other, *there])
        same = place == there and runs[one]["config"]["dim_k"] == runs[other]["config"]["dim_k"]
        if same and (both := [right[seed] - left[seed] for seed in left if seed in right]):
            words = f"{title_of(other)} - {title_of(one)}, {row_in_words(*place[:2])}, n = {place[2]}"
            say(f"{words}: gap {in_words(both)}, {len(both)} pairs")
    for name, least in itertools.product(runs, (0.9, 0.98)):
        few, many = ([*gaps(cells.get((name, "ordered", 10, n), []), least).values()] for n in (16, 64))
        if few and many:
            say(f"{title_of(name)}, d = 10, trained to {least}: {decision(few, many)}")
    for key in itertools.chain(*REACHED.values()):
        means = {}
        for d, (_, row) in rows_by_d(runs).items():
            own = [*needed(row, key).values()]
            shown = [f"> {max(row)}" if n == math.inf else f"< {min(row)}" if n == 0 else f"{n:.1f}" for n in own]
            middle, low, high = np.exp(interval(np.log(own))) if is_known(own) else (None, None, None)
            means |= {d: middle} if middle else {}
            told = f"; {middle:.1f} [{low:.1f}, {high:.1f}]" if middle else ""
            say(f"d = {d}: {key} 0.9 from n = {', '.join(shown)}{told}")
        for name, (c, residuals) in fits(means).items():
            told = ", ".join(f"{ratio:.2f} (d = {d})" for d, ratio in residuals.items())
            say(f"{key} 0.9 from n = {name}: c = {c:.3f}, seen over fitted {told}")


def decision(few: list[float], many: list[float]) -> str:
    """The primary comparison, by the gaps at n = 16 and 64."""
    if interval(few)[1] > 0.05 and np.mean(many) < 0.03:
        return "a threshold on top of coverage"
    if max(abs(np.mean(few)), abs(np.mean(many))) <= 0.03:
        return "the law holds as stated"
    return "undecided"


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
    figures = {"accuracy": draw_accuracy, "tasks": draw_tasks, "ideals": draw_ideals, "examples": draw_examples}
    for (name, results), (kind, draw) in itertools.product(runs.items(), figures.items()):
        if figure := draw(results, title_of(name)):
            unwritten.append(save(figure, folder / os.fsdecode(f"{kind}_{name}.png".encode())))
    shown = {name: results for name, results in runs.items() if name in labels} or runs
    for kind, draw in {"law": draw_law, "thresholds": draw_thresholds}.items():
        if figure := draw(shown):
            unwritten.append(save(figure, folder / f"{kind}.png"))
    print_numbers(shown)
    return int(any(unwritten))


if __name__ == "__main__":
    sys.exit(main())
