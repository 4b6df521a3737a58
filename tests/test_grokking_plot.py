"""The figures of the grokking study, by what is drawn in them."""

import copy
import importlib.util
import json
import math
import os
import statistics
import sys

import numpy as np
import pytest
from conftest import ROOT, launch

SCRIPT = ROOT / "studies" / "grokking" / "plot.py"
spec = importlib.util.spec_from_file_location("grokking_plot", SCRIPT)
plot = sys.modules["grokking_plot"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plot)

BASELINE = (2, 128, 4)
GRID = [(1, 64, 4), (2, 64, 4), (4, 64, 4), (1, 128, 4), (2, 64, 2)]
PARAMETERS = {(1, 64): 63_073, (2, 64): 113_057, (4, 64): 213_025, (1, 128): 224_353, (2, 128): 422_625}


def results(steps: dict[tuple, list[int | None]], early_stop=False, script="a", cap=7500) -> dict:
    """A run as experiment.py writes it, with these steps to grokking of the seeds of (operation, size)."""
    cells, trajectories, seconds = [], [], {}
    for (operation, size), seeds in steps.items():
        for seed, grok in enumerate(seeds):
            about = {"operation": operation, **dict(zip(("layers", "width", "heads"), size, strict=True)), "seed": seed}
            end = min(cap, grok + 1000) if early_stop and grok else cap
            step = list(range(100, end + 1, 100))
            val = [0.999 if grok and x >= grok and x != grok + 300 else 0.2 if x < (grok or cap) else 0.7 for x in step]
            train = [1.0 if x >= 600 else 0.5 for x in step]
            curves = {"step": step, "val_acc": val, "train_acc": train}
            curves |= {f"{part}_loss": [1 - x + 0.001 for x in curves[f"{part}_acc"]] for part in ("train", "val")}
            numbers = {"step_memorize": 600, "step_grok": grok, "step_val_acc_99": grok or cap, "stopped_at": end}
            n = PARAMETERS[size[:2]]
            numbers |= {"parameters": n, "flops_per_update": 1000 * n, "bucket": "small" if n < 150_000 else "medium"}
            cells.append(about | numbers)
            trajectories.append(about | {"curves": curves})
            seconds[f"{operation}_{size}_{seed}"] = end / 100
    config = {"operations": ["x_div_y"], "architectures": [], "early_stop": early_stop, "updates": cap, "lr": 0.001}
    environment = {"script_sha256": script, "yardstick_sha256": "y"}
    told = {"config": config, "environment": environment, "trajectories": trajectories, "cells": cells}
    return told | {"timing": {"seconds_by_model": seconds}}


def baseline() -> dict:
    steps = {"x_div_y": [4000, 4400, 4800], "x_plus_y": [2300, 2400, 2600], "permutation": [None, 7300, None]}
    return results({(operation, BASELINE): seeds for operation, seeds in steps.items()})


def grid() -> dict:
    groks = [[5000, 5200, 5600], [5100, 5600, 6000], [6000, 6600, 7000], [4000, 4200, 4700], [5000, None, 5900]]
    return results({("x_div_y", size): seeds for size, seeds in zip(GRID, groks, strict=True)}, early_stop=True)


def write(folder, runs: dict) -> None:
    for name, run in runs.items():
        (folder / name).mkdir()
        (folder / name / "all_results.json").write_text(json.dumps(run))


@pytest.mark.parametrize(
    "steps, wanted", [([3, 1, 2], 2), ([1, None, 2], 2), ([None, 1, None], None), ([1, 2, None, None], None), ([4], 4)]
)
def test_a_median_counts_never_as_more_than_any_number(steps, wanted):
    assert plot.median([{"step": step} for step in steps], "step") == wanted


def test_ratios_are_of_the_seeds_of_a_pair_with_a_pooled_interval():
    found = plot.ratios(plot.cells_of(grid()), "x_div_y")
    assert [*found] == [((4, 64, 4), (1, 128, 4)), ((2, 64, 4), (1, 64, 4)), ((2, 64, 2), (2, 64, 4))]
    logs = [[math.log(x / y) for x, y in ((6000, 4000), (6600, 4200), (7000, 4700))]]
    logs += [[math.log(x / y) for x, y in ((5100, 5000), (5600, 5200), (6000, 5600))]]
    spread = math.sqrt(sum(2 * statistics.variance(x) for x in logs) / 4)
    for (ratio, low, high, n), own in zip(found.values(), logs, strict=False):
        mean, half = statistics.mean(own), 2.7764 * spread / math.sqrt(3)  # Student's t of 4 degrees of freedom
        assert n == 3 and np.allclose([ratio, low, high], np.exp([mean, mean - half, mean + half]), rtol=1e-4)
    assert found[(2, 64, 2), (2, 64, 4)] is None  # a seed never grokked


def test_a_single_seed_has_a_ratio_and_no_interval():
    one = results({("x_div_y", (4, 64, 4)): [6000], ("x_div_y", (1, 128, 4)): [4000]})
    (ratio, low, high, n) = plot.ratios(plot.cells_of(one), "x_div_y")[(4, 64, 4), (1, 128, 4)]
    assert (ratio, n) == (pytest.approx(1.5), 1) and math.isnan(low) and math.isnan(high)
    plot.draw_capacity(plot.cells_of(one), "one seed")


