"""The grokking study: tables, model and measurements against the protocol in plain words, and what its runs write."""

import importlib.util
import itertools
import json
import math
import sys
from pathlib import Path

import harness

import numpy as np
import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from conftest import ROOT
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from training import CPU, GO_ON

SCRIPT = ROOT / "studies" / "grokking" / "experiment.py"
spec = importlib.util.spec_from_file_location("grokking_experiment", SCRIPT)  # another study's has the same file name
grokking = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(grokking)
Architecture, Config = grokking.Architecture, grokking.Config


def trajectory_of(operation="x_div_y", size="L2_d32_h4", **settings) -> "grokking.TableTrajectory":
    settings = {"modulus": 23, "batch_size": 16, "updates": 20, "seeds": 1} | settings
    return grokking.plan(Config(operations=(operation,), architectures=(size,), **settings))[0]


# ---- Tables ----------------------------------------------------------------------------------------------------------


def things(operation: str, modulus: int) -> list:
    return list(itertools.permutations(range(5))) if operation == "permutation" else list(range(modulus))


def plain_table(operation: str, modulus: int) -> list[tuple]:
    """All (a, b, answer) of things: numbers, or permutations as tuples. Division tries every number."""
    answer = {
        "x_div_y": lambda a, b: next(c for c in range(modulus) if c * b % modulus == a),
        "x_minus_y": lambda a, b: (a - b) % modulus,
        "x_plus_y": lambda a, b: (a + b) % modulus,
        "permutation": lambda a, b: tuple(a[b[i]] for i in range(5)),
    }[operation]
    pairs = itertools.product(things(operation, modulus), repeat=2)
    return [(a, b, answer(a, b)) for a, b in pairs if operation != "x_div_y" or b]


def named(operation: str, modulus: int, *columns: torch.Tensor) -> list[tuple]:
    """Entries of things for columns of their numbers."""
    names = things(operation, modulus)
    return [tuple(names[i] for i in entry) for entry in zip(*(column.tolist() for column in columns), strict=True)]


SIZES = {"x_div_y": (9312, 4656), "x_minus_y": (9409, 4704), "x_plus_y": (9409, 4704), "permutation": (14400, 7200)}


@pytest.mark.parametrize("operation", SIZES)
def test_a_table_is_that_of_its_operation_and_its_split_a_partition(operation):
    wanted, data = plain_table(operation, 97), grokking.split(operation, Config(), 0)
    shuffled = named(operation, 97, *data[:3])
    assert named(operation, 97, *grokking.table(operation, 97)) == wanted
    assert shuffled != wanted and sorted(shuffled) == wanted and (len(shuffled), data.n_train) == SIZES[operation]


def test_models_of_a_seed_share_split_and_batches_and_others_do_not():
    config, seen = Config(architectures=("L1_d16_h2", "L2_d32_h4"), seeds=2, modulus=23), {}
    for trajectory in grokking.plan(config):
        own = [column.tolist() for column in (*trajectory.data[:3], *trajectory.batches(100, 100, CPU).values())]
        assert seen.setdefault((trajectory.operation, trajectory.seed), own) == own
    for one, other in itertools.combinations([own for (operation, _), own in seen.items() if "_y" in operation], 2):
        assert len(seen) == 8 and one[:2] != other[:2] and one[3:] != other[3:]


def test_batches_are_training_entries_drawn_with_replacement():
    """Every one of them, alike often, and each with its answer; other updates have other ones."""
    trajectory = trajectory_of(modulus=7, batch_size=300)
    batches, n = trajectory.batches(0, 100, CPU), trajectory.data.n_train
    drawn = named("x_div_y", 7, *(batches[key].flatten() for key in ("a", "b", "answers")))
    assert n == 21 and {*drawn} == {*named("x_div_y", 7, *(column[:n] for column in trajectory.data[:3]))}
    assert all(abs(drawn.count(entry) - 30_000 / n) < 5 * math.sqrt(30_000 / n) for entry in {*drawn})
    assert not torch.equal(batches["a"], trajectory.batches(100, 100, CPU)["a"])


