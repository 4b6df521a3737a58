"""The reversal study: sequences, positions, model, losses and measurements against the specification in plain words."""

import importlib.util
import json
import math
import re
import sys
from dataclasses import asdict
from functools import partial

import harness

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from training import CPU

spec = importlib.util.spec_from_file_location("reversal_experiment", ROOT / "studies" / "reversal" / "experiment.py")
reversal = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reversal)
ARMS, Config = reversal.ARMS, reversal.Config
SMALL = {"hidden_size": 16, "n_heads": 2, "mlp_ratio": 2, "vocab_size": 7, "max_len": 5, "position_range": 16}
SMALL |= {"test_lengths": (8,), "n_test": 40, "batch_size": 6, "seeds": 1, "num_steps": 20}
CASES = [*((arm, {}) for arm in ARMS), ("looped_n_rotary", {"loops": "window:2:4"})]
CASES += [("looped_k6_random", {"loops": "window:3:3", "train_pad": 2}), ("looped_n_nope", {"loss_on": "content"})]
CASES += [("looped_k2", {"layout": "append", "positions": "rotary", "layers": 2, "loss_on": "content"})]
CASES += [("looped_gate", {"inject": True, "loss_on": "content"}), ("looped_aligned", {"loss_on": "content"})]


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def trajectory_of(arm: str, **settings) -> "reversal.ReversalTrajectory":
    return reversal.plan(Config(**SMALL | {"arms": (arm,)} | settings))[0]


def model_of(trajectory) -> torch.nn.Module:
    """A model far from initialization, so that every path matters."""
    torch.manual_seed(0)
    model = trajectory.model()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model


def batch_of(trajectory, n: int = 6) -> dict[str, torch.Tensor]:
    """The first sequences of training."""
    return {key: values[0][:n] for key, values in trajectory.batches(0, 100, CPU).items()}


def test_lengths_tokens_and_random_places_are_uniform_and_reversed_twice_the_same():
    first, second = (trajectory_of("standard", max_len=10).batches(start, 100, CPU) for start in (0, 100))
    lengths, tokens = first["lengths"].flatten(), first["tokens"].flatten(0, 1)
    long = [tuple(row) for row in [*tokens.tolist(), *second["tokens"].flatten(0, 1).tolist()] if row[8]]
    assert len({*long}) == len(long) > 250
    found = [(lengths, range(3, 11)), (tokens[torch.arange(10) < lengths[:, None]], range(1, 7))]
    for kind in ("random", "ends_random", "ends_shift"):
        generator, shift = torch.Generator().manual_seed(0), kind == "ends_shift"
        places = reversal.coordinates(kind, 5, torch.full((3000,), 4), 9, generator)[..., 0].int()
        found.append((places[:, 0] if shift else places, range(5 if shift else 9)))
        assert len(places.unique(dim=0)) == (5 if shift else math.comb(9, 5))
    tokens, lengths = torch.randint(9, (500, 8)), torch.randint(1, 9, (500,))
    back = reversal.reverse(tokens, lengths)  # twice it is the identity, and padding stays whatever it is
    assert torch.equal(reversal.reverse(back, lengths), tokens)
    pairs = zip(tokens.tolist(), back.tolist(), lengths.tolist(), strict=True)
    assert all(other == row[:n][::-1] + row[n:] for row, other, n in pairs)
    for values, allowed in found:
        values, mean = values.flatten().tolist(), values.numel() / len(allowed)
        assert {*values} == {*allowed} and all(abs(values.count(x) - mean) < 5 * math.sqrt(mean) for x in allowed)


def laid_out(x: list[int], size: int, layout: str) -> tuple[list[int], list[int], list[bool], list[bool]]:
    """What is read and what is asked for, where the answer is, and where slots are, of 7 words. With the answer behind,
    at least one slot stays empty."""
    n, rest = len(x), [0] * (size - len(x))
    if layout == "inplace":
        return x + rest, x[::-1] + rest, [k < n for k in range(size)], [True] * size
    answer, places = [0] * (n + 1) + x[::-1] + [0] + rest + rest, range(2 * size + 2)
    return [*x, 7, *n * [0], 0, *rest, *rest], answer, [n < k <= 2 * n for k in places], [n < k for k in places]


def rows_of(batch: dict[str, torch.Tensor]):
    """Tokens, targets, content, slots, places and length of every sequence."""
    keys = ("tokens", "targets", "content", "slots", "coordinates", "lengths")
    return zip(*(batch[key].tolist() for key in keys), strict=True)


