"""The parity study: its tasks, its law, its ideal predictors and its model against independent computations."""

import importlib.util
import itertools
import json
import math
import sys

from harness import Progress, disagreement

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT

SCRIPT = ROOT / "studies" / "parity" / "experiment.py"
spec = importlib.util.spec_from_file_location("parity_experiment", SCRIPT)
parity = sys.modules["parity_experiment"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(parity)
Config, Tasks = parity.Config, parity.Tasks

MISSING = (2, 3), (1, 3)
SMALL = {"dim_ambient": (6,), "n_train_tasks": (8,), "gpt2_width": 16, "n_heads": 2, "n_layers": 2, "batch_size": 8}
SMALL |= {"context_length": 5, "n_test_tasks": 6, "n_test_sequences": 3, "steps": 40, "warmup": 4}


def trajectory_of(**settings):
    return parity.plan(Config(**SMALL | settings))[0]


def every_task(d: int, k: int, variant: str) -> list[tuple[int, ...]]:
    kind = itertools.permutations if variant in ("ordered", "no_cot") else itertools.combinations
    return list(kind(range(d), k))


def is_excluded(task: tuple[int, ...], variant: str) -> bool:
    (step, v), pair = MISSING
    return (variant == "missing_coordinate" and task[step - 1] == v) or (
        variant == "missing_pair" and {*pair} <= {*task}
    )


# ---- Tasks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", parity.VARIANTS)
@pytest.mark.parametrize("d, k", [(5, 1), (6, 3), (7, 4)])
def test_tasks_are_all_tuples_in_order_and_those_that_may_be_trained_on_are_counted(d, k, variant):
    if k == 1 and variant.startswith("missing"):
        return
    tasks, every = Tasks(d, k, variant, *MISSING), every_task(d, k, variant)
    assert [tasks.task(i) for i in range(tasks.count)] == every
    assert [task for task in every if not tasks.allowed(task)] == [t for t in every if is_excluded(t, variant)]
    assert tasks.n_allowed == sum(not is_excluded(task, variant) for task in every)


def test_counts_of_the_original():
    for variant, excluded in (("missing_coordinate", 20), ("missing_pair", 8)):
        tasks = Tasks(10, 3, variant, (2, 5), (4, 6))
        assert (tasks.count, tasks.count - tasks.n_allowed) == (120, excluded)
    assert (Tasks(15, 3, "sorted", *MISSING).count, Tasks(10, 3, "ordered", *MISSING).count) == (455, 720)
    assert Tasks(25, 12, "sorted", *MISSING).count == 5_200_300


@pytest.mark.parametrize("variant", parity.VARIANTS)
def test_few_training_tasks_are_among_many_and_tests_are_the_same_others(variant):
    tasks = Tasks(7, 3, variant, *MISSING)
    splits = {n: tasks.split(n, 6, seed=1) for n in (2, 5, tasks.n_allowed - 1)}
    for few, many in itertools.pairwise(splits.values()):
        assert many["train"][: len(few["train"])] == few["train"] and few["excluded"] == many["excluded"]
    assert splits[2]["unseen"] == splits[5]["unseen"]
    for n, split in splits.items():
        train, unseen, excluded = ({*split[kind]} for kind in ("train", "unseen", "excluded"))
        assert len(train) == n and len(unseen) == min(6, tasks.n_allowed - n) and not train & unseen
        assert all(tasks.allowed(task) for task in train | unseen) and not any(map(tasks.allowed, excluded))
        assert len(excluded) == min(6, tasks.count - tasks.n_allowed)
    assert tasks.split(5, 6, seed=2)["train"] != splits[5]["train"]


def test_parities_are_running_sums_and_uncovered_steps_have_coordinates_that_no_training_task_has_there():
    bits, tasks = torch.randint(2, (4, 3, 6)), torch.tensor([[0, 1, 2], [5, 0, 3], [2, 4, 1], [3, 2, 0]])
    found = parity.parities(bits, tasks)
    for i, n in itertools.product(range(4), range(3)):
        running = list(itertools.accumulate(int(bits[i, n, v]) for v in tasks[i]))
        assert found[i, n].tolist() == [x % 2 for x in running]
    train = [(0, 1, 2), (0, 4, 1)]
    missing = parity.uncovered_steps(tasks, parity.covered(train, 6))
    wanted = [[all(other[t] != task[t] for other in train) for t in range(3)] for task in tasks.tolist()]
    assert missing.tolist() == wanted


@pytest.mark.parametrize(
    "d, variant, laws",
    [
        (6, "ordered", (0.42, 0.69, 0.91, 1.00)),
        (10, "ordered", (0.30, 0.48, 0.76, 0.95)),
        (10, "sorted", (0.43, 0.65, 0.85, 0.95)),
        (15, "sorted", (0.32, 0.50, 0.73, 0.89)),
    ],
)
def test_the_law_has_its_expectation_over_draws_of_tasks(d, variant, laws):
    """P(a step is uncovered) = C(M - m, n) / C(M - 1, n), with m of M tasks that have this coordinate there; the table
    is the specification's."""
    for n, wanted in zip((4, 8, 16, 32), laws, strict=True):
        means = []
        for seed in range(12):
            split = Tasks(d, 3, variant, *MISSING).split(n, 80, seed)
            u = parity.uncovered_steps(torch.tensor(split["unseen"]), parity.covered(split["train"], d)).sum(1)
            means.append((0.5**u).mean())
        assert torch.stack(means).mean().item() == pytest.approx(wanted, abs=0.06)


# ---- Ideal predictors ------------------------------------------------------------------------------------------------


def brute(bits, p, n, t, candidates) -> float:
    """P(p_t of example n is 1) by the tuples that fit all examples before and the steps before in this one; the last
    number of a candidate is what it says."""
    fits = [says for fit, says in candidates if fit]
    return sum(fits) / len(fits) if fits else 0.5


def test_ideal_predictors_are_bayes_over_what_fits():
    """By plain loops over examples, steps and candidates."""
    torch.manual_seed(0)
    d, N, train = 5, 4, [(0, 1, 2), (0, 3, 4), (2, 1, 0), (4, 1, 3)]
    tasks = torch.tensor([(0, 1, 2), (0, 1, 4), (3, 2, 1), (2, 3, 4)])
    bits = torch.randint(2, (4, N, d))
    p = parity.parities(bits, tasks)
    memorizer = parity.memorizer_bayes(bits, p, torch.tensor(train))
    seen = parity.covered(train, d)
    per_step = {name: parity.per_step_bayes(bits, p, x) for name, x in (("covered", seen), ("all", seen | True))}
    for i, n, t in itertools.product(range(4), range(N), range(3)):
        x, own = bits[i].tolist(), p[i].tolist()

        def chain(task, example, x=x):
            return [sum(x[example][v] for v in task[: s + 1]) % 2 for s in range(3)]

        known = [
            (all(chain(task, e) == own[e] for e in range(n)) and chain(task, n)[:t] == own[n][:t], chain(task, n)[t])
            for task in train
        ]
        assert memorizer[i, n, t].item() == pytest.approx(brute(bits, p, n, t, known))
        for name, P in per_step.items():
            before = [row[t - 1] if t else 0 for row in own]
            steps = [
                (all(x[e][v] == own[e][t] ^ before[e] for e in range(n)), x[n][v] ^ before[n])
                for v in range(d)
                if name == "all" or any(task[t] == v for task in train)
            ]
            assert P[i, n, t].item() == pytest.approx(brute(bits, p, n, t, steps)), (i, n, t, name)


def test_the_composer_needs_about_ten_examples_of_ten_bits():
    """The specification's numbers: 0.22 after none, 0.55 at the fourth, 0.84 at the sixth, 0.987 at the tenth."""
    torch.manual_seed(0)
    tasks = torch.tensor(every_task(10, 3, "ordered")).repeat(3, 1)
    bits = torch.randint(2, (len(tasks), 16, 10))
    p = parity.parities(bits, tasks)
    P = parity.per_step_bayes(bits, p, torch.ones(3, 10))
    own = torch.where(p == 1, P, 1 - P)
    exact = torch.where(own == 0.5, 0.5, (own > 0.5).double()).prod(2).mean(0)
    for example, wanted in ((1, 0.22), (4, 0.55), (6, 0.84), (10, 0.987)):
        assert exact[example - 1].item() == pytest.approx(wanted, abs=0.03)
    assert exact[-1] > 0.998


def test_divergence_of_coins():
    p, q = torch.tensor([0.0, 0.3, 1.0]).double(), torch.tensor([0.5, 0.3, 0.25]).double()
    assert parity.binary_kl(p, q).tolist() == pytest.approx([math.log(2), 0.0, math.log(4)])


# ---- Model -----------------------------------------------------------------------------------------------------------


def test_the_paper_s_model_has_its_parameters():
    trajectory = parity.plan(Config(**parity.PRESETS["paper"]))[0]
    with torch.device("meta"):
        assert sum(p.numel() for p in trajectory.model().parameters()) == 1_728_576


@pytest.mark.parametrize("tokens, positions", [*itertools.product(("vector", "bits"), ("factored", "absolute"))])
@pytest.mark.parametrize("variant", ["ordered", "no_cot"])
def test_logits_are_those_of_a_plain_model_and_see_nothing_that_comes_later(tokens, positions, variant):
    trajectory = trajectory_of(tokens=tokens, positions=positions, variants=(variant,))
    torch.manual_seed(0)
    model = trajectory.model().double()
    for parameter in model.parameters():
        parameter.data.mul_(5)  # from a start near 0 many things look alike
    batch = {key: values[0] for key, values in trajectory.batches(0, 100, torch.device("cpu")).items()}
    bits, p = batch["bits"], batch["p"]
    B, N, chain = p.shape
    w, rows = 16, []
    for n in range(N):
        own = [model.bits(2.0 * bits[:, n].double() - 1)] if tokens == "vector" else []
        if tokens == "bits":
            own = [model.tokens.weight[bits[:, n, v]] for v in range(6)] + [model.tokens.weight[[0] * B]]
        own += [model.tokens.weight[p[:, n, t]] for t in range(chain)]
        for place, x in enumerate(own):
            at = n * len(own) + place
            rows.append(
                x
                + (
                    model.places.weight[at]
                    if positions == "absolute"
                    else model.examples.weight[n] + model.places.weight[place]
                )
            )
    x = torch.stack(rows, 1)
    T = x.shape[1]
    mask = torch.full((T, T), -math.inf).triu(1).double()
    for block in model.blocks:
        q, k, v = (y.view(B, T, 2, w // 2).transpose(1, 2) for y in block.qkv(block.attention_norm(x)).split(w, -1))
        scores = q @ k.transpose(2, 3) / math.sqrt(w // 2) + mask
        x = x + block.attention_out((scores.softmax(-1) @ v).transpose(1, 2).reshape(B, T, w))
        h = block.mlp_in(block.mlp_norm(x))
        gelu = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        x = x + block.mlp_out(gelu)
    logits = (model.norm(x) @ model.tokens.weight.T).view(B, N, T // N, 2)
    extra = int(tokens == "bits")
    wanted = logits[:, :, T // N - 1 - chain - extra : -1]
    model = model.float()
    found = model(bits, p).double()
    assert found.shape == (B, N, chain + extra, 2) and torch.allclose(found, wanted, atol=1e-4)
    later = p.clone()
    later[:, -1, -1] = 1 - later[:, -1, -1]  # the last parity is an answer, and in no token before one
    assert torch.equal(model(bits, later), model(bits, p))
    changed = bits.clone()
    changed[:, -1] = 1 - changed[:, -1]
    assert torch.equal(model(changed, p)[:, :-1], model(bits, p)[:, :-1])


def test_the_loss_is_of_all_parities_of_all_examples():
    trajectory = trajectory_of()
    model, batch = trajectory.model(), trajectory.batches(0, 100, torch.device("cpu"))
    bits, p = batch["bits"][3], batch["p"][3]
    logits = model(bits, p)
    losses = [
        F.cross_entropy(logits[i, n, t], p[i, n, t]) for i, n, t in itertools.product(range(8), range(5), range(3))
    ]
    assert trajectory.loss(model, bits, p)[0].item() == pytest.approx(torch.stack(losses).mean().item(), rel=1e-5)


# ---- Training --------------------------------------------------------------------------------------------------------


def test_batches_are_of_training_tasks_and_the_curriculum_ends_half_way():
    trajectory = trajectory_of(steps=400, context_length=30, batch_size=16)
    train = {tuple(task) for task in trajectory.data["train"].tolist()}
    active = []
    for first in range(0, 400, 100):
        batch = trajectory.batches(first, 100, torch.device("cpu"))
        active += [int(bits.flatten(0, 1).any(0).sum()) for bits in batch["bits"]]
        bits, p = batch["bits"].flatten(0, 1), batch["p"].flatten(0, 1)
        for x, own in zip(bits[::37], p[::37], strict=True):
            fits = [t for t in train if torch.equal(parity.parities(x[None], torch.tensor([t]))[0], own)]
            assert fits
    assert active[0] == 3 and active == sorted(active) and active[199] <= 6 and active[200:] == [6] * 200
    again = trajectory.batches(300, 100, torch.device("cpu"))
    assert all(torch.equal(again[key], batch[key]) for key in batch)


def test_a_fixed_training_set_has_as_many_sequences_of_every_task_each_once_in_an_epoch():
    trajectory = trajectory_of(n_train_total=40, curriculum=False, batch_size=10)  # 5 each; an epoch is 4 updates
    batch = trajectory.batches(0, 100, torch.device("cpu"))
    epochs = torch.cat([batch["bits"].flatten(3), batch["p"]], 3).flatten(2).view(25, 40, -1)
    first = {tuple(row) for row in epochs[0].tolist()}
    assert len(first) == 40 and all({tuple(row) for row in epoch.tolist()} == first for epoch in epochs)
    assert not torch.equal(epochs[0], epochs[1])
    bits, p = (batch[key].view(-1, *batch[key].shape[2:])[:40] for key in ("bits", "p"))
    for task in trajectory.data["train"]:
        assert (parity.parities(bits, task.expand(40, -1)) == p).all(2).all(1).sum() >= 5


def test_without_a_chain_an_example_shows_its_last_parity_alone():
    trajectory = trajectory_of(variants=("no_cot",))
    bits, tasks = torch.randint(2, (9, 5, 6)), torch.tensor([[3, 0, 5]] * 9)
    assert torch.equal(trajectory.shown(bits, tasks), bits[:, :, [3, 0, 5]].sum(2, keepdim=True) % 2)


def test_rates_rise_and_fall_to_0():
    trajectory = trajectory_of(steps=1000, warmup=100, max_lr=2.0)
    rates = [trajectory.learning_rate(update, 1000) for update in range(1000)]
    assert rates[0] == 0.02 and rates[99] == 2.0 == max(rates) and rates[100:] == sorted(rates[100:], reverse=True)
    assert rates[550] == pytest.approx(1.0) and rates[-1] < 1e-4
    assert trajectory_of(schedule="constant", warmup=0).learning_rate(7, 40) == 2e-3


# ---- Measuring -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["ordered", "missing_coordinate", "no_cot"])
def test_measurements_are_counts_over_tasks_and_sequences(variant):
    trajectory = trajectory_of(variants=(variant,), missing_coordinate=(2, 3))
    observed = trajectory.observe(trajectory.model(), 40)
    numbers = trajectory.measure(observed, 40, {"loss": [1.0, 2.0]}, [])
    cell = trajectory.cell([{"step": 40} | numbers])
    assert numbers["loss"] == 1.5
    for kind, P in observed.items():
        tasks, bits, p = trajectory.tests[kind]
        whole, laws = [], []
        for i, task in enumerate(tasks.tolist()):
            own = [bool(((P[3 * i + s, -1] > 0.5) == (p[3 * i + s, -1] == 1)).all()) for s in range(3)]
            assert numbers["tasks"][kind]["exact"][i] == pytest.approx(sum(own) / 3)
            train = trajectory.data["train"].tolist()
            laws.append(0.5 ** sum(all(other[t] != task[t] for other in train) for t in range(3)))
            whole += own
        assert cell[f"{kind}_exact"] == numbers[f"{kind}_exact"] == pytest.approx(sum(whole) / len(whole))
        assert cell["law" if kind == "unseen" else f"law_{kind}"] == pytest.approx(sum(laws) / len(laws))
    assert ("excluded" in observed) == (variant == "missing_coordinate") and cell["trained"] == 0
    exact = sorted(numbers["tasks"]["unseen"]["exact"])
    assert cell["unseen_worst_decile"] == exact[0]
    if variant == "no_cot":
        assert cell["kl_to_covered"] is None and cell["unseen_covered_steps"] is None
        return
    ideal, P = trajectory.ideals["covered"][:, -1], observed["unseen"][:, -1]
    terms = [
        sum(a * math.log(a / b) for a, b in ((x, y), (1 - x, 1 - y)) if a)
        for x, y in zip(ideal.flatten().tolist(), P.flatten().tolist(), strict=True)
    ]
    assert numbers["kl_to_covered"] == pytest.approx(sum(terms) / len(ideal))


def test_whoever_answers_like_the_covered_composer_scores_the_law():
    """The law is what remains for whoever knows covered steps and guesses the others."""
    trajectory = trajectory_of(
        dim_ambient=(8,), n_train_tasks=(12,), context_length=24, n_test_tasks=40, n_test_sequences=40
    )
    guess = torch.rand(trajectory.ideals["covered"].shape, generator=torch.Generator().manual_seed(0)).double()
    P = torch.where(trajectory.ideals["covered"] == 0.5, guess, trajectory.ideals["covered"])
    numbers = trajectory.measure({"unseen": P, "train": trajectory.tests["train"][2].double()}, 40, {}, [])
    cell = trajectory.cell([{"step": 40} | numbers])
    assert cell["unseen_exact"] == pytest.approx(cell["law"], abs=0.03) and 0.2 < cell["law"] < 0.95
    assert cell["trained"] == 1 and cell["unseen_covered_steps"] > 0.99
    assert cell["unseen_uncovered_steps"] == pytest.approx(0.5, abs=0.05)


# ---- Runs ------------------------------------------------------------------------------------------------------------

TINY = (
    "--device cpu --dim_ambient 5 --n_train_tasks 3 --gpt2_width 8 --n_heads 1 --n_layers 1 --batch_size 4 --warmup 1"
)
TINY = [*TINY.split(), *"--context_length 3 --n_test_tasks 2 --n_test_sequences 2 --steps 4".split()]


def test_a_run_grows_and_ends_with_the_same_bytes(tmp_path):
    more = ["--n_train_tasks", "3", "5", "--variants", "ordered", "no_cot", "--seeds", "2"]
    assert parity.main([*TINY, "--out_dir", str(tmp_path / "run")]) == 0
    final_info = json.loads((tmp_path / "run" / "final_info.json").read_bytes(), parse_constant=pytest.fail)
    assert [*final_info] == ["d5_n3"] and final_info["d5_n3"]["means"]["excluded_exact_mean"] is None
    assert parity.main([*TINY, *more, "--out_dir", str(tmp_path / "run")]) == 0
    assert parity.main([*TINY, *more, "--out_dir", str(tmp_path / "anew")]) == 0
    for name in ("final_info.json", "cells.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (tmp_path / "anew" / name).read_bytes()


BAD_INPUT = [
    ("--n_train_tasks 60", "below 60, the number of tasks that may be trained on (ordered, d = 5)"),
    ("--variants missing_pair --missing_pair 1 2 --n_train_tasks 7", "below 7"),
    ("--dim_k 6", "at most --dim_ambient 5"),
    ("--variants missing_coordinate --missing_coordinate 4 0", "a step of 1 to 3"),
    ("--variants missing_coordinate --missing_coordinate 1 5", "a coordinate of 0 to 4"),
    ("--variants missing_pair --missing_pair 2 2", "two different coordinates"),
    ("--positions absolute --context_length 513", "fit 2048 absolute positions"),
    ("--variants shuffled", "of ordered sorted"),
    ("--n_train_tasks 3 3", "different values"),
    ("--n_train_total 2", "0, or at least --n_train_tasks 3"),
    ("--gpt2_width 9 --n_heads 2", "divisible by --n_heads 2"),
    ("--warmup 4", "below --steps 4"),
    ("--dropout 1.0", "below 1"),
    ("--clip_norm 0.0", "above 0, or none"),
    ("--tokens words", "vector or bits"),
    ("--preset laptop", "cpu or paper"),
]


@pytest.mark.parametrize("words, wanted", BAD_INPUT)
def test_bad_input_is_one_line_and_touches_nothing(tmp_path, monkeypatch, capsys, words, wanted):
    monkeypatch.chdir(tmp_path)
    assert parity.main([*TINY, *words.split()]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1 and wanted in told.err and not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_stacked_models_make_the_updates_of_single_ones():
    group = [Progress(t) for t in parity.plan(Config(**SMALL | {"n_train_tasks": (4, 8)}))]
    assert disagreement(group, torch.device("cpu"), "stacked") is None
