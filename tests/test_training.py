"""How the harness trains, whatever is trained: here the models of Balls & Urns, made small."""

import copy
import gc
import io
import logging
import math
import os
import pickle
import random
import re
import signal
import weakref
from collections import OrderedDict, deque
from dataclasses import fields, replace
from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import experiment
import harness
from experiment import STUDY, Config, UrnTrajectory
from harness import Ensemble

import numpy as np
import pytest
import torch
from tqdm import tqdm
from training import CPU, GO_ON, planned


def small(**fields) -> Config:
    return Config(**{"n_layers": 1, "d_model": 16, "seq_len": 4, "n_test": 4, "tasks": (2,), "steps": (10,)} | fields)


def advance(ensemble: Ensemble, *parts: int) -> torch.Tensor:
    """Make so many updates, one part after the other; their objectives [n, E]."""
    objectives = [objective for n in parts for objective in ensemble.advance(n, GO_ON)[0]]
    return torch.tensor(objectives, dtype=torch.float64).view(-1, len(ensemble.group))


class Noisy(experiment.Model):
    """A model with what no parameter holds: it draws by itself, and counts its calls in a buffer."""

    def __init__(self, config: Config):
        super().__init__(config)
        self.dropout = torch.nn.Dropout(0.1)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, tokens: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.dropout(super().forward(tokens, codes))


def with_sgd(monkeypatch) -> None:
    """Train by plain gradient descent: an update then shows the size of the gradient, which Adam's hides."""
    monkeypatch.setattr(UrnTrajectory, "optimizer", lambda self, params, lr: torch.optim.SGD(params.values(), lr=lr))


# ---- One model and many ----------------------------------------------------------------------------------------------


