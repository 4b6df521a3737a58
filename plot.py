#!/usr/bin/env python3
"""Draw every figure of the runs that experiment.py wrote, from their all_results.json alone.

    python plot.py        # the runs in the current folder (run_*), else those in results/
    python plot.py DIR    # the runs in DIR, or DIR itself if it is a run

Every figure goes into that folder, also that of a run that is a link, and is the same in every environment:
    answer.png            do the models count or memorize up to a renaming? every seed, and all with their interval
    compare.png           side by side the maps of the runs in `labels`, without any of those of the most common grid
    heatmap_<run>.png     relative divergence, D x N: 0 (blue) like the generalizer, 1 (red) like the memorizer
    distance_<run>.png    how far the models are from each ideal predictor, and which mixture of them is nearest
    curves_<run>.png      training loss and relative divergence over training steps
    positions_<run>.png   how far the models are from S and M after 1, 2, .. draws
The numbers of answer.png and of the maps are printed as well. Exit status: 1 if nothing could be drawn or a figure not
be written, 2 if DIR is no folder.
"""

import argparse
import contextlib
import functools
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

# Titles of runs, {"run_0": "baseline", ..}. answer.png and compare.png show the runs named here; without any, those
# that can be compared.
labels = {}

# A model whose nearest ideal predictor is farther than this many nats behaves like none of them.
NEITHER_NATS = 0.05

# Colors of Okabe & Ito; marker, line and hatch tell the predictors apart without color.
PREDICTORS = {
    "kl_to_g": ("G counting", "#000000", "s", ":", ""),
    "kl_to_posterior_mean": ("S posterior mean", "#0072B2", "o", "-", ""),
    "kl_to_best_counting": ("R best counting rule", "#009E73", "v", (0, (6, 1, 1, 1, 1, 1)), "..."),
    "kl_to_orbit": ("O Bayes over relabelled urns", "#E69F00", "^", "--", "///"),
    "kl_to_m": ("M Bayes over the urns", "#D55E00", "D", "-.", "xx"),
}
# The strategies: their names under `reference` and in weight_.., and their keys above.
STRATEGIES = {key.removeprefix("kl_to_"): key for key in list(PREDICTORS)[1:4]} | {"memorizing": "kl_to_m"}
MAPS = {
    "relative_divergence": "requested: 0 is like G",
    "relative_divergence_posterior_mean": "calibrated: 0 is like S",
}

# answer.png: the number of a cell that it shows, and what it says of embeddings, of the ends of its scale and at last.
ANSWER = "bias_coordinate_r_o"
EMBEDDINGS = {
    "gaussian": "random vectors,\nnew in every sequence",
    "permutation": "learned vectors,\nshuffled in every sequence",
    "fixed": "learned vectors:\nthe ordinary Transformer",
}
ENDS = "R: counts\n(best counting rule)", "O: memorizes up to a renaming\n(Bayes over relabelled urns)"
CAPTION = """\
small: a seed, larger where R and O are farther apart on its urns; large: all seeds, with jackknife 95% interval
○ neither: farther from R and from O than these are from each other     ▷ off the scale
◇ M, Bayes over the urns with their colors, is nearer than R and O: off the line between them
a seed's urns are nested, the first D of one table; where R equals O it is left out"""


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
        rows, columns = (sorted(map(int, results["config"][key])) for key in ("tasks", "steps"))
        inside = all(cell["n_tasks"] in rows and cell["n_steps"] in columns for cell in results["cells"])
        if rows and columns and inside:
            return results
        say(f"{path}: skipped, the cells of its all_results.json are not those of its configuration")
    except FileNotFoundError:
        say(f"{path}: skipped, it holds no all_results.json")
    except (ValueError, KeyError, IndexError, TypeError, OSError) as error:
        say(f"{path}: skipped, its all_results.json is not that of a run ({type(error).__name__}: {error})")


def grid_of(results: dict) -> tuple[list[int], list[int]]:
    """Rows D and columns N of the run's grid, ascending."""
    return sorted(results["config"]["tasks"]), sorted(results["config"]["steps"])


