"""The figures of the parity study, by what is drawn in them."""

import importlib.util
import json
import math
import sys

import numpy as np
import pytest
from conftest import ROOT, launch

SCRIPT = ROOT / "studies" / "parity" / "plot.py"
spec = importlib.util.spec_from_file_location("parity_plot", SCRIPT)
plot = sys.modules["parity_plot"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plot)


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plot.plt.close("all")


def results(variants=("ordered", "missing_pair"), dims=(6, 10), tasks=(4, 8, 16), seeds=2, **config) -> dict:
    """A run as experiment.py writes it; the models of the fewest tasks are not trained."""
    cells, trajectories = [], []
    for variant in variants:
        for d in dims:
            for n in tasks:
                for seed in range(seeds):
                    about = {"d": d, "n_train_tasks": n, "variant": variant, "seed": seed}
                    kinds = ("train", "unseen", "excluded") if variant.startswith("missing") else ("train", "unseen")
                    exact = (10, 5, 2 + seed, 9)
                    told = zip(("000", "100", "110", "000"), exact, strict=True)
                    own = [f"2 5 {i}|{u}|10 {x} 9|{x}|2 - 1" for i, (u, x) in enumerate(told)]
                    curves = {"step": [0, 10, 20], "tasks": [None, None, dict.fromkeys(kinds, own)]}
                    curves |= {"relative_divergence": [None, 0.2, n / 20], "position": [-9.0, -0.2, 0.25]}
                    lines = {
                        "model": [0.1, 0.4],
                        "memorizer": [0.3, 0.5],
                        "covered": [0.2, 0.5],
                        "composer": [0.2, 0.6],
                    }
                    curves["by_example"] = [None, None, dict.fromkeys(kinds, lines)]
                    trained, law = n > 4, None if variant == "no_cot" else n / 16
                    numbers = {"unseen_exact": n / 20, "law": law, "train_exact": 0.95 if trained else 0.5}
                    numbers |= {"unseen_worst_decile": 0.1, "law_worst_decile": law and 0.2, "trained": int(trained)}
                    numbers |= {"unseen_covered_steps": 0.9, "unseen_uncovered_steps": 0.5, "unseen_u0": 0.8}
                    numbers |= {"failing_covered_steps": 0.1, "failing_read_one": None, "position": 0.25}
                    excluded = "excluded" in kinds
                    numbers |= {"excluded_exact": 0.4 if excluded else None, "law_excluded": 0.5 if excluded else None}
                    cells.append(about | numbers)
                    trajectories.append(about | {"curves": curves})
    about = {"dim_k": 3, "tokens": "vector", "positions": "factored", "curriculum": True, "n_test_sequences": 10}
    return {"config": about | config, "trajectories": trajectories, "cells": cells}


def lines(panel, label: str):
    return next(line for line in panel.get_lines() if line.get_label() == label)


def title_of(figure) -> str:
    return figure.get_suptitle().replace("\n", " ").replace("\u00a0", " ")


def bars(panel) -> list[tuple]:
    """Of every bar x, y and the ends of its interval, None without one."""
    found = []
    for container in panel.containers:
        point, _, segments = container.lines
        ends = segments[0].get_segments()[0][:, 1].tolist() if segments else None
        found.append((*point.get_xydata()[0].tolist(), ends))
    return found


def test_accuracy_stands_beside_the_law_and_what_is_not_trained_is_open_and_in_no_mean():
    figure = plot.draw_accuracy(results(), "a run")
    titles = [panel.get_title() for panel in figure.axes if panel.get_title()]
    assert titles == ["d = 6", "d = 10", "d = 6, missing pair", "d = 10, missing pair"]
    panel = figure.axes[1]
    assert [text.get_text() for text in panel.get_xticklabels()] == ["4\n0/2", "8\n2/2", "16\n2/2"]
    assert panel.get_xscale() == "log"
    law, seen, train = (
        lines(panel, label) for label in ("law, unseen tasks", "seen, unseen tasks", "seen, training tasks")
    )
    assert [*law.get_xdata()] == [*seen.get_xdata()] == [8, 16]
    assert [*law.get_ydata()] == [0.5, 1.0] and [*seen.get_ydata()] == [0.4, 0.8] and [*train.get_ydata()] == [0.95] * 2
    dots = [line for line in panel.get_lines() if line.get_markerfacecolor() == "white"]
    assert [(*dot.get_xdata(), *dot.get_ydata()) for dot in dots] == [(4, 0.2)] * 2
    assert "k = 3, vector tokens, factored positions, curriculum" in title_of(figure)


