"""What tells counting from memorizing up to a renaming: the best counting rule, the coordinate from it to O, what a
model's distance from them is made of, and schedules of the learning rate."""

import itertools
import math
from fractions import Fraction

import experiment
import harness
from experiment import STUDY, Config, TestBed

import numpy as np
import pytest
import torch
from test_balls_and_urns import URNS, bayes, plain_bayes, plain_kl, random_decoder
from training import CPU, GO_ON, nowhere, planned

TestBed.__test__ = False
NAMES = ("g", "m", "posterior_mean", "best_counting", "orbit")


# ---- The best counting rule ------------------------------------------------------------------------------------------


def slope(a: Fraction, urns: list[list[Fraction]], length: int) -> Fraction:
    """Derivative by a of the expected KL(M || (n_k + a) / (C + m a)), over every context in exact arithmetic."""
    m, total = len(urns[0]), Fraction(0)
    for counts in itertools.product(range(length + 1), repeat=m):
        if sum(counts) == length:
            context = [color for color, n in enumerate(counts) for _ in range(n)]
            orders = math.factorial(length) // math.prod(map(math.factorial, counts))
            likelihood = orders * sum(math.prod(urn[color] for color in context) for urn in urns) / len(urns)
            terms = zip(bayes(context, urns), counts, strict=True)
            total += likelihood * sum(p * (m / (length + m * a) - 1 / (n + a)) for p, n in terms if p)
    return total


@pytest.mark.parametrize("length", [1, 4, 7])
@pytest.mark.parametrize("name", [*URNS, "one urn", "two colors"])
def test_the_best_counting_rule_is_found_to_a_millionth(name, length):
    urns = URNS | {"one urn": [[0.4, 0.3, 0.2, 0.1]], "two colors": [[0.9, 0.1], [0.3, 0.7], [0.5, 0.5]]}
    table = torch.tensor(urns[name], dtype=torch.float64)
    a, exact = experiment.best_counting_a(table, length), [[Fraction(p) for p in urn] for urn in urns[name]]
    step = Fraction(1, 10**6)
    assert step < a < 1000
    assert slope(Fraction(a) - step, exact, length) < 0 < slope(Fraction(a) + step, exact, length)


def test_no_other_counting_rule_on_a_grid_is_nearer_to_m():
    config = Config(seq_len=5, alpha=0.3, n_test=8)
    bed = TestBed(config, 3, 1)
    exact, M, weights = bed.contexts[16:], bed.ideals["m"][16:, -1], bed.weights["exact_"][16:]
    a = experiment.best_counting_a(bed.urns, 4)
    counts = experiment.color_counts(exact, 4)
    R = experiment.best_counting_predictor(exact, bed.urns)
    torch.testing.assert_close(R, (counts + a) / (4 + 4 * a), rtol=1e-12, atol=0)

    def kl(b):
        return (weights @ experiment.kl_divergence(M, (counts + b) / (4 + 4 * b))).item()

    grid = [*np.geomspace(1e-4, 1e4, 400), a * 1.001, a / 1.001]
    assert all(kl(a) < kl(b) for b in grid)
    assert bed.reference["best_counting"]["kl_to_m"] == pytest.approx(kl(a), rel=1e-12)


def test_the_best_counting_rule_needs_no_list_of_contexts():
    """2^1000 contexts: against a sum over how often the first of two colors occurs."""
    urns = torch.tensor([[0.9, 0.1], [0.35, 0.65]], dtype=torch.float64)
    C, a = 1000, experiment.best_counting_a(urns, 1000)

    def loss(b):
        total = 0.0
        for p, n in itertools.product((0.9, 0.35), range(C + 1)):
            log_binomial = math.lgamma(C + 1) - math.lgamma(n + 1) - math.lgamma(C - n + 1)
            probability = math.exp(log_binomial + n * math.log(p) + (C - n) * math.log(1 - p))
            rule = (n + b) / (C + 2 * b)
            total -= probability * (p * math.log(rule) + (1 - p) * math.log(1 - rule))
        return total

    assert loss(a) < min(loss(0.9 * a), loss(1.1 * a)) and 0.1 < a < 10