def test_runs_of_one_protocol_are_shown_together():
    more = results({("x_div_y", BASELINE): [4000, 4400, 4800, 5000]}, early_stop=True)
    edited = results({("x_div_y", (1, 64, 4)): [100]}, script="b")
    together, cells = plot.comparable({"run_0": more, "run_1": grid(), "run_2": baseline(), "run_3": edited})
    assert [*together] == ["run_0", "run_1", "run_2"]
    assert len(cells["x_div_y", BASELINE]) == 4 and len(cells) == 3 + len(GRID)
    assert [size for operation, size in cells if operation == "x_div_y"] == [
        (1, 64, 4), (2, 64, 2), (2, 64, 4), (4, 64, 4), (1, 128, 4), BASELINE
    ]  # fmt: skip


def marks(panel, fill: str) -> int:
    """Points that are filled white (open) or not."""
    own = [line for line in panel.get_lines() if line.get_marker() not in ("None", "", None) and len(line.get_xdata())]
    return sum((str(line.get_markerfacecolor()) == "white") == (fill == "open") for line in own)


def test_capacity_shows_every_seed_and_leaves_open_what_never_grokked():
    cells = plot.comparable({"run_0": baseline(), "run_1": grid()})[1]
    figure = plot.draw_capacity(cells, "two runs")
    seeds = [seed for own in cells.values() for seed in own]
    never = sum(seed["step_grok"] is None for seed in seeds)
    top = figure.axes[0]
    assert never == 3
    assert marks(top, "filled") == len(seeds) - never and marks(top, "open") == len(seeds) + never
    assert sum(line.get_marker() == ">" for line in top.get_lines()) == never
    words = [text.get_text() for panel in figure.axes for text in panel.texts]
    assert "memorized 600, grokked never (1 of 3)" in words and "memorized 600, grokked 4,400 (3 of 3)" in words
    assert "a seed never grokked: no ratio" in words


def test_cost_is_of_seeds_and_seconds_of_the_updates_to_grokking():
    cells = plot.comparable({"run_0": baseline(), "run_1": grid()})[1]
    updates, operations, seconds = plot.draw_cost(cells, "two runs").axes
    for panel, factor in ((updates, 1), (seconds, 0.01)):
        spent = sorted(line.get_ydata()[0] for line in panel.get_lines() if len(line.get_ydata()))
        wanted = sorted(factor * seed["step_val_acc_99"] for own in cells.values() for seed in own)
        assert np.allclose(spent, wanted)
    assert marks(operations, "open") == 3
    without = grid()
    del without["timing"]["seconds_by_model"]
    plot.draw_cost(plot.cells_of(without), "no seconds")


def test_curves_show_every_seed_thin_and_the_median_thick():
    figure = plot.draw_curves(baseline(), "a run")
    assert len(figure.axes) == 6
    for panel in figure.axes:
        thick = [line for line in panel.get_lines() if line.get_linewidth() == 2]
        assert len(panel.get_lines()) == 2 * 4 and len(thick) == 2
    val = next(line for line in figure.axes[0].get_lines() if line.get_label() == "the others")
    assert dict(zip(val.get_xdata(), val.get_ydata(), strict=True))[4500] == 0.999


def test_strips_begin_at_grokking_and_say_what_has_none():
    panel = plot.draw_stability(baseline(), "a run").axes[0]
    assert [text.get_text() for text in panel.texts] == 2 * ["not grokked in 7,500 updates"]
    dips = [bar for bar in panel.patches if plot.matplotlib.colors.to_hex(bar.get_facecolor()) == "#3690c0"]
    assert (
        min(bar.get_x() for bar in panel.patches) == 0
        and len(dips) == 6
        and all((bar.get_x(), bar.get_width()) == (300, 100) for bar in dips)
    )


@pytest.mark.parametrize("draw", ["draw_curves", "draw_stability", "draw_capacity", "draw_cost"])
@pytest.mark.parametrize("run", [baseline, grid])
def test_words_lie_within_the_figure(draw, run):
    data = run() if draw in ("draw_curves", "draw_stability") else plot.cells_of(run())
    figure = getattr(plot, draw)(data, "a run with a $ in its name, and a long title " * 3)
    figure.canvas.draw()
    (x0, y0), (x1, y1) = figure.get_tightbbox().get_points()  # of all that is drawn, in inches
    width, height = figure.get_size_inches()
    assert min(x0, y0) > -0.02 and x1 < width + 0.02 and y1 < height + 0.02


def test_every_figure_is_written_and_every_number_printed(tmp_path):
    broken = copy.deepcopy(grid())
    del broken["cells"][0]["operation"]
    write(tmp_path, {"run_0": baseline(), "run_1": grid(), "run_2": broken, "run_3": {}})
    done = launch(script=SCRIPT, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    figures = {f"{kind}_{run}.png" for kind in ("curves", "stability") for run in ("run_0", "run_1")}
    assert {path.name for path in tmp_path.glob("*.png")} == figures | {"capacity.png", "cost.png"}
    assert "permutation 2 layers, width 128, 4 heads: memorized 600, grokked never (1 of 3)" in done.stdout
    assert "x_div_y 4 layers, width 64 : 1 layer, width 128 (heads 4): 1.520 [" in done.stdout
    assert done.stdout.count("skipped") == 2


def test_what_cannot_be_drawn_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert plot.main([str(tmp_path / "nothing")]) == 2 and plot.main([]) == 1
    (tmp_path / "run_0").mkdir()
    assert plot.main([]) == 1
    assert capsys.readouterr().err.count("\n") == 3
    write(tmp_path, {"run_1": baseline()})
    monkeypatch.setattr(plot.plt.Figure, "savefig", lambda *_, **__: os.open(tmp_path / "no" / "such", os.O_RDONLY))
    assert plot.main([]) == 1 and "cannot be written" in capsys.readouterr().err