def test_more_than_three_panels_are_wrapped_and_nothing_is_drawn_beside_them():
    figure = plot.draw_accuracy(results(dims=(5, 6, 7, 8), variants=("ordered",)), "a run")
    assert len(figure.axes) == 6 and [panel.axison for panel in figure.axes] == [True] * 4 + [False] * 2
    assert figure.axes[3].get_subplotspec().rowspan.start == 1


def test_without_a_chain_chance_is_one_half_and_there_is_no_law():
    run = results(variants=("no_cot", "ordered"), dims=(6,))
    panels = plot.draw_accuracy(run, "a run").axes
    assert [panel.get_title() for panel in panels[:2]] == ["d = 6", "d = 6, no cot"]
    assert [lines(panel, "chance, or a memorizer").get_ydata()[0] for panel in panels[:2]] == [0.125, 0.5]
    assert not len(lines(panels[1], "law, unseen tasks").get_ydata())
    for draw in (plot.draw_tasks, plot.draw_ideals):
        assert [panel.get_title().split("\n")[0] for panel in draw(run, "a run").axes].count("d = 6, no cot") == 0
        assert draw(results(variants=("no_cot",)), "a run") is None
    assert plot.draw_law({"run_0": results(variants=("no_cot",))}) is None


def test_groups_of_tasks_are_means_by_seed_with_intervals_within_0_and_1():
    cells = {8: next(iter(plot.rows_of(results(seeds=3)).values()))[8]}
    assert plot.groups(cells[8], "unseen") == {0: [0.95] * 3, 1: [0.5] * 3, 2: pytest.approx([0.2, 0.3, 0.4])}
    figure = plot.draw_law({"run_0": results(seeds=3, dims=(6,), variants=("missing_pair",), tasks=(8,))})
    found = sorted(bars(figure.axes[0]))
    assert [round(x + 0.2) for x, _, _ in found] == [-2, -2, -1, -1, 0, 0]  # unseen and excluded ones
    half = 4.3027 * 0.1 / math.sqrt(3)  # t of two degrees of freedom
    assert found[0][1:] == (pytest.approx(0.3), pytest.approx([0.3 - half, 0.3 + half], abs=1e-3))
    few = bars(plot.draw_law({"run_0": results(seeds=2, dims=(6,), tasks=(8,))}).axes[0])
    assert all(ends is None for _, _, ends in few)
    panel = plot.plt.subplots()[1]
    plot.add_bar(panel, 0, [0.9, 1.0, 1.0], color="black")
    assert bars(panel)[0][2][1] == 1


def test_the_law_s_figure_names_every_format_and_leaves_out_untrained_models():
    runs = {"run_0": results(), "run_2": results(dims=(6,), variants=("ordered",), tokens="bits", curriculum=False)}
    figure = plot.draw_law(runs)
    names = [panel.get_title() for panel in figure.axes if panel.get_title()]
    assert names[0] == "run_0: d = 6\nk = 3, vector tokens, factored positions, curriculum"
    assert names[-1] == "run_2: d = 6\nk = 3, bits tokens, factored positions, no curriculum"
    assert "vector tokens" in title_of(plot.draw_law({"run_0": results()}))
    assert not bars(plot.draw_law({"run_0": results(tasks=(4,))}).axes[0])