def of_one_grid(runs: dict[str, dict]) -> dict[str, dict]:
    """The runs of the grid that most of them have."""
    grids = [grid_of(results) for results in runs.values()]
    most = max(grids, key=grids.count)
    return {name: results for name, results in runs.items() if grid_of(results) == most}


def exact(cell: dict, key: str):
    """A number of a cell or point: its exact expectation where the run has it, else the sampled one, else None."""
    return cell.get(f"exact_{key}", cell.get(key))


def kind_of(results: dict) -> str:
    """What `exact` finds in this run."""
    return "exact" if results["cells"] and all("exact_kl_to_m" in x for x in results["cells"]) else "sampled"


def cells_at(results: dict, n_tasks: int, n_steps: int | None = None) -> list[dict]:
    """The cells of all seeds at one place of the grid, or in one row of it."""
    return [x for x in results["cells"] if x["n_tasks"] == n_tasks and n_steps in (None, x["n_steps"])]


def over_seeds(values: list) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard error over the seeds of values [seeds] or [seeds, n]; NaN if one is None."""
    if len(values) == 0 or any(x is None for x in values):
        return np.nan, np.nan
    values = np.array(values, float)
    return values.mean(0), values.std(0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else values[0] * np.nan


def along(results: dict, n_tasks: int, value) -> np.ndarray:
    """Mean and standard error over seeds of value(cell) at every N: [2, N]; NaN where no cell has it."""
    places = (cells_at(results, n_tasks, N) for N in grid_of(results)[1])
    return np.array([over_seeds([value(cell) for cell in cells]) for cells in places], float).T


def grid(results: dict, value) -> np.ndarray:
    """The same for every D: [2, D, N]."""
    return np.stack([along(results, D, value) for D in grid_of(results)[0]], 1)


def title_of(name: str, results: dict, *kinds: str) -> str:
    """The run's label; without one, its name and what kind of models it trained."""
    forms = {"embedding": "{} embeddings", "d_model": "d_model {}"}
    known = [forms[kind].format(results["config"][kind]) for kind in kinds or forms if kind in results["config"]]
    title = labels.get(name) or name + (f" ({', '.join(known)})" if known else "")
    return str(title).encode("utf-8", "backslashreplace").decode()  # half a character cannot be drawn


def strategies_of(results: dict) -> list[str]:
    """The strategies that the run was measured against."""
    known = {name for cell in results["cells"] for name in cell.get("reference", ())}
    return [name for name in STRATEGIES if name in known or not known]


def reference(results: dict, n_tasks: int, name: str, key: str):
    """What an ideal predictor would score in place of the models of n_tasks urns: the mean over their cells."""
    return over_seeds([cell.get("reference", {}).get(name, {}).get(key) for cell in cells_at(results, n_tasks)])[0]


def missing_cells(results: dict) -> str:
    """ "" or how many cells of the grid the run does not have, or not for all seeds."""
    places = [cells_at(results, *place) for place in itertools.product(*grid_of(results))]
    found = [sum(cell.get("relative_divergence") is not None for cell in cells) for cells in places]
    fewer = sum(0 < n < results["config"].get("seeds", 1) for n in found)
    counts = {"missing cells (hatched)": found.count(0), "cells of fewer seeds": fewer}
    return ", ".join(f"{what}: {n}" for what, n in counts.items() if n)


def nearest(cell: dict) -> float | None:
    """Nats from the model to the nearest ideal predictor."""
    return min((x for key in PREDICTORS if (x := exact(cell, key)) is not None), default=None)


def yardstick_of(results: dict) -> str | None:
    """Hash of what the run was measured with."""
    return (results.get("environment") or {}).get("yardstick_sha256")


# ==== Counting or memorizing ==========================================================================================


def coordinates_at(results: dict, n_tasks: int, n_steps: int | None = None, key: str = ANSWER) -> list[dict]:
    """The cells of all seeds at one place, the last N unless said otherwise, that have a coordinate from R to O, be it
    None because R equals O."""
    cells = cells_at(results, n_tasks, n_steps or grid_of(results)[1][-1])
    return [cell for cell in cells if key in cell and "best_counting" in cell.get("reference", ())]


