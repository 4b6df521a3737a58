#!/usr/bin/env python3
"""Draw every figure of the runs that experiment.py wrote, from their all_results.json alone.

    python plot.py        # the runs in the current folder (run_*), else those in results/
    python plot.py DIR    # the runs in DIR, or DIR itself if it is a run

Every figure goes into that folder, and is the same in every environment:
    stages_<run>.png      memorizing, composition, analogy over training: did analogy come, when, and did it stay?
    energy_<run>.png      what became of analogy, and energy of the functor's pairs over that of all other pairs
    embeddings_<run>.png  entities on their principal plane at the start, at the least energy and at the end
    sweep.png             analogy in every cell of the runs in `labels`, else of all runs
What came of analogy in every cell is printed as well. Exit status: 1 if nothing could be drawn or a figure not be
written, 2 if DIR is no folder.
"""

import argparse
import contextlib
import json
import logging
import os
import sys
import tempfile
import textwrap
import warnings
from pathlib import Path

# Backend, settings, fonts and how they are drawn are not taken from the environment, and there is no cache to write:
# matplotlib then takes a temporary folder. What it remarks on that, or on letters its font lacks, helps no reader.
os.environ |= {"MPLBACKEND": "Agg", "MPL_IGNORE_SYSTEM_FONTS": "1", "FREETYPE_PROPERTIES": ""}
os.environ |= {"MATPLOTLIBRC": os.devnull, "MPLCONFIGDIR": os.devnull}
logging.getLogger("matplotlib").setLevel(logging.ERROR)
warnings.simplefilter("ignore")
# A matplotlibrc in the current folder would come first, and end the import if it cannot be read.
with contextlib.chdir(Path(os.__file__).parent) if os.path.exists("matplotlibrc") else contextlib.nullcontext():
    import matplotlib
matplotlib.rcdefaults()  # a program that runs this one may have settings of its own
matplotlib.use("Agg", force=True)
import matplotlib.pyplot as plt  # noqa: E402
import matplotlib.ticker  # noqa: E402
import numpy as np  # noqa: E402

plt.rcParams["text.parse_math"] = False  # a label is plain text: a dollar sign in it is one

# Titles of runs, {"run_0": "readme", ..}. sweep.png shows the runs named here; without any, all.
labels = {}
marks = {}  # what the titles of runs add that were measured otherwise than the first one

# Colors of Okabe & Ito; lines and markers tell apart without color. The thresholds are those of experiment.py.
STAGES = {
    "train_acc": ("memorizing: accuracy on training facts (0.99)", "#000000", ":"),
    "near_ood_compositional_acc": ("composition: accuracy on held-out two-hop facts (0.99)", "#E69F00", "--"),
    "ood_analogical_acc": ("analogy: accuracy on held-out images (0.99)", "#CC79A7", "-."),
    "ood_analogical_prob": ("analogy: probability of held-out images (0.5)", "#0072B2", "-"),
}
REACHED = dict(zip(STAGES, ("t_mem", "t_comp", "t_ana_acc", "t_ana"), strict=True))
ANALOGY = {
    "ood_analogical_prob": ("probability of held-out images", "#0072B2", "-"),
    "ood_analogical_choice": ("the same among held-out images alone", "#CC79A7", "-."),
}
ENERGIES = {
    "energy_ratio_id": ("energy of trained pairs", "#E69F00", "--"),
    "energy_ratio_ood": ("energy of held-out pairs", "#0072B2", "-"),
}
PLACE = ("num_entities", "num_relations", "analogical_ood_ratio", "weight_decay", "d_model")
SAME = {"preset", "seed", "seeds", "device", "precision", "dump_data"}  # of cells that are the same for that
WORDS = {"num_entities": "entities", "num_relations": "relations", "analogical_ood_ratio": "held out"}


# ==== Reading =========================================================================================================


