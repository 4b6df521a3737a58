"""The grokking study: tables, model and measurements against the protocol in plain words, and what its runs write."""

import csv
import importlib.util
import itertools
import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import harness

import numpy as np
import pytest
import torch
import torch.nn as nn
from conftest import ROOT
from torch.utils.flop_counter import FlopCounterMode
from training import CPU, GO_ON

SCRIPT = ROOT / "studies" / "grokking" / "experiment.py"
spec = importlib.util.spec_from_file_location("grokking_experiment", SCRIPT)  # experiment.py is that of another study
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
    table, data = grokking.table(operation, 97), grokking.split(operation, Config(), 0)
    wanted = plain_table(operation, 97)
    assert named(operation, 97, *table) == wanted
    shuffled = named(operation, 97, *data[:3])
    assert shuffled != wanted and sorted(shuffled) == wanted
    assert (len(shuffled), data.n_train) == SIZES[operation]
    assert all(column.dtype == torch.int64 for column in table)


def test_models_of_a_seed_share_split_and_batches_and_others_do_not():
    config = Config(architectures=("L1_d16_h2", "L2_d32_h4"), seeds=2, modulus=23)
    by_stream = {}
    for trajectory in grokking.plan(config):
        batches = trajectory.batches(100, 100, CPU)
        seen = [column.tolist() for column in (*trajectory.data[:3], *batches.values())]
        by_stream.setdefault((trajectory.operation, trajectory.seed), []).append(seen)
    assert len(by_stream) == 8 and all(one == other for one, other in by_stream.values())
    arithmetic = [seen for (operation, _), (seen, _) in by_stream.items() if "_y" in operation]
    for (a, b, _, *batch), (other_a, other_b, _, *other_batch) in itertools.combinations(arithmetic, 2):
        assert (a, b) != (other_a, other_b) and batch != other_batch


def test_batches_are_training_entries_drawn_with_replacement():
    """Every one of them, alike often, and each with its answer; the next updates have other ones."""
    trajectory = trajectory_of(modulus=7, batch_size=300)
    data, batches = trajectory.data, trajectory.batches(0, 100, CPU)
    assert [batches[key].shape for key in ("a", "b", "answers")] == [(100, 300)] * 3
    training = named("x_div_y", 7, *(column[: data.n_train] for column in data[:3]))
    drawn = named("x_div_y", 7, *(batches[key].flatten() for key in ("a", "b", "answers")))
    expected = len(drawn) / len(training)
    assert len(training) == 21 and {*drawn} == {*training}
    assert all(abs(drawn.count(entry) - expected) < 5 * math.sqrt(expected) for entry in training)
    assert not torch.equal(batches["a"], trajectory.batches(100, 100, CPU)["a"])


# ---- The model against the protocol ----------------------------------------------------------------------------------


class PlainBlock(nn.Module):
    """Attention with a causal mask, then an MLP with the exact GELU, each added and then normalized: [4, B, width]."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.attention = nn.MultiheadAttention(width, heads)
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.ModuleDict({"0": nn.Linear(width, 4 * width), "2": nn.Linear(4 * width, width)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mask = torch.tensor([[0.0 if k <= q else -math.inf for k in range(4)] for q in range(4)], dtype=x.dtype)
        x = self.attention_norm(x + self.attention(x, x, x, attn_mask=mask)[0])
        hidden = self.mlp["0"](x)
        return self.mlp_norm(x + self.mlp["2"](hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2))


class PlainModel(nn.Module):
    """The protocol without savings: words of `a o b =` looked up one by one, all four through every block."""

    def __init__(self, names: list, size: Architecture):
        super().__init__()
        self.words = {word: number for number, word in enumerate(["o", "=", *names])}
        self.tokens, self.positions = nn.Embedding(len(self.words), size.width), nn.Embedding(5, size.width)
        self.blocks = nn.ModuleList(PlainBlock(size.width, size.heads) for _ in range(size.layers))
        self.norm, self.answer = nn.LayerNorm(size.width), nn.Linear(size.width, len(names))

    def forward(self, entries: list[tuple]) -> torch.Tensor:
        text = torch.tensor([[self.words[word] for word in (a, "o", b, "=")] for a, b, *_ in entries])
        x = (self.tokens(text) + self.positions(torch.arange(4))).transpose(0, 1)
        for block in self.blocks:
            x = block(x)
        return self.answer(self.norm(x[3]))

    def losses(self, entries: list[tuple]) -> torch.Tensor:
        """Of every entry (a, b, answer) the negative logarithm of the answer's probability."""
        probabilities = self(entries).softmax(1)
        return torch.stack([-p[self.words[c] - 2].log() for p, (_, _, c) in zip(probabilities, entries, strict=True)])