def comparable(runs: dict[str, dict]) -> dict[str, dict]:
    """The runs of answer.png: of one configuration but for embedding, D and seeds, that which has most models per D."""
    groups, free = {}, ("embedding", "tasks", "steps", "seeds", "seed", "n_test", "device")
    for name, results in runs.items():
        config = {key: value for key, value in results["config"].items() if key not in free}
        same = json.dumps([config, grid_of(results)[1][-1], yardstick_of(results)], sort_keys=True)
        groups.setdefault(same, {})[name] = max(len(coordinates_at(results, D)) for D in grid_of(results)[0])
    most = max(groups.values(), key=lambda group: sum(group.values()))
    return {name: runs[name] for name, models in most.items() if models}


def apart(cell: dict) -> tuple[float, float]:
    """KL(R || O) and KL(O || R) in nats on the urns of this cell."""
    ideals = cell["reference"]
    return ideals["orbit"]["kl_to_best_counting"], ideals["best_counting"]["kl_to_orbit"]


def student_quantile(n: int) -> float:
    """What Student's t of n degrees of freedom exceeds in size with probability 5%: for t = sqrt(n) tan(x), the density
    of x is proportional to cos(x)^(n - 1)."""
    x = np.linspace(0, np.pi / 2, 10_001)
    below = np.cumsum(np.cos((x[1:] + x[:-1]) / 2) ** (n - 1))
    return float(np.sqrt(n) * np.tan(np.interp(0.95 * below[-1], below, x[1:])))


def pooled_coordinate(cells: list[dict], key: str = ANSWER) -> tuple[float, float, float]:
    """Coordinate of all seeds between R (0) and O (1), and its jackknife 95% interval: NaN with fewer than 3 seeds.

    Of a cell it is KL(R || P) - KL(O || P) + KL(O || R) over KL(R || O) + KL(O || R); P is the model without its noise
    (bias_coordinate_r_o) or as it is (coordinate_r_o). Over seeds both are summed: seeds on whose urns R and O hardly
    differ hardly count, and those on whose urns they are equal, which have no coordinate, not at all.
    """
    seeds = [(cell[key] * sum(apart(cell)), sum(apart(cell))) for cell in cells if cell[key] is not None]
    parts, n = np.array(seeds).reshape(-1, 2), len(seeds)
    value, half = np.divide(*parts.sum(0)) if n else np.nan, np.nan
    if n >= 3:
        without = np.divide(*(parts.sum(0) - parts).T)  # each seed in turn
        half = student_quantile(n - 1) * np.sqrt((n - 1) * without.var())
    return value, value - half, value + half


def biases(cells: list[dict]) -> np.ndarray | None:
    """Means over the seeds with a coordinate: nats from R, O and M to the models without noise, KL(R || O) and
    KL(O || R). None if R equals O for all."""
    keys = ("bias_to_best_counting", "bias_to_orbit", "bias_to_m")
    nats = [[*(exact(cell, key) for key in keys), *apart(cell)] for cell in cells if cell[ANSWER] is not None]
    return np.mean(np.array(nats, float), 0) if nats else None


def standing(cells: list[dict]) -> str:
    """Where models stand by their biases: "M" if that to M is below those to R and O; "neither" if these both exceed
    KL(R || O) and KL(O || R); else "between", or "same" if R equals O."""
    if (nats := biases(cells)) is None:
        return "same"
    to_r, to_o, to_m, *r_and_o = nats
    return "M" if to_m < min(to_r, to_o) else "neither" if min(to_r, to_o) > max(r_and_o) else "between"


def verdict(cells: list[dict]) -> str:
    """What the pooled coordinate says of models that are between R and O: something if its interval leaves out 0.5. To
    memorize they have to be nearer to O than R is as well."""
    others = {"M": "nearest to M (by color)", "neither": "neither", "same": "R equals O"}
    if (kind := standing(cells)) in others:
        return others[kind]
    (_, to_o, _, _, o_to_r), (_, low, high) = biases(cells), pooled_coordinate(cells)
    if low > 0.5:
        return "memorizes up to a renaming" if to_o < o_to_r else "towards O, but no nearer to it than R is"
    return "counts" if high < 0.5 else "undecided"


