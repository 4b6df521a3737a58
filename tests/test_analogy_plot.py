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

STAGES = ["train_acc", "near_ood_compositional_acc", "ood_analogical_acc", "ood_analogical_prob"]
ANALOGY = ["ood_analogical_prob", "ood_analogical_choice"]
READ_OUT, INPUT = ([f"{rows}energy_ratio_{part}" for part in ("id", "ood")] for rows in ("read_out_", ""))
STEPS, PAIRS = [0, 3, 6, 12, 30], [[0, 5], [1, 6], [2, 7], [3, 8], [4, 9]]
STAYS, GOES, NEVER, NONE = [0.1, 0.2, 0.4, 0.6, 0.9], [0.1, 0.5, 0.8, 0.6, 0.3], [0.1, 0.1, 0.3, 0.4, 0.2], [None] * 5


def trained(prob: list[float | None], seed: int, tied: bool, steps: list[int], **place) -> tuple[dict, dict]:
    """A cell of results and its trajectory, whose held-out images have these probabilities; all accuracies are 1 where
    they have 0.6."""
    place = dict(zip(plot.PLACE, (10, 10000, 0.4, 0.0, 128), strict=True)) | place | {"seed": seed}
    acc, there = [p and float(p >= 0.6) for p in prob], None not in prob
    curves = {"step": steps, "energy": [2.0, 1.5, 1.1, 1.2, 1.3], "energy_ratio_id": [1.0, 1.1, 1.3, 1.2, 1.1]}
    curves |= {"train_acc": [0.0, 0.5, 0.9, 1.0, 1.0], "near_ood_compositional_acc": [0.0, 0.1, 0.5, 0.9, 0.95]}
    held_out = {
        "ood_analogical_prob": prob,
        "ood_analogical_acc": acc,
        "ood_analogical_choice": [p and 0.3 + p / 2 for p in prob],
    }
    curves |= held_out if there else {}  # what has no facts is not measured
    curves |= {"energy_ratio_ood": [p and 2 - p + seed / 10 for p in prob]}
    if not tied:
        curves |= {"read_out_energy": [2.0, 1.0, 1.1, 1.2, 1.3], "read_out_energy_ratio_id": [1.0, 0.7, 0.6, 0.8, 0.9]}
        curves["read_out_energy_ratio_ood"] = [p and 1 - p / 3 for p in prob]
    planes = np.random.default_rng(seed).normal(size=(5, 10, 2)).tolist()
    kept = (0, 1, 2, 4) if tied else (0, 1, 4)
    curves["plane"] = [plane if i in kept else None for i, plane in enumerate(planes)]
    shares = [[0.2, 0.1], [0.3, 0.1], [0.4, 0.15], [0.3, 0.2], [0.3, 0.1]]
    curves["plane_shares"] = [share if i in kept else None for i, share in enumerate(shares)]
    numbers = {"t_mem": steps[3], "t_comp": None, "elimination_ood_analogical_acc": 0.5 if there else None}
    for key, name, least in (("prob", "t_ana", 0.5), ("acc", "t_ana_acc", 0.99)):
        values = curves.get(f"ood_analogical_{key}", [None] * 5)
        numbers[name] = next((step for step, x in zip(steps, values, strict=True) if x and x >= least), None)
    for key in ("prob", "acc", "choice"):
        values = curves.get(f"ood_analogical_{key}", [None])
        numbers[f"ood_analogical_{key}"] = values[-1]
        numbers |= (
            {f"ood_analogical_{key}_max": max(values), f"ood_analogical_{key}_share": np.mean(values[1:])}
            if there
            else {f"ood_analogical_{key}_{end}": None for end in ("max", "share")}
        )
    return place | numbers, place | {"curves": curves, "pairs": PAIRS, "counts": {"id_analogical": 3}}


def results(*cells: tuple[dict, list], tied=False, steps=(STEPS,), **config) -> dict:
    """A run with these cells: what they differ in, and the probabilities of each seed, which take turns in steps."""
    seeds = [
        trained(prob, seed, tied, steps[seed % len(steps)], **place)
        for place, probs in cells
        for seed, prob in enumerate(probs, 42)
    ]
    config = {"preset": "readme", "tie_weights": tied, "lr": 1e-4, "epochs": 10, "seeds": len(seeds)} | config
    return {"config": config, "cells": [cell for cell, _ in seeds], "trajectories": [told for _, told in seeds]}


FEW, NOTHING_HELD_OUT = {"num_relations": 100}, ({"analogical_ood_ratio": 0.0}, [NONE])
README = results(({}, [STAYS, GOES, NEVER]))
TIED = results(({}, [STAYS, GOES]), tied=True)
SWEEP = results((FEW, 2 * [NEVER]), (FEW | {"d_model": 64}, [GOES]), ({}, [STAYS, STAYS, GOES]), NOTHING_HELD_OUT)


