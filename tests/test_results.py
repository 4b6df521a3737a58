"""The committed reference runs: they are what the script computes, and hold what the README quotes."""

import functools
import hashlib
import inspect
import itertools
import json
import math
import re
import shutil
import subprocess
from dataclasses import asdict

import experiment
import harness
import plot
from experiment import Config

import numpy as np
import pytest
import torch
from conftest import ROOT
from test_rivals import rivals
from training import CPU, trained

RUNS = {path.parent.name: path.parent for path in sorted(ROOT.glob("results/run_*/all_results.json"))}
# Of every run in the table of their README: the commit and the command.
ROW = re.compile(r"^\| `(run_\d+)` \| `(\w+)` \| `(.*?)` \|", re.M)
TABLE = {name: told for name, *told in ROW.findall((ROOT / "results" / "README.md").read_text())}


def read(run) -> dict:
    return json.loads((run / "all_results.json").read_text())


# Of every script that trained some, a run of every kind of embeddings.
TRAINED_ANEW = {}
for run in RUNS.values():
    told = read(run)
    TRAINED_ANEW[told["environment"]["script_sha256"], told["config"]["embedding"]] = run


@pytest.mark.parametrize("run", TRAINED_ANEW.values(), ids=lambda run: run.name)
def test_the_first_measured_point_of_a_trajectory_is_what_the_script_computes(run):
    results = read(run)
    kind = results["environment"]["device"]
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there[kind]:
        pytest.skip(f"needs a device of the kind {kind}")
    stored = min(results["trajectories"], key=lambda trajectory: trajectory["n_tasks"])
    wanted = {key: values[0] for key, values in stored["curves"].items() if values[0] is not None}
    alone = {"tasks": (stored["n_tasks"],), "seeds": 1, "seed": stored["seed"]}
    rung = "captured" if kind == "cuda" else "plain"
    config = Config(**{key: tuple(x) if isinstance(x, list) else x for key, x in (results["config"] | alone).items()})
    model = trained(config, torch.device(kind), rung, until=wanted["step"])
    (point,) = model.points
    assert model.trajectory.data.urns.tolist() == stored["urns"]
    assert {key for key, value in point.items() if value is not None} == wanted.keys()
    for key, value in ((key, point[key]) for key in wanted):
        # Machines differ in rounding, which training amplifies; the weights of S and O, nearly the same, even more.
        assert value == pytest.approx(wanted[key], rel=0.01, abs=0.02 if "weight" in key else 1e-4), key


