"""The committed runs of the analogy study: they are what their commands train, and hold what its README says."""

import hashlib
import itertools
import json
import re
import shutil
import statistics
import subprocess
from dataclasses import asdict

import harness

import pytest
from conftest import ROOT
from test_analogy import analogy
from training import CPU

FOLDER = ROOT / "studies" / "analogy"
README = (FOLDER / "README.md").read_text()
FILES = sorted(FOLDER.glob("results/run_*/all_results.json"))
RUNS = {file.parent.name: json.loads(file.read_text()) for file in FILES}
# Of every run in the table of the README: the commit, None before it is there, and the command.
ROW = re.compile(r"^\| `(run_\d+)` \| (?:`(\w+)`|not run yet) \| `python experiment\.py (.*?)` \|", re.M)
TABLE = {name: told for name, *told in ROW.findall(README)}
STUDENT = {5: 2.78, 4: 3.18, 3: 4.30}


def test_the_table_has_every_run():
    assert [name for name, (commit, _) in TABLE.items() if commit] == [*RUNS] and len(TABLE) == 5


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_whole_and_what_its_command_trains(name):
    folder, results, (commit, words) = FOLDER / "results" / name, RUNS[name], TABLE[name]
    config, options = harness.parse_arguments(analogy.STUDY, words.split())
    wanted = json.loads(json.dumps(asdict(config))) | {"device": results["config"]["device"]}  # which moves rounding
    assert str(options.out_dir) == name and results["config"] == wanted and config.seeds == 5
    final_info = json.loads((folder / "final_info.json").read_text())
    assert len(results["cells"]) == 5 * len(config.num_relations) == 5 * len(final_info)
    for cell in results["cells"]:
        told = final_info[cell["cell"]]["final_info_dict"]
        assert told and all(values[cell["seed"] - config.seed] == cell[key] for key, values in told.items())
    assert (folder / "all_results.json").stat().st_size < 1e6
    assert all((folder.parent / f"{kind}_{name}.png").exists() for kind in ("stages", "energy", "embeddings"))
    then, now = results["environment"], harness.environment(analogy.STUDY, CPU)
    assert then["yardstick_sha256"] == now["yardstick_sha256"]  # else the numbers are of another measure
    for key, file in {"script": "studies/analogy/experiment.py", "harness": "harness.py"}.items():
        command = ["git", "show", f"{commit}:{file}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True) if shutil.which("git") else None
        if done and done.returncode == 0:  # a shallow clone does not have the commit
            assert then[f"{key}_sha256"] == hashlib.sha256(done.stdout).hexdigest()


def seeds_of(run: str, relations: int = 10000) -> list[dict]:
    """The numbers of every seed of a cell, with its curves and how many facts of every kind it has."""
    parts = {key: [x for x in RUNS[run][key] if x["num_relations"] == relations] for key in ("cells", "trajectories")}
    pairs = zip(*parts.values(), strict=True)
    return [cell | {"curves": told["curves"], "counts": told["counts"]} for cell, told in pairs]


def in_order(seed: dict, t_ana: str) -> bool:
    """Memorizing, composition, analogy, as the README names it: `together` are neighbours among the measured points."""
    if None in (seed["t_mem"], seed["t_comp"], seed[t_ana]):
        return False
    mem, comp, ana = (seed["curves"]["step"].index(seed[key]) for key in ("t_mem", "t_comp", t_ana))
    return ana - max(mem, comp) > 1 and comp - mem >= -1


def share(seeds: list[dict], holds, of: str | None = None) -> str:
    """Of how many seeds something holds, or of those that have got to `of`."""
    flags = [holds(seed) for seed in seeds if of is None or seed[of] is not None]
    return f"{sum(flags)} of {len(flags)}" if flags else "no seed"


def interval(seeds: list[dict], key: str) -> str:
    """Mean and half of the interval by Student's t, over the seeds that have the number."""
    found = [seed[key] for seed in seeds if seed[key] is not None]
    half = f" ± {STUDENT[n] * statistics.stdev(found) / n**0.5:.3f}" if (n := len(found)) > 2 else ""
    return f"{statistics.fmean(found):z.3f}{half}" + f" (n = {n})" * (n < len(seeds)) if found else "no seed"


def before(seeds: list[dict], key: str) -> str:
    own = [seed for seed in seeds if seed["t_ana_acc"] is not None]
    return f"{share(own, lambda seed: seed[key] < 0)}, {interval(own, key)}" if own else "no seed"


def rise(seeds: list[dict], key: str) -> str:
    return interval([{key: (curve := seed["curves"][key])[-1] - curve[0]} for seed in seeds], key)


def span(seeds: list[dict], key: str) -> str:
    """From the first to the last seed that gets there."""
    found = sorted(seed[key] for seed in seeds if seed[key] is not None)
    ends = dict.fromkeys(f"{update:,}" for update in (*found[:1], *found[-1:]))
    return " to ".join(ends) + f" (n = {len(found)})" * (len(found) < len(seeds)) if found else "no seed"


# The rows of the README's table of all runs; those with a star were named after the runs.
CHANGES = [f"{rows}energy_ratio_{part}_change_before" for rows in ("read_out_", "") for part in ("id", "ood")]
LATE, AFTER = "t_read_out_energy_least", "read_out_energy_ratio_id_change"
LOOKUP = ["near_ood_compositional_acc", "lookup_near_ood_acc", "near_ood_beyond_lookup_acc"]
RAW = ["parallelism_id", "parallelism_null_id", "parallelism_ood"]
EXCESS = [f"parallelism_excess_{part}_change" for part in ("id", "ood")]
HELD_OUT = [f"ood_analogical_{key}" for key in ("acc_share", "prob_share", "acc", "prob", "choice_max", "choice")]
NUMBERS = {
    **{f"`{key}`": (span, key) for key in ("t_mem", "t_comp", "t_ana_acc", "t_ana")},
    "in order, by `t_ana_acc`": (share, lambda seed: in_order(seed, "t_ana_acc")),
    "in order, by `t_ana`": (share, lambda seed: in_order(seed, "t_ana")),
    "`t_comp` at most 2 x `t_mem`": (share, lambda seed: 0 < (seed["t_comp"] or 0) <= 2 * (seed["t_mem"] or 0)),
    **{f"`{key}`": (interval, key) for key in LOOKUP},
    **{f"`{key}`, below 0 in": (before, key) for key in CHANGES},
    f"`{LATE}` before `t_ana_acc`": (share, lambda seed: seed[LATE] < seed["t_ana_acc"], "t_ana_acc"),
    f"`{AFTER}` *": (interval, AFTER),
    **{f"`{key}`": (interval, key) for key in EXCESS},
    **{f"`{key}`, end less start *": (rise, key) for key in RAW},
    "came, by `t_ana_acc`": (share, lambda seed: seed["t_ana_acc"] is not None),
    "of these, accuracy below 0.99 at the end": (share, lambda seed: seed["ood_analogical_acc"] < 0.99, "t_ana_acc"),
    "came, by `t_ana`": (share, lambda seed: seed["t_ana"] is not None),
    "of these, probability below 0.5 at the end": (share, lambda seed: seed["ood_analogical_prob"] < 0.5, "t_ana"),
    **{f"`{key}`": (interval, key) for key in HELD_OUT},
}
COLUMNS = [("run_0", 10000), ("run_1", 10000), ("run_2", 100), ("run_2", 1000), ("run_3", 10000), ("run_4", 10000)]
R0, R1, FEW, SOME, R3, R4 = COLUMNS


def told(place: tuple, row: str) -> str:
    if place[0] not in RUNS:
        return "not run yet"
    measure, *what = NUMBERS[row]
    return measure(seeds_of(*place), *what)


def test_the_table_of_all_runs():
    rows = [" | ".join([f"| {row}", *(told(place, row) for place in COLUMNS)]) + " |" for row in NUMBERS]
    print(*rows, sep="\n")  # what belongs there
    assert README.split("| `run_4` |\n")[1].split("\n\n")[0].split("\n")[1:] == rows


# What is quoted in the answer and in the results of the claims, in this order.
STAGES, AT_ONCE = [f"in order, by `{key}`" for key in ("t_ana_acc", "t_ana")], "`t_comp` at most 2 x `t_mem`"
NEAR, TABLE_ALONE, BEYOND = (f"`{key}`" for key in LOOKUP)
FALLS, PARALLEL = [f"`{key}`, below 0 in" for key in CHANGES], [f"`{key}`" for key in EXCESS]
BY_THE_END, EARLY = f"`{AFTER}` *", f"`{LATE}` before `t_ana_acc`"
CAME, LOST, FADED = "came, by `t_ana_acc`", *(row for row in NUMBERS if row.startswith("of these"))
ACC_SHARE, PROB_SHARE, ACC, PROB, CHOICE_MAX, CHOICE = (f"`{key}`" for key in HELD_OUT)


def at(place: tuple, *rows: str) -> list[tuple]:
    return [(place, row) for row in rows]


ANSWER = (
    at(R1, "`t_ana_acc`", CAME, LOST, PROB) + at(R4, LOST, PROB) + at(R3, LOST) + at(R1, *STAGES, AT_ONCE, TABLE_ALONE)
)
ANSWER += at(FEW, TABLE_ALONE, NEAR) + at(R1, FALLS[0]) + at(FEW, CAME) + at(R1, *PARALLEL)
ANSWER += at(R3, *PARALLEL) + at(R0, CAME, LOST)
CLAIMS = {
    "three stages": at(R1, *STAGES) + at(R3, *STAGES),
    "composition follows": at(R1, AT_ONCE) + at(R3, AT_ONCE),
    "it is composition": at(R1, NEAR, TABLE_ALONE, BEYOND)
    + at(FEW, NEAR, TABLE_ALONE, BEYOND)
    + at(SOME, NEAR, TABLE_ALONE, BEYOND),
    "energy falls": at(R1, *FALLS, EARLY) + at(FEW, BY_THE_END) + at(R3, *FALLS[:2], EARLY, BY_THE_END),
    "parallelism rises": at(R1, *PARALLEL, *(f"`{key}`, end less start *" for key in RAW)) + at(R3, *PARALLEL),
    "few relations": at(FEW, CAME, ACC, CHOICE)
    + at(SOME, CAME, ACC, CHOICE)
    + at(R1, CAME, ACC, CHOICE)
    + at(FEW, "`t_mem`"),
    "analogy is lost": at(R4, LOST, FADED, ACC_SHARE, PROB_SHARE) + at(R3, LOST, FADED, ACC_SHARE, PROB_SHARE),
    "it is more than": at(R1, CHOICE_MAX, CHOICE) + at(R4, CHOICE) + at(R3, CHOICE),
}


def test_the_answer_and_the_claims_quote_the_table():
    """Intervals, k of n, and from when to when; n is 5 at most, so that `3 of 10 images` is none."""
    number = re.compile(r"-?\d\.\d{3}(?: ± \d\.\d{3})?|\d of [1-5]\b|[\d,]+ to [\d,]+\d")
    wanted = lambda places: number.findall("; ".join(told(*place) for place in places))  # noqa: E731
    answer = README[README.index("## The answer") : README.index("## Run it")]
    assert number.findall(" ".join(answer.split())) == wanted(ANSWER)
    assert len(answer.strip().split("\n")) <= 4 + 12  # of prose
    rows = README.split("| claim of the paper |")[1].split("\n\n")[0].split("\n")[2:]
    for row, (claim, places) in zip(rows, CLAIMS.items(), strict=True):
        assert row.startswith(f"| {claim}") and number.findall(row.split(" | ")[2]) == wanted(places)
    assert (FOLDER / re.search(r"\((results/\S+)\)", answer)[1]).exists()


def test_what_else_the_readme_says_of_the_runs():
    seeds = seeds_of("run_1")
    unordered = [seed for seed in seeds if not in_order(seed, "t_ana_acc")]
    assert [(seed["seed"], seed["t_ana_acc"] < seed["t_comp"]) for seed in unordered] == [(43, True), (45, False)]
    assert unordered[0]["lookup_near_ood_acc"] < 0.99
    missed = [(1 - seed["lookup_near_ood_acc"]) * seed["counts"]["near_ood_compositional"] for seed in seeds]
    assert (round(sum(missed)), sum(x > 0 for x in missed)) == (4, 2)
    assert unordered[1][LATE] == unordered[1]["t_ana_acc"] and seeds_of("run_2") == seeds
    assert all(seed[AFTER] > seed[CHANGES[0]] for seed in seeds)
    assert {seed["curves"]["step"][-1] for seed in seeds_of("run_2", 100)} == {2300, 2400}
    first = [RUNS[name] for name in ("run_0", "run_1", "run_2")]
    assert all(run["environment"]["torch"].startswith("2.11.") and run["config"]["device"] == "cpu" for run in first)
    assert all(120 < run["timing"]["seconds_total"] < 180 for run in first)
    late = [seed for seed in seeds_of("run_3") if seed[LATE] > 27_000]
    assert len(late) == 3
    for seed in seeds_of("run_3"):
        there = [p >= 0.5 for p in seed["curves"]["ood_analogical_prob"]]
        assert sum(not was and now for was, now in itertools.pairwise(there)) >= 3
    returned = {"acc": 0, "prob": 0}
    for seed in seeds_of("run_4"):  # where it goes, and how
        step, prob, ce = (seed["curves"][key] for key in ("step", "ood_analogical_prob", "id_analogical_ce"))
        drop = min(range(1, len(prob)), key=lambda i: prob[i] - prob[i - 1])
        loss, ratio = (seed["curves"][key] for key in ("train_loss", "read_out_energy_ratio_id"))
        assert step[drop] > 9000 and ce[drop] > 70 * ce[drop - 1] and loss[drop] > 3 * loss[drop - 1]
        least = min(range(drop), key=ratio.__getitem__)  # the energy then rises while the probability grows
        assert ratio[drop - 1] > ratio[least] + 0.2 and prob[drop - 1] > prob[least] + 0.5
        for key, least in (("acc", 0.99), ("prob", 0.5)):
            returned[key] += max(seed["curves"][f"ood_analogical_{key}"][drop + 1 :]) >= least
    assert returned == {"acc": 1, "prob": 3}