def test_findings_and_differences_in_words():
    """By accuracy, which is there from a probability of 0.6 on, and by probability, 0.5."""
    cells = plot.cells_of(SWEEP)
    assert [plot.finding(seeds) for seeds in cells.values()] == [
        ["analogy by accuracy in 1 of 1, first at 6, at the end in 0"]
        + ["analogy by probability in 1 of 1, first at 3, at the end in 0"],
        ["analogy by accuracy in 0 of 2", "analogy by probability in 0 of 2"],
        ["no image is held out"],
        ["analogy by accuracy in 3 of 3, first at 6 to 12, at the end in 2"]
        + ["analogy by probability in 3 of 3, first at 3 to 12, at the end in 2"],
    ]
    assert plot.differences([*cells.values()])[2] == "relations 10000, held out 0.0, d model 128"
    runs = [
        results(({}, [GOES]), tied=tied, **config) for tied, config in ((False, {}), (True, {"epochs": 20, "seeds": 9}))
    ]
    one, other = plot.differences([seeds for run in runs for seeds in plot.cells_of(run).values()])
    assert (one, other) == ("tie weights False, epochs 10", "tie weights True, epochs 20")


@pytest.mark.parametrize(
    "draw, run, keys",
    [
        ("stages", README, [STAGES]),
        ("energy", README, [ANALOGY, READ_OUT, INPUT]),
        ("energy", TIED, [ANALOGY, INPUT]),
    ],
)
def test_every_seed_is_thin_and_the_median_thick(draw, run, keys):
    figure, seeds = getattr(plot, f"draw_{draw}")(run, "a run"), [t["curves"] for t in run["trajectories"]]
    for panel, own in zip(figure.axes, keys, strict=True):
        thin, thick = ([line for line in panel.get_lines() if line.get_linewidth() == width] for width in (0.6, 2.2))
        assert {(*line.get_xdata(),) for line in thin + thick} == {(0, 3, 6, 12, 30)}
        assert [[*line.get_ydata()] for line in thin] == [curves[key] for key in own for curves in seeds]
        middle = [np.median([curves[key] for curves in seeds], 0) for key in own]
        assert np.array_equal([line.get_ydata() for line in thick], middle)
        styles = [line.get_linestyle() for line in thick]
        assert [line.get_linestyle() for line in thin] == [style for style in styles for _ in seeds]
        assert len(set(styles)) == len(own)
        figure.canvas.draw()
        places = panel.transAxes.inverted().transform(panel.transData.transform([(x, 0) for x in (0, 3, 30)]))[:, 0]
        assert 0 < places[0] < places[1] - 0.05 < places[2] < 1 and panel.get_xscale() == "symlog"
        assert [text.get_text() for text in panel.get_xticklabels()] == ["0", "3", "10", "30"]
        chances = [line.get_ydata()[0] for line in panel.get_lines() if line.get_label().startswith("guessing")]
        assert chances == ([0.5] if "ood_analogical_prob" in own else [])
    if draw == "stages":
        marks = [sorted(line.get_xdata()) for line in panel.get_lines() if line.get_marker() == "v"]
        assert marks == [[12, 12, 12], [], [6, 12], [3, 12]]
        assert panel.get_title() == "\n".join(plot.finding(README["cells"]))
        told = ["memorizing: accuracy, 3 of 3", "composition: accuracy, 0 of 3"]
        told += ["analogy: accuracy, 2 of 3", "analogy: probability, 2 of 3"]
        assert [text.get_text() for text in panel.texts] == told
    else:
        bands = [(*patch.get_extents().transformed(panel.transData.inverted()).intervalx,) for patch in panel.patches]
        assert bands == [pytest.approx((6, 12))] and panel.get_ylim() == figure.axes[1].get_ylim()


def test_the_median_is_there_where_seeds_have_different_epochs():
    """At every update that one of them has, up to the least last one, between the points of the others."""
    run = results(
        ({}, [STAYS, GOES, NEVER]), steps=([0, 3, 6, 12, 30], [0, 4, 8, 16, 40])
    )  # the second one's are others
    lines = plot.draw_stages(run, "a run").axes[0].get_lines()
    (line,) = [line for line in lines if line.get_label() == plot.STAGES["ood_analogical_prob"][0]]
    assert [*line.get_xdata()] == [0, 3, 4, 6, 8, 12, 16, 30]
    assert line.get_ydata()[[2, 3, 7]] == pytest.approx([0.2 + 0.2 / 3, 0.4, 0.6 - 0.3 * 14 / 24])


@pytest.mark.parametrize("draw, names", [("stages", plot.STAGES), ("energy", plot.ANALOGY | plot.ENERGIES)])
def test_the_legend_names_every_line_also_where_the_first_cell_lacks_one(draw, names):
    figure = getattr(plot, f"draw_{draw}")(results(NOTHING_HELD_OUT, ({}, [STAYS])), "a run")
    told = {text.get_text() for text in figure.legends[0].get_texts()}
    band = {"analogy comes (accuracy), first to last seed"} if draw == "energy" else set()
    assert told == {name for name, *_ in names.values()} | {"guessing among held-out images"} | band


