"""The parity study: its tasks, its law, its ideal predictors and its model against independent computations."""

import importlib.util
import itertools
import json
import math
import random
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
    kind = itertools.permutations if variant == "ordered" else itertools.combinations
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
    assert tasks.every == every and tasks.count == len(every)
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


def test_without_a_chain_no_unseen_task_is_a_function_that_was_trained_on():
    """Who sees the last parity alone cannot tell (2, 5, 7) from (7, 5, 2)."""
    for seed in range(3):
        split = Tasks(10, 3, "no_cot", *MISSING).split(64, 40, seed)
        assert not {*map(frozenset, split["train"])} & {*map(frozenset, split["unseen"])}
        assert split == Tasks(10, 3, "sorted", *MISSING).split(64, 40, seed)  # its control


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
    assert active[0] == 3 and active == sorted(active) and active[149] == 5 and active[150:] == [6] * 250
    ten = trajectory_of(steps=6000, dim_ambient=(10,))
    assert [update for update in range(1, 6000) if ten.active(update) > ten.active(update - 1)][-1] == 2625
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
@pytest.mark.parametrize("tokens", ["vector", "bits"])
def test_measurements_are_counts_over_tasks_and_sequences(variant, tokens):
    trajectory = trajectory_of(variants=(variant,), missing_coordinate=(2, 3), tokens=tokens, n_test_sequences=4)
    observed = {kind: torch.rand_like(P) for kind, P in trajectory.observe(trajectory.model(), 40).items()}
    numbers = trajectory.measure(observed, 40, {"loss": [1.0, 2.0]}, [])
    cell = trajectory.cell([{"step": 40} | numbers])
    assert numbers["loss"] == 1.5 and ("excluded" in observed) == (variant == "missing_coordinate")
    train, steps = trajectory.data["train"].tolist(), 1 if variant == "no_cot" else 3
    for kind, P in observed.items():
        tasks, bits, p = (x.tolist() for x in trajectory.tests[kind])
        P, constants = P[..., -steps:], P[:, -1, 0].tolist() if tokens == "bits" else None
        whole, every, told, by_u, nats = [], [], [], {}, []
        for i, task in enumerate(tasks):
            own = range(4 * i, 4 * i + 4)
            right = [[(P[s, -1, t] > 0.5).item() == p[s][-1][t] for t in range(steps)] for s in own]
            hidden = [all(other[t] != task[t] for other in train) for t in range(3)]
            reads = []
            for t in range(steps):
                added = [int(P[s, -1, t] > 0.5) ^ (p[s][-1][t - 1] if t else 0) for s in own]
                share = [sum(bits[s][-1][v] == x for s, x in zip(own, added, strict=True)) / 4 for v in range(6)]
                reads.append(str(share.index(max(share))) if max(share) >= 0.9 else "-")
            whole += (exact := [all(row) for row in right])
            every += [row and constants[s] <= 0.5 for row, s in zip(exact, own, strict=True)] if constants else []
            by_u.setdefault(sum(hidden), []).extend(exact)
            counts = [sum(row[t] for row in right) for t in range(steps)]
            parts = (task, counts, [sum(exact)], reads)
            task, counts, exact, reads = (" ".join(map(str, part)) for part in parts)
            told.append("|".join((task, "".join(str(int(x)) for x in hidden), counts, exact, reads)))
        for s, n, t in itertools.product(range(len(p)), range(5), range(steps)):
            nats.append(-math.log(P[s, n, t] if p[s][n][t] else 1 - P[s, n, t]))
        assert numbers["tasks"][kind] == told
        assert cell[f"{kind}_exact"] == numbers[f"{kind}_exact"] == pytest.approx(sum(whole) / len(whole))
        assert cell[f"{kind}_accuracy_all"] == (pytest.approx(sum(every) / len(whole)) if constants else None)
        assert cell[f"{kind}_ce"] == pytest.approx(sum(nats) / len(nats))
        law = sum(0.5**u * len(own) for u, own in by_u.items()) / len(whole)
        if kind != "train":
            key = "law" if kind == "unseen" else "law_excluded"
            assert cell.get(key) == (None if variant == "no_cot" else pytest.approx(law))
        if kind == "unseen" and variant != "no_cot":
            for u in range(3):
                assert cell[f"unseen_u{u}"] == (pytest.approx(sum(by_u[u]) / len(by_u[u])) if u in by_u else None)
            exact = sorted(int(task.split("|")[3]) for task in told)
            assert cell["unseen_worst_decile"] == exact[0] / 4  # of six tasks
    if variant == "no_cot":
        assert not {"unseen_u0", "floor_covered"} & {key for key, value in cell.items() if value is not None}
        assert cell["law"] is cell["law_worst_decile"] is cell["kl_to_covered"] is cell["unseen_covered_steps"] is None