def in_words(cells: list[dict], key: str = ANSWER, digits: int = 2) -> str:
    """The pooled coordinate, its interval, and of how many seeds it is."""
    value, *interval = (f"{x:.{digits}f}" for x in pooled_coordinate(cells, key))
    n, used = len(cells), sum(cell[key] is not None for cell in cells)
    seeds = f"{n if used == n else f'{used} of {n}'} seed{'s' * (n > 1)}"
    return f"{value}, {seeds}" if "nan" in interval else f"{value} [{', '.join(interval)}], {seeds}"


# ==== Figures =========================================================================================================


def add_title(figure: plt.Figure, title: str, question: str) -> None:
    """Title of a figure, in as many lines as its width asks for."""
    lines = f"{title}: {question}".splitlines()
    figure.suptitle("\n".join(textwrap.fill(line, int(11 * figure.get_figwidth())) for line in lines), fontsize=12)


def draw_row(panel: plt.Axes, y: int, cells: list[dict]) -> None:
    """A row of answer.png: seeds, below them all together, beside them the verdict. Only what is between R and O has a
    background and numbers."""
    kind, (left, right), (value, *interval) = standing(cells), panel.get_xlim(), pooled_coordinate(cells)

    def mark(x, y, kind, size, color):
        marker = "<" if x < left else ">" if x > right else "D" if kind == "M" else "o"
        fill, size = color if kind == "between" else "white", max(size, 6 * (marker in "<>"))
        panel.plot(np.clip(x, left, right), y, marker, ms=size, color=color, mfc=fill, clip_on=False, zorder=3)

    for end, limit, key in ((0, left, "kl_to_best_counting"), (1, right, "kl_to_orbit")):
        panel.axvline(end, color="black", lw=1)
        if kind == "between":
            panel.fill_between([0.5, limit], y - 0.5, y + 0.5, color=PREDICTORS[key][1], alpha=0.15, lw=0)
    sizes = np.sqrt([sum(apart(cell)) for cell in cells])
    for cell, lane, size in zip(cells, np.linspace(-0.38, 0.05, len(cells)), sizes / sizes.max(), strict=True):
        if cell[ANSWER] is not None:
            mark(cell[ANSWER], y + lane, standing([cell]), 3 + 4 * size, "0.4")
    color = "black" if kind == "between" else "0.6"
    panel.plot(np.clip(interval, left, right), [y + 0.28] * 2, color=color, lw=2)
    for x in [x for x in interval if not left <= x <= right] + [value]:
        mark(x, y + 0.28, kind, 9 * (x == value), color)
    words = verdict(cells) + (f"\n{in_words(cells)}" if kind == "between" else "")
    panel.text(1.02, y, words, va="center", transform=panel.get_yaxis_transform())


def draw_answer(runs: dict[str, dict]) -> plt.Figure:
    """Where the models without their noise stand between R (0) and O (1): every seed, and all with their interval."""
    rows = {name: [D for D in grid_of(results)[0] if coordinates_at(results, D)] for name, results in runs.items()}
    heights = [len(tasks) for tasks in rows.values()]
    size = (10, 3.4 + 0.62 * sum(heights))
    figure, axes = plt.subplots(
        len(rows), figsize=size, layout="constrained", sharex=True, squeeze=False, height_ratios=heights
    )
    top, said = axes[0, 0], []
    top.set(xlim=(-0.75, 1.75), xticks=(-0.5, 0, 0.5, 1, 1.5))
    for x, words in enumerate(ENDS):
        top.text(x, 1.03, words, ha="center", transform=top.get_xaxis_transform())
    for panel, (name, results) in zip(axes[:, 0], runs.items(), strict=True):
        for y, D in enumerate(rows[name]):
            draw_row(panel, y, coordinates_at(results, D))
        panel.set_ylim(len(rows[name]) - 0.5, -0.5)
        panel.set_yticks(range(len(rows[name])), [f"D = {D}" for D in rows[name]])
        title = title_of(name, results, "embedding").replace(" (", "\n(", 1)
        about = EMBEDDINGS.get(str(results["config"].get("embedding")), "")
        panel.set_ylabel(f"{title}\n{about}", rotation=0, ha="right", va="center")
        findings = {}
        for D in rows[name]:
            findings.setdefault(verdict(coordinates_at(results, D)), []).append(str(D))
        told = [f"{finding} at D = {' and '.join(tasks)}" for finding, tasks in findings.items()]
        said.append(f"{title_of(name, results, 'embedding')}: {', '.join(told)}")
    panel.set_xlabel(f"coordinate from R (0) to O (1) after {grid_of(results)[1][-1]:,} updates, noise averaged out")
    figure.suptitle("\n".join(textwrap.fill(line, 11 * size[0]) for line in said), fontsize=12)
    figure.supxlabel(CAPTION, fontsize=9)
    return figure


