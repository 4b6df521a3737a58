"""The figures, by what is drawn in them."""

import copy
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import plot

import numpy as np
import pytest
from conftest import ROOT

TASKS, STEPS = [4, 8, 16], [100, 2000]


def results(seeds=1, shift=0.0) -> dict:
    """A run as experiment.py writes it, reduced to what the map needs; every value is distinct."""
    cells = []
    for i, D in enumerate(TASKS):
        for j, N in enumerate(STEPS):
            for seed in range(seeds):
                value = 0.1 + 0.1 * (2 * i + j) + 0.01 * seed + shift
                reference = {
                    name: {
                        "relative_divergence": r + i / 100,
                        "relative_divergence_posterior_mean": r / 2 + i / 100,
                        "kl_to_m": (1 - r) / 10 + i / 100,
                        "kl_to_posterior_mean": 0.02,
                        "kl_to_orbit": 0.02,
                        "expected_loss": 1.2 + r / 10 + i / 100,
                        "kl_to_posterior_mean_by_length": [0.01, 0.02, 0.03],
                        "kl_to_m_by_length": [0.03, 0.02, 0.01],
                    }
                    for name, r in {"posterior_mean": 0.6, "orbit": 0.7, "memorizing": 0.9}.items()
                }
                cells.append(
                    {
                        "n_tasks": D,
                        "n_steps": N,
                        "seed": seed,
                        "relative_divergence": value,
                        "relative_divergence_posterior_mean": value / 2,
                        "exact_kl_to_g": 0.3,
                        "exact_kl_to_m": 0.3,
                        "exact_kl_to_posterior_mean": 0.2 if j == 0 else 0.01,
                        "exact_kl_to_orbit": 0.4 + value,
                        "kl_to_orbit": 9.0,  # sampled: not drawn where the exact number is there
                        "exact_weight_posterior_mean": 0.5,
                        "exact_weight_orbit": 0.5 - value / 10,
                        "exact_weight_memorizing": value / 10,
                        "exact_mixture_residual": value / 7,
                        "exact_kl_to_posterior_mean_by_length": [value, value / 2, value / 3],
                        "exact_kl_to_m_by_length": [value / 3, value / 2, value],
                        "reference": reference,
                    }
                )
    curves = [
        {
            "n_tasks": D,
            "seed": seed,
            "curves": {
                "step": [10, 100, 2000],
                "loss": [1.4 + seed / 10, 1.35, 1.3 + shift],
                "relative_divergence": [0.5 + seed / 5, 0.6 + shift, 0.7],
                "relative_divergence_posterior_mean": [0.5, 0.4 + shift, 0.3],
            },
        }
        for D in TASKS
        for seed in range(seeds)
    ]
    return {"config": {"tasks": TASKS[:], "steps": STEPS[:]}, "trajectories": curves, "cells": cells}


def compare_one(run, title):
    return plot.draw_compare({"run_0": run}, {"run_0": title})


def line_cell(D, seed, t, nats=(0.03, 0.02), bias=0.005, to_m=None) -> dict:
    """A cell at t on the line from R to O, which are KL(R || O), KL(O || R) = nats apart; the model is `bias` from the
    nearer one but for its noise, and 0.01 from there with it."""
    to_r, to_o = max(t, 0) * sum(nats), max(t, 0) * sum(nats) + nats[1] - t * sum(nats)
    shift = bias - min(to_r, to_o)
    biases = {"best_counting": to_r + shift, "orbit": to_o + shift, "m": 0.3 if to_m is None else to_m}
    return {
        "n_tasks": D,
        "n_steps": 500,
        "seed": seed,
        "relative_divergence": 0.5,
        "coordinate_r_o": t - 0.1,
        "bias_coordinate_r_o": t,
        **{f"exact_bias_to_{name}": value for name, value in biases.items()},
        "exact_kl_to_best_counting": to_r + 0.01 - 0.1 * sum(nats),
        "exact_kl_to_orbit": to_o + 0.01,
        "reference": {"best_counting": {"kl_to_orbit": nats[1]}, "orbit": {"kl_to_best_counting": nats[0]}},
    }


def line_run(cells, **config) -> dict:
    tasks = sorted({cell["n_tasks"] for cell in cells})
    return {"config": {"tasks": tasks, "steps": [500, 100], "embedding": "gaussian", **config}, "cells": cells}


def between(tasks=(2, 4), start=0.7, step=0.02, seeds=5, **options) -> list[dict]:
    return [line_cell(D, seed, start + step * seed, **options) for D in tasks for seed in range(seeds)]


FIGURES = [plot.draw_distance, plot.draw_curves, plot.draw_positions, plot.draw_heatmap]
ALL_FIGURES = [*FIGURES, compare_one]


def write(folder, name, content):
    (folder / name).mkdir()
    (folder / name / "all_results.json").write_text(json.dumps(content))


def tiny() -> dict:
    """A run of one cell of two seeds, quickly drawn."""
    run = results(seeds=2)
    run["config"] = {"tasks": [4], "steps": [100]}
    run["cells"] = [cell for cell in run["cells"] if (cell["n_tasks"], cell["n_steps"]) == (4, 100)]
    run["trajectories"] = [trajectory for trajectory in run["trajectories"] if trajectory["n_tasks"] == 4]
    return run


def figures_of(run) -> list[str]:
    return sorted(["compare.png", *(f"{kind}_{run}.png" for kind in ("curves", "distance", "heatmap", "positions"))])


def inside(folder) -> list[str]:
    """Names of all that is in a folder but its runs."""
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("run_"))


def python(code, *arguments, env, within=(), **options) -> subprocess.CompletedProcess:
    """A new process, since what it reads of its surroundings it reads before the first line of a test."""
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **env}
    return subprocess.run([*within, sys.executable, "-c", code, *arguments], env=env, **options)


@pytest.fixture
def unsaved(monkeypatch):
    """Figures are made but not painted: that takes most of the time. Their files hold their titles."""
    monkeypatch.setattr(
        plot.plt.Figure, "savefig", lambda figure, path, **_: Path(path).write_text(figure.get_suptitle())
    )


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plot.plt.close("all")


def texts(axes) -> list[str]:
    return [text.get_text() for text in axes.texts]


