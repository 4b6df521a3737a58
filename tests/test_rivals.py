"""What results/rivals.py compares, against plain sums over all sequences of draws."""

import importlib.util
import itertools
import json
import math
import sys

import experiment

import numpy as np
import pytest
import torch
from conftest import ROOT

spec = importlib.util.spec_from_file_location("rivals", ROOT / "results" / "rivals.py")
rivals = sys.modules["rivals"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(rivals)

SETTINGS = "--alpha 0.5 --seq_len 5 --n_colors 3 --n_layers 1 --n_heads 1 --d_model 16 --batch_size 8 --n_test 4"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rivals") / "run_0"
    words = f"{SETTINGS} --tasks 2 3 --steps 60 --seeds 3 --lr 1e-2 --device cpu"
    assert experiment.main([*words.split(), "--out_dir", str(folder)]) == 0
    return folder


def test_the_best_rule_by_own_count_has_no_better_one_beside_it():
    """Divergence is convex in the scores: where no step of a single one helps is its least."""
    torch.manual_seed(0)
    draws = torch.tensor(list(itertools.combinations_with_replacement(range(3), 4)))
    counts, weights = experiment.color_counts(draws, 3), torch.rand(len(draws)).double()
    target = torch.rand(len(draws), 3).double().softmax(1)
    log_p = rivals.best_scores(counts, weights, target)
    scores = {}
    for row, own in zip(counts.long().tolist(), log_p.tolist(), strict=True):
        for n, other in itertools.permutations(range(3), 2):  # log P_k - log P_j is g(n_k) - g(n_j), of the same g
            pair, gap = (row[n], row[other]), own[n] - own[other]
            assert scores.setdefault(pair, gap) == pytest.approx(gap, abs=1e-9)

    def divergence(g):
        log_q = g[counts.long()].log_softmax(1)
        return (weights[:, None] * target * (target.log() - log_q)).sum().item()

    g = torch.tensor([scores.get((n, 0), 0.0) for n in range(5)]).double()
    least = divergence(g)
    assert least == pytest.approx((weights[:, None] * target * (target.log() - log_p)).sum().item())
    for n in range(5):
        for step in (-0.01, 0.01):
            moved = g.clone()
            moved[n] += step
            assert divergence(moved) > least


def test_r_is_of_this_form_and_never_better(run):
    results = json.loads((run / "all_results.json").read_bytes())
    config = experiment.Config(**results["config"])
    for trajectory in results["trajectories"]:
        bed = experiment.TestBed(config, trajectory["n_tasks"], trajectory["seed"])
        counts = experiment.color_counts(bed.exact, 3)
        weights, (R, M) = (
            bed.weights["exact_"][-len(bed.exact) :],
            (bed.ideals[x][-len(bed.exact) :, -1] for x in ("best_counting", "m")),
        )
        Q = rivals.best_scores(counts, weights, M).exp()
        assert weights @ experiment.kl_divergence(M, Q) <= weights @ experiment.kl_divergence(M, R) + 1e-12


def test_distances_are_sums_over_all_sequences_of_draws(run):
    """The same as the run's own exact numbers, where it has them; on fresh urns by draws of the prior's predictions."""
    results = json.loads((run / "all_results.json").read_bytes())
    config = experiment.Config(**results["config"])
    cells = {(cell["n_tasks"], cell["seed"]): cell for cell in results["cells"]}
    for trajectory in results["trajectories"]:
        found, cell = rivals.compared(trajectory, config), cells[trajectory["n_tasks"], trajectory["seed"]]
        assert found["o_to_model"] == pytest.approx(cell["exact_bias_to_orbit"], abs=1e-6)
        assert found["r_to_model"] == pytest.approx(cell["exact_bias_to_best_counting"], abs=1e-6)
        assert found["o_to_r"] == pytest.approx(cell["reference"]["best_counting"]["kl_to_orbit"], abs=1e-9)
        multisets = list(itertools.combinations_with_replacement(range(3), 4))
        P = dict(zip(multisets, trajectory["curves"]["bias_predictions"][-1], strict=True))
        total = 0.0
        for draws in itertools.product(range(3), repeat=4):
            seen, probability = [0, 0, 0], 1.0
            for k in draws:
                probability *= (seen[k] + 0.5) / (sum(seen) + 1.5)
                seen[k] += 1
            S = [(n + 0.5) / 5.5 for n in seen]
            total += probability * sum(s * math.log(s / p) for s, p in zip(S, P[tuple(sorted(draws))], strict=True))
        assert found["fresh_s_to_model"] == pytest.approx(total, abs=1e-5)


def test_the_coordinate_is_0_at_q_1_at_o_and_pooled_by_sums():
    ends = [
        {"kl_q_to_o": 0.03, "kl_o_to_q": 0.01},
        {"kl_q_to_o": 0.2, "kl_o_to_q": 0.1},
        {"kl_q_to_o": 0.1, "kl_o_to_q": 0.1},
    ]
    at_q = [x | {"q_to_model": 0.0, "o_to_model": x["kl_o_to_q"]} for x in ends]
    at_o = [x | {"q_to_model": x["kl_q_to_o"], "o_to_model": 0.0} for x in ends]
    assert rivals.pooled(at_q) == pytest.approx((0, 0, 0)) and rivals.pooled(at_o) == pytest.approx((1, 1, 1))
    value, low, high = rivals.pooled([at_o[0], at_q[1], at_o[2]])
    assert value == pytest.approx(0.24 / 0.54) and low < value < high
    assert np.isnan(rivals.pooled(at_q[:2])[1:]).all()


def test_it_prints_a_line_per_number_and_draws_a_row_per_run_and_d(run, capsys):
    capsys.readouterr()
    assert rivals.main([str(run), str(run)]) == 0
    assert (run.parent / "rivals.png").stat().st_size > 10_000
    lines = capsys.readouterr().out.splitlines()
    assert (
        len(lines) == 2 * 2 * 10 and lines[0].startswith("run_0 D2 coordinate_q_o: ") and lines[0].endswith("3 seeds")
    )