def test_the_table_has_every_run():
    assert [*TABLE] == [*RUNS]


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_a_reference_run_is_whole_and_what_its_command_trains(run):
    results = read(run)
    final_info = json.loads((run / "final_info.json").read_text())
    config, options = harness.parse_arguments(experiment.STUDY, TABLE[run.name][1].split()[2:])
    assert str(options.out_dir) == run.name
    assert results["config"] == json.loads(json.dumps(asdict(config)))
    assert len(results["cells"]) == len(config.tasks) * len(config.steps) * config.seeds
    assert list(final_info) == [f"D{D}_N{N}" for D in config.tasks for N in config.steps]
    for cell in results["cells"]:
        seed = cell["seed"] - config.seed
        for key, values in final_info[f"D{cell['n_tasks']}_N{cell['n_steps']}"]["final_info_dict"].items():
            assert values[seed] == cell[key]
    assert (run / "all_results.json").stat().st_size < 1e6
    for kind in ("heatmap", "distance", "curves", "positions"):
        assert (run.parent / f"{kind}_{run.name}.png").exists()


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_a_reference_run_is_of_the_script_at_the_commit_that_its_readme_names(run):
    environment, shown = read(run)["environment"], {}
    for file in ("experiment.py", "harness.py"):
        command = ["git", "show", f"{TABLE[run.name][0]}:{file}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True) if shutil.which("git") else None
        if done and done.returncode == 0:  # a shallow clone does not have the commit
            shown[file] = hashlib.sha256(done.stdout).hexdigest()
    if shown:
        assert environment["script_sha256"] == shown["experiment.py"]
        assert environment["harness_sha256"] == shown["harness.py"]


@pytest.mark.parametrize("run", RUNS.values(), ids=RUNS)
def test_what_lex_invariance_costs_is_on_top_of_the_distance_from_o(run):
    """For predictions that follow every renaming of the colors, KL(M || P) = KL(M || O) + KL(O || P) in expectation."""
    results = read(run)
    cells = [cell for cell in results["cells"] if cell["n_steps"] == max(results["config"]["steps"])]
    keys = ["exact_bias_to_m", "exact_bias_to_orbit"]
    differences = [cell[keys[0]] - cell[keys[1]] - cell["reference"]["orbit"]["kl_to_m"] for cell in cells]
    if results["config"]["embedding"] == "fixed":
        assert max(differences) < -0.005
    else:  # the models follow them up to the noise of the drawn embeddings, which is largest where few contexts count
        assert max(map(abs, differences)) < (0.002 if results["config"]["alpha"] == 1 else 0.004)


def test_the_yardstick_is_what_the_readme_names_and_its_hash_is_of_their_source():
    text = (ROOT / "README.md").read_text()
    paragraph = text[text.index("**The yardstick**") :].split("`all_results.json`")[0]
    assert re.findall(r"`([\w.]+)`", paragraph) == [part.__qualname__ for part in experiment.YARDSTICK]
    parts = (*experiment.YARDSTICK, *harness.YARDSTICK_HERE)
    assert all(harness.definition(part).startswith(inspect.getsource(part)) for part in parts)
    source = "".join(map(harness.definition, parts)).encode()
    files = {"script": "experiment.py", "harness": "harness.py"}
    wanted = {"yardstick": source} | {name: (ROOT / file).read_bytes() for name, file in files.items()}
    now = harness.environment(experiment.STUDY, CPU)
    for name, content in wanted.items():
        assert now[f"{name}_sha256"] == hashlib.sha256(content).hexdigest()


# The decimals of the answer in README.md and of what was found in results/README.md, in their order: run, cell
# and key of each; number of the pooled coordinate and its interval, from R or from Q to O; or a constant.
ANSWER = """
run_3 D4_N20000 reference.posterior_mean.relative_divergence
run_3 D32_N20000 reference.posterior_mean.relative_divergence
run_6 D2_N20000 exact_kl_to_m
run_6 D2_N20000 reference.orbit.kl_to_m
run_4 D2 r_to_o 0
run_4 D2 r_to_o 1
run_4 D2 r_to_o 2
run_5 D2 r_to_o 0
run_5 D2 r_to_o 1
run_5 D2 r_to_o 2
""".split("\n")[1:-1]
FOUND = """
run_4 D2 r_to_o 0
run_4 D2 r_to_o 1
run_4 D2 r_to_o 2
half
run_4 D4 r_to_o 0
run_4 D4 r_to_o 1
run_4 D4 r_to_o 2
run_5 D2 r_to_o 0
run_5 D2 r_to_o 1
run_5 D2 r_to_o 2
run_5 D4 r_to_o 0
run_5 D4 r_to_o 1
run_5 D4 r_to_o 2
run_5 D2 nearer_than_q 0
run_5 D2 nearer_than_q 1
run_5 D2 nearer_than_q 2
run_5 D4 nearer_than_q 0
run_5 D4 nearer_than_q 1
run_5 D4 nearer_than_q 2
run_4 D2 q_to_o 0
run_4 D2 q_to_o 1
run_4 D2 q_to_o 2
run_4 D2 q_to_o_without 0
run_4 D2 q_to_o_without 1
run_4 D2 q_to_o_without 2
run_4 D4 q_to_o 0
run_4 D4 q_to_o 1
run_4 D4 q_to_o 2
run_5 D2 q_to_o 0
run_5 D2 q_to_o 1
run_5 D2 q_to_o 2
run_5 D4 q_to_o 0
run_5 D4 q_to_o 1
run_5 D4 q_to_o 2
run_4 D2 q_to_model
run_4 D4 q_to_model
run_4 D2 o_to_model
run_4 D4 o_to_model
run_4 D2 r_to_model
run_4 D4 r_to_model
run_5 D2 q_to_model
run_5 D4 q_to_model
run_5 D2 o_to_model
run_5 D4 o_to_model
run_5 D2 r_to_model
run_5 D4 r_to_model
run_4 D2 kl_o_to_q
run_4 D4 kl_o_to_q
run_4 D2 o_to_r
run_4 D4 o_to_r
run_4 D2_N20000 exact_embedding_noise
run_4 D4_N20000 exact_embedding_noise
run_5 D2_N20000 exact_embedding_noise
run_5 D4_N20000 exact_embedding_noise
run_4 D2_N20000 exact_order_noise
run_4 D4_N20000 exact_order_noise
run_4 D2 fresh_s_to_model
run_4 D4 fresh_s_to_model
run_4 D2 fresh_o_to_model
run_4 D4 fresh_o_to_model
run_5 D2 fresh_s_to_model
run_5 D4 fresh_s_to_model
run_5 D2 fresh_o_to_model
run_5 D4 fresh_o_to_model
run_4 D2 fresh_s_to_o
run_4 D4 fresh_s_to_o
run_6 D2_N20000 exact_kl_to_m
run_6 D4_N20000 exact_kl_to_m
run_6 D2_N20000 reference.orbit.kl_to_m
run_6 D4_N20000 reference.orbit.kl_to_m
run_6 D2_N20000 exact_fresh_kl_to_m
run_6 D4_N20000 exact_fresh_kl_to_m
run_6 D2_N20000 exact_fresh_kl_to_posterior_mean
run_6 D4_N20000 exact_fresh_kl_to_posterior_mean
run_3 D4_N1000 exact_kl_to_posterior_mean
run_3 D8_N1000 exact_kl_to_posterior_mean
run_3 D16_N1000 exact_kl_to_posterior_mean
run_3 D32_N1000 exact_kl_to_posterior_mean
run_3 D4_N20000 exact_kl_to_posterior_mean
run_3 D8_N20000 exact_kl_to_posterior_mean
run_3 D16_N20000 exact_kl_to_posterior_mean
run_3 D32_N20000 exact_kl_to_posterior_mean
run_3 D4_N1000 exact_kl_to_best_counting
run_3 D8_N1000 exact_kl_to_best_counting
run_3 D16_N1000 exact_kl_to_best_counting
run_3 D32_N1000 exact_kl_to_best_counting
run_3 D4_N20000 exact_kl_to_best_counting
run_3 D8_N20000 exact_kl_to_best_counting
run_3 D16_N20000 exact_kl_to_best_counting
run_3 D32_N20000 exact_kl_to_best_counting
run_3 D4_N1000 exact_kl_to_orbit
run_3 D8_N1000 exact_kl_to_orbit
run_3 D16_N1000 exact_kl_to_orbit
run_3 D32_N1000 exact_kl_to_orbit
run_3 D4_N20000 exact_kl_to_orbit
run_3 D8_N20000 exact_kl_to_orbit
run_3 D16_N20000 exact_kl_to_orbit
run_3 D32_N20000 exact_kl_to_orbit
run_3 D4_N20000 exact_embedding_noise
run_3 D8_N20000 exact_embedding_noise
run_3 D16_N20000 exact_embedding_noise
run_3 D32_N20000 exact_embedding_noise
run_3 D4_N20000 exact_order_noise
run_3 D8_N20000 exact_order_noise
run_3 D16_N20000 exact_order_noise
run_3 D32_N20000 exact_order_noise
run_3 D4_N20000 reference.best_counting.kl_to_orbit
run_3 D8_N20000 reference.best_counting.kl_to_orbit
run_3 D16_N20000 reference.best_counting.kl_to_orbit
run_3 D32_N20000 reference.best_counting.kl_to_orbit
run_3 D4 kl_o_to_q
run_3 D8 kl_o_to_q
run_3 D16 kl_o_to_q
run_3 D32 kl_o_to_q
run_3 D4 r_to_o 0
run_3 D4 r_to_o 1
run_3 D4 r_to_o 2
run_3 D8 r_to_o 0
run_3 D8 r_to_o 1
run_3 D8 r_to_o 2
run_0 D4_N20000 exact_kl_to_posterior_mean
run_0 D8_N20000 exact_kl_to_posterior_mean
run_0 D16_N20000 exact_kl_to_posterior_mean
run_0 D32_N20000 exact_kl_to_posterior_mean
run_0 D4_N20000 exact_kl_to_orbit
run_0 D8_N20000 exact_kl_to_orbit
run_0 D16_N20000 exact_kl_to_orbit
run_0 D32_N20000 exact_kl_to_orbit
run_1 D4_N20000 exact_kl_to_posterior_mean
run_1 D8_N20000 exact_kl_to_posterior_mean
run_1 D16_N20000 exact_kl_to_posterior_mean
run_1 D32_N20000 exact_kl_to_posterior_mean
run_1 D4_N20000 exact_kl_to_orbit
run_1 D8_N20000 exact_kl_to_orbit
run_1 D16_N20000 exact_kl_to_orbit
run_1 D32_N20000 exact_kl_to_orbit
run_0 D4_N20000 reference.orbit.kl_to_posterior_mean
run_0 D8_N20000 reference.orbit.kl_to_posterior_mean
run_0 D16_N20000 reference.orbit.kl_to_posterior_mean
run_0 D32_N20000 reference.orbit.kl_to_posterior_mean
run_2 D4_N20000 exact_kl_to_m
run_2 D8_N20000 exact_kl_to_m
run_2 D16_N20000 exact_kl_to_m
run_2 D32_N20000 exact_kl_to_m
run_0 D4_N20000 reference.orbit.kl_to_m
run_0 D8_N20000 reference.orbit.kl_to_m
run_0 D16_N20000 reference.orbit.kl_to_m
run_0 D32_N20000 reference.orbit.kl_to_m
run_0 D4_N20000 exact_relative_divergence
run_0 D32_N20000 exact_relative_divergence
run_0 D4_N20000 reference.posterior_mean.relative_divergence
run_0 D32_N20000 reference.posterior_mean.relative_divergence
limit
run_0 D4_N1000 exact_relative_divergence
run_0 D4_N20000 exact_relative_divergence_posterior_mean
run_0 D32_N20000 exact_relative_divergence_posterior_mean
run_2 D4_N20000 exact_weight_memorizing
run_2 D32_N20000 exact_weight_memorizing
run_2 D4_N20000 exact_fresh_kl_to_m
run_2 D4_N20000 exact_fresh_kl_to_posterior_mean
run_0 D4_N20000 exact_fresh_kl_to_posterior_mean
run_1 D4 o_to_model
run_1 D8 o_to_model
run_1 D16 o_to_model
run_1 D32 o_to_model
run_1 D4 o_to_r
run_1 D8 o_to_r
run_1 D16 o_to_r
run_1 D32 o_to_r
run_1 D8 kl_o_to_q
run_1 D16 kl_o_to_q
run_1 D8_N5000 exact_kl_to_posterior_mean
run_1 D8_N5000 exact_kl_to_orbit
run_1 D8_N20000 exact_kl_to_posterior_mean
run_1 D8_N20000 exact_kl_to_orbit
run_1 D8_N5000 exact_fresh_kl_to_posterior_mean
run_1 D8_N20000 exact_fresh_kl_to_posterior_mean
run_0 D4_N1000 exact_kl_to_posterior_mean
run_1 D4_N1000 exact_kl_to_posterior_mean
run_0 D4_N20000 exact_mixture_residual
run_0 D4_N20000 exact_kl_to_posterior_mean
run_7 D4_N20000 exact_kl_to_posterior_mean
run_0 D32_N20000 exact_kl_to_posterior_mean
run_7 D32_N20000 exact_kl_to_posterior_mean
run_0 D4_N20000 exact_kl_to_best_counting
run_7 D4_N20000 exact_kl_to_best_counting
run_0 D32_N20000 exact_kl_to_best_counting
run_7 D32_N20000 exact_kl_to_best_counting
run_0 D4_N20000 exact_kl_to_orbit
run_7 D4_N20000 exact_kl_to_orbit
run_0 D32_N20000 exact_kl_to_orbit
run_7 D32_N20000 exact_kl_to_orbit
run_0 D4_N20000 exact_kl_to_m
run_7 D4_N20000 exact_kl_to_m
run_0 D32_N20000 exact_kl_to_m
run_7 D32_N20000 exact_kl_to_m
run_0 D4_N20000 exact_embedding_noise
run_7 D4_N20000 exact_embedding_noise
run_0 D32_N20000 exact_embedding_noise
run_7 D32_N20000 exact_embedding_noise
run_0 D4_N20000 exact_fresh_kl_to_posterior_mean
run_7 D4_N20000 exact_fresh_kl_to_posterior_mean
run_0 D32_N20000 exact_fresh_kl_to_posterior_mean
run_7 D32_N20000 exact_fresh_kl_to_posterior_mean
run_0 D4_N20000 exact_fresh_kl_to_m
run_7 D4_N20000 exact_fresh_kl_to_m
run_0 D32_N20000 exact_fresh_kl_to_m
run_7 D32_N20000 exact_fresh_kl_to_m
run_2 D4_N20000 exact_fresh_kl_to_posterior_mean
run_2 D4_N20000 exact_fresh_kl_to_m
run_7 D4 fresh_s_to_model
run_7 D4 fresh_o_to_model
run_7 D4 fresh_s_to_o
""".split("\n")[1:-1]


def in_json(run: str, cell: str, key: str) -> float:
    """The number that `run cell key` names: run_0 D4_N1000 reference.orbit.kl_to_m, the mean over the seeds."""
    results = json.loads((RUNS[run] / "all_results.json").read_text())
    D, N = map(int, re.fullmatch(r"D(\d+)_N(\d+)", cell).groups())
    values = []
    for value in (c for c in results["cells"] if (c["n_tasks"], c["n_steps"]) == (D, N)):
        for part in key.split("."):
            value = value[int(part) if isinstance(value, list) else part]
        values.append(value)
    return math.fsum(values) / len(values)


def test_what_the_readme_says_is_more_or_less_falls_or_rises():
    tasks, steps = (4, 8, 16, 32), (1000, 5000, 10000, 20000)
    nearest = ("g", "m", "posterior_mean", "orbit")
    for D in tasks:
        against_s = [in_json("run_0", f"D{D}_N{N}", "relative_divergence_posterior_mean") for N in steps]
        assert against_s == sorted(against_s, reverse=True)
        for key in ("exact_kl_to_posterior_mean", "exact_kl_to_orbit"):  # closer to S and O alike
            distances = [in_json("run_0", f"D{D}_N{N}", key) for N in steps]
            assert distances == sorted(distances, reverse=True)
        end = f"D{D}_N20000"
        assert in_json("run_2", end, "exact_kl_to_m") < in_json("run_2", end, "reference.orbit.kl_to_m")
        apart = in_json("run_0", end, "reference.orbit.kl_to_posterior_mean")
        assert in_json("run_0", end, "exact_mixture_residual") > apart
        early, late = (in_json("run_1", f"D{D}_N{N}", "exact_fresh_kl_to_posterior_mean") for N in (5000, 20000))
        assert D != 8 or late > early
    s_and_m = in_json("run_0", end, "reference.posterior_mean.kl_to_m")  # at D = 32
    assert s_and_m < min(in_json("run_0", end, f"exact_kl_to_{x}") for x in ("posterior_mean", "m"))
    for D, N in itertools.product(tasks, steps):
        far = {
            key: in_json("run_3", f"D{D}_N{N}", f"exact_kl_to_{key}") for key in ("posterior_mean", "orbit", "m", "g")
        }
        assert in_json("run_3", f"D{D}_N{N}", "exact_kl_to_best_counting") < min(far.values())
    for D, N in itertools.product((4, 32), steps):
        R, *others = (in_json("run_7", f"D{D}_N{N}", f"exact_kl_to_{x}") for x in ("best_counting", *nearest))
        assert R < min(others)
        wider = [in_json(run, f"D{D}_N{N}", "exact_kl_to_best_counting") for run in ("run_7", "run_0")]
        assert wider[0] < wider[1]
    for D in tasks:
        against_s = [in_json("run_3", f"D{D}_N{N}", "relative_divergence_posterior_mean") for N in steps]
        assert against_s == sorted(against_s, reverse=True)
    at = {(c["n_tasks"], c["seed"], c["n_steps"]): c for c in read(RUNS["run_3"])["cells"]}
    lead = {place: cell["exact_kl_to_orbit"] - cell["exact_kl_to_best_counting"] for place, cell in at.items()}
    models = [*itertools.product(tasks, range(5))]
    for earlier, later, n in ((10_000, 20_000, 19), (5000, 10_000, 13)):
        assert sum(lead[*model, later] < lead[*model, earlier] for model in models) == n
    assert len(models) == 20
    told = {D: plot.biases(plot.coordinates_at(read(RUNS["run_3"]), D)) for D in tasks}
    neither = [D for D, (r, o, _, *between) in told.items() if min(r, o) > max(between)]
    assert neither == [16, 32]
    assert min(in_json("run_0", "D4_N1000", f"exact_kl_to_{x}") for x in nearest) > plot.NEITHER_NATS


@functools.cache
def compared(run: str, D: str) -> dict[str, float | tuple]:
    """What is pooled over the seeds of a run: coordinates with their intervals, and mean nats."""
    results = read(RUNS[run])
    models = {t["seed"]: t for t in results["trajectories"] if f"D{t['n_tasks']}" == D}
    seeds = [rivals.compared(model, Config(**results["config"])) for model in models.values()]
    means = {key: math.fsum(seed[key] for seed in seeds) / len(seeds) for key in seeds[0]}
    cells = plot.coordinates_at(results, int(D[1:]))
    *others, most = sorted(seeds, key=lambda seed: seed["kl_q_to_o"] + seed["kl_o_to_q"])
    found = {"q_to_o": rivals.pooled(seeds), "q_to_o_without": rivals.pooled(others), "seeds": seeds}
    found |= {"share": (most["kl_q_to_o"] + most["kl_o_to_q"]) / len(seeds) / (means["kl_q_to_o"] + means["kl_o_to_q"])}
    own = np.array([seed["kl_o_to_q"] - seed["o_to_model"] for seed in seeds])
    half = plot.student_quantile(len(own) - 1) * own.std(ddof=1) / math.sqrt(len(own)) if len(own) > 2 else math.nan
    found |= {"nearer_than_q": (own.mean(), own.mean() - half, own.mean() + half)}
    return means | found | {"r_to_o": plot.pooled_coordinate(cells)}


def value_of(source: str) -> float:
    if source in ("limit", "half"):
        return {"limit": plot.NEITHER_NATS, "half": 0.5}[source]
    run, place, key, *which = source.split()
    if "_" in place:
        return in_json(run, place, key)
    return compared(run, place)[key][int(which[0])] if which else compared(run, place)[key]


@pytest.mark.parametrize(
    ("file", "title", "sources"), [("README.md", "The answer", ANSWER), ("results/README.md", "What was found", FOUND)]
)
def test_numbers_quoted_in_the_readmes_equal_the_json(file, title, sources):
    told = (ROOT / file).read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]
    for number, source in zip(re.findall(r"-?\d+\.\d+", told), sources, strict=True):
        assert f"{value_of(source):.{len(number.partition('.')[2])}f}" == number, source


