"""The study: its mathematics against independent computations, and what its models learn."""

import itertools
import math
from fractions import Fraction

import experiment
import harness
from experiment import Config, TestBed

import numpy as np
import pytest
import torch
from training import CPU, GO_ON, planned, trained

TestBed.__test__ = False


URNS = {
    "Dirichlet": [[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.1, 0.1], [0.25, 0.05, 0.4, 0.3]],
    "zeros": [[0.5, 0.5, 0.0, 0.0], [0.0, 0.25, 0.25, 0.5], [1.0, 0.0, 0.0, 0.0]],
    "near zeros": [[1e-300, 0.5, 0.5 - 1e-12, 1e-12], [1e-9, 1e-9, 1e-9, 1 - 3e-9], [0.25, 0.25, 0.25, 0.25]],
}


CONTEXTS = [
    [0] * 7,
    [3] * 7,
    [0, 1, 2, 3, 0, 1, 2],
    [1, 1, 2, 2, 1, 1, 2],
    [3, 0, 3, 0, 3, 3, 3],
    [1, 0, 1, 1, 0, 0, 0],
]


def bayes(context: list[int], urns: list[list[Fraction]]) -> list[Fraction]:
    """Bayes over the urns with a uniform prior, in exact arithmetic; the prior itself if no urn can produce it."""
    likelihoods = [math.prod(urn[color] for color in context) for urn in urns]
    if not sum(likelihoods):
        likelihoods = [Fraction(1)] * len(urns)
    return [
        sum(w * urn[k] for w, urn in zip(likelihoods, urns, strict=True)) / sum(likelihoods)
        for k in range(len(urns[0]))
    ]


