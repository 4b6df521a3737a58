#!/usr/bin/env python3
"""Draw every figure of the runs that experiment.py wrote, from their all_results.json alone.

    python plot.py        # the runs in the current folder (run_*), else those in results/
    python plot.py DIR    # the runs in DIR

For every run, heatmap_<run>.png beside the run's folder: x = training steps N, y = number of urns D, color = relative
divergence, 0 (blue) where the model behaves like the counting generalizer G, 1 (red) where like the memorizer M.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

# The title of each run in the figures; a run that is not named here goes by the name of its folder.
labels = {"run_0": "Gaussian embeddings, fresh for every sequence"}


# A model whose nearest ideal predictor is farther than this many nats behaves like none of them.
NEITHER_NATS = 0.05

REFERENCES = {"posterior_mean": "S", "orbit": "O", "memorizing": "M"}


def find_runs(folder: Path) -> list[Path]:
    """The run_* folders in `folder`, or the folder itself if it is a run."""
    folder = folder.resolve()
    if (folder / "all_results.json").exists():
        return [folder]
    return sorted((p for p in folder.glob("run_*") if p.is_dir()), key=lambda p: (len(p.name), p.name))


def read_run(path: Path) -> dict | None:
    """The contents of all_results.json; None, with a line that says why, if `path` holds no readable run."""
    try:
        results = json.loads((path / "all_results.json").read_text())
        rows, columns = (sorted(map(int, results["config"][key])) for key in ("tasks", "steps"))
        if (
            rows
            and columns
            and all(cell["n_tasks"] in rows and cell["n_steps"] in columns for cell in results["cells"])
        ):
            return results
        print(f"{path}: skipped, the cells of its all_results.json are not those of its configuration")
    except FileNotFoundError:
        print(f"{path}: skipped, it holds no all_results.json")
    except (ValueError, KeyError, IndexError, TypeError, OSError) as error:
        print(f"{path}: skipped, its all_results.json is not that of a run ({type(error).__name__}: {error})")


def grid(results: dict, rows: list[int], columns: list, value) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard error over seeds [rows, columns] of value(cell, column) of the cells with D = row.

    NaN where no cell has the value; the standard error is NaN for a single seed.
    """
    mean, stderr = np.full((2, len(rows), len(columns)), np.nan)
    for (i, n_tasks), (j, column) in itertools.product(enumerate(rows), enumerate(columns)):
        values = [value(cell, column) for cell in results["cells"] if cell["n_tasks"] == n_tasks]
        values = [x for x in values if x is not None]
        if values:
            mean[i, j] = np.mean(values)
        if len(values) > 1:
            stderr[i, j] = np.std(values, ddof=1) / np.sqrt(len(values))
    return mean, stderr


def distance(cell: dict) -> float | None:
    """Nats from the model to the nearest ideal predictor, exact where the run has it."""
    keys = ("kl_to_g", "kl_to_m", "kl_to_posterior_mean", "kl_to_orbit")
    values = [cell.get(f"exact_{key}", cell.get(key)) for key in keys]
    return min((x for x in values if x is not None), default=None)


def reference(cell: dict, name: str, key: str) -> float | None:
    """What an ideal predictor would score in the model's place."""
    return cell.get("reference", {}).get(name, {}).get(key)


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