def name_of(path: Path) -> str:
    """A folder's name as text, whatever the locale makes of it. Only "." and ".." take theirs from where they lead."""
    name = (path.resolve() if path.name in ("", "..") else path).name
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def find_runs(folder: Path) -> dict[str, Path]:
    """The run_* folders in `folder`, or the folder itself if it is a run, by name."""
    if os.path.exists(folder / "all_results.json"):
        return {name_of(folder): folder}
    found = {name_of(path): path for path in folder.glob("run_*") if os.path.isdir(path)}
    return dict(sorted(found.items(), key=lambda run: (len(run[0]), run[0])))


def read_run(path: Path) -> dict | None:
    """The contents of all_results.json; None, with a line that says why, if `path` holds no readable run."""
    try:
        results = json.loads((path / "all_results.json").read_bytes())
        if cells_of(results):
            return results
        say(f"{path}: skipped, its all_results.json has no cell")
    except FileNotFoundError:
        say(f"{path}: skipped, it holds no all_results.json")
    except (ValueError, KeyError, IndexError, TypeError, OSError) as error:
        say(f"{path}: skipped, its all_results.json is not that of a run ({type(error).__name__}: {error})")


def cells_of(results: dict) -> dict[tuple, list[dict]]:
    """All seeds of every cell, by the values of PLACE: a cell's numbers with `config` and what is told of its model."""
    place = lambda told: tuple(told[field] for field in PLACE)  # noqa: E731
    kept = ("curves", "pairs", "counts")
    models = {(place(t), t["seed"]): {key: t[key] for key in kept} for t in results["trajectories"]}
    found = {}
    for cell in results["cells"]:
        config = results["config"] | dict(zip(PLACE, place(cell), strict=True))
        found.setdefault(place(cell), []).append(cell | models[place(cell), cell["seed"]] | {"config": config})
    return dict(sorted(found.items()))


def differences(cells: list[list[dict]]) -> list[str]:
    """Of every cell, in words, what is not the same in all of them: `relations 100, width 64`."""
    configs = [seeds[0]["config"] for seeds in cells]
    flags = [flag for flag in configs[0] if flag not in SAME and len({str(c.get(flag)) for c in configs}) > 1]
    return [", ".join(f"{WORDS.get(flag, flag.replace('_', ' '))} {c.get(flag)}" for flag in flags) for c in configs]


def finding(seeds: list[dict]) -> list[str]:
    """Whether analogy came, when, and whether it stayed: by accuracy and by probability."""
    if seeds[0]["ood_analogical_prob"] is None:
        return ["no image is held out"]
    told = []
    for key, name, least, reached in (("acc", "accuracy", 0.99, "t_ana_acc"), ("prob", "probability", 0.5, "t_ana")):
        came = [seed for seed in seeds if seed[reached] is not None]
        stayed = sum(seed[f"ood_analogical_{key}"] >= least for seed in came)
        updates = sorted(seed[reached] for seed in came)
        span = " to ".join(dict.fromkeys(f"{update:,}" for update in (*updates[:1], *updates[-1:])))
        when = f", first at {span}, at the end in {stayed}" if came else ""
        told.append(f"analogy by {name} in {len(came)} of {len(seeds)}{when}")
    return told


def title_of(name: str) -> str:
    return (str(labels.get(name) or name) + marks.get(name, "")).encode("utf-8", "backslashreplace").decode()


# ==== Figures =========================================================================================================


def add_title(figure: plt.Figure, title: str, question: str) -> None:
    """Title of a figure, in as many lines as its width asks for."""
    figure.suptitle(textwrap.fill(f"{title}: {question}", int(9 * figure.get_figwidth())), fontsize=12)