def test_every_task_is_a_dot_beside_its_law():
    panel = plot.draw_tasks(results(seeds=1, dims=(6,)), "a run").axes[0]
    dots = np.concatenate([line.get_xydata() for line in panel.get_lines() if line.get_marker() == "."])
    assert sorted(dots[:, 1]) == [0.2, 0.2, 0.5, 0.5, 0.9, 0.9, 1.0, 1.0]  # two n are trained
    assert sorted(np.round(dots[:, 0] + 0.01)) == [-2, -2, -1, -1, 0, 0, 0, 0]
    laws = [line for line in panel.get_lines() if line.get_label() == "law 2^-u"]
    assert [line.get_ydata()[0] for line in laws] == [1, 0.5, 0.25, 0.125]


def test_the_maps_of_ideals_are_by_updates_and_tasks():
    figure = plot.draw_ideals(results(seeds=1, dims=(6,), variants=("ordered",)), "a run")
    (upper,), (lower,) = (panel.get_images() for panel in figure.axes[:2])
    known = np.array([[0.2, 0.4], [0.2, 0.8]])
    assert np.allclose(upper.get_array()[1:, 1:], known) and np.isnan(np.asarray(upper.get_array()[0], float)).all()
    assert np.allclose(lower.get_array()[1:, 1:], [[1, 0.75]] * 2)  # a little behind the covered composer is like it
    assert np.isnan(np.asarray(lower.get_array()[:, 0], float)).all()  # far from both
    (line,) = figure.axes[0].get_lines()
    assert line.get_xdata()[0] == pytest.approx(0.75)  # all six bits from update 7.5 of 20 on
    assert "all bits are random" in title_of(figure)
    plain = plot.draw_ideals(results(curriculum=False), "a run")
    assert not plain.axes[0].get_lines() and "no curriculum" in title_of(plain) and "random" not in title_of(plain)


def test_examples_stand_beside_ideal_predictors():
    upper, lower = plot.draw_examples(results(dims=(6,), variants=("ordered",)), "a run").axes[:2]
    above, below = (
        [[*line.get_ydata()] for line in panel.get_lines() if len(line.get_ydata())] for panel in (upper, lower)
    )
    assert above == [[0.1, 0.4], [0.2, 0.5], [0.2, 0.6]] * 2 and below == [[0.1, 0.4], [0.3, 0.5], [0.2, 0.5]] * 2
    assert {"n = 8", "model", "covered composer"} <= {line.get_label() for line in upper.get_lines()}


def seed_of(n: int, accuracy: float, seed: int = 0, train: float = 1.0) -> dict:
    return {"n_train_tasks": n, "seed": seed, "train_exact": train, "unseen_exact": accuracy, "law": 0.99}


def test_the_tasks_needed_lie_on_a_line_over_the_logarithm_after_the_last_failure():
    curve = {4: 0.95, 8: 0.3, 16: 0.7, 32: 0.95, 64: 1.0}
    cells = {n: [seed_of(n, y), seed_of(n, y / 2, 1), seed_of(n, 0.9, 2)] for n, y in curve.items()}
    assert plot.needed(cells, "unseen_exact") == {0: pytest.approx(16 * 2 ** (0.2 / 0.25)), 1: math.inf, 2: 0}
    cells[32][0] = seed_of(32, 0.2, train=0.8)  # not trained
    assert plot.needed(cells, "unseen_exact")[0] == pytest.approx(16 * 4 ** (0.2 / 0.3))


def test_both_laws_of_growth_have_one_constant():
    linear = plot.fits({d: 3 * d for d in (6, 10, 20)})
    assert linear["c d"] == (pytest.approx(3), pytest.approx({6: 1, 10: 1, 20: 1}))
    c, residuals = plot.fits({d: 2 * d * math.log(d) for d in (6, 10, 20)})["c d ln d"]
    assert c == pytest.approx(2) and residuals[20] == pytest.approx(1) and linear["c d ln d"][1][6] > 1.2
    assert plot.fits({6: 18}) == {}


