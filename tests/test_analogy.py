"""The analogy study: facts, model, training and measurements against the specification in plain words, and its runs."""

import importlib.util
import itertools
import json
import math
import re
import sys
from collections import Counter

import harness

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from training import CPU, GO_ON

spec = importlib.util.spec_from_file_location("analogy_experiment", ROOT / "studies" / "analogy" / "experiment.py")
analogy = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(analogy)
Config, KINDS, FAR = analogy.Config, analogy.KINDS, ("far_ood_first_hop", "far_ood_second_hop")
TINY = "--device cpu --plain --epochs 2 --num_relations 30 --d_model 16 --seeds 1 --dump_data".split()
CASES = [{}, {"n_layer": 2, "n_head": 2, "tie_weights": True}]
CASES += [{"n_layer": 2, "n_head": 4, "mlp_ratio": 0, "rope_base": 7.0}, {"n_head": 2, "mlp_ratio": 1}]
GRAPHS = [(10, 5, relations, (0.0, 0.1, 0.5), False) for relations in (4, 100, 10000)]  # of 2.5 images 2 are trained on
GRAPHS += [(20, 10, 9, (0.0, 0.9, 0.1), False), (16, 5, 50, (0.3, 0.5, 0.5), False)]  # six are in no category
GRAPHS += [(10, 5, 2, (0.375, 0.3, 0.2), True)]  # of 12.5 edges 12 are trained on


def graph_of(entities=10, n=None, relations=10000, ratios=(0.0, 0.1, 0.4), repeat=False, seed=42) -> "analogy.Facts":
    told = {"atomic_ood_ratio": ratios[0], "compositional_ood_ratio": ratios[1], "duplicate_relation": repeat}
    config = Config(num_entities=(entities,), num_relations=(relations,), sub_size=n, **told)
    return analogy.build_graph(config, entities, relations, ratios[2], seed)


def functor_of(facts: "analogy.Facts") -> dict[int, int]:
    return dict(facts["id_analogical"] + facts["ood_analogical"])


def trajectory_of(**settings) -> "analogy.AnalogyTrajectory":
    return analogy.plan(Config(**{"num_relations": (30,), "d_model": (16,), "epochs": 4, "seeds": 1} | settings))[0]


def facts_of(tokens: torch.Tensor, last: torch.Tensor, targets: torch.Tensor) -> list[tuple[list[int], int]]:
    return [(x[: n + 1], t) for x, n, t in zip(tokens.tolist(), last.tolist(), targets.tolist(), strict=True)]


def test_facts_are_those_of_the_original():
    for entities, ratios, *wanted in (  # at seed 42; edges, paths and images: those trained on, and those held out
        (10, (0.0, 0.1, 0.4), 40, 106, 3, 0, 14, 0, 2), (10, (0.0, 0.1, 0.1), 40, 106, 4, 0, 14, 0, 1),
        (20, (0.0, 0.1, 0.1), 180, 1297, 9, 0, 143, 0, 1), (20, (0.0, 0.1, 0.3), 180, 1297, 7, 0, 143, 0, 3),
        (30, (0.0, 0.1, 0.1), 420, 4962, 14, 0, 498, 0, 1), (10, (0.1, 0.1, 0.4), 36, 87, 3, 2, 9, 12, 2),
        (20, (0.1, 0.1, 0.1), 162, 1053, 9, 9, 109, 139, 1), (40, (0.0, 0.1, 0.1), 760, 12352, 18, 0, 1328, 0, 2),
    ):  # fmt: skip
        facts = graph_of(entities, ratios=ratios)
        *trained, edges, near, first, second, images = (len(facts[kind]) for kind in KINDS)
        assert [*trained, edges, near, first + second, images] == wanted
        assert entities > 10 or functor_of(facts) == {5: 9, 6: 8, 0: 2, 7: 1, 3: 4}