def answers_by_law(trajectory, seed=0):
    """Of unseen tasks like the covered composer, and a confident guess where it knows nothing."""
    P = trajectory.ideals["unseen"]["covered"].clone()
    guess = torch.randint(2, P.shape, generator=torch.Generator().manual_seed(seed)).double()
    hidden = trajectory.uncovered["unseen"].repeat_interleave(trajectory.config.n_test_sequences, 0)
    return torch.where(hidden[:, None], 0.001 + 0.998 * guess, P)


def test_whoever_answers_like_the_covered_composer_scores_the_law():
    """The law is what remains for whoever knows covered steps and guesses the others."""
    trajectory = trajectory_of(
        dim_ambient=(8,), n_train_tasks=(12,), context_length=24, n_test_tasks=40, n_test_sequences=40
    )
    observed = {"unseen": answers_by_law(trajectory), "train": trajectory.tests["train"][2].double()}
    cell = trajectory.cell([{"step": 40} | trajectory.measure(observed, 40, {}, [])])
    assert cell["unseen_exact"] == pytest.approx(cell["law"], abs=0.03) and 0.2 < cell["law"] < 0.95
    assert cell["unseen_worst_decile"] == pytest.approx(cell["law_worst_decile"], abs=0.06)
    assert cell["trained"] == 1 and cell["unseen_covered_steps"] > 0.99 and cell["unseen_u0"] > 0.99
    assert cell["unseen_uncovered_steps"] == pytest.approx(0.5, abs=0.05) and cell["failing_covered_steps"] == 0
    assert cell["failing_read_one"] is None  # uncovered steps do not count


@pytest.mark.parametrize("n", [4, 8, 16])
def test_confident_guesses_at_uncovered_steps_are_not_held_against_a_covered_composer(n):
    """Between memorizer and covered composer there are covered steps alone."""
    settings = {"dim_ambient": (10,), "context_length": 16, "n_test_tasks": 30, "n_test_sequences": 8}
    trajectory = trajectory_of(n_train_tasks=(n,), **settings)
    train = trajectory.tests["train"][2].double()
    by_law = trajectory.measure({"unseen": answers_by_law(trajectory), "train": train}, 0, {}, [])
    assert by_law["relative_divergence"] == pytest.approx(1, abs=0.005)
    by_heart = trajectory.ideals["unseen"]["memorizer"]
    numbers = trajectory.measure({"unseen": by_heart, "train": train}, 0, {}, [])
    assert numbers["relative_divergence"] < 0.005
    P, p, terms = torch.rand(by_heart.shape).double(), trajectory.ideals["unseen"]["covered"], []
    seen = [{task[t] for task in trajectory.data["train"].tolist()} for t in range(3)]
    for i, task in enumerate(trajectory.tests["unseen"][0].tolist()):
        for s, t in itertools.product(range(8 * i, 8 * i + 8), range(3)):
            if task[t] in seen[t]:
                a, b = p[s, -1, t].item(), P[s, -1, t].item()
                terms.append(sum(x * math.log(x / y) for x, y in ((a, b), (1 - a, 1 - b)) if x))
    numbers = trajectory.measure({"unseen": P, "train": train}, 0, {}, [])
    assert numbers["kl_to_covered"] == pytest.approx(sum(terms) / len(terms))


def test_where_cross_entropy_stands_between_the_floors_of_ideal_predictors():
    """Memorizer and covered composer: 0.043 and 0.108 nats with 8 tasks of 10 bits, 0.072 and 0.142 with 32."""
    for n, floors in ((8, (0.043, 0.108)), (32, (0.072, 0.142))):
        settings = {"dim_ambient": (10,), "context_length": 16, "n_test_tasks": 40, "n_test_sequences": 32}
        trajectory = trajectory_of(n_train_tasks=(n,), **settings)
        constants, train = trajectory.constants, trajectory.ideals["train"]
        assert (constants["floor_memorizer"], constants["floor_covered"]) == pytest.approx(floors, abs=0.006)
        for who, position in (("memorizer", 1), ("covered", 0)):
            numbers = trajectory.measure({"unseen": answers_by_law(trajectory), "train": train[who]}, 0, {}, [])
            assert numbers["position"] == pytest.approx(position, abs=1e-9)
            assert numbers["train_ce"] == pytest.approx(constants[f"floor_{who}"])
        assert constants["floor_covered"] <= constants["floor_composer"]


