"""The ladder of a GPU's groups, on a CPU and with graphs that are fakes: every rung is broken on purpose."""

from dataclasses import replace

import experiment
import harness
from experiment import STUDY, Config, UrnTrajectory
from harness import Ensemble

import pytest
import torch
from training import CPU, GO_ON, nowhere, planned

pytestmark = pytest.mark.usefixtures("fake_graphs")


def small(**fields) -> Config:
    sizes = {"n_layers": 1, "n_heads": 2, "d_model": 8, "seq_len": 3, "n_test": 4, "batch_size": 4, "lr": 0.01}
    return Config(**sizes | {"tasks": (2, 3, 4, 5), "steps": (10, 60)} | fields)


def climb(plan: list[harness.Progress], run=None, rung="captured", stop=GO_ON) -> int:
    """Train them from this rung on. The updates that were counted, less those that were lost."""
    counted = []
    harness.train_group(run or nowhere(), plan, CPU, rung, lambda *report: counted.append(sum(report[:2])), stop)
    return sum(counted)


def same(plan: list[harness.Progress], config: Config) -> None:
    """They have ended like models that were trained one after the other in plain PyTorch."""
    alone = planned(config)
    climb(alone, rung="plain")
    for ours, theirs in zip(plan, alone, strict=True):
        assert [point["step"] for point in ours.points] == [point["step"] for point in theirs.points]
        assert ours.cells.keys() == theirs.cells.keys() and ours.done
        for one, other in zip(ours.points, theirs.points, strict=True):
            ours, theirs = ({k: x for k, x in harness.leaves(point) if "weight" not in k} for point in (one, other))
            assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)


def broken(monkeypatch, method: str, rungs: tuple[str, ...], fault) -> None:
    """On these rungs Ensemble's method is fault(ensemble, method as it was, *arguments)."""
    right = getattr(Ensemble, method)

    def wrong(ensemble, *arguments):
        if method == "__init__":
            rung = [*arguments, "plain"][2]
        else:
            rung = "captured" if ensemble.captured else "stacked" if ensemble.stacked else "plain"
        return fault(ensemble, right, *arguments) if rung in rungs else right(ensemble, *arguments)

    monkeypatch.setattr(Ensemble, method, wrong)


def others_batches(ensemble, losses, batch):
    return losses(ensemble, {key: values.roll(1, 0) for key, values in batch.items()})


def others_gradients(ensemble, losses, batch):
    """Of the last model a hundredth of the first one's gradient."""
    objectives, reported = losses(ensemble, batch)
    weights = torch.ones(len(objectives))
    weights[-1] += 0.01
    return objectives * weights, reported


def stale_rate(ensemble, set_rate, lr):
    if ensemble.lr is None:
        set_rate(ensemble, lr)


def raises(ensemble, method, *arguments):
    raise IndexError("edited fault")


def stale_batches(ensemble, load, chunk):
    if ensemble.chunk is None:
        load(ensemble, chunk)


def others_numbers(ensemble, losses, batch):
    objectives, reported = losses(ensemble, batch)
    return objectives, {name: values.roll(1, 0) for name, values in reported.items()}


def others_predictions(ensemble, observe, member):
    return {name: values * (1 if member else 0.5) for name, values in observe(ensemble, 0).items()}


def not_a_number(ensemble, losses, batch):
    objectives, reported = losses(ensemble, batch)
    return objectives, {name: values / (ensemble.step < 40) for name, values in reported.items()}


def raises_late(ensemble, method, *arguments):
    return method(ensemble, *arguments) if ensemble.step < 60 else raises(ensemble, method)


FAULTS = {
    "mixes batches": ("losses", others_batches, "gradients.decoder"),
    "mixes gradients": ("losses", others_gradients, "gradients.decoder"),
    "a stale rate": ("set_rate", stale_rate, "differs by"),
    "mixes what is reported": ("losses", others_numbers, "reported of"),
    "mixes what is observed": ("observe", others_predictions, "observed.P of"),
    "a NaN at run time": ("losses", not_a_number, "NotFiniteError: loss is not finite"),
    "an observation that fails at run time": ("observe", raises_late, "IndexError: edited fault"),
    "a checkpoint that fails at run time": ("states", raises_late, "IndexError: edited fault"),
    "raises": ("losses", raises, "IndexError: edited fault"),
    "cannot be built": ("__init__", raises, "IndexError: edited fault"),
}