def draw_map(axes: plt.Axes, mean: np.ndarray, stderr: np.ndarray, rows: list, columns: list):
    """Annotated colored cells on the fixed scale from 0 (blue) to 1 (red); missing ones are hatched."""
    image = axes.imshow(np.ma.masked_invalid(mean), cmap="RdBu_r", vmin=0, vmax=1, origin="lower", aspect="auto")
    for i, j in np.ndindex(mean.shape):
        if np.isnan(mean[i, j]):
            box = plt.Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, hatch="////", edgecolor="0.6", linewidth=0)
            axes.add_patch(box)
            continue
        text = f"{mean[i, j]:.2f}" + ("" if np.isnan(stderr[i, j]) else f"\n± {stderr[i, j]:.2f}")
        axes.text(j, i, text, ha="center", va="center", color="white" if abs(mean[i, j] - 0.5) > 0.3 else "black")
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(rows)), rows)
    return image


def notes_on(all_results: list[dict]) -> str:
    """What is sampled and exact, and what frames and hatching mean, in maps of these runs."""
    enumerated = all(kind_of(results) == "exact" for results in all_results)
    notes = ["maps: sampled contexts; ideal predictors and frames: exact" if enumerated else "sampled contexts"]
    if any((grid(results, nearest)[0] > NEITHER_NATS).any() for results in all_results):
        notes.append(f"dotted frame: more than {NEITHER_NATS} nats from every ideal predictor")
    return "; ".join(notes + sorted({missing for results in all_results if (missing := missing_cells(results))}))


def draw_maps(runs: dict[str, dict], titles: dict[str, str], title: str, question: str) -> plt.Figure:
    """The D x N maps of the relative divergence, as requested above and calibrated below, each beside what the ideal
    predictors would score in the model's place: once for neighbors for whom that is the same. Cells far from every
    ideal predictor have a dotted frame."""
    scores = [
        np.array([[[reference(x, D, name, key) for name in strategies_of(x)] for D in grid_of(x)[0]] for key in MAPS])
        for x in runs.values()
    ]
    same = [a.shape == b.shape and np.allclose(a, b, equal_nan=True) for a, b in itertools.pairwise(scores)] + [False]
    widths = []
    for results, score, shared in zip(runs.values(), scores, same, strict=True):
        widths += [max(2.8, 0.65 * len(grid_of(results)[1]))] + [0.55 * score.shape[2]] * (not shared)
    size = (2.4 + sum(widths), 2.2 + max(2.8, 1.2 * max(score.shape[1] for score in scores)))
    figure, axes = plt.subplots(2, len(widths), figsize=size, layout="constrained", width_ratios=widths, squeeze=False)
    columns = iter(zip(axes.T, widths, strict=True))
    for (name, results), score, shared in zip(runs.items(), scores, same, strict=True):
        (rows, steps), (maps, width) = grid_of(results), next(columns)
        lines = titles[name].replace(" (", "\n(", 1).splitlines()
        maps[0].set_title("\n".join(textwrap.fill(line, int(13.5 * width)) for line in lines), fontsize=9)
        for (key, what), panel in zip(MAPS.items(), maps, strict=True):
            mean_and_error = grid(results, lambda cell, key=key: cell.get(key))
            image = draw_map(panel, *mean_and_error, rows, [f"{N:,}" for N in steps])
            for i, j in np.argwhere(grid(results, nearest)[0] > NEITHER_NATS):
                panel.add_patch(plt.Rectangle((j - 0.44, i - 0.44), 0.88, 0.88, fill=False, linestyle=":", lw=1.6))
            panel.set(xlabel="training steps N", ylabel=f"{what}\nnumber of urns D" if panel in axes[:, 0] else "")
        if not shared:
            letters = [PREDICTORS[STRATEGIES[strategy]][0][0] for strategy in strategies_of(results)]
            for values, panel in zip(score, next(columns)[0], strict=True):
                draw_map(panel, values, values * np.nan, rows, letters)
                panel.set(yticks=[], xlabel="in the model's place")
    bar = figure.colorbar(image, ax=axes, ticks=[0, 0.25, 0.5, 0.75, 1])
    bar.set_label("relative divergence")
    bar.ax.set_yticklabels(["0  like the\n   generalizer", "0.25", "0.5", "0.75", "1  like the\n   memorizer M"])
    add_title(figure, title, question)
    notes = (", ".join(label for label, *_ in PREDICTORS.values()), notes_on(list(runs.values())))
    figure.supxlabel("\n".join(textwrap.fill(note, int(14 * size[0])) for note in notes), fontsize=9)
    return figure


