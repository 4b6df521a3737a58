#!/usr/bin/env python3
"""Draw every figure of the runs that experiment.py wrote, from their all_results.json alone.

    python plot.py        # the runs in the current folder (run_*), else those in results/
    python plot.py DIR    # the runs in DIR, or DIR itself if it is a run

Every figure goes into that folder, and is the same in every environment:
    capacity.png          when models of every size memorize and grok, and the ratios of pairs that are compared
    cost.png              updates, operations and seconds to grokking against the number of parameters
    curves_<run>.png      accuracy and loss over training: every seed, and the median
    stability_<run>.png   accuracy after grokking, a strip per seed
The first two are of the runs in `labels`, without any of all runs, that differ in operations, architectures and seeds
only. Their numbers are printed as well. Exit status: 1 if nothing could be drawn or a figure not be written, 2 if DIR
is no folder.
"""

import argparse
import contextlib
import itertools
import json
import logging
import math
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
plt.rcParams |= {"axes.grid": True, "grid.color": "0.9", "axes.axisbelow": True}

# Titles of runs, {"run_0": "baseline", ..}. capacity.png and cost.png are of the runs named here; without any, of all.
labels = {}
marks = {}  # what the titles of runs add that were measured otherwise than the first one

# Colors of Okabe & Ito; markers and lines tell apart without color.
OPERATIONS = {
    "x_div_y": ("x / y", "#0072B2", "o"),
    "x_minus_y": ("x - y", "#D55E00", "s"),
    "x_plus_y": ("x + y", "#009E73", "^"),
    "permutation": ("x y in S5", "#000000", "D"),
}
PARTS = {"train": ("training entries", "#E69F00", "--"), "val": ("the others", "#0072B2", "-")}
PANELS = {"layout": "constrained", "squeeze": False}

FOUND = {"step_memorize": "memorized", "step_grok": "grokked"}

# What is compared, as (layers, width) at equal heads. Primary: two ways to spend the same number of parameters.
PRIMARY = [((4, 64), (1, 128)), ((4, 128), (1, 256))]
PAIRS = [*PRIMARY, ((1, 128), (1, 64)), ((1, 256), (1, 128)), ((4, 128), (4, 64))]  # width
PAIRS += [((2, 128), (1, 128)), ((4, 128), (2, 128)), ((2, 64), (1, 64)), ((4, 64), (2, 64))]  # depth
HEADS = [(2, 4), (8, 4)]  # at equal layers and width

# Shades of stability_<run>.png, by the least accuracy that they stand for.
SHADES = {0.99: ("#F0F0F0", "at least 0.99"), 0.95: ("#A6BDDB", "0.95 to 0.99")}
SHADES |= {0.5: ("#3690C0", "0.5 to 0.95"), 0.0: ("#023858", "below 0.5")}


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


def size_of(cell: dict) -> tuple[int, int, int]:
    return cell["layers"], cell["width"], cell["heads"]


def style_of(operation: str) -> tuple[str, str, str]:
    """Its name in words, color and marker. An operation that somebody adds is drawn as well."""
    return OPERATIONS.get(operation, (operation, "#CC79A7", "v"))


def cells_of(results: dict) -> dict[tuple, list[dict]]:
    """All seeds of every (operation, (layers, width, heads)), each a cell's numbers with `curves` and `seconds`."""
    curves = {(t["operation"], size_of(t), t["seed"]): t["curves"] for t in results["trajectories"]}
    seconds, found = dict(zip(curves, results["timing"]["seconds_by_model"].values(), strict=True)), {}
    for cell in results["cells"]:
        place = (cell["operation"], size_of(cell))
        own = (*place, cell["seed"])
        found.setdefault(place, []).append(cell | {"curves": curves[own], "seconds": seconds[own]})
    return in_order(found)


