"""The figures of the grokking study, by what is drawn in them."""

import copy
import importlib.util
import itertools
import json
import math
import os
import re
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
PAIR = re.compile(r"(\d) x (\d+)(?: \([^)]*\))* : (\d) x (\d+)")
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
            numbers |= {
                "flops_per_update_with_savings": 300 * n,
                "stable_share": 0.99 if grok and grok < 6500 else None,
            }
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


def quantile(freedom: int) -> float:
    """Student's t, two-sided 95%, from a table."""
    return {2: 4.3027, 4: 2.7764, 6: 2.4469, 8: 2.3060}[freedom]


def test_an_interval_is_that_of_an_analysis_of_variance_of_two_ways():
    """Of the logarithms of all cells and seeds, of which pairs share some: cell and seed have an effect, the rest is
    noise. By sums of squares, where the code fits; (cells - 1)(seeds - 1) degrees of freedom."""
    steps = [[5000, 5200, 5600], [5100, 5600, 6000], [6000, 6600, 7000], [4000, 4200, 4700], [5000, 5300, 5900]]
    run = results({("x_div_y", size): seeds for size, seeds in zip(GRID, steps, strict=True)})
    run_of_others = results({("x_plus_y", size): [900, 100, 5000] for size in GRID})  # noisy, and of no concern
    cells = plot.cells_of(run) | plot.cells_of(run_of_others)
    logs = [[math.log(x) for x in seeds] for seeds in steps]
    whole = statistics.mean(itertools.chain(*logs))
    total, by_cell, by_seed = 0.0, 0.0, 0.0
    for seeds in logs:
        by_cell += 3 * (statistics.mean(seeds) - whole) ** 2
        total += sum((x - whole) ** 2 for x in seeds)
    for own in zip(*logs, strict=True):
        by_seed += 5 * (statistics.mean(own) - whole) ** 2
    half = quantile(8) * math.sqrt((total - by_cell - by_seed) / 8) * math.sqrt(2 / 3)
    found, means = plot.ratios(cells, "x_div_y"), dict(zip(GRID, map(statistics.mean, logs), strict=True))
    wanted = [((4, 64), (1, 128)), ((2, 64), (1, 64)), ((4, 64), (2, 64)), ((1, 128), (1, 64))]
    assert {*found} == {((*one, 4), (*other, 4)) for one, other in wanted} | {((2, 64, 2), (2, 64, 4))}
    for (one, other), (ratio, low, high, n) in found.items():
        mean = means[one] - means[other]
        assert n == 3 and np.allclose([ratio, low, high], np.exp([mean, mean - half, mean + half]), rtol=1e-4)


def test_a_ratio_to_what_never_grokked_is_a_bound_and_one_of_it_is_none():
    """The last update stands for never in the first size. The noise is that of the seeds that are there: three cells
    of two seeds and one of one."""
    steps = {(4, 64): [None, 6600], (1, 128): [4000, 4200], (2, 64): [5100, 5900], (1, 64): [5000, 5200]}
    found = plot.ratios(plot.cells_of(results({("x_div_y", (*s, 4)): own for s, own in steps.items()})), "x_div_y")
    # Of cells with both seeds the differences between seeds tell the noise: each has twice the variance.
    differences = [math.log(b / a) for a, b in (steps[1, 128], steps[2, 64], steps[1, 64])]
    half = quantile(2) * math.sqrt(statistics.variance(differences) / 2)  # of a difference of two means of two
    mean = (math.log(7500 / 4000) + math.log(6600 / 4200)) / 2
    ratio, low, high, n = found[(4, 64, 4), (1, 128, 4)]
    assert np.allclose([ratio, low], np.exp([mean, mean - half]), rtol=1e-4) and (high, n) == (math.inf, 2)
    assert plot.ratio_in_words((ratio, low, high, n)) == f"at least {ratio:.3f} [{low:.3f}, inf], 2 seeds: " + (
        "slower" if low > 1 else "undecided"
    )
    steps[1, 128] = [None, 4200]
    found = plot.ratios(plot.cells_of(results({("x_div_y", (*s, 4)): own for s, own in steps.items()})), "x_div_y")
    assert found[(4, 64, 4), (1, 128, 4)] is None and found[(1, 128, 4), (1, 64, 4)][2] == math.inf
    never = results({("x_div_y", (*size, 4)): [None, None] for size in steps})
    assert {*plot.ratios(plot.cells_of(never), "x_div_y").values()} == {None}
    plot.draw_capacity(plot.cells_of(never), "nothing grokked")


def test_ratios_of_memorizing_are_of_its_steps():
    cells = plot.cells_of(grid())
    assert {found[0] for found in plot.ratios(cells, "x_div_y", "step_memorize").values()} == {1.0}


@pytest.mark.parametrize(
    "found, words",
    [
        ((1.5, 1.2, 1.9, 3), "1.500 [1.200, 1.900], 3 seeds: slower"),
        ((0.5, 0.4, 0.99, 3), "0.500 [0.400, 0.990], 3 seeds: faster"),
        ((1.5, 0.9, 1.9, 3), "1.500 [0.900, 1.900], 3 seeds: undecided"),
        ((1.5, math.nan, math.nan, 1), "1.500, 1 seed, no interval"),
        (None, "no ratio"),
    ],
)
def test_a_verdict_needs_the_whole_interval(found, words):
    assert plot.ratio_in_words(found) == words


