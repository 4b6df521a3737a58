"""The figures of the analogy study, by what is drawn in them."""

import copy
import importlib.util
import json
import os
import sys

import numpy as np
import pytest
from conftest import ROOT, launch

SCRIPT = ROOT / "studies" / "analogy" / "plot.py"
spec = importlib.util.spec_from_file_location("analogy_plot", SCRIPT)
plot = sys.modules["analogy_plot"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plot)

ENERGIES = ["energy_id", "energy_ood", "energy_null"]
STAGES = ["train_acc", "near_ood_compositional_acc", "ood_analogical_prob"]
STEPS, PAIRS = [0, 3, 6, 12, 30], [[0, 5], [1, 6], [2, 7], [3, 8], [4, 9]]
STAYS, GOES, NEVER, NONE = [0.1, 0.2, 0.4, 0.6, 0.9], [0.1, 0.5, 0.8, 0.6, 0.3], [0.1, 0.1, 0.3, 0.4, 0.2], [None] * 5


def trained(prob: list[float | None], seed: int, **place) -> tuple[dict, dict]:
    """A cell of results and its trajectory, whose held-out images have these probabilities."""
    place = dict(zip(plot.FIELDS, (10, 10000, 0.4, 0.0, 128), strict=True)) | place | {"seed": seed}
    curves = {"step": STEPS, "ood_analogical_prob": prob, "energy": [2.0, 1.5, 1.1, 1.2, 1.3]}
    curves |= {"train_acc": [0.0, 0.5, 0.9, 1.0, 1.0], "near_ood_compositional_acc": [0.0, 0.1, 0.5, 0.9, 0.95]}
    curves |= {"energy_id": [2.0, 1.4, 1.0, 1.1, 1.2], "energy_null": [2.0, 1.9, 1.8, 1.9, 2.0]}
    curves["energy_ood"] = [p and 2 - p + seed / 10 for p in prob]
    curves["plane"] = np.random.default_rng(seed).normal(size=(len(STEPS), 10, 2)).tolist()
    curves["plane_shares"] = [[0.2, 0.1], [0.3, 0.1], [0.4, 0.15], [0.3, 0.2], [0.3, 0.1]]
    numbers = {"t_mem": 12, "t_comp": None, "ood_analogical_prob": prob[-1]}
    numbers["t_ana"] = next((step for step, p in zip(STEPS, prob, strict=True) if p and p >= 0.5), None)
    numbers["ood_analogical_prob_max"] = None if None in prob else max(prob)
    numbers["ood_analogical_share"] = None if None in prob else sum(prob[1:]) / 4
    return place | numbers, place | {"curves": curves, "pairs": PAIRS}


def results(*cells: tuple[dict, list]) -> dict:
    """A run with these cells: what they differ in, and the probabilities of each seed."""
    seeds = [trained(prob, seed, **place) for place, probs in cells for seed, prob in enumerate(probs, 42)]
    return {"cells": [cell for cell, _ in seeds], "trajectories": [told for _, told in seeds]}


FEW, NOTHING_HELD_OUT = {"num_relations": 100}, ({"analogical_ood_ratio": 0.0}, [NONE])
README = results(({}, [STAYS, GOES, NEVER]))
SWEEP = results((FEW, 2 * [NEVER]), (FEW | {"d_model": 64}, [GOES]), ({}, [STAYS, STAYS, GOES]), NOTHING_HELD_OUT)


def test_findings_and_medians_in_words():
    cells = plot.cells_of(SWEEP)
    assert [plot.finding(seeds) for seeds in cells.values()] == [
        "analogy in 1 of 1 seeds, first at update 3; at the end in 0",
        "analogy in 0 of 2 seeds",
        "no analogical fact is held out",
        "analogy in 3 of 3 seeds, first at updates 3 to 12; at the end in 2",
    ]
    assert plot.in_words([*cells][2], plot.differing([*cells])) == "relations 10,000, held out 0, width 128"
    for steps, wanted in (([3, 1, 2], 2), ([1, None, 2], 2), ([None, 1, None], None), ([1, 2, None, None], None)):
        assert plot.median([{"step": step} for step in steps], "step") == wanted


@pytest.mark.parametrize("draw, keys", [("stages", [STAGES]), ("energy", [STAGES[2:], ENERGIES])])
def test_every_seed_is_thin_and_the_median_thick(draw, keys):
    figure, seeds = getattr(plot, f"draw_{draw}")(README, "a run"), [t["curves"] for t in README["trajectories"]]
    for panel, own in zip(figure.axes, keys, strict=True):
        thin, thick = ([line for line in panel.get_lines() if line.get_linewidth() == width] for width in (0.6, 2.2))
        assert {(*line.get_xdata(),) for line in thin + thick} == {(3, 6, 12, 30)}  # a logarithmic axis has no 0
        assert [[*line.get_ydata()] for line in thin] == [curves[key][1:] for key in own for curves in seeds]
        middle = [np.median([curves[key][1:] for curves in seeds], 0) for key in own]
        assert np.array_equal([line.get_ydata() for line in thick], middle) and panel.get_xscale() == "log"
        assert [line.get_label() for line in thick] == [(plot.STAGES | plot.ENERGIES)[key][0] for key in own]
    if draw == "stages":
        marks = [sorted(line.get_xdata()) for line in panel.get_lines() if line.get_marker() == "v"]
        assert marks == [[12, 12, 12], [], [3, 12]] and panel.get_title() == plot.finding(README["cells"])