def twin(model: nn.Module, operation: str, modulus: int, size: Architecture) -> PlainModel:
    """The plain model with the same weights, in float64."""
    plain = PlainModel(things(operation, modulus), size)
    plain.load_state_dict(model.state_dict())
    return plain.double()


CASES = [("x_div_y", "L1_d32_h4"), ("x_minus_y", "L2_d32_h2"), ("x_plus_y", "L4_d32_h4"), ("permutation", "L2_d32_h4")]


@pytest.mark.parametrize("operation, size", CASES)
def test_savings_change_neither_loss_nor_gradients(operation, size):
    """Of a batch in which most elements are missing and pairs are repeated, and of one that has all of them."""
    trajectory = trajectory_of(operation, size)
    torch.manual_seed(0)
    model = trajectory.model().double()
    for parameter in model.parameters():  # far from initialization, so that every path matters
        parameter.data += 0.2 * torch.randn_like(parameter)
    a, b, answers, _ = trajectory.data
    few, many = torch.tensor([7, 7, 7, 0, 3, 7, 0]), torch.arange(min(len(a), 1000))
    same_a, same_b = (a == a[0]).nonzero()[:5, 0], (b == b[0]).nonzero()[:5, 0]
    for which in (few, few[:1], many, same_a, same_b):
        plain, batch = twin(model, operation, 23, trajectory.size), (a[which], b[which], answers[which])
        entries = named(operation, 23, *batch)
        with torch.no_grad():
            torch.testing.assert_close(model(*batch[:2]), plain(entries), rtol=1e-12, atol=1e-12)
        loss, reported = trajectory.loss(model, *batch)
        wanted = plain.losses(entries).mean()
        assert loss.item() == pytest.approx(wanted.item(), rel=1e-12) and reported["loss"].item() == loss.item()
        model.zero_grad()
        loss.backward()
        wanted.backward()
        found, gradients = ({name: p.grad for name, p in m.named_parameters()} for m in (model, plain))
        largest = max(gradient.abs().max() for gradient in gradients.values()).item()
        assert found.keys() == gradients.keys() and largest > 1e-2
        for name, gradient in gradients.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-12, atol=1e-12 * largest, msg=name)