# ---- The model against the protocol ----------------------------------------------------------------------------------


def plain_model(p: dict[str, torch.Tensor], trajectory, entries: list[tuple]) -> tuple[torch.Tensor, torch.Tensor]:
    """The protocol without savings, with weights by name: logits and losses of entries (a, b, answer) of things. Words
    of `a o b =` are looked up one by one, and all four positions go through every block."""
    words = {word: i for i, word in enumerate(["o", "=", *things(trajectory.operation, trajectory.config.modulus)])}
    text = torch.tensor([[words[word] for word in (a, "o", b, "=")] for a, b, _ in entries])
    x = (p["tokens.weight"][text] + p["positions.weight"][:4]).transpose(0, 1)  # [4, B, width]
    mask = torch.tensor([[0.0 if k <= q else -math.inf for k in range(4)] for q in range(4)], dtype=x.dtype)

    def apply(layer, x: torch.Tensor, name: str, *settings) -> torch.Tensor:
        return layer(x, *settings, p[f"{name}.weight"], p[f"{name}.bias"])

    for block in (f"blocks.{i}." for i in range(trajectory.size.layers)):
        attention = nn.MultiheadAttention(trajectory.size.width, trajectory.size.heads)
        weights = {name: p[f"{block}attention.{name}"] for name, _ in attention.named_parameters()}
        attended, _ = torch.func.functional_call(attention, weights, (x, x, x), {"attn_mask": mask})
        x = apply(F.layer_norm, x + attended, f"{block}attention_norm", x.shape[-1:])
        hidden = apply(F.linear, x, f"{block}mlp.0")
        hidden = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
        x = apply(F.layer_norm, x + apply(F.linear, hidden, f"{block}mlp.2"), f"{block}mlp_norm", x.shape[-1:])
    logits = apply(F.linear, apply(F.layer_norm, x[3], "norm", x.shape[-1:]), "answer")
    probabilities = logits.softmax(1)
    return logits, -torch.stack([probabilities[i, words[c] - 2] for i, (_, _, c) in enumerate(entries)]).log()


def weights_of(model: nn.Module) -> dict[str, torch.Tensor]:
    """A copy in float64."""
    return {name: value.detach().double().clone().requires_grad_() for name, value in model.named_parameters()}


CASES = [("x_div_y", "L1_d32_h4"), ("x_minus_y", "L2_d32_h2"), ("x_plus_y", "L4_d32_h4"), ("permutation", "L2_d32_h4")]


@pytest.mark.parametrize("operation, size", CASES)
def test_savings_change_neither_loss_nor_gradients_and_flops_are_counted_without_them(operation, size):
    """In batches that lack most elements and repeat pairs, with one entry, one a or one b, and with all elements."""
    trajectory = trajectory_of(operation, size)
    torch.manual_seed(0)
    model = trajectory.model().double()
    for parameter in model.parameters():  # far from initialization, so that every path matters
        parameter.data += 0.2 * torch.randn_like(parameter)
    same = [(column == column[0]).nonzero()[:5, 0] for column in trajectory.data[:2]]
    for which in (torch.tensor([7, 7, 7, 0, 3, 7, 0]), torch.tensor([2]), *same, torch.arange(500)):
        p, batch = weights_of(model), [column[which] for column in trajectory.data[:3]]
        with FlopCounterMode(display=False) as counter:
            logits, losses = plain_model(p, trajectory, named(operation, 23, *batch))
            losses.mean().backward()
        n, B = len(things(operation, 23)), len(which)
        assert grokking.flops_per_update(trajectory.size, n, B) == counter.get_total_flops()
        torch.testing.assert_close(model(*batch[:2]), logits, rtol=1e-12, atol=1e-12)
        loss, reported = trajectory.loss(model, *batch)
        assert loss.item() == pytest.approx(losses.mean().item(), rel=1e-12) and reported == {}
        model.zero_grad()
        loss.backward()
        largest = max(value.grad.abs().max().item() for value in p.values())
        for name, value in p.items():
            found = model.get_parameter(name).grad
            torch.testing.assert_close(found, value.grad, rtol=1e-12, atol=1e-13 * largest, msg=name)