@pytest.mark.parametrize("what", FAULTS)
@pytest.mark.parametrize("rungs", [("captured",), ("captured", "stacked")], ids="+".join)
def test_a_rung_that_is_broken_costs_one_line_and_the_next_one_trains(monkeypatch, capsys, what, rungs):
    method, fault, told = FAULTS[what]
    broken(monkeypatch, method, rungs, fault)
    plan = planned(config := small())
    assert climb(plan) == 4 * 60
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(rungs)
    for line, rung, following in zip(lines, rungs, ("stacked", "plain"), strict=False):
        assert "4 models" in line and harness.RUNGS[rung] in line and line.endswith(harness.RUNGS[following])
        assert told in line, line
    assert {tuple(progress.rungs) for progress in plan} == {("stacked" if len(rungs) == 1 else "plain",)}
    same(plan, config)


@pytest.mark.parametrize("off, jumps, fault", [(0.04, 0.05, False), (0.04, 0.01, True), (0.2, 0.3, True)])
def test_where_gradients_jump_by_themselves_they_may_differ_by_as_much_but_not_by_more_than_a_tenth(
    monkeypatch, off, jumps, fault
):
    def trial(group, device, rung, training=True, nudge=0.0):
        return [{"gradients.weight": torch.ones(9) * (1 + (off if rung == "stacked" else jumps if nudge else 0))}]

    monkeypatch.setattr(harness, "trial", trial)
    told = harness.disagreement(planned(small(tasks=(2,))), CPU, "stacked")
    assert told.startswith("the gradient of") if fault else told is None


@pytest.mark.parametrize("lr", [1e-6, 1e-2])
def test_a_stale_rate_shows_whatever_the_rate_and_the_schedule(monkeypatch, lr):
    monkeypatch.setattr(UrnTrajectory, "learning_rate", lambda self, update, updates: lr * min(1, update / 20))
    plan = planned(small(lr=lr, steps=(60,)))
    assert harness.disagreement(plan, CPU, "captured") is None
    broken(monkeypatch, "set_rate", ("captured",), stale_rate)
    assert "differs by" in harness.disagreement(plan, CPU, "captured")


def test_batches_of_a_chunk_that_is_over_show(monkeypatch):
    plan = planned(small(steps=(300,)))
    assert harness.disagreement(plan, CPU, "captured") is None
    broken(monkeypatch, "load", ("captured",), stale_batches)
    assert "differs by" in harness.disagreement(plan, CPU, "captured")