@pytest.mark.parametrize("operation, size", CASES)
def test_updates_are_those_of_the_protocol(operation, size):
    """AdamW with decay of every parameter and a first update at rate 0, from the start on, on words and not tensors."""
    trajectory = trajectory_of(operation, size, warmup=10)
    ensemble = harness.Ensemble([harness.Progress(trajectory)], CPU)
    plain = twin(ensemble.model.double(), operation, 23, trajectory.size)
    start = {name: p.detach().clone() for name, p in plain.named_parameters()}
    batches, answers = trajectory.batches(0, 100, CPU), {(a, b): c for a, b, c in plain_table(operation, 23)}
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-3, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.5)
    losses = []
    for update in range(20):
        pairs = named(operation, 23, batches["a"][update], batches["b"][update])
        optimizer.param_groups[0]["lr"] = 1e-3 * min(1, update / 10)
        loss = plain.losses([(a, b, answers[a, b]) for a, b in pairs]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    reported, _ = ensemble.advance(20, GO_ON)
    np.testing.assert_allclose(reported, losses, rtol=1e-11)
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(ensemble.model.get_parameter(name), parameter, rtol=0, atol=1e-10, msg=name)
        assert (parameter != start[name]).any() or not start[name].any(), name


def test_models_of_all_tables_of_a_modulus_can_be_trained_as_one():
    """On a GPU: stacked, three operations make the same updates as each alone."""
    plan = grokking.plan(Config(SIZES, architectures=("L2_d16_h2",), seeds=1, modulus=11, batch_size=16, updates=20))
    *arithmetic, permutation = plan
    assert len({trajectory.shape for trajectory in arithmetic}) == 1 and permutation.shape != plan[0].shape
    assert harness.disagreement([harness.Progress(t) for t in arithmetic], CPU, "stacked") is None


def test_learning_rates_rise_from_zero():
    trajectory = trajectory_of(lr=0.2)
    rates = [trajectory.learning_rate(update, 7500) for update in range(200)]
    assert rates == pytest.approx([0.2 * update / 50 for update in range(50)] + [0.2] * 150) and rates[0] == 0
    assert {trajectory_of(lr=0.2, warmup=0).learning_rate(update, 100) for update in range(100)} == {0.2}
    defaults = grokking.plan(Config())[0]
    assert [defaults.learning_rate(update, 7500) for update in (0, 25, 50, 7499)] == pytest.approx(
        [0, 5e-4, 1e-3, 1e-3]
    )


PARAMETERS = {  # by layers and width: of the arithmetic operations, of permutations, and the class of both
    (1, 64): (63_073, 66_040, "small"),
    (2, 64): (113_057, 116_024, "small"),
    (4, 64): (213_025, 215_992, "medium"),
    (1, 128): (224_353, 230_264, "medium"),
    (2, 128): (422_625, 428_536, "medium"),
    (4, 128): (819_169, 825_080, "large"),
    (1, 256): (841_825, 853_624, "large"),
    (2, 256): (1_631_585, 1_643_384, "large"),
    (4, 256): (3_211_105, 3_222_904, "large"),
}


@pytest.mark.parametrize("layers, width", PARAMETERS)
def test_parameters_are_as_many_as_the_protocol_has(layers, width):
    for operation, n, wanted in zip(("x_plus_y", "permutation"), (97, 120), PARAMETERS[layers, width], strict=False):
        for heads in (2, 8):
            trajectory = trajectory_of(operation, f"L{layers}_d{width}_h{heads}", modulus=97)
            d = width
            formula = (n + 2 + 5) * d + layers * (12 * d**2 + 13 * d) + 2 * d + (d + 1) * n
            assert trajectory.parameters == wanted == formula
            assert grokking.bucket(wanted) == PARAMETERS[layers, width][2]


def test_edges_of_the_classes_of_capacity():
    edges = {149_999: "small", 150_000: "medium", 500_000: "medium", 500_001: "large"}
    assert {parameters: grokking.bucket(parameters) for parameters in edges} == edges


def test_models_start_as_pytorch_starts_them():
    """Steps to grokking change twofold and more with the scale of the start."""
    model = harness.Ensemble([harness.Progress(trajectory_of(size="L2_d128_h4", modulus=97))], CPU).model
    d, checked = 128, set()

    def uniform(name: str, bound: float) -> None:
        values = model.get_parameter(name)
        assert values.abs().max() <= bound and values.abs().max() > (1 - 10 / values.numel()) * bound, name
        assert abs(values.square().mean() / (bound**2 / 3) - 1) < 6 / math.sqrt(values.numel()), name
        checked.add(name)

    for name in ("tokens.weight", "positions.weight"):
        values = model.get_parameter(name)
        assert abs(values.mean()) < 5 / math.sqrt(values.numel()), name
        assert abs(values.std() - 1) < 5 / math.sqrt(2 * values.numel()), name
        checked.add(name)
    for i in range(2):
        uniform(f"blocks.{i}.attention.in_proj_weight", math.sqrt(6 / (3 * d + d)))  # Xavier, of the 3d x d matrix
        uniform(f"blocks.{i}.attention.out_proj.weight", 1 / math.sqrt(d))
        for kind in ("weight", "bias"):
            uniform(f"blocks.{i}.mlp.0.{kind}", 1 / math.sqrt(d))
            uniform(f"blocks.{i}.mlp.2.{kind}", 1 / math.sqrt(4 * d))
    uniform("answer.weight", 1 / math.sqrt(d))
    uniform("answer.bias", 1 / math.sqrt(d))
    for name, values in model.named_parameters():
        if name not in checked:  # norms, and biases in attention
            assert (values == (1.0 if "norm.weight" in name else 0.0)).all(), name
            assert "norm" in name or name.endswith(("in_proj_bias", "out_proj.bias")), name


@pytest.mark.parametrize("size, n, batch", [((1, 16, 2), 11, 5), ((2, 32, 4), 23, 8), ((4, 16, 1), 7, 3)])
def test_flops_of_an_update_are_those_that_pytorch_counts_in_the_protocol(size, n, batch):
    size = Architecture(*size)
    plain = PlainModel(things("x_plus_y", n), size)
    with FlopCounterMode(display=False) as counter:
        plain.losses(plain_table("x_plus_y", n)[:batch]).mean().backward()
    assert grokking.flops_per_update(size, n, batch) == counter.get_total_flops()


# ---- What is measured ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation, modulus", [("x_minus_y", 37), ("x_div_y", 11)])
def test_accuracies_and_losses_are_exact_and_of_every_entry(operation, modulus):
    """1369 entries are more than are evaluated at once."""
    trajectory = trajectory_of(operation, modulus=modulus, train_fraction=0.3)
    torch.manual_seed(1)
    model = trajectory.model()
    model.answer.bias.data[3] += 0.5  # more often right than chance, on both parts
    with torch.no_grad():
        numbers = trajectory.measure(trajectory.observe(model, 10), 10, {}, [])
        plain, entries = (
            twin(model, operation, modulus, trajectory.size),
            named(operation, modulus, *trajectory.data[:3]),
        )
        losses, answers = plain.losses(entries).tolist(), plain(entries).argmax(1).tolist()
    n = math.floor(0.3 * len(entries))
    assert trajectory.data.n_train == n
    for part, which in (("train", range(n)), ("val", range(n, len(entries)))):
        right = sum(answers[i] == entries[i][2] for i in which)
        assert right > 0 and numbers[f"{part}_acc"] == float(f"{right / len(which):.6g}")
        assert numbers[f"{part}_loss"] == pytest.approx(math.fsum(losses[i] for i in which) / len(which), rel=2e-6)
    norm = math.sqrt(sum(value**2 for p in plain.parameters() for value in p.flatten().tolist()))
    assert numbers["weight_norm"] == pytest.approx(norm, rel=1e-5) and numbers["collapsed"] == 0
    assert all(value == float(f"{value:.6g}") for value in numbers.values())


def test_collapsed_are_training_entries_whose_loss_has_no_digit_left():
    """A model that answers 3, surer and surer: in float32 the loss of that answer is 0 beyond a lead of about 20."""
    trajectory = trajectory_of("x_plus_y")
    model, data = trajectory.model(), trajectory.data
    share = (data.answers[: data.n_train] == 3).sum().item() / data.n_train
    for lead, collapsed in ((12, 0), (40, share)):
        model.answer.bias.data[3] = lead
        with torch.no_grad():
            numbers = trajectory.measure(trajectory.observe(model, 10), 10, {}, [])
        assert numbers["collapsed"] == pytest.approx(collapsed, rel=1e-5)
        assert numbers["train_acc"] == pytest.approx(share, rel=1e-5) and share > 0


def curve(val: list[float], train: list[float] | float = 1.0) -> list[dict]:
    """Points at 10, 20, .. with these accuracies; the other numbers tell where they are from."""
    train = train if isinstance(train, list) else [train] * len(val)
    told = [{"step": 10 * i, "train_acc": t, "val_acc": v} for i, (t, v) in enumerate(zip(train, val, strict=True), 1)]
    for p in told:
        p |= {"train_loss": p["step"] + 0.1, "val_loss": p["step"] + 0.2, "weight_norm": p["step"] + 0.3}
        p["collapsed"] = 0.5 if p["step"] == 20 else 0.25
    return told


def cell_of(val: list[float], train: list[float] | float = 1.0, **settings) -> dict:
    return trajectory_of(updates=7500, **settings).cell(curve(val, train))


STABILITY = (
    "stable_share stable_least_val_acc stable_least_train_acc stable_dips stable_longest_dip stable_at_end".split()
)


def test_a_model_that_never_memorizes_or_groks_has_null_for_the_steps():
    """Exactly 0.99 is not above it. Only the key of The AI Scientist's template has the last update instead."""
    never = cell_of([0.99] * 750, 0.99)
    assert never["step_val_acc_99"] == 7500 and never["grokked"] == 0
    assert [key for key, value in never.items() if value is None] == [
        "step_memorize", "step_grok", "step_grok_sustained", "delay", *STABILITY,
        "flops_to_grok", "weight_norm_memorize", "weight_norm_grok",
    ]  # fmt: skip
    memorized = cell_of([0.5] * 750, [0.9, 0.991] + [0.5] * 748)
    told = ("step_memorize", "step_grok", "delay", "step_val_acc_99", "weight_norm_memorize", "stable_share")
    assert [memorized[key] for key in told] == [20, None, None, 7500, 20.3, None]
    ends = ("final_train_loss", "final_val_loss", "final_train_acc", "final_val_acc", "final_weight_norm", "stopped_at")
    assert [memorized[key] for key in ends] == [7500.1, 7500.2, 0.5, 0.5, 7500.3, 7500]
    assert (memorized["final_collapsed"], memorized["most_collapsed"]) == (0.25, 0.5)


def test_steps_to_memorizing_and_to_grokking_and_what_they_cost():
    val = [0.1, 0.2, 0.3, 0.9901, 0.99] + [0.995] * 9 + [0.98] + [0.995] * 735
    numbers = cell_of(val, [0.5, 0.9900001] + [1.0] * 748)
    wanted = {"step_memorize": 20, "step_grok": 40, "step_val_acc_99": 40, "delay": 20, "grokked": 1}
    wanted |= {"step_grok_sustained": 160}  # nine in a row are not ten
    wanted |= {
        "weight_norm_memorize": 20.3,
        "weight_norm_grok": 40.3,
        "flops_to_grok": 40 * numbers["flops_per_update"],
    }
    wanted |= {"operation": "x_div_y", "layers": 2, "width": 32, "heads": 4, "bucket": "small"}
    assert {key: numbers[key] for key in wanted} == wanted
    assert numbers["flops_per_update"] == grokking.flops_per_update(Architecture(2, 32, 4), 23, 16)
    assert cell_of([1.0] * 9)["step_grok_sustained"] is None and cell_of([1.0] * 10)["step_grok_sustained"] == 10
    assert cell_of([1.0] * 10, [0.0] * 9 + [1.0])["delay"] == -90  # it knew the other half before


def test_stability_is_of_the_1000_updates_after_grokking_alone():
    val = [0.2] * 9 + [1.0] * 300  # groks at 100: the window is 110 to 1100
    train = [1.0] * 309
    val[8], train[9], val[110], train[110] = 0.0, 0.3, 0.1, 0.1  # just outside: 90, 100 and 1110
    val[20:24], val[30], val[40], val[50], train[60] = [0.94, 0.5, 0.94, 0.9499], 0.95, 0.99, 0.9, 0.7
    assert [cell_of(val, train)[key] for key in STABILITY] == [94 / 100, 0.5, 0.7, 2, 40, 1]
    val[108:110] = [0.8, 0.6]  # a dip that the window ends in
    assert [cell_of(val, train)[key] for key in STABILITY] == [92 / 100, 0.5, 0.7, 3, 40, 0]
    assert [cell_of([1.0] * 101)[key] for key in STABILITY] == [1.0, 1.0, 1.0, 0, 0, 1]
    assert [cell_of([1.0] * 100)[key] for key in STABILITY] == [None] * 6  # 990 updates are not all


def test_training_ends_1000_updates_after_grokking_only_if_asked_to():
    points = curve([0.99] * 6 + [0.991] + [0.3] * 200)  # groks at 70
    for early_stop in (False, True):
        trajectory = trajectory_of(updates=7500, early_stop=early_stop)
        ends = [points[i]["step"] for i in range(len(points)) if trajectory.finished(points[: i + 1])]
        assert ends == list(range(1070, 2080, 10)) * early_stop
    assert not trajectory.finished(curve([0.99] * 300))


# ---- Runs ------------------------------------------------------------------------------------------------------------

TINY = "--device cpu --modulus 11 --updates 20 --batch_size 16 --seeds 1 --operations x_div_y".split()


def run(folder: Path, *arguments) -> dict:
    """Run the study in this process; what all_results.json holds."""
    assert grokking.main([*TINY, *map(str, arguments), "--out_dir", str(folder)]) == 0
    return json.loads((folder / "all_results.json").read_bytes())


@pytest.fixture(scope="module")
def complete(tmp_path_factory) -> Path:
    """The folder of a run of two architectures, one of them the baseline's, and two seeds, not to be changed."""
    folder = tmp_path_factory.mktemp("complete") / "run_0"
    run(folder, "--architectures", "L1_d16_h2", "L2_d128_h4", "--seeds", 2)
    return folder


def test_final_info_has_the_template_s_numbers_of_every_cell(complete):
    def refuse(word):
        raise AssertionError(f"{word} is not JSON")

    final_info = json.loads((complete / "final_info.json").read_bytes(), parse_constant=refuse)
    assert [*final_info] == ["x_div_y/L1_d16_h2", "x_div_y"]
    template = ["final_train_loss", "final_val_loss", "final_train_acc", "final_val_acc", "step_val_acc_99"]
    others = ["grokked", "step_memorize", "step_grok", "step_grok_sustained", "delay", "stable_share"]
    for cell in final_info.values():
        assert [*cell["final_info_dict"]] == template + others
        means, seeds = cell["means"], cell["final_info_dict"]
        assert seeds["step_val_acc_99"] == [20, 20] and means["step_val_acc_99_mean"] == 20
        assert seeds["step_grok"] == [None, None] and means["step_grok_mean"] is None and means["grokked_mean"] == 0
        assert (means["step_grok_k"], means["step_grok_n"]) == (0, 2) and "final_val_acc_k" not in means
        assert means["final_val_loss_mean"] == pytest.approx(sum(seeds["final_val_loss"]) / 2)
    with open(complete / "cells.csv") as file:
        rows = [(row["cell"], row["seed"], row["layers"], row["step_grok"]) for row in csv.DictReader(file)]
    assert rows == [(cell, seed, layers, "") for cell, layers in zip(final_info, "12", strict=True) for seed in "01"]
    everything = json.loads((complete / "all_results.json").read_bytes(), parse_constant=refuse)
    told = everything["trajectories"][0]
    assert told["curves"]["step"] == [10, 20] and (told["n_train"], told["n_val"]) == (55, 55)


def test_cells_are_called_by_operation_and_architecture():
    config = Config(operations=("permutation", "x_plus_y"), layers=(1, 2), widths=(64, 128), heads=(4,), seeds=1)
    cells = [cell for trajectory in grokking.plan(config) for cell in trajectory.cells.values()]
    sizes = ["/L1_d64_h4", "/L1_d128_h4", "/L2_d64_h4", ""]
    assert cells == [operation + size for operation in ("permutation", "x_plus_y") for size in sizes]
    assert [t.cells for t in grokking.plan(Config(seeds=1))] == [{7500: operation} for operation in SIZES]
    assert grokking.plan(Config())[0].measured == tuple(range(10, 7500, 10))


def test_a_run_grows_by_seeds_and_architectures_and_ends_with_the_same_bytes(complete, tmp_path):
    assert run(tmp_path, "--architectures", "L1_d16_h2")["timing"]["model_steps"] == 20
    assert run(tmp_path, "--architectures", "L1_d16_h2", "--seeds", 2)["timing"]["model_steps"] == 20
    grown = run(tmp_path, "--architectures", "L1_d16_h2", "L2_d128_h4", "--seeds", 2)
    assert grown["timing"]["model_steps"] == 40
    for name in ("final_info.json", "cells.csv"):
        assert (tmp_path / name).read_bytes() == (complete / name).read_bytes()


def test_a_small_model_groks_and_an_early_stop_changes_no_number_before_it(tmp_path, monkeypatch):
    monkeypatch.setattr(grokking, "WINDOW", 50)
    flags = "--operations x_plus_y --architectures L1_d32_h2 --train_fraction 0.8 --batch_size 64 --lr 1e-2".split()
    whole = run(tmp_path / "whole", *flags, "--updates", 500)
    early = run(tmp_path / "early", *flags, "--updates", 500, "--early_stop")
    (cell,), (other,) = whole["cells"], early["cells"]
    assert 0 < cell["step_memorize"] < cell["step_grok"] < 400 and cell["stopped_at"] == 500
    assert other["stopped_at"] == cell["step_grok"] + 50 == early["timing"]["model_steps"]
    ends = {key for key in cell if key.startswith("final_") or key in ("stopped_at", "most_collapsed")}
    assert {key: cell[key] for key in cell.keys() - ends} == {key: other[key] for key in other.keys() - ends}
    curves, shorter = (results["trajectories"][0]["curves"] for results in (whole, early))
    n = len(shorter["step"])
    assert n == other["stopped_at"] / 10 and {key: values[:n] for key, values in curves.items()} == shorter


@pytest.mark.parametrize("place", ["beside the script", "two folders above it"])
def test_a_copy_runs_with_a_copy_of_the_harness(complete, tmp_path, place):
    folder = tmp_path / "studies" / "grokking"
    folder.mkdir(parents=True)
    shutil.copy(SCRIPT, folder)
    shutil.copy(ROOT / "harness.py", folder if place == "beside the script" else tmp_path)
    command = [sys.executable, "experiment.py", *TINY, "--architectures", "L1_d16_h2", "--seeds", "2"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stderr) == (0, "")
    key = "x_div_y/L1_d16_h2"
    found, wanted = (json.loads((path / "final_info.json").read_bytes()) for path in (folder / "run_0", complete))
    assert found == {key: wanted[key]}


BAD_INPUT = {
    **{f"--modulus {n}": "a prime" for n in (1, 4, 91, 0, -7, 1009)},
    **{f"--train_fraction {x}": "between 0 and 1" for x in ("0", "1", "1.5", "-0.5", "nan")},
    "--train_fraction 0.0001": "both parts of the 9312 entries of x_div_y",
    "--operations x_plus_y x_times_y": "x_div_y x_minus_y x_plus_y permutation",
    "--operations x_plus_y x_plus_y": "different from each other",
    "--architectures L2_d64_h4 L2_d64_h4": "different from each other",
    **{f"--architectures {x}": "such as L4_d64_h4" for x in ("L2d64h4", "L0_d64_h4", "L2_d64_h4_", "l2_d64_h4")},
    "--architectures L2_d64_h3": "divisible by the heads",
    "--widths 64 66": "divisible by the heads",
    "--heads 4 5": "divisible by the heads",
    **{f"--{flag} 0": "at least 1" for flag in ("seeds", "batch_size", "updates", "layers", "widths", "heads")},
    **{f"--lr {x}": "finite and not negative" for x in ("-1", "inf", "nan")},
    **{f"--weight_decay {x}": "finite and not negative" for x in ("-1", "inf", "nan")},
    "--warmup -1": "at least 0",
    "--seed -1": "at least 0",
}


@pytest.mark.parametrize("words", BAD_INPUT)
def test_bad_input_is_one_line_and_touches_nothing(tmp_path, monkeypatch, capsys, words):
    monkeypatch.chdir(tmp_path)
    assert grokking.main(words.split(" ")) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1 and told.err.startswith("experiment.py: --")
    assert BAD_INPUT[words] in told.err and not list(tmp_path.iterdir())
    if "--heads" not in words or words.endswith(" 0"):
        assert words.split(" ")[0] in told.err
