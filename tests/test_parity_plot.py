"""The figures of the parity study, by what is drawn in them."""

import importlib.util
import json
import sys

import numpy as np
import pytest
from conftest import ROOT, launch

SCRIPT = ROOT / "studies" / "parity" / "plot.py"
spec = importlib.util.spec_from_file_location("parity_plot", SCRIPT)
plot = sys.modules["parity_plot"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plot)


def results(variants=("ordered", "missing_pair"), dims=(6, 10), tasks=(4, 8, 16), seeds=2) -> dict:
    """A run as experiment.py writes it; the model of the fewest tasks is not trained."""
    cells, trajectories = [], []
    for variant in variants:
        for d in dims:
            for n in tasks:
                for seed in range(seeds):
                    about = {"d": d, "n_train_tasks": n, "variant": variant, "seed": seed}
                    kinds = ("train", "unseen", "excluded") if variant.startswith("missing") else ("train", "unseen")
                    own = {"task": [[0, 1, 2]] * 4, "uncovered": [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 0, 0]]}
                    own |= {"exact": [1.0, 0.5, 0.25 + seed / 10, 0.9], "steps": [[1.0, 0.5, 0.9]] * 4}
                    curves = {
                        "step": [10, 20],
                        "relative_divergence": [0.2, n / 20],
                        "tasks": [None, {k: own for k in kinds}],
                    }
                    curves |= {"unseen_by_example": [None, [0.1, 0.4]], "composer_by_example": [None, [0.2, 0.6]]}
                    numbers = {"unseen_exact": n / 20, "law": n / 16, "train_exact": 1.0, "trained": int(n > 4)}
                    numbers |= {"unseen_worst_decile": 0.1, "unseen_covered_steps": 0.9, "unseen_uncovered_steps": 0.5}
                    excluded = "excluded" in kinds
                    numbers |= {"excluded_exact": 0.4 if excluded else None, "law_excluded": 0.5 if excluded else None}
                    cells.append(about | numbers)
                    trajectories.append(about | {"curves": curves})
    config = {"dim_k": 3, "tokens": "vector", "positions": "factored", "curriculum": True}
    return {"config": config, "trajectories": trajectories, "cells": cells}


def lines(panel, label: str):
    return next(line for line in panel.get_lines() if line.get_label() == label)


def test_accuracy_stands_beside_the_law_and_what_is_not_trained_is_open():
    figure = plot.draw_accuracy(results(), "a run")
    assert len(figure.axes) == 4 and figure.axes[0].get_title() == "d = 6, missing pair"
    panel = figure.axes[2]
    assert [text.get_text() for text in panel.get_xticklabels()] == ["4", "8", "16"]
    law, seen = (
        lines(panel, label)
        for label in ("law: mean of 2^-u, no free parameter", "seen on unseen tasks (open: not trained)")
    )
    assert [*law.get_ydata()] == [0.25, 0.5, 1.0] and [*seen.get_ydata()] == [0.2, 0.4, 0.8]
    dots = [line for line in panel.get_lines() if line.get_marker() == "o"]
    assert len(dots) == 6 and sum(line.get_markerfacecolor() == "white" for line in dots) == 2
    assert "vector tokens, factored positions, curriculum" in figure.get_suptitle().replace("\n", " ")


def test_tasks_are_drawn_by_their_uncovered_steps():
    figure = plot.draw_tasks(results(seeds=1), "a run")
    panel = figure.axes[2]
    assert [*lines(panel, "2^-u").get_ydata()] == [1, 0.5, 0.25, 0.125]
    groups = panel.containers[0].lines[0]
    assert [*groups.get_xdata()] == [0, 1, 2] and groups.get_ydata() == pytest.approx([0.95, 0.5, 0.25])
    excluded = figure.axes[0].containers[0].lines[0]  # the same tasks twice: unseen and excluded
    assert excluded.get_ydata() == pytest.approx([*groups.get_ydata()])


def test_the_map_of_ideals_is_by_updates_and_tasks():
    figure = plot.draw_ideals(results(seeds=1), "a run")
    (image,) = figure.axes[0].get_images()
    assert np.allclose(image.get_array(), [[0.2, 0.2], [0.2, 0.4], [0.2, 0.8]])
    assert plot.draw_ideals(results(variants=("no_cot",)), "a run") is None


def test_examples_stand_beside_the_composer():
    panel = plot.draw_examples(results(), "a run").axes[0]
    assert lines(panel, "composer").get_ydata() == pytest.approx([0.2, 0.6])
    assert [*lines(panel, "n = 8").get_xdata()] == [1, 2]


def test_seen_and_predicted_meet_in_a_mark_per_seed():
    cells = {("a run", *place): seeds for place, seeds in plot.cells_of(results()).items()}
    panel = plot.draw_law(cells, "a run").axes[0]
    marks = [line for line in panel.get_lines() if len(line.get_xdata()) == 1]
    assert len(marks) == 24 + 12  # excluded ones of one variant
    assert {(*line.get_xdata(), *line.get_ydata()) for line in marks} == {
        (0.25, 0.2),
        (0.5, 0.4),
        (1.0, 0.8),
        (0.5, 0.4),
    }
    assert sum(line.get_markerfacecolor() == "white" for line in marks) == 8 + 4


@pytest.mark.parametrize("draw", ["draw_accuracy", "draw_tasks", "draw_ideals", "draw_examples"])
def test_words_lie_within_the_figure(draw):
    figure = getattr(plot, draw)(results(dims=(6,)), "a run with a $ in its name, and a long title " * 2)
    figure.canvas.draw()
    (x0, y0), (x1, y1) = figure.get_tightbbox().get_points()  # of all that is drawn, in inches
    width, height = figure.get_size_inches()
    assert min(x0, y0) > -0.02 and x1 < width + 0.02 and y1 < height + 0.02


def test_every_figure_is_written_and_every_cell_printed(tmp_path):
    for name, run in {"run_0": results(), "run_1": {"config": {}}, "run_2": results(variants=("no_cot",))}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "all_results.json").write_text(json.dumps(run))
    done = launch(script=SCRIPT, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.count("skipped") == 1
    kinds = {f"{kind}_{run}.png" for kind in ("accuracy", "tasks", "examples") for run in ("run_0", "run_2")}
    assert {path.name for path in tmp_path.glob("*.png")} == kinds | {"ideals_run_0.png", "law.png"}
    assert "run_0 d = 6, n = 8: unseen_exact 0.400, law 0.500, train_exact 1.000" in done.stdout


def test_what_cannot_be_drawn_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert plot.main([str(tmp_path / "nothing")]) == 2 and plot.main([]) == 1
    assert capsys.readouterr().err.count("\n") == 2