def test_a_single_seed_has_a_ratio_and_no_interval():
    one = results({("x_div_y", (4, 64, 4)): [6000], ("x_div_y", (1, 128, 4)): [4000]})
    (ratio, low, high, n) = plot.ratios(plot.cells_of(one), "x_div_y")[(4, 64, 4), (1, 128, 4)]
    assert (ratio, n) == (pytest.approx(1.5), 1) and math.isnan(low) and math.isnan(high)
    texts = [text.get_text() for text in plot.draw_capacity(plot.cells_of(one), "one seed").axes[1].texts]
    assert texts == ["1.500, 1 seed, no interval"]


@pytest.mark.parametrize("k, n, low, high", [(0, 3, 0, 0.5615), (1, 3, 0.0615, 0.7923), (3, 3, 0.4385, 1)])
def test_shares_have_wilson_s_interval(k, n, low, high):
    assert plot.wilson(k, n) == pytest.approx((low, high), abs=1e-4)


def test_pairs_are_those_that_are_named_beforehand():
    """In the README's table, of all architectures of the two runs."""
    shapes = [(1, 64), (2, 64), (4, 64), (1, 128), (2, 128), (4, 128), (1, 256)]
    cells = {("x_div_y", (*shape, 4)): [] for shape in shapes} | {("x_div_y", (2, 64, heads)): [] for heads in (2, 8)}
    told = SCRIPT.with_name("README.md").read_text().split("| pairs |")[1].split("\n\n")[0]
    named = [(tuple(map(int, (a, b))), tuple(map(int, (c, d)))) for a, b, c, d in PAIR.findall(told)]
    found = plot.pairs_of(cells, "x_div_y")
    assert [(one[:2], other[:2]) for one, other in found if one[:2] != other[:2]] == named and named[:2] == plot.PRIMARY
    assert found[len(named) :] == [((2, 64, 2), (2, 64, 4)), ((2, 64, 8), (2, 64, 4))] and len(named) == 9


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
    assert "memorized 600 (3 of 3), grokked never (1 of 3)" in words
    assert "memorized 600 (3 of 3), grokked 4,400 (3 of 3)" in words
    assert sum(word.startswith("at least 1.") and "inf]" in word for word in words) == 1


def test_cost_is_of_seeds_and_seconds_of_the_updates_to_grokking():
    cells = plot.comparable({"run_0": baseline(), "run_1": grid()})[1]
    panels = plot.draw_cost(cells, "two runs").axes
    for panel, price in zip(panels, (1, "flops_per_update", "flops_per_update_with_savings", 0.01), strict=True):
        spent = sorted(line.get_ydata()[0] for line in panel.get_lines() if len(line.get_ydata()))
        seeds = [seed for own in cells.values() for seed in own]
        assert np.allclose(spent, sorted(seed.get(price, price) * seed["step_val_acc_99"] for seed in seeds))
        assert marks(panel, "open") == 3


def test_heads_are_told_apart_where_parameters_are_the_same():
    steps = {("x_div_y", (2, 64, heads)): [5000, 5100] for heads in (2, 4, 8)}
    for panel in plot.draw_cost(plot.cells_of(results(steps)), "heads").axes:
        assert [text.get_text() for text in panel.texts] == ["h2", "2 x 64", "h8"]
        places = [line.get_xdata()[0] for line in panel.get_lines() if len(line.get_xdata())]
        assert sorted({*places}) == places[::2] and len({*places}) == 3 and 113_057 in places


def test_an_operation_that_was_added_is_drawn_after_the_others():
    own, other = ({(operation, BASELINE): [4000, 4400]} for operation in ("x_times_y", "x_plus_y"))
    run = results(own | other)
    assert [operation for operation, _ in plot.cells_of(run)] == ["x_plus_y", "x_times_y"]
    for draw, data in ((plot.draw_curves, run), (plot.draw_stability, run)):
        draw(data, "a run")
    assert "x_times_y" in plot.draw_cost(plot.cells_of(run), "a run").legends[0].get_texts()[1].get_text()
    names = [label.get_text() for label in plot.draw_capacity(plot.cells_of(run), "a run").axes[0].get_yticklabels()]
    assert names[1] == "x_times_y: 2 layers, width 128, 4 heads (medium)"


def test_curves_show_every_seed_thin_and_the_median_thick():
    figure = plot.draw_curves(baseline(), "a run")
    assert len(figure.axes) == 6
    for panel in figure.axes:
        thick = [line for line in panel.get_lines() if line.get_linewidth() == 2]
        assert len(panel.get_lines()) == 2 * 4 and len(thick) == 2
    words = "x / y: 2 layers, width 128, 4 heads (medium)\nmemorized 600 (3 of 3), grokked 4,400 (3 of 3)"
    assert figure.axes[0].get_title() == words
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
    told = "permutation 2 layers, width 128, 4 heads: memorized 600 (3 of 3), grokked never (1 of 3); "
    assert told + "share that grokked 0.33 [0.06, 0.79], stable_share unknown" in done.stdout
    assert "4 layers, width 64, 4 heads: memorized 600 (3 of 3), grokked 6,600 (3 of 3); share" in done.stdout
    assert "[0.44, 1.00], stable_share 0.990 (1 of 3)" in done.stdout
    assert "x_div_y step_grok 4 layers, width 64, 4 heads : 1 layer, width 128, 4 heads: 1.520 [" in done.stdout
    assert "x_div_y step_memorize 4 layers, width 64, 4 heads : 1 layer, width 128, 4 heads: 1.000 [" in done.stdout
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
