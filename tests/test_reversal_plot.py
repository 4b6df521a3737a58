"""The figures of the reversal study, by what is drawn in them."""

import importlib.util
import json
import os
import sys

import numpy as np
import pytest
from conftest import ROOT, launch

SCRIPT = ROOT / "studies" / "reversal" / "plot.py"
spec = importlib.util.spec_from_file_location("reversal_plot", SCRIPT)
plot = sys.modules["reversal_plot"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plot)
N, RULES = range(3, 11), ("oracle", "confidence", "gate")  # lengths; rules of stopping
LOOPS = {"standard": "1", "looped_k2": "2", "looped_gate": "6", "looped_n_rotary": "length", "oracle": "length"}


def loops_of(arm: str, n: int) -> range:
    return range(1, {"1": 1, "length": n + 5}.get(LOOPS[arm], 12) + 1)


def own(arm: str, n: int) -> int:
    return n if LOOPS[arm] == "length" else int(LOOPS[arm])


def exact(arm: str, n: int, loop: int, seeds: tuple = (0, 1)) -> float:
    return np.mean([(7 * n + 3 * loop + 5 * seed + len(arm)) % 11 / 11 for seed in seeds])


def results(arms: dict[str, list[int]]) -> dict:
    """A run with these arms, and of each seed whether it is trained."""
    cells = [{"arm": arm, "seed": i, "trained": told} for arm, own in arms.items() for i, told in enumerate(own)]
    run = {"config": {"min_len": 3, "max_len": 5, "test_lengths": [5, 8, 10]}, "cells": cells, "trajectories": []}
    for arm, seed in ((cell["arm"], (cell["seed"],)) for cell in cells):
        by_length = {str(n): {"exact": [exact(arm, n, k, seed) for k in loops_of(arm, n)]} for n in N}
        for n, told in by_length.items():
            told["token"] = [(1 + x) / 2 for x in told["exact"]]
            told["change"] = [0.5**k for k in range(len(told["exact"]))]
            rules = RULES if arm == "looped_gate" else RULES[:2]
            told["stopping"] = {rule: {"exact": exact(arm, int(n), 20 + len(rule), seed)} for rule in rules}
        settings = {"loops": LOOPS[arm], "trained_loops": own(arm, 5), "curves": {"by_length": [None, by_length]}}
        run["trajectories"].append({"arm": arm, "seed": seed[0]} | settings)
    return run


FULL = {"standard": [1, 1], "looped_k2": [1, 0], "looped_gate": [1, 1], "looped_n_rotary": [0, 0], "oracle": [0, 0]}
FULL, ALONE = results(FULL), results({"standard": [0]})


def test_every_seed_is_thin_the_mean_thick_lengths_of_training_shaded_and_arms_marked_that_are_not_trained():
    marks = ["", "\nNOT TRAINED in 1 of 2 seeds", "", "\nNOT TRAINED in 2 of 2 seeds", ""]  # controls need none
    for arm, mark, panel in zip(LOOPS, marks, plot.draw_lengths(FULL, "a run").axes, strict=False):
        thin, thick = ([line for line in panel.get_lines() if line.get_linewidth() == x] for x in (0.6, 2))
        wanted = np.array([[exact(arm, n, own(arm, n), (i,)) for n in N] for i in (0, 1)])
        assert np.allclose([line.get_ydata() for line in thin], [*wanted, *(1 + wanted) / 2])
        assert np.allclose([line.get_ydata() for line in thick], [wanted.mean(0), (1 + wanted.mean(0)) / 2])
        assert [(*line.get_xdata(),) for line in panel.get_lines()] == 6 * [(*N,)]
        assert [(patch.get_x(), patch.get_width()) for patch in panel.patches] == [(3, 2)]
        assert (panel.get_title(), panel.title.get_color()) == (arm + mark, "0.5" if mark else "black")


def test_maps_are_means_by_length_and_loops_and_empty_where_none_was_tested():
    assert plot.draw_loops(ALONE, "a run") is plot.draw_states(ALONE, "") is plot.draw_stopping(ALONE, "") is None
    panels = [panel for panel in plot.draw_loops(FULL, "a run").axes if panel.get_ylabel() == "loops"]
    for arm, panel in zip([*LOOPS][1:], panels, strict=True):
        (image,), most = panel.get_images(), len(loops_of(arm, 10))
        grid = [[exact(arm, n, k) if k in loops_of(arm, n) else np.nan for n in N] for k in range(1, most + 1)]
        assert np.allclose(image.get_array().filled(np.nan), grid, equal_nan=True) and image.get_clim() == (0, 1)
        assert image.get_extent() == [2.5, 10.5, 0.5, most + 0.5] == [*panel.get_xlim(), *panel.get_ylim()]
        *lines, border = panel.get_lines()
        assert [line.get_xydata().tolist() for line in lines] == 2 * [[[n, own(arm, n)] for n in N]]
        assert {*border.get_xdata()} == {5.5} and image.origin == "lower"


