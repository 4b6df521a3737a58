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


@pytest.fixture(autouse=True)
def figures_are_closed():
    yield
    plot.plt.close("all")


N, MAPPED, TESTED = [*range(3, 11)], [3, 4, 5, 8, 10], [5, 8, 10]  # lengths
RULES = ("oracle", "confidence", "gate_0.1", "gate_0.5", "gate_0.9")  # of stopping
LOOPS = {"standard": "1", "looped_k2": "2", "looped_gate": "6", "looped_n_rotary": "length", "oracle": "length"}


def loops_of(n: int) -> range:
    return range(1, max(12, n + 5) + 1)


def own(arm: str, n: int) -> int:
    return n if LOOPS[arm] == "length" else int(LOOPS[arm])


def value(what: str, arm: str, n: int, seed: int, loop: int = 0) -> float:
    """Some number that is like no other one."""
    return (7 * n + 3 * loop + 5 * seed + len(arm) + 2 * len(what)) % 101 / 101


def results(arms: dict[str, list[int]], **config) -> dict:
    """A run with these arms, and of each seed whether it is trained."""
    config = {"min_len": 3, "max_len": 5, "test_lengths": TESTED, "num_steps": 5000, "schedule": "constant"} | config
    run = {"config": config, "cells": [], "trajectories": []}
    for arm, seed, trained in ((arm, seed, told) for arm, own in arms.items() for seed, told in enumerate(own)):
        cell = {"cell": arm, "seed": seed, "trained": trained, "trained_exact": value("trained", arm, 0, seed)}
        run["cells"].append(cell | {f"exact_L{n}": value("exact", arm, n, seed) for n in TESTED})
        told = {"lengths": N, "mapped": MAPPED}
        for what, lengths in (("exact", N), ("token", N), ("other_exact", MAPPED)):
            told[what] = [value(what, arm, n, seed) for n in lengths]
        if LOOPS[arm] != "1":
            for what, lengths in (("exact", MAPPED), ("token", TESTED), ("doubt", TESTED), ("change", TESTED)):
                told[f"{what}_by_loop"] = [[value(what, arm, n, seed, k) for k in loops_of(n)] for n in lengths]
            rules = RULES if arm == "looped_gate" else RULES[:2] if arm != "oracle" else RULES[:1]
            told["stopping"] = {
                rule: {key: [value(rule + key, arm, n, seed) for n in MAPPED] for key in ("exact", "loops")}
                for rule in rules
            }
        settings = {"loops": LOOPS[arm], "trained_loops": own(arm, 5), "curves": {"by_length": [None, told]}}
        run["trajectories"].append({"arm": arm, "seed": seed} | settings)
    return run


def mean(what: str, arm: str, n: int, loop: int = 0) -> float:
    return np.mean([value(what, arm, n, seed, loop) for seed in (0, 1)])


FULL = {"standard": [1, 1], "looped_k2": [1, 0], "looped_gate": [1, 1], "looped_n_rotary": [0, 0], "oracle": [0, 0]}
FULL, ALONE = results(FULL), results({"standard": [0]}, num_steps=20000, schedule="cosine")


def lines_of(panel, width: float) -> list:
    return [line for line in panel.get_lines() if line.get_linewidth() == width]


def test_every_seed_is_thin_the_mean_thick_lengths_of_training_shaded_and_arms_marked_that_are_not_trained():
    marks = ["", "\nNOT TRAINED in 1 of 2 seeds", "", "\nNOT TRAINED in 2 of 2 seeds", ""]  # controls need none
    for arm, mark, panel in zip(LOOPS, marks, plot.draw_lengths(FULL, "a run").axes, strict=False):
        kinds = [("exact", N), ("token", N), ("other_exact", MAPPED)]
        for (what, lengths), line in zip(kinds, lines_of(panel, 2), strict=True):
            assert np.allclose(line.get_xydata(), [(n, mean(what, arm, n)) for n in lengths])
        seeds = [(what, lengths, seed) for what, lengths in kinds for seed in (0, 1)]
        for (what, lengths, seed), line in zip(seeds, lines_of(panel, 0.6), strict=True):
            assert np.allclose(line.get_xydata(), [(n, value(what, arm, n, seed)) for n in lengths])
        assert [line.get_linestyle() == "None" for line in lines_of(panel, 2)] == [False, False, True]
        panel.set_xlim(3, 5)
        assert all(x == int(x) for x in panel.get_xticks())
        assert [(patch.get_x(), patch.get_width()) for patch in panel.patches] == [(3, 2)]
        assert (panel.get_title(), panel.title.get_color()) == (arm + mark, "0.5" if mark else "black")


def test_maps_are_means_by_length_and_loops_and_empty_where_none_was_tested():
    for draw in (plot.draw_loops, plot.draw_states, plot.draw_stopping, plot.draw_exits):
        assert draw(ALONE, "a run") is None
    panels = [panel for panel in plot.draw_loops(FULL, "a run").axes if panel.get_ylabel() == "loops"]
    for arm, panel in zip([*LOOPS][1:], panels, strict=True):
        (image,) = panel.get_images()
        grid = [[mean("exact", arm, n, k) if k in loops_of(n) else np.nan for n in MAPPED] for k in range(1, 16)]
        assert np.allclose(image.get_array().filled(np.nan), grid, equal_nan=True) and image.get_clim() == (0, 1)
        assert image.get_extent() == [-0.5, 4.5, 0.5, 15.5] == [*panel.get_xlim(), *panel.get_ylim()]
        assert [(x, text.get_text()) for x, text in zip(panel.get_xticks(), panel.get_xticklabels(), strict=True)] == [
            (x, str(n)) for x, n in enumerate(MAPPED)
        ]
        *lines, border = panel.get_lines()
        assert [line.get_xydata().tolist() for line in lines] == 2 * [[[x, own(arm, n)] for x, n in enumerate(MAPPED)]]
        assert {*border.get_xdata()} == {2.5} and image.origin == "lower"