def test_where_the_best_smoothing_is_none_or_has_no_limit():
    contexts = torch.tensor([[0] * 7, [0, 1, 2, 3, 0, 1, 2]])
    single, uniform = torch.eye(4, dtype=torch.float64), torch.full((2, 4), 0.25, dtype=torch.float64)
    assert experiment.best_counting_a(single, 7) == pytest.approx(1e-9)
    assert experiment.best_counting_a(uniform, 7) == pytest.approx(1e9)
    G = experiment.counting_predictor(contexts, 4)
    np.testing.assert_allclose(experiment.best_counting_predictor(contexts, single), G, atol=1e-9)
    np.testing.assert_allclose(experiment.best_counting_predictor(contexts, uniform), 0.25, atol=1e-9)


# ---- The coordinate --------------------------------------------------------------------------------------------------


def between(A: torch.Tensor, B: torch.Tensor, t: float) -> torch.Tensor:
    return ((1 - t) * A.log() + t * B.log()).softmax(-1)


def test_the_coordinate_runs_from_0_to_1_along_the_exponential_line():
    rng = np.random.default_rng(0)
    A, B = (torch.from_numpy(rng.dirichlet([0.7] * 4, size=50)) for _ in range(2))
    weights = torch.from_numpy(rng.dirichlet([1] * 50))

    def coordinate(P, A=A, B=B):
        kl = [(weights @ experiment.kl_divergence(*pair)).item() for pair in ((A, P), (B, P), (A, B), (B, A))]
        return experiment.coordinate(*kl)

    assert coordinate(A) == 0 and coordinate(B) == 1
    for t in (-0.5, 0.1, 0.5, 0.9, 1.5):
        assert coordinate(between(A, B, t)) == pytest.approx(t, abs=1e-12)
    assert coordinate(B, A, A) is None
    assert coordinate(B, A, A + 1e-9 * (B - A)) is None  # rounding would decide
    assert coordinate(torch.nn.functional.one_hot(A.argmax(1), 4)) is None
    assert coordinate(A, A, torch.nn.functional.one_hot(A.argmax(1), 4)) is None


@pytest.mark.parametrize("seq_len", [6, 10])
def test_coordinates_of_ideals_and_of_what_lies_between_r_and_o(seq_len):
    """Exact, and of the sampled contexts where those are too many to enumerate."""
    bed = TestBed(Config(seq_len=seq_len, n_test=32, alpha=0.3), 2, 0)
    R, O = bed.ideals["best_counting"], bed.ideals["orbit"]  # noqa: E741
    assert bed.reference["best_counting"]["coordinate_r_o"] == 0
    assert bed.reference["orbit"]["coordinate_r_o"] == 1
    for t in (-0.2, 0.3, 0.75):
        numbers = bed.measure(between(R, O, t))
        assert numbers["coordinate_r_o"] == pytest.approx(t, abs=1e-9)
        assert "exact_coordinate_r_o" not in numbers
    r_to_o, o_to_r = bed.reference["orbit"]["kl_to_best_counting"], bed.reference["best_counting"]["kl_to_orbit"]
    for name, key in TestBed.STRATEGIES.items():
        kl = bed.reference[name]
        wanted = (kl["kl_to_best_counting"] - kl["kl_to_orbit"] + o_to_r) / (r_to_o + o_to_r)
        assert kl["coordinate_r_o"] == pytest.approx(wanted)
        assert bed.measure(bed.ideals[key])["coordinate_r_o"] == pytest.approx(wanted)
    assert min(r_to_o, o_to_r) > 1e-4


def test_there_is_no_coordinate_where_r_and_o_are_the_same():
    bed = TestBed(Config(seq_len=4, n_test=8), 1, 0)
    assert bed.reference["orbit"]["coordinate_r_o"] == 1
    uniform = torch.full((1, 4), 0.25, dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experiment, "sample_urns", lambda *_: uniform)
        bed = TestBed(Config(seq_len=4, n_test=8), 1, 0)
    assert bed.measure(bed.ideals["posterior_mean"])["coordinate_r_o"] is None