@pytest.mark.parametrize("draw, names", [("stages", plot.STAGES), ("energy", plot.ENERGIES)])
def test_the_legend_names_every_line_also_where_the_first_cell_lacks_one(draw, names):
    figure = getattr(plot, f"draw_{draw}")(results(NOTHING_HELD_OUT, ({}, [STAYS])), "a run")
    assert not any(len(line.get_xdata()) for line in figure.axes[0].get_lines() if line.get_color() == "#0072B2")
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {name for name, *_ in names.values()}


def test_arrows_lead_from_entities_to_their_images():
    figure, curves = plot.draw_embeddings(README, "a run"), README["trajectories"][0]["curves"]
    moments = ((0, "start, update 0: 30%"), (2, "least energy, update 6: 55%"), (4, "end, update 30: 40%"))
    for panel, (i, words) in zip(figure.axes, moments, strict=True):
        plane = curves["plane"][i]
        assert panel.get_title() == f"{words} of variance"
        arrows = [([*text.xyann], [*text.xy], text.arrowprops["ls"]) for text in panel.texts]
        assert arrows == [(plane[one], plane[other], "-" if one < 3 else "--") for one, other in PAIRS]
        marks = {line.get_marker(): line.get_xydata().tolist() for line in panel.get_lines()}
        assert marks == {"o": plane[:5], "s": plane[5:]}


def draw_sweep(run: dict, title: str) -> plot.plt.Figure:
    cells = {("a run", place): seeds for place, seeds in plot.cells_of(run).items()}
    return plot.draw_sweep(cells, plot.differing([place for _, place in cells]), title)


def test_a_sweep_has_a_mark_per_seed_and_a_line_at_the_median():
    figure, cells = draw_sweep(SWEEP, "a sweep"), plot.cells_of(SWEEP)
    keys = ("ood_analogical_prob_max", "ood_analogical_share", "ood_analogical_prob")
    for panel, key in zip(figure.axes, keys, strict=True):
        values = [[seed[key] for seed in seeds if seed[key] is not None] for seeds in cells.values()]
        assert [[*line.get_xdata()] for line in panel.get_lines() if line.get_marker() == "o"] == values
        medians = [{*line.get_xdata()} for line in panel.get_lines() if line.get_linewidth() == 2]
        assert medians == [{np.median(own)} if own else set() for own in values]
    words = [figure.axes[2].texts[i].get_text() for i in (0, 1, 3)]
    assert words == ["came in 1 of 1", "came in 0 of 2", "came in 3 of 3"]
    assert figure.axes[0].get_yticklabels()[0].get_text() == "a run: relations 100, held out 0.4, width 64"


@pytest.mark.parametrize("draw", [plot.draw_stages, plot.draw_energy, plot.draw_embeddings, draw_sweep])
def test_words_lie_within_the_figure(draw):
    for run in (README, SWEEP):
        figure = draw(run, "a run with a $ in its name, and a long title " * 3)
        figure.canvas.draw()
        (x0, y0), (x1, y1) = figure.get_tightbbox().get_points()  # of all that is drawn, in inches
        assert min(x0, y0) > -0.02 and all(figure.get_size_inches() > [x1 - 0.02, y1 - 0.02])


def write(folder, runs: dict) -> None:
    for name, run in runs.items():
        (folder / name).mkdir()
        (folder / name / "all_results.json").write_text(json.dumps(run))


def test_every_figure_is_written_and_every_number_printed(tmp_path):
    broken = copy.deepcopy(SWEEP)
    del broken["cells"][0]["d_model"]
    write(tmp_path, {"run_0": README, "run_1": SWEEP, "run_2": broken, "run_3": {}, "run_4": results()})
    done = launch(script=SCRIPT, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.count("skipped") == 3
    figures = {f"{kind}_{run}.png" for kind in ("stages", "energy", "embeddings") for run in ("run_0", "run_1")}
    assert {path.name for path in tmp_path.glob("*.png")} == figures | {"sweep.png"}
    assert "run_1 relations 100, held out 0.4, width 128: analogy in 0 of 2 seeds; medians: t_mem 12" in done.stdout
    assert "updates 3 to 12; at the end in 2; medians: t_mem 12, t_comp never, t_ana 12\n" in done.stdout


def test_what_cannot_be_drawn_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert plot.main([str(tmp_path / "nothing")]) == 2 and plot.main([]) == 1
    (tmp_path / "run_0").mkdir()
    assert plot.main([]) == 1 and capsys.readouterr().err.count("\n") == 3
    write(tmp_path, {"run_1": README})
    monkeypatch.setattr(plot.plt.Figure, "savefig", lambda *_, **__: os.open(tmp_path / "no" / "such", os.O_RDONLY))
    assert plot.main([]) == 1 and "cannot be written" in capsys.readouterr().err