def add_legend(figure: plt.Figure, panels: list[plt.Axes], columns: int) -> None:
    """Below the panels, every line that one of them has."""
    named = {}
    for panel in panels:
        named |= {text: handle for handle, text in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(named.values(), named.keys(), loc="outside lower center", ncols=columns, frameon=False)


def draw_lines(panel: plt.Axes, seeds: list[dict], lines: dict[str, tuple]) -> None:
    """Numbers against updates, 0 included, on a logarithmic axis: every seed thin, the median thick."""
    for key, (label, color, style) in lines.items():
        curves = [(seed["curves"]["step"], seed["curves"].get(key) or [None]) for seed in seeds]
        curves = [(x, y) for x, y in curves if None not in y]
        for x, y in curves:
            panel.plot(x, y, color=color, ls=style, lw=0.6, alpha=0.6)
        if curves:  # seeds may have other numbers of updates per epoch
            steps = sorted({step for x, _ in curves for step in x if step <= min(x[-1] for x, _ in curves)})
            middle = np.median([np.interp(steps, x, y) for x, y in curves], 0)
            panel.plot(steps, middle, color=color, ls=style, lw=2.2, label=label)
    first, last = (max(seed["curves"]["step"][i] for seed in seeds) for i in (1, -1))
    ticks = [c * 10**power for power in range(9) for c in (1, 3) if first <= c * 10**power <= last]
    panel.set_xscale("symlog", linthresh=first, linscale=0.4)
    panel.set_xticks([0, *ticks], [f"{tick:,}" for tick in (0, *ticks)], fontsize=8)
    panel.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
    panel.grid(color="0.9")
    panel.set_axisbelow(True)


def draw_chances(panel: plt.Axes, seeds: list[dict]) -> None:
    """The threshold of the probability, and what guessing among the held-out images yields."""
    panel.axhline(0.5, color="0.6", lw=0.8)
    if chance := seeds[0]["elimination_ood_analogical_acc"]:
        panel.axhline(chance, color="#009E73", ls=(0, (1, 3)), lw=1.6, label="guessing among held-out images")


def panels_of(results: dict, rows: int, title: str, question: str):
    """A figure with `rows` panels for each cell of a run, and the cells with their panels."""
    cells = [*cells_of(results).values()]
    columns = min(3, len(cells))
    shape = (rows * -(-len(cells) // columns), columns)
    size = (1.5 + max(5.2, 9 / columns) * columns, 1.8 + 2.7 * shape[0])
    figure, axes = plt.subplots(*shape, figsize=size, layout="constrained", squeeze=False)
    add_title(figure, title, question)
    places = []
    for i, (seeds, words) in enumerate(zip(cells, differences(cells), strict=True)):
        own = axes[rows * (i // columns) :, i % columns][:rows]
        own[0].set_title("\n".join(filter(None, [words, *finding(seeds)])), fontsize=9)
        own[-1].set_xlabel("updates")
        places.append((seeds, own))
    for panel in {*axes.flat}.difference(*(own for _, own in places)):
        panel.remove()
    return figure, places


def draw_stages(results: dict, title: str) -> plt.Figure:
    """Memorizing, composition and analogy, and where each seed first reached the threshold, with how many did."""
    question = "did analogy come, when, and did it stay? (thick: median; triangle: threshold reached)"
    figure, places = panels_of(results, 1, title, question)
    for seeds, (panel,) in places:
        draw_lines(panel, seeds, STAGES)
        for height, (key, (label, color, _)) in zip((1.08, 1.15, 1.22, 1.29), STAGES.items(), strict=True):
            reached = [seed[REACHED[key]] for seed in seeds if seed[REACHED[key]] is not None]
            panel.plot(reached, [height] * len(reached), "v", color=color, ms=5)
            panel.text(0, height, f"{label.split(' o')[0]}, {len(reached)} of {len(seeds)}", fontsize=7, va="center")
        draw_chances(panel, seeds)
        panel.set(ylim=(-0.03, 1.34), yticks=np.arange(0, 1.1, 0.25), ylabel="accuracy or probability")
    add_legend(figure, [panel for _, (panel,) in places], 2)
    return figure


def draw_energy(results: dict, title: str) -> plt.Figure:
    """What became of analogy above; below, energies over their null, in the rows of the read-out and of the input."""
    tied = results["config"]["tie_weights"]
    kinds = {"": "of the embedding"} if tied else {"read_out_": "of the read-out", "": "of the input"}
    question = "from update 0 on, does the energy of the functor's pairs fall before analogy comes?"
    figure, places = panels_of(results, 1 + len(kinds), title, question)
    for seeds, (top, *low) in places:
        draw_lines(top, seeds, ANALOGY)
        draw_chances(top, seeds)
        top.set(ylim=(-0.03, 1.03), ylabel="probability")
        for panel, (rows, words) in zip(low, kinds.items(), strict=True):
            if panel is not places[0][1][1]:
                panel.sharey(places[0][1][1])
            draw_lines(panel, seeds, {f"{rows}{key}": style for key, style in ENERGIES.items()})
            panel.axhline(1, color="0.6", lw=0.8)
            panel.set_ylabel(f"energy / its null,\nrows {words}")
        came = [seed["t_ana_acc"] for seed in seeds if seed["t_ana_acc"] is not None]
        for panel in (top, *low) if came else ():
            panel.axvspan(min(came), max(came), color="0.85", label="analogy comes (accuracy), first to last seed")
    add_legend(figure, [panel for _, own in places for panel in own], 3)
    return figure


def draw_embeddings(results: dict, title: str) -> plt.Figure:
    """Entities of the first seed on the principal plane of their rows, with an arrow from each to its image."""
    cells, tied = [*cells_of(results).values()], results["config"]["tie_weights"]
    size = (11, 1.6 + 3.4 * len(cells))
    figure, axes = plt.subplots(len(cells), 3, figsize=size, layout="constrained", squeeze=False)
    lines = {"trained pair": {"color": "#E69F00", "ls": "-"}, "held-out pair": {"color": "#0072B2", "ls": "--"}}
    marks = {"first category": {"marker": "o", "mfc": "black"}, "second category": {"marker": "s", "mfc": "white"}}
    for (seed, *_), words, row in zip(cells, differences(cells), axes, strict=True):
        curves = seed["curves"]
        row[0].set_ylabel("\n".join(filter(None, [textwrap.fill(words, 32), f"seed {seed['seed']}"])))
        moments = {"start": 0, "least energy": np.argmin(curves["energy" if tied else "read_out_energy"]), "end": -1}
        for panel, (moment, at) in zip(row, moments.items(), strict=True):
            xy, shares = np.array(curves["plane"][at]), curves["plane_shares"][at]
            for i, (one, other) in enumerate(seed["pairs"]):
                style = lines["trained pair" if i < seed["counts"]["id_analogical"] else "held-out pair"]
                panel.annotate("", xy[other], xy[one], arrowprops={"arrowstyle": "->", "lw": 1.4, **style})
            for own, mark in zip(np.transpose(seed["pairs"]), marks.values(), strict=True):
                panel.plot(*xy[own].T, ls="", color="black", ms=5, **mark)
            words = f"{moment}, update {curves['step'][at]:,}: {100 * sum(shares):.0f}% of variance"
            panel.set_title(words, fontsize=9)
            panel.set(xticks=[], yticks=[], aspect="equal", adjustable="datalim")
    handles = [plt.Line2D([], [], label=label, **style) for label, style in lines.items()]
    handles += [plt.Line2D([], [], label=label, ls="", color="black", **mark) for label, mark in marks.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    warning = "parallel arrows alone tell what the categories differ in, not whether the pairs are right"
    add_title(figure, title, f"rows of the {'embedding' if tied else 'read-out'}; {warning}")
    return figure


def draw_sweep(rows: list[tuple[str, list[dict]]], title: str) -> plt.Figure:
    """How high analogy rose, how long it stayed and where it was at the end: a mark per seed of every cell."""
    quantities = {
        "prob_max": "highest probability\nof held-out images",
        "choice_max": "highest probability among\nheld-out images alone",
        "prob_share": "share of training with\nprobability of at least 0.5",
        "prob": "probability\nat the end",
    }
    figure, axes = plt.subplots(1, 4, figsize=(13, 2 + 0.6 * len(rows)), layout="constrained", sharey=True)
    for panel, (key, label) in zip(axes, quantities.items(), strict=True):
        for y, (_, seeds) in enumerate(rows):
            values = [seed[f"ood_analogical_{key}"] for seed in seeds]
            if None not in values:
                heights = y + 0.4 * (np.arange(0.5, len(values)) / len(values) - 0.5)
                panel.plot(values, heights, "o", color="#0072B2", ms=4)
                panel.plot([np.median(values)] * 2, [y - 0.35, y + 0.35], color="black", lw=2)
            chance = seeds[0]["elimination_ood_analogical_acc"]
            if chance and key != "prob_share":
                panel.plot([chance] * 2, [y - 0.35, y + 0.35], color="#009E73", ls=(0, (1, 1)), lw=2)
        panel.axvline(0.5, color="0.6", lw=0.8)
        panel.set(xlim=(-0.03, 1.03), xlabel=label, ylim=(len(rows) - 0.5, -0.5))
        panel.grid(color="0.9", axis="x")
        panel.set_axisbelow(True)
    axes[0].set_yticks(range(len(rows)), [textwrap.fill(name, 36) for name, _ in rows], fontsize=8)
    add_title(figure, title, "where does analogy come, and does it stay? (line: median; dotted: guessing)")
    return figure


# ==== Main ============================================================================================================


def say(line: object, stream: str = "stdout") -> None:
    """Print a line where that can be done: words are a convenience, the figures are the result."""
    try:
        file = getattr(sys, stream)
        encoding = getattr(file, "encoding", None) or "utf-8"
        text = str(line).replace("\n", "\\n").encode(encoding, "backslashreplace").decode(encoding)
        file.write(f"{text}\n")
        file.flush()
    except (OSError, AttributeError):  # full, closed, or nobody reads: Python itself would try again and fail at exit
        setattr(sys, stream, None)


def save(figure: plt.Figure, path: Path) -> bool:
    """Put a whole figure in the place of what has its name, be it a link. True, with a line, if that cannot be done."""
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=".plot_", ignore_cleanup_errors=True) as draft:
            figure.savefig(f"{draft}/figure.png", dpi=150)
            os.replace(f"{draft}/figure.png", path)
    except OSError as error:
        say(f"plot.py: {path} cannot be written: {error.strerror or error}", "stderr")
        return True
    finally:
        plt.close(figure)
    say(path)
    return False


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", metavar="DIR", help="folder with the runs")
    asked = parser.parse_args(argv).folder
    if asked is not None and not os.path.isdir(asked):
        say(f"plot.py: DIR must be a folder, not {asked!r}", "stderr")
        return 2
    paths = find_runs(folder := Path(asked or "."))
    if asked is None and not paths:
        paths = find_runs(folder := Path("results"))
    runs = {name: results for name, path in paths.items() if (results := read_run(path)) is not None}
    if not runs:
        say(f"plot.py: no run to draw in {asked or 'this folder or results/'}", "stderr")
        return 1
    hashes = {name: (results.get("environment") or {}).get("yardstick_sha256") for name, results in runs.items()}
    first = next((name for name in runs if name in labels), next(iter(runs)))
    marks.clear()
    for name in (name for name in runs if hashes[name] != hashes[first]):
        marks[name] = f" (another yardstick than {first})"
        say(f"{name}: measured with another yardstick than {first} (yardstick_sha256): compare with care")
    for name in labels:
        if name not in paths:
            say(f"{name}: in labels, but there is no such run here")
    unwritten, figures = [], {"stages": draw_stages, "energy": draw_energy, "embeddings": draw_embeddings}
    for name, results in runs.items():
        for kind, draw in figures.items():
            file_name = os.fsdecode(f"{kind}_{name}.png".encode())
            unwritten.append(save(draw(results, title_of(name)), folder / file_name))
    shown = {name: results for name, results in runs.items() if name in labels} or runs
    cells = [(title_of(name), seeds) for name, run in shown.items() for seeds in cells_of(run).values()]
    words = differences([seeds for _, seeds in cells])
    rows = [(f"{name}: {told}".removesuffix(": "), seeds) for (name, seeds), told in zip(cells, words, strict=True)]
    unwritten.append(save(draw_sweep(rows, ", ".join(map(title_of, shown))), folder / "sweep.png"))
    for name, seeds in rows:
        say(f"{name}: {'; '.join(finding(seeds))}")
    return int(any(unwritten))


if __name__ == "__main__":
    sys.exit(main())