def in_order(cells: dict[tuple, list[dict]]) -> dict[tuple, list[dict]]:
    """By operation, and every operation's by the number of parameters and heads."""
    operations = [*OPERATIONS, *(operation for operation, _ in cells)]
    places = sorted(cells, key=lambda p: (operations.index(p[0]), cells[p][0]["parameters"], p[1][2]))
    return {place: cells[place] for place in places}


def comparable(runs: dict[str, dict]) -> tuple[dict[str, dict], dict[tuple, list[dict]]]:
    """The runs of one protocol that have most cells, and their cells; of one that two runs have, the one with more
    seeds."""
    groups, free = {}, ("operations", "layers", "widths", "heads", "architectures", "seeds", "seed", "device")
    for name, results in runs.items():
        config = {key: value for key, value in results["config"].items() if key not in (*free, "early_stop")}
        hashes = [(results.get("environment") or {}).get(f"{key}_sha256") for key in ("script", "yardstick")]
        groups.setdefault(json.dumps([config, hashes], sort_keys=True), {})[name] = results
    group = max(groups.values(), key=lambda group: sum(len(results["cells"]) for results in group.values()))
    cells = {}
    for results in group.values():
        for place, seeds in cells_of(results).items():
            cells[place] = max(cells.get(place, []), seeds, key=len)
    return group, in_order(cells)


def median(cells: list[dict], key: str) -> float | None:
    """Of a number of updates over seeds, where None, never, is more than any; None if that is the median."""
    value = np.median([np.inf if cell[key] is None else cell[key] for cell in cells])
    return float(value) if np.isfinite(value) else None


def reached(seeds: list[dict], key: str) -> int:
    """How many seeds have a number."""
    return sum(seed[key] is not None for seed in seeds)


def found_in_words(seeds: list[dict]) -> str:
    """`memorized 620 (3 of 3), grokked never (1 of 3)`: medians, and how many of how many."""
    steps = {key: median(seeds, key) for key in FOUND}
    words = {key: "never" if steps[key] is None else f"{steps[key]:,.0f}" for key in FOUND}
    return ", ".join(f"{what} {words[key]} ({reached(seeds, key)} of {len(seeds)})" for key, what in FOUND.items())


def title_of(name: str) -> str:
    return (str(labels.get(name) or name) + marks.get(name, "")).encode("utf-8", "backslashreplace").decode()


def size_in_words(size: tuple[int, int, int]) -> str:
    layers, width, heads = size
    return f"{layers} layer{'s' * (layers > 1)}, width {width}, {heads} head{'s' * (heads > 1)}"


def place_in_words(operation: str, size: tuple[int, int, int], seeds: list[dict]) -> str:
    return f"{style_of(operation)[0]}: {size_in_words(size)} ({seeds[0]['bucket']})"


# ==== Comparing =======================================================================================================


def student_quantile(n: int) -> float:
    """What Student's t of n degrees of freedom exceeds in size with probability 5%: for t = sqrt(n) tan(x), the density
    of x is proportional to cos(x)^(n - 1)."""
    x = np.linspace(0, np.pi / 2, 10_001)
    below = np.cumsum(np.cos((x[1:] + x[:-1]) / 2) ** (n - 1))
    return float(np.sqrt(n) * np.tan(np.interp(0.95 * below[-1], below, x[1:])))


def pairs_of(cells: dict[tuple, list[dict]], operation: str) -> list[tuple[tuple, tuple]]:
    """The pairs of PAIRS and HEADS whose two sizes this operation has."""
    sizes = [size for known, size in cells if known == operation]
    heads = sorted({size[2] for size in sizes})
    pairs = [((*one, h), (*other, h)) for one, other in PAIRS for h in heads]
    pairs += [((*shape, one), (*shape, other)) for shape in sorted({s[:2] for s in sizes}) for one, other in HEADS]
    return [pair for pair in pairs if {*pair} <= {*sizes}]


