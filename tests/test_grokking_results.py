"""The committed runs of the grokking study: they are what their commands train, and hold what its README says."""

import hashlib
import json
import math
import re
import shutil
import statistics
import subprocess
from dataclasses import asdict

import harness

import pytest
from conftest import ROOT
from test_grokking import grokking
from training import CPU

FOLDER = ROOT / "studies" / "grokking"
README = (FOLDER / "README.md").read_text()
FILES = sorted(FOLDER.glob("results/run_*/all_results.json"))
RUNS = {file.parent.name: json.loads(file.read_text()) for file in FILES}
ROW = re.compile(r"^\| `(run_\d+)` \| `(\w+)` \| `python experiment\.py (.*?)` \|", re.M)
TABLE = {name: told for name, *told in ROW.findall(README)}
BASELINE = "L2_d128_h4"


def test_the_table_has_every_run():
    assert [*TABLE] == [*RUNS]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_whole_and_what_its_command_trains(name):
    folder, results, (commit, words) = FOLDER / "results" / name, RUNS[name], TABLE[name]
    config, options = harness.parse_arguments(grokking.STUDY, words.split())
    wanted = json.loads(json.dumps(asdict(config))) | {"device": results["config"]["device"]}
    assert str(options.out_dir) == name and results["config"] == wanted and config.seeds == 3
    final_info = json.loads((folder / "final_info.json").read_text())
    assert len(results["cells"]) == 3 * len(config.operations) * len(config.sizes) == 3 * len(final_info)
    for cell in results["cells"]:
        told = final_info[cell["cell"]]["final_info_dict"]
        assert told and all(values[cell["seed"]] == cell[key] for key, values in told.items())
    assert all((folder.parent / f"{kind}_{name}.png").exists() for kind in ("curves", "stability"))
    then, now = results["environment"], harness.environment(grokking.STUDY, CPU)
    assert then["yardstick_sha256"] == now["yardstick_sha256"]  # else the numbers are of another measure
    for key, file in {"script": "studies/grokking/experiment.py", "harness": "harness.py"}.items():
        command = ["git", "show", f"{commit}:{file}"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True) if shutil.which("git") else None
        if done and done.returncode == 0:  # a shallow clone does not have the commit
            assert then[f"{key}_sha256"] == hashlib.sha256(done.stdout).hexdigest()


SEEDS = {}  # of every (operation, architecture), in the order of the seeds
for run in RUNS.values():
    for cell in run["cells"]:
        size = f"L{cell['layers']}_d{cell['width']}_h{cell['heads']}"
        SEEDS.setdefault((cell["operation"], size), []).append(cell)


def span(seeds: list[dict], key: str) -> str:
    """From the least to the greatest, with how many seeds have the number where not all do."""
    found = sorted(seed[key] for seed in seeds if seed[key] is not None)
    form = "{:,}" if all(isinstance(x, int) for x in found) else "{:.3f}"
    ends = dict.fromkeys(form.format(x) for x in (*found[:1], *found[-1:]))
    return " to ".join(ends) + f" (n = {len(found)})" * (len(found) < len(seeds)) if found else "no seed"