@pytest.mark.parametrize("operation, size", [*CASES, ("x_div_y", "L1_d64_h2"), ("permutation", "L4_d64_h4")])
def test_flops_with_savings_are_those_that_pytorch_counts(monkeypatch, operation, size):
    """Of an update, with attention by matrix products, for nothing else is counted. Shallow models save most."""

    def attend(block, q, k, v):  # of as many numbers; what is masked is computed all the same
        q, k, v = (x.unflatten(-1, (block.heads, -1)).transpose(1, 2) for x in (q, k, v))
        return ((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(-2)

    monkeypatch.setattr(grokking.Block, "attend", attend)
    trajectory = trajectory_of(operation, size, batch_size=200)
    batch = {key: values[0] for key, values in trajectory.batches(0, 100, CPU).items()}
    with FlopCounterMode(display=False) as counter:
        trajectory.loss(trajectory.model(), **batch)[0].backward()
    asked = trajectory.size, len(things(operation, 23)), 200
    assert grokking.flops_with_savings(*asked) == counter.get_total_flops()
    shares = [
        grokking.flops_with_savings(of, 97, 512) / grokking.flops_per_update(of, 97, 512)
        for of in (Architecture(1, 128, 4), Architecture(2, 128, 4), Architecture(4, 128, 4))
    ]
    assert shares == sorted(shares) and shares[-1] < 1


@pytest.mark.parametrize("operation, size", CASES)
def test_updates_are_those_of_the_protocol(operation, size):
    """AdamW with decay of every parameter, the first update at rate 0, entries of the table as words, one by one."""
    trajectory = trajectory_of(operation, size, warmup=10)
    ensemble = harness.Ensemble([harness.Progress(trajectory)], CPU)
    p = weights_of(ensemble.model.double())
    batches, answers = trajectory.batches(0, 100, CPU), {(a, b): c for a, b, c in plain_table(operation, 23)}
    optimizer, losses = torch.optim.AdamW(p.values(), betas=(0.9, 0.98), eps=1e-8, weight_decay=0.5), []
    for update in range(20):
        pairs = named(operation, 23, batches["a"][update], batches["b"][update])
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1, update / 10)
        loss = plain_model(p, trajectory, [(a, b, answers[a, b]) for a, b in pairs])[1].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    np.testing.assert_allclose(ensemble.advance(20, GO_ON)[0], losses, rtol=1e-10)
    for name, value in p.items():
        torch.testing.assert_close(ensemble.model.get_parameter(name), value, rtol=0, atol=1e-10, msg=name)


def test_models_of_all_tables_of_a_modulus_can_be_trained_as_one():
    """As on a GPU: stacked, three operations make the same updates as each alone."""
    *plan, permutation = (trajectory_of(operation, "L2_d16_h2", modulus=11) for operation in SIZES)
    assert len({trajectory.shape for trajectory in plan}) == 1 and plan[0].shape not in (None, permutation.shape)
    assert harness.disagreement([harness.Progress(trajectory) for trajectory in plan], CPU, "stacked") is None


def test_learning_rates_rise_from_zero():
    constant, default = trajectory_of(lr=0.2, warmup=0), grokking.plan(Config())[0]
    assert {constant.learning_rate(update, 100) for update in range(100)} == {0.2}
    rates = [default.learning_rate(update, 7500) for update in range(7500)]
    assert rates[0] == 0 and rates == pytest.approx([1e-3 * k / 50 for k in range(50)] + [1e-3] * 7450)


PARAMETERS = {  # of 1, 2 and 4 layers of width 64, 128 and 256
    "x_plus_y": (63073, 113057, 213025, 224353, 422625, 819169, 841825, 1631585, 3211105),
    "permutation": (66040, 116024, 215992, 230264, 428536, 825080, 853624, 1643384, 3222904),
}


@pytest.mark.parametrize("operation, O", [("x_plus_y", 97), ("permutation", 120)])
def test_parameters_are_as_many_as_the_protocol_has_and_their_classes_have_fixed_edges(operation, O):  # noqa: E741
    for (d, L), wanted in zip(itertools.product((64, 128, 256), (1, 2, 4)), PARAMETERS[operation], strict=True):
        formula = (2 + O + 5) * d + L * (12 * d**2 + 13 * d) + 2 * d + (d + 1) * O
        cell = trajectory_of(operation, f"L{L}_d{d}_h8", modulus=97).cell(curve([0.5]))
        assert cell["parameters"] == wanted == formula and cell["bucket"] == grokking.bucket(wanted)
    classes = [grokking.bucket(n) for n in (*PARAMETERS[operation], 149_999, 150_000, 500_000, 500_001)]
    assert classes == "small small medium medium medium large large large large small medium medium large".split()


def test_models_start_as_pytorch_starts_them():
    """Steps to grokking change twofold and more with the scale of the start."""
    model, d = harness.Ensemble([harness.Progress(trajectory_of(size="L2_d128_h4", modulus=97))], CPU).model, 128
    bounds = {"in_proj_weight": math.sqrt(6 / (3 * d + d)), "out_proj.weight": d**-0.5}  # Xavier, of the 3d x d matrix
    bounds |= {"mlp.0": d**-0.5, "mlp.2": (4 * d) ** -0.5, "answer": d**-0.5}
    for name, values in model.named_parameters():
        n, bound = values.numel(), next((bounds[part] for part in bounds if part in name), None)
        if bound:
            assert (1 - 10 / n) * bound < values.abs().max() <= bound, name
            assert abs(values.square().mean() * 3 / bound**2 - 1) < 5 / math.sqrt(n), name
        elif name in ("tokens.weight", "positions.weight"):
            assert abs(values.mean()) < 5 / math.sqrt(n) and abs(values.std() - 1) < 5 / math.sqrt(2 * n), name
        else:  # of norms, and biases in attention
            assert (values == (1 if "norm.weight" in name else 0)).all(), name


# ---- What is measured ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lead", [0.5, 12, 40])
def test_accuracies_and_losses_are_exact_and_of_every_entry(lead):
    """Of more entries than are evaluated at once. The model prefers the answer 3 by a lead: in float32 the loss of that
    answer has digits left at 12, and is 0 at 40, which alone counts as collapsed."""
    trajectory = trajectory_of("x_minus_y", modulus=37, train_fraction=0.3)
    torch.manual_seed(1)
    model, entries, n = trajectory.model(), named("x_minus_y", 37, *trajectory.data[:3]), 410
    with torch.no_grad():
        model.answer.bias[3] += lead
        numbers = trajectory.measure(trajectory.observe(model, 10), 10, {}, [])
        p = weights_of(model)
        logits, losses = plain_model(p, trajectory, entries)
    for part, which in (("train", range(n)), ("val", range(n, 37**2))):
        right = sum(int(logits[i].argmax()) == entries[i][2] for i in which)
        mean = math.fsum(losses[i].item() for i in which) / len(which)
        assert right > 0 and numbers[f"{part}_acc"] == float(f"{right / len(which):.6g}")
        assert numbers[f"{part}_loss"] == pytest.approx(mean, rel=6e-4)  # of four digits
    assert numbers["collapsed"] == pytest.approx(numbers["train_acc"] if lead == 40 else 0, rel=6e-4)
    norm = math.sqrt(sum(value**2 for x in p.values() for value in x.flatten().tolist()))
    assert numbers["weight_norm"] == pytest.approx(norm, rel=6e-4)


def test_digits_are_as_many_as_are_read_and_an_accuracy_above_the_criterion_stays_above():
    trajectory = trajectory_of("x_plus_y", modulus=467)
    n, val = 109044, 109045  # of 467 squared, half each
    right, losses = torch.zeros(n + val, dtype=torch.bool), torch.full((n + val,), 0.123456789)
    right[:107_954], losses[: n // 7] = True, 0.0  # 107954 / 109044 = 0.99000404.., of which four digits are 0.99
    numbers = trajectory.measure({"right": right, "losses": losses, "norm": torch.tensor(54.321987)}, 10, {}, [])
    assert trajectory.data.n_train == n and numbers["train_acc"] == 0.990004 and numbers["val_acc"] == 0
    rounded = {"train_loss": 0.1058, "val_loss": 0.1235, "collapsed": 0.1429, "weight_norm": 54.32}
    assert rounded == {key: numbers[key] for key in rounded}


class NoFloat64(TorchDispatchMode):
    """Apple's GPUs, as far as float64 goes."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        made = function(*args, **kwargs or {})
        assert all(x.dtype != torch.float64 for x in tree_leaves(made) if isinstance(x, torch.Tensor)), function
        return made


def test_updates_and_what_is_observed_need_no_float64():
    trajectory = trajectory_of()
    model, batch = trajectory.model(), {key: x[0] for key, x in trajectory.batches(0, 100, CPU).items()}
    with NoFloat64():
        trajectory.loss(model, **batch)[0].backward()
        with torch.no_grad():
            trajectory.observe(model, 10)


def curve(val: list[float], train: list[float] | None = None) -> list[dict]:
    """Points at 10, 20, .. with these accuracies; the other numbers tell where they are from."""
    points = []
    for step, v, t in zip(range(10, 8000, 10), val, train or [1.0] * len(val), strict=False):
        points.append({"step": step, "val_acc": v, "train_acc": t, "collapsed": 0.5 if step == 20 else 0.25})
        points[-1] |= {"train_loss": step + 0.1, "val_loss": step + 0.2, "weight_norm": step + 0.3}
    return points


def cell_of(val: list[float], train: list[float] | None = None) -> dict:
    return trajectory_of(updates=7500).cell(curve(val, train))


STEPS = "step_memorize step_grok step_grok_sustained delay".split()
STABILITY = [f"stable_{key}" for key in "share least_val_acc least_train_acc dips longest_dip at_end".split()]


def test_a_model_that_never_memorizes_or_groks_has_null_for_the_steps():
    """Exactly 0.99 is not above it. Only the key of The AI Scientist's template has the last update instead."""
    never = cell_of([0.99] * 750, [0.99] * 750)
    assert {key for key, value in never.items() if value is None} == {*STEPS, *STABILITY}
    assert (never["step_val_acc_99"], never["grokked"]) == (7500, 0)
    memorized = cell_of([0.4] * 750, [0.9, 0.991] + [0.5] * 748)
    assert [memorized[key] for key in STEPS] == [20, None, None, None]
    wanted = {"step_val_acc_99": 7500, "final_train_loss": 7500.1, "final_val_loss": 7500.2, "final_train_acc": 0.5}
    wanted |= {"final_val_acc": 0.4, "final_weight_norm": 7500.3, "final_collapsed": 0.25, "most_collapsed": 0.5}
    assert wanted | {"stopped_at": 7500} == {key: memorized[key] for key in [*wanted, "stopped_at"]}


def test_steps_to_memorizing_and_to_grokking_and_what_an_update_costs():
    val = [0.1, 0.2, 0.3, 0.9901, 0.99] + [0.995] * 9 + [0.98] + [0.995] * 735  # nine in a row are not ten
    flops = grokking.flops_per_update(Architecture(2, 32, 4), 23, 16)
    numbers = cell_of(val, [0.5, 0.99001] + [1.0] * 748)
    assert [numbers[key] for key in STEPS] == [20, 40, 160, 20]
    assert (numbers["step_val_acc_99"], numbers["grokked"], numbers["flops_per_update"]) == (40, 1, flops)
    savings = grokking.flops_with_savings(Architecture(2, 32, 4), 23, 16)
    assert numbers["flops_per_update_with_savings"] == savings != flops
    assert [cell_of([1.0] * n)["step_grok_sustained"] for n in (9, 10)] == [None, 10]
    assert cell_of([1.0] * 10, [0.0] * 9 + [1.0])["delay"] == -90  # it knew the other half before


def test_stability_is_of_the_1000_updates_after_grokking_alone():
    val, train = [0.2] * 9 + [1.0] * 300, [1.0] * 309  # groks at 100: the window is 110 to 1100
    val[8], train[9], val[110], train[110] = 0.0, 0.3, 0.1, 0.1  # at 90, 100 and 1110, just outside
    val[20:24], val[30], val[40], val[50], train[60] = [0.94, 0.5, 0.94, 0.9499], 0.95, 0.99, 0.9, 0.7
    assert [cell_of(val, train)[key] for key in STABILITY] == [94 / 100, 0.5, 0.7, 2, 40, 1]
    val[105:110] = [0.8] * 5  # a dip in which the window ends
    assert [cell_of(val, train)[key] for key in STABILITY] == [89 / 100, 0.5, 0.7, 3, 50, 0]
    assert [cell_of([1.0] * 101)[key] for key in STABILITY] == [1.0, 1.0, 1.0, 0, 0, 1]
    assert [cell_of([1.0] * 100)[key] for key in STABILITY] == [None] * 6  # 990 updates are not all


def test_training_ends_1000_updates_after_grokking_only_if_asked_to():
    """And not before it has been sustained, lest the end turn a late number into "never"."""
    soon, late = [1.0] * 9 + [0.3] * 101, [0.3] * 102 + [1.0] * 11
    for after, first in ((soon, 1070), (late, 1190)):
        points = curve([0.99] * 6 + [0.991] + after)  # groks at 70
        for asked in (False, True):
            trajectory = trajectory_of(updates=7500, early_stop=asked)
            ends = [points[i]["step"] for i in range(len(points)) if trajectory.finished(points[: i + 1])]
            assert ends == list(range(first, points[-1]["step"] + 1, 10)) * asked
            assert not trajectory.finished(curve([0.99] * 300))


# ---- Runs ------------------------------------------------------------------------------------------------------------

TINY = "--device cpu --modulus 11 --updates 20 --batch_size 16 --seeds 1 --operations x_div_y".split()


def run(folder: Path, words: str) -> dict:
    """Run the study in this process; what all_results.json holds, in JSON that knows no NaN."""
    assert grokking.main([*TINY, *words.split(), "--out_dir", str(folder)]) == 0
    return json.loads((folder / "all_results.json").read_bytes(), parse_constant=pytest.fail)


@pytest.fixture(scope="module")
def complete(tmp_path_factory) -> Path:
    """The folder of a run of two architectures, one of them the baseline's, and two seeds, not to be changed."""
    folder = tmp_path_factory.mktemp("complete") / "run_0"
    run(folder, "--architectures L1_d16_h2 L2_d128_h4 --seeds 2")
    return folder


def test_final_info_has_the_template_s_numbers_of_every_cell(complete):
    final_info = json.loads((complete / "final_info.json").read_bytes(), parse_constant=pytest.fail)
    assert [*final_info] == ["x_div_y/L1_d16_h2", "x_div_y"]
    wanted = "final_train_loss final_val_loss final_train_acc final_val_acc step_val_acc_99 "
    wanted += "grokked step_memorize step_grok step_grok_sustained delay stable_share"
    for cell in final_info.values():
        seeds, means = cell["final_info_dict"], cell["means"]
        assert [*seeds] == wanted.split() and seeds["step_val_acc_99"] == [20, 20] and seeds["step_grok"] == [None] * 2
        assert [means[f"step_grok_{key}"] for key in ("mean", "k", "n")] == [None, 0, 2] and means["grokked_mean"] == 0


def test_cells_are_called_by_operation_and_architecture():
    config = Config(operations=("permutation", "x_plus_y"), layers=(1, 2), widths=(64, 128), heads=(4,), seeds=1)
    sizes = ["/L1_d64_h4", "/L1_d128_h4", "/L2_d64_h4", ""]
    wanted = [{7500: operation + size} for operation in ("permutation", "x_plus_y") for size in sizes]
    assert [trajectory.cells for trajectory in grokking.plan(config)] == wanted
    assert [trajectory.cells for trajectory in grokking.plan(Config(seeds=1))] == [{7500: name} for name in SIZES]
    assert grokking.plan(Config())[0].measured == tuple(range(10, 7500, 10))


def test_a_run_grows_by_seeds_and_architectures_and_ends_with_the_same_bytes(complete, tmp_path):
    for words, missing in ("", 20), ("--seeds 2", 20), ("L2_d128_h4 --seeds 2", 40):
        assert run(tmp_path, f"--architectures L1_d16_h2 {words}")["timing"]["model_steps"] == missing
    for name in ("final_info.json", "cells.csv"):
        assert (tmp_path / name).read_bytes() == (complete / name).read_bytes()


def test_a_model_learns_what_it_is_not_shown_and_an_early_stop_changes_no_number_before(tmp_path, monkeypatch):
    monkeypatch.setattr(grokking.Criteria, "ABOVE", 0.4)
    monkeypatch.setattr(grokking.Criteria, "WINDOW", 100)
    words = "--operations x_plus_y --modulus 13 --train_fraction 0.9 --architectures L1_d64_h4 "
    words += "--batch_size 64 --lr 3e-3 --weight_decay 1 --updates 300 --early_stop "
    whole, early = (run(tmp_path / stop, words + stop) for stop in ("false", "true"))
    (cell,), (other,) = whole["cells"], early["cells"]
    assert 0 < cell["step_memorize"] < cell["step_grok"] < 200 and cell["stopped_at"] == 300
    assert other["stopped_at"] == cell["step_grok"] + 100 == early["timing"]["model_steps"]
    later = ("stopped_at", "most_collapsed")  # to which updates after the end belong
    same = [key for key in cell if not key.startswith("final_") and key not in later]
    assert [cell[key] for key in same] == [other[key] for key in same] and cell["stable_share"] is not None
    curves, shorter = (results["trajectories"][0]["curves"] for results in (whole, early))
    n = other["stopped_at"] // 10
    assert len(shorter["step"]) == n and {key: values[:n] for key, values in curves.items()} == shorter
    grown = run(tmp_path / "true", f"{words} --seeds 2")  # a run whose model ended early grows
    assert grown["cells"][0] == other and grown["timing"]["model_steps"] == grown["cells"][1]["stopped_at"]


BAD_INPUT = [
    *((f"--modulus {n}", "a prime") for n in (0, 1, 4, 91, -7, 1009)),
    *((f"--train_fraction {x}", "between 0 and 1") for x in ("0.0", "1.0", "1.5", "nan")),
    *((f"--train_fraction {x}", "both parts of the 110 entries of x_div_y") for x in ("0.0001", "0.99999999999999")),
    ("--operations x_plus_y x_times_y", "x_div_y x_minus_y x_plus_y permutation"),
    ("--operations x_plus_y x_plus_y", "different from each other"),
    *((f"--architectures {x}", "such as L4_d64_h4") for x in ("L2d64h4", "L0_d64_h4", "L2_d64_h4_")),
    ("--architectures L2_d64_h4 L2_d64_h3", "so that heads divide every width"),
    ("--heads 4 5", "so that heads divide every width"),
    *((f"--{flag}", "one or more values") for flag in "operations layers widths heads architectures".split()),
    *((f"--{flag} 0", "at least 1") for flag in ("seeds", "batch_size", "updates", "layers", "widths", "heads")),
    *((f"--{flag} {x}", "finite and not negative") for flag in ("lr", "weight_decay") for x in ("-1.0", "inf", "nan")),
    *((f"--{flag} -1", "at least 0") for flag in ("warmup", "seed")),
]


@pytest.mark.parametrize("words, wanted", BAD_INPUT)
def test_bad_input_is_one_line_and_touches_nothing(tmp_path, monkeypatch, capsys, words, wanted):
    monkeypatch.chdir(tmp_path)
    assert grokking.main([*TINY, *words.split()]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1 and told.err.startswith(f"experiment.py: {words}: must be")
    assert wanted in told.err and not list(tmp_path.iterdir())
