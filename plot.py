#!/usr/bin/env python3
"""Draw every figure of the runs that experiment.py wrote, from their all_results.json alone.

    python plot.py        # the runs in the current folder (run_*), else those in results/
    python plot.py DIR    # the runs in DIR, or DIR itself if it is a run

Every figure goes into that folder, also that of a run that is a link, and is the same in every environment:
    heatmap_<run>.png     relative divergence, D x N: 0 (blue) like the generalizer, 1 (red) like the memorizer
    distance_<run>.png    how far the models are from each ideal predictor, and which mixture of them is nearest
    curves_<run>.png      training loss and relative divergence over training steps
    positions_<run>.png   how far the models are from S and M after 1, 2, .. draws
    compare.png           the maps of the runs in `labels` side by side
The numbers of the maps are printed as well. Exit status: 1 if nothing could be drawn or a figure not be written, 2 if
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
import matplotlib.pyplot as plt  # noqa: E402
import matplotlib.ticker  # noqa: E402
import numpy as np  # noqa: E402

plt.rcParams["text.parse_math"] = False  # a label is plain text: a dollar sign in it is one

# Titles of runs, {"run_0": "baseline", ..}. compare.png shows the runs that are named here; without any, all of them.
labels = {}

# A model whose nearest ideal predictor is farther than this many nats behaves like none of them.
NEITHER_NATS = 0.05

# Hashes of yardsticks whose source differs and whose numbers do not: that of the committed runs, and the one which
# tests/test_results.py replays them with.
COMMITTED_YARDSTICK = "278caa3d83bf78117b76f0d310d2058b1e02399fcccbe12cf80ebf3ef7508663"
SAME_YARDSTICK = {
    COMMITTED_YARDSTICK: "0f5457ead73bfac3e6cdc4a984f43dd31b2d348a5fba2a283262b9757ac90689",
}

# Colors of Okabe & Ito; marker and line tell the predictors apart without color.
PREDICTORS = {
    "kl_to_g": ("G counting", "#000000", "s", ":"),
    "kl_to_posterior_mean": ("S posterior mean", "#0072B2", "o", "-"),
    "kl_to_orbit": ("O Bayes over relabelled urns", "#E69F00", "^", "--"),
    "kl_to_m": ("M Bayes over the urns", "#D55E00", "D", "-."),
}
MAPS = {
    "relative_divergence": ("as requested:\ngeneralizer = raw counts G", "G"),
    "relative_divergence_posterior_mean": ("calibrated:\ngeneralizer = posterior mean S", "S"),
}
REFERENCES = {"posterior_mean": "S", "orbit": "O", "memorizing": "M"}
LETTERS = "S posterior mean, O Bayes over relabelled urns, M Bayes over urns"


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


def exact(cell: dict, key: str):
    """A number of a cell or point: its exact expectation where the run has it, else the sampled one, else None."""
    return cell.get(f"exact_{key}", cell.get(key))


def kind_of(results: dict) -> str:
    """What `exact` finds in this run."""
    return "exact" if results["cells"] and all("exact_kl_to_m" in x for x in results["cells"]) else "sampled"


def cells_at(results: dict, n_tasks: int, n_steps: int) -> list[dict]:
    """The cells of all seeds at one place of the grid."""
    return [cell for cell in results["cells"] if (cell["n_tasks"], cell["n_steps"]) == (n_tasks, n_steps)]


def over_seeds(values: list) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard error over the seeds of values [seeds] or [seeds, n]; NaN if one is None."""
    if len(values) == 0 or any(x is None for x in values):
        return np.nan, np.nan
    values = np.array(values, float)
    return values.mean(0), values.std(0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else values[0] * np.nan


def grid(results: dict, value) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard error over seeds [D, N] of value(cell); NaN where no cell has it."""
    rows, columns = grid_of(results)
    mean, stderr = np.full((2, len(rows), len(columns)), np.nan)
    for (i, D), (j, N) in itertools.product(enumerate(rows), enumerate(columns)):
        mean[i, j], stderr[i, j] = over_seeds([value(cell) for cell in cells_at(results, D, N)])
    return mean, stderr


def title_of(name: str, results: dict) -> str:
    """The run's label; without one, its name and what kind of models it trained."""
    kinds = {"embedding": "{} embeddings", "d_model": "d_model {}"}
    known = [form.format(results["config"][key]) for key, form in kinds.items() if key in results["config"]]
    title = labels.get(name) or name + (f" ({', '.join(known)})" if known else "")
    return str(title).encode("utf-8", "backslashreplace").decode()  # half a character cannot be drawn


def reference(results: dict, n_tasks: int, name: str, key: str):
    """What an ideal predictor would score in place of the models of n_tasks urns: the mean over their cells."""
    cells = [cell for cell in results["cells"] if cell["n_tasks"] == n_tasks]
    return over_seeds([cell.get("reference", {}).get(name, {}).get(key) for cell in cells])[0]


def ideal_scores(results: dict, key: str) -> np.ndarray:
    """What S, O and M would score in place of the models of every D: [D, 3]."""
    return np.array([[reference(results, D, name, key) for name in REFERENCES] for D in grid_of(results)[0]], float)


def missing_cells(results: dict) -> str:
    """ "" or how many cells of the grid the run does not have, or not for all seeds."""
    seeds = results["config"].get("seeds", 1)
    found = [
        sum(cell.get("relative_divergence") is not None for cell in cells_at(results, D, N))
        for D, N in itertools.product(*grid_of(results))
    ]
    counts = {"missing cells (hatched)": found.count(0), "cells of fewer seeds": sum(0 < n < seeds for n in found)}
    return ", ".join(f"{what}: {n}" for what, n in counts.items() if n)


def nearest(cell: dict) -> float | None:
    """Nats from the model to the nearest ideal predictor."""
    return min((x for key in PREDICTORS if (x := exact(cell, key)) is not None), default=None)


def color_of(name: str) -> str:
    """Color of an ideal predictor, by its name under `reference`."""
    return PREDICTORS["kl_to_m" if name == "memorizing" else f"kl_to_{name}"][1]


# ==== Figures =========================================================================================================


def draw_cells(axes: plt.Axes, mean: np.ndarray, stderr: np.ndarray, rows: list, columns: list):
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


def draw_map(axes: plt.Axes, results: dict, key: str):
    """The D x N map of one number between 0 and 1; cells far from every ideal predictor have a dotted frame."""
    rows, columns = grid_of(results)
    image = draw_cells(axes, *grid(results, lambda cell: cell.get(key)), rows, [f"{N:,}" for N in columns])
    for i, j in np.argwhere(grid(results, nearest)[0] > NEITHER_NATS):
        frame = plt.Rectangle((j - 0.44, i - 0.44), 0.88, 0.88, fill=False, edgecolor="black", linestyle=":", lw=1.6)
        axes.add_patch(frame)
    axes.set_xlabel("training steps N")
    return image


def draw_ideals(axes: plt.Axes, results: dict, key: str) -> None:
    """The columns of S, O and M beside a map of the models."""
    scores = ideal_scores(results, key)
    draw_cells(axes, scores, np.full_like(scores, np.nan), grid_of(results)[0], list(REFERENCES.values()))
    axes.set_yticks([])
    axes.set_xlabel("in the model's place")


def add_scale(figure: plt.Figure, image, axes) -> None:
    bar = figure.colorbar(image, ax=axes, ticks=[0, 0.25, 0.5, 0.75, 1])
    bar.set_label("relative divergence")
    bar.ax.set_yticklabels(["0  like the\n   generalizer", "0.25", "0.5", "0.75", "1  like the\n   memorizer M"])


def notes_on(all_results: list[dict]) -> str:
    """What is sampled and exact, and what frames and hatching mean, in maps of these runs."""
    enumerated = all(kind_of(results) == "exact" for results in all_results)
    notes = ["maps: sampled contexts; ideal predictors and frames: exact" if enumerated else "sampled contexts"]
    if any((grid(results, nearest)[0] > NEITHER_NATS).any() for results in all_results):
        notes.append(f"dotted frame: more than {NEITHER_NATS} nats from every ideal predictor")
    notes += sorted({missing for results in all_results if (missing := missing_cells(results))})
    return "; ".join(notes)


def add_title(figure: plt.Figure, title: str, question: str) -> None:
    """Title of a figure, in as many lines as its width asks for."""
    lines = f"{title}: {question}".splitlines()
    figure.suptitle("\n".join(textwrap.fill(line, int(9 * figure.get_figwidth())) for line in lines), fontsize=12)


def draw_heatmap(results: dict, title: str) -> plt.Figure:
    """The maps of the relative divergence, against G as requested and against S, each with what the ideal predictors
    would score in the model's place."""
    rows, columns = grid_of(results)
    widths = 2 * [max(2.4, 0.85 * len(columns)), 0.62 * len(REFERENCES)]
    size = (2.7 + sum(widths), 2.6 + 0.7 * len(rows))
    figure, axes = plt.subplots(1, 4, figsize=size, layout="constrained", width_ratios=widths)
    for (key, (subtitle, generalizer)), (model, ideal) in zip(MAPS.items(), axes.reshape(2, 2), strict=True):
        image = draw_map(model, results, key)
        model.set_title(subtitle, fontsize=10)
        draw_ideals(ideal, results, key)
        ideal.set_title(f"ideal predictors\n0 = {generalizer}", fontsize=10)
    axes[0].set_ylabel("number of urns D")
    add_scale(figure, image, axes)
    add_title(figure, title, "does the model generalize or memorize?")
    figure.supxlabel(f"{LETTERS}\n{notes_on([results])}", fontsize=8)
    return figure


def panels(results: dict, n_rows: int, height: float) -> tuple[plt.Figure, np.ndarray]:
    """Figure and axes [n_rows, D]: one column of panels per number of urns."""
    rows, columns = grid_of(results)
    size = (max(7.5, 1.2 + max(2.9, 0.45 * len(columns)) * len(rows)), 1.8 + height * n_rows)
    figure, axes = plt.subplots(
        n_rows, len(rows), figsize=size, layout="constrained", sharex="row", sharey="row", squeeze=False
    )
    for top, D in zip(axes[0], rows, strict=True):
        top.set_title(f"D = {D} urn{'s' * (D > 1)}", fontsize=10)
    for panel in axes.flat:
        panel.grid(color="0.9")
        panel.set_axisbelow(True)
    return figure, axes


def label_steps(axes: plt.Axes, positions, columns: list[int]) -> None:
    """The training steps N of the grid at these positions of an x axis."""
    axes.set_xticks(positions, [f"{N:,}" for N in columns], rotation=45, ha="right", rotation_mode="anchor")
    axes.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    axes.set_xlabel("training steps N")


def bars(stderr):
    """Error bars of this length; none at all for a single seed."""
    return None if np.isnan(stderr).all() else np.nan_to_num(stderr)


def label_nats(axes: plt.Axes) -> None:
    """Plain numbers at 1, 2 and 5 of every decade of a logarithmic y axis."""
    axes.yaxis.set_major_locator(matplotlib.ticker.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(matplotlib.ticker.NullLocator())


def add_legend(figure: plt.Figure, *sources: plt.Axes) -> None:
    """One legend below the panels for everything that is labelled in these axes."""
    entries = {}
    for axes in sources:
        entries |= {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    if entries:
        columns = int(figure.get_figwidth() / 3)
        figure.legend(
            entries.values(), entries.keys(), loc="outside lower center", ncols=columns, fontsize=9, frameon=False
        )


def draw_distance(results: dict, title: str) -> plt.Figure:
    """KL from each ideal predictor to the models against N, and the mixture of S, O and M that is nearest to them."""
    rows, columns = grid_of(results)
    figure, axes = panels(results, 2, 2.6)
    means = {key: grid(results, lambda cell, key=key: exact(cell, key)) for key in PREDICTORS}
    weights = {name: grid(results, lambda cell, name=name: exact(cell, f"weight_{name}"))[0] for name in REFERENCES}
    residual, _ = grid(results, lambda cell: exact(cell, "mixture_residual"))
    hatches = {"posterior_mean": "", "orbit": "///", "memorizing": "xx"}
    for i, (D, above, below) in enumerate(zip(rows, *axes, strict=True)):
        for key, (label, color, marker, line) in PREDICTORS.items():
            mean, stderr = (values[i] for values in means[key])
            if np.isnan(mean).all():  # nothing that could be on a logarithmic scale
                continue
            style = {"color": color, "marker": marker, "ls": line, "capsize": 3}
            above.errorbar(columns, mean, bars(stderr), label=f"from {label}", **style)
        floor = reference(results, D, "orbit", "kl_to_m")
        style = {"color": color_of("memorizing"), "ls": "-.", "lw": 1}
        above.axhline(floor, label="floor from M if lex-invariant: KL from M to O", **style)
        above.set(xscale="log", yscale="log")
        label_nats(above)
        label_steps(above, columns, columns)
        above.set_xlabel("")
        gap = reference(results, D, "orbit", "kl_to_posterior_mean")
        limits = {"posterior_mean": gap, "orbit": gap, "memorizing": floor}  # nats that tell it from the next one
        bottom = np.zeros(len(columns))
        for name, letter in REFERENCES.items():
            heights = np.nan_to_num(weights[name][i])
            style = {"facecolor": color_of(name), "hatch": hatches[name], "edgecolor": "white"}
            below.fill_between([], [], [], label=f"weight of {letter}", **style)  # what the legend shows
            drawn = below.bar(range(len(columns)), heights, 0.8, bottom, **style)
            for bar, nats in zip(drawn, residual[i], strict=True):
                bar.set_alpha(0.25 if nats > min(limits[name], NEITHER_NATS) else 1)
            bottom += heights
        for j, nats in enumerate(residual[i]):
            below.text(j, 1.04, "" if np.isnan(nats) else f"{nats:.3f}", ha="center", fontsize=8)
        below.set(ylim=(0, 1.15), yticks=np.linspace(0, 1, 6))
        label_steps(below, range(len(columns)), columns)
    axes[0, 0].set_ylabel(f"KL to the model (nats, {kind_of(results)})")
    axes[1, 0].set_ylabel(
        "nearest mixture of S, O, M\n(above: nats from it to the model;\npale: farther than its parts are apart)"
    )
    add_legend(figure, axes[0, 0], axes[1, 0])
    add_title(figure, title, "how far from each ideal predictor?")
    return figure


def draw_curves(results: dict, title: str) -> plt.Figure:
    """Training loss, with what the Bayes-optimal predictors would have, and relative divergence over training steps."""
    rows, columns = grid_of(results)
    figure, axes = panels(results, 2, 2.4)
    lines = {
        "loss": ("training loss (mean of 100 steps)", "#000000", "-"),
        "relative_divergence": ("0 = G counting", "#D55E00", "--"),
        "relative_divergence_posterior_mean": ("0 = S posterior mean", "#0072B2", "-"),
    }
    for D, above, below in zip(rows, *axes, strict=True):
        own = [t for t in results.get("trajectories", []) if t["n_tasks"] == D]
        for last in sorted({max(t.get("n_steps", columns)) for t in own}):  # seeds of one N, or of all, are one curve
            curves = [t["curves"] for t in own if max(t.get("n_steps", columns)) == last]
            steps = sorted({step for curve in curves for step in curve["step"]})
            for key, (label, color, line) in lines.items():
                points = [dict(zip(curve["step"], exact(curve, key) or [], strict=False)) for curve in curves]
                values = [over_seeds([point[step] for point in points if step in point]) for step in steps]
                mean, stderr = np.array(values).T
                if np.isnan(mean).all():
                    continue
                panel = above if key == "loss" else below
                if panel is below:
                    label += ", exact" if f"exact_{key}" in curves[0] else ", sampled"
                panel.plot(steps, mean, label=label, color=color, ls=line, marker=".")
                panel.fill_between(steps, mean - stderr, mean + stderr, color=color, alpha=0.25, lw=0)
        for name, label, line in (("memorizing", "entropy floor: M", "-."), ("orbit", "O", "--")):
            what = f"{label}, Bayes-optimal{'' if name == 'memorizing' else ' if lex-invariant'}"
            loss = reference(results, D, name, "expected_loss")
            above.axhline(loss, color=color_of(name), ls=line, lw=1.2, label=what)
        above.set_xscale("log")
        below.set(xscale="log", ylim=(-0.03, 1.03))
        ticks = sorted({*columns, *(t["curves"]["step"][0] for t in own if t["curves"]["step"])})
        for panel in (above, below):
            label_steps(panel, ticks, ticks)
        above.set_xlabel("")
    axes[0, 0].set_ylabel("loss (nats per draw)")
    axes[1, 0].set_ylabel("relative divergence\n(1 = M Bayes over the urns)")
    add_legend(figure, axes[0, 0], axes[1, 0])
    add_title(figure, title, "learning curves")
    return figure


def draw_positions(results: dict, title: str) -> plt.Figure:
    """KL from S and from M to the models, after 1, 2, .. draws: where in the sequence the strategy shows."""
    rows, columns = grid_of(results)
    figure, axes = panels(results, 2, 2.4)
    shades = plt.get_cmap("viridis_r")(np.linspace(0.15, 1, len(columns)))
    for key, line_of_axes in zip(("kl_to_posterior_mean", "kl_to_m"), axes, strict=True):
        name = f"{key}_by_length"
        for D, panel in zip(rows, line_of_axes, strict=True):
            for N, shade, marker in zip(columns, shades, itertools.cycle("osD^v"), strict=False):
                mean, stderr = over_seeds([exact(cell, name) for cell in cells_at(results, D, N)])
                if np.ndim(mean) == 0:
                    continue
                lengths = range(1, len(mean) + 1)
                style = {"color": shade, "marker": marker, "ms": 4, "capsize": 2}
                panel.errorbar(lengths, mean, bars(stderr), label=f"N = {N:,}", **style)
            other = reference(results, D, "orbit", name)
            if np.ndim(other):
                label = "O Bayes over relabelled urns, in the model's place"
                panel.errorbar(range(1, len(other) + 1), other, color="black", ls="--", label=label)
            panel.set_yscale("log")
            panel.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(8, integer=True))
            label_nats(panel)
        line_of_axes[0].set_ylabel(f"KL from {PREDICTORS[key][0]}\n(nats, {kind_of(results)})")
    for panel in axes[1]:
        panel.set_xlabel("draws in the context")
    add_legend(figure, axes[0, 0])
    add_title(figure, title, "where in the sequence does the strategy show?")
    return figure


def draw_compare(runs: dict[str, dict], titles: dict[str, str]) -> plt.Figure:
    """The maps of several runs side by side, as requested above and calibrated below, and what the ideal predictors
    would score: once for neighbors for whom that is the same."""
    scores = [np.array([ideal_scores(results, key) for key in MAPS]) for results in runs.values()]
    last = [
        one.shape != other.shape or not np.allclose(one, other, equal_nan=True)
        for one, other in itertools.pairwise(scores)
    ] + [True]
    widths = []
    for results, strip in zip(runs.values(), last, strict=True):
        widths += [max(2.8, 0.65 * len(grid_of(results)[1]))] + strip * [0.55 * len(REFERENCES)]
    tall = max(len(grid_of(results)[0]) for results in runs.values())
    size = (2.4 + sum(widths), 2.2 + max(2.8, 1.2 * tall))
    figure, axes = plt.subplots(2, len(widths), figsize=size, layout="constrained", width_ratios=widths, squeeze=False)
    columns = iter(zip(axes.T, widths, strict=True))
    for (name, results), strip in zip(runs.items(), last, strict=True):
        maps, width = next(columns)
        for (key, (_, generalizer)), panel in zip(MAPS.items(), maps, strict=True):
            image = draw_map(panel, results, key)
            panel.set_ylabel(f"0 = like {generalizer}\nnumber of urns D" if panel in axes[:, 0] else "")
        lines = [textwrap.fill(line, int(13.5 * width)) for line in titles[name].replace(" (", "\n(", 1).splitlines()]
        maps[0].set_title("\n".join(lines), fontsize=9)
        if strip:
            for key, panel in zip(MAPS, ideals := next(columns)[0], strict=True):
                draw_ideals(panel, results, key)
            ideals[0].set_title("ideal\npredictors", fontsize=9)
    for panel in axes[0]:
        panel.set_xlabel("")
    add_scale(figure, image, axes)
    add_title(figure, "Generalize or memorize", "against raw counts G (top) and posterior mean S (bottom)")
    notes = textwrap.fill(notes_on(list(runs.values())), int(12 * size[0]))
    figure.supxlabel(f"{LETTERS}\n{notes}", fontsize=9)
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


def print_table(runs: dict[str, dict]) -> None:
    """One line per number of the maps: run, cell, key, mean and standard error over the seeds."""
    for name, results in runs.items():
        rows, columns = grid_of(results)
        for key in MAPS:
            mean, stderr = grid(results, lambda cell, key=key: cell.get(key))
            for i, j in np.ndindex(mean.shape):
                number = "missing" if np.isnan(mean[i, j]) else f"{mean[i, j]:.4f}"
                error = "" if np.isnan(stderr[i, j]) else f" ± {stderr[i, j]:.4f}"
                say(f"{name} D{rows[i]}_N{columns[j]} {key}: {number}{error}")


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

    yardsticks = {name: (results.get("environment") or {}).get("yardstick_sha256") for name, results in runs.items()}
    yardsticks = {name: SAME_YARDSTICK.get(sha256, sha256) for name, sha256 in yardsticks.items()}
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
    unwritten.append(save(draw_compare(compared, titles), folder / "compare.png"))
    print_table(compared)
    return int(any(unwritten))


if __name__ == "__main__":
    sys.exit(main())