def test_the_permuted_models_of_the_default_grid_are_nearer_to_o_than_r_and_at_eight_urns_than_q():
    at = {D: compared("run_1", f"D{D}") for D in (4, 8, 16, 32)}
    assert all(found["o_to_model"] < found["o_to_r"] for found in at.values())
    assert [D for D, found in at.items() if found["o_to_model"] < found["kl_o_to_q"]] == [8]
    assert max((found["kl_o_to_q"], D) for D, found in at.items() if D != 8)[1] == 16  # which is quoted


def test_what_is_said_of_the_primary_comparison():
    for D in ("D2", "D4"):
        found = compared("run_4", D)
        assert found["r_to_o"][1] < 0.5 < found["r_to_o"][2]  # undecided
        assert found["q_to_o"][2] < 0.5 and found["q_to_model"] < found["o_to_model"]  # closer to Q
        assert found["kl_o_to_q"] < found["o_to_model"] < found["o_to_r"]  # nearer to O than R, farther than Q
        permuted = compared("run_5", D)
        assert permuted["r_to_o"][1] > 0.5 and permuted["o_to_model"] < permuted["kl_o_to_q"]  # memorizes
        assert permuted["q_to_o"][1] < 0.5 < permuted["q_to_o"][2]
        assert sum(x["q_to_model"] < x["o_to_model"] for x in found["seeds"]) == 8 == len(found["seeds"])
        assert sum(x["o_to_model"] < x["o_to_r"] for x in found["seeds"]) == 7
        assert sum(x["o_to_model"] < x["o_to_r"] for x in permuted["seeds"]) == 8
        nearer = sum(x["o_to_model"] < x["kl_o_to_q"] for x in permuted["seeds"])
        assert nearer == {"D2": 5, "D4": 7}[D]
        assert all(x["fresh_o_to_model"] < x["fresh_s_to_model"] for x in (found, permuted))
        urns = [[t["urns"] for t in read(RUNS[run])["trajectories"]] for run in ("run_4", "run_5")]
        assert urns[0] == urns[1]
    assert f"{compared('run_5', 'D2')['share']:.2f}" == "0.70"
    cells = plot.coordinates_at(read(RUNS["run_4"]), 2)
    told = " ".join((ROOT / "results" / "README.md").read_text().split())
    assert "eight seeds, {:.2f} and {:.2f},".format(*(cell[plot.ANSWER] for cell in cells if cell["seed"] < 2)) in told
    others = plot.in_words([cell for cell in cells if cell["seed"] > 1])
    assert f"the result is {others.removesuffix(', 6 seeds')}, undecided" in told


def test_other_numbers_quoted_equal_the_json():
    text = (ROOT / "README.md").read_text()
    prompt, cells = (ROOT / "prompt.json").read_text(), ("D4_N1000", "D8_N1000", "D16_N1000", "D32_N1000")
    low, high = (in_json("run_0", f"D{D}_N1000", "reference.posterior_mean.relative_divergence") for D in (4, 32))
    assert f"would score {low:.2f} at D = 4 and {high:.2f} at D = 32" in prompt
    for letter, key in {"G": "exact_relative_divergence", "S": "exact_relative_divergence_posterior_mean"}.items():
        values = [in_json("run_0", cell, key) for cell in cells]
        assert f"{min(values):.2f} to {max(values):.2f} against {letter}" in prompt
    seconds = [read(RUNS[run])["timing"]["seconds_total"] for run in ("run_0", "run_1", "run_2")]
    assert f"took {min(seconds) / 60:.0f} to {max(seconds) / 60:.0f} minutes on two CPU cores" in text


def test_a_run_of_the_present_script_is_measured_as_the_committed_ones():
    now = harness.environment(experiment.STUDY, torch.device("cpu"))["yardstick_sha256"]
    assert {read(run)["environment"]["yardstick_sha256"] for run in RUNS.values()} == {now}