def draw_heatmap(results: dict, title: str) -> plt.Figure:
    return draw_maps({"": results}, {"": ""}, title, "does it generalize, as S does, or memorize, as M?")


def draw_compare(runs: dict[str, dict], titles: dict[str, str]) -> plt.Figure:
    question = "against raw counts G (top) and posterior mean S (bottom)"
    return draw_maps(runs, titles, "Generalize or memorize", question)


def draw_panels(results: dict, title: str, question: str, rows: dict, xlabel: str) -> plt.Figure:
    """One column of panels per number of urns, one row per {y label: function that draws a panel for D}; one legend."""
    tasks, steps = grid_of(results)
    size = (max(7.5, 1.2 + max(2.9, 0.45 * len(steps)) * len(tasks)), 1.8 + 2.5 * len(rows))
    figure, axes = plt.subplots(
        len(rows), len(tasks), figsize=size, layout="constrained", sharex="row", sharey="row", squeeze=False
    )
    legend = {}
    for (label, draw), line in zip(rows.items(), axes, strict=True):
        for D, panel in zip(tasks, line, strict=True):
            draw(panel, D)
            panel.grid(color="0.9")
            panel.set_axisbelow(True)
        line[0].set_ylabel(label)
        legend |= {text: handle for handle, text in zip(*line[0].get_legend_handles_labels(), strict=True)}
    for D, top, bottom in zip(tasks, axes[0], axes[-1], strict=True):
        top.set_title(f"D = {D} urn{'s' * (D > 1)}", fontsize=10)
        bottom.set_xlabel(xlabel)
    if legend:
        style = {"loc": "outside lower center", "ncols": int(size[0] / 3), "fontsize": 9, "frameon": False}
        figure.legend(legend.values(), legend.keys(), **style)
    add_title(figure, title, question)
    return figure


def draw_line(panel: plt.Axes, x, numbers, **style) -> None:
    """Means and standard errors against x: nothing where there is no mean, and no bars for a single seed."""
    mean, stderr = numbers
    if not np.isnan(mean).all():
        panel.errorbar(x, mean, None if np.isnan(stderr).all() else np.nan_to_num(stderr), capsize=3, **style)


def label_steps(panel: plt.Axes, positions, steps: list[int]) -> None:
    """The training steps N of the grid at these positions of the x axis."""
    panel.set_xticks(positions, [f"{N:,}" for N in steps], rotation=45, ha="right", rotation_mode="anchor")
    panel.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())


def label_nats(panel: plt.Axes) -> None:
    """Plain numbers at 1, 2 and 5 of every decade of a logarithmic y axis."""
    panel.set_yscale("log")
    panel.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter("{x:g}")
    panel.yaxis.set_minor_locator(matplotlib.ticker.NullLocator())