def test_a_stacked_ensemble_is_the_same_arithmetic_as_one_model_after_the_other():
    for embedding in ("gaussian", "permutation", "fixed"):
        config = Config(embedding=embedding, n_layers=2, d_model=32, tasks=(2, 4, 8), steps=(40,), n_test=8, seq_len=5)
        together = Ensemble(planned(config), CPU, "stacked")
        objectives, states = advance(together, 40), together.states()
        for member, progress in enumerate(planned(config)):
            alone = Ensemble([progress], CPU)
            torch.testing.assert_close(advance(alone, 40)[:, 0], objectives[:, member], rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(alone.observe(0), together.observe(member), rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(alone.states()[0], states[member], rtol=1e-3, atol=1e-6)


def test_stacked_models_keep_their_own_buffers(monkeypatch):
    def frozen_positions(trajectory):
        model = experiment.Model(trajectory.config)
        positions = model.decoder.positions.detach().clone()
        del model.decoder.positions
        model.decoder.register_buffer("positions", positions)
        return model

    monkeypatch.setattr(UrnTrajectory, "model", frozen_positions)
    config = small(tasks=(2, 4))
    together = Ensemble(planned(config), CPU, "stacked")
    for member, progress in enumerate(planned(config)):
        alone = Ensemble([progress], CPU)
        torch.testing.assert_close(together.observe(member), alone.observe(0), rtol=1e-4, atol=1e-6)


def test_what_a_loss_reports_is_by_member_and_name_and_is_not_what_is_trained(monkeypatch):
    def loss(trajectory, model, tokens, codes):
        reported = experiment.next_draw_loss(model(tokens[:, :-1], codes), tokens)
        return 3 * reported, {"loss": reported, "urns": torch.tensor(float(trajectory.n_tasks))}

    objectives = advance(Ensemble(planned(small(tasks=(2, 4))), CPU, "stacked"), 1)
    monkeypatch.setattr(UrnTrajectory, "loss", loss)
    for rung in ("plain", "stacked"):
        plan = planned(small(tasks=(2, 4)))[: 1 + (rung == "stacked")]
        tripled, reported = Ensemble(plan, CPU, rung).advance(4, GO_ON)
        assert len(reported) == len(plan)
        for member, by_name in enumerate(reported):
            assert by_name.keys() == {"loss", "urns"} and by_name["urns"] == 4 * [2]  # the first one's loss serves all
            torch.testing.assert_close([3 * x for x in by_name["loss"]], tripled[member :: len(plan)])
            assert by_name["loss"][0] == pytest.approx(objectives[0, member].item(), rel=1e-5)


def test_stacked_gradients_are_clipped_model_by_model():
    """Numbers, vectors and matrices of models whose gradients have norms of very different sizes."""
    shapes, draws = [(), (5,), (3, 4), (2,)], torch.Generator().manual_seed(0)
    params = [torch.zeros(4, *shape, requires_grad=True) for shape in shapes]
    for p in params[:-1]:  # the last one has no gradient
        p.grad = torch.randn(p.shape, generator=draws) * torch.tensor([0.0, 0.01, 1, 100]).view(4, *[1] * (p.ndim - 1))
    members = [[p.detach()[member].clone().requires_grad_() for p in params] for member in range(4)]
    for member, own in enumerate(members):
        for p, stacked in zip(own[:-1], params, strict=False):
            p.grad = stacked.grad[member].clone()
        torch.nn.utils.clip_grad_norm_(own, 0.5)
    harness.clip_by_member(params, 0.5)
    assert params[-1].grad is None
    for member, own in enumerate(members):
        for p, stacked in zip(own[:-1], params, strict=False):
            torch.testing.assert_close(stacked.grad[member], p.grad)


def test_clipped_gradients_are_those_of_clip_grad_norm_alone_and_stacked(monkeypatch):
    with_sgd(monkeypatch)
    config = small(tasks=(2, 4, 8), lr=1.0)
    start, free = ([Ensemble([progress], CPU) for progress in planned(config)] for _ in range(2))
    norms = []
    for ensemble in free:
        advance(ensemble, 1)
        norms.append(torch.nn.utils.get_total_norm([p.grad for p in ensemble.params.values()]).item())
    clip_norm = (min(norms) + max(norms)) / 2
    together = Ensemble(planned(config, clip_norm=clip_norm), CPU, "stacked")
    advance(together, 1)
    for member, progress in enumerate(planned(config, clip_norm=clip_norm)):
        torch.nn.utils.clip_grad_norm_(free[member].params.values(), clip_norm)
        advance(alone := Ensemble([progress], CPU), 1)
        for name, p in free[member].params.items():
            wanted = start[member].params[name] - p.grad
            torch.testing.assert_close(alone.params[name], wanted, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(together.params[name][member], wanted, rtol=1e-5, atol=1e-6)


def test_one_update_is_adamw_as_published():
    """One step from a known gradient, by the formulas of Loshchilov & Hutter 2019."""
    ensemble = Ensemble(planned(small(steps=(1,), lr=0.01, weight_decay=0.1)), CPU)
    before = {name: p.detach().clone() for name, p in ensemble.params.items()}
    advance(ensemble, 1)
    for name, p in ensemble.params.items():
        g = p.grad
        wanted = before[name] * (1 - 0.01 * 0.1) - 0.01 * g / (g.abs() + 1e-8)
        torch.testing.assert_close(p.detach(), wanted, rtol=1e-4, atol=1e-6)


# ---- Learning rates --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [math.nan, math.inf, -1e-4, None, "1e-4"])
def test_a_learning_rate_that_is_none_is_refused_before_training(monkeypatch, rate):
    def learning_rate(trajectory, update, updates):  # of the last N only
        return rate if (update, updates) == (30, 50) else 0.1 / updates

    monkeypatch.setattr(UrnTrajectory, "learning_rate", learning_rate)
    told = r"learning_rate\(\) must be .* is " + re.escape(repr(rate)) + " at update 30"
    with pytest.raises(ValueError, match=told) as error:
        harness.planned(STUDY, small(tasks=(4,), steps=(20, 50)))
    assert error.value.__notes__ == ["in cell D4_N50 (seed 0), after step 0"]


@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_groups_of_parameters_keep_the_ratio_of_their_rates_under_a_schedule(monkeypatch, kind):
    """Also where the first rate is not the highest, and where rates are tensors, as on a GPU."""
    highest = []

    def optimizer(trajectory, params, lr):
        highest.append(lr)
        norms = [p for name, p in params.items() if "norm" in name]
        others = [p for name, p in params.items() if "norm" not in name]
        return torch.optim.SGD([{"params": others}, {"params": norms, "lr": kind(2 * lr)}], lr=kind(lr))

    monkeypatch.setattr(UrnTrajectory, "optimizer", optimizer)
    monkeypatch.setattr(UrnTrajectory, "learning_rate", lambda self, update, n: 0.1 * min(update + 1, n - update) / n)
    ensemble = Ensemble(planned(small()), CPU)
    assert highest == [0.05]
    for rate in (0.01, 0.02, 0.03, 0.04, 0.05, 0.05, 0.04):
        before = {name: p.detach().clone() for name, p in ensemble.params.items()}
        advance(ensemble, 1)
        for name, p in ensemble.params.items():
            wanted = before[name] - (2 if "norm" in name else 1) * rate * p.grad
            torch.testing.assert_close(p.detach(), wanted, rtol=1e-6, atol=1e-7)


def graph_and_eager() -> tuple[Ensemble, Ensemble]:
    """The same model twice."""
    return tuple(Ensemble(planned(small(steps=(150,), lr=0.01)), CPU, rung) for rung in ("captured", "stacked"))


@pytest.mark.parametrize("optimizer", ["AdamW", "NAdam"])
def test_the_updates_that_warm_a_graph_up_are_training(monkeypatch, fake_graphs, optimizer):
    """No optimizer may be reset: NAdam starts at no zeros."""
    kind = {"AdamW": partial(torch.optim.AdamW, fused=True), "NAdam": NotCapturable}[optimizer]
    monkeypatch.setattr(UrnTrajectory, "optimizer", lambda self, params, lr: kind(params.values(), lr=lr))
    graph, eager = graph_and_eager()
    torch.testing.assert_close(advance(graph, 10), advance(eager, 10), rtol=1e-6, atol=0)  # a tensor's rate is float32
    assert [graph.replayed for graph in fake_graphs] == [7] and graph.cursor == eager.cursor == 10


class NotCapturable(torch.optim.NAdam):
    """Whose rate is a number, also in a graph."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        del self.param_groups[0]["capturable"]

    def step(self):
        self.param_groups[0]["capturable"] = False
        super().step()
        del self.param_groups[0]["capturable"]


def test_the_batches_of_every_chunk_reach_the_graph(fake_graphs):
    graph, eager = graph_and_eager()
    torch.testing.assert_close(advance(graph, 100, 20, 30), advance(eager, 100, 20, 30), rtol=1e-5, atol=0)
    assert [graph.replayed for graph in fake_graphs] == [147]


@pytest.mark.parametrize("kind, replayed", [("AdamW", [7]), ("NAdam", [1, 3])])
def test_a_learning_rate_that_changes_reaches_the_graph(monkeypatch, fake_graphs, kind, replayed):
    monkeypatch.setattr(UrnTrajectory, "learning_rate", lambda self, update, updates: 0.01 if update < 4 else 0.1)
    if kind == "NAdam":
        monkeypatch.setattr(UrnTrajectory, "optimizer", lambda self, params, lr: NotCapturable(params.values(), lr=lr))
    graph, eager = graph_and_eager()
    torch.testing.assert_close(advance(graph, 10), advance(eager, 10), rtol=1e-6, atol=0)  # a tensor's rate is float32
    assert [graph.replayed for graph in fake_graphs] == replayed


# ---- Checkpoints -----------------------------------------------------------------------------------------------------


def as_read(state: dict) -> dict:
    """A member's state after it was a file."""
    torch.save(state, buffer := io.BytesIO())
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)


@pytest.mark.parametrize("rung", ["plain", "stacked"])
@pytest.mark.parametrize("model", [experiment.Model, Noisy])
def test_an_ensemble_continues_from_its_state_bit_for_bit(monkeypatch, model, rung):
    monkeypatch.setattr(experiment, "Model", model)
    config = small(tasks=(2, 4), steps=(150,), embedding="permutation")
    whole, first, second = (planned(config)[: 1 + (rung == "stacked")] for _ in range(3))
    uninterrupted = Ensemble(whole, CPU, rung)
    wanted = advance(uninterrupted, 100, 50)
    broken = Ensemble(first, CPU, rung)
    objectives = [advance(broken, 37)]
    for progress, state in zip(second, broken.states(), strict=True):
        progress.step, progress.state = 37, as_read(state)
    continued = Ensemble(second, CPU, rung)
    continued.restore()
    objectives.append(advance(continued, 63, 50))
    assert torch.equal(torch.cat(objectives), wanted)
    torch.testing.assert_close(continued.states(), uninterrupted.states(), rtol=0, atol=0)


@pytest.mark.parametrize("rung", ["plain", "stacked"])
def test_what_a_model_draws_by_itself_is_new_in_every_update_and_depends_on_nothing_else(monkeypatch, rung):
    def loss(trajectory, model, tokens, codes):
        objective = experiment.next_draw_loss(model(tokens[:, :-1], codes), tokens)
        return objective, {"draw": torch.rand(())}

    monkeypatch.setattr(UrnTrajectory, "loss", loss)
    draws = []
    for _ in range(2):
        ensemble = Ensemble(planned(small(tasks=(2, 4)))[: 1 + (rung == "stacked")], CPU, rung)
        torch.rand(3)
        _, reported = ensemble.advance(5, GO_ON)
        draws.append([by_name["draw"] for by_name in reported])
    assert draws[0] == draws[1] and len({x for own in draws[0] for x in own}) == 5 * (1 + (rung == "stacked"))


@pytest.mark.parametrize("rung", ["plain", "stacked"])
def test_buffers_and_what_an_optimizer_holds_are_in_the_state_and_come_back(monkeypatch, rung):
    monkeypatch.setattr(experiment, "Model", Noisy)
    plan, other = (planned(small(tasks=(2, 4)))[: 1 + (rung == "stacked")] for _ in range(2))
    ensemble = Ensemble(plan, CPU, rung)
    advance(ensemble, 7)
    ensemble.optimizer.param_groups[0]["weight_decay"] = 0.5
    ensemble.optimizer.calls = ensemble.model.dropout.calls = 4  # some keep counters as attributes
    for parameter in ensemble.params.values():
        ensemble.optimizer.state[parameter]["calls"] = 3  # some optimizers keep plain numbers
    for member, state in enumerate(ensemble.states()):
        assert state["weights"]["calls"] == 7
        model = plan[member].trajectory.model()
        model.load_state_dict(state["weights"])
        changed = state["changed"]
        assert changed["optimizer", "param_groups", 0, "weight_decay"] == 0.5
        for name, p in model.named_parameters():
            own = changed["optimizer", "state", (name,)]
            assert own["calls"] == 3 and own["step"] == 7 and own["exp_avg"].shape == p.shape
        other[member].step, other[member].state = 7, as_read(state)
    continued = Ensemble(other, CPU, rung)
    continued.restore()
    assert (continued.buffers["calls"] == 7).all() and continued.optimizer.param_groups[0]["weight_decay"] == 0.5
    assert all(continued.optimizer.state[parameter]["calls"] == 3 for parameter in continued.params.values())
    assert continued.optimizer.calls == continued.model.dropout.calls == 4
    torch.testing.assert_close(continued.states(), ensemble.states(), rtol=0, atol=0)


class Normed(experiment.Model):
    """Buffers of several kinds: batch norm, spectral norm (in training a step of a power iteration), a counter."""

    def __init__(self, config: Config):
        super().__init__(config)
        self.norm = torch.nn.BatchNorm1d(config.d_model)
        self.spectral = torch.nn.utils.parametrizations.spectral_norm(torch.nn.Linear(config.n_colors, config.n_colors))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("cache", torch.zeros(3), persistent=False)

    def forward(self, tokens: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        codes = self.norm(codes.flatten(0, 1)).view_as(codes)
        return self.spectral(super().forward(tokens, codes)) / (1 + 0.1 * self.calls)


class Reassigning(experiment.Model):
    """Gives its buffers new tensors."""

    def __init__(self, config: Config):
        super().__init__(config)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(config.n_colors))

    def forward(self, tokens: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        logits = super().forward(tokens, codes)
        if self.training:
            self.calls = self.calls + 1
            self.mean = 0.9 * self.mean + logits.detach().mean((0, 1))
        return logits / (1 + 0.1 * self.calls) + self.mean


def test_buffers_that_are_given_new_tensors_are_in_the_state(monkeypatch):
    monkeypatch.setattr(experiment, "Model", Reassigning)
    plan = planned(small())
    ensemble = Ensemble(plan, CPU)
    advance(ensemble, 7)
    (state,) = ensemble.states()
    model = plan[0].trajectory.model()
    model.load_state_dict(state["weights"])
    assert model.calls == 7 and torch.equal(model.mean, ensemble.model.mean)


class Drawing(experiment.Model):
    """Draws in every way there is."""

    def __init__(self, config: Config):
        super().__init__(config)
        self.own = torch.Generator().manual_seed(5)
        self.drop = torch.nn.Dropout(0.1)

    def forward(self, tokens: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        scale = 1 + random.random() / 10 + np.random.rand() / 10 + torch.rand((), generator=self.own) / 10
        return self.drop(super().forward(tokens, codes)) * scale * torch.empty(1).uniform_(0.9, 1)


class Counting(experiment.Model):
    """Counts in an attribute that is no buffer."""

    def __init__(self, config: Config):
        super().__init__(config)
        self.calls, self.share = 0, 1.0

    def forward(self, tokens: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.calls, self.share = self.calls + 1, self.share * 0.99
        return super().forward(tokens, codes) * self.share / (1 + self.calls / 100)


def adamw(params: dict, lr: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params.values(), lr=lr)


class Lookahead(torch.optim.Optimizer):
    """A second optimizer in an attribute, slow weights in the state, and a counter in an attribute."""

    def __init__(self, params: dict, lr: float):
        super().__init__(params.values(), {"lr": lr})
        self.fast, self.made = {"first": [torch.optim.Adam(params.values(), lr=lr)]}, 0

    def step(self):
        self.fast["first"][0].step()
        self.made += 1
        for p in self.param_groups[0]["params"]:
            slow = self.state[p].setdefault("slow", p.detach().clone())
            if self.made % 3 == 0:
                p.data.copy_(slow.lerp_(p.detach(), 0.5))


class Split:
    """No torch.optim.Optimizer itself, but two of them in attributes, each with its part of the parameters."""

    def __init__(self, params: dict, lr: float):
        matrices = [p for p in params.values() if p.ndim > 1]
        self.momentum = torch.optim.SGD(matrices, lr=lr, momentum=0.9)
        self.others = torch.optim.RMSprop([p for p in params.values() if p.ndim <= 1], lr=2 * lr)

    def step(self):
        self.momentum.step()
        self.others.step()


HOLD = [
    (Normed, adamw),
    (Reassigning, adamw),
    (Drawing, adamw),
    (Counting, adamw),
    (experiment.Model, Lookahead),
    (experiment.Model, Split),
]


@pytest.mark.parametrize("model, optimizer", HOLD, ids=lambda part: part.__name__)
def test_whatever_models_and_optimizers_hold_survives_kills_and_company(tmp_path, monkeypatch, model, optimizer):
    """Continued after any number of updates, alone or beside others, it ends with the same bytes."""
    monkeypatch.setattr(experiment, "Model", model)
    monkeypatch.setattr(UrnTrajectory, "optimizer", lambda self, params, lr: optimizer(params, lr))
    monkeypatch.setattr(UrnTrajectory, "learning_rate", lambda self, update, n: 0.02 * min(1, update / 20))
    arguments = "--n_layers 1 --d_model 16 --seq_len 3 --n_test 4 --tasks 2 3 --steps 40 --device cpu --out_dir".split()
    assert experiment.main([*arguments, str(tmp_path / "whole")]) == 0
    advance, stops = Ensemble.advance, [7, 20, 33]

    def interrupted(ensemble, n, stop):
        if stops and ensemble.step < stops[0] <= ensemble.step + n:
            told = advance(ensemble, stops.pop(0) - ensemble.step, stop)
            stop.value = True
            os.kill(os.getpid(), signal.SIGTERM)
            return told
        return advance(ensemble, n, stop)

    with monkeypatch.context() as patch:
        patch.setattr(Ensemble, "advance", interrupted)
        while stops:
            assert experiment.main([*arguments, str(tmp_path / "broken"), "--plain"]) == 143
    assert experiment.main([*arguments, str(tmp_path / "broken")]) == 0
    whole, broken = ((tmp_path / name / "final_info.json").read_bytes() for name in ("whole", "broken"))
    assert whole == broken


def test_a_second_optimizer_follows_the_schedule(monkeypatch):
    monkeypatch.setattr(UrnTrajectory, "optimizer", lambda self, params, lr: Split(params, lr))
    monkeypatch.setattr(UrnTrajectory, "learning_rate", lambda self, update, n: 0.1 if update == 5 else 0.01)
    ensemble = Ensemble(planned(small()), CPU)
    for rate in (*5 * [0.01], 0.1, 0.01):
        advance(ensemble, 1)
        rates = [kept.param_groups[0]["lr"] for kept in (ensemble.optimizer.momentum, ensemble.optimizer.others)]
        assert rates == pytest.approx([rate, 2 * rate])


def scheduled(params: dict, lr: float, keeps: bool) -> torch.optim.Optimizer:
    """A warm-up as PyTorch has it, which sets the rate to 0 as soon as it is made."""
    optimizer = torch.optim.AdamW(params.values(), lr=lr)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, step / 100))
    optimizer.scheduler = scheduler if keeps else None
    return optimizer


@pytest.mark.parametrize("keeps", [True, False])
def test_a_scheduler_of_pytorch_is_refused_and_does_not_train_at_its_first_rate(monkeypatch, keeps):
    monkeypatch.setattr(UrnTrajectory, "optimizer", lambda self, params, lr: scheduled(params, lr, keeps))
    with pytest.raises(RuntimeError, match=r"a schedule belongs in learning_rate\(\)"):
        Ensemble(planned(small()), CPU)


def test_what_optimizer_and_loss_return_is_told_apart(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(UrnTrajectory, "optimizer", lambda self, params, lr: (torch.optim.SGD(params.values(), lr), None))
        with pytest.raises(TypeError, match=r"^optimizer\(\) must return an optimizer, not \(SGD"):
            Ensemble(planned(small()), CPU)
    monkeypatch.setattr(UrnTrajectory, "loss", lambda self, model, tokens, codes: model(tokens, codes).mean())
    with pytest.raises(
        TypeError, match=r"^loss\(\) must return the objective and a dict of what to report, not tensor"
    ):
        advance(Ensemble(planned(small()), CPU), 1)


def hidden(params: dict, lr: float) -> torch.optim.Optimizer:
    """Keeps a second optimizer in a closure, of parameters that the first one has as well. It steps from the sixth
    update on."""
    first, second, calls = torch.optim.SGD(params.values(), lr=lr), torch.optim.Adam(params.values(), lr=lr), 0

    def late(*_):
        nonlocal calls
        calls += 1
        if calls > 5:
            second.step()

    first.register_step_post_hook(late)
    return first


class Lookahead(torch.optim.SGD):
    """Slow weights by parameter and in a list, made at the third update; a rate that it finds by itself."""

    def __init__(self, params: dict, lr: float):
        super().__init__(params.values(), lr=lr)
        self.slow, self.means, self.calls = {}, None, 0

    @torch.no_grad()
    def step(self):
        super().step()
        self.calls += 1
        parameters = self.param_groups[0]["params"]
        if self.calls == 3:
            self.slow, self.means = {p: p.clone() for p in parameters}, [p.mean() for p in parameters]
        for i, p in enumerate(parameters if self.calls > 3 else ()):
            self.slow[p].lerp_(p, 0.5)
            self.means[i] = 0.9 * self.means[i] + 0.1 * p.mean()
            p.lerp_(self.slow[p], 0.5).add_(0.01 * self.means[i])


class Wrapper:
    """No Optimizer, and has one."""

    def __init__(self, params: dict, lr: float):
        self.inner, self.calls, self.noise = torch.optim.AdamW(params.values(), lr=lr), 0, [np.random.default_rng(3)]

    def step(self):
        self.calls += 1
        self.inner.step()
        for p in self.inner.param_groups[0]["params"]:
            p.data.add_(0.001 * self.noise[0].normal() / self.calls)


class Sparse(torch.optim.SparseAdam):
    """Refuses gradients that are not sparse."""

    def step(self):
        for p in self.param_groups[0]["params"]:
            p.grad = p.grad.to_sparse()
        super().step()


class Holding(experiment.Model):
    """Changes what it holds in every way there is."""

    def __init__(self, config: Config):
        super().__init__(config)
        self.flag, self.scale, self.seen, self.by_name = False, torch.ones(()), [], {"calls": 0, "sums": [0.0]}
        self.draws = [random.Random(1), np.random.default_rng(2), np.random.RandomState(3), torch.Generator()]
        self.helper = SimpleNamespace(calls=0, pair=(1, 2.0))
        self.register_buffer("cache", torch.zeros(config.n_colors), persistent=False)
        calls = 0

        def count(*_):
            nonlocal calls
            calls += 1
            self.helper.calls = calls

        self.register_forward_hook(count)

    def forward(self, tokens: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        logits = super().forward(tokens, codes)
        if self.training:
            self.flag, self.scale = not self.flag, 0.9 * self.scale + 0.2
            self.seen = [*self.seen[-3:], logits.detach().mean()]
            self.by_name["calls"] += 1
            self.by_name["sums"].append(float(logits.detach().sum()))
            self.helper.pair = (self.helper.pair[1], self.helper.pair[0] + 1)
            self.cache += logits.detach().mean((0, 1))
        own, numpys, older, torchs = self.draws
        noise = own.random() + numpys.random() + older.rand() + torch.rand((), generator=torchs)
        known = sum(self.by_name["sums"]) + sum(self.seen) + self.helper.calls + self.helper.pair[0]
        return logits * self.scale * (1.1 if self.flag else 0.9) + self.cache * 0.01 * (noise + math.sin(known))


class Counted(dict):
    """A dict with a counter beside its items."""

    calls = 0


class Slots:
    """Counts in a slot, beside what cannot be saved."""

    __slots__ = ("calls", "rule")

    def __init__(self):
        self.calls, self.rule = 0, lambda x: x / (1 + 0.1 * self.calls)

    def __call__(self, x):
        self.calls += 1
        return self.rule(x)


class Sharing(experiment.Model):
    """What two places hold, what has no tensor at first or another shape later, and what is beside the modules."""

    def __init__(self, config: Config):
        super().__init__(config)
        self.numpy, self.python = np.random.rand(), random.random()
        self.norm = torch.nn.utils.spectral_norm(torch.nn.Linear(config.n_colors, config.n_colors))
        self.register_buffer("mean", None)
        self.register_buffer("seen", torch.zeros(1, config.n_colors))
        self.counts, self.slots, self.teacher = {"calls": 0}, Slots(), [torch.nn.Linear(config.n_colors, 1)]
        self.views = list(self.seen.unbind(1))
        self.counted, self.ordered = Counted(), OrderedDict()
        self.bar, self.log = tqdm(total=100, disable=True), logging.getLogger("a study's")
        self.mixed = [self.decoder.positions]
        counts = self.counts
        self.register_forward_hook(lambda *_: counts.update(calls=counts["calls"] + 1))

    def forward(self, tokens: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        logits = self.norm(super().forward(tokens, codes))
        new = logits.detach().mean((0, 1))
        if self.training:
            self.mean = new if self.mean is None else 0.9 * self.mean + 0.1 * new
            self.seen = torch.cat([self.seen, new[None]])
            self.counted.calls += 1
            self.ordered[f"call {len(self.ordered)}"] = float(new.sum())
            self.mixed.append(new.mean())
            self.bar.update(1)
            for p in self.teacher[0].parameters():
                p.data.mul_(0.9)
        extra = self.counts["calls"] * self.numpy + self.python + self.teacher[0](new) + self.seen.sum(0)
        extra = extra + self.counted.calls + sum(self.ordered.values()) + sum(self.mixed[1:])
        return self.slots(logits + self.mean + 0.1 * extra)


class OnParameters(torch.optim.SGD):
    """Its state is on the parameters, two of which are frozen in turn; a hook of one of them counts."""

    def __init__(self, params: dict, lr: float):
        super().__init__(params.values(), lr=lr)
        self.calls, counts = 0, {"calls": 0}
        first = next(iter(params.values()))

        def growing(grad):
            counts["calls"] += 1
            return grad * (1 + 0.1 * counts["calls"])

        first.register_hook(growing)

    @torch.no_grad()
    def step(self):
        super().step()
        self.calls += 1
        parameters = self.param_groups[0]["params"]
        for p in parameters:
            p.speed = 0.9 * getattr(p, "speed", 0.0) + p.sum()
            p.sub_(1e-3 * p.speed)
        parameters[-1].requires_grad_(self.calls % 2 == 0)
        parameters[-1].grad = None


KEEPERS = {"on parameters": lambda params, lr: OnParameters(params, lr)}
KEEPERS |= {"hidden": hidden, "slow weights": Lookahead, "a wrapper": Wrapper}
KEEPERS["sparse"] = lambda params, lr: Sparse(params.values(), lr=lr)


@pytest.mark.parametrize("updates", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("what", [*KEEPERS, Holding, Sharing])
def test_whatever_model_and_optimizer_hold_is_in_the_state(monkeypatch, what, updates):
    """Also what is made later than at the start; nothing that is continued depends on when it was interrupted."""
    if isinstance(what, type):
        monkeypatch.setattr(experiment, "Model", what)
    else:
        monkeypatch.setattr(UrnTrajectory, "optimizer", lambda self, params, lr: KEEPERS[what](params, lr))
    (whole,), (part,), (rest,) = (planned(small()) for _ in range(3))
    uninterrupted, interrupted = Ensemble([whole], CPU), Ensemble([part], CPU)
    advance(uninterrupted, 10)
    advance(interrupted, updates)
    rest.step, (rest.state,) = updates, map(as_read, interrupted.states())
    continued = Ensemble([rest], CPU)
    continued.restore()
    torch.testing.assert_close(continued.states()[0]["weights"], rest.state["weights"], rtol=0, atol=0)
    advance(continued, 10 - updates)
    torch.testing.assert_close(continued.states(), uninterrupted.states(), rtol=0, atol=0)


class Pair(NamedTuple):
    calls: int
    total: float


def named_tuple(model):
    model.kept = Pair(model.kept.calls + 1, 2.0) if hasattr(model, "kept") else Pair(0, 1.0)
    return 1 + model.kept.calls


def python_generator(model):
    if not hasattr(model, "kept"):
        model.kept = iter_of_numbers()
    return next(model.kept)


def iter_of_numbers():
    yield from range(1, 1000)


def removed(model):
    if hasattr(model, "extra"):
        del model.extra
        return 2.0
    return 1.0


def removed_late(model):
    model.calls = getattr(model, "calls", 0) + 1
    if model.calls == 8:
        del model.extra
    return 1.0


def counting_function(model):
    calls = model.kept = getattr(model, "kept", None) or partial(lambda calls: calls.append(1) or len(calls), [])
    return calls()


@pytest.mark.parametrize("way", [named_tuple, python_generator, removed, removed_late, counting_function])
def test_what_does_not_come_back_is_refused_or_comes_back(tmp_path, monkeypatch, capsys, way):
    """Before anything is trained, by a copy that is continued."""

    class Model(experiment.Model):
        def __init__(self, config: Config):
            super().__init__(config)
            self.extra = 1
            way(self) if way.__name__[:7] != "removed" else None

        def forward(self, tokens: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
            return super().forward(tokens, codes) / (way(self) if self.training else 1)

    monkeypatch.setattr(experiment, "Model", Model)
    arguments = "--n_layers 1 --d_model 16 --seq_len 4 --n_test 4 --tasks 2 --steps 10 --device cpu --out_dir".split()
    status = experiment.main([*arguments, str(tmp_path / "run")])
    err = capsys.readouterr().err
    if way is counting_function:
        assert (status, err) == (0, "")
    else:
        assert status == 1 and re.search("(changes|is removed) in training|a checkpoint does not hold all", err), err
        assert f"in cell D2_N10 (seed 0), after step {10 * (way is removed_late)}" in err


def test_a_restored_ensemble_shares_nothing_with_its_checkpoint():
    (progress,) = planned(small())
    ensemble = Ensemble([progress], CPU)
    advance(ensemble, 3)
    progress.step, (progress.state,) = 3, ensemble.states()
    before = as_read(progress.state)
    continued = Ensemble([progress], CPU)
    continued.restore()
    advance(continued, 3)
    torch.testing.assert_close(progress.state, before, rtol=0, atol=0)


def test_a_parameter_that_is_replaced_is_refused(monkeypatch):
    class Replacing(experiment.Model):
        def forward(self, tokens, codes):
            self.decoder.norm.weight = torch.nn.Parameter(self.decoder.norm.weight.detach() * 0.9)
            return super().forward(tokens, codes)

    monkeypatch.setattr(experiment, "Model", Replacing)
    with pytest.raises(ValueError, match="must keep its parameters: decoder.norm.weight"):
        advance(Ensemble(planned(small()), CPU), 1)


def half(params: dict, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([p for name, p in params.items() if "mlp" not in name], lr=lr)


def with_others(params: dict, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([*params.values(), torch.zeros(3, requires_grad=True)], lr=lr)


class Keeping(torch.optim.SGD):
    """Keeps what a checkpoint cannot hold."""

    def __init__(self, params: dict, lr: float, place: str, value):
        super().__init__(params.values(), lr=lr)
        self.place, self.value = place, value

    def step(self):
        super().step()
        (p, *_) = self.param_groups[0]["params"]
        if self.place == "state":
            self.state[p]["history"] = self.value
        else:
            self.history = copy.deepcopy(self.value)


def keeping(place: str, value):
    return lambda params, lr: Keeping(params, lr, place, value)


CHANGES = "optimizer.state.decoder.positions.history changes in training"
ELSEWHERE = {}


def elsewhere(params: dict, lr: float) -> torch.optim.Optimizer:
    """Keeps a second optimizer in a module, where nobody looks."""
    first, ELSEWHERE["second"] = torch.optim.SGD(params.values(), lr=lr), torch.optim.Adam(params.values(), lr=lr)
    first.register_step_post_hook(lambda *_: ELSEWHERE["second"].step())
    return first


REFUSED = {
    "a parameter in no group": (half, "decoder.blocks.0.mlp_norm.weight is in none"),
    "parameters of something else": (with_others, "of the model alone"),
    "an optimizer that nobody finds": (elsewhere, "keep the Adam that makes steps too"),
    "a deque in the state": (keeping("state", deque([torch.zeros(2)])), CHANGES),
    "a function in the state": (keeping("state", print), CHANGES),
    "an object that is new": (keeping("attribute", SimpleNamespace(calls=1)), "optimizer.history changes in training"),
    "a generator that is new": (keeping("attribute", random.Random(3)), "optimizer.history changes in training"),
    "a set that is new": (keeping("attribute", {1, 2}), "optimizer.history changes in training"),
    "an array in the state": (keeping("state", np.zeros(2)), CHANGES),
    "LBFGS": (lambda params, lr: torch.optim.LBFGS(params.values(), lr=lr), "closure"),
    "no optimizer": (lambda params, lr: None, "must return an optimizer, not None"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_a_checkpoint_cannot_hold_is_refused_when_training_starts(monkeypatch, what):
    optimizer, told = REFUSED[what]
    monkeypatch.setattr(UrnTrajectory, "optimizer", lambda self, params, lr: optimizer(params, lr))
    with pytest.raises((ValueError, TypeError)) as error:
        advance(Ensemble(planned(small()), CPU), 1)
    assert told in str(error.value) + "".join(getattr(error.value, "__notes__", [])), str(error.value)


def test_a_frozen_parameter_needs_no_group(monkeypatch):
    def model(trajectory):
        model = experiment.Model(trajectory.config)
        model.decoder.positions.requires_grad_(False)
        return model

    def optimizer(trajectory, params, lr):
        return torch.optim.AdamW([p for p in params.values() if p.requires_grad], lr=lr)

    monkeypatch.setattr(UrnTrajectory, "model", model)
    monkeypatch.setattr(UrnTrajectory, "optimizer", optimizer)
    for rung in ("plain", "stacked"):
        ensemble = Ensemble(planned(small(tasks=(2, 4)))[: 1 + (rung == "stacked")], CPU, rung)
        before = ensemble.params["decoder.positions"].clone()
        advance(ensemble, 3)
        assert torch.equal(ensemble.params["decoder.positions"], before)
        assert "decoder.positions" in ensemble.states()[0]["weights"]


# ---- Faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rung", ["plain", "stacked"])
def test_a_loss_that_is_not_finite_names_d_seed_and_step(rung):
    config = small(tasks=(2, 4) if rung == "stacked" else (4,), steps=(50,))
    ensemble = Ensemble(planned(config), CPU, rung)
    advance(ensemble, 7)
    ensemble.params["decoder.norm.weight"].data.view(-1, 16)[-1] = math.nan  # of the last member
    with pytest.raises(harness.NotFiniteError, match="D=4, seed=0, step=8$"):
        advance(ensemble, 20)


def test_messages_name_the_metric(monkeypatch):
    def loss(trajectory, model, tokens, codes):
        objective = experiment.next_draw_loss(model(tokens[:, :-1], codes), tokens)
        return objective, {"loss": objective, "ratio": objective / 0}

    monkeypatch.setattr(UrnTrajectory, "loss", loss)
    with pytest.raises(harness.NotFiniteError, match="^ratio is not finite at D=2, seed=0, step=1"):
        advance(Ensemble(planned(small()), CPU), 3)
    (progress,) = planned(small())
    with pytest.raises(harness.NotFiniteError, match=r"^what is observed \(P\) is not finite at D=2, seed=0, step=0"):
        progress.measure({"P": torch.tensor([math.nan])})
    long = {name: 1.0 for name in "abcdefghijklmnopqrstuvwxyz" * 3}
    with pytest.raises(TypeError, match=r"reference.orbit.kl must be numbers, text or None, is tensor"):
        harness.plain({"reference": {"others": long, "orbit": {"kl": torch.ones(())}}})


def test_an_optimizer_with_a_hook_is_never_stacked(monkeypatch):
    """What a hook does with the elements of a tensor is not known."""

    def optimizer(trajectory, params, lr):
        made = torch.optim.AdamW(params.values(), lr=lr)
        made.register_step_pre_hook(lambda *_: None)
        return made

    for hooked in (optimizer, lambda trajectory, params, lr: Wrapper(params, lr)):
        monkeypatch.setattr(UrnTrajectory, "optimizer", hooked)
        groups = harness.plan_groups(planned(small(tasks=(2, 3))), torch.device("cuda"))
        assert [(len(group), rung) for group, rung in groups] == 2 * [(1, "plain")]


def test_what_is_observed_is_not_measured_if_it_is_not_a_number():
    (progress,) = planned(small(tasks=(4,), seed=3))
    progress.step = 9
    observed = torch.full((1, 3, 4), 0.25)
    observed[0, 1, 2] = math.nan
    for values in (observed, {"first": observed.clone().fill_(1), "second": observed}):
        with pytest.raises(harness.NotFiniteError, match=r"D=4, seed=3, step=9\n(.*\n)?in cell D4_N10"):
            progress.measure(values)
    assert progress.points == []


def test_a_fault_names_its_own_model_and_not_the_first_ones_of_its_ensemble(monkeypatch):
    plan = planned(small(seeds=6))
    last = plan[-1]
    last.recent["loss"] = [1.0]
    with pytest.raises(IndexError) as error, harness.faults_name(plan):
        last.measure({"P": torch.zeros(3)})
    assert error.value.__notes__ == ["in cell D2_N10 (seed 5), after step 0"]
    model = UrnTrajectory.model
    monkeypatch.setattr(UrnTrajectory, "model", lambda self: model(self) if self.seed < 5 else 1 / 0)
    with pytest.raises(ZeroDivisionError) as error, harness.faults_name(plan):
        Ensemble(plan, CPU, "stacked")
    assert error.value.__notes__ == ["in cell D2_N10 (seed 5), after step 0"]


# ---- Memory ----------------------------------------------------------------------------------------------------------


def test_an_ensemble_is_freed_as_soon_as_nothing_refers_to_it():
    """A graph that waits for the garbage collector may be destroyed while the next one is captured, which fails."""
    ensemble = Ensemble(planned(small()), CPU, "stacked")
    advance(ensemble, 1)
    ensemble.observe(0)
    alive = weakref.ref(ensemble)
    gc.disable()
    try:
        del ensemble
        assert alive() is None
    finally:
        gc.enable()


@pytest.fixture
def gpu_memory(monkeypatch, fake_graphs) -> dict[str, int]:
    """A GPU that holds 1000 bytes of others. A model takes 60 bytes and 100 from its fourth update on, when the graph
    is captured, and 50 more while it is observed. Set its `free` bytes."""
    memory = {"free": 0, "peak": 0}

    class Measured(Ensemble):
        def take(self, more):
            each = 100 if self.step >= min(4, self.last) else 60
            memory["peak"] = max(memory["peak"], 1000 + each * len(self.group) + more)

        def advance(self, n, stop):
            told = super().advance(n, stop)
            self.take(0)
            return told

        def observe(self, member):
            self.take(50)
            return super().observe(member)

    monkeypatch.setattr(harness, "Ensemble", Measured)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 1000)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: memory.update(peak=1000))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: memory["peak"])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (memory["free"], 10**12))
    return memory


@pytest.mark.parametrize("updates", [2, 10])
def test_as_many_models_train_together_as_memory_has_room_for(gpu_memory, updates):
    """By the measured peak of one and of two, with a fifth left free."""
    plan = planned(small(seeds=6, steps=(updates,)))
    for free, members in {0: 1, 150 / 0.8: 1, 249 / 0.8: 1, 251 / 0.8: 2, 470 / 0.8: 4, 10**6: 7999}.items():
        gpu_memory["free"] = int(free)
        assert harness.members_that_fit(plan, CPU) == members
    assert all(progress.step == 0 and not progress.recent for progress in plan)


GPU = torch.device("cuda")


@pytest.fixture
def four_fit(monkeypatch):
    monkeypatch.setattr(harness, "members_that_fit", lambda group, device: 4)


def grouped(plan: list[harness.Progress]) -> list[tuple[list[str], bool]]:
    """What trains together on a GPU, by its name, and from which rung on."""
    groups = harness.plan_groups(plan, GPU, "captured")
    return [([progress.trajectory.name for progress in group], rung) for group, rung in groups]


def test_ensembles_are_split_when_memory_is_short(monkeypatch, four_fit, capsys):
    plan = planned(small(tasks=(2, 4, 8), seeds=2))
    names = [progress.trajectory.name for progress in plan]
    assert grouped(plan) == [(names[:4], "captured"), (names[4:], "captured")]
    assert "6 models of one shape train in groups of 4" in capsys.readouterr().out
    monkeypatch.setattr(harness, "members_that_fit", lambda group, device: 7)
    assert grouped(plan) == [(names, "captured")]
    assert capsys.readouterr().out == ""
    monkeypatch.setattr(harness, "members_that_fit", lambda group, device: 1)
    assert grouped(plan) == [([name], "captured") for name in names]
    for device, rung in ((CPU, "captured"), (GPU, "plain")):
        assert harness.plan_groups(plan, device, rung) == [([progress], "plain") for progress in plan]


ALONE = [(["D=2, seed=0"], "captured"), (["D=4, seed=0"], "captured")]


def test_models_are_stacked_only_if_their_shape_and_their_optimizer_allow_it(monkeypatch, four_fit):
    config = small(tasks=(2, 4))
    assert grouped(planned(config)) == [(["D=2, seed=0", "D=4, seed=0"], "captured")]
    assert grouped(planned(config, shape=None)) == ALONE

    class Muon(torch.optim.SGD):
        """By its own update, whatever it derives from."""

    monkeypatch.setattr(UrnTrajectory, "optimizer", lambda self, params, lr: Muon(params.values(), lr=lr))
    assert grouped(planned(config)) == [(names, "plain") for names, _ in ALONE]


class Other(UrnTrajectory):
    """A trajectory whose methods may do something else."""


DIFFERENT = [{"clip_norm": 1.0}, {"shape": "wider"}, {"window": 50}, {"measured": (5,)}]
DIFFERENT += [{"cells": {5: "D4_N5", 10: "D4_N10"}}, "step", "rates", "class"]


@pytest.mark.parametrize("settings", DIFFERENT, ids=str)
def test_models_that_differ_in_how_they_are_trained_do_not_train_together(monkeypatch, four_fit, settings):
    first, second = planned(small(tasks=(2, 4)))
    if settings == "step":
        second.step = 5
    elif settings == "rates":
        monkeypatch.setattr(UrnTrajectory, "learning_rate", lambda self, update, n: 0.1 * self.n_tasks * update / n)
    elif settings == "class":
        second.trajectory = Other(**vars(second.trajectory))
    else:
        second.trajectory = replace(second.trajectory, **settings)
    assert grouped([first, second]) == ALONE


# ---- On a GPU --------------------------------------------------------------------------------------------------------

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


@needs_gpu
@pytest.mark.parametrize("embedding", ["gaussian", "permutation", "fixed"])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_gpu_a_member_does_not_depend_on_its_ensemble(embedding, precision):
    config = Config(tasks=(2, 4), steps=(150,), n_test=8, embedding=embedding, precision=precision, device="cuda")
    gpu = torch.device("cuda", 0)
    together = advance(Ensemble(planned(config), gpu, "captured"), 100, 50)
    tolerance = 1e-3 if precision == "float32" else 0.1
    for member in range(2):
        alone = advance(Ensemble(planned(config)[member : member + 1], gpu, "captured"), 100, 50)
        torch.testing.assert_close(alone[:, 0], together[:, member], rtol=tolerance, atol=tolerance)


@needs_gpu
def test_gpu_graph_replays_the_same_update_as_eager_steps_and_continues_from_its_state():
    config, gpu = Config(tasks=(2, 4), steps=(60,), n_test=8, device="cuda"), torch.device("cuda", 0)
    graph, eager = (Ensemble(planned(config), gpu, rung) for rung in ("captured", "stacked"))
    torch.testing.assert_close(advance(graph, 60), advance(eager, 60), rtol=1e-4, atol=1e-4)
    for member in range(2):
        torch.testing.assert_close(graph.observe(member), eager.observe(member), rtol=1e-3, atol=1e-4)
    plan, half = planned(config), Ensemble(planned(config), gpu, "captured")
    advance(half, 30)
    for progress, state in zip(plan, half.states(), strict=True):
        progress.step, progress.state = 30, state
    continued = Ensemble(plan, gpu, "captured")
    continued.restore()
    torch.testing.assert_close(advance(continued, 30), advance(half, 30), rtol=1e-4, atol=1e-4)


@needs_gpu
def test_gpu_trains_without_host_synchronization():
    config = Config(tasks=(2, 4), steps=(60,), n_test=8, device="cuda")
    ensemble = Ensemble(planned(config), torch.device("cuda", 0), "captured")
    ensemble.load(0)
    for _ in range(5):  # warms up, and captures the graph
        ensemble.replay()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(10):
            ensemble.replay()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_process_that_trains_on_a_cpu_does_not_ask_the_gpu_beside_it(tmp_path, monkeypatch):
    def ask():
        raise RuntimeError("CUDA error: initialization error")  # what a forked process is answered

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch._C, "_accelerator_getAccelerator", lambda: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "current_stream", ask)
    with pytest.raises(RuntimeError, match="initialization"):
        advance(Ensemble(planned(Config(tasks=(2,), steps=(20,), n_test=4, seq_len=4)), torch.device("cpu")), 1)
    few = ["--tasks", "2", "--steps", "20", "--n_test", "4", "--seq_len", "4", "--device", "cpu"]
    assert harness.run_study(STUDY, [*few, "--out_dir", str(tmp_path / "run")]) == 0


def edited(**parts):
    """The study with other parts."""
    return replace(STUDY, **parts)


def test_a_plan_that_refuses_the_configuration_is_bad_input_and_leaves_nothing(tmp_path, capsys):
    def plan(config):
        harness.require(config, "tasks", False, "fewer")

    assert harness.run_study(edited(plan=plan), ["--out_dir", str(tmp_path / "run"), "--tasks", "4"]) == 2
    assert capsys.readouterr().err == "experiment.py: --tasks 4: must be fewer\n"
    assert not list(tmp_path.iterdir())


def test_a_plan_that_fails_touches_no_folder_of_another_run(tmp_path, capsys):
    """It has not been opened, so another process may be running in it."""
    (tmp_path / "checkpoint").mkdir()
    files = [tmp_path / name for name in ("checkpoint/fingerprint.json", ".final_info.json.123.tmp")]
    for file in files:
        file.write_text("{}")
    assert harness.run_study(edited(plan=lambda config: []), ["--out_dir", str(tmp_path)]) == 1
    assert "at least one trajectory" in capsys.readouterr().err
    assert all(file.exists() for file in files)


def test_what_a_worker_is_given_can_be_sent_where_processes_are_not_forked(tmp_path):
    config = Config(n_layers=1, d_model=16, tasks=(4,), steps=(10,))
    run = harness.RunDirectory(tmp_path / "run", STUDY, config, CPU)
    run.open(planned(config), restarted=False)
    there, progress = pickle.loads(pickle.dumps((run, planned(config)[0])))
    assert (run.lock is not None) == (harness.fcntl is not None)
    assert there.lock is None and there.fingerprint == run.fingerprint
    assert (progress.trajectory.stem, progress.trajectory.config) == ("D4_N10_s0", config)
    run.close()


@pytest.mark.parametrize("decorated", [False, True])
def test_a_fault_names_the_method_below_its_decorators(decorated):
    class Returning(UrnTrajectory):
        def observe(self, model, update):
            return [1.0]

        if decorated:
            observe = torch.no_grad()(observe)

    (progress,) = planned(Config(n_layers=1, d_model=16, tasks=(4,), steps=(10,), n_test=4))
    settings = {field.name: getattr(progress.trajectory, field.name) for field in fields(progress.trajectory)}
    progress.trajectory = Returning(**settings)
    with pytest.raises(AttributeError) as error:
        progress.measure(progress.trajectory.observe(None, 10))
    assert re.match(r"test_training.py line \d+: .*Returning.observe\(\)", error.value.__notes__[0])


def test_few_updates_whose_highest_rate_is_another_one_are_trained_alone(monkeypatch):
    """A group of parameters with a rate of its own would be scaled by the highest rate of many updates."""
    monkeypatch.setattr(UrnTrajectory, "learning_rate", lambda self, update, updates: 0.1 * min(1, (update + 1) / 15))
    plan = planned(small(steps=(10, 20, 30)))
    assert [list(progress.trajectory.cells) for progress in plan] == [[10], [20], [30]]
    monkeypatch.setattr(UrnTrajectory, "learning_rate", lambda self, update, updates: 0.1 * min(1, (update + 1) / 5))
    assert [list(progress.trajectory.cells) for progress in planned(small(steps=(10, 20, 30)))] == [[10, 20, 30]]


def test_a_plan_has_every_cell_once_per_seed_and_is_not_empty():
    config = Config(n_layers=1, d_model=16, tasks=(4,), steps=(10, 20))
    with pytest.raises(ValueError, match="at least one trajectory"):
        harness.planned(edited(plan=lambda config: []), config)
    twice = [
        lambda config: experiment.plan(config) + [replace(experiment.plan(config)[0], cells={10: "D4_N10", 30: "new"})],
        lambda config: [replace(experiment.plan(config)[0], cells={10: "same", 20: "same"})],
    ]
    for plan in twice:
        with pytest.raises(ValueError, match="(D4_N10|same)_s0 is there twice"):
            harness.planned(edited(plan=plan), config)


@pytest.mark.parametrize("cells", [[{"a": "text"}], [{"a": [1.0, 2.0]}], [{"a": 1.0}, {}], [{}, {"a": 1.0}], [{}]])
def test_a_headline_that_is_no_number_or_not_of_every_seed_is_refused(cells):
    with pytest.raises(TypeError, match="headline a of D4_N10 must be a number"):
        harness.summarize("D4_N10", cells, ("a",))


def test_a_member_that_has_ended_cannot_fail_the_others():
    first, second = planned(Config(n_layers=1, d_model=16, tasks=(2, 4), steps=(50,), n_test=4, seq_len=4))
    ensemble = Ensemble([first, second], CPU, "stacked")
    ensemble.params["decoder.norm.weight"].data[0] = math.nan
    first.cells = {"D2_N50": {}}
    ensemble.advance(5, GO_ON)
    first.cells = {}
    with pytest.raises(harness.NotFiniteError, match="D=2, seed=0, step=6$"):
        ensemble.advance(5, GO_ON)


def test_a_parameter_that_has_no_optimizer_state_yet_has_none_after_continuing():
    (progress,) = planned(Config(n_layers=1, d_model=16, tasks=(2,), steps=(50,), n_test=4, seq_len=4))
    ensemble = Ensemble([progress], CPU)
    ensemble.advance(5, GO_ON)
    p = ensemble.params["decoder.positions"]
    del ensemble.optimizer.state[p]
    (progress.state,) = ensemble.states()
    progress.step = 5
    continued = Ensemble([progress], CPU)
    continued.restore()
    assert not continued.optimizer.state[continued.params["decoder.positions"]]
    assert torch.equal(continued.params["decoder.positions"], p)


def test_where_two_models_do_not_fit_they_train_alone(monkeypatch):
    def full(*_):
        raise torch.cuda.OutOfMemoryError("edited")

    monkeypatch.setattr(torch.cuda, "memory_allocated", full)
    plan = planned(Config(n_layers=1, d_model=16, tasks=(2, 4), steps=(50,), n_test=4))
    assert harness.members_that_fit(plan, CPU) == 1