def test_states_are_means_in_one_range_without_controls_and_there_is_no_change_before_the_first_loop():
    axes = np.array([panel for panel in plot.draw_states(FULL, "a run").axes if panel.get_lines()]).reshape(3, 3)
    for arm, panels in zip(("looped_k2", "looped_gate", "looped_n_rotary"), axes.T, strict=True):
        for what, panel in zip(("token", "doubt", "change"), panels, strict=True):
            for n, line in zip(TESTED, panel.get_lines(), strict=True):
                values = [mean(what, arm, n, k) for k in loops_of(n)]
                values = np.exp(np.negative(values)) if what == "doubt" else values
                drawn = line.get_xydata()
                assert np.isnan(drawn[0, 1]) == (what == "change") and line.get_label() == f"{n} tokens"
                drawn = drawn[~np.isnan(drawn[:, 1])]
                assert np.allclose(drawn, [*zip(loops_of(n), values, strict=True)][what == "change" :])
    for row in axes:
        assert len({panel.get_ylim() for panel in row}) == 1
        assert all(x == int(x) for panel in row for x in panel.get_xticks())
    long = results({"looped_k2": [1]}, test_lengths=[10, 20, 30, 40, 50])
    told = long["trajectories"][0]["curves"]["by_length"][-1]
    told |= {f"{key}_by_loop": [[1.0, 0.5]] * 5 for key in ("token", "doubt", "change")}
    names = [text.get_text() for text in plot.draw_states(long, "a run").legends[0].get_texts()]
    assert names == ["10 tokens", "20 tokens", "30 tokens", "50 tokens"]


def test_rules_of_stopping_have_a_line_for_every_seed_and_there_are_no_controls():
    for key, draw in (("exact", plot.draw_stopping), ("loops", plot.draw_exits)):
        figure = draw(FULL, "a run")
        panels = [panel for panel in figure.axes if panel.get_lines()]
        for arm, panel in zip(("looped_k2", "looped_gate", "looped_n_rotary"), panels, strict=True):
            wanted = [("exact", N)] * (key == "exact")
            wanted += [(rule + key, MAPPED) for rule in (RULES if arm == "looped_gate" else RULES[:2])]
            for (what, lengths), line in zip(wanted, lines_of(panel, 2), strict=True):
                assert np.allclose(line.get_xydata(), [(n, mean(what, arm, n)) for n in lengths])
            assert len(lines_of(panel, 0.6)) == 2 * len(wanted)
        assert "the gate, ended with probability 0.5" in [text.get_text() for text in figure.legends[0].get_texts()]


def draw_arms(run: dict, title: str) -> plot.plt.Figure:
    return plot.draw_arms({("run", arm): seeds for arm, seeds in plot.arms_of(run).items()}, TESTED, {"run": title})


def test_arms_have_a_dot_per_seed_open_if_it_is_not_trained_and_that_of_one_seed_lies_in_its_row():
    for n, panel in zip(TESTED, draw_arms(FULL, "a run").axes, strict=True):
        dots = [(*line.get_xydata()[0].round(9), line.get_mfc() == "white") for line in panel.get_lines()]
        cells = [(cell["cell"], cell["seed"], not cell["trained"]) for cell in FULL["cells"]]
        assert np.allclose(dots, [
            (value("exact", arm, n, i), [*LOOPS].index(arm) + 0.25 * i - 0.125, no and arm != "oracle")
            for arm, i, no in cells
        ])  # fmt: skip
    assert [text.get_text() for text in panel.get_figure().axes[0].get_yticklabels()] == [*LOOPS]
    assert {*draw_arms(ALONE, "a run").axes[0].get_lines()[0].get_ydata()} == {0}


@pytest.mark.parametrize("draw", ["lengths", "loops", "states", "stopping", "exits", "arms"])
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
    figures = {f"{kind}_run_0.png" for kind in ("lengths", "loops", "states", "stopping", "exits")}
    assert {path.name for path in tmp_path.glob("*.png")} == figures | {"lengths_run_1.png", "arms.png"}
    for arm, known in (("looped_k2", "trained in 1 of 2 seeds"), ("oracle", "a control")):
        numbers = ", ".join(f"{n}: {mean('exact', arm, n):.3f}" for n in TESTED)
        trained = f"lengths of training: {mean('trained', arm, 0):.3f}"
        assert f"run_0, 3 to 5 tokens, 5,000 updates: {arm}: exact at {trained}, {numbers}; {known}\n" in done.stdout
    assert "run_1, 3 to 5 tokens, 20,000 updates, falling rate: standard: " in done.stdout
    monkeypatch.setattr(plot.plt.Figure, "savefig", lambda *_, **__: os.open(tmp_path / "no" / "such", os.O_RDONLY))
    assert plot.main(["run_1"]) == 1 and "cannot be written" in capsys.readouterr().err