def test_states_and_rules_of_stopping_are_means_and_there_is_no_change_before_the_first_loop():
    axes = plot.draw_states(FULL, "a run").axes
    for arm, top, low in zip([*LOOPS][1:], axes[:4], axes[4:], strict=True):
        for n, token, change in zip((5, 8), top.get_lines(), low.get_lines(), strict=True):
            wanted = [(k, (1 + exact(arm, n, k)) / 2) for k in loops_of(arm, n)]
            assert token.get_label() == f"{n} tokens" and np.allclose(token.get_xydata(), wanted)
            assert change.get_xydata().tolist() == [[k, 0.5 ** (k - 1)] for k in loops_of(arm, n)[1:]]
    figure, colors = plot.draw_stopping(FULL, "a run"), ["#000000", "#E69F00", "#0072B2"]
    for arm, panel in zip([*LOOPS][1:], figure.axes, strict=True):
        rules = RULES if arm == "looped_gate" else RULES[:2]
        wanted = [[exact(arm, n, k) for n in N] for k in (20 + len(rule) for rule in rules)]
        wanted.append([exact(arm, n, own(arm, n)) for n in N])
        assert np.allclose([line.get_ydata() for line in panel.get_lines()], wanted)
        assert [line.get_color() for line in panel.get_lines()] == colors[: len(rules)] + ["0.6"]
    assert "the learned gate" in [text.get_text() for text in figure.legends[0].get_texts()]


def draw_arms(run: dict, title: str) -> plot.plt.Figure:
    return plot.draw_arms({(title, arm): seeds for arm, seeds in plot.arms_of(run).items()}, [5, 8, 10], title)


def test_arms_have_a_dot_per_seed_open_if_it_is_not_trained():
    for n, panel in zip((5, 8, 10), draw_arms(FULL, "a run").axes, strict=True):
        dots = [(*line.get_xydata()[0].round(9), line.get_mfc() == "white") for line in panel.get_lines()]
        told = [(cell["arm"], cell["seed"], not cell["trained"]) for cell in FULL["cells"]]
        lanes = [(exact(arm, n, own(arm, n), (i,)), [*LOOPS].index(arm) + 0.44 * i - 0.22, no) for arm, i, no in told]
        assert np.allclose(dots, lanes)
    assert [text.get_text() for text in panel.get_figure().axes[0].get_yticklabels()] == [*LOOPS]


@pytest.mark.parametrize("draw", ["lengths", "loops", "states", "stopping", "arms"])
def test_words_lie_within_the_figure(draw):
    for run in (FULL, ALONE, results({"looped_n_rotary": [0]})):
        drawing = draw_arms if draw == "arms" else getattr(plot, f"draw_{draw}")
        if figure := drawing(run, "a run with a $ in its name, and a long title " * 3):
            figure.canvas.draw()
            (x0, y0), (x1, y1) = figure.get_tightbbox().get_points()  # of all that is drawn, in inches
            assert min(x0, y0) > -0.02 and ((x1, y1) < figure.get_size_inches() + 0.02).all()


def test_all_is_written_and_printed_and_damaged_runs_are_skipped(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (plot.main([str(tmp_path / "no")]), plot.main([]), capsys.readouterr().err.count("\n")) == (2, 1, 2)
    for i, run in enumerate((FULL, ALONE, ALONE | {"cells": [{"seed": 0}]}, {}, results({}))):
        (tmp_path / f"run_{i}").mkdir()
        (tmp_path / f"run_{i}" / "all_results.json").write_text(json.dumps(run))
    done = launch(script=SCRIPT, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.count("skipped") == 3
    figures = {f"{kind}_run_0.png" for kind in ("lengths", "loops", "states", "stopping")}
    assert {path.name for path in tmp_path.glob("*.png")} == figures | {"lengths_run_1.png", "arms.png"}
    numbers = ", ".join(f"{n}: {exact('looped_k2', n, 2):.3f}" for n in (5, 8, 10))
    assert f"run_0 looped_k2: exact at {numbers}; trained in 1 of 2 seeds\n" in done.stdout
    monkeypatch.setattr(plot.plt.Figure, "savefig", lambda *_, **__: os.open(tmp_path / "no" / "such", os.O_RDONLY))
    assert plot.main(["run_1"]) == 1 and "cannot be written" in capsys.readouterr().err
