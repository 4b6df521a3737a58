"""The committed runs of the reversal study: they are what their commands train, and hold what its README says."""

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
from test_reversal import reversal
from training import CPU

FOLDER = ROOT / "studies" / "reversal"
README = (FOLDER / "README.md").read_text()
FILES = sorted(FOLDER.glob("results/run_*/all_results.json"))
RUNS = {file.parent.name: json.loads(file.read_text()) for file in FILES}
ROW = re.compile(r"^\| `(run_\d+)` \| (?:`(\w+)`|not run) \| `python experiment\.py (.*?)` \|", re.M)
TABLE = {name: told for name, *told in ROW.findall(README)}
STUDENT = {3: 4.303, 5: 2.776}
CONTROLS = ("oracle", "reference")


def test_the_table_has_every_run():
    assert [name for name, (commit, _) in TABLE.items() if commit] == [*RUNS]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_whole_and_what_its_command_trains(name):
    folder, results, (commit, words) = FOLDER / "results" / name, RUNS[name], TABLE[name]
    config, options = harness.parse_arguments(reversal.STUDY, words.split())
    wanted = json.loads(json.dumps(asdict(config))) | {"device": results["config"]["device"]}
    assert str(options.out_dir) == name and results["config"] == wanted
    assert config.seeds == (5 if name == "run_1" else 3)
    final_info = json.loads((folder / "final_info.json").read_text())
    assert len(results["cells"]) == config.seeds * len(config.arms) == config.seeds * len(final_info)
    for cell in results["cells"]:
        told = final_info[cell["cell"]]["final_info_dict"]
        assert told and all(values[cell["seed"]] == cell[key] for key, values in told.items())
    assert (folder.parent / f"lengths_{name}.png").exists()
    then, now = results["environment"], harness.environment(reversal.STUDY, CPU)
    assert then["yardstick_sha256"] == now["yardstick_sha256"]  # else the numbers are of another measure
    for key, file in {"script": "studies/reversal/experiment.py", "harness": "harness.py"}.items():
        command = ["git", "show", f"{commit}:{file}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True) if shutil.which("git") else None
        if done and done.returncode == 0:  # a shallow clone does not have the commit
            assert then[f"{key}_sha256"] == hashlib.sha256(done.stdout).hexdigest()


def seeds_of(run: str, arm: str) -> list[dict]:
    """The numbers of every seed of an arm, with its settings and the scores `by_length`."""
    pairs = zip(*([x for x in RUNS[run][key] if x[of] == arm] for key, of in PARTS), strict=True)
    return [cell | {"settings": told, "by": told["curves"]["by_length"][-1]} for cell, told in pairs]


PARTS = (("cells", "cell"), ("trajectories", "arm"))
PLACES = [(run, arm) for run, results in RUNS.items() for arm in results["config"]["arms"]]


def spread(values: list[float]) -> str:
    """Mean over seeds and, where they differ, the least and the greatest."""
    ends = dict.fromkeys(f"{x:.3f}" for x in (min(values), max(values)))
    return f"{statistics.fmean(values):.3f}" + f" ({' to '.join(ends)})" * (len(ends) > 1)


def difference(run: str, one: str, other: str, key: str) -> str:
    """Of two arms, paired by seed, with half of the interval by Student's t."""
    pairs = zip(seeds_of(run, one), seeds_of(run, other), strict=True)
    values = [a[key] - b[key] for a, b in pairs]
    half = STUDENT[len(values)] * statistics.stdev(values) / len(values) ** 0.5
    return f"{statistics.fmean(values):.3f} ± {half:.3f}"


def trained(seeds: list[dict]) -> str:
    return "control" if seeds[0]["cell"] in CONTROLS else f"{sum(seed['trained'] for seed in seeds)} of {len(seeds)}"


def span(seeds: list[dict], key: str) -> str:
    found = sorted(seed[key] for seed in seeds if seed[key] is not None)
    ends = dict.fromkeys(map(str, (*found[:1], *found[-1:])))
    return " to ".join(ends) + f" (n = {len(found)})" * (len(found) < len(seeds)) if found else "none"


def rows_after(header: str) -> list[str]:
    return README.split(header)[1].split("\n\n")[0].split("\n")[2:]


def row(*parts: str) -> str:
    return f"| {' | '.join(parts)} |"


def test_the_table_of_all_arms():
    rows = []
    for run, arm in PLACES:
        seeds = seeds_of(run, arm)
        numbers = (spread([seed[key] for seed in seeds]) for key in KEYS)
        rows.append(row(f"`{run}`", f"`{arm}`", trained(seeds), *numbers, span(seeds, "longest")))
    print(*rows, sep="\n")  # what belongs there
    assert rows_after("| run | arm | trained | ") == rows


KEYS = ("trained_exact", "trained_token", "exact_L10", "exact_L20", "exact_L50", "token_L20")


def of_trained(loops: bool) -> list[tuple[str, str, list[dict]]]:
    """The seeds that are trained of every arm that has some; if `loops`, of those with more than one loop."""
    found = []
    for run, arm in PLACES:
        seeds = [seed for seed in seeds_of(run, arm) if seed["trained"] and arm not in CONTROLS]
        if seeds and not (loops and seeds[0]["settings"]["loops"] == "1"):
            found.append((run, arm, seeds))
    return found


def at(seed: dict, key: str, n: int) -> float:
    return seed["by"][key][seed["by"]["mapped" if "other" in key else "lengths"].index(n)]


def test_the_table_of_frames():
    """Whole sequences right, in the arm's own frame and in the other one."""
    rows = []
    for run, arm, seeds in of_trained(loops=False):
        numbers = [spread([at(seed, key, n) for seed in seeds]) for n in (5, 10, 20) for key in FRAMES]
        rows.append(row(f"`{run}`", f"`{arm}`", str(len(seeds)), *numbers))
    print(*rows, sep="\n")
    assert rows_after("| run | arm | seeds | 5 tokens | ") == rows


FRAMES = ("exact", "other_exact")
LOOPS = (2, 6, 10, 20)


def worse(seeds: list[dict]) -> str:
    """At 10 tokens, with 20 loops instead of the arm's own number."""
    return f"{sum(seed['exact_L10_K20'] < seed['exact_L10'] for seed in seeds)} of {len(seeds)}"


def test_the_table_of_loops():
    """At 10 tokens whole sequences, at 20 single tokens, by the number of loops."""
    rows = []
    for run, arm, seeds in of_trained(loops=True):
        ten = [spread([seed[f"exact_L10_K{k}"] for seed in seeds]) for k in LOOPS]
        place = RUNS[run]["config"]["test_lengths"].index(20)
        twenty = [spread([seed["by"]["token_by_loop"][place][k - 1] for seed in seeds]) for k in LOOPS]
        rows.append(row(f"`{run}`", f"`{arm}`", *ten, worse(seeds), *twenty))
    print(*rows, sep="\n")
    assert rows_after("| run | arm | 10 tokens, 2 loops | ") == rows


def by_gate(seed: dict) -> float:
    """Exact accuracy over the lengths of training where the gate is asked when to stop; 0 without a gate."""
    rule, places = seed["by"].get("stopping", {}).get("gate_0.5"), [seed["by"]["mapped"].index(n) for n in range(3, 11)]
    return statistics.fmean(rule["exact"][place] for place in places) if rule else 0.0


def test_the_table_of_stopping_rules():
    """Of arms that could stop early: at 10, 20 and 50 tokens whole sequences right, and the mean number of loops."""
    rows = []
    for run, arm in PLACES:
        seeds = [seed for seed in seeds_of(run, arm) if seed["trained"] or by_gate(seed) >= 0.9]
        if arm in CONTROLS or seeds[:1] and not (seeds[0]["settings"]["loops"] == "length" or by_gate(seeds[0])):
            continue
        for rule in seeds[0]["by"]["stopping"] if seeds else ():
            told = [seed["by"]["stopping"][rule] for seed in seeds]
            places = [seeds[0]["by"]["mapped"].index(n) for n in (10, 20, 50)]
            exact = [spread([x["exact"][place] for x in told]) for place in places]
            loops = [f"{statistics.fmean(x['loops'][place] for x in told):.1f}" for place in places]
            numbers = itertools.chain(*zip(exact, loops, strict=True))
            rows.append(row(f"`{run}`", f"`{arm}`", f"`{rule}`", *numbers))
    print(*rows, sep="\n")
    assert rows_after("| run | arm | rule | ") == rows


# ---- Prose -----------------------------------------------------------------------------------------------------------


def told(run: str, arm: str, key: str) -> str:
    """The mean alone."""
    return spread([seed[key] for seed in seeds_of(run, arm)]).split()[0]


def test_the_answer_quotes_the_runs():
    answer = README[README.index("## The answer") : README.index("## Run it")].split("(results/lengths_run_1.png)")[1]
    assert len(answer.strip().split("\n")) <= 16
    controls = ("standard_ends_random", "looped_k2_ends_random")
    wanted = [trained(seeds_of("run_0", arm)) for arm in ("looped_k2", "standard", "looped_k6")]
    wanted += [trained(seeds_of("run_1", "standard")), *(told("run_1", arm, "exact_L50") for arm in controls)]
    wanted += [f"{sum(seed['exact_L50'] > 0.9 for seed in seeds_of('run_1', controls[0]))} of 5"]
    wanted += [told("run_1", "looped_k2_ends_shift", "exact_L20"), difference("run_1", *controls, "exact_L50")]
    wanted += [told("run_0", "looped_k2", key) for key in ("exact_L10", "exact_L10_K6")]
    wanted += [told("run_0", "looped_n_rotary", key) for key in ("exact_L10", "exact_L10_K20")]
    assert re.findall(r"\d\.\d{3}(?: ± \d\.\d{3})?|\d of \d", " ".join(answer.split())) == wanted
    assert trained(seeds_of("run_1", "looped_k2")) == "5 of 5"
    assert all(seed["exact_L50"] > 0.9 for seed in seeds_of("run_1", controls[1]))
    assert span(seeds_of("run_1", "standard_ends"), "longest") == "11"
    assert span(seeds_of("run_0", "looped_aligned"), "longest") == "10 to 11"
    for _, _, seeds in of_trained(loops=True):
        assert worse(seeds) == f"{len(seeds)} of {len(seeds)}"


def test_what_else_the_readme_says_of_the_runs():
    words = " ".join(README.split())
    for run in ("run_1", "run_0"):
        told = difference(run, "standard_ends_random", "looped_k2_ends_random", "exact_L50")
        assert f"{told} in `{run}`" in words
    original = [found for found in of_trained(loops=False) if found[1] in ("standard", "looped_k2", "looped_k6")]
    models = [(run, arm, seed) for run, arm, seeds in original for seed in seeds]
    nowhere = sum(at(seed, key, 20) == 0 for _, _, seed in models for key in FRAMES)
    assert f"{nowhere // 2} of {len(models)}" in words and nowhere == 2 * len(models)
    assert [(run, arm) for run, arm, _ in models if arm == "looped_k6"] == [("run_3", "looped_k6")]
    twice = [seed for _, arm, seed in models if arm == "looped_k2"]
    assert f"in {worse(twice)} of `looped_k2`" in words
    ends = [seed["longest"] for arm in ("standard_ends", "looped_k2_ends_shift") for seed in seeds_of("run_1", arm)]
    assert (min(ends), max(ends)) == (11, 17)
    controls = ("standard_ends_random", "looped_k2_ends_random")
    ends = [[seed["longest"] for arm in controls for seed in seeds_of(run, arm)] for run in ("run_0", "run_1")]
    assert (min(ends[0]), max(ends[0]), {*ends[1]}) == (23, 40, {50})
    tokens = [spread([seed["token_L20"] for seed in seeds_of("run_0", arm)]).split()[0] for arm in LOOPING]
    assert [x for x in re.findall(r"\d\.\d{3}", words.split("Left open, as said")[1].split("6. Loops")[0])] == tokens
    loops = [{seed["by"]["stopping"]["gate_0.5"]["loops"][i] for i in range(18)} for seed in seeds_of("run_4", GATED)]
    assert loops == [{1.0}, {2.0}, {1.0}] and all(by_gate(seed) > 0.99 for seed in seeds_of("run_4", GATED))


LOOPING, GATED = ("looped_aligned", "looped_n_rotary", "looped_n_nope", "reference"), "looped_gate"
