"""The script as its users run it: flags, files, errors, order and independence of cells."""

import json
import math
import re
import statistics

from experiment import STUDY, Config, Model, main
from harness import parse_arguments, strict_json

import pytest
import torch
from conftest import launch

TINY = "--n_layers 1 --n_heads 2 --d_model 16 --batch_size 8 --n_test 16 --seq_len 4 --device cpu".split()
GRID = [*TINY, "--tasks", "4", "2", "--steps", "120", "30"]


def read(path):
    """Strict JSON: NaN and Infinity are errors."""

    def refuse(constant):
        raise AssertionError(f"{constant} in {path}")

    return json.loads(path.read_text(), parse_constant=refuse)


def cell(results: dict, n_tasks: int, n_steps: int) -> dict:
    (found,) = [c for c in results["cells"] if (c["n_tasks"], c["n_steps"]) == (n_tasks, n_steps)]
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small grid with three seeds, and what the script said."""
    out_dir = tmp_path_factory.mktemp("grid") / "run_0"
    done = launch(*GRID, "--seeds", 3, "--save_models", "--out_dir", out_dir)
    assert done.returncode == 0, done.stderr
    return out_dir, done


def test_final_info_keeps_the_contract(run):
    final_info = read(run[0] / "final_info.json")
    assert list(final_info) == ["D4_N120", "D4_N30", "D2_N120", "D2_N30"]  # the order of the grid as it was asked for
    headlines = ["kl_to_g", "kl_to_m", "relative_divergence", "relative_divergence_posterior_mean"]
    headlines += ["exact_relative_divergence", "coordinate_r_o", "train_loss"]
    for numbers in final_info.values():
        assert list(numbers) == ["means", "stderrs", "final_info_dict"]
        assert list(numbers["final_info_dict"]) == headlines
        for key, values in numbers["final_info_dict"].items():
            assert len(values) == 3
            assert numbers["means"][f"{key}_mean"] == pytest.approx(statistics.mean(values))
            assert numbers["stderrs"][f"{key}_stderr"] == pytest.approx(statistics.stdev(values) / math.sqrt(3))
        for values in zip(*(numbers["final_info_dict"][key] for key in headlines[:3]), strict=True):
            assert values[2] == pytest.approx(values[0] / (values[0] + values[1]))


def test_all_results_holds_everything_else(run):
    results = read(run[0] / "all_results.json")
    assert set(results) == {"config", "environment", "trajectories", "cells", "timing"}
    assert Config(**results["config"]).tasks == (4, 2)
    assert results["environment"]["torch"] == torch.__version__
    assert [(c["n_tasks"], c["n_steps"], c["seed"]) for c in results["cells"]] == [
        (D, N, seed) for D in (4, 2) for N in (120, 30) for seed in range(3)
    ]
    for trajectory in results["trajectories"]:
        assert len(trajectory["urns"]) == trajectory["n_tasks"]
        curves = trajectory["curves"]
        assert curves["step"] == [30, 100, 120]
        assert {len(values) for values in curves.values()} == {3}
        at_30 = [c for c in results["cells"] if c["n_steps"] == 30]
        (same,) = [c for c in at_30 if (c["n_tasks"], c["seed"]) == (trajectory["n_tasks"], trajectory["seed"])]
        assert same["kl_to_g"] == curves["kl_to_g"][0]
    by_size = {(t["n_tasks"], t["seed"]): t["urns"] for t in results["trajectories"]}
    assert by_size[4, 0][:2] == by_size[2, 0] and by_size[4, 1] != by_size[4, 0]
    wanted = {"kl_to_orbit", "d_rel", "exact_kl_to_posterior_mean", "fresh_kl_to_posterior_mean", "fresh_kl_to_m"}
    for numbers in results["cells"]:
        strategies = {"posterior_mean", "best_counting", "orbit", "memorizing"}
        assert wanted < set(numbers) and set(numbers["reference"]) == strategies


def test_a_cell_depends_neither_on_other_cells_nor_on_a_longer_training(run, tmp_path):
    alone = tmp_path / "alone"
    done = launch(*TINY, "--tasks", 2, "--steps", 30, "--seed", 1, "--save_models", "--out_dir", alone)
    assert done.returncode == 0
    long = torch.load(run[0] / "models" / "D2_N30_s1.pt", weights_only=True)
    short = torch.load(alone / "models" / "D2_N30_s1.pt", weights_only=True)
    assert list(short) == [name for name, _ in Model(Config(n_layers=1)).named_parameters()]
    assert all(torch.equal(long[name], short[name]) for name in long | short)
    (here,) = read(alone / "all_results.json")["cells"]
    (there,) = [
        c for c in read(run[0] / "all_results.json")["cells"] if (c["n_tasks"], c["n_steps"], c["seed"]) == (2, 30, 1)
    ]
    noise = here.keys() - there.keys()  # measured after the last update alone
    assert {key: here[key] for key in there} == there
    assert len(noise) == 8 and all("noise" in key or "bias" in key for key in noise)


def test_urns_with_zeros_still_give_strict_json(tmp_path):
    done = launch(*TINY, "--tasks", 3, "--steps", 10, "--alpha", 0.001, "--out_dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    read(tmp_path / "run" / "final_info.json")
    assert any(p == 0 for urn in read(tmp_path / "run" / "all_results.json")["trajectories"][0]["urns"] for p in urn)


def test_json_has_every_list_of_numbers_on_a_line_and_says_the_same():
    value = {"a": [1, -2.5e-7, None, math.nan], "b": [[3], [], ["x,\n 4", 5, "]\n "], [True, {"l": [0]}]], "c": None}
    text = strict_json(value).decode()
    assert json.loads(text) == json.loads(json.dumps(value).replace("NaN", "null"))
    lines = [line.strip() for line in text.splitlines()]
    assert {'"a": [1, -2.5e-07, null, null],', "[3],", '"l": [0]'} <= {*lines}


BAD_INPUT = {
    "unknown flag": (["--learning_rate", "1"], "--learning_rate", "unrecognized"),
    "no tasks": (["--tasks"], "--tasks", "whole numbers of at least 1"),
    "zero tasks": (["--tasks", "0"], "--tasks 0", "at least 1"),
    "negative steps": (["--steps", "10", "-5"], "--steps 10 -5", "at least 1"),
    "no steps": (["--steps"], "--steps", "at least 1"),
    "zero steps": (["--steps", "0"], "--steps 0", "at least 1"),
    "repeated tasks": (["--tasks", "4", "8", "4"], "--tasks 4 8 4", "different"),
    "repeated steps": (["--steps", "7", "7"], "--steps 7 7", "different"),
    "tasks that are no numbers": (["--tasks", "4x"], "--tasks", "4x must be a whole number"),
    "heads do not divide the width": (["--d_model", "130"], "--d_model 130", "divisible by --n_heads 4"),
    "unknown embedding": (["--embedding", "random"], "--embedding random", "gaussian or permutation or fixed"),
    "a value of two lines": (["--embedding", "ran\ndom"], "--embedding ran dom", "gaussian or permutation or fixed"),
    "a value as long as a book": (
        ["--tasks", *["4"] * 1000],
        "experiment.py: --tasks 4 4",
        "whole numbers of at least 1",
    ),
    "absent device": (["--device", "cuda"], "--device cuda", "auto"),
    "unknown device": (["--device", "tpu"], "--device tpu", "auto or cpu"),
    "rate not a number": (["--lr", "nan"], "--lr nan", "finite"),
    "negative rate": (["--lr", "-1e-4"], "--lr -0.0001", "not negative"),
    "infinite decay": (["--weight_decay", "inf"], "--weight_decay inf", "finite"),
    "negative decay": (["--weight_decay=-0.1"], "--weight_decay -0.1", "not negative"),
    "unknown schedule": (["--schedule", "step"], "--schedule step", "constant or linear or cosine"),
    "negative warm-up": (["--warmup", "-1"], "--warmup -1", "0 to 999"),
    "warm-up of all updates": (["--steps", "9", "5", "--warmup", "5"], "--warmup 5", "0 to 4, less than every N"),
    "alpha of zero": (["--alpha", "0"], "--alpha 0.0", "1e-6"),
    "too many colors": (["--n_colors", "9"], "--n_colors 9", "2 to 8"),
    "negative seed": (["--seed", "-1"], "--seed -1", "at least 0"),
}


def test_bad_input_is_one_line_and_touches_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if torch.cuda.is_available():
        del BAD_INPUT["absent device"]
    for arguments, *wanted in BAD_INPUT.values():
        assert main(arguments) == 2, arguments
        out, err = capsys.readouterr()
        assert out == "" and err.count("\n") == 1 and len(err) <= 1500, err
        for part in wanted:
            assert part in err, (part, err)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_hold_a_run_is_bad_input(tmp_path):
    (tmp_path / "file").write_text("mine")
    for out_dir in (tmp_path / "file", tmp_path / "file" / "below", "/proc/no_run_here"):
        done = launch(*GRID, "--out_dir", out_dir)
        assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
        assert f"--out_dir {out_dir}" in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "mine"


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    done = launch(*TINY, "--tasks", 2, "--steps", 50, "--lr", "1e38", "--out_dir", tmp_path / "run")
    assert done.returncode == 1
    assert re.fullmatch(r"experiment\.py: the loss is not finite at D=2, seed=0, step=\d+\n", done.stderr), done.stderr
    assert not (tmp_path / "run" / "final_info.json").exists()


def test_config_is_the_table_of_flags():
    assert parse_arguments(STUDY, [])[0] == Config()
    config, options = parse_arguments(STUDY, "--tasks 8 2 --steps 5 --lr 1e-3 --embedding fixed --out_dir x".split())
    assert (config.tasks, config.steps, config.lr, config.embedding) == ((8, 2), (5,), 1e-3, "fixed")
    assert str(options.out_dir) == "x"
    with pytest.raises(ValueError, match="--d_model 10"):
        Config(d_model=10, n_heads=4)