# ---- Noise and bias --------------------------------------------------------------------------------------------------


def random_log_p(bed: TestBed, K: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(K, len(bed.exact), 3, generator=generator, dtype=torch.float64).mul(0.7).log_softmax(-1)


def test_noise_and_bias_equal_plain_sums_and_add_up_to_the_distance():
    m, C, K, alpha = 3, 4, 5, 0.8
    bed = TestBed(Config(n_colors=m, seq_len=C + 1, alpha=alpha, n_test=8), 2, 2)
    log_p, urns = random_log_p(bed, K), bed.urns.numpy()
    numbers = bed.decompose(log_p, "gaussian")
    relabelled = np.concatenate([urns[:, list(order)] for order in itertools.permutations(range(m))])
    a = experiment.best_counting_a(bed.urns, C)
    ideals = {
        "g": lambda x: np.bincount(x, minlength=m) / C,
        "m": lambda x: plain_bayes(x, urns),
        "posterior_mean": lambda x: (np.bincount(x, minlength=m) + alpha) / (C + m * alpha),
        "best_counting": lambda x: (np.bincount(x, minlength=m) + a) / (C + m * a),
        "orbit": lambda x: plain_bayes(x, relabelled),
    }
    answers = {x: log_p[:, i].tolist() for i, x in enumerate(itertools.product(range(m), repeat=C))}
    probability = {x: np.prod(urns[:, list(x)], axis=1).mean() for x in answers}

    def normalized(logs):
        """Log-probabilities, and what is lost: -log Z."""
        log_z = math.log(math.fsum(map(math.exp, logs)))
        return [value - log_z for value in logs], -log_z

    def average(rows):
        return [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)]

    over_draws = {x: normalized(average(rows)) for x, rows in answers.items()}
    over_orders = {}
    for x in answers:
        orders = [y for y in answers if sorted(y) == sorted(x)]
        over_orders[x] = normalized(average([over_draws[y][0] for y in orders]))
    embedding_noise, order_noise = (sum(probability[x] * by[x][1] for x in answers) for by in (over_draws, over_orders))
    assert numbers["exact_embedding_noise"] == pytest.approx(embedding_noise, abs=1e-12)
    assert numbers["exact_order_noise"] == pytest.approx(order_noise, abs=1e-12)
    assert min(embedding_noise, order_noise) > 0.01
    for name, ideal in ideals.items():
        bias = sum(probability[x] * plain_kl(ideal(list(x)), np.exp(over_orders[x][0])) for x in answers)
        assert numbers[f"exact_bias_to_{name}"] == pytest.approx(bias, abs=1e-12)
        one_by_one = [plain_kl(ideal(list(x)), np.exp(row)) * probability[x] for x in answers for row in answers[x]]
        assert bias + order_noise + embedding_noise == pytest.approx(math.fsum(one_by_one) / K, abs=1e-12)

    to_r, to_o = numbers["exact_bias_to_best_counting"], numbers["exact_bias_to_orbit"]
    r_to_o, o_to_r = bed.reference["orbit"]["kl_to_best_counting"], bed.reference["best_counting"]["kl_to_orbit"]
    assert numbers["bias_coordinate_r_o"] == pytest.approx((to_r - to_o + o_to_r) / (r_to_o + o_to_r), abs=1e-12)
    coordinates = []
    for one in log_p:  # noise is the same for R and O: the coordinate of the mean is the mean of the coordinates
        P = torch.cat([torch.full((16, 3), 1 / 3), one.exp()])[:, None].expand(-1, C, -1)
        coordinates.append(bed.measure(P)["coordinate_r_o"])
    assert numbers["bias_coordinate_r_o"] == pytest.approx(np.mean(coordinates), abs=1e-9)