def test_thresholds_are_drawn_over_d_of_runs_of_one_format():
    run = results(variants=("ordered",), dims=(6, 10), tasks=(8, 16, 32), seeds=3)
    for cell in run["cells"]:
        cell["unseen_exact"] = min(1.0, cell["n_train_tasks"] / 1.8 / cell["d"])
    other = results(variants=("ordered",), dims=(15,), tokens="bits")
    figure = plot.draw_thresholds({"run_0": run, "run_1": other})
    panel = figure.axes[0]
    labels = [line.get_label() for line in panel.get_lines()]
    assert sum(label.startswith(("c d, c = ", "c d ln d, c = ")) for label in labels) == 2
    assert [text.get_text() for text in panel.get_xticklabels()] == ["6", "10"]
    assert title_of(figure).startswith("run_0: how many tasks are needed?")
    assert {line.get_marker() for line in figure.axes[1].get_lines()} >= {"^"}  # 0.1: beyond the largest n
    assert plot.draw_thresholds({"run_0": results(dims=(6,))}) is None


def test_what_is_decided():
    assert plot.decision([0.3, 0.31, 0.32], [0.01, 0.0, 0.02]) == "a threshold on top of coverage"
    assert plot.decision([0.3, 0.31, 0.32], [0.05, 0.05, 0.05]) == "undecided"
    assert plot.decision([0.0, 0.6, 0.3], [0.01, 0.0, 0.02]) == "undecided"  # the interval holds 0.05
    assert plot.decision([0.01, 0.02, 0.03], [0.01, 0.0, -0.02]) == "the law holds as stated"


@pytest.mark.parametrize("draw", ["draw_accuracy", "draw_tasks", "draw_ideals", "draw_examples"])
@pytest.mark.parametrize("variants", [("ordered",), ("ordered", "missing_pair")])
def test_words_lie_within_the_figure(draw, variants):
    run = results(dims=(6,), tasks=(4, 8, 12, 16, 24, 32, 64), seeds=1, variants=variants)
    figure = getattr(plot, draw)(run, "a run with a $ in its name, and a long title " * 2)
    figure.canvas.draw()
    (x0, y0), (x1, y1) = figure.get_tightbbox().get_points()  # of all that is drawn, in inches
    width, height = figure.get_size_inches()
    assert min(x0, y0) > -0.02 and x1 < width + 0.02 and y1 < height + 0.02


def test_every_figure_is_written_and_every_cell_and_comparison_printed(tmp_path):
    longer = results(dims=(10,), variants=("ordered",), seeds=3)
    for cell in longer["cells"]:
        cell["unseen_exact"] += 0.05
    runs = {"run_0": results(), "run_1": {"config": {}}, "run_2": results(variants=("no_cot",)), "run_3": longer}
    for name, run in runs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "all_results.json").write_text(json.dumps(run))
    done = launch(script=SCRIPT, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.count("skipped") == 1
    kinds = {f"{kind}_{run}.png" for kind in ("accuracy", "examples") for run in ("run_0", "run_2", "run_3")}
    kinds |= {f"{kind}_{run}.png" for kind in ("tasks", "ideals") for run in ("run_0", "run_3")}
    assert {path.name for path in tmp_path.glob("*.png")} == kinds | {"law.png", "thresholds.png"}
    assert "run_0 d = 6, n = 8: unseen_exact 0.400, law 0.500, train_exact 0.950" in done.stdout
    assert "gap at 0.9 0.100, trained 2 of 2 seeds" in done.stdout and "gap at 0.98" not in done.stdout
    assert "run_3 - run_0, d = 10, n = 8: gap -0.050, 2 pairs" in done.stdout
    assert "d = 10: unseen_exact 0.9 from n = > 16, > 16" in done.stdout


def test_what_cannot_be_drawn_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert plot.main([str(tmp_path / "nothing")]) == 2 and plot.main([]) == 1
    assert capsys.readouterr().err.count("\n") == 2