def test_a_failing_step_is_told_with_the_coordinate_that_it_reads():
    trajectory = trajectory_of(n_test_sequences=32, n_train_tasks=(60,), context_length=8)
    tasks, bits, p = trajectory.tests["unseen"]
    assert not trajectory.uncovered["unseen"].any()
    P = p.double()
    before = p[:, -1, 0]
    P[:, -1, 1] = (bits[:, -1, 4] ^ before).double()  # the second step reads coordinate 4, whatever the task
    P[:32, -1, 2] = torch.arange(32).double() % 2  # the third one of the first task none
    numbers = trajectory.measure({"unseen": P, "train": trajectory.tests["train"][2].double()}, 40, {}, [])
    others = 0
    for i, (told, task) in enumerate(zip(numbers["tasks"]["unseen"], tasks.tolist(), strict=True)):
        others += task[1] != 4
        assert told.split("|")[4].split() == [str(task[0]), "4", "-" if i == 0 else str(task[2])]
    assert numbers["failing_covered_steps"] == pytest.approx((others + 1) / 18)
    assert numbers["failing_read_one"] == pytest.approx(others / (others + 1))


def test_accuracy_by_example_is_that_of_whoever_guesses_where_it_cannot_tell():
    trajectory = trajectory_of(context_length=8, n_test_sequences=20)
    observed = {kind: trajectory.ideals[kind]["covered"] for kind in ("train", "unseen")}
    told = trajectory.measure(observed, 40, {}, [])["by_example"]
    for kind, who in itertools.product(("train", "unseen"), ("memorizer", "covered", "composer")):
        P, p, exact = trajectory.ideals[kind][who].tolist(), trajectory.tests[kind][2].tolist(), [0.0] * 8
        for s, n in itertools.product(range(len(p)), range(8)):
            chances = [0.5 if x == 0.5 else float((x > 0.5) == y) for x, y in zip(P[s][n], p[s][n], strict=True)]
            exact[n] += math.prod(chances) / len(p)
        assert told[kind][who] == pytest.approx(exact, abs=1e-4)
        assert told[kind]["model"] == told[kind]["covered"]
    assert told["train"]["memorizer"][3] > told["train"]["covered"][3]


def test_the_worst_tenth_by_the_law_is_drawn_like_the_tests():
    trajectory = trajectory_of(n_test_tasks=50, n_test_sequences=16)
    hidden = trajectory.uncovered["unseen"].sum(1).tolist()
    random.seed(0)
    means = []
    for _ in range(400):
        exact = sorted(sum(random.random() < 0.5**u for _ in range(16)) / 16 for u in hidden)
        means.append(sum(exact[:5]) / 5)
    assert trajectory.constants["law_worst_decile"] == pytest.approx(sum(means) / 400, abs=0.01)


def test_ideal_predictors_are_made_in_parts(monkeypatch):
    """Of 100,000 sequences of the original at once they would not fit into memory."""
    settings = {"n_test_tasks": 40, "n_test_sequences": 20}
    whole, lengths, bayes = trajectory_of(**settings), [], parity.memorizer_bayes

    def spied(bits, p, train):
        lengths.append(len(bits))
        return bayes(bits, p, train)

    monkeypatch.setattr(parity, "memorizer_bayes", spied)
    found = whole.ideals["unseen"]["memorizer"]
    _, bits, p = whole.tests["unseen"]
    assert max(lengths) <= 128 < len(bits) and torch.equal(found, bayes(bits, p, whole.data["train"]))


def test_what_makes_tests_and_ideals_is_part_of_the_yardstick():
    names = (
        "data tests ideals uncovered constants observe measure cell shown by_task steps nearness last_example".split()
    )
    parts = [parity.ParityTrajectory.__dict__[name] for name in names]
    assert {getattr(part, "func", part) for part in parts} <= {*parity.YARDSTICK}
    prompt = json.loads((SCRIPT.parent / "prompt.json").read_bytes())["task_description"]
    assert all(getattr(part, "__name__", None) in prompt for part in parity.YARDSTICK)


def test_the_default_grid():
    plan = parity.plan(Config())
    assert [(t.d, t.n_tasks) for t in plan] == [*itertools.product((6, 10), (8, 12, 16, 24, 32, 48, 64))]
    assert {(t.variant, t.seed, t.updates, len(t.measured)) for t in plan} == {("ordered", 42, 6000, 9)}
    assert (Config().n_test_tasks, Config().n_test_sequences) == (80, 32)


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
    ("--variants missing_coordinate --missing_coordinate 1 4", "of some task (d = 5, k = 3)"),
    ("--variants missing_pair --missing_pair 1 2 --dim_k 1", "of some task (d = 5, k = 1)"),
    ("--variants sorted --dim_ambient 25 --dim_k 12", "at most 10^6 tasks, not 5200300"),
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
