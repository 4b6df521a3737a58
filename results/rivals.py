#!/usr/bin/env python3
"""Is a model without its noise nearer to O than the best rule that looks at a color's own count alone?

    python results/rivals.py results/run_4 results/run_5

R, (n_k + a) / (C + m a), is the best additive rule of a mixture of urns. The best rule by own count, Q, has P_k
proportional to exp(g(n_k)), with the g(0), .. g(C) of least exact KL(M || Q). For the models of every D after the last
N, by bias_predictions (Pbar), over seeds: the pooled coordinate of Pbar from Q to O with its jackknife interval, mean
nats from O to Q and to Pbar, and on urns that no model has seen from S and from O to Pbar; printed, and drawn as
rivals.png beside the runs.
"""

import itertools
import json
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import experiment
import plot

import matplotlib.pyplot as plt
import torch


def best_scores(counts: torch.Tensor, weights: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """log P [n, m] of the rule P_k ~ exp(g(n_k)) of least sum of weights KL(target || P): counts [n, m], weights [n].

    The divergence is convex in g, which a constant does not change: Newton's method, damped, ends at the one minimum.
    """
    g = counts.new_zeros(int(counts.max()) + 1)
    which = torch.nn.functional.one_hot(counts.long(), len(g)).double()  # [n, m, C + 1]

    def divergence(g):
        return -(weights[:, None] * target * g[counts.long()].log_softmax(1)).sum()

    for _ in range(200):
        P = g[counts.long()].softmax(1)
        gradient = (weights[:, None, None] * (P - target)[..., None] * which).sum((0, 1))
        mean = (P[..., None] * which).sum(1)
        second = (weights[:, None] * P)[..., None, None] * which[..., None] * which[..., None, :]
        hessian = second.sum((0, 1)) - torch.einsum("n,ni,nj->ij", weights, mean, mean)
        step = torch.linalg.lstsq(hessian + 1e-12 * torch.eye(len(g)), -gradient).solution
        size = 1.0
        while divergence(g + size * step) > divergence(g) and size > 1e-9:
            size /= 2
        g = g + size * step
        if gradient.abs().max() < 1e-12:
            break
    return g[counts.long()].log_softmax(1)


def compared(trajectory: dict, config: experiment.Config) -> dict[str, float]:
    """What is compared of one model."""
    m, C = config.n_colors, config.seq_len - 1
    urns = torch.tensor(trajectory["urns"], dtype=torch.float64)
    draws = torch.tensor(list(itertools.combinations_with_replacement(range(m), C)))  # the order of bias_predictions
    counts = experiment.color_counts(draws, m)
    orders = torch.exp(math.lgamma(C + 1) - torch.lgamma(counts + 1).sum(1))
    weights = orders * (urns ** counts[:, None]).prod(2).mean(1)
    rising = (torch.lgamma(counts + config.alpha) - math.lgamma(config.alpha)).sum(1)  # of a Dirichlet-multinomial
    fresh = orders * torch.exp(rising + math.lgamma(m * config.alpha) - math.lgamma(m * config.alpha + C))
    P = torch.tensor(trajectory["curves"]["bias_predictions"][-1], dtype=torch.float64)
    P = P / P.sum(1, keepdim=True)  # kept to six digits
    M = experiment.memorizing_predictor(draws, urns)
    O = experiment.orbit_memorizing_predictor(draws, urns)  # noqa: E741
    S = experiment.posterior_mean_predictor(draws, m, config.alpha)
    R = experiment.best_counting_predictor(draws, urns)
    Q = best_scores(counts, weights, M).exp()

    def kl(a, b, over=weights):
        return (over * experiment.kl_divergence(a, b)).sum().item()

    found = {"kl_q_to_o": kl(Q, O), "kl_o_to_q": kl(O, Q), "q_to_model": kl(Q, P), "o_to_model": kl(O, P)}
    found |= {"o_to_r": kl(O, R), "r_to_model": kl(R, P), "fresh_s_to_model": kl(S, P, fresh)}
    return found | {"fresh_o_to_model": kl(O, P, fresh), "fresh_s_to_o": kl(S, O, fresh)}


def coordinate(x: dict) -> float:
    """Where a model stands from Q (0) to O (1), as experiment.coordinate puts it from R to O."""
    return (x["q_to_model"] - x["o_to_model"] + x["kl_o_to_q"]) / (x["kl_q_to_o"] + x["kl_o_to_q"])


def pooled(seeds: list[dict]) -> tuple[float, float, float]:
    """The coordinate of all seeds and its jackknife interval, as plot.pooled_coordinate makes them from R to O."""
    cells = []
    for x in seeds:
        ends = {"orbit": {"kl_to_best_counting": x["kl_q_to_o"]}, "best_counting": {"kl_to_orbit": x["kl_o_to_q"]}}
        cells.append({"reference": ends, "value": coordinate(x)})
    return plot.pooled_coordinate(cells, "value")


def draw(rows: dict[str, list[dict]], path: Path) -> None:
    """The coordinates of every seed and of all, a row per run and D; beside them mean nats from Q and from O."""
    figure, panel = plt.subplots(figsize=(10, 2.2 + 0.6 * len(rows)), layout="constrained")
    for y, seeds in enumerate(rows.values()):
        value, low, high = pooled(seeds)
        lanes = [y - 0.3 + 0.04 * i for i in range(len(seeds))]
        sizes = [math.sqrt(x["kl_q_to_o"] + x["kl_o_to_q"]) for x in seeds]
        for x, lane, size in zip(seeds, lanes, sizes, strict=True):
            panel.plot(coordinate(x), lane, "o", color="0.4", ms=3 + 4 * size / max(sizes))
        panel.plot([low, high], [y + 0.2] * 2, color="black", lw=2)
        panel.plot(value, y + 0.2, "o", color="black", ms=9)
        nats = {key: math.fsum(x[key] for x in seeds) / len(seeds) for key in ("q_to_model", "o_to_model", "kl_o_to_q")}
        words = "{q_to_model:.4f} from Q, {o_to_model:.4f} from O\nfrom O to Q: {kl_o_to_q:.4f}".format(**nats)
        panel.text(1.02, y, words, va="center", fontsize=9, transform=panel.get_yaxis_transform())
    for x, words in enumerate(("Q: counts\nby own count", "O: memorizes\nup to a renaming")):
        panel.axvline(x, color="black", lw=1)
        panel.plot(x + 0.4 * (2 * x - 1), 0, alpha=0)  # room for the words
        panel.text(x, 1.02, words, ha="center", transform=panel.get_xaxis_transform())
    panel.text(1.02, 1.02, "nats to the models", transform=panel.transAxes)
    panel.set_yticks(range(len(rows)), rows)
    panel.set(ylim=(len(rows) - 0.5, -0.5), xlabel="coordinate from Q (0) to O (1), noise averaged out")
    figure.suptitle("Nearer to the best rule by own count, Q, or to O?", fontsize=12)
    told = "small: a seed, larger where Q and O are farther apart on its urns; large: all, with jackknife 95% interval"
    figure.supxlabel(told, fontsize=9)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(folders: list[str]) -> int:
    rows = {}
    for folder in map(Path, folders):
        results = json.loads((folder / "all_results.json").read_bytes())
        config = experiment.Config(**results["config"])
        models = {
            (t["n_tasks"], t["seed"]): t for t in results["trajectories"] if max(t["n_steps"]) == max(config.steps)
        }
        for D in config.tasks:
            cells = plot.coordinates_at(results, D)
            seeds = [compared(models[D, cell["seed"]], config) for cell in cells]
            rows[f"{folder.name} ({config.embedding}), D = {D}"] = seeds
            value, low, high = pooled(seeds)
            print(f"{folder.name} D{D} coordinate_q_o: {value:.4f} [{low:.4f}, {high:.4f}], {len(seeds)} seeds")
            for key in seeds[0]:
                print(f"{folder.name} D{D} {key}: {sum(x[key] for x in seeds) / len(seeds):.5f}")
    draw(rows, Path(folders[0]).parent / "rivals.png")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