@pytest.mark.parametrize("run, least", [(README, (1, 3, 40)), (TIED, (2, 6, 55))])
def test_arrows_lead_from_entities_to_their_images(run, least):
    """In the rows of the read-out, where their own energy is least; the embedding's, if that is the read-out."""
    figure, curves = plot.draw_embeddings(run, "a run"), run["trajectories"][0]["curves"]
    assert f"rows of the {'embedding' if run is TIED else 'read-out'}; parallel arrows" in figure.get_suptitle()
    moments = ((0, 0, 30), least, (4, 30, 40))
    for panel, moment, (i, update, share) in zip(figure.axes, ("start", "least energy", "end"), moments, strict=True):
        plane = curves["plane"][i]
        assert panel.get_title() == f"{moment}, update {update}: {share}% of variance"
        arrows = [([*text.xyann], [*text.xy], text.arrowprops["ls"]) for text in panel.texts]
        assert arrows == [(plane[one], plane[other], "-" if one < 3 else "--") for one, other in PAIRS]
        marks = {line.get_marker(): line.get_xydata().tolist() for line in panel.get_lines()}
        assert marks == {"o": plane[:5], "s": plane[5:]}


def draw_sweep(run: dict, title: str) -> plot.plt.Figure:
    cells = [*plot.cells_of(run).values()]
    return plot.draw_sweep([*zip(plot.differences(cells), cells, strict=True)], title)


def test_a_sweep_has_a_mark_per_seed_and_a_line_at_the_median():
    figure, cells = draw_sweep(SWEEP, "a sweep"), plot.cells_of(SWEEP)
    for panel, key in zip(figure.axes, ("prob_max", "choice_max", "prob_share", "prob"), strict=True):
        values = [[seed[f"ood_analogical_{key}"] for seed in seeds] for seeds in cells.values()]
        values = [own for own in values if None not in own]
        assert [[*line.get_xdata()] for line in panel.get_lines() if line.get_marker() == "o"] == values
        assert len(values) == 3
        medians = [{*line.get_xdata()} for line in panel.get_lines() if line.get_color() == "black"]
        assert medians == [{np.median(own)} for own in values]
        chances = [line.get_xdata()[0] for line in panel.get_lines() if line.get_color() == "#009E73"]
        assert chances == [0.5] * (0 if key == "prob_share" else 3)


def test_a_sweep_keeps_runs_of_one_label_apart(tmp_path, capsys, monkeypatch):
    write(tmp_path, {"run_0": README, "run_1": README, "run_2": results(({}, [STAYS]), lr=0.5)})
    monkeypatch.setattr(plot, "labels", {"run_0": "one", "run_1": "one", "run_2": "two"})
    seen, draw = [], plot.draw_sweep
    monkeypatch.setattr(plot, "draw_sweep", lambda rows, title: seen.extend(rows) or draw(rows, title))
    assert plot.main([str(tmp_path)]) == 0
    assert [name for name, _ in seen] == ["one: lr 0.0001", "one: lr 0.0001", "two: lr 0.5"]
    assert [len(seeds) for _, seeds in seen] == [3, 3, 1]


@pytest.mark.parametrize("draw", [plot.draw_stages, plot.draw_energy, plot.draw_embeddings, draw_sweep])
def test_words_lie_within_the_figure(draw):
    for run in (README, TIED, SWEEP):
        figure = draw(run, "a run with a $ in its name, and a long title " * 3)
        figure.canvas.draw()
        (x0, y0), (x1, y1) = figure.get_tightbbox().get_points()  # of all that is drawn, in inches
        assert min(x0, y0) > -0.02 and all(figure.get_size_inches() > [x1 - 0.02, y1 - 0.02])
        plot.plt.close(figure)


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
    assert (
        "run_1: relations 100, held out 0.4, d model 128: analogy by accuracy in 0 of 2; analogy by prob" in done.stdout
    )
    assert "first at 6 to 12, at the end in 2; analogy by probability in 3 of 3, first at 3 to 12" in done.stdout


def test_what_cannot_be_drawn_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert plot.main([str(tmp_path / "nothing")]) == 2 and plot.main([]) == 1
    (tmp_path / "run_0").mkdir()
    assert plot.main([]) == 1 and capsys.readouterr().err.count("\n") == 3
    write(tmp_path, {"run_1": README})
    monkeypatch.setattr(plot.plt.Figure, "savefig", lambda *_, **__: os.open(tmp_path / "no" / "such", os.O_RDONLY))
    assert plot.main([]) == 1 and "cannot be written" in capsys.readouterr().err