def median(seeds: list[dict], key: str) -> str:
    value = sorted(math.inf if seed[key] is None else seed[key] for seed in seeds)[len(seeds) // 2]
    return f"{value:,}" if math.isfinite(value) else "never"


def mean(seeds: list[dict], key: str) -> str:
    return f"{statistics.fmean(seed[key] for seed in seeds):,.0f}"


def share(seeds: list[dict], key: str) -> str:
    return f"{sum(seed[key] for seed in seeds)} of {len(seeds)}"


# ---- The baseline ----------------------------------------------------------------------------------------------------

BANDS = {"x_div_y": (3925, 4925), "x_minus_y": (3540, 5210), "x_plus_y": (1880, 3030), "permutation": (6360, 7500)}
NUMBERS = {
    "`step_val_acc_99`, mean": (mean, "step_val_acc_99"),
    "`step_memorize`": (span, "step_memorize"),
    "`step_grok`": (span, "step_grok"),
    "grokked": (share, "grokked"),
    "`step_grok_sustained`": (span, "step_grok_sustained"),
    "`stable_share`": (span, "stable_share"),
    "`stable_least_val_acc`": (span, "stable_least_val_acc"),
    "`stable_dips`": (span, "stable_dips"),
    "`final_val_acc`": (span, "final_val_acc"),
    "`most_collapsed`": (span, "most_collapsed"),
}


def rows_after(header: str) -> list[str]:
    return README.split(header)[1].split("\n\n")[0].split("\n")[2:]


def test_the_table_of_the_baseline():
    seeds = [SEEDS[operation, BASELINE] for operation in BANDS]
    rows = [" | ".join([f"| {row}", *(how(own, key) for own in seeds)]) + " |" for row, (how, key) in NUMBERS.items()]
    print(*rows, sep="\n")  # what belongs there
    assert rows_after("| `run_0` | x / y | x - y | x + y | S5 |") == rows


# ---- Architectures and pairs -----------------------------------------------------------------------------------------

SIZES = "L1_d64_h4 L2_d64_h2 L2_d64_h4 L2_d64_h8 L4_d64_h4 L1_d128_h4 L2_d128_h4 L4_d128_h4 L1_d256_h4".split()
PRIMARY = ["L4_d64_h4 L1_d128_h4", "L4_d128_h4 L1_d256_h4"]
PAIRS = [*PRIMARY, "L1_d128_h4 L1_d64_h4", "L1_d256_h4 L1_d128_h4", "L4_d128_h4 L4_d64_h4"]
PAIRS += ["L2_d128_h4 L1_d128_h4", "L4_d128_h4 L2_d128_h4", "L2_d64_h4 L1_d64_h4", "L4_d64_h4 L2_d64_h4"]
PAIRS += ["L2_d64_h2 L2_d64_h4", "L2_d64_h8 L2_d64_h4"]
STUDENT = 2.1199  # 16 degrees of freedom, two-sided 95%, from a table


def named(size: str) -> str:
    layers, width, heads = re.findall(r"\d+", size)
    return f"{layers} x {width}" + f", {heads} heads" * (heads != "4")


def test_the_table_of_architectures():
    rows = []
    for size in SIZES:
        seeds = SEEDS["x_div_y", size]
        numbers = [f"{seeds[0]['parameters']:,}", *(median(seeds, key) for key in ("step_memorize", "step_grok"))]
        numbers += [share(seeds, "grokked")]
        numbers += [span(seeds, key) for key in ("step_grok", "stable_share", "stable_least_val_acc", "stable_dips")]
        rows.append(" | ".join([f"| {named(size)}", *numbers]) + " |")
    print(*rows, sep="\n")
    assert rows_after("| x / y, layers x width | parameters |") == rows


def estimate(pair: str, key: str) -> tuple[float, float]:
    """Mean of the logarithms of ratios and half of its interval, by the sums of squares of a table without gaps: every
    size and every seed has a mean."""
    logs = {size: [math.log(seed[key]) for seed in SEEDS["x_div_y", size]] for size in SIZES}
    by_seed = [statistics.fmean(values) for values in zip(*logs.values(), strict=True)]
    whole = statistics.fmean(by_seed)
    left = [x - statistics.fmean(own) - by_seed[i] + whole for own in logs.values() for i, x in enumerate(own)]
    half = STUDENT * math.sqrt(sum(x**2 for x in left) / 16 * 2 / 3)
    one, other = pair.split()
    return statistics.fmean(logs[one]) - statistics.fmean(logs[other]), half


def ratio(pair: str, key: str, price: str | None = None) -> str:
    middle, half = estimate(pair, key)
    if price:
        one, other = (SEEDS["x_div_y", size][0][price] for size in pair.split())
        middle += math.log(one / other)
    low, high = math.exp(middle - half), math.exp(middle + half)
    verdict = "slower" if low > 1 else "faster" if high < 1 else "undecided"
    return f"{math.exp(middle):.2f} [{low:.2f}, {high:.2f}]" + f", {verdict}" * (price is None)


PRICES = {"step_grok": None, "step_memorize": None, "flops_per_update": "step_grok"}


def told(pair: str, what: str) -> str:
    return ratio(pair, PRICES[what] or what, what if PRICES[what] else None)


def test_the_table_of_pairs():
    rows = []
    for pair in PAIRS:
        name = " : ".join(map(named, pair.split()))
        rows.append(" | ".join([f"| {name}", *(told(pair, what) for what in PRICES)]) + " |")
    print(*rows, sep="\n")
    assert rows_after("| pair | updates to grokking |") == rows


def test_the_means_of_the_baseline_against_the_bands_of_the_template():
    means = {operation: mean(SEEDS[operation, BASELINE], "step_val_acc_99").replace(",", "") for operation in BANDS}
    inside = {operation: low <= int(means[operation]) <= high for operation, (low, high) in BANDS.items()}
    print(means, inside)
    assert all(inside.values())


# ---- Prose -----------------------------------------------------------------------------------------------------------


def test_the_answer_quotes_the_tables():
    """Ratios with intervals, k of n, and numbers of updates, in the order of the answer."""
    answer = README[README.index("## The answer") : README.index("## Run it")]
    assert len(answer.split("(results/capacity.png)")[1].strip().split("\n")) <= 14  # 12 of prose, and two between
    grid = [SEEDS["x_div_y", size] for size in SIZES]
    seeds = [seed for own in grid for seed in own]
    ratio_of = {pair: {what: told(pair, what) for what in PRICES} for pair in PAIRS}
    deep, narrow, wide = PRIMARY[1], PRIMARY[0], "L1_d256_h4 L1_d128_h4"
    decided = [pair for pair in PAIRS if "undecided" not in ratio_of[pair]["step_grok"]]
    assert decided == [deep, wide] and len(PAIRS) == 3 + 8
    larger = [ratio_of[pair]["step_memorize"] for pair in PAIRS[2:9]]
    memorized = sorted(words.split()[0] for words in larger)
    shares = span(seeds, "stable_share").split(" to ")
    grokked = sum(seed["grokked"] for seed in seeds)
    latest = max(seed["step_grok"] for seed in seeds)
    wanted = [ratio_of[deep]["step_grok"], ratio_of[narrow]["step_grok"], ratio_of[wide]["step_grok"]]
    wanted = [words.rsplit(",", 1)[0] for words in wanted] + [ratio_of[wide]["flops_per_update"]]
    wanted += [f"{sum('faster' in words for words in larger)} of {len(larger)}", memorized[0], memorized[-1]]
    wanted += [f"{grokked} of {len(seeds)}", f"{latest:,}", "0.95", *(f"{float(x):.2f}" for x in shares), "0.99"]
    wanted += [share(SEEDS["x_plus_y", BASELINE], "grokked"), share(SEEDS["permutation", BASELINE], "grokked"), "7,500"]
    wanted += [mean(SEEDS[operation, BASELINE], "step_val_acc_99") for operation in BANDS]
    number = r"\d\.\d\d(?!\d)(?: \[.*?\])?|\d+ of \d+|\d,\d{3}"
    assert re.findall(number, " ".join(answer.split())) == wanted
    assert span(seeds, "stable_dips") == "1 to 4"
    assert all(SEEDS[o, BASELINE][i]["grokked"] for o in ("x_div_y", "x_minus_y", "x_plus_y") for i in range(3))


def test_what_an_interval_can_tell():
    half = math.exp(estimate(PRIMARY[0], "step_grok")[1])
    assert f"from {1 / half:.2f} to {half:.2f} times the ratio" in " ".join(README.split())