@pytest.mark.parametrize("entities, n, relations, ratios, repeat", GRAPHS)
def test_two_categories_have_one_structure(entities, n, relations, ratios, repeat):
    for seed in range(8):
        image = functor_of(facts := graph_of(entities, n, relations, ratios, repeat, seed))
        one, other = set(image), set(image.values())
        assert len(one) == len(other) == n and not one & other and one | other <= set(range(entities))
        known, new = set(facts["id_atomic"]), set(facts["ood_atomic"])
        mirror = {(image[h], r, image[t]) for h, r, t in known if h in one}
        assert {edge for edge in known | new if other & {edge[0], edge[2]}} == mirror <= known
        for part in one, set(range(entities)) - one - other:
            edges = sorted((h, t, r) for h, r, t in known | new if h in part)
            assert [edge[:2] for edge in edges] == [*itertools.permutations(sorted(part), 2)]
            assert repeat or part != one or len({(h, r) for h, _, r in edges}) == len(edges)
        assert len(known - mirror) == round(len(known - mirror | new) * (1 - ratios[0]))  # Python's: half to even
        found, wanted = {kind: Counter(facts[kind]) for kind in FAR}, {kind: Counter() for kind in (*FAR, "")}
        found[""] = Counter(facts["id_compositional"] + facts["near_ood_compositional"])
        for (h, r, b), (c, s, t) in itertools.product(known | new, repeat=2):
            if b == c and t != h:
                kind = FAR[1] if (c, s, t) in new else FAR[0] if (h, r, b) in new else ""
                wanted[kind][h, r, s, t] += 1
        assert found == wanted
        paths = {(image[h], r, s, image[t]) for h, r, s, t in found[""] if h in one}
        assert new or paths == {fact for fact in found[""] if fact[0] in other}
        assert len(facts["id_analogical"] + facts["ood_analogical"]) == n and [*facts] == [*KINDS]
        assert len(facts["id_analogical"]) == round(n * (1 - ratios[2]))
        inputs = [fact[:-1] for own in facts.values() for fact in own if fact[0] in one | other]
        assert repeat or len(inputs) == len(set(inputs))  # so none that is held out is trained on


def test_a_table_answers_most_of_what_is_held_out():
    for relations, mean, error in ((10**4, 0.993, 0.005), (10**3, 0.957, 0.02), (100, 0.614, 0.03)):
        found = []
        for facts in (graph_of(20, relations=relations, ratios=(0, 0.1, 0.1), seed=seed) for seed in range(20)):
            answers, right, image = {}, [], functor_of(facts)
            for h, *_, r, t in facts["id_atomic"] + facts["id_compositional"]:
                answers.setdefault((h in image, r), []).append(t)
            for h, _, r, t in facts["near_ood_compositional"]:
                right.append(max(own := answers[h in image, r], key=own.count) == t)  # the first of several
            assert analogy.answered_by_lookup(facts).tolist() == right
            found.append(np.mean(right))
        assert abs(np.mean(found) - mean) < error
    assert len(analogy.answered_by_lookup(graph_of(ratios=(0.0, 0.0, 0.4)))) == 0


@pytest.mark.parametrize("ratios", [(0.0, 0.1, 0.4), (0.2, 0.3, 0.0)])
def test_facts_are_texts_whose_last_token_is_asked_for(ratios):
    facts = graph_of(relations=50, ratios=ratios)
    full, used = (analogy.tokenize(facts, 10, 50, mode) for mode in ("full", "used"))
    texts, others = ([text for text, _ in facts_of(*own[:3])] for own in (full, used))
    wanted = [([h, *(10 + r for r in rs)] if rs else [h, 60], t) for kind in KINDS for h, *rs, t in facts[kind]]
    assert facts_of(*full[:3]) == wanted and torch.equal(full.targets, used.targets) and full.vocabulary == 61
    kinds = [kind for kind in KINDS for _ in facts[kind]]
    assert full.n_train == used.n_train and [kind.startswith("id_") for kind in kinds] == [
        i < full.n_train for i in range(len(kinds))
    ]
    names = set(zip(sum(texts, []), sum(others, []), strict=True))  # a renaming, onto all tokens, that keeps entities
    assert sorted(new for _, new in names) == [*range(used.vocabulary)] and len({old for old, _ in names}) == len(names)
    assert {(e, e) for e in range(10)} | {(60, used.vocabulary - 1)} <= names