def ratios(cells: dict[tuple, list[dict]], operation: str, key: str = "step_grok") -> dict[tuple, tuple | None]:
    """Of every pair the ratio of steps, the ends of its 95% interval and its number of seeds.

    The geometric mean of the seeds' ratios: both models of a seed learn the same entries in the same batches. The
    standard deviation is pooled over all sizes of the operation: of what is left of the logarithms when every size and
    every seed has a constant of its own. If seeds of the first size never got there, they have the last update, the
    ratio is a lower bound and the upper end infinite; None if one of the second size did not: there is no number for
    it, and to leave it out would favor the slower one.
    """
    seeds = {(size, s["seed"]): s for (known, size), own in cells.items() if known == operation for s in own}
    there = {place: math.log(seed[key]) for place, seed in seeds.items() if seed[key] is not None}
    columns = {column for place in there for column in enumerate(place)}
    shape, logs = (len(there), len(columns)), np.array([*there.values()])
    design = np.array([[place[i] == x for i, x in columns] for place in there], float).reshape(shape)
    fit, _, rank, _ = np.linalg.lstsq(design, logs, rcond=None)
    freedom = len(logs) - int(rank)
    spread = math.sqrt(((logs - design @ fit) ** 2).sum() / freedom) if freedom else math.nan

    def compare(one: tuple, other: tuple) -> tuple[float, float, float, int] | None:
        both = [seed for size, seed in seeds if size == one and (other, seed) in seeds]
        if not both or any((other, seed) not in there for seed in both):
            return None
        known = [there.get((one, seed), math.log(seeds[one, seed]["stopped_at"])) for seed in both]
        mean = float(np.mean(known) - np.mean([there[other, seed] for seed in both]))
        half = student_quantile(freedom) * spread * math.sqrt(2 / len(both)) if freedom else math.nan
        bound = any((one, seed) not in there for seed in both)
        return math.exp(mean), math.exp(mean - half), math.inf if bound else math.exp(mean + half), len(both)

    return {pair: compare(*pair) for pair in pairs_of(cells, operation)}


def ratio_in_words(found: tuple[float, float, float, int] | None) -> str:
    """With the verdict: slower or faster if the whole interval is above or below 1."""
    if found is None:
        return "no ratio"
    ratio, low, high, n = found
    told = "at least " * math.isinf(high) + f"{ratio:.3f}"
    if math.isnan(low):
        return f"{told}, {n} seed{'s' * (n > 1)}, no interval"
    verdict = "slower" if low > 1 else "faster" if high < 1 else "undecided"
    return f"{told} [{low:.3f}, {high:.3f}], {n} seeds: {verdict}"


def wilson(k: int, n: int) -> tuple[float, float]:
    """Wilson's 95% interval of a share of which k of n were seen."""
    z = 1.96
    middle, half = k + z**2 / 2, z * math.sqrt(k * (n - k) / n + z**2 / 4)
    return (middle - half) / (n + z**2), (middle + half) / (n + z**2)


# ==== Figures =========================================================================================================


def add_title(figure: plt.Figure, title: str, question: str) -> None:
    """Title of a figure, in as many lines as its width asks for."""
    figure.suptitle(textwrap.fill(f"{title}: {question}", int(9 * figure.get_figwidth())), fontsize=12)


def label_decades(axis, form: str = "{:,.10g}", subs: tuple[int, ...] = (1, 2, 5)) -> None:
    """Plain numbers on a logarithmic axis, at 1, 2 and 5 of every decade."""
    axis.set_major_locator(matplotlib.ticker.LogLocator(subs=subs))
    axis.set_major_formatter(lambda x, _: form.format(x))
    axis.set_minor_locator(matplotlib.ticker.NullLocator())