@pytest.mark.parametrize("arm, settings", CASES)
def test_batches_are_sequences_laid_out_with_their_places(arm, settings):
    trajectory = trajectory_of(arm, **settings)
    batch, own, drawn = batch_of(trajectory), trajectory.arm, set()
    for tokens, targets, content, slots, places, n in rows_of(batch):
        wanted = laid_out(tokens[:n], 5 + own.train_pad, own.layout)
        assert (tokens, targets, content, slots) == wanted and 0 < min(tokens[:n])
        (start, end), size = zip(*places, strict=True), len(tokens)
        first = int(start[0]) if own.positions == "ends_shift" else 0
        wanted = sorted({*start}) if "random" in own.positions else [*range(first, first + size)]
        assert [*start] == wanted and 0 <= start[0] and start[-1] < 16
        assert end[:n] == start[:n][::-1]  # of every two tokens that change places, each has the other's
        assert [*end[n:]] == [-1 - x for x in start[: size - n]]
        drawn.add(start)
    assert len(drawn) > 3 if own.positions in ("random", "ends_random", "ends_shift") else len(drawn) == 1


@pytest.mark.parametrize("arm", ARMS)
def test_arms_of_a_seed_are_trained_and_tested_on_the_same_sequences(arm):
    def seen(arm: str, seed: int) -> list[list[int]]:
        t = trajectory_of(arm, seed=seed)
        tests = [t.sequences(torch.full((3,), 4), 4, pad, harness.stream(seed, "test sequences", 4)) for pad in (0, 7)]
        assert torch.equal(tests[0]["tokens"][:, :4], tests[1]["tokens"][:, :4])  # whatever the frame
        return [row[:n] for b in (batch_of(t), tests[0]) for row, *_, n in rows_of(b)]

    assert seen(arm, 1) == seen("standard", 1) == seen(arm, 1) != seen(arm, 2)


def test_models_have_the_parameters_of_the_original_and_start_like_it():
    assert sum(p.numel() for p in reversal.Block(Config(), ARMS["standard"]).parameters()) == 49_984
    for words, wanted in (
        *(({"loops": loops}, 62_884) for loops in ("1", "2", "6", "20", "length", "window:10:10")),
        ({"layers": 2}, 112_868), ({"layers": 6, "loops": "1"}, 312_804),
        ({"arms": ("looped_n_nope",)}, 62_884 + 64), ({"arms": ("looped_gate",)}, 62_884 + 65),
        ({"arms": ("looped_aligned",)}, 62_884 + 4 * 64),
    ):  # fmt: skip
        trajectory = reversal.plan(Config(**{"arms": ("looped_k2",)} | words))[0]
        assert sum(p.numel() for p in trajectory.model().parameters()) == wanted
        assert trajectory.extras([])["parameters"] == wanted
    torch.manual_seed(0)
    model = reversal.plan(Config(arms=("standard",)))[0].model()
    cut = math.sqrt(1 - 4 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2)))  # std of a normal cut at 2
    for name, values in model.named_parameters():
        n, std = values.numel(), values.shape[-1] ** -0.5
        if values.ndim == 2:
            assert abs(values.square().mean().sqrt() / std - 1) < 4 / math.sqrt(2 * n), name
            low, high = (3, 6) if name == "tokens.weight" else (0.98 * 2 / cut, 2 / cut + 1e-6)
            assert low < values.abs().max() / std <= high, name
        else:
            assert (values == (1 if "norm.weight" in name else 0)).all(), name
    assert [m.eps for m in model.modules() if isinstance(m, torch.nn.LayerNorm)] == 4 * [1e-6]


def apply(layer, p: dict[str, torch.Tensor], x: torch.Tensor, name: str, *settings) -> torch.Tensor:
    return layer(x, *settings, p[f"{name}.weight"], p[f"{name}.bias"])