def test_one_draw_that_knows_only_the_counts_is_all_bias():
    bed = TestBed(Config(n_colors=3, seq_len=5, n_test=8), 2, 0)
    for embedding in ("gaussian", "fixed", "permutation"):
        numbers = bed.decompose(bed.ideals["best_counting"][None, 16:, -1].log(), embedding)
        assert abs(numbers["exact_embedding_noise"]) < 1e-14 and abs(numbers["exact_order_noise"]) < 1e-14
        assert numbers["exact_bias_to_best_counting"] < 1e-14 and abs(numbers["bias_coordinate_r_o"]) < 1e-12
        for name in NAMES:
            wanted = bed.reference["best_counting"][f"kl_to_{name}"]
            assert numbers[f"exact_bias_to_{name}"] == pytest.approx(wanted, abs=1e-14)


def trajectory_of(**settings) -> experiment.UrnTrajectory:
    return planned(Config(**{"tasks": (2,), "steps": (3,), "n_test": 8, "d_model": 16} | settings))[0].trajectory


@pytest.mark.parametrize("n_colors, seq_len", [(3, 5), (4, 4), (4, 2), (5, 4)])
def test_one_code_and_renaming_are_as_good_as_really_running_every_code(n_colors, seq_len):
    trajectory = trajectory_of(n_colors=n_colors, seq_len=seq_len, embedding="permutation")
    model, bed = random_decoder(trajectory.config), trajectory.data
    with torch.no_grad():
        numbers = bed.decompose(trajectory.observe(model, 3)["log_p"], "permutation")
        every = []
        for code in itertools.permutations(range(n_colors)):
            codes = torch.tensor(code).expand(len(bed.exact), -1)
            every.append(model(bed.exact, codes)[:, -1].log_softmax(-1))
    wanted = bed.decompose(torch.stack(every), "gaussian")  # which averages what it is given
    assert numbers.keys() == wanted.keys() and wanted["exact_embedding_noise"] > 1e-3
    for key, value in wanted.items():
        assert numbers[key] == value is None or np.allclose(numbers[key], value, rtol=2e-6, atol=1e-10), key


class Toy(torch.nn.Module):
    """Logits of two colors: sigma times the first entries of the embeddings, and beta for the last draw's color."""

    sigma, beta = 0.4, 0.6

    def __init__(self):
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def forward(self, tokens, codes):
        return self.sigma * codes[:, None, :, 0] + self.beta * torch.nn.functional.one_hot(tokens, 2)


def toy_numbers(bed: TestBed) -> dict[str, float]:
    """Analytically, for infinitely many draws: E log(1 + exp(x)) with x ~ N(beta, 2 sigma^2) less its value at beta;
    and over the orders of n and C - n draws, of which n / C end with the first color."""
    sigma, beta, C = Toy.sigma, Toy.beta, bed.exact.shape[1]
    z, weights = np.polynomial.hermite_e.hermegauss(60)
    expected = weights @ np.log1p(np.exp(beta + math.sqrt(2) * sigma * z)) / weights.sum()
    embedding_noise = expected - math.log1p(math.exp(beta))
    order_noise = bias = 0.0
    for p, n in itertools.product(bed.urns[:, 0].tolist(), range(C + 1)):
        probability = math.comb(C, n) * p**n * (1 - p) ** (C - n) / len(bed.urns)
        logits = np.array([beta * n / C, beta * (C - n) / C])
        log_sum = np.logaddexp(*logits)
        order_noise += probability * (math.log1p(math.exp(beta)) - log_sum)
        S = np.array([n + 50, C - n + 50]) / (C + 100)
        bias += probability * plain_kl(S, np.exp(logits - log_sum))
    return {"embedding_noise": embedding_noise, "order_noise": order_noise, "bias": bias}