def draw_heatmap(results: dict, title: str, warning: str = "") -> plt.Figure:
    """The D x N maps of the relative divergence, against G as requested and against S, each with what the ideal
    predictors would score in the model's place. Cells far from every ideal predictor are framed."""
    rows, columns = sorted(results["config"]["tasks"]), sorted(results["config"]["steps"])
    maps = {
        "relative_divergence": ("as requested:\ngeneralizer = raw counts G", "G"),
        "relative_divergence_posterior_mean": ("calibrated:\ngeneralizer = posterior mean S", "S"),
    }
    widths = 2 * [max(2.4, 0.85 * len(columns)), 0.62 * len(REFERENCES)]
    figure, axes = plt.subplots(
        1,
        4,
        figsize=(2.7 + sum(widths), 2.6 + 0.7 * len(rows)),
        layout="constrained",
        width_ratios=widths,
    )
    far, _ = grid(results, rows, columns, lambda cell, N: distance(cell) if cell["n_steps"] == N else None)
    missing = 0
    for (key, (subtitle, generalizer)), (model, ideal) in zip(maps.items(), axes.reshape(2, 2), strict=True):
        cells = grid(results, rows, columns, lambda cell, N, key=key: cell.get(key) if cell["n_steps"] == N else None)
        image = draw_cells(model, *cells, rows, [f"{N:,}" for N in columns])
        missing = max(missing, int(np.isnan(cells[0]).sum()))
        for i, j in np.argwhere(far > NEITHER_NATS):
            box = plt.Rectangle((j - 0.44, i - 0.44), 0.88, 0.88, fill=False, edgecolor="black", linestyle=":", lw=1.6)
            model.add_patch(box)
        model.set_title(subtitle, fontsize=10)
        model.set_xlabel("training steps N")
        ideals = grid(results, rows, list(REFERENCES), lambda cell, name, key=key: reference(cell, name, key))
        draw_cells(ideal, ideals[0], np.full_like(ideals[1], np.nan), rows, list(REFERENCES.values()))
        ideal.set_title(f"ideal predictors\n0 = {generalizer}", fontsize=10)
        ideal.set_yticks([])
        ideal.set_xlabel("in the model's place")
    axes[0].set_ylabel("number of urns D")
    bar = figure.colorbar(image, ax=axes, ticks=[0, 0.25, 0.5, 0.75, 1])
    bar.set_label("relative divergence")
    bar.ax.set_yticklabels(["0  like the\n   generalizer", "0.25", "0.5", "0.75", "1  like the\n   memorizer M"])
    notes = "S posterior mean, O Bayes over relabelled urns, M Bayes over urns"
    if (far > NEITHER_NATS).any():
        notes += f"; dotted frame: more than {NEITHER_NATS} nats from every ideal predictor"
    if missing:
        notes += f"; hatched: {missing} of {len(rows) * len(columns)} cells missing"
        print(f"{title}: {missing} of {len(rows) * len(columns)} cells are missing, drawn hatched")
    figure.suptitle(f"{title}: does the model generalize or memorize?{warning}", fontsize=12)
    figure.supxlabel(notes, fontsize=8)
    return figure


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", metavar="DIR", help="folder with the runs")
    folder = parser.parse_args(argv).folder
    runs = find_runs(folder or Path(".")) or ([] if folder else find_runs(Path("results")))
    for name in labels if runs else ():
        if name not in {path.name for path in runs}:
            print(f"{name}: in labels, but there is no such run here")
    results = {path: read_run(path) for path in runs}
    results = {path: run for path, run in results.items() if run is not None}
    yardsticks = {path: (run.get("environment") or {}).get("yardstick_sha256") for path, run in results.items()}
    first = next((path for path, yardstick in yardsticks.items() if yardstick), None)
    for path, run in results.items():
        warning = ""
        if first and yardsticks[path] != yardsticks[first]:
            what = f"another yardstick than {first.name}" if yardsticks[path] else "an unknown yardstick"
            warning = f"\nmeasured with {what}: compare with care"
            print(f"{path.name}: measured with {what} (yardstick_sha256): compare with care")
        figure = draw_heatmap(run, labels.get(path.name, path.name), warning)
        target = path.parent / f"heatmap_{path.name}.png"
        figure.savefig(target, dpi=150)
        plt.close(figure)
        print(target)
    if not results:
        print(f"plot.py: no run to draw in {folder or 'this folder or results/'}", file=sys.stderr)
    return 0 if results else 1


if __name__ == "__main__":
    sys.exit(main())