@pytest.mark.parametrize("urns", URNS.values(), ids=URNS)
def test_memorizing_predictors_equal_exact_rational_arithmetic(urns):
    exact = [[Fraction(p) for p in urn] for urn in urns]
    relabelled = [[urn[k] for k in order] for urn in exact for order in itertools.permutations(range(4))]
    contexts, table = torch.tensor(CONTEXTS), torch.tensor(urns, dtype=torch.float64)
    for predictor, candidates in (
        (experiment.memorizing_predictor, exact),
        (experiment.orbit_memorizing_predictor, relabelled),
    ):
        predictions = predictor(contexts, table)
        assert predictions.dtype == torch.float64
        wanted = [[float(p) for p in bayes(context, candidates)] for context in CONTEXTS]
        np.testing.assert_allclose(predictions.numpy(), wanted, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("alpha", [1.0, 0.3, 5.0])
def test_counting_and_posterior_mean_equal_exact_rational_arithmetic(alpha):
    contexts = torch.tensor(CONTEXTS)
    for context, g, s in zip(
        CONTEXTS,
        experiment.counting_predictor(contexts, 4),
        experiment.posterior_mean_predictor(contexts, 4, alpha),
        strict=True,
    ):
        a = Fraction(alpha)
        np.testing.assert_allclose(g, [float(Fraction(context.count(k), 7)) for k in range(4)], rtol=1e-14)
        np.testing.assert_allclose(s, [float((context.count(k) + a) / (7 + 4 * a)) for k in range(4)], rtol=1e-14)


def test_orbit_predictor_is_equivariant_under_relabelling():
    contexts, order = torch.tensor(CONTEXTS), torch.tensor([2, 0, 3, 1])
    urns = torch.tensor(URNS["Dirichlet"], dtype=torch.float64)
    predictions = experiment.orbit_memorizing_predictor(contexts, urns)
    torch.testing.assert_close(experiment.orbit_memorizing_predictor(order[contexts], urns)[:, order], predictions)


def test_orbit_predictor_with_eight_colors_stays_in_memory(monkeypatch):
    """Likelihoods of all kinds of contexts under all relabelled urns would take 100 MB; they are made in blocks."""
    urns = experiment.sample_urns(8, 8, 1.0, torch.Generator().manual_seed(0))
    contexts = torch.randint(8, (150, 15), generator=torch.Generator().manual_seed(1))
    largest, softmax = [], torch.Tensor.softmax
    monkeypatch.setattr(torch.Tensor, "softmax", lambda x, dim: largest.append(x.numel()) or softmax(x, dim))
    predictions = experiment.orbit_memorizing_predictor(contexts, urns)
    kinds = {tuple(sorted(np.bincount(context, minlength=8))) for context in contexts.numpy()}
    assert len(largest) > 1 and max(largest) <= 2**23 and sum(largest) == len(kinds) * 8 * math.factorial(8)
    torch.testing.assert_close(predictions.sum(1), torch.ones(150, dtype=torch.float64))
    alone = experiment.orbit_memorizing_predictor(contexts[77:78], urns)
    torch.testing.assert_close(predictions[77:78], alone)


def test_kl_divergence_and_its_limits():
    p = torch.tensor([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    q = torch.tensor([[0.25, 0.75, 0.0], [0.2, 0.3, 0.5], [0.5, 0.5, 0.0], [1.0, 0.0, 0.0]])
    wanted = [0.5 * math.log(2) + 0.5 * math.log(2 / 3), 0.0, math.log(2), math.inf]
    np.testing.assert_allclose(experiment.kl_divergence(p, q).numpy(), wanted, atol=1e-12)


def test_relative_divergence():
    assert experiment.relative_divergence(0.0, 0.0) == 0.5
    assert experiment.relative_divergence(0.0, 0.3) == 0.0
    assert experiment.relative_divergence(0.3, 0.0) == 1.0
    assert experiment.relative_divergence(0.3, 0.1) == pytest.approx(0.75)


def test_urns_are_nested_and_dirichlet():
    def table(n, alpha=1.0):
        return experiment.sample_urns(n, 4, alpha, experiment.stream(0, "urns"))

    assert torch.equal(table(32)[:5], table(5))
    for alpha in (0.01, 0.5, 1.0, 10.0):
        urns = table(20000, alpha)
        assert urns.shape == (20000, 4) and urns.isfinite().all() and (urns >= 0).all()
        torch.testing.assert_close(urns.sum(1), torch.ones(20000, dtype=torch.float64))
        variance = 0.25 * 0.75 / (4 * alpha + 1)
        np.testing.assert_allclose(urns.mean(0), 0.25, atol=5 * math.sqrt(variance / 20000))
        np.testing.assert_allclose(urns.var(0), variance, rtol=0.1)


def test_sequences_follow_their_urns():
    urns = torch.tensor([[0.0, 0.3, 0.7, 0.0], [0.6, 0.0, 0.0, 0.4], [0.25, 0.25, 0.25, 0.25]], dtype=torch.float64)
    sequences, urn = experiment.sample_sequences(urns, 60000, 5, torch.Generator().manual_seed(3))
    assert sequences.dtype == torch.int64 and sequences.shape == (60000, 5) and urn.shape == (60000,)
    np.testing.assert_allclose(np.bincount(urn) / 60000, 1 / 3, atol=0.01)
    for d in range(3):
        for draw in range(5):
            seen = np.bincount(sequences[urn == d, draw], minlength=4) / int((urn == d).sum())
            assert (seen[urns[d].numpy() == 0] == 0).all()
            np.testing.assert_allclose(seen, urns[d], atol=5 * math.sqrt(0.25 / 20000))
        pair = (sequences[urn == d, 0] == sequences[urn == d, 1]).double().mean()  # draws are independent given the urn
        assert pair.item() == pytest.approx((urns[d] ** 2).sum().item(), abs=0.02)


def random_decoder(config: Config) -> experiment.Model:
    torch.manual_seed(0)
    model = experiment.Model(config)
    for parameter in model.parameters():  # far from initialization, so that every path matters
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model.double()


@pytest.mark.parametrize("embedding", ["gaussian", "permutation", "fixed"])
def test_relabelling_colors_relabels_the_logits_only_if_lex_invariant(embedding):
    config = Config(embedding=embedding, d_model=32)
    model, order = random_decoder(config), torch.tensor([2, 0, 3, 1])
    tokens = torch.randint(4, (6, 7), generator=torch.Generator().manual_seed(1))
    codes = experiment.draw_codes(config, 6, torch.Generator().manual_seed(2))
    if embedding == "gaussian":
        codes = codes.double()
    logits = model(tokens, codes)
    relabelled_codes = codes if embedding == "fixed" else codes[:, order.argsort()]
    relabelled = model(order[tokens], relabelled_codes)[..., order]
    assert torch.allclose(relabelled, logits, atol=1e-10) == (embedding != "fixed")


@pytest.mark.parametrize("embedding", ["gaussian", "permutation"])
def test_every_sequence_has_its_own_embeddings(embedding):
    config = Config(embedding=embedding)
    model, codes = experiment.Model(config), experiment.draw_codes(config, 500, torch.Generator().manual_seed(0))
    matrices = model.embeddings(codes)
    assert matrices.shape == (500, 4, 128)
    if embedding == "gaussian":
        assert abs(matrices.mean()) < 0.01 and abs(matrices.std() - 1) < 0.01
        assert len({matrix.sum().item() for matrix in matrices}) == 500
        assert not any("table" in name for name, _ in model.named_parameters())
    else:
        orders, counts = codes.unique(dim=0, return_counts=True)
        assert len(orders) == 24 and counts.max() < 60
        assert (codes.sort(1).values == torch.arange(4)).all()


def test_causality():
    config = Config(d_model=32)
    model = random_decoder(config)
    tokens = torch.randint(4, (3, 7), generator=torch.Generator().manual_seed(1))
    codes = experiment.draw_codes(config, 3, torch.Generator().manual_seed(2)).double()
    logits = model(tokens, codes)
    for t in range(7):
        changed = tokens.clone()
        changed[:, t] = (changed[:, t] + 1) % 4
        difference = (model(changed, codes) - logits).abs().amax((0, 2))
        assert (difference[:t] == 0).all()
        assert (difference[t:] > 0).all()


def test_decoder_is_the_textbook_one():
    """Against PyTorch's own encoder layers with a causal mask and the same weights."""
    config = Config(d_model=32)
    model = random_decoder(config).decoder
    layers = []
    for block in model.blocks:
        layer = torch.nn.TransformerEncoderLayer(
            32, 4, 128, 0.0, "gelu", batch_first=True, norm_first=True, bias=False, dtype=torch.float64
        )
        by_head = block.qkv.weight.data.view(4, 3, 8, 32)  # every head has its query, key and value together
        layer.self_attn.in_proj_weight.data = by_head.transpose(0, 1).reshape(96, 32)
        layer.self_attn.out_proj.weight.data = block.attention_out.weight.data
        layer.linear1.weight.data, layer.linear2.weight.data = block.mlp_in.weight.data, block.mlp_out.weight.data
        layer.norm1.weight.data, layer.norm2.weight.data = block.attention_norm.weight.data, block.mlp_norm.weight.data
        layers.append(layer)
    tokens = torch.randint(4, (5, 7))
    embeddings = torch.randn(5, 4, 32, dtype=torch.float64)
    x = torch.stack([embeddings[b, tokens[b]] for b in range(5)]) + model.positions[:7]
    for layer in layers:
        x = layer(x, torch.nn.Transformer.generate_square_subsequent_mask(7, dtype=torch.float64))
    x = torch.nn.functional.layer_norm(x, (32,), model.norm.weight)
    logits = torch.einsum("btd,bmd->btm", x, embeddings) / math.sqrt(32)
    torch.testing.assert_close(model(tokens, embeddings), logits)


def test_loss_is_cross_entropy_over_all_next_draws():
    logits, tokens = torch.randn(5, 7, 4), torch.randint(4, (5, 8))
    wanted = torch.nn.functional.cross_entropy(logits.reshape(-1, 4), tokens[:, 1:].reshape(-1))
    torch.testing.assert_close(experiment.next_draw_loss(logits, tokens), wanted)


def test_training_starts_near_the_uniform_prediction():
    """No steps are wasted on scale: the first loss is close to log m in every embedding mode."""
    for embedding in ("gaussian", "permutation", "fixed"):
        config = Config(embedding=embedding, tasks=(4,), steps=(1,), n_test=4)
        (loss,), _ = harness.Ensemble(planned(config), CPU).advance(1, GO_ON)
        assert abs(loss - math.log(4)) < 0.15, (embedding, loss)


def test_a_lex_invariant_model_learns_to_count():
    """Closer to S than any predictor can be that knows the last draw alone, and no color by name."""
    model = trained(Config(tasks=(4,), steps=(100,), n_test=4, lr=1e-3))
    bed, numbers = model.trajectory.data, model.points[-1]
    last, weights, S = bed.contexts[:, -1:], bed.weights["exact_"], bed.ideals["posterior_mean"][:, -1]
    floor = math.inf
    for repeat in torch.linspace(0.25, 0.6, 36):
        from_last = ((1 - repeat) / 3).expand(S.shape).double().scatter(1, last, repeat.item())
        floor = min(floor, (weights @ experiment.kl_divergence(S, from_last)).item())
    assert numbers["exact_kl_to_posterior_mean"] < 0.95 * floor


def softened(contexts: torch.Tensor) -> torch.Tensor:
    """A generalizer that smoothes too much, after each draw: [n, C] -> [n, C, m]."""
    lengths = range(1, contexts.shape[1] + 1)
    return torch.stack([experiment.posterior_mean_predictor(contexts[:, :t], 4, 3.0) for t in lengths], 1)


@pytest.mark.parametrize("kind", ["exact_", "exact_fresh_"])
def test_exact_expectation_is_the_average_over_very_many_sampled_contexts(kind):
    bed = TestBed(Config(alpha=0.7, seq_len=6), 4, 1)
    assert bed.weights[kind].sum().item() == pytest.approx(1, abs=1e-12)
    numbers = bed.measure(softened(bed.contexts))
    rng, n = np.random.default_rng(5), 200_000
    urns = bed.urns.numpy()[rng.integers(4, size=n)] if kind == "exact_" else rng.dirichlet([0.7] * 4, size=n)
    contexts = torch.from_numpy((rng.random((n, 5, 1)) > urns.cumsum(1)[:, None, :3]).sum(2))
    ideals = {
        "kl_to_g": experiment.counting_predictor(contexts, 4),
        "kl_to_m": experiment.memorizing_predictor(contexts, bed.urns),
        "kl_to_posterior_mean": experiment.posterior_mean_predictor(contexts, 4, 0.7),
        "kl_to_best_counting": experiment.best_counting_predictor(contexts, bed.urns),
        "kl_to_orbit": experiment.orbit_memorizing_predictor(contexts, bed.urns),
    }
    seen = 0
    for key, ideal in ideals.items():
        if kind + key in numbers:
            values = experiment.kl_divergence(ideal, softened(contexts)[:, -1]).numpy()
            assert abs(values.mean() - numbers[kind + key]) < 5 * values.std() / math.sqrt(n), key
            seen += 1
    assert seen == (5 if kind == "exact_" else 2)


def test_sampled_expectation_is_the_plain_mean_over_the_test_contexts():
    config = Config(n_test=50)
    bed = TestBed(config, 8, 0)
    numbers, P = bed.measure(softened(bed.contexts)), softened(bed.contexts)[:, -1]
    G = experiment.counting_predictor(bed.contexts[:50], 4)
    M = experiment.memorizing_predictor(bed.contexts[:50], bed.urns)
    S, fresh_S = experiment.posterior_mean_predictor(bed.contexts[:100], 4, 1.0).split(50)
    kl = experiment.kl_divergence
    assert numbers["kl_to_g"] == pytest.approx(kl(G, P[:50]).mean().item())
    assert numbers["relative_divergence"] == pytest.approx(
        numbers["kl_to_g"] / (numbers["kl_to_g"] + numbers["kl_to_m"])
    )

    def J(a, b):
        return ((kl(a, b) + kl(b, a)) / 2).mean().item()

    r = (J(P[:50], S) - J(P[:50], M)) / J(S, M)
    assert numbers["d_rel"] == pytest.approx(min(max((r + 1) / 2, 0), 1))
    assert numbers["fresh_kl_to_posterior_mean"] == pytest.approx(kl(fresh_S, P[50:100]).mean().item())


def plain_bayes(context, urns: np.ndarray) -> np.ndarray:
    likelihoods = np.prod(urns[:, list(context)], axis=1)
    return likelihoods @ urns / likelihoods.sum()


def plain_kl(p, q) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a)


def test_references_and_every_context_length_equal_plain_sums_over_all_contexts():
    m, C, alpha = 3, 4, 0.8
    bed = TestBed(Config(n_colors=m, seq_len=C + 1, alpha=alpha, n_test=8), 5, 2)
    urns = bed.urns.numpy()
    relabelled = np.concatenate([urns[:, list(order)] for order in itertools.permutations(range(m))])
    best = [experiment.best_counting_a(bed.urns, length) for length in range(C + 1)]
    predictors = {
        "g": lambda x: np.bincount(x, minlength=m) / len(x),
        "posterior_mean": lambda x: (np.bincount(x, minlength=m) + alpha) / (len(x) + m * alpha),
        "best_counting": lambda x: (np.bincount(x, minlength=m) + best[len(x)]) / (len(x) + m * best[len(x)]),
        "orbit": lambda x: plain_bayes(x, relabelled),
        "m": lambda x: plain_bayes(x, urns),
    }

    def model(x):
        return (np.bincount(x, minlength=m) + 2) / (len(x) + 2 * m)

    def expect(value, length):
        """Mean of value(context) over all contexts of this length."""
        contexts = itertools.product(range(m), repeat=length)
        return sum(np.prod(urns[:, list(x)], axis=1).mean() * value(list(x)) for x in contexts)

    def kl(p, q, length=C):
        return expect(lambda x: plain_kl(p(x), q(x)), length)

    names = {"posterior_mean": "posterior_mean", "best_counting": "best_counting", "orbit": "orbit", "memorizing": "m"}
    M = predictors["m"]
    for name, key in names.items():
        own, reference = predictors[key], bed.reference[name]
        for other, ideal in predictors.items():
            assert reference[f"kl_to_{other}"] == pytest.approx(kl(ideal, own), rel=1e-9, abs=1e-12)
        to_g, to_s, to_m = (kl(predictors[other], own) for other in ("g", "posterior_mean", "m"))
        assert reference["relative_divergence"] == pytest.approx(to_g / (to_g + to_m))
        assert reference["relative_divergence_posterior_mean"] == pytest.approx(to_s / (to_s + to_m), abs=1e-12)
        loss = [expect(lambda x: -sum(M(x) * np.log(own(x))), t) for t in range(1, C + 1)]  # noqa: B023
        assert reference["expected_loss"] == pytest.approx(np.mean(loss), rel=1e-9)
    assert bed.reference["memorizing"]["relative_divergence"] == 1
    assert bed.reference["posterior_mean"]["d_rel"] == 0
    losses = [bed.reference[name]["expected_loss"] for name in reversed(names)]
    assert losses == sorted(losses)

    P = torch.tensor(np.array([[model(x[:t].numpy()) for t in range(1, C + 1)] for x in bed.contexts]))
    numbers = bed.measure(P)
    for key in names.values():
        wanted = [kl(predictors[key], model, t) for t in range(1, C + 1)]
        np.testing.assert_allclose(numbers[f"exact_kl_to_{key}_by_length"], wanted, rtol=1e-9)
        assert numbers[f"exact_kl_to_{key}"] == pytest.approx(wanted[-1])


def test_strategy_weights_equal_a_grid_search():
    bed = TestBed(Config(n_test=8), 4, 0)
    strategies = torch.stack([bed.ideals[key][:, -1] for key in ("posterior_mean", "orbit", "m")])
    weights = bed.weights["exact_"]
    S, M, mean = strategies[0], strategies[2], strategies.mean(0)
    uniform = torch.full_like(S, 0.25)
    for P in (mean, 0.7 * S + 0.3 * uniform, (S**0.5 * M**0.5), 0.9 * M + 0.1 * uniform):
        P = P / P.sum(1, keepdim=True)
        found, residual = experiment.mixture_weights(P, strategies, weights)
        assert found.min() >= 0 and found.sum().item() == pytest.approx(1, abs=1e-12)
        best, where = math.inf, None
        for a, b in itertools.product(range(11), repeat=2):
            if a + b <= 10:
                point = torch.tensor([a, b, 10 - a - b]) / 10
                mixture = torch.einsum("j,jnm->nm", point.double(), strategies)
                best, where = min((best, where), ((weights @ experiment.kl_divergence(P, mixture)).item(), point))
        mixture = torch.einsum("j,jnm->nm", found, strategies)
        assert residual == pytest.approx((weights @ experiment.kl_divergence(P, mixture)).item(), abs=1e-12)
        assert residual <= best + 1e-12
        np.testing.assert_allclose(found, where, atol=0.1)


def test_strategy_weights_are_optimal_to_1e_8():
    """By the bound of convex duality, for components that are nearly or exactly the same or nearly zero as well."""
    for trial in range(200):
        rng = np.random.default_rng(trial)
        n, m, alpha = [(20, 4), (200, 3), (5, 2)][trial % 3] + ((0.01, 0.05, 1.0, 5.0)[trial % 4],)
        components = rng.dirichlet([alpha] * m, size=(3, n))
        components[0] = 0.99 * components[0] + 0.01 / m
        if trial % 5 == 0:
            components[1] = components[0] + (trial % 2) * 1e-6 * (components[1] - components[0])
        P, true = rng.dirichlet([1] * m, size=n), rng.dirichlet([1] * 3)
        if trial % 2:
            P = 0.999 * np.einsum("j,jnm->nm", true, components) + 0.001 * P
        weights = rng.dirichlet([1] * n)
        arguments = (torch.from_numpy(x) for x in (P, components, weights))
        found, residual = experiment.mixture_weights(*arguments)
        mixture = np.einsum("j,jnm->nm", found.numpy(), components)
        gap = max(sum((weights[:, None] * P * component / mixture).flat) for component in components) - 1
        assert gap < 1e-8 and found.sum().item() == pytest.approx(1, abs=1e-12) and found.min() >= 0, trial
        if trial % 2:
            assert residual < 0.01


@pytest.mark.parametrize("alpha", [0.001, 0.01, 1.0])
def test_strategy_weights_of_models_near_an_ideal_predictor(alpha):
    """With a small alpha M and O are zero, or nearly, where S and the model are not."""
    bed = TestBed(Config(n_test=8, alpha=alpha), 4, 0)
    strategies, weights = (torch.stack([bed.ideals[k][:, -1] for k in TestBed.STRATEGIES.values()]), bed.weights)
    noise = 0.1 * torch.randn(strategies.shape[1:], generator=torch.Generator().manual_seed(0)).double()
    for k in range(4):
        found, residual = experiment.mixture_weights(strategies[k], strategies, weights["exact_"])
        assert residual == pytest.approx(0, abs=1e-8)
        P = (strategies[k].clamp(min=1e-12).log() + noise).softmax(-1)
        found, residual = experiment.mixture_weights(P, strategies, weights["exact_"])
        mass = weights["exact_"][:, None] * P
        ratios = torch.where(mass > 0, strategies / torch.einsum("j,jnm->nm", found, strategies), 0)
        assert (mass * ratios).sum((1, 2)).max().item() < 1 + 1e-8
        assert found.sum().item() == pytest.approx(1, abs=1e-12) and 0 <= residual < 0.1


def test_references_stay_finite_where_predictions_underflow():
    bed = TestBed(Config(n_test=8, alpha=0.001), 4, 0)
    assert all(math.isfinite(bed.reference["orbit"][key]) for key in ("kl_to_m", "expected_loss"))


def test_exact_evaluation_switches_itself_off():
    bed = TestBed(Config(seq_len=10, n_test=8), 4, 0)
    assert not any("exact" in key for key in bed.measure(softened(bed.contexts)))
    assert set(bed.reference) == {"posterior_mean", "best_counting", "orbit", "memorizing"}


def test_the_ordinary_transformer_learns_to_memorize():
    numbers = trained(Config(embedding="fixed", tasks=(4,), steps=(300,), n_layers=2, d_model=64, lr=1e-3)).points[-1]
    assert numbers["exact_kl_to_m"] < 0.05
    assert numbers["exact_relative_divergence"] > 0.85