def plain_block(p: dict[str, torch.Tensor], x: torch.Tensor, places: list, arm) -> torch.Tensor:
    """One sequence [T, 16], head by head; p: the block's weights by name."""
    norm = partial(F.layer_norm, eps=1e-6)
    turns, read = torch.tensor([[place * 10000 ** (-i / 4) for i in range(4)] for place in places]), []
    for q, k, v in zip(*(part.split(8, 1) for part in apply(F.linear, p, x, "qkv").chunk(3, 1)), strict=True):
        if arm.positions == "rotary":
            q, k = (torch.complex(part[:, 0::2], part[:, 1::2]) * torch.polar(turns * 0 + 1, turns) for part in (q, k))
        weights = ((q @ k.mH).real / math.sqrt(8)).exp()
        weights = weights.tril() if arm.layout == "append" else weights
        read.append(weights / weights.sum(1, keepdim=True) @ v)
    x = apply(norm, p, x + apply(F.linear, p, torch.cat(read, 1), "attention_out"), "attention_norm", (16,))
    hidden = apply(F.linear, p, x, "mlp_in").clamp(min=0)
    return apply(norm, p, x + apply(F.linear, p, hidden, "mlp_out"), "mlp_norm", (16,))


def plain_states(p: dict, arm, tokens: list[int], places: list[list], loops: int, cut: int = 0) -> list:
    """The states of one sequence after every loop; before the loop cut + 1 gradients end."""

    def encoding(x: float, d: int) -> list[float]:
        return [wave(x / 10000 ** (2 * i / d)) for i in range(d // 2) for wave in (math.sin, math.cos)]

    x = p["tokens.weight"][tokens]
    if arm.positions not in ("nope", "rotary"):
        ends = arm.positions.startswith("ends")
        x = x + torch.tensor([encoding(i, 8) + encoding(j, 8) if ends else encoding(i, 16) for i, j in places])
    state, states = 0 * x if arm.inject else x, []
    for loop in range(loops):
        state = state.detach() if 0 < loop == cut else state
        state = state + x if arm.inject else state
        if arm.aligned:
            state = state + torch.stack([p["parities.weight"][2 * (i % 2) + loop % 2] for i in range(len(tokens))])
        for i in range(arm.layers):
            own = {name[9:]: values for name, values in p.items() if name.startswith(f"blocks.{i}.")}
            state = plain_block(own, state, [i for i, _ in places], arm)
        states.append(state)
    return states


def swapped(x: list[int], rounds: int) -> list[int]:
    x = [*x]
    for t in range(rounds):
        for i in range(t % 2, len(x) - 1, 2):
            x[i], x[i + 1] = x[i + 1], x[i]
    return x


def plain_loss(p: dict, arm, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Every sequence after its loops: one or as many as tokens, the mean of a window, or by exit probabilities. An
    aligned arm has after every loop of the longest sequence an answer of its own."""
    sums, entropy, asked, (kind, *numbers) = [], 0, 0, arm.loops.split(":")
    for tokens, targets, content, slots, places, n in rows_of(batch):
        loops = 5 if arm.aligned else n if kind == "length" else int((numbers or [kind])[-1])
        last = int(numbers[0]) if numbers else loops if arm.gate or arm.aligned else 1
        states = plain_states(p, arm, tokens, places, loops, loops - last if numbers else 0)[-last:]
        shares = [1 / last] * last
        if arm.gate:
            ends = [apply(F.linear, p, state.mean(0), "gate").sigmoid()[0] for state in states]
            shares = [math.prod([1 - x for x in ends[:t]]) * (ends[t] if t < last - 1 else 1) for t in range(last)]
            entropy = entropy - sum(x * x.log() for x in shares) / len(batch["lengths"])
        which = [i for i in range(len(tokens)) if (slots if arm.loss_on == "all" else content)[i]]
        assert arm.layout == "inplace" or min(which) == n + 1  # neither the input nor what ends it
        for t, (share, state) in enumerate(zip(shares, states, strict=True)):
            answer, wanted = apply(F.linear, p, state, "answer").exp(), targets
            if arm.aligned:
                wanted = swapped(tokens[:n], t + 1) + tokens[n:]
            sums += [-share * (answer[i, wanted[i]] / answer[i].sum()).log() for i in which]
        asked += len(which)
    return sum(sums) / asked - 0.05 * entropy * arm.gate


@pytest.mark.parametrize("arm, settings", CASES)
def test_states_losses_and_gradients_are_those_of_the_specification(arm, settings, float64):
    trajectory = trajectory_of(arm, **settings)
    model, batch, loops, own = model_of(trajectory), batch_of(trajectory, 3), trajectory.trained_loops, trajectory.arm
    p = {name: value.detach().clone().requires_grad_() for name, value in model.named_parameters()}
    tokens, places = batch["tokens"], batch["coordinates"]
    states = torch.stack(model(tokens, places, loops + 1))
    for row in range(3):
        wanted = plain_states(p, own, tokens[row].tolist(), places[row].tolist(), loops + 1)
        torch.testing.assert_close(states[:, row], torch.stack(wanted), rtol=1e-9, atol=1e-9)
    for fewer, start in ((1, 0), (loops, 0), (loops, loops - 1)):  # the first states do not know how many follow
        assert torch.equal(torch.stack(model(tokens, places, fewer, start)), states[start:fewer])
    changed = torch.where(torch.arange(tokens.shape[1]) == 4, tokens % 6 + 1, tokens)  # seen before it if not causal
    before = torch.stack(model(changed, places, loops + 1))[:, :, :4]
    assert torch.equal(before, states[:, :, :4]) == (own.layout == "append")
    shifted = torch.stack(model(tokens, places + 37, loops + 1))
    assert torch.allclose(shifted, states, rtol=0, atol=1e-9) == (own.positions in ("rotary", "nope"))
    loss, reported = trajectory.loss(model, **batch)
    wanted = plain_loss(p, own, batch)
    assert loss.item() == reported["loss"].item() == pytest.approx(wanted.item(), rel=1e-9)
    loss.backward()
    wanted.backward()
    for name, value in model.named_parameters():
        found, gradient = (torch.zeros_like(value) if x.grad is None else x.grad for x in (value, p[name]))
        torch.testing.assert_close(found, gradient, rtol=1e-7, atol=1e-9, msg=name)


@pytest.mark.parametrize("n", [1, 4])
def test_a_shared_block_is_copies_whose_gradients_add_up(n, float64):
    plan = trajectory_of("looped_k2", loops=str(n)), trajectory_of("standard", layers=n)
    one, many = (model_of(trajectory) for trajectory in plan)
    names = {name: re.sub(r"blocks\.\d", "blocks.0", name) for name, _ in many.named_parameters()}
    many.load_state_dict({name: one.state_dict()[shared] for name, shared in names.items()})
    losses = [t.loss(model, **batch_of(plan[0]))[0] for t, model in zip(plan, (one, many), strict=True)]
    assert losses[0].item() == losses[1].item()
    sum(losses).backward()
    for name, value in one.named_parameters():
        copies = [p.grad for other, p in many.named_parameters() if names[other] == name]
        assert len(copies) == (n if "blocks" in name else 1)
        torch.testing.assert_close(value.grad, sum(copies), rtol=1e-9, atol=1e-12)


def test_exit_probabilities_are_geometric_for_a_constant_gate():
    model, states = model_of(trajectory_of("looped_gate")), [*torch.randn(5, 7, 6, 16)]
    torch.testing.assert_close(model.exits(states).sum(1), torch.ones(7))
    model.gate.weight.data.zero_()
    for q in (0.0, 0.3, 1.0):
        model.gate.bias.data.fill_(math.log(q / (1 - q)) if 0 < q < 1 else 200 * (q - 0.5))
        wanted = [q * (1 - q) ** t for t in range(4)] + [(1 - q) ** 4]
        torch.testing.assert_close(model.exits(states), torch.tensor([wanted] * 7))


def test_the_optimizer_is_adam_and_its_rate_constant_or_half_a_cosine():
    (adam,) = trajectory_of("standard").optimizer({"x": torch.zeros(1)}, 0.1).param_groups
    assert [adam[key] for key in ("betas", "eps", "weight_decay", "amsgrad")] == [(0.9, 0.999), 1e-8, 0, False]
    for schedule, power in (("constant", 0), ("cosine", 2)):
        rates = harness.Progress(trajectory_of("standard", schedule=schedule, learning_rate=0.1)).rates
        assert rates == pytest.approx([0.1 * math.cos(math.pi * k / 40) ** power for k in range(20)])


def test_the_oracle_reverses_in_as_many_loops_as_tokens_and_not_in_fewer():
    for n in range(3, 51):
        x, control = (torch.randperm(99)[:n] + 1).tolist(), reversal.Control(Config(), "oracle")
        for t, state in enumerate(control(torch.tensor([x + [0, 0]]), None, n), 1):
            y = swapped(x, t)
            assert control.answer(state).argmax(-1).tolist() == [y + [0, 0]] and (y == x[::-1]) == (t == n)


@pytest.mark.parametrize("arm, n", [("oracle", 10), ("reference", 9), ("reference", 10)])
def test_controls_pass_the_evaluation_and_the_identity_has_what_chance_gives(arm, n):
    trajectory = trajectory_of(arm, vocab_size=100, n_test=400, test_lengths=(n,))
    told = trajectory.measure(trajectory.observe(trajectory.model(), 1), 1, {}, [])
    own, mapped = told["by_length"], [*range(3, 8), n]
    if arm == "oracle":  # with a token twice it may be done one loop earlier
        assert all(row[k - 1] == 1 > 0.03 > row[k - 2] for k, row in zip(mapped, own["exact_by_loop"], strict=True))
        assert {*own["exact"], *own["exact_all"], *own["other_exact"], *own["other_token"], *own["profile"][0]} == {1}
        assert told["trained_exact"] == told["trained_exact_all"] == told["trained_token"] == 1
    else:  # the middle is right, and two others in one of 99 cases
        right, pairs = own["token"][n - 3] * n - n % 2, n // 2
        assert {*own["exact_by_loop"][-1]} == {0} and abs(right - 2 * pairs / 99) < 10 * math.sqrt(pairs / 99 / 400)


SHORT = {n: (10, n if n < 10 else 11) for n in range(3, 11)}  # length: positions in the own frame, and in the other one


@pytest.mark.parametrize("arm, settings, frames", [
    ("standard", {}, SHORT | {11: (11, 12), 50: (50, 51)}),
    ("looped_k2", {"test_pad": 3}, SHORT | {11: (14, 11), 50: (53, 50)}),
    ("looped_n_rotary", {}, {n: (11, n) for n in range(3, 11)} | {11: (12, 11), 50: (51, 50)}),
    ("looped_k2", {"train_pad": 40}, {n: (50, n) for n in range(3, 11)} | {11: (11, 50), 45: (45, 50), 50: (50, 51)}),
])  # fmt: skip
def test_lengths_of_training_are_tested_in_its_frame_and_the_mapped_ones_in_another_too(arm, settings, frames):
    trajectory, seen = reversal.plan(Config(arms=(arm,), n_test=2, **settings))[0], {}

    class Spy(reversal.Control):
        def forward(self, tokens, coordinates, loops, start):
            seen.setdefault(int((tokens > 0).sum(1).max()), []).append((tokens.shape[1], loops))
            return super().forward(tokens, coordinates, loops, start)

    mapped = [*range(3, 13), *range(15, 51, 5)]
    for update in (500, 5000):
        seen.clear()
        trajectory.observe(Spy(Config(), "reference"), update)
        at_end = update == 5000
        assert [*seen] == [*range(3, 51 if at_end else 11)]
        for n, tested in seen.items():
            asked = n if trajectory.arm.loops == "length" else int(trajectory.arm.loops)
            whole = at_end and n in mapped
            loops = max(20, n + 5) if whole and arm != "standard" else asked
            assert [k for _, k in tested] == ([loops, asked] if whole else [loops])
            assert n not in frames or tuple(size for size, _ in tested) == frames[n][: len(tested)]
    assert trajectory.batches(0, 100, CPU)["tokens"].shape[2] == frames[3][0]


@pytest.mark.parametrize("arm", ["standard", "looped_k6_random", "looped_n_nope", "looped_n_rotary", "looped_gate"])
@torch.no_grad()
def test_measurements_are_counts_over_sequences(arm):
    """With two tokens a model that is not trained is right now and then."""
    settings = {"inference_iterations_list": (2,), "test_lengths": (5, 8)}
    trajectory = trajectory_of(arm, vocab_size=3, n_heads=1, **settings)
    model, own = model_of(trajectory), trajectory.arm
    early, told = (trajectory.measure(trajectory.observe(model, k), k, {"loss": [1, 2]}, []) for k in (10, 20))
    by_length, lengths, trained = told["by_length"], range(3, 9), []
    assert told["loss"] == early["loss"] == 1.5 and "by_length" not in early
    assert by_length["lengths"] == by_length["mapped"] == [*lengths]
    for at, n in enumerate(lengths):
        asked, looped = n if own.loops == "length" else int(own.loops), arm != "standard"
        pad = 5 + own.train_pad - n if n <= 5 else own.test_pad
        for frame, size in (("", pad), ("other_", 0 if pad else 1)):
            generator, found, profiles = harness.stream(0, "test sequences", n), [], []
            batch = trajectory.sequences(torch.full((40,), n), n, size, generator)
            states = model(batch["tokens"], batch["coordinates"], 20 if looped else 1)
            for t, state in enumerate(states):
                right = model.answer(state).argmax(-1) == batch["targets"]
                content = right[batch["content"]].view(40, n).tolist()
                filled = [all(x for x, slot in zip(*two, strict=True) if slot)
                          for two in zip(right.tolist(), batch["slots"].tolist(), strict=True)]  # fmt: skip
                counts = [sum(map(all, content)) / 40, sum(filled) / 40, sum(map(sum, content)) / 40 / n]
                counts.append(-model.answer(state).softmax(-1)[batch["content"]].amax(-1).log().mean().item())
                moved = [float((a - b).norm() / a.norm()) for a, b in zip(state, states[max(0, t - 1)], strict=True)]
                found.append([*counts, sum(moved) / 40])
                profiles.append([sum(column) / 40 for column in zip(*content, strict=True)])
            keys = ("exact", "exact_all", "token", "doubt", "change")
            for key, *values in zip(keys, *found, strict=True):
                if frame + key in by_length:
                    assert by_length[frame + key][at] == pytest.approx(values[asked - 1], abs=5.1e-5)
                if key == "exact" and looped and not frame:
                    assert by_length["exact_by_loop"][at] == pytest.approx(values, abs=5.1e-5)
                elif key != "exact_all" and looped and not frame and n in (5, 8):
                    assert by_length[f"{key}_by_loop"][(5, 8).index(n)] == pytest.approx(values, rel=6e-3, abs=1e-6)
            if not frame:
                trained += [found[asked - 1][:3]] if n <= 5 else []
                if n in (5, 8):
                    assert by_length["profile"][(5, 8).index(n)] == pytest.approx(profiles[asked - 1], abs=5.1e-5)
    columns = {"exact", "exact_all", "token", "other_exact", "other_token", "profile", "lengths", "mapped"}
    looped = {"exact_by_loop", "token_by_loop", "doubt_by_loop", "change_by_loop", "stopping"}
    assert by_length.keys() == columns | (set() if arm == "standard" else looped)
    for key, *values in zip(("exact", "exact_all", "token"), *trained, strict=True):
        assert early[f"trained_{key}"] == told[f"trained_{key}"] == pytest.approx(sum(values) / 3)


def test_all_slots_are_counted_and_the_input_before_them_is_not():
    slots = torch.tensor([[False] * 3 + [True] * 3] * 3)
    answers = torch.tensor([[9, 9, 9, 5, 6, 0], [0, 0, 0, 5, 6, 9], [0, 0, 0, 5, 9, 0]])
    told = reversal.score(
        F.one_hot(answers, 10).float(), torch.tensor([[0, 0, 0, 5, 6, 0]] * 3), slots & (torch.arange(6) < 5), slots
    )
    assert (told["exact"].tolist(), told["exact_all"].tolist()) == ([1, 1, 0], [1, 0, 0])
    assert (told["token"].tolist(), told["profile"].tolist()) == ([1, 1, 0.5], [[1, 1], [1, 1], [1, 0]])


def test_stopping_rules_choose_a_loop_for_every_sequence():
    torch.manual_seed(0)
    observed, wanted, rules = {}, {}, ("oracle", "confidence", *(f"gate_{q}" for q in (0.1, 0.3, 0.5, 0.7, 0.9)))
    for n in range(3, 9):  # of five sequences and eight loops
        exact, doubt, exits = (torch.rand(5, 8) > 0.5).double(), torch.rand(5, 8), torch.rand(5, 6).softmax(1)
        observed |= {f"{n}/exact_by_loop": exact, f"{n}/doubt_by_loop": doubt, f"{n}/exits_by_loop": exits}
        for rule in rules:
            at = [n - 1] * 5 if rule == "oracle" else [row.index(min(row)) for row in doubt.tolist()]
            if rule.startswith("gate"):
                at = [next(t for t in range(6) if sum(row[: t + 1]) >= float(rule[5:])) for row in exits.tolist()]
            told = wanted.setdefault(rule, {"exact": [], "loops": []})
            told["exact"].append(sum(row[t] for row, t in zip(exact.tolist(), at, strict=True)) / 5)
            told["loops"].append(sum(at) / 5 + 1)
    for arm, known in (("looped_gate", rules), ("looped_k2", rules[:2]), ("oracle", rules[:1])):
        found = trajectory_of(arm).stopping(observed)
        assert [*found] == [*known]
        for rule in known:
            assert all(found[rule][key] == pytest.approx(wanted[rule][key]) for key in ("exact", "loops"))


@pytest.mark.parametrize("arm, loops", [("standard", 1), ("looped_k6", 6), ("looped_n_rotary", None), ("oracle", None)])
def test_a_cell_has_numbers_by_length_and_loops_and_how_far_an_arm_gets_without_a_failure(arm, loops):
    trajectory = trajectory_of(arm, inference_iterations_list=(2, 9), test_lengths=(4, 8))
    told = {"exact": [0.9, 1.0, 0.9, 0.8999, 1.0, 0.95], "token": [n / 10 for n in range(3, 9)]}
    told["exact_by_loop"] = [[n + k / 100 for k in range(1, 21)] for n in range(3, 9)]
    point = {f"trained_{key}": x for key, x in (("exact", 0.9), ("exact_all", 0.7), ("token", 0.95))} | {"loss": 1.0}
    wanted = point | {"trained": 1, "exact_L4": 1.0, "exact_L8": 0.95, "token_L4": 0.4, "token_L8": 0.8, "longest": 5}
    by_loop = {f"exact_L{n}_K{k}": n + k / 100 for n in (4, 8) for k in (2, 9)} if loops != 1 else {}
    assert trajectory.cell([point | {"by_length": told}]) == wanted | by_loop
    early = trajectory.cell([point | {"trained_exact": 0.8999}])
    assert (early["trained"], early["longest"], early["exact_L8"]) == (0, None, None) and early.keys() == {
        *wanted,
        *by_loop,
    }
    for exact, longest in (([0.8] + 5 * [1.0], None), (6 * [1.0], 8)):
        assert trajectory.cell([point | {"by_length": told | {"exact": exact}}])["longest"] == longest


@pytest.mark.parametrize("arm", [*ARMS, "oracle", "window"])
def test_models_train_stacked_as_each_alone(arm):
    """As on a GPU."""
    window = {"loops": "window:2:3", "inject": True} if arm == "window" else {}
    plan = reversal.plan(Config(**SMALL | window | {"arms": ("looped_k2" if window else arm,), "seeds": 2}))
    assert harness.disagreement([harness.Progress(trajectory) for trajectory in plan], CPU, "stacked") is None


def test_a_flag_holds_for_all_arms_and_without_it_an_arm_is_its_own():
    given = {"layers": 3, "loops": "4", "inject": False, "positions": "rotary", "layout": "append", "train_pad": 2}
    given |= {"test_pad": 3, "gate": True, "aligned": False, "loss_on": "content"}
    for trajectory in reversal.plan(Config(arms=(*ARMS,), **given)):
        assert asdict(trajectory.arm) == given and trajectory.extras([]).items() >= given.items()
    assert {name: Config().arm(name) for name in ARMS} == ARMS


TINY = (
    "--device cpu --plain --num_steps 2 --n_test 2 --test_lengths 5 --max_len 4 --hidden_size 16 --n_heads 1 --seeds 1"
)


def test_a_run_of_all_arms_writes_strict_json_and_runs_grow_by_arms_and_seeds(tmp_path):
    def run(folder: str, words: str = "") -> list:
        assert reversal.main([*TINY.split(), "--out_dir", str(tmp_path / folder), *words.split()]) == 0
        json.loads((tmp_path / folder / "all_results.json").read_bytes(), parse_constant=pytest.fail)
        return [(tmp_path / folder / name).read_bytes() for name in ("final_info.json", "cells.csv")]

    final_info = json.loads(run("all")[0], parse_constant=pytest.fail)
    assert [*final_info] == [*ARMS, "oracle", "reference"]
    numbers = ["exact_L5", "token_L5", "trained_exact", "trained", "longest", "loss"]
    assert all([*cell["final_info_dict"]] == numbers for cell in final_info.values())
    run("grown", "--arms oracle")
    assert run("grown", words := "--arms looped_gate oracle --seeds 2") == run("whole", words)


FORMS = "0 -1 1.5 many length:3 window window:3 window:3:2 window:0:2 window:1:2:3".split()
BAD_INPUT = [  # words, what is named, what is allowed
    *((f"--layout append --arms {x}", f"--positions {ARMS[x].positions}", "with --layout append") for x in (
        "looped_k6_random", "standard_ends", "looped_k2_ends_shift", "standard_ends_random")),
    ("--layout inplace --arms looped_n_nope", "--positions nope", "with --layout inplace"),
    ("--positions nope", "--positions nope", "with --layout inplace"),
    ("--layout x", "--layout x", "inplace or append"),
    ("--positions random --position_range 5", "--position_range 5", "at least 6, the longest"),
    ("--positions ends_shift --position_range 6 --test_pad 2", "--position_range 6", "at least 7, the longest"),
    ("--positions ends_random --position_range 8 --train_pad 5", "--position_range 8", "at least 9, the longest"),
    *((f"--aligned true {x}", "--aligned True", "off unless --loops length --layout inplace") for x in (
        "--loops 2", "--loops length --layout append --positions rotary")),
    *((f"--gate true --loops {x}", "--gate True", "off unless") for x in ("length", "window:2:2")),
    ("--gate true --loops 1", "--gate True", "off unless"),
    ("--test_lengths 2 5", "--test_lengths 2 5", "at least"),
    ("--hidden_size 24 --n_heads 4", "--hidden_size 24", "heads, 16"), ("--min_len 5", "--max_len 4", "len 5"),
    *((x, x, "") for x in ("--arms looped_k3", "--test_lengths 5 5", "--schedule x", "--loss_on x", "--positions x")),
    *((f"--loops {x}", f"--loops {x}", "window:T:b with 1 <= T <= b") for x in FORMS),
    ("--loops window:1:2", "--loops window:1:2", "unless --inject"),
    ("--gate true --loops 1", "--gate True", "at least 2"),
    *((f"--{x} 0", f"--{x} 0", "at least 1") for x in ("layers", "n_heads", "num_steps", "seeds", "min_len")),
    *((f"--{x} -1", f"--{x} -1", "at least 0") for x in ("train_pad", "test_pad", "seed")),
]  # fmt: skip


@pytest.mark.parametrize("words, named, wanted", BAD_INPUT)
def test_bad_input_is_one_line_and_touches_nothing(tmp_path, monkeypatch, capsys, words, named, wanted):
    monkeypatch.chdir(tmp_path)
    assert reversal.main([*TINY.split(), "--arms", "looped_k2", *words.split()]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1 and told.err.startswith(f"experiment.py: {named}: must be")
    assert wanted in told.err and not list(tmp_path.iterdir())


def test_what_measures_is_named_in_the_prompt():
    names = {thing.__name__ for thing in reversal.YARDSTICK}
    assert {"sequences", "loops_at", "pads", "scores", "observe", "measure", "cell", "swap", "score"} <= names
    prompt = json.loads((ROOT / "studies" / "reversal" / "prompt.json").read_text())["task_description"]
    yardstick = prompt.split("Do not edit what measures: ")[1].split(" are the yardstick")[0]
    assert {*re.findall(r"\w+", yardstick)} - {"and"} == names


@torch.no_grad()
def test_all_arms_and_three_seeds_fit_a_megabyte():
    """By the arm of which most is kept; shares of seven sequences have four digits."""
    trajectory = reversal.plan(Config(arms=("looped_n_rotary",), n_test=7))[0]
    told = trajectory.measure(trajectory.observe(trajectory.model(), 5000), 5000, {}, [])
    told["by_length"]["exact_by_loop"] = [[0.1429] * len(row) for row in told["by_length"]["exact_by_loop"]]
    assert [len(row) for row in told["by_length"]["exact_by_loop"]] == [20] * 11 + [25, 30, 35, 40, 45, 50, 55]
    curves = {"trajectories": [{"curves": {key: [x] for key, x in told.items()}}]}
    assert 45 * len(harness.strict_json(curves)) < 900_000


TEXTS = [(ROOT / "studies" / "reversal" / name).read_text() for name in ("README.md", "seed_ideas.json")]
COMMANDS = [words for text in TEXTS for words in re.findall(r"`((?:python experiment.py )?--[a-z_]+ [^`]*)`", text)]


@pytest.mark.parametrize("words", COMMANDS)
def test_runs_that_are_named_are_not_refused(words):
    harness.parse_arguments(reversal.STUDY, words.removeprefix("python experiment.py ").split())