@pytest.mark.parametrize("kind", [torch.int64, torch.complex64])
def test_parameters_that_are_no_real_numbers_are_compared(monkeypatch, kind):
    class Model(experiment.Model):
        def __init__(self, config: Config):
            super().__init__(config)
            self.other = torch.nn.Parameter(torch.ones(2, dtype=kind), requires_grad=kind.is_complex)

        def forward(self, tokens: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
            shift = self.other.imag if kind.is_complex else self.other
            return super().forward(tokens, codes) * (1 + shift.sum())

    def optimizer(self, params, lr):
        return torch.optim.SGD([p for p in params.values() if p.requires_grad], lr=lr)

    def of_others(ensemble, right):
        right(ensemble)
        for p in ensemble.params.values():
            if p.is_complex():
                p.data += 0.1j

    monkeypatch.setattr(experiment, "Model", Model)
    monkeypatch.setattr(UrnTrajectory, "optimizer", optimizer)
    assert harness.disagreement(planned(small()), CPU, "stacked") is None
    broken(monkeypatch, "update", ("stacked",), of_others)
    if kind.is_complex:
        assert "other of" in harness.disagreement(planned(small()), CPU, "stacked")


def test_a_wrong_gradient_is_not_excused_by_what_rounding_does(monkeypatch):
    """A model in which the smallest difference grows: what is compared alone proves nothing."""
    right, rough = harness.trial, []

    def trial(group, device, rung, training=True, nudge=0.0):
        found = right(group, device, rung, training, nudge)
        rough.append(nudge)
        factor = 2.0 if nudge or rung != "plain" else 1.0
        return [{name: values * factor for name, values in own.items()} for own in found]

    monkeypatch.setattr(harness, "trial", trial)
    assert harness.disagreement(planned(small()), CPU, "stacked").startswith("the gradient of")
    assert rough


@pytest.mark.parametrize("member", [0, -1])
def test_the_first_and_the_last_member_are_looked_at(monkeypatch, member):
    def zeroed(ensemble, update):
        update(ensemble)
        for p in ensemble.params.values():
            p.data[member] = 0

    broken(monkeypatch, "update", ("stacked",), zeroed)
    plan = planned(small())
    assert plan[member].trajectory.name in harness.disagreement(plan, CPU, "stacked")


@pytest.mark.parametrize("embedding, clip_norm", [("gaussian", 0.01), ("permutation", None), ("fixed", 0.01)])
def test_rungs_that_are_whole_are_believed_and_their_check_changes_no_number(capsys, embedding, clip_norm):
    config = small(embedding=embedding)
    for rung in ("captured", "stacked"):
        checked, unchecked = (planned(config, clip_norm=clip_norm) for _ in range(2))
        assert climb(checked, rung=rung) == 4 * 60
        harness.train(nowhere(), unchecked, CPU, rung, lambda *report: None, GO_ON)
        for one, other in zip(checked, unchecked, strict=True):
            assert (one.points, one.rungs) == (other.points, [rung])
    assert capsys.readouterr().err == ""


class Noisy(experiment.Model):
    """Draws by itself, and its buffer is what a batch norm's is."""

    def __init__(self, config: Config):
        super().__init__(config)
        self.dropout = torch.nn.Dropout(0.5)
        self.register_buffer("mean", torch.zeros(config.n_colors))

    def forward(self, tokens: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        logits = super().forward(tokens, codes)
        self.mean.lerp_(logits.detach().mean((0, 1)), 0.1)
        return self.dropout(logits)


class Quiet(Noisy):
    def __init__(self, config: Config):
        super().__init__(config)
        self.dropout = torch.nn.Identity()


class Reassigned(Quiet):
    """A buffer that is replaced keeps its value in a model alone, and in a stack loses it."""

    def forward(self, tokens: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        logits = super().forward(tokens, codes)
        self.mean = self.mean + 1
        return logits


@pytest.mark.parametrize("model, told", [(Noisy, None), (Quiet, None), (Reassigned, "weights.mean")])
def test_buffers_are_compared_and_what_a_model_draws_is_not(monkeypatch, model, told):
    monkeypatch.setattr(experiment, "Model", model)
    found = harness.disagreement(planned(small()), CPU, "stacked")
    assert found is None if told is None else told in found


def test_reduced_precision_is_no_disagreement(monkeypatch):
    assert harness.disagreement(planned(small(precision="bf16")), CPU, "stacked") is None


def short_of_memory(limit: int, after: int):
    """More than so many models at once do not fit from so many updates on."""

    def make(ensemble, right, lr):
        if len(ensemble.group) > limit and ensemble.step >= after:
            raise torch.OutOfMemoryError("edited")
        right(ensemble, lr)

    return make


@pytest.mark.parametrize("after", [0, 40], ids=["in the check", "while it trains"])
def test_where_memory_is_short_groups_are_halved(monkeypatch, capsys, tmp_path, after):
    broken(monkeypatch, "make", ("captured",), short_of_memory(1, after))
    config = small()
    plan, run = planned(config), harness.RunDirectory(tmp_path, STUDY, config, CPU)
    run.open(plan, restarted=False)
    assert climb(plan, run) == 4 * 60
    run.close()
    lines = capsys.readouterr().err.splitlines()
    assert ["out of memory; now in halves" in line for line in lines] == [True] * 3
    assert all(progress.rungs == ["captured"] for progress in plan)
    same(plan, config)


def test_a_model_for_which_memory_is_short_alone_goes_to_the_next_rung(monkeypatch, capsys):
    broken(monkeypatch, "make", ("captured", "stacked"), short_of_memory(0, 0))
    plan = planned(small(tasks=(2, 3)))
    climb(plan)
    assert [line.partition(": ")[2] for line in capsys.readouterr().err.splitlines()] == [
        "out of memory; now in halves",
        *2 * ["out of memory; now stacked, update by update", "out of memory; now one model after the other"],
    ]
    assert all(progress.rungs == ["plain"] and progress.done for progress in plan)


@pytest.mark.parametrize("saved", [True, False])
def test_a_fault_at_run_time_goes_on_where_the_checkpoints_are(monkeypatch, capsys, tmp_path, saved):
    def fails_at_30(ensemble, make, lr):
        if ensemble.step == 30:
            raise RuntimeError("an illegal memory access")
        make(ensemble, lr)

    broken(monkeypatch, "make", ("captured",), fails_at_30)
    config = small(steps=(10, 60) if saved else (60,))
    plan, run = planned(config), harness.RunDirectory(tmp_path, STUDY, config, CPU)
    run.open(plan, restarted=False)
    assert climb(plan, run) == 4 * 60
    run.close()
    (line,) = capsys.readouterr().err.splitlines()
    assert "RuntimeError: an illegal memory access" in line
    assert all(progress.rungs == (["captured", "stacked"] if saved else ["stacked"]) for progress in plan)
    same(plan, config)
    results = run.contents(plan, {})["all_results.json"]
    assert results.count(b'"rungs": [\n    "captured",\n    "stacked"' if saved else b'"rungs": [\n    "stacked"') == 4


@pytest.mark.parametrize("where", ["loss", "measure"])
def test_a_fault_of_the_study_is_the_studys_and_not_a_rungs(monkeypatch, capsys, where):
    monkeypatch.setattr(UrnTrajectory, where, lambda self, *_, **__: {}["edited"])
    with pytest.raises(KeyError, match="edited"):
        climb(planned(small()))
    assert capsys.readouterr().err == ""


def test_a_fault_of_the_study_in_the_check_names_the_cell(monkeypatch):
    monkeypatch.setattr(UrnTrajectory, "loss", lambda self, *_, **__: {}["edited"])
    with pytest.raises(KeyError) as error:
        climb(planned(small()))
    assert any(note.startswith("in cell D2_N10 (seed 0)") for note in error.value.__notes__)


def test_plain_pytorch_decides_whether_a_loss_is_not_finite(monkeypatch, capsys):
    def loss(trajectory, model, tokens, codes):
        objective = experiment.next_draw_loss(model(tokens[:, :-1], codes), tokens)
        return objective, {"loss": objective + (tokens.sum() > 8) * float("nan")}

    monkeypatch.setattr(UrnTrajectory, "loss", loss)
    with pytest.raises(harness.NotFiniteError):
        climb(planned(small()))
    assert [harness.RUNGS["stacked"] in line for line in capsys.readouterr().err.splitlines()] == [True, True]


class Muon(torch.optim.SGD):
    """Whatever it does, it is not known to do the same with every element."""


class Both(torch.optim.SGD):
    """Keeps a second one."""

    def __init__(self, params, **options):
        super().__init__(params, **options)
        self.others = {"second": [Muon(self.param_groups[0]["params"], **options)]}


@pytest.mark.parametrize("kind", [Muon, Both])
def test_an_optimizer_that_is_not_elementwise_is_never_stacked(monkeypatch, kind):
    monkeypatch.setattr(UrnTrajectory, "optimizer", lambda self, params, lr: kind(params.values(), lr=lr))
    groups = harness.plan_groups(planned(small()), torch.device("cuda"))
    assert [(len(group), rung) for group, rung in groups] == 4 * [(1, "plain")]
    broken(monkeypatch, "losses", ("captured", "stacked"), raises)
    climb(groups[0][0], rung=groups[0][1])
    assert groups[0][0][0].rungs == ["plain"]


def test_plain_is_the_lowest_rung_at_once_and_on_a_cpu_in_this_process(monkeypatch, tmp_path):
    arguments = "--n_layers 1 --d_model 16 --seq_len 4 --n_test 4 --tasks 2 4 --steps 20 --device cpu --out_dir".split()
    assert experiment.main([*arguments, str(tmp_path / "usual")]) == 0
    monkeypatch.setattr(harness, "train_in_processes", None)
    assert experiment.main([*arguments, str(tmp_path / "plain"), "--plain"]) == 0
    for name in ("final_info.json", "cells.csv"):
        assert (tmp_path / "usual" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes()
    groups = harness.plan_groups(planned(small()), torch.device("cuda"), "plain")
    assert [(len(group), rung) for group, rung in groups] == 4 * [(1, "plain")]


def test_members_that_have_ended_are_not_trained_again_on_the_next_rung(monkeypatch, tmp_path):
    monkeypatch.setattr(UrnTrajectory, "finished", lambda self, points: self.n_tasks == 3 and points[-1]["step"] >= 10)

    def fails_at_30(ensemble, make, lr):
        if ensemble.step == 30:
            raise RuntimeError("edited")
        make(ensemble, lr)

    broken(monkeypatch, "make", ("captured", "stacked"), fails_at_30)
    config = small()
    plan, run = planned(config), harness.RunDirectory(tmp_path, STUDY, config, CPU)
    run.open(plan, restarted=False)
    assert climb(plan, run) == 4 * 60
    run.close()
    assert [progress.step for progress in plan] == [60, 10, 60, 60]
    assert plan[1].rungs == ["captured"] and plan[2].rungs == ["captured", "plain"]
    same(plan, replace(config))