@pytest.mark.parametrize("K", [4, 100])
def test_many_draws_find_the_noise_of_a_toy_and_few_leave_out_one_in_k(K, monkeypatch):
    """What is left out is in the order noise: a context has up to 3432 orders, each with draws of its own."""
    monkeypatch.setattr(TestBed, "EMBEDDING_DRAWS", K)
    trajectory = trajectory_of(n_colors=2, seq_len=15, alpha=50, n_heads=1, d_model=1)
    bed = trajectory.data
    with torch.no_grad():
        numbers = bed.decompose(trajectory.observe(Toy(), 3)["log_p"], "gaussian")
    noise, order_noise, bias = toy_numbers(bed).values()
    assert noise > 0.01 and order_noise > 0.01
    assert numbers["exact_embedding_noise"] == pytest.approx(noise * (1 - 1 / K), rel=0.05)
    assert numbers["exact_order_noise"] == pytest.approx(order_noise + noise / K, rel=0.03)
    assert numbers["exact_bias_to_posterior_mean"] == pytest.approx(bias, rel=0.03)


# ---- What a trajectory measures --------------------------------------------------------------------------------------

NOISE = {"exact_embedding_noise", "exact_order_noise", "bias_coordinate_r_o", *(f"exact_bias_to_{x}" for x in NAMES)}


def measured(progress: harness.Progress) -> list[dict]:
    harness.train(nowhere(), [progress], CPU, "plain", lambda *updates: None, GO_ON)
    return progress.points


@pytest.mark.parametrize("embedding", ["gaussian", "permutation", "fixed"])
def test_noise_is_measured_after_the_last_update_alone_and_adds_up(embedding):
    settings = {"seq_len": 6, "embedding": embedding, "n_layers": 1, "d_model": 32, "n_test": 8}
    first, last = measured(planned(Config(tasks=(16,), steps=(20, 40), lr=1e-2, **settings))[0])
    assert last.keys() - first.keys() == NOISE | {"bias_predictions"} and first.keys() < last.keys()
    if embedding == "fixed":
        assert last["exact_embedding_noise"] == 0.0
        assert last["bias_coordinate_r_o"] == pytest.approx(last["coordinate_r_o"], abs=1e-9)
    else:
        assert last["exact_embedding_noise"] > 1e-5
    noise = last["exact_embedding_noise"] + last["exact_order_noise"]
    for name in NAMES:  # one draw each there, 16 here: near; with fixed embeddings both are the same
        kl, bias = last[f"exact_kl_to_{name}"], last[f"exact_bias_to_{name}"]
        assert kl == pytest.approx(bias + noise, abs=1e-12 if embedding == "fixed" else noise / 3), name


@pytest.mark.parametrize("embedding", ["gaussian", "permutation"])
def test_predictions_without_noise_are_kept_so_that_other_rivals_can_be_compared(embedding):
    settings = {"seq_len": 5, "embedding": embedding, "n_layers": 1, "d_model": 16, "n_test": 8, "n_colors": 3}
    progress = planned(Config(tasks=(4,), steps=(20, 40), lr=1e-2, **settings))[0]
    points, bed = measured(progress), progress.trajectory.data
    multisets = list(itertools.combinations_with_replacement(range(3), 4))
    kept = dict(zip(multisets, points[-1]["bias_predictions"], strict=True))
    P = torch.tensor([kept[tuple(sorted(draws))] for draws in bed.exact.tolist()], dtype=torch.float64)
    weights = torch.tensor([bed.urns[:, list(draws)].prod(1).mean() for draws in bed.exact.tolist()])
    for name in ("best_counting", "orbit", "m"):
        ideal = bed.ideals[name][-len(bed.exact) :, -1]
        kl = (weights * (torch.xlogy(ideal, ideal) - torch.xlogy(ideal, P)).sum(1)).sum().item()
        assert kl == pytest.approx(points[-1][f"exact_bias_to_{name}"], abs=1e-6)
    assert "bias_predictions" not in progress.trajectory.cell(points)


def test_numbers_by_length_are_those_of_cells():
    settings = {"seq_len": 4, "n_layers": 1, "d_model": 16, "n_test": 8, "n_heads": 1}
    curve = [point for point in measured(planned(Config(tasks=(2,), steps=(101,), **settings))[0]) if point["step"]]
    has = {point["step"]: any(key.endswith("_by_length") for key in point) for point in curve}
    assert has == {100: False, 101: True}