def test_map_has_n_on_x_and_d_on_y_on_a_fixed_diverging_scale():
    figure = plot.draw_heatmap(results(), "a run")
    axes = figure.axes[0]
    image = axes.images[0]
    assert image.get_clim() == (0, 1) and image.cmap.name == "RdBu_r"
    np.testing.assert_allclose(image.get_array(), [[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["100", "2,000"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["4", "8", "16"]
    assert "N" in axes.get_xlabel() and "D" in axes.get_ylabel() and axes.images[0].origin == "lower"
    assert texts(axes) == ["0.10", "0.20", "0.30", "0.40", "0.50", "0.60"]
    assert "a run" in figure.get_suptitle()


def test_standard_errors_are_shown_with_several_seeds_only():
    axes = plot.draw_heatmap(results(seeds=3), "a run").axes[0]
    assert texts(axes)[0] == "0.11\n± 0.01"  # 0.10, 0.11, 0.12: 0.01 / sqrt(3)


def test_what_ideal_predictors_would_score_is_beside_each_map():
    axes = plot.draw_heatmap(results(), "a run").axes
    np.testing.assert_allclose(axes[1].images[0].get_array()[0], [0.6, 0.7, 0.9])
    np.testing.assert_allclose(axes[3].images[0].get_array()[2], [0.32, 0.37, 0.47])
    assert [label.get_text() for label in axes[1].get_xticklabels()] == ["S", "O", "M"]


@pytest.mark.parametrize("near", plot.PREDICTORS)
def test_cells_far_from_every_ideal_predictor_are_framed(near):
    run = results()
    for cell in run["cells"]:
        cell |= {f"exact_{key}": 0.051 for key in plot.PREDICTORS}
        cell[f"exact_{near}"] = 0.051 if cell["n_steps"] == STEPS[0] else 0.049
    one, several = plot.draw_heatmap(run, "a run").axes, plot.draw_compare({"run_0": run}, {"run_0": "a run"}).axes
    for axes in (one[0], one[2], several[0], several[2]):
        framed = {(round(box.get_x() + 0.44), round(box.get_y() + 0.44)) for box in axes.patches}
        assert framed == {(0, 0), (0, 1), (0, 2)}  # the column of the small N


def test_the_caption_says_what_is_exact():
    run = results()
    assert "exact" in plot.draw_heatmap(run, "").get_supxlabel()
    for draw in (plot.draw_distance, plot.draw_positions):
        assert "nats, exact" in draw(run, "").axes[0].get_ylabel()
    del run["cells"][0]["exact_kl_to_m"]
    for other in (run, results() | {"cells": []}):
        assert "exact" not in plot.draw_heatmap(other, "").get_supxlabel()
        for draw in (plot.draw_distance, plot.draw_positions):
            assert "nats, sampled" in draw(other, "").axes[0].get_ylabel()


def test_every_figure_says_what_its_letters_stand_for():
    for draw in ALL_FIGURES:
        figure = draw(results(), "a run")
        labels = [axes.get_ylabel() for axes in figure.axes] + [figure.get_supxlabel()]
        text = " ".join(labels + [entry.get_text() for legend in figure.legends for entry in legend.texts])
        assert "S posterior mean" in text and "M Bayes over" in text


@pytest.mark.parametrize("draw", ALL_FIGURES)
def test_a_dollar_sign_in_a_label_is_a_dollar_sign(draw):
    figure = draw(results(), r"$alpha_{$ costs 3$, not {5$")
    figure.canvas.draw()  # as mathematics it could not be parsed


def test_missing_cells_are_hatched_and_said():
    partial = results()
    del partial["cells"][3]
    figure = plot.draw_heatmap(partial, "a run")
    axes = figure.axes[0]
    hatched = [box for box in axes.patches if box.get_hatch()]
    assert [(box.get_x(), box.get_y()) for box in hatched] == [(0.5, 0.5)]
    assert len(axes.texts) == 5 and axes.images[0].get_array().mask.sum() == 1
    assert "missing cells (hatched): 1" in figure.get_supxlabel()


def test_a_number_that_one_seed_does_not_have_is_not_the_mean_of_the_others():
    run = results(seeds=3)
    run["cells"][0]["exact_kl_to_orbit"] = run["cells"][0]["relative_divergence"] = None  # infinite or not defined
    assert plot.draw_heatmap(run, "").axes[0].images[0].get_array().mask.sum() == 1
    assert np.isnan(line_of(plot.draw_distance(run, "").axes[0], "from O")[0, 1])


def test_order_of_flags_does_not_change_the_map():
    shuffled = copy.deepcopy(results())
    shuffled["config"] = {"tasks": TASKS[::-1], "steps": STEPS[::-1]}
    shuffled["cells"].reverse()
    np.testing.assert_array_equal(
        plot.draw_heatmap(shuffled, "").axes[0].images[0].get_array(),
        plot.draw_heatmap(results(), "").axes[0].images[0].get_array(),
    )


def test_a_folder_that_is_no_run_is_named_and_skipped(tmp_path, capsys, unsaved):
    write(tmp_path, "run_0", tiny())
    write(tmp_path, "run_1", {"config": {}})
    (tmp_path / "run_2").mkdir()
    write(tmp_path, "run_10", tiny())
    assert plot.main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "run_1: skipped" in out and "run_2: skipped" in out
    assert inside(tmp_path) == sorted({*figures_of("run_0"), *figures_of("run_10")})


def test_runs_are_looked_for_in_the_current_folder_then_in_results(tmp_path, monkeypatch, capsys, unsaved):
    monkeypatch.chdir(tmp_path)
    assert plot.main([]) == 1
    assert "no run" in capsys.readouterr().err
    (tmp_path / "results").mkdir()
    write(tmp_path / "results", "run_0", tiny())
    assert plot.main([]) == 0
    assert (tmp_path / "results" / "heatmap_run_0.png").exists()
    write(tmp_path, "run_3", tiny())
    assert plot.main([]) == 0
    assert (tmp_path / "heatmap_run_3.png").exists()


def test_compare_is_of_the_grid_that_most_runs_have_unless_labels_choose(tmp_path, monkeypatch, capsys, unsaved):
    for name, run in {"run_0": tiny(), "run_1": results(), "run_2": results()}.items():
        write(tmp_path, name, run)
    compared = []
    compare = plot.draw_compare
    monkeypatch.setattr(plot, "draw_compare", lambda runs, titles: compared.append([*runs]) or compare(runs, titles))
    assert plot.main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "compare.png: of run_1, run_2; other grids" in out and "run_0 D" in out  # its numbers are printed
    monkeypatch.setattr(plot, "labels", {"run_0": "one", "run_2": "other"})
    assert plot.main([str(tmp_path)]) == 0
    assert compared == [["run_1", "run_2"], ["run_0", "run_2"]] and "other grids" not in capsys.readouterr().out


def test_labels_name_runs_and_a_label_without_a_run_is_said(tmp_path, monkeypatch, capsys, unsaved):
    monkeypatch.setattr(plot, "labels", {"run_0": "my idea", "run_7": "gone"})
    for name in ("run_0", "run_1"):
        write(tmp_path, name, results())
    titles, compared = [], []
    draw, compare = plot.draw_heatmap, plot.draw_compare
    monkeypatch.setattr(plot, "draw_heatmap", lambda run, title: titles.append(title) or draw(run, title))
    monkeypatch.setattr(plot, "draw_compare", lambda runs, titles: compared.extend(runs) or compare(runs, titles))
    assert plot.main([str(tmp_path)]) == 0
    assert titles == ["my idea", "run_1"] and compared == ["run_0"]
    out = capsys.readouterr().out
    assert len([line for line in out.splitlines() if "run_7" in line]) == 1
    assert "run_0 D16_N2000 relative_divergence_posterior_mean: 0.3000\n" in out
    assert "run_0 D16_N2000 relative_divergence: 0.6000\n" in out and "run_1 D16" not in out


def test_a_run_without_a_label_goes_by_what_it_trained(tmp_path, monkeypatch, unsaved):
    write(tmp_path, "run_0", results() | {"config": {"tasks": TASKS, "steps": STEPS, "embedding": "fixed"}})
    titles, draw = [], plot.draw_heatmap
    monkeypatch.setattr(plot, "draw_heatmap", lambda run, title: titles.append(title) or draw(run, title))
    assert plot.main([str(tmp_path)]) == 0
    assert titles == ["run_0 (fixed embeddings)"]


def line_of(axes, label):
    """Points [n, 2] of the line or error bars with this label."""
    handles = dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    handle = next(handle for text, handle in handles.items() if label in text)
    return np.array((handle[0] if hasattr(handle, "lines") else handle).get_xydata())


def test_distances_their_errors_the_floor_and_the_nearest_mixture_are_drawn():
    figure = plot.draw_distance(results(seeds=3), "a run")
    above, below = figure.axes[2], figure.axes[5]  # D = 16
    assert "16" in above.get_title() and "nats" in figure.axes[0].get_ylabel()
    values = np.array([0.51, 0.61])
    np.testing.assert_allclose(line_of(above, "from O"), np.stack([STEPS, 0.4 + values], 1))
    np.testing.assert_allclose(line_of(above, "from G"), [[100, 0.3], [2000, 0.3]])
    np.testing.assert_allclose(line_of(above, "floor from M")[:, 1], 0.03 + 0.02)
    bars = next(c for c in above.containers if "O" in c.get_label()).lines[2][0].get_segments()
    np.testing.assert_allclose(bars[0][:, 1], 0.4 + 0.51 + 0.01 / np.sqrt(3) * np.array([-1, 1]))
    weights = np.array([[bar.get_height() for bar in c] for c in below.containers])
    np.testing.assert_allclose(weights, [[0.5, 0.5], 0.5 - values / 10, values / 10])
    tops = np.array([[bar.get_y() + bar.get_height() for bar in c] for c in below.containers])
    np.testing.assert_allclose(tops, weights.cumsum(0))  # stacked
    assert texts(below) == [f"{value / 7:.3f}" for value in values]


def test_weights_are_pale_where_the_mixture_is_farther_than_its_parts_are_apart():
    figure = plot.draw_distance(results(), "a run")  # nats: S and O 0.02 apart, M and O 0.03, 0.04 and 0.05
    alphas = [[[bar.get_alpha() for bar in c] for c in axes.containers] for axes in figure.axes[3:]]
    assert alphas[0] == [[1, 0.25], [1, 0.25], [1, 1]]  # mixtures are 0.014 and 0.029 from the models
    assert alphas[2] == 3 * [[0.25, 0.25]]  # 0.071 and 0.086


def test_a_single_seed_has_no_error_bars():
    for draw in (plot.draw_distance, plot.draw_positions):
        several, one = (draw(results(n), "").axes[0].containers[0].lines[2] for n in (2, 1))
        assert several and not one


def test_curves_show_mean_error_and_what_bayes_optimal_predictors_lose():
    figure = plot.draw_curves(results(seeds=2), "a run")
    above, below = figure.axes[0], figure.axes[3]  # D = 4
    np.testing.assert_allclose(line_of(above, "training loss"), [[10, 1.45], [100, 1.35], [2000, 1.3]])
    np.testing.assert_allclose(line_of(above, "entropy floor")[:, 1], 1.29)
    assert above.get_xticks().tolist() == [10, *STEPS]  # the first measured point and every N
    np.testing.assert_allclose(line_of(above, "O, Bayes")[:, 1], 1.27)
    np.testing.assert_allclose(line_of(below, "0 = S")[:, 1], [0.5, 0.4, 0.3])
    band = above.collections[0].get_paths()[0].vertices
    first = band[band[:, 0] == 10, 1]
    np.testing.assert_allclose([first.min(), first.max()], [1.4, 1.5])
    band = below.collections[0].get_paths()[0].vertices  # 0.5 and 0.7
    first = band[band[:, 0] == 10, 1]
    np.testing.assert_allclose([first.min(), first.max()], [0.5, 0.7])


def test_a_seed_that_lags_behind_is_part_of_the_mean_as_far_as_it_goes():
    run = results(seeds=2)
    run["trajectories"][1]["curves"] = {key: x[:2] for key, x in run["trajectories"][1]["curves"].items()}
    above = plot.draw_curves(run, "").axes[0]
    np.testing.assert_allclose(line_of(above, "training loss"), [[10, 1.45], [100, 1.35], [2000, 1.3]])
    assert len([line for line in above.lines if line.get_label().startswith("training loss")]) == 1


def test_every_number_of_steps_that_was_trained_on_its_own_is_a_curve_of_its_own():
    run = results()
    short = copy.deepcopy(run["trajectories"])
    for trajectory, n_steps in [(t, [100]) for t in short] + [(t, [2000]) for t in run["trajectories"]]:
        trajectory["n_steps"] = n_steps
    for trajectory in short:
        trajectory["curves"] = {key: [2 * v for v in x[:2]] for key, x in trajectory["curves"].items()}
    run["trajectories"] += short
    lines = [line for line in plot.draw_curves(run, "").axes[0].lines if line.get_label().startswith("training loss")]
    assert [line.get_ydata().tolist() for line in lines] == [[2.8, 2.7], [1.4, 1.35, 1.3]]


def test_positions_show_kl_by_context_length():
    figure = plot.draw_positions(results(), "a run")
    s, m = figure.axes[1], figure.axes[4]  # D = 8
    np.testing.assert_allclose(line_of(s, "N = 2,000"), [[1, 0.4], [2, 0.2], [3, 0.4 / 3]])
    np.testing.assert_allclose(line_of(m, "N = 100")[:, 1], [0.1, 0.15, 0.3])
    np.testing.assert_allclose(line_of(m, "in the model's place")[:, 1], [0.03, 0.02, 0.01])
    several = plot.draw_positions(results(seeds=3), "a run").axes[1].containers[0]
    np.testing.assert_allclose(
        several.lines[2][0].get_segments()[0][:, 1], 0.31 + 0.01 / np.sqrt(3) * np.array([-1, 1])
    )


def test_compare_draws_every_run_with_its_own_grid():
    other = results(shift=0.2)
    other["cells"] = [cell for cell in other["cells"] if cell["n_tasks"] == 8]
    other["config"] = {"tasks": [8], "steps": STEPS}
    figure = plot.draw_compare({"run_0": results(), "run_1": other}, {"run_0": "first", "run_1": "second"})
    maps = [axes for axes in figure.axes if axes.images and axes.get_xticklabels()[0].get_text() == "100"]
    assert [axes.get_title() for axes in maps] == ["first", "second", "", ""]
    np.testing.assert_allclose(maps[0].images[0].get_array(), [[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]])
    np.testing.assert_allclose(maps[1].images[0].get_array(), [[0.5, 0.6]])
    np.testing.assert_allclose(maps[3].images[0].get_array(), [[0.25, 0.3]])
    ideals = [axes.images[0].get_array() for axes in figure.axes if axes.images and axes not in maps]
    assert [len(scores) for scores in ideals] == [3, 1, 3, 1]  # of either grid, in both rows
    np.testing.assert_allclose(ideals[1], [[0.61, 0.71, 0.91]])
    np.testing.assert_allclose(ideals[3], [[0.31, 0.36, 0.46]])


def test_compare_shows_ideal_predictors_once_where_they_are_the_same():
    figure = plot.draw_compare({"a": results(), "b": results(shift=0.1)}, {"a": "a", "b": "b"})
    letters = [axes.get_xticklabels()[0].get_text() for axes in figure.axes if axes.images]
    assert letters == ["100", "100", "S"] * 2


@pytest.mark.parametrize("draw", FIGURES)
def test_every_figure_is_drawn_from_partial_runs_and_differs_when_the_data_differ(draw):
    def drawn(run):
        figure = draw(run, "")
        lines = [line.get_xydata().tolist() for axes in figure.axes for line in axes.lines]
        images = [np.ma.filled(image.get_array(), -1).tolist() for axes in figure.axes for image in axes.images]
        return lines + images

    assert drawn(results()) != drawn(results(shift=0.05))
    assert drawn(results()) == drawn(results())
    partial = results()
    del partial["cells"][3], partial["trajectories"][1]
    for run in (partial, {"config": results()["config"], "cells": []}):
        draw(run, "").canvas.draw()


@pytest.mark.parametrize("draw", ALL_FIGURES)
@pytest.mark.parametrize("rows", [1, 3])
def test_legends_and_titles_fit_into_the_figure(draw, rows):
    run = results()
    run["config"]["tasks"] = TASKS[:rows]
    run["cells"] = [cell for cell in run["cells"] if cell["n_tasks"] in TASKS[:rows]]
    figure = draw(run, "a run with a title that is far longer than one would wish, of learned embeddings that are " * 2)
    figure.canvas.draw()
    bounds = figure.bbox.padded(1)
    for artist in [*figure.legends, figure._suptitle, figure._supxlabel, *(axes.title for axes in figure.axes)]:
        if artist is not None and artist.get_visible():
            box = artist.get_window_extent()
            inside = box.x0 >= bounds.x0 and box.x1 <= bounds.x1 and box.y0 >= bounds.y0 and box.y1 <= bounds.y1
            assert inside, (artist, box, bounds)


def test_cells_of_fewer_seeds_are_said(tmp_path, capsys, unsaved):
    run = results(seeds=2)
    run["config"]["seeds"] = 2
    run["cells"][1]["relative_divergence"] = None
    write(tmp_path, "run_0", run)
    assert plot.main([str(tmp_path)]) == 0
    assert "run_0: cells of fewer seeds: 1\n" in capsys.readouterr().out


def test_a_run_without_cells_is_all_hatched_and_one_without_references_still_drawn(capsys):
    empty = results() | {"cells": []}
    assert plot.draw_heatmap(empty, "a run").axes[0].images[0].get_array().mask.all()
    bare = results()
    for cell in bare["cells"]:
        del cell["reference"]
    axes = plot.draw_heatmap(bare, "a run").axes
    assert axes[1].images[0].get_array().mask.all() and not axes[0].images[0].get_array().mask.any()


@pytest.mark.parametrize("place, asked", [("run_5", "."), ("run_5/models", ".."), (".", "run_5")])
def test_the_figures_of_a_run_that_is_named_go_into_it(tmp_path, monkeypatch, unsaved, place, asked):
    write(tmp_path, "run_5", tiny())
    (tmp_path / "run_5" / "models").mkdir()
    monkeypatch.chdir(tmp_path / place)
    assert plot.main([asked]) == 0
    assert inside(tmp_path / "run_5") == sorted([*figures_of("run_5"), "all_results.json", "models"])
    assert inside(tmp_path) == []


def test_figures_of_a_run_that_is_a_link_go_beside_the_link(tmp_path, unsaved):
    for folder in ("here", "elsewhere"):
        (tmp_path / folder).mkdir()
    write(tmp_path / "elsewhere", "run_of_long_ago", tiny())
    (tmp_path / "here" / "run_1").symlink_to(tmp_path / "elsewhere" / "run_of_long_ago")
    assert plot.main([str(tmp_path / "here")]) == 0
    assert inside(tmp_path / "here") == figures_of("run_1") and inside(tmp_path / "elsewhere") == []
    assert [path.name for path in (tmp_path / "elsewhere" / "run_of_long_ago").iterdir()] == ["all_results.json"]


@pytest.mark.parametrize("tie", [os.symlink, os.link])
def test_what_is_tied_to_the_name_of_a_figure_is_left_as_it_is(tmp_path, unsaved, tie):
    (tmp_path / "here").mkdir()
    write(tmp_path / "here", "run_1", tiny())
    (tmp_path / "notes").write_text("dear")
    tie(tmp_path / "notes", tmp_path / "here" / "curves_run_1.png")
    assert plot.main([str(tmp_path / "here")]) == 0
    assert (tmp_path / "notes").read_text() == "dear"
    assert inside(tmp_path / "here") == figures_of("run_1")
    assert "run_1" in (tmp_path / "here" / "curves_run_1.png").read_text()


@pytest.mark.parametrize("fault", ["in the way", "full", "read-only"])
def test_a_figure_that_cannot_be_written_is_named_and_the_others_drawn(tmp_path, monkeypatch, capsys, unsaved, fault):
    write(tmp_path, "run_\n", tiny())  # also such a name takes one line
    lost, before = ["heatmap_run_\n.png"], "an older figure"
    if fault == "in the way":
        (tmp_path / "heatmap_run_\n.png").mkdir()
    else:
        (tmp_path / "heatmap_run_\n.png").write_text(before)
    if fault == "full":
        save = plot.plt.Figure.savefig

        def savefig(figure, path, **options):
            save(figure, path, **options)
            if "does it generalize" in figure.get_suptitle():  # the heat map, once it is half written
                raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(plot.plt.Figure, "savefig", savefig)
    if fault == "read-only":

        def denied(*_, **__):
            raise OSError(errno.EROFS, "Read-only file system")

        monkeypatch.setattr(plot.tempfile, "TemporaryDirectory", denied)
        lost = figures_of("run_\n")
    assert plot.main([str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert len(err.splitlines()) == len(lost) and all(str(tmp_path / name).replace("\n", r"\n") in err for name in lost)
    assert r"run_\n D4_N100" in out
    assert inside(tmp_path) == (["heatmap_run_\n.png"] if fault == "read-only" else figures_of("run_\n"))
    if fault != "in the way":
        assert (tmp_path / "heatmap_run_\n.png").read_text() == before


@pytest.mark.parametrize("asked", ["", " ", "\n", "nowhere", "file", "x" * 300])
def test_what_is_no_folder_is_one_line(tmp_path, monkeypatch, capsys, unsaved, asked):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "run_0", tiny())
    (tmp_path / "file").touch()
    assert plot.main([asked]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and "DIR" in err
    assert inside(tmp_path) == ["file"]


SETTINGS = """
text.usetex: True
savefig.format: pdf
savefig.bbox: tight
figure.dpi: 31
font.size: 30
font.family: serif
axes.facecolor: red
interactive: True
backend: template
"""
HOSTILE = {  # variables, and what files say
    "variables": (
        {
            "MPLBACKEND": "nonsense",
            "MPLCONFIGDIR": f"{os.devnull}/none",
            "HOME": os.devnull,
            "FREETYPE_PROPERTIES": "truetype:interpreter-version=35",
            "SOURCE_DATE_EPOCH": "never",
            "DISPLAY": ":99",
            "PYTHONWARNINGS": "error",
        },
        {},
    ),
    "current folder": (
        {"MPLBACKEND": "module://matplotlib_inline.backend_inline", "HOME": ""},
        {"matplotlibrc": SETTINGS},
    ),
    "unreadable": ({"MATPLOTLIBRC": "{here}/settings"}, {"matplotlibrc": "\udcff", "settings": SETTINGS}),
    "home": (
        {"HOME": "{here}/home", "XDG_CACHE_HOME": "{here}/cache"},
        {"home/.config/matplotlib/matplotlibrc": SETTINGS},
    ),
}


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("variables, files", HOSTILE.values(), ids=HOSTILE)
def test_a_figure_is_the_same_in_every_environment(tmp_path, variables, files):
    """The same bytes, nothing on standard error and nothing else on disk."""
    title = "a run that is called \u5b57"  # a letter that the font lacks
    plot.save(plot.draw_heatmap(tiny(), title), tmp_path / "here.png")
    write(tmp_path, "run_0", tiny())
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content, errors="surrogateescape")
    before = {*tmp_path.rglob("*")}
    code = f"""
import plot
run = plot.read_run(plot.Path("run_0"))
plot.save(plot.draw_heatmap(run, {ascii(title)}), plot.Path("there.png"))
"""
    variables = {name: value.format(here=tmp_path) for name, value in variables.items()}
    process = python(code, env=variables, cwd=tmp_path, capture_output=True)
    assert (process.returncode, process.stderr) == (0, b"")
    assert (tmp_path / "there.png").read_bytes() == (tmp_path / "here.png").read_bytes()
    assert {*tmp_path.rglob("*")} - before == {tmp_path / "there.png"}


# The whole of plot.py, but for the painting.
UNSAVED = r"""
import sys, plot
plot.labels = {"run_\u00e9": "a label of run_\u00e9", "gone": ""}
plot.plt.Figure.savefig = lambda figure, path, **_: plot.Path(path).write_bytes(figure.get_suptitle().encode())
sys.exit(plot.main())
"""


@pytest.mark.parametrize("output", ["full", "closed", "nobody reads"])
def test_figures_are_drawn_where_nothing_can_be_printed(tmp_path, output):
    write(tmp_path, "run_0", tiny())
    if output == "nobody reads":
        read, full = os.pipe()
        os.close(read)
    else:
        full = os.open("/dev/full", os.O_WRONLY)
    closed = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh"] if output == "closed" else []
    process = python(UNSAVED, str(tmp_path), env={}, within=closed, stdout=full, stderr=full)
    os.close(full)
    assert process.returncode == 0
    assert inside(tmp_path) == figures_of("run_0")


def test_names_and_signs_beyond_ascii_pass_through_an_ascii_locale(tmp_path):
    run = tiny()
    run["config"]["embedding"] = "\u00e9"
    for name in ("run_\u00e9", os.fsdecode(b"run_\xff")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "all_results.json").write_bytes(json.dumps(run, ensure_ascii=False).encode())
    env = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    process = python(UNSAVED, str(tmp_path), env=env, capture_output=True)
    assert (process.returncode, process.stderr) == (0, b"")
    assert b"run_\\xe9 D4_N100 relative_divergence: 0.1050 \\xb1 0.0050\n" in process.stdout
    assert inside(tmp_path) == sorted({*figures_of("run_\u00e9"), *figures_of("run_\\xff")})
    assert (tmp_path / "heatmap_run_\u00e9.png").read_text().startswith("a label of run_\u00e9: ")
    assert (tmp_path / "heatmap_run_\\xff.png").read_text().startswith("run_\\xff (\u00e9 embeddings): ")


ODD = [
    "\ud800 \udcc3",
    "\u5b57",
    "100 % $x_{$ \\frac",
    "two\nlines\n\n",
    "\r\t\0",
    "\u202e\u200d\U0001f600",
    "../x",
    " ",
    7,
]


@pytest.mark.filterwarnings("ignore:Glyph")
@pytest.mark.parametrize("label", ODD, ids=ascii)
def test_any_label_is_drawn(monkeypatch, label):
    monkeypatch.setattr(plot, "labels", {"run_0": label})
    title = plot.title_of("run_0", tiny())
    answer = plot.draw_answer({"run_0": line_run(between([2]))})
    for figure in (plot.draw_heatmap(tiny(), title), compare_one(tiny(), title), answer):
        for text in figure.findobj(plot.plt.Text):
            text.get_window_extent()  # for which its letters are taken from the font


@pytest.mark.parametrize("content", ["", "{}", "[1]", '{"config": 3}', "\x00"])
def test_damaged_json_is_skipped(tmp_path, content, capsys):
    (tmp_path / "run_0").mkdir()
    (tmp_path / "run_0" / "all_results.json").write_text(content)
    assert plot.main([str(tmp_path)]) == 1
    assert "skipped" in capsys.readouterr().out


def test_runs_measured_with_another_yardstick_are_marked(tmp_path, monkeypatch, capsys, unsaved):
    titles, draw = [], plot.draw_heatmap
    monkeypatch.setattr(plot, "draw_heatmap", lambda run, title: titles.append(title) or draw(run, title))
    for name, yardstick in {"run_0": "a", "run_1": "a", "run_2": "b", "run_3": None}.items():
        write(tmp_path, name, {**tiny(), "environment": {"yardstick_sha256": yardstick}})
    assert plot.main([str(tmp_path)]) == 0
    assert titles[:2] == ["run_0", "run_1"] and "another yardstick than run_0" in titles[2] and "unknown" in titles[3]
    assert "run_2: measured with another yardstick" in capsys.readouterr().out
    monkeypatch.setattr(plot, "labels", {"run_2": "the only one shown"})
    assert plot.main([str(tmp_path)]) == 0
    assert "run_2: measured" not in capsys.readouterr().out


# ==== The answer ======================================================================================================


def test_student_quantiles_are_those_of_the_tables():
    table = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 11: 2.201}
    table |= {14: 2.145, 19: 2.093, 24: 2.064, 29: 2.045, 30: 2.042, 39: 2.023, 40: 2.021, 120: 1.980}
    for n, quantile in table.items():
        assert plot.student_quantile(n) == pytest.approx(quantile, abs=6e-4)


def coordinate_by_the_book(cells, kl) -> tuple[float, float, float]:
    """Ratio of summed numerators and denominators, and its jackknife, in plain loops over the cells."""

    def ratio(cells):
        numerator = denominator = 0.0
        for cell in cells:
            r_o = cell["reference"]["orbit"]["kl_to_best_counting"]
            o_r = cell["reference"]["best_counting"]["kl_to_orbit"]
            numerator += cell[f"exact_{kl}_best_counting"] - cell[f"exact_{kl}_orbit"] + o_r
            denominator += r_o + o_r
        return numerator / denominator

    n = len(cells)
    without = [ratio(cells[:i] + cells[i + 1 :]) for i in range(n)]
    mean = sum(without) / n
    error = ((n - 1) / n * sum((x - mean) ** 2 for x in without)) ** 0.5
    half = {2: 4.302653, 6: 2.446912, 7: 2.364624}[n - 1] * error
    return ratio(cells), ratio(cells) - half, ratio(cells) + half


@pytest.mark.parametrize("seeds", [3, 7, 8])
def test_the_pooled_coordinate_is_a_ratio_of_sums_with_a_jackknife_interval(seeds):
    random = np.random.default_rng(seeds)
    cells = [line_cell(2, i, random.normal(0.7, 0.5), tuple(random.uniform(0.0001, 0.1, 2))) for i in range(seeds)]
    for key, kl in {"bias_coordinate_r_o": "bias_to", "coordinate_r_o": "kl_to"}.items():
        wanted = coordinate_by_the_book(cells, kl)
        np.testing.assert_allclose(plot.pooled_coordinate(cells, key), wanted, atol=1e-6)
        assert abs(wanted[0] - np.mean([cell[key] for cell in cells])) > 0.01  # not the mean of the ratios


def test_a_seed_whose_r_equals_o_is_left_out_and_counted():
    cells = between(tasks=[2], seeds=4)
    same = line_cell(2, 4, 9.0, (0.0, 0.0)) | {"bias_coordinate_r_o": None}
    assert plot.pooled_coordinate([*cells, same]) == plot.pooled_coordinate(cells)
    assert plot.in_words([*cells, same]).endswith("4 of 5 seeds") and plot.in_words(cells).endswith("], 4 seeds")
    assert plot.standing([*cells, same]) == "between" and plot.verdict([same]) == "R equals O"
    assert np.isnan(plot.pooled_coordinate([same])).all()


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_have_no_interval_and_decide_nothing(seeds):
    cells = between(tasks=[2], start=0.9, step=0, seeds=seeds)
    value, low, high = plot.pooled_coordinate(cells)
    assert value == pytest.approx(0.9) and np.isnan([low, high]).all()
    assert plot.verdict(cells) == "undecided" and plot.in_words(cells) == f"0.90, {seeds} seed{'s' * (seeds > 1)}"


@pytest.mark.parametrize(
    "start, step, wanted",
    [
        (0.51, 0, "memorizes up to a renaming"),
        (0.49, 0, "counts"),
        (0.45, 0.04, "undecided"),
        (0.6, 0.001, "memorizes up to a renaming"),
        (-0.3, 0.01, "counts"),
        (0.3, 0.15, "undecided"),
    ],
)
def test_the_verdict_is_where_the_whole_interval_is(start, step, wanted):
    assert plot.verdict(between(tasks=[2], start=start, step=step)) == wanted


def test_models_that_are_no_nearer_to_o_than_r_is_do_not_memorize_whatever_their_coordinate():
    for bias, wanted in ((0.019, "memorizes up to a renaming"), (0.021, "towards O, but no nearer to it than R is")):
        cells = [line_cell(2, seed, 0.9, (0.03, 0.02), bias=bias) for seed in range(4)]
        assert plot.standing(cells) == "between" and plot.verdict(cells) == wanted


def test_models_farther_from_r_and_o_than_these_are_apart_are_neither():
    nats = (0.03, 0.02)
    assert plot.standing([line_cell(2, 0, 0.6, nats, bias=0.0299)]) == "between"  # between the two distances
    assert plot.standing([line_cell(2, 0, 0.6, nats, bias=0.0301)]) == "neither"
    far, near = line_cell(2, 0, 0.6, nats, bias=0.05), line_cell(2, 1, 0.6, nats, bias=0.005)
    assert plot.standing([far]) == "neither" and plot.standing([far, near]) == "between"  # by means over the seeds
    assert plot.verdict(between(bias=0.05)) == "neither"


def test_models_nearer_to_m_than_to_r_and_o_are_neither_whatever_their_coordinate():
    for bias in (0.005, 0.05):
        cells = between(tasks=[2], start=0.95, bias=bias, to_m=bias - 0.001)
        assert plot.standing(cells) == "M" and plot.verdict(cells) == "nearest to M (by color)"
        assert plot.standing(between(bias=bias, to_m=bias + 0.03)) != "M"


def test_the_answer_is_of_the_runs_of_one_configuration_with_most_models():
    one = {"alpha": 1.0, "lr": 1e-4, "schedule": "constant"}
    two = {"alpha": 0.3, "lr": 1e-3, "schedule": "linear"}
    runs = {
        "run_0": line_run(between(seeds=1), **one),
        "run_1": line_run(between(seeds=1), **one, embedding="fixed"),
        "run_3": line_run(between(seeds=5), **one),
        "run_4": line_run(between(seeds=3, tasks=[2]), **two, seeds=3),
        "run_5": line_run(between(seeds=3), **two, embedding="permutation", device="cuda"),
        "run_6": line_run(between(seeds=3), **two, embedding="fixed"),
        "run_7": line_run(between(seeds=8), **two) | {"environment": {"yardstick_sha256": "another"}},
        "run_8": line_run(between(seeds=8), **two, d_model=256),
        "run_9": results(),
    }
    assert list(plot.comparable(runs)) == ["run_4", "run_5", "run_6"]
    assert list(plot.comparable({name: runs[name] for name in ("run_0", "run_1", "run_9")})) == ["run_0", "run_1"]
    assert plot.comparable({"run_9": runs["run_9"]}) == {}


def three_runs() -> dict:
    """The models of run_4 are decided at D = 2 only, those of run_5 far from all, and those of run_6 near M."""
    decided, undecided = between([2], 0.7), between([4], 0.3, 0.1)
    undecided[2] |= {"bias_coordinate_r_o": None}
    decided[0] |= line_cell(2, 0, -3.0, (0.0001, 0.0001))
    decided[4] |= line_cell(2, 4, 5.0, (0.0001, 0.0001), bias=0.00005)
    return {
        "run_4": line_run(decided + undecided),
        "run_5": line_run(between(bias=0.06), embedding="permutation"),
        "run_6": line_run(between(start=0.9, to_m=0.001), embedding="fixed"),
    }


def marks(panel, size=None) -> list[tuple]:
    """(x, row, marker, filled) of the seeds of a panel, or of marks of this size."""
    drawn = [line for line in panel.lines if line.get_marker() != "None" and np.isfinite(line.get_xdata()).all()]
    drawn = [line for line in drawn if (line.get_color() == "0.4" if size is None else line.get_markersize() == size)]
    return [
        (
            float(line.get_xdata()[0]),
            round(line.get_ydata()[0]),
            line.get_marker(),
            line.get_markerfacecolor() != "white",
        )
        for line in drawn
    ]


def test_the_answer_shows_every_seed_and_all_of_them_with_their_interval():
    runs = three_runs()
    figure = plot.draw_answer(runs)
    gaussian, permutation, fixed = figure.axes
    ends = gaussian.get_xlim()
    seeds = marks(gaussian)
    assert seeds[:2] == [(ends[0], 0, "<", False), (0.72, 0, "o", True)]  # far off, and its R and O hardly apart
    assert seeds[4] == (ends[1], 0, ">", True)
    np.testing.assert_allclose([x for x, row, *_ in seeds if row == 1], [0.3, 0.4, 0.6, 0.7])  # none where R equals O
    assert all(not filled and marker == "o" for _, _, marker, filled in marks(permutation))
    assert all(not filled and marker == "D" for _, _, marker, filled in marks(fixed))
    for panel, run in zip(figure.axes, runs.values(), strict=True):
        pooled = [plot.pooled_coordinate(plot.coordinates_at(run, D)) for D in (2, 4)]
        np.testing.assert_allclose([x for x, *_ in marks(panel, size=9)], [value for value, *_ in pooled])
        drawn = [line.get_xdata() for line in panel.lines if len(line.get_xdata()) == 2 and line.get_lw() == 2]
        np.testing.assert_allclose(drawn, [interval for _, *interval in pooled])
        assert [label.get_text() for label in panel.get_yticklabels()] == ["D = 2", "D = 4"]
        assert [line.get_xdata()[0] for line in panel.lines[:2]] == [0, 1]
    sizes = [line.get_markersize() for line in gaussian.lines if line.get_color() == "0.4" and line.get_marker() == "o"]
    assert len(set(sizes)) == 1


def test_the_answer_is_said_in_words_and_none_where_models_are_off_the_line():
    figure = plot.draw_answer(three_runs())
    gaussian, permutation, fixed = figure.axes
    top, *rows = [text for text in texts(gaussian) if "[" not in text], *texts(gaussian)[2:]
    assert "counts" in top[0] and "memorizes up to a renaming" in top[1]
    assert rows[0].startswith("memorizes up to a renaming\n0.74 [0.") and rows[0].endswith("5 seeds")
    assert rows[1].startswith("undecided\n0.50 [") and rows[1].endswith("4 of 5 seeds")
    assert texts(permutation) == ["neither"] * 2 and texts(fixed) == ["nearest to M (by color)"] * 2
    titles = figure.get_suptitle().splitlines()
    assert titles[0] == "run_4 (gaussian embeddings): memorizes up to a renaming at D = 2, undecided at D = 4"
    assert [line.split(": ", 1)[1] for line in titles[1:]] == [
        "neither at D = 2 and 4",
        "nearest to M (by color) at D = 2 and 4",
    ]
    assert [len(panel.collections) for panel in figure.axes] == [4, 0, 0]  # what is behind models on the line
    assert "ordinary Transformer" in fixed.get_ylabel() and "500 updates" in fixed.get_xlabel()
    for word in ("jackknife 95%", "neither", "M, Bayes over the urns", "off the scale", "nested", "left out"):
        assert word in figure.get_supxlabel()
    counting = plot.draw_answer({"run_0": line_run(between([2, 4], 0.1) + between([8], 0.9))}).get_suptitle()
    assert counting.endswith("counts at D = 2 and 4, memorizes up to a renaming at D = 8")


@pytest.mark.parametrize("tasks", [(2,), (2, 4), (4, 8, 16, 32)])
def test_words_of_the_answer_fit_into_the_figure_and_do_not_overlap(tasks, monkeypatch):
    monkeypatch.setattr(plot, "labels", {"run_1": "a run with a label that is long"})
    run = line_run(between(tasks), embedding="permutation")
    figure = plot.draw_answer({"run_0": run, "run_1": run, "run_2": line_run(between(tasks, to_m=0.0))})
    figure.canvas.draw()
    words = [text for panel in figure.axes for text in (*panel.texts, panel.yaxis.label)]
    words += [figure._suptitle, figure._supxlabel, figure.axes[-1].xaxis.label]
    boxes = [text.get_window_extent() for text in words]
    bounds = figure.bbox.padded(1)
    assert all(box.x0 >= bounds.x0 and box.x1 <= bounds.x1 for box in boxes)
    assert all(box.y0 >= bounds.y0 and box.y1 <= bounds.y1 for box in boxes)
    assert not any(one.overlaps(other) for i, one in enumerate(boxes) for other in boxes[:i])


def test_the_answer_is_drawn_and_printed_where_runs_have_coordinates(tmp_path, monkeypatch, capsys, unsaved):
    for name, run in {**three_runs(), "run_9": results()}.items():
        write(tmp_path, name, run)
    assert plot.main([str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "run_4 (gaussian" in (tmp_path / "answer.png").read_text()
    value, low, high = plot.pooled_coordinate(between([2], 0.7, bias=0.06))
    line = f"run_5 D2_N500 bias_coordinate_r_o: {value:.4f} [{low:.4f}, {high:.4f}], 5 seeds: neither\n"
    assert line in out and f"run_5 D2_N500 coordinate_r_o: {value - 0.1:.4f} [" in out
    assert "run_4 D4_N500 bias_coordinate_r_o: 0.5000 [" in out and "4 of 5 seeds: undecided\n" in out
    assert not [text for text in out.splitlines() if text.startswith("run_9") and "coordinate" in text]
    monkeypatch.setattr(plot, "labels", {"run_6": "the only one"})
    assert plot.main([str(tmp_path)]) == 0
    assert (tmp_path / "answer.png").read_text().startswith("the only one: nearest to M (by color) at D = 2 and 4")


def test_the_best_counting_rule_is_a_strategy_where_the_run_has_it():
    run = results(seeds=2)
    for cell in run["cells"]:
        cell |= {"exact_kl_to_best_counting": 0.07, "exact_weight_best_counting": 0.1}
        cell["reference"]["best_counting"] = cell["reference"]["orbit"] | {"relative_divergence": 0.65}
        for reference in cell["reference"].values():
            reference["kl_to_best_counting"] = 0.0015
    axes = plot.draw_heatmap(run, "").axes[1]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["S", "R", "O", "M"]
    np.testing.assert_allclose(axes.images[0].get_array()[0], [0.6, 0.65, 0.7, 0.9])
    above, *_, below = plot.draw_distance(run, "").axes
    np.testing.assert_allclose(line_of(above, "from R")[:, 1], 0.07)
    np.testing.assert_allclose([bar.get_height() for bar in below.containers[1]], 0.1)
    assert [bar.get_alpha() for bar in below.containers[1]] == [0.25, 0.25]  # R is 0.0015 from the others
    assert len({(marker, str(line)) for _, _, marker, line, _ in plot.PREDICTORS.values()}) == 5
    assert len({hatch for *_, hatch in list(plot.PREDICTORS.values())[1:]}) == 4


def test_the_scale_of_the_loss_holds_all_of_its_points():
    figure = plot.draw_curves(results(), "")
    for panel in figure.axes[:3]:
        low, high = panel.get_ylim()
        for line in panel.lines:
            assert low <= np.min(line.get_ydata()) and np.max(line.get_ydata()) <= high