def draw_distance(results: dict, title: str) -> plt.Figure:
    """KL from each ideal predictor to the models against N, and the mixture of strategies that is nearest to them."""
    steps, names = grid_of(results)[1], strategies_of(results)

    def distances(panel, D):
        for key, (label, color, marker, line, _) in PREDICTORS.items():
            numbers = along(results, D, lambda cell, key=key: exact(cell, key))
            draw_line(panel, steps, numbers, label=f"from {label}", color=color, marker=marker, ls=line)
        floor, label = reference(results, D, "orbit", "kl_to_m"), "floor from M if lex-invariant: KL from M to O"
        panel.axhline(floor, label=label, color=PREDICTORS["kl_to_m"][1], ls="-.", lw=1)
        panel.set_xscale("log")
        label_nats(panel)
        label_steps(panel, steps, steps)

    def mixtures(panel, D):
        bottom, residual = np.zeros(len(steps)), along(results, D, lambda cell: exact(cell, "mixture_residual"))[0]
        for name in names:
            label, color, _, _, hatch = PREDICTORS[STRATEGIES[name]]
            style = {"facecolor": color, "hatch": hatch, "edgecolor": "white"}
            panel.fill_between([], [], [], label=f"weight of {label[0]}", **style)  # what the legend shows
            others = [reference(results, D, other, STRATEGIES[name]) for other in names if other != name]
            limit = np.nanmin([NEITHER_NATS, *others])  # nats that tell it from the next one
            weights = np.nan_to_num(along(results, D, lambda cell, name=name: exact(cell, f"weight_{name}"))[0])
            for bar, nats in zip(panel.bar(range(len(steps)), weights, 0.8, bottom, **style), residual, strict=True):
                bar.set_alpha(0.25 if nats > limit else 1)
            bottom += weights
        for j, nats in enumerate(residual):
            panel.text(j, 1.04, "" if np.isnan(nats) else f"{nats:.3f}", ha="center", fontsize=8)
        panel.set(ylim=(0, 1.15), yticks=np.linspace(0, 1, 6))
        label_steps(panel, range(len(steps)), steps)

    mixture = f"nearest mixture of {', '.join(PREDICTORS[STRATEGIES[name]][0][0] for name in names)}"
    mixture += "\n(above: nats from it to the model;\npale: farther than its parts are apart)"
    rows = {f"KL to the model (nats, {kind_of(results)})": distances, mixture: mixtures}
    return draw_panels(results, title, "how far from each ideal predictor?", rows, "training steps N")


def draw_curves(results: dict, title: str) -> plt.Figure:
    """Training loss, with what the Bayes-optimal predictors would have, and relative divergence over training steps."""
    loss = {"loss": ("training loss (mean of 100 steps)", "#000000", "-")}
    floors = {"memorizing": "entropy floor: M, Bayes-optimal", "orbit": "O, Bayes-optimal if lex-invariant"}
    divergence = {
        "relative_divergence": ("0 = G counting", "#D55E00", "--"),
        "relative_divergence_posterior_mean": ("0 = S posterior mean", "#0072B2", "-"),
    }

    def draw(panel, D, lines):
        own = [t for t in results.get("trajectories", []) if t["n_tasks"] == D]
        for last in sorted({max(t.get("n_steps", [0])) for t in own}):  # seeds of one N, or of all, are one curve
            curves = [t["curves"] for t in own if max(t.get("n_steps", [0])) == last]
            steps = sorted({step for curve in curves for step in curve["step"]})
            for key, (label, color, line) in lines.items():
                points = [dict(zip(curve["step"], exact(curve, key) or [], strict=False)) for curve in curves]
                mean, stderr = np.transpose([over_seeds([x[step] for x in points if step in x]) for step in steps])
                if not np.isnan(mean).all():
                    kind = "" if lines is loss else ", exact" if f"exact_{key}" in curves[0] else ", sampled"
                    panel.plot(steps, mean, label=label + kind, color=color, ls=line, marker=".")
                    panel.fill_between(steps, mean - stderr, mean + stderr, color=color, alpha=0.25, lw=0)
        if lines is loss:
            for name, label in floors.items():
                _, color, _, line, _ = PREDICTORS[STRATEGIES[name]]
                panel.axhline(reference(results, D, name, "expected_loss"), color=color, ls=line, lw=1.2, label=label)
        else:
            panel.set_ylim(-0.03, 1.03)
        panel.set_xscale("log")
        ticks = sorted({*grid_of(results)[1], *(t["curves"]["step"][0] for t in own if t["curves"]["step"])})
        label_steps(panel, ticks, ticks)

    rows = {"loss (nats per draw)": loss, "relative divergence\n(1 = M Bayes over the urns)": divergence}
    rows = {label: functools.partial(draw, lines=lines) for label, lines in rows.items()}
    return draw_panels(results, title, "learning curves", rows, "training steps N")