def test_with_a_schedule_every_n_has_its_noise():
    settings = {"seq_len": 4, "n_layers": 1, "d_model": 16, "n_test": 8, "n_heads": 1}
    for progress in planned(Config(tasks=(2,), steps=(3, 5), schedule="cosine", **settings)):
        assert NOISE < measured(progress)[-1].keys()


@pytest.mark.parametrize("embedding", ["gaussian", "permutation", "fixed"])
def test_the_draws_for_the_noise_change_no_other_number(embedding):
    trajectory = trajectory_of(seq_len=6, embedding=embedding)
    torch.manual_seed(0)
    model, contexts = trajectory.model(), trajectory.data.contexts
    codes, wanted = trajectory.stream("evaluation embeddings"), []
    with torch.no_grad():
        for batch in contexts.split(512):
            wanted.append(model(batch, experiment.draw_codes(trajectory.config, len(batch), codes)).double())
        early, late = trajectory.observe(model, 2), trajectory.observe(model, 3)
    wanted = torch.cat(wanted)
    assert torch.equal(early["P"], wanted.softmax(-1)) and torch.equal(late["P"], early["P"])
    assert list(early) == ["P"]
    if embedding != "permutation":
        torch.testing.assert_close(late["log_p"][0], wanted[16:, -1].log_softmax(-1), rtol=0, atol=0)
    draws = {"gaussian": 16, "permutation": 1, "fixed": 1}[embedding]
    assert late["log_p"].shape == (draws, 4**5, 4)
    assert len({one.sum().item() for one in late["log_p"]}) == draws


def test_without_a_list_of_contexts_there_is_no_noise():
    trajectory = trajectory_of(seq_len=10)
    with torch.no_grad():
        observed = trajectory.observe(trajectory.model(), 3)
    assert list(observed) == ["P"]
    numbers = trajectory.measure(observed, 3, {"loss": [1.0]}, [])
    assert not NOISE & numbers.keys() and 0 != numbers["coordinate_r_o"] is not None


def test_results_say_which_rule_was_the_best():
    trajectory = trajectory_of(seq_len=4)
    bed = trajectory.data
    a = trajectory.extras([])["best_counting_a"]
    counts = experiment.color_counts(bed.contexts, 4)
    torch.testing.assert_close(bed.ideals["best_counting"][:, -1], (counts + a) / (3 + 4 * a), rtol=1e-12, atol=0)


# ---- Schedules -------------------------------------------------------------------------------------------------------


def rates(n: int, **settings) -> list[float]:
    trajectory = planned(Config(tasks=(2,), steps=(n,), **settings))[0].trajectory
    return [trajectory.learning_rate(update, n) for update in range(n)]


def test_learning_rates_follow_the_schedule():
    assert rates(5) == [1e-4] * 5
    assert rates(4, lr=0.8, schedule="linear") == pytest.approx([0.8, 0.6, 0.4, 0.2])
    cosine = [0.4 * (1 + math.cos(math.pi * u / 6)) for u in range(6)]
    assert rates(6, lr=0.8, schedule="cosine") == pytest.approx(cosine)
    assert rates(5, lr=0.8, warmup=4) == pytest.approx([0.2, 0.4, 0.6, 0.8, 0.8])
    assert rates(6, lr=0.8, warmup=2, schedule="linear") == pytest.approx([0.4, 0.8, 0.8, 0.6, 0.4, 0.2])
    assert rates(8, lr=0.8, warmup=2, schedule="cosine") == pytest.approx([0.4, 0.8, *cosine])


@pytest.mark.parametrize("schedule, trajectories", [("constant", 1), ("linear", 2), ("cosine", 2)])
def test_every_n_is_trained_on_its_own_where_the_rate_depends_on_it(schedule, trajectories):
    for warmup in (0, 5):
        plan = harness.planned(STUDY, Config(tasks=(4,), steps=(10, 30), schedule=schedule, warmup=warmup))
        assert len(plan) == trajectories
        assert sorted(n for progress in plan for n in progress.trajectory.cells) == [10, 30]