def plain_model(p: dict[str, torch.Tensor], config: Config, text: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits after a text, and how much its end looks at its first token in the first block. p: weights by name."""

    def apply(layer, x, name, *settings):
        return layer(x, *settings, p[f"{name}.weight"], p[f"{name}.bias"])

    x, seen = p["tokens.weight"][text], []
    size, wide = x.shape[1] // config.n_head, x.shape[1:]
    rates = torch.tensor([config.rope_base ** (-2 * i / size) for i in range(size // 2)])
    turns = torch.polar(torch.ones(len(text), size // 2), torch.arange(len(text))[:, None] * rates)
    for at in (f"blocks.{i}." for i in range(config.n_layer)):
        qkv, read = apply(F.linear, apply(F.layer_norm, x, f"{at}attention_norm", wide), f"{at}qkv").chunk(3, 1), []
        for q, k, v in zip(*(part.split(size, 1) for part in qkv), strict=True):
            q, k = (torch.complex(part[:, : size // 2], part[:, size // 2 :]) * turns for part in (q, k))
            weights = ((q @ k.mH).real / math.sqrt(size)).exp().tril()  # nothing of what follows
            seen.append(weights / weights.sum(1, keepdim=True))
            read.append(seen[-1] @ v)
        x = x + apply(F.linear, torch.cat(read, 1), f"{at}attention_out")
        if config.mlp_ratio:
            hidden = apply(F.linear, apply(F.layer_norm, x, f"{at}mlp.0", wide), f"{at}mlp.1")
            x = x + apply(F.linear, hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2, f"{at}mlp.3")
    logits = apply(F.layer_norm, x, "norm", wide) @ p.get("answer.weight", p["tokens.weight"]).T
    return logits[-1], sum(weights[-1, 0] for weights in seen[: config.n_head]) / config.n_head


@pytest.mark.parametrize("settings", CASES)
def test_what_is_observed_is_that_of_the_plain_model(settings, monkeypatch):
    monkeypatch.setattr(analogy, "EVAL_BATCH", 50)
    trajectory = trajectory_of(**settings)
    data, (pairs, trained), config = trajectory.data, trajectory.pairs, trajectory.config
    torch.manual_seed(0)
    model = trajectory.model().double().requires_grad_(False)
    for value in model.parameters():  # far from the start, so that every path matters
        value += 0.3 * torch.randn_like(value)
    p, found = dict(model.named_parameters()), trajectory.observe(model, 0)
    logits = torch.stack([plain_model(p, config, text)[0] for text, _ in facts_of(*data[:3])])
    padded = F.pad(data.tokens, (0, 1), value=7)
    padded[data.last == 1, 2] = 11  # what stands behind a fact changes nothing
    torch.testing.assert_close(model(padded, data.last), logits, rtol=1e-5, atol=1e-5)
    prob = (logits.exp() / logits.exp().sum(1, keepdim=True))[range(len(logits)), data.targets]
    wanted = {"prob": prob, "ce": -prob.log(), "acc": (logits.argmax(1) == data.targets).double()}
    seen = [plain_model(p, config, [e, data.vocabulary - 1])[1] for e in pairs[:, 0].tolist()]
    E, U = p["tokens.weight"], p.get("answer.weight", p["tokens.weight"])
    wanted |= {"attention": torch.stack(seen), "embeddings": E[[*range(10), -1]], "read_out": U[:10]}
    torch.testing.assert_close({key: found[key].double() for key in wanted}, wanted, rtol=1e-4, atol=1e-6)
    assert [*map(tuple, pairs[trained].tolist())] == trajectory.facts["id_analogical"]
    (e, one), (c, other) = trajectory.facts["ood_analogical"]
    odds = [plain_model(p, config, [h, data.vocabulary - 1])[0][[one, other]].softmax(0) for h in (e, c)]
    torch.testing.assert_close(found["images"].softmax(1).double(), torch.stack(odds), rtol=1e-4, atol=1e-6)
    for (e, t), known in zip(pairs.tolist(), trained, strict=True):  # the functor is a translation, or one back
        found["read_out"][t] = E[e] + (E[-1] if known else -E[-1])
    numbers = trajectory.measure(found, 0, {}, [])
    assert numbers["ood_analogical_choice"] == pytest.approx((odds[0][0] + odds[1][1]).item() / 2, rel=1e-4)
    assert ("read_out_energy" in numbers) != config.tie_weights
    for part, which, direction in (("id", trained, 1), ("ood", ~trained, -1)):
        assert numbers[f"parallelism_{part}"] == pytest.approx(direction)
        assert numbers[f"attention_{part}"] == pytest.approx(found["attention"][which].mean().item(), rel=1e-5)


def test_models_are_as_large_as_the_original_and_know_nothing_at_the_start():
    sizes = [({}, 10, 2_761_344), ({"n_layer": 2}, 10, 2_959_616), ({"tie_weights": True}, 10, 1_479_936)]
    for settings, entities, wanted in (*sizes, ({}, 20, 2_763_904), ({"mlp_ratio": 0}, 10, 2_629_376)):
        with torch.device("meta"):
            model = analogy.Model(Config(**settings), entities + 10001, 128)
        assert sum(value.numel() for value in model.parameters()) == wanted
        assert (model.answer.weight is model.tokens.weight) == ("tie_weights" in settings)
    q, k = torch.randn(2, 1, 1, 1, 12, generator=torch.Generator().manual_seed(0)).expand(-1, -1, -1, 6, -1)
    turned, products = analogy.rotate(q, 100.0), (analogy.rotate(q, 100.0) @ analogy.rotate(k, 100.0).mT)[0, 0]
    torch.testing.assert_close(turned.norm(dim=-1), q.norm(dim=-1))
    torch.testing.assert_close(products[1:, 1:], products[:-1, :-1])  # by the difference of positions alone
    assert torch.equal(turned[..., 0, :], q[..., 0, :]) and len(set(products[0].tolist())) == 6
    data = (trajectory := trajectory_of(num_relations=(10000,), d_model=(128,))).data
    torch.manual_seed(0)
    for name, value in (model := trajectory.model()).named_parameters():
        if value.ndim == 1:  # a bias, or the scale of a norm
            assert (value == (1 if name.endswith("weight") else 0)).all(), name
        else:
            assert value.std().item() == pytest.approx(0.02, rel=0.03) and abs(value.mean()) < 5e-4, name
    loss, reported = trajectory.loss(model, *data[:3], torch.ones(len(data.tokens)))
    assert loss == reported["loss"] and abs(loss.item() - math.log(10011)) < 0.1
    moved = torch.autograd.grad(loss, model.tokens.weight)[0].ne(0).any(1).nonzero()[:, 0].tolist()
    asked = {token for text, _ in facts_of(*data[:3]) for token in text}
    assert moved == sorted(asked) and len(moved) < 40  # no other row has a gradient


@pytest.mark.parametrize("settings", CASES[:3])
def test_updates_are_those_of_adam_with_decay_in_the_gradient(settings):
    """On every training fact once an epoch, whose last batch is short, at a rate that rises over five updates."""
    settings = settings | {"num_entities": (6,), "batch_size": 10, "weight_decay": (0.1,), "lr": 1e-2, "warmup": 5}
    data, losses = (trajectory := trajectory_of(**settings)).data, []
    ensemble = harness.Ensemble([harness.Progress(trajectory)], CPU)
    halves = [trajectory.batches(first, 100, CPU).values() for first in (0, 100)]
    facts = [facts_of(*own)[: int(weights.sum())] for half in halves for *own, weights in zip(*half, strict=True)]
    known = sorted(facts_of(*data[:3])[: data.n_train])
    orders = [sum(facts[first : first + 3], []) for first in range(0, 198, 3)]
    assert len(known) % 10 and [sorted(order) for order in orders] == [known] * 66 and len(set(map(str, orders))) == 66
    p = {name: value.detach().clone().requires_grad_() for name, value in ensemble.model.double().named_parameters()}
    m, v = ({name: torch.zeros_like(value) for name, value in p.items()} for _ in range(2))
    for update, own in enumerate(facts[:12], 1):
        losses.append(-sum(plain_model(p, trajectory.config, x)[0].log_softmax(0)[t] for x, t in own) / len(own))
        for (name, value), gradient in zip(p.items(), torch.autograd.grad(losses[-1], [*p.values()]), strict=True):
            gradient = gradient + 0.1 * value.detach()
            m[name], v[name] = 0.9 * m[name] + 0.1 * gradient, 0.999 * v[name] + 0.001 * gradient**2
            step = m[name] / (1 - 0.9**update) / ((v[name] / (1 - 0.999**update)).sqrt() + 1e-8)
            value.data -= 1e-2 * min(1, update / 5) * step
    np.testing.assert_allclose(ensemble.advance(12, GO_ON)[0], [loss.item() for loss in losses], rtol=1e-6)
    torch.testing.assert_close(dict(ensemble.model.named_parameters()), p, rtol=0, atol=1e-6)


def test_energies_and_the_principal_plane_are_those_of_plain_sums():
    """Of every part of the pairs beside the null of the same entities and images."""
    rng = np.random.default_rng(0)
    x, pairs, trained = (
        rng.normal(size=(12, 7)),
        [(1, 6), (0, 9), (5, 2), (4, 8), (3, 7)],
        [True, True, True, False, False],
    )
    found = lambda x: analogy.energies(torch.tensor(x), torch.tensor(pairs), torch.tensor(trained))  # noqa: E731
    unit, parts = [row / math.sqrt(sum(row**2)) for row in x], {"": pairs, "_id": pairs[:3], "_ood": pairs[3:]}
    gaps = {(e, t): sum((unit[e] - unit[t]) ** 2) for e, _ in pairs for _, t in pairs}
    raw, wanted = sum(sum((x[e] - x[t]) ** 2) for e, t in pairs), {}
    for part, own in parts.items():
        null = np.mean([gaps[e, t] for e, _ in own for _, t in own if (e, t) not in own])
        energy = np.mean([gaps[pair] for pair in own])
        wanted |= {f"energy{part}": energy, f"energy_null{part}": null, f"energy_ratio{part}": energy / null}
    wanted |= {"energy_relative_to_norm": raw / 5 / np.mean([sum(row**2) for row in x])}
    for scale, rotation in ((1, np.eye(7)), (3, np.linalg.qr(rng.normal(size=(7, 7)))[0])):
        assert found(scale * x @ rotation) == pytest.approx(wanted | {"energy_raw": scale**2 * raw})
    plane, shares = analogy.principal_plane(torch.tensor(x))
    variances, axes = np.linalg.eigh(np.cov(x.T, bias=True))
    np.testing.assert_allclose(abs(plane), abs((x - x.mean(0)) @ axes[:, [-1, -2]]), atol=1e-9)
    assert shares.tolist() == pytest.approx((variances / variances.sum())[[-1, -2]].tolist())
    for sign, energy in ((1, 0), (-1, 4)):
        x[[t for _, t in pairs]] = sign * x[[e for e, _ in pairs]]
        assert [found(x)[f"energy{part}"] for part in parts] == pytest.approx([energy] * 3)
    trained[3] = True  # a single pair has no other one beside it
    assert {found(x)[f"energy_{name}_ood"] for name in ("null", "ratio")} == {None} and found(x)[
        "energy_ood"
    ] is not None


def test_parallelism_has_a_null_that_an_offset_of_the_categories_moves_alike():
    """The read-out of an image is a common offset, along the functor, beside what entity and image share."""
    trajectory, observed, _ = measured({}, num_entities=(12,), sub_size=6)  # four known pairs and two new ones
    x, pairs = torch.eye(16)[:13].double(), trajectory.pairs[0].tolist()
    for shared in (0.0, 1.0):
        read_out = torch.stack([2 * x[-1]] * 12)
        for e, t in pairs:
            read_out[t] += shared * x[e]
        numbers = trajectory.measure(observed | {"embeddings": x, "read_out": read_out}, 3, {}, [])
        own, other = (2 / math.sqrt(4 + (1 - shared) ** 2), 2 / math.sqrt(4 + 1 + shared**2))
        for part in ("id", "ood"):
            assert numbers[f"parallelism_{part}"] == pytest.approx(own, rel=1e-5)
            assert numbers[f"parallelism_null_{part}"] == pytest.approx(other, rel=1e-5)
            assert numbers[f"parallelism_excess_{part}"] == pytest.approx(own - other, abs=1e-6)


def measured(recent: dict, **settings) -> tuple["analogy.AnalogyTrajectory", dict, dict]:
    (trajectory,) = analogy.plan(
        Config(**{"num_relations": (30,), "d_model": (16,), "epochs": 4, "seeds": 1} | settings)
    )
    n, k, e = (len(x) for x in (trajectory.data.tokens, trajectory.facts["ood_analogical"], trajectory.pairs[0]))
    rng, E = torch.Generator().manual_seed(0), trajectory.num_entities
    shapes = {"ce": (n,), "prob": (n,), "acc": (n,), "embeddings": (E + 1, 16), "read_out": (E, 16), "attention": (e,)}
    observed = {name: torch.rand(shape, generator=rng) for name, shape in (shapes | {"images": (k, k)}).items()}
    return trajectory, observed, trajectory.measure(observed, 6, recent, [])


def test_means_are_of_the_facts_of_a_kind_and_of_none_null():
    trajectory, observed, numbers = measured({"loss": [1.0, 5.0]}, atomic_ood_ratio=0.2, analogical_ood_ratio=(0.0,))
    kinds = [kind for kind in KINDS for _ in trajectory.facts[kind]]
    for key in ("ce", "prob", "acc"):
        means = {}
        for group, own in ({kind: [kind] for kind in KINDS} | {"far_ood_compositional": FAR}).items():
            values = [x for x, kind in zip(observed[key].tolist(), kinds, strict=True) if kind in own]
            means |= {group: np.mean(values)} if values else {}
            assert numbers.get(f"{group}_{key}", "absent") == (
                pytest.approx(means[group], rel=1e-5) if values else "absent"
            )
        there = [mean for group, mean in means.items() if group not in FAR]
        assert key == "prob" or numbers[f"macro_{key}"] == pytest.approx(np.mean(there), rel=1e-5)
    assert numbers["train_acc"] == pytest.approx(observed["acc"][: trajectory.data.n_train].mean().item(), rel=1e-5)
    assert numbers["train_loss"] == 3 and measured({})[2]["train_loss"] is None
    cell = trajectory.cell([numbers | {"step": 0}, numbers | {"step": 3}])
    missing = ["t_ana", "t_ana_acc", "t_ana_choice", "elimination_ood_analogical_acc", "ood_analogical_ce"]
    missing += ["ood_analogical_ppl", "energy_ood", "energy_ratio_ood", "energy_ratio_ood_change"]
    missing += [f"ood_analogical_{key}{end}" for key in ("prob", "acc", "choice") for end in ("", "_max", "_share")]
    assert {cell[key] for key in missing} == {None}
    assert all(key in cell for key in analogy.headlines(trajectory.config))
    counts = trajectory.extras([])["counts"]
    assert counts["far_ood_compositional"] == sum(kind in FAR for kind in kinds) > 0 == counts["ood_analogical"]
    missed = ~analogy.answered_by_lookup(trajectory.facts)
    near = observed["acc"][[i for i, kind in enumerate(kinds) if kind == "near_ood_compositional"]]
    assert numbers["near_ood_beyond_lookup_acc"] == pytest.approx(near[missed].mean().item(), rel=1e-5)
    assert (
        measured({}, analogical_ood_ratio=(0.2,))[2]["ood_analogical_choice"] is None
    )  # of one image there is no choice


@pytest.mark.parametrize("tied", [False, True])
def test_a_cell_tells_when_analogy_came_and_how_long_it_stayed(tied):
    trajectory, _, numbers = measured({}, tie_weights=tied)
    cell_of = lambda new: trajectory.cell([numbers | {key: new[key][i] for key in new} for i in range(4)])  # noqa: E731
    curves = {"step": [0, 3, 6, 36], "energy_ratio": [0.9, 0.8, 0.95, 1.0], "id_atomic_ce": [9.0, 5.0, 2.0, 0.5]}
    curves |= {"train_acc": [0.0, 0.98, 0.99, 0.5], "near_ood_compositional_acc": [0.9, 0.9, 0.9, 0.989]}
    curves |= {"ood_analogical_prob": [0.0, 0.7, 0.49, 0.5], "energy": [2.0, 1.5, 1.1, 1.2]}
    curves |= {"ood_analogical_acc": [0.0, 0.5, 0.99, 0.5], "ood_analogical_choice": [0.5, 0.89, 0.3, 0.9]}
    curves |= {"energy_ratio_id": [1.1, 0.7, 0.5, 0.6], "parallelism_excess_ood": [0.1, 0.0, 0.4, 0.7]}
    if not tied:
        curves |= {"read_out_energy": [2.0, 0.9, 1.0, 1.1], "read_out_energy_ratio": [0.9, 0.75, 0.7, 0.6]}
        curves |= {"read_out_energy_ratio_id": [1.0, 0.4, 0.8, 0.9]}
    wanted = {"t_mem": 6, "t_comp": None, "t_ana": 3, "ood_analogical_prob_max": 0.7, "ood_analogical_prob": 0.5}
    wanted |= {
        "ood_analogical_prob_share": 33 / 36,
        "t_energy_least": 6,
        "energy_least": 1.1,
        "energy_ratio_at_least": 0.95,
    }
    wanted |= {"t_ana_acc": 6, "ood_analogical_acc_max": 0.99, "ood_analogical_acc_share": 3 / 36}
    wanted |= {"t_ana_choice": 36, "ood_analogical_choice_max": 0.9, "ood_analogical_choice_share": 30 / 36}
    wanted |= {"elimination_ood_analogical_acc": 0.5, "id_atomic_ppl": math.exp(0.5), "far_ood_first_hop_ppl": None}
    wanted |= {"t_read_out_energy_least": 6 if tied else 3, "read_out_energy_least": 1.1 if tied else 0.9}
    wanted |= {"read_out_energy_ratio_at_least": 0.95 if tied else 0.75}
    cell = cell_of(curves)
    assert wanted.items() <= cell.items() and not {"plane", "plane_shares", "step"} & cell.keys()
    changes = {"energy_ratio_id": (-0.5, -0.4), "parallelism_excess_ood": (0.6, -0.1), "energy_ratio_ood": (0, 0)}
    changes["read_out_energy_ratio_id"] = changes["energy_ratio_id"] if tied else (-0.1, -0.6)
    for key, (change, before) in changes.items():
        assert (cell[f"{key}_change"], cell[f"{key}_change_before"]) == pytest.approx((change, before))
    never = {"t_ana": None, "ood_analogical_prob_share": 0, "ood_analogical_prob_max": 0.49, "t_ana_acc": None}
    never |= {f"{key}_change_before": None for key in changes}
    curves |= {"ood_analogical_prob": [0.1, 0.2, 0.49, 0.3], "ood_analogical_acc": [0.5, 0.0, 0.5, 0.98]}
    assert never.items() <= cell_of(curves).items()


@pytest.mark.parametrize("tied", [False, True])
def test_planes_are_kept_at_the_start_the_end_and_where_the_energy_is_lower_than_ever(tied):
    trajectory, observed, _ = measured({}, tie_weights=tied)
    rng, points, kept = torch.Generator().manual_seed(1), [], "embeddings" if tied else "read_out"
    for update in range(trajectory.updates + 1):
        offset = torch.rand((1, 16), generator=rng) * 4  # in some an energy is lower, in others higher
        rows = {key: torch.randn(observed[key].shape, generator=rng).double() for key in ("embeddings", "read_out")}
        seen = observed | {key: value + offset for key, value in rows.items()}
        points.append(trajectory.measure(seen, update, {}, points) | {"step": update})
        centred = (x := seen[kept][:10]) - x.mean(0)
        if "plane" in points[-1]:
            distances = torch.cdist(*[torch.tensor(points[-1]["plane"]).double()] * 2)
            near = centred @ torch.linalg.svd(centred)[2][:2].T
            torch.testing.assert_close(distances, torch.cdist(near, near), atol=1e-3, rtol=0)
    energies = [point["energy" if tied else "read_out_energy"] for point in points]
    lowest = [i for i, energy in enumerate(energies) if energy == min(energies[: i + 1])]
    assert [i for i, point in enumerate(points) if "plane" in point] == sorted({*lowest, len(points) - 1})
    assert 1 < len(lowest) < 10 and all(len(str(x)) < 10 for row in points[0]["plane"] for x in row)


def test_the_plan_is_of_epochs_and_presets_are_the_sources():
    plan = analogy.plan(Config(num_entities=(10, 20), weight_decay=(0.0, 0.01), epochs=131, seeds=2, batch_size=149))
    names = [f"E{e}_R10000_ood0.4_wd{d}_d128" for e in (10, 20) for d in ("0", "0.01") for _ in range(2)]
    assert [(t.cells[t.updates], t.streams) for t in plan] == [*zip(names, [(42,), (43,)] * 4, strict=True)]
    for t in plan:
        n = math.ceil(sum(len(t.facts[kind]) for kind in KINDS[:3]) / 149)  # 1, exactly, of the first
        assert t.updates == 131 * n and t.window == n and t.learning_rate(0, 9) == t.learning_rate(8, 9) == 1e-4
        later = (52, 54, 56, 58, 61, 63, 66, 68, 71, 74, 77, 80, 83, 87, 90, 94, 97, 101, 105, 110, 114, 118, 123, 128)
        assert t.measured == tuple(n * epoch for epoch in (*range(51), *later))
    long = [*analogy.measured_epochs(2084), 2084]  # 50,000 updates at 24 an epoch
    assert max(b / a for a, b in zip(long[50:], long[51:], strict=False)) < 1.06 and 100 < len(long) < 150
    assert analogy.measured_epochs(3) == [0, 1, 2]
    parsed = lambda words: harness.parse_arguments(analogy.STUDY, words.split())[0]  # noqa: E731
    presets = [parsed(f"--preset {name}") for name in ("readme", "yaml", "paper", "nb_dynamics", "nb_energy")]
    keys = "num_entities analogical_ood_ratio n_layer mlp_ratio tie_weights lr weight_decay epochs".split()
    found = ["{[0]} {[0]} {} {} {:d} {} {[0]} {}".format(*(getattr(c, key) for key in keys)) for c in presets]
    wanted = "10 0.4 1 4 0 0.0001 0.0 1000, 10 0.1 2 4 0 0.0001 0.0 100, 20 0.1 1 4 0 0.0001 0.0 100, "
    assert ", ".join(found) == wanted + "10 0.4 2 4 1 0.01 0.01 1000, 10 0.1 1 0 1 0.0001 1e-05 300"
    mixed = parsed("--epochs 7 --preset paper --seed 0 --lr 0")
    assert (mixed.epochs, mixed.num_entities, mixed.seed, mixed.lr) == (7, (20,), 0, 0) and parsed("") == presets[0]


def test_commands_and_numbers_of_the_readme_are_there():
    text = (ROOT / "studies" / "analogy" / "README.md").read_text()
    commands = re.findall(r"python experiment\.py (--out_dir=[^`&\n]+)", text)
    assert len(commands) >= 5 and "<!-- try it -->\n```sh\npython" in text
    for words in commands:
        harness.parse_arguments(analogy.STUDY, words.split())
    trajectory, _, numbers = measured({})
    cell = trajectory.cell([numbers | {"step": 0}, numbers | {"step": 3}])
    decided = re.findall(r"`(\w+)`", text[text.index("## What is compared") : text.index("| setting, until")])
    named = {name for name in decided if re.match("t_|energy|read_out_|parallelism|ood_|near_|lookup", name)}
    assert len(named) > 12 and named <= cell.keys()


def test_a_run_grows_by_seeds_and_values_and_ends_with_the_same_bytes(tmp_path):
    read = lambda name: json.loads((tmp_path / name).read_bytes(), parse_constant=pytest.fail)  # noqa: E731
    words = "--seeds 2 --num_relations 30 40"
    for name, more, missing in (("a", words, 24), ("b", "", 6), ("b", "--seeds 2", 6), ("b", words, 12)):
        assert analogy.main([*TINY, *more.split(), "--out_dir", str(tmp_path / name)]) == 0
        assert read(f"{name}/all_results.json")["timing"]["model_steps"] == missing
    same = [[(tmp_path / run / name).read_bytes() for name in ("final_info.json", "cells.csv")] for run in ("a", "b")]
    assert same[0] == same[1]
    assert read("a/final_info.json")["E10_R40_ood0.4_wd0_d16"]["final_info_dict"]["t_mem"] == [None, None]
    for told in read("a/all_results.json")["trajectories"]:
        facts = json.dumps(graph_of(relations=told["num_relations"], seed=told["seed"]))
        assert told["facts"] == json.loads(facts) and told["curves"]["step"] == [0, 3, 6]


BAD_INPUT = [
    *((f"--{kind}_ood_ratio {x}", "below 1") for kind in ("atomic", "analogical") for x in ("1.0", "-0.1")),
    *((words, "at least 3 entities") for words in ("--num_entities 5", "--num_entities 10 4", "--sub_size 2")),
    *((f"--num_relations {words}", "at least 4") for words in ("3", "30 0")),
    *((f"--{flag}", "one or more") for flag in ("num_entities", "d_model", "weight_decay", "analogical_ood_ratio")),
    *((f"--d_model {words}", "twice the number of heads, 2") for words in ("15", "0", "16 17")),
    *((f"--{kind} 7 7", "different values") for kind in ("num_entities", "num_relations", "d_model")),
    *((f"--{kind} 0.1 0.1", "different values") for kind in ("analogical_ood_ratio", "weight_decay")),
    *zip(("--sub_size 6", "--vocab_mode x", "--preset x"), ("at most half", "full or used", "yaml or"), strict=True),
]


@pytest.mark.parametrize("words, wanted", BAD_INPUT)
def test_bad_input_is_one_line_and_touches_nothing(tmp_path, monkeypatch, capsys, words, wanted):
    monkeypatch.chdir(tmp_path)
    assert analogy.main([*TINY, *words.split()]) == 2
    told = capsys.readouterr()
    assert told.out == "" and told.err.count("\n") == 1 and told.err.startswith(f"experiment.py: {words}: must be")
    assert wanted in told.err and not list(tmp_path.iterdir())
    assert Config(num_relations=(1,), duplicate_relation=True).num_relations == (1,)