def draw_positions(results: dict, title: str) -> plt.Figure:
    """KL from S and from M to the models, after 1, 2, .. draws: where in the sequence the strategy shows."""
    steps = grid_of(results)[1]
    shades = plt.get_cmap("viridis_r")(np.linspace(0.15, 1, len(steps)))

    def draw(panel, D, key):
        for N, color, marker in zip(steps, shades, itertools.cycle("osD^v"), strict=False):
            numbers = over_seeds([exact(cell, key) for cell in cells_at(results, D, N)])
            lengths = range(1, np.size(numbers[0]) + 1)
            draw_line(panel, lengths, numbers, label=f"N = {N:,}", color=color, marker=marker, ms=4)
        other, label = reference(results, D, "orbit", key), "O Bayes over relabelled urns, in the model's place"
        draw_line(panel, range(1, np.size(other) + 1), (other, np.nan), label=label, color="black", ls="--")
        panel.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(8, integer=True))
        label_nats(panel)

    keys, kind = ("kl_to_posterior_mean", "kl_to_m"), kind_of(results)
    rows = {f"KL from {PREDICTORS[x][0]}\n(nats, {kind})": functools.partial(draw, key=f"{x}_by_length") for x in keys}
    question = "where in the sequence does the strategy show?"
    return draw_panels(results, title, question, rows, "draws in the context")


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


def print_table(runs: dict[str, dict]) -> None:
    """One line per number of the maps, with its standard error, and per pooled coordinate, with its interval."""
    for name, results in runs.items():
        rows, columns = grid_of(results)
        for key in MAPS:
            mean, stderr = grid(results, lambda cell, key=key: cell.get(key))
            for i, j in np.ndindex(mean.shape):
                number = "missing" if np.isnan(mean[i, j]) else f"{mean[i, j]:.4f}"
                error = "" if np.isnan(stderr[i, j]) else f" ± {stderr[i, j]:.4f}"
                say(f"{name} D{rows[i]}_N{columns[j]} {key}: {number}{error}")
        for key, D, N in itertools.product(("coordinate_r_o", ANSWER), rows, columns):
            if cells := coordinates_at(results, D, N, key):
                finding = f": {verdict(cells)}" if key == ANSWER else ""
                say(f"{name} D{D}_N{N} {key}: {in_words(cells, key, 4)}{finding}")


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

    yardsticks = {name: yardstick_of(results) for name, results in runs.items()}
    shown = [name for name in runs if name in labels] or list(runs)
    first = next((name for name in shown if yardsticks[name]), None)
    figures = {"heatmap": draw_heatmap, "distance": draw_distance, "curves": draw_curves, "positions": draw_positions}
    titles, unwritten = {}, []
    for name, results in runs.items():
        titles[name] = title_of(name, results)
        if first and yardsticks[name] != yardsticks[first]:
            what = f"another yardstick than {first}" if yardsticks[name] else "an unknown yardstick"
            titles[name] += f"\nmeasured with {what}: compare with care"
            say(f"{name}: measured with {what} (yardstick_sha256): compare with care")
        if missing := missing_cells(results):
            say(f"{name}: {missing}")
        for kind, draw in figures.items():
            file_name = os.fsdecode(f"{kind}_{name}.png".encode())
            unwritten.append(save(draw(results, titles[name]), folder / file_name))

    compared = {name: runs[name] for name in shown}
    beside = compared if shown[0] in labels else of_one_grid(compared)
    if len(beside) < len(compared):
        say(f"compare.png: of {', '.join(beside)}; other grids, or all that you choose, with labels")
    unwritten.append(save(draw_compare(beside, titles), folder / "compare.png"))
    if answering := comparable(compared):
        unwritten.append(save(draw_answer(answering), folder / "answer.png"))
    print_table(compared)
    return int(any(unwritten))


if __name__ == "__main__":
    sys.exit(main())