def draw_curves(results: dict, title: str) -> plt.Figure:
    """Accuracy above, loss below, against updates on a logarithmic axis: every seed thin, the median thick."""
    cells = cells_of(results)
    columns = min(4, len(cells))
    shape = (2 * -(-len(cells) // columns), columns)
    size = (1.2 + 3.6 * columns, 1.2 + 2.6 * shape[0])
    figure, axes = plt.subplots(*shape, figsize=size, **PANELS, sharey="row")
    for i, below in itertools.product(range(len(cells), axes.size // 2), (0, 1)):
        axes[2 * (i // columns) + below, i % columns].set_axis_off()
    for (i, ((operation, size), seeds)), quantity in itertools.product(enumerate(cells.items()), ("acc", "loss")):
        panel = axes[2 * (i // columns) + (quantity == "loss"), i % columns]
        for part, (label, color, line) in PARTS.items():
            curves = [dict(zip(s["curves"]["step"], s["curves"][f"{part}_{quantity}"], strict=True)) for s in seeds]
            for curve in curves:
                panel.plot(curve.keys(), curve.values(), color=color, lw=0.6, alpha=0.6)
            steps = sorted(set.intersection(*map(set, curves)))  # seeds may have ended early
            middle = np.median([[curve[step] for step in steps] for curve in curves], 0)
            panel.plot(steps, middle, color=color, ls=line, lw=2, label=label)
        panel.set_xscale("log")
        label_decades(panel.xaxis, subs=(1, 3))
        if quantity == "loss":
            panel.set(yscale="log", xlabel="updates")
            label_decades(panel.yaxis, subs=(1,))
        else:
            panel.set_title(f"{place_in_words(operation, size, seeds)}\n{found_in_words(seeds)}", fontsize=8)
        if i % columns == 0:
            panel.set_ylabel("loss (nats)" if quantity == "loss" else "accuracy")
    handles, words = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, words, loc="outside lower center", ncols=2, frameon=False)
    add_title(figure, title, "when are the training entries known by heart, when the others? (thick: median)")
    return figure


def draw_ratios(panel: plt.Axes, compared: dict[tuple, tuple | None]) -> None:
    """The ratios of (operation, pair), one below the other."""
    ends = [0.5, 2]
    for y, ((operation, pair), found) in enumerate(compared.items()):
        _, color, marker = style_of(operation)
        if found:
            ratio, lower, upper, _ = found
            panel.plot([lower, min(upper, 99)], [y, y], color="black", lw=2)
            panel.plot(ratio, y, marker, color=color, mfc="white" if math.isinf(upper) else color, ms=8)
            ends += [end for end in found[:3] if math.isfinite(end)]
        if tuple(size[:2] for size in pair) in PRIMARY:
            panel.axhspan(y - 0.5, y + 0.5, color="0.93", lw=0)
        panel.text(1.01, y, ratio_in_words(found), va="center", fontsize=8, transform=panel.get_yaxis_transform())
    names = [f"{style_of(o)[0]}: {size_in_words(one)}\n: {size_in_words(other)}" for o, (one, other) in compared]
    panel.set_yticks(range(len(compared)), names, fontsize=9)
    panel.axvline(1, color="black", lw=1)
    panel.set(xscale="log", xlim=(0.95 * min(ends), 1.05 * max(ends)), ylim=(len(compared) - 0.5, -0.5))
    panel.set_xlabel("ratio of updates to grokking, 95% interval; shaded: primary; open: a lower bound")
    label_decades(panel.xaxis, subs=(1, 1.5, 2, 3, 5, 7))


def draw_capacity(cells: dict[tuple, list[dict]], title: str) -> plt.Figure:
    """From memorizing to grokking, a bar per size and a mark per seed, by operation and bucket; below, ratios."""
    rows, y, before = {}, 0.0, None
    for (operation, size), seeds in cells.items():
        y, before = y + 1 + 0.5 * (before not in (None, key := (operation, seeds[0]["bucket"]))), key
        rows[operation, size] = y
    operations = dict.fromkeys(operation for operation, _ in cells)
    compared = {(o, pair): found for o in operations for pair, found in ratios(cells, o).items()}
    heights = [y + 0.5, *[1.3 * len(compared)] * bool(compared)]
    shape = {"figsize": (11, 2.6 + 0.34 * sum(heights)), "height_ratios": heights}
    figure, axes = plt.subplots(len(heights), **shape, **PANELS)
    top = axes[0, 0]
    for (operation, size), y in rows.items():
        seeds, (_, color, marker) = cells[operation, size], style_of(operation)
        ends = [median(seeds, key) for key in FOUND]
        if None not in ends:
            top.plot(ends, [y, y], color=color, lw=7, alpha=0.25, solid_capstyle="butt")
        lanes = (np.arange(len(seeds)) - (len(seeds) - 1) / 2) * 0.6 / len(seeds)
        for seed, lane in zip(seeds, lanes, strict=True):
            known = [(seed["step_memorize"], marker, "white"), (seed["step_grok"], marker, color)]
            for x, mark, fill in known if seed["step_grok"] else [known[0], (seed["step_val_acc_99"], ">", "white")]:
                if x is not None:
                    top.plot(x, y + lane, mark, color=color, mfc=fill, ms=4 + 3 * (mark == ">"))
        top.text(1.01, y, found_in_words(seeds), va="center", fontsize=8, transform=top.get_yaxis_transform())
    top.set_yticks([*rows.values()], [place_in_words(*place, cells[place]) for place in rows], fontsize=9)
    top.set(xscale="log", ylim=(y + 0.6, 0.4))
    top.set_xlabel("updates, a mark per seed: open, memorized; filled, grokked; triangle, not by then; bar, medians")
    label_decades(top.xaxis)
    if compared:
        draw_ratios(axes[1, 0], compared)
    add_title(figure, title, "when do models of every size memorize and grok (accuracy above 0.99)?")
    return figure


def draw_cost(cells: dict[tuple, list[dict]], title: str) -> plt.Figure:
    """What grokking costs against parameters: open marks at the last update for seeds that never grok."""
    figure, axes = plt.subplots(2, 2, figsize=(12, 9), layout="constrained")
    prices = {
        "updates": lambda seed: 1,
        "operations of the plain protocol": lambda seed: seed["flops_per_update"],
        "operations with the savings": lambda seed: seed["flops_per_update_with_savings"],
        "seconds, with savings and measuring": lambda seed: seed["seconds"] / seed["stopped_at"],
    }
    for panel, (what, price) in zip(axes.flat, prices.items(), strict=True):
        highest = {}
        for (operation, size), seeds in cells.items():
            words, color, marker = style_of(operation)
            for seed in seeds:
                beside = 1.1 ** math.log2(size[2] / 4)  # heads change no number of parameters
                place = (seed["parameters"] * beside, seed["step_val_acc_99"] * price(seed))
                panel.plot(*place, marker, color=color, mfc="white" if seed["step_grok"] is None else color, ms=5)
                highest[size] = max(highest.get(size, place), place, key=lambda place: place[1])
            if size == next(known for o, known in cells if o == operation):
                panel.plot([], [], marker, color=color, label=words)
        for (layers, width, heads), place in highest.items():
            text = f"{layers} x {width}" if heads == 4 else f"h{heads}"
            panel.annotate(text, place, (0, 6), textcoords="offset points", ha="center", fontsize=8)
        panel.set(xscale="log", yscale="log", title=what)
        panel.margins(0.15)
        label_decades(panel.xaxis)
        label_decades(panel.yaxis, "{:.3g}" if "operations" in what else "{:,.10g}", subs=(1, 2, 3, 5))
    words = "against parameters; at marks: layers x width, or h2 for 2 heads, not 4, which are beside their place"
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, title=words, loc="outside lower center", ncols=5, frameon=False)
    add_title(figure, title, "what did it take to grok? (a mark per seed; open: not grokked by the last update)")
    return figure


def draw_stability(results: dict, title: str) -> plt.Figure:
    """Strips of the accuracy on the other entries after grokking, one per seed."""
    strips = [(place, seed) for place, seeds in cells_of(results).items() for seed in seeds]
    figure, panel = plt.subplots(figsize=(11, 2.2 + 0.24 * len(strips)), layout="constrained")
    names, longest = [], 1000
    for y, ((operation, size), seed) in enumerate(strips):
        names.append(f"{style_of(operation)[0]}, {size_in_words(size)}, seed {seed['seed']}")
        if seed["step_grok"] is None:
            words = f"not grokked in {seed['stopped_at']:,} updates"
            panel.text(10, y, words, va="center", fontsize=8, bbox={"fc": "white", "lw": 0, "pad": 1})
            continue
        first = seed["curves"]["step"].index(seed["step_grok"])
        steps = np.subtract(seed["curves"]["step"][first:], seed["step_grok"])
        ends = [*steps[1:], steps[-1] + 10]
        shades = [SHADES[max(x for x in SHADES if x <= acc)][0] for acc in seed["curves"]["val_acc"][first:]]
        panel.barh([y] * len(steps), ends - steps, 0.8, steps, color=shades, lw=0)
        longest = max(longest, ends[-1])
    panel.axvline(1000, color="black", lw=1)
    panel.set(xlabel="updates since the accuracy first exceeded 0.99", xlim=(0, longest))
    panel.xaxis.set_major_formatter("{x:,.0f}")
    panel.set_yticks(range(len(strips)), names, fontsize=8)
    panel.set_ylim(len(strips) - 0.4, -0.6)
    marks = [plt.Rectangle((0, 0), 1, 1, fc=color, ec="0.5", label=words) for color, words in SHADES.values()]
    figure.legend(handles=marks, loc="outside lower center", ncols=4, frameon=False)
    add_title(figure, title, "does grokking last? Accuracy on the other entries (line: the end of what is counted)")
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


def print_table(cells: dict[tuple, list[dict]]) -> None:
    """One line per cell: median steps, the share that grokked with Wilson's interval, the mean stable_share; then one
    per pair: its ratio of steps to memorizing, and to grokking."""
    for (operation, size), seeds in cells.items():
        n, k = len(seeds), reached(seeds, "step_grok")
        stable = [seed["stable_share"] for seed in seeds if seed["stable_share"] is not None]
        told = "share that grokked {:.2f} [{:.2f}, {:.2f}]".format(k / n, *wilson(k, n))
        told += f", stable_share {np.mean(stable):.3f} ({len(stable)} of {n})" if stable else ", stable_share unknown"
        say(f"{operation} {size_in_words(size)}: {found_in_words(seeds)}; {told}")
    for operation, key in itertools.product(dict.fromkeys(operation for operation, _ in cells), FOUND):
        for pair, found in ratios(cells, operation, key).items():
            say(f"{operation} {key} {' : '.join(map(size_in_words, pair))}: {ratio_in_words(found)}")


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
    unwritten = []
    for name, results in runs.items():
        for kind, draw in {"curves": draw_curves, "stability": draw_stability}.items():
            file_name = os.fsdecode(f"{kind}_{name}.png".encode())
            unwritten.append(save(draw(results, title_of(name)), folder / file_name))
    shown = {name: results for name, results in runs.items() if name in labels} or runs
    together, cells = comparable(shown)
    for name in shown.keys() - together.keys():
        say(f"{name}: of another protocol than {', '.join(together)}, not in capacity.png and cost.png")
    title = ", ".join(map(title_of, together))
    unwritten.append(save(draw_capacity(cells, title), folder / "capacity.png"))
    unwritten.append(save(draw_cost(cells, title), folder / "cost.png"))
    print_table(cells)
    return int(any(unwritten))


if __name__ == "__main__":
    sys.exit(main())
