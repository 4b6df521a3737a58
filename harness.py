"""What every single-script study rests on: flags, random streams, training, checkpoints, faults and results.

A study trains small models and measures them. It gives a `Config`, whose fields are its flags, and `plan(config)`, a
list of `Trajectory` objects: each is one model from its start to its last update, with methods that make its batches,
its loss and its numbers. `run_study` does the rest: it trains the trajectories side by side, continues a run that was
interrupted or has grown, and writes `final_info.json`, `cells.csv` and `all_results.json`.

    python harness.py bundle experiment.py > single.py    # a study and this file as one script
"""

import abc
import argparse
import ast
import contextlib
import copy
import csv
import errno
import hashlib
import importlib.util
import inspect
import io
import itertools
import json
import linecache
import logging
import math
import multiprocessing
import multiprocessing.connection
import os
import pickle
import platform
import queue
import random
import re
import signal
import sys
import threading
import time
import tokenize
import traceback
import typing
import uuid
import warnings
import weakref
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import MISSING, asdict, dataclass, fields, replace
from datetime import timedelta
from functools import cached_property, partial
from numbers import Real
from pathlib import Path
from types import ModuleType, SimpleNamespace

SOURCES: dict[str, bytes] = {}
STARTED: dict[str, type] = {}  # scripts whose study has been made, with its Config


def source_of(file: str) -> bytes:
    """A script as it was when it started, also for inspect and tracebacks: a loop may edit it while it runs."""
    if file not in SOURCES:
        SOURCES[file] = Path(file).read_bytes()
        encoding, _ = tokenize.detect_encoding(io.BytesIO(SOURCES[file]).readline)
        lines = io.TextIOWrapper(io.BytesIO(SOURCES[file]), encoding).readlines()
        linecache.cache[file] = (len(SOURCES[file]), None, lines, file)
    return SOURCES[file]


source_of(__file__)  # and the study's, before the seconds that the next imports take
importer = sys._getframe()
while importer and (importer.f_code.co_filename == __file__ or importer.f_code.co_filename.startswith("<frozen ")):
    importer = importer.f_back
if importer and Path(importer.f_code.co_filename).is_file():
    source_of(importer.f_code.co_filename)

import numpy as np  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
import torch.nn as nn  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402
from torch.optim import Optimizer  # noqa: E402
from torch.optim.optimizer import register_optimizer_step_post_hook  # noqa: E402
from tqdm import tqdm  # noqa: E402

try:
    import fcntl
except ImportError:  # Windows: run folders are not locked
    fcntl = None

# ==== What a study gives ==============================================================================================


class UserError(ValueError):
    """Bad input: one line for standard error that names the flag, its value and what is allowed; exit status 2."""


def require(config, flag: str, ok: bool, allowed: str) -> None:
    """UserError that names the flag, its value in the configuration and what is allowed, unless ok."""
    if not ok:
        value = getattr(config, flag)
        shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
        raise UserError(f"{f'--{flag} {shown}'.rstrip()}: must be {allowed}")


def stream(*name, device="cpu") -> torch.Generator:
    """Generator of the random stream with this name, e.g. stream(seed, "split").

    All randomness comes from named streams, so no number depends on what else ran before or beside it.
    """
    digest = hashlib.sha256(repr(name).encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "little"))


def file_stem(cell: str, seed: int | str) -> str:
    """What files of a cell and seed are called; for a glob pattern the seed is "[0-9]*"."""
    return f"{re.sub(r'[^-+.=,A-Za-z0-9]', '_', cell)}_s{seed}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Trajectory(abc.ABC):
    """One model from its start to its last update: its settings, how it is trained and what is measured of it.

    A study's class adds its own settings as fields and the methods below, written for one model. Nothing in them may
    depend on what was called before: a trajectory is continued in another process. What changes during training belongs
    into the batches or learning_rate, for on a GPU the update is recorded once and replayed. What a list of the grid
    means for it is among its fields, not read off `config`: a complete run may be given a longer list.
    """

    config: object  # the study's Config; its field `device` and, if it has one, `precision` concern the harness
    name: str  # in words that a person reads: "width=64, seed=0"
    seed: int
    cells: dict[int, str]  # the cells of the results that it serves, by their number of updates: {7500: "width_64"}
    streams: tuple  # what its random streams are named by: models that share it start and are trained alike
    measured: tuple[int, ...] = ()  # after which other updates, up to the last, it is measured; 0 is before the first
    shape: Hashable = None  # on a GPU trajectories of equal shape, whose methods do the same, train as one; None: alone
    clip_norm: float | None = None  # the gradient is scaled down to this norm
    window: int = 100  # of how many updates measure() gets what loss() reported

    @property
    def updates(self) -> int:
        """After how many updates it ends, if not early."""
        return max(self.cells)

    @property
    def stem(self) -> str:
        """What its checkpoint is called."""
        return self.stem_at(self.updates)

    def stem_at(self, n: int) -> str:
        """What the model of the cell of n updates is called."""
        return file_stem(self.cells[n], self.seed)

    def stream(self, *purpose, device="cpu") -> torch.Generator:
        """The trajectory's own random stream for this purpose."""
        return stream(*self.streams, *purpose, device=device)

    @cached_property
    def data(self):
        """What batches and measurements rest on, made once in every process that needs it: a training set, a split."""
        return None

    @abc.abstractmethod
    def model(self) -> nn.Module:
        """The model at its start. PyTorch's generator is seeded from the stream "initial weights"."""

    @abc.abstractmethod
    def batches(self, first: int, n: int, device: torch.device) -> dict[str, torch.Tensor]:
        """The batches of the updates first to first + n - 1, as tensors [n, ..]; n is always CHUNK. Whatever is random
        in them comes from self.stream("...", first // n), or of an epoch, which lies across several calls, from
        self.stream("...", epoch). A batch that is short is padded and comes with weights."""

    @abc.abstractmethod
    def loss(self, model: nn.Module, **batch: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Of one batch: the objective, a scalar, and the scalars to report, by name. All of them must be finite."""

    @abc.abstractmethod
    def optimizer(self, params: dict[str, torch.Tensor], lr: float) -> torch.optim.Optimizer:
        """Optimizer of parameters by name. lr is the highest rate of the schedule: a group with twice that rate stays
        at twice the rate. On a GPU parameters may be those of many models, [E, ..]: choose groups by name."""

    @abc.abstractmethod
    def learning_rate(self, update: int, updates: int) -> float:
        """Rate of update `update` (from 0) of `updates`. Where it depends on `updates`, every cell is trained alone."""

    @abc.abstractmethod
    def observe(self, model: nn.Module, update: int):
        """What is read off the model after `update` updates, as tensors on the CPU: one or a dict of them, without NaN.
        Gradients are off, and so is what a model draws by itself."""

    @abc.abstractmethod
    def measure(self, observed, update: int, recent: dict[str, list[float]], points: list[dict]) -> dict:
        """Numbers, text, None or lists and dicts of these, made of what was observed after `update` updates and of what
        loss() reported in the last of them, oldest first ({} at the start). `points` are those before, each at a
        `step`."""

    def finished(self, points: list[dict]) -> bool:
        """Whether training may end early, by the measured points alone: asked at each of them, 0 included."""
        return False

    @abc.abstractmethod
    def cell(self, points: list[dict]) -> dict:
        """The numbers of a cell from the points measured up to it; None stands for "never". After an early end the last
        point has fewer updates than the cell. It is tried at the first point after the start, lest it fails at the
        end."""

    def extras(self, points: list[dict]) -> dict:
        """What all_results.json keeps of the trajectory beside the curves of its points."""
        return {}


@dataclass(frozen=True)
class Study:
    """What a script hands to run_study."""

    Config: type  # a frozen dataclass with a comment per field; every field is a flag
    plan: Callable[[object], list[Trajectory]]  # the trajectories of a configuration
    headlines: Callable[[object], tuple[str, ...]]  # the numbers of a cell that final_info.json has
    yardstick: tuple  # the functions and classes that these are measured with: the results keep a hash of their source
    presets: dict[str, dict] | None = None  # by the value of Config's field `preset`: fields, below explicit flags

    def __post_init__(self):
        if STARTED.setdefault(str(self.path), self.Config) is not self.Config:  # a notebook has loaded it again
            STARTED[str(self.path)] = self.Config
            SOURCES.pop(str(self.path), None)
        source_of(str(self.path))

    @property
    def path(self) -> Path:
        """The study's script."""
        return Path(inspect.getfile(self.Config))


# ==== Training ========================================================================================================

CHUNK = 100  # updates whose batches are made at once: part of what defines the random streams
CHECKPOINT_SECONDS = 60
# Optimizers that treat every element of a tensor alike: on stacked parameters they do what they do on each model's.
ELEMENTWISE = "Adadelta Adagrad Adam Adamax AdamW ASGD NAdam RAdam RMSprop Rprop SGD".split()
ELEMENTWISE = {getattr(torch.optim, name) for name in ELEMENTWISE}
RUNGS = {  # of the ladder that a GPU's groups climb down where a faster one fails
    "captured": "stacked, their update captured as a CUDA graph",
    "stacked": "stacked, update by update",
    "plain": "one model after the other",
}


class NotFiniteError(RuntimeError):
    """A loss or what was observed stopped being finite; the message names trajectory and step."""


class FastPathError(RuntimeError):
    """Models that are stacked cannot make their updates."""


def leaves(value, name: str = "") -> Iterator[tuple[str, object]]:
    """What nested dicts and lists hold, by names such as a.b.0."""
    if not isinstance(value, dict | list | tuple):
        yield name, value
        return
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
        yield from leaves(inner, f"{name}.{key}" if name else str(key))


def plain(numbers: dict) -> dict:
    """As JSON has them: None stands for NaN and infinity. TypeError with the key of what cannot be stored."""
    named = [*leaves(numbers)]
    for name, times in Counter(name for name, _ in named).items():
        if times > 1:
            raise TypeError(f"{name} must be one number: two have this name")
    try:
        return json.loads(strict_json(numbers))
    except (TypeError, ValueError):
        for name, value in named:
            try:
                json.dumps(value)
            except (TypeError, ValueError) as error:
                raise TypeError(f"{name} must be numbers, text or None, is {value!r:.100}: {error}") from None
        raise


def rates_of(trajectory: Trajectory, n: int) -> list[float]:
    """The learning rates of the n updates to a cell. ValueError if one is no rate."""
    with faults_name([Progress(trajectory)], n=n):
        rates = [trajectory.learning_rate(update, n) for update in range(n)]
        for update, rate in enumerate(rates):
            if not (isinstance(rate, Real) and 0 <= rate < math.inf):
                raise ValueError(
                    f"learning_rate() must be a finite number of at least 0, is {rate!r} at update {update}"
                )
        return rates


TOLD = ("name", "seed", "updates", "rungs")  # what the results say of every trajectory, beside extras and curves


class Progress:
    """Where a trajectory stands: what its checkpoint holds."""

    HELD = ("step", "state", "recent", "points", "cells", "extras", "models", "rungs", "seconds")

    def __init__(self, trajectory: Trajectory):
        self.trajectory = trajectory
        self.restart()

    def restart(self) -> None:
        self.step, self.state = 0, None  # after which update, and model and optimizer there
        self.recent: dict[str, deque[float]] = {}  # what loss() reported in the last updates
        self.points: list[dict] = []  # what was measured, in the order of the steps
        self.cells: dict[str, dict] = {}  # the cells that are reached, all of them at an early end
        self.extras: dict = {}
        self.models: dict[str, dict] = {}  # the weights of these cells, by the names of their files
        self.rungs: list[str] = []  # on which it was trained
        self.seconds = 0.0  # that this took: of models trained together each has its part

    @cached_property
    def rates(self) -> list[float]:
        return rates_of(self.trajectory, self.trajectory.updates)

    @property
    def done(self) -> bool:
        return len(self.cells) == len(self.trajectory.cells)

    def not_finite(self, step: int, what: str = "the loss") -> NotFiniteError:
        return NotFiniteError(f"{what} is not finite at {self.trajectory.name}, step={step}")

    def measure(self, observed) -> None:
        """Add a point, and the cells that it completes. What results cannot hold fails here, not after hours."""
        trajectory = self.trajectory
        with faults_name([self], trajectory.observe):
            for name, values in observed.items() if isinstance(observed, dict) else [("", observed)]:
                if values.isnan().any():
                    raise self.not_finite(self.step, f"what is observed ({name})" if name else "what is observed")
        with faults_name([self], trajectory.measure):
            recent = {name: list(values) for name, values in self.recent.items()}
            numbers = trajectory.measure(observed, self.step, recent, self.points)
            self.points.append(plain({"step": self.step} | numbers | {"step": self.step}))
        with faults_name([self], trajectory.finished):
            early = self.step < trajectory.updates and trajectory.finished(self.points)
        self.reach({n for n in trajectory.cells if n == self.step or early and n > self.step})

    def reach(self, cells: set[int]) -> None:
        """Make the cells of so many updates from the points."""
        trajectory = self.trajectory
        for n in sorted(cells):
            with faults_name([self], trajectory.cell, n):
                told = {"cell": trajectory.cells[n], "seed": trajectory.seed}
                numbers = plain(told | trajectory.cell(copy.deepcopy(self.points)) | told)
                self.cells[trajectory.cells[n]] = json.loads(strict_json(numbers))  # as a run that is read again has it
        if self.done:
            with faults_name([self], trajectory.extras):
                self.extras = plain(trajectory.extras(copy.deepcopy(self.points)))

    def rehearsal(self) -> "Progress":
        """The same, with the cells to come as if they were reached."""
        trial = copy.copy(self)
        trial.cells = {}
        trial.reach({*self.trajectory.cells})
        with faults_name([self], self.trajectory.extras):
            if taken := trial.extras.keys() & {*TOLD, "curves"}:
                raise ValueError(f"extras() must leave {', '.join(sorted(taken))} to the harness")
        return trial

    def grows_from(self, other: "Progress") -> bool:
        """Whether it is the other one, with perhaps more cells: every setting is the same and so are its updates."""
        new, old = self.trajectory, other.trajectory
        free = {"config", "cells", "measured"}
        settings = [(getattr(new, f.name), getattr(old, f.name)) for f in fields(new) if f.name not in free]
        same = all(digest(one, False) == digest(other, False) or one == other for one, other in settings)
        rates = self.rates[: old.updates] == other.rates and max(self.rates, default=0) == max(other.rates, default=0)
        return same and rates and old.cells.items() <= new.cells.items()


@contextlib.contextmanager
def faults_name(group: list[Progress], method: Callable | None = None, n: int | None = None):
    """An exception raised while this lasts gets notes: the study's method that it is about, unless it was raised in the
    study's own lines, and the cells, at most four, that these trajectories are on their way to, or that of n updates.
    """
    try:
        yield
    except BaseException as error:
        code = getattr(inspect.unwrap(method), "__code__", None) if method else None  # of no function: None
        frames = traceback.extract_tb(error.__traceback__)
        if code and isinstance(error, Exception) and all(frame.filename != code.co_filename for frame in frames):
            where = f"{Path(code.co_filename).name} line {code.co_firstlineno}"
            error.add_note(f"{where}: {method.__qualname__}(), or what it returned")
        if group and not any(note.startswith("in cell") for note in getattr(error, "__notes__", [])):
            cells = []
            for progress in group[:4]:
                t = progress.trajectory
                left = [cell for cell in t.cells if cell >= progress.step and t.cells[cell] not in progress.cells]
                cells.append(f"{t.cells[n or min(left or t.cells)]} (seed {t.seed})")
            error.add_note(f"in cell {', '.join(cells)}, after step {group[0].step}")
        raise


def planned(study: Study, config) -> list[Progress]:
    """The trajectories of a study before their first update. One whose learning rates depend on how many updates there
    are is trained once for each of its cells: the model on its way to many updates is not that of few."""
    plan = []
    for progress in map(Progress, study.plan(config)):
        trajectory, few = progress.trajectory, [rates_of(progress.trajectory, n) for n in progress.trajectory.cells]
        if all(rates == progress.rates[: len(rates)] and max(rates) == max(progress.rates) for rates in few if rates):
            plan.append(progress)
            continue
        for n, name in trajectory.cells.items():
            measured = tuple(update for update in trajectory.measured if update <= n)
            plan.append(Progress(replace(trajectory, cells={n: name}, measured=measured)))
    stems = [t.stem_at(n) for t in (progress.trajectory for progress in plan) for n in t.cells]
    for stem, following in itertools.pairwise(sorted(stems)):
        if stem == following:
            raise ValueError(f"plan() must have a cell once per seed: {stem} is there twice")
    if not plan:
        raise ValueError("plan() must have at least one trajectory")
    return plan


class Objective(nn.Module):
    """A model and its trajectory's loss as one module, so that other parameters can be put into the model."""

    def __init__(self, trajectory: Trajectory, model: nn.Module):
        super().__init__()
        self.trajectory, self.model = trajectory, model

    def forward(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return self.trajectory.loss(self.model, **batch)


def clip_by_member(params: list[torch.Tensor], max_norm: float) -> None:
    """Scale the gradients of stacked parameters [E, ..] down to max_norm, every model's by its own norm."""
    gradients = [p.grad for p in params if p.grad is not None]
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in (g[..., None] for g in gradients)]).norm(dim=0)
    factors = (max_norm / (norms + 1e-6)).clamp(max=1)
    for g in gradients:
        g.mul_(factors.view(-1, *[1] * (g.ndim - 1)))


LEFT_ALONE = (type, ModuleType, Trajectory, logging.Logger, threading.local, *weakref.ProxyTypes)
GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)


def seed_all(generators: list, seed: int) -> None:
    """Seed generators of torch, NumPy and Python, and the modules that have one of their own."""
    for generator in generators:
        if isinstance(generator, np.random.Generator):
            generator.bit_generator.state = type(generator.bit_generator)(seed).state
        else:
            generator.manual_seed(seed) if isinstance(generator, torch.Generator) else generator.seed(seed % 2**32)


def savable(value, names: dict[int, str]) -> bool:
    """Whether a checkpoint holds it: numbers, text, tensors that are not the model's, and lists and dicts of them."""
    if type(value) is dict:
        return all(type(key) in (str, int) and savable(inner, names) for key, inner in value.items())
    if type(value) in (list, tuple):
        return all(savable(inner, names) for inner in value)
    tensor = isinstance(value, torch.Tensor) and id(value) not in names
    return tensor or type(value) in (int, float, complex, bool, str, type(None))


def holdings(value, names: dict[int, str], path: tuple = (), seen: dict | None = None) -> Iterator[tuple]:
    """What models and optimizers hold beside what `names` has by id, parameters and buffers: (path, value, whether it
    has parts, which come before it). What is savable is one part; else it looks into objects, dicts, lists and
    closures. In a path (name,) is a parameter as a key, (i,) the i-th key: hooks have other numbers in every process.
    """
    seen = {} if seen is None else seen
    own = isinstance(value, torch.Tensor) and id(value) in names
    if id(value) in seen or id(value) in names and not own or isinstance(value, LEFT_ALONE):
        return
    parts = []
    if not savable(value, names):
        seen[id(value)] = value
        if isinstance(value, dict | list | tuple):
            parts = list(value.items() if isinstance(value, dict) else enumerate(value))
            parts += [("__dict__", vars(value))] if hasattr(value, "__dict__") else []
        elif not isinstance(value, GENERATORS):
            slots = (vars(kind).get("__slots__", ()) for kind in type(value).__mro__)
            keys = [key for own in slots for key in ([own] if isinstance(own, str) else own) if key[:2] != "__"]
            keys += [*getattr(value, "__dict__", ()), "__self__", "__closure__", "cell_contents"]
            keys += ["func", "args", "keywords"] * isinstance(value, partial)
            keys += ["requires_grad", "_backward_hooks", "_post_accumulate_grad_hooks"] * own
            with contextlib.suppress(ValueError):  # a closure's variable that has no value
                parts = [(key, getattr(value, key)) for key in keys if hasattr(value, key)]
    for place, (key, part) in enumerate(parts):
        if not isinstance(key, str) and (isinstance(value, OrderedDict) or not isinstance(key, int)):
            key = (names.get(id(key), place),)
        yield from holdings(part, names, (*path, key), seen)
    if not own:
        yield path, value, bool(parts)


def dotted(path: tuple) -> str:
    """What messages call it: optimizer.state.decoder.norm.weight.exp_avg."""
    return ".".join(str(key[0] if isinstance(key, tuple) else key) for key in path)


def digest(value, has_parts: bool) -> bytes:
    """Tells whether a value is another one than before; its parts tell the rest."""
    if not has_parts and not isinstance(value, GENERATORS):  # these are seeded before every update
        if inspect.isgenerator(value):
            return os.urandom(8)  # where it stands cannot be told
        with contextlib.suppress(Exception):
            return hashlib.sha256(pickle.dumps(value)).digest()
    return repr(id(value)).encode()


class Ensemble:
    """Models of trajectories of one shape, trained in lockstep on a rung of the ladder.

    Stacked, on a GPU, all models are one program: their parameters are [E, ..], and one update of all of them may be
    captured as a CUDA graph and replayed without host synchronization. Plain, there is one model in plain PyTorch.
    """

    def __init__(self, group: list[Progress], device: torch.device, rung: str = "plain"):
        self.group, self.device = group, device
        self.stacked, self.captured = rung != "plain", rung == "captured"
        self.first = group[0].trajectory
        self.step, self.last, self.lr = 0, self.first.updates, None
        models = []
        for progress in group:
            with faults_name([progress]), torch.random.fork_rng(devices=[]):
                seed = progress.trajectory.stream("initial weights").initial_seed()
                seed_all([torch.default_generator, np.random, random], seed)
                models.append(progress.trajectory.model().to(device))
        self.model = models[0]  # stacked: the plain model that members are put into
        self.objective = Objective(self.first, self.model)
        self.params, self.buffers = dict(self.model.named_parameters()), dict(self.model.named_buffers())
        if self.stacked:
            self.params, self.buffers = torch.func.stack_module_state(models)
        self.peak = max(group[0].rates, default=0.0)
        with faults_name([], self.first.optimizer):
            self.optimizer = self.first.optimizer(self.params, self.peak)
            if not hasattr(self.optimizer, "step"):
                raise TypeError(f"optimizer() must return an optimizer, not {self.optimizer!r:.100}")
            self.names = {id(p): name for name, p in (*self.model.named_parameters(), *self.params.items())}
            self.names |= {id(own): "" for m in self.model.modules() for own in (m._parameters, m._buffers)}
            held = list(self.holdings())
            self.optimizers = [value for _, value, _ in held if isinstance(value, Optimizer)]
            self.options = list({id(o): o for kept in self.optimizers for o in kept.param_groups}.values())
            if any("initial_lr" in options for options in self.options):  # which a scheduler leaves there
                raise RuntimeError("a schedule belongs in learning_rate(): PyTorch's schedulers are refused")
            self.scales = [float(options["lr"]) / self.peak if self.peak else 1.0 for options in self.options]
            grouped = {id(p) for options in self.options for p in options["params"]}
            for name, p in self.params.items():
                if p.requires_grad and id(p) not in grouped:
                    raise ValueError(f"optimizer() must have every trainable parameter in a group: {name} is in none")
            if grouped - self.names.keys():
                raise ValueError("optimizer() must be given parameters of the model alone: checkpoints hold no others")
        for options in self.options if self.captured else ():  # a graph reads its learning rate from the device
            if "capturable" in options:
                options["capturable"], options["lr"] = True, torch.tensor(float(options["lr"]), device=device)
        self.chunk, self.batches, self.ahead = None, {}, {}
        self.reported, self.reports, self.checked, self.reduced = None, [], False, True
        self.start = {path: digest(*told) for path, *told in held}
        self.cursor = torch.zeros(1, dtype=torch.int64, device=device)
        self.graph, self.warm_up = None, 3
        self.side = torch.cuda.Stream(device) if self.captured else None
        self.own_draws = self.first.stream("own draws").initial_seed()
        self.generators = [value for _, value, _ in held if isinstance(value, GENERATORS)]
        self.generators += [torch.default_generator, np.random, random]
        if device.type == "cuda":
            self.generators.append(torch.cuda.default_generators[device.index or 0])

    def sample(self, chunk: int) -> dict[str, torch.Tensor]:
        """Batches [CHUNK, E, ..] of the updates from chunk * CHUNK on."""
        with faults_name([], self.first.batches):
            self.seed(-1 - chunk)
            members = [p.trajectory.batches(chunk * CHUNK, CHUNK, self.device) for p in self.group]
            for key, values in members[0].items():
                if len(values) != CHUNK:
                    raise ValueError(f"batches() must give n = {CHUNK} batches, gives {len(values)} of {key}")
            return {key: torch.stack([batches[key].to(self.device) for batches in members], 1) for key in members[0]}

    def precision(self):
        bf16 = self.reduced and getattr(self.first.config, "precision", None) == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=bf16)

    def losses(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Objectives and reported numbers [E] of every model on its batch [E, ..]."""
        with self.precision():
            if not self.stacked:
                told = self.first.loss(self.model, **{key: values[0] for key, values in batch.items()})
                if not (isinstance(told, tuple) and len(told) == 2 and isinstance(told[1], dict)):
                    raise TypeError(f"loss() must return the objective and a dict of what to report, not {told!r:.100}")
                objective, reported = told
                for name, value in {"the objective": objective, **reported}.items() if not self.checked else ():
                    if not isinstance(value, torch.Tensor) or value.ndim:
                        raise TypeError(f"loss() must give scalar tensors: {name} is {value!r:.100}")
                return objective[None], {name: value[None] for name, value in reported.items()}

            def one(state, batch):
                return torch.func.functional_call(self.objective, state, (batch,))

            state = {f"model.{name}": value for name, value in (self.params | self.buffers).items()}
            with sdpa_kernel(SDPBackend.MATH):  # the memory-efficient attention of CUDA fails below vmap
                return torch.vmap(one, randomness="different")(state, batch)

    def update(self) -> None:
        """One update of every model, on the batch under the cursor, without host synchronization."""
        batch = {key: values.index_select(0, self.cursor)[0] for key, values in self.batches.items()}
        objectives, reported = self.losses(batch)
        for p in self.params.values():
            p.grad = None
        objectives.sum().backward()  # the models share no parameter: the gradient of the sum is every model's own
        if self.first.clip_norm is not None:
            clip = clip_by_member if self.stacked else nn.utils.clip_grad_norm_
            clip(list(self.params.values()), self.first.clip_norm)
        self.optimizer.step()
        if self.reported is None:
            kind = torch.float32 if self.device.type == "mps" else torch.float64
            self.reports = list(reported)
            self.reported = torch.zeros(CHUNK, len(self.group), 1 + len(reported), dtype=kind, device=self.device)
        row = torch.stack([objectives, *(reported[name] for name in self.reports)], 1).detach()
        self.reported.index_copy_(0, self.cursor, row[None].to(self.reported.dtype))
        self.cursor += 1

    def replay(self) -> None:
        """update() as a CUDA graph. The first ones run as they are: the graph needs what they allocate."""
        if self.warm_up:
            self.warm_up -= 1
            self.side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.side):
                self.update()
            torch.cuda.current_stream().wait_stream(self.side)
            return
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self.graph):  # records, and runs nothing
                self.update()
        self.graph.replay()

    def load(self, chunk: int) -> None:
        """Have the batches of this chunk under the cursor."""
        if chunk == self.chunk:
            return
        batches, self.chunk = self.ahead.pop(chunk, None) or self.sample(chunk), chunk
        if not self.graph:
            self.batches = batches
        for key, values in batches.items() if self.graph else ():  # it reads them where they were when it was recorded
            self.batches[key].copy_(values)

    def set_rate(self, lr: float) -> None:
        """The rate of the next update. Groups of parameters keep the ratio of their rates."""
        if lr == self.lr:
            return
        for options, scale in zip(self.options, self.scales, strict=True):
            if isinstance(options["lr"], torch.Tensor):
                options["lr"].fill_(lr * scale)
            elif options["lr"] != lr * scale:  # a number is part of the graph: it is captured anew
                options["lr"], self.graph, self.warm_up = lr * scale, None, 3
        self.lr = lr

    def seed(self, purpose: int) -> None:
        """Seed all that models draw from by themselves (dropout), for the update of this number or what else it is."""
        seed_all(self.generators, (self.own_draws + purpose) % 2**63)
        if self.device.type == "mps":
            torch.mps.manual_seed((self.own_draws + purpose) % 2**63)

    def make(self, lr: float) -> None:
        """Make one update at this rate."""
        self.set_rate(lr)
        self.seed(self.step)
        stepped = []
        watch = register_optimizer_step_post_hook(lambda optimizer, *_: stepped.append(optimizer))
        with faults_name([], self.first.loss), watch:
            self.replay() if self.captured else self.update()
            for kind in (type(optimizer).__name__ for optimizer in stepped if optimizer not in self.optimizers):
                raise ValueError(f"optimizer() must keep the {kind} that makes steps too in what it returns")
            if not self.checked:
                self.checked = True
                self.held()
        self.step += 1

    def advance(self, n: int, stop) -> tuple[list[float], list[dict[str, list[float]]]]:
        """Make n updates within one chunk, fewer once stop.value is true. The objectives of all members, and of every
        member what its loss reported, by name. NotFiniteError if one of them is not finite."""
        first, start = self.step, self.step % CHUNK
        if n:
            self.load(self.step // CHUNK)
        self.cursor.fill_(start)
        while self.step < first + n and not stop.value:
            self.make(self.group[0].rates[self.step])
        following = first // CHUNK + 1
        if self.captured and following not in self.ahead and following * CHUNK < self.last:
            self.ahead = {following: self.sample(following)}  # drawn while the GPU works
        if self.step == first:
            return [], [{} for _ in self.group]
        reported = self.reported[start : start + self.step - first].cpu()  # [n, E, 1 + reports]
        for member, progress in enumerate(self.group):  # one that has ended early may do what it likes
            finite = reported[:, member].isfinite()
            if not progress.done and not finite.all():
                update = finite.all(1).int().argmin().item()
                which = finite[update].int().argmin().item()
                raise progress.not_finite(first + update + 1, self.reports[which - 1] if which else "the loss")
        self.check_rates()
        by_member = [dict(zip(self.reports, own[:, 1:].T.tolist(), strict=True)) for own in reported.unbind(1)]
        return reported[..., 0].flatten().tolist(), by_member

    def check_rates(self) -> None:
        rates = [float(options["lr"]) for options in self.options]
        if not np.allclose(rates, [self.lr * scale for scale in self.scales], rtol=1e-6, atol=1e-30):  # float32 tensors
            raise RuntimeError("a schedule belongs in learning_rate(): elsewhere nothing notices what depends on it")

    @torch.no_grad()
    def observe(self, member: int):
        """What the trajectory of this member reads off its model."""
        if self.stacked:
            for name, value in itertools.chain(self.model.named_parameters(), self.model.named_buffers()):
                value.copy_((self.params | self.buffers)[name][member])
        self.seed(2**62 + self.step)
        self.model.eval()
        with self.precision():
            observed = self.group[member].trajectory.observe(self.model, self.step)
        self.model.train()
        return observed

    def holdings(self) -> Iterator[tuple]:
        return holdings({"model": self.model, "optimizer": self.optimizer}, self.names)

    def held(self) -> dict[str, dict]:
        """What a checkpoint holds, of all members: the model's weights (parameters and persistent buffers), its other
        buffers, and what else of model and optimizer is not as it was made, by path. ValueError names what it cannot
        hold."""
        params = {}
        for name, p in self.model.named_parameters(remove_duplicate=False):  # tied parameters have several names
            if id(p) not in self.names:
                raise ValueError(f"a model must keep its parameters: {name} was replaced")
            params[name] = self.params[self.names[id(p)]]
        buffers = self.buffers if self.stacked else dict(self.model.named_buffers(remove_duplicate=False))  # as now
        lasting = {name: buffers[name] for name in buffers.keys() & self.model.state_dict().keys()}
        changed, there = {}, set()
        for path, value, has_parts in self.holdings():
            there.add(path)
            rate = "param_groups" in path and path[-1] in ("lr", "capturable")  # set_rate knows it
            if rate or path in self.start and self.start[path] == digest(value, has_parts):
                continue
            if savable(value, self.names):
                changed[path] = value
            elif not isinstance(value, dict | list) or path not in self.start and type(value) is not dict:
                known = "numbers, text, tensors, and lists and dicts of them"
                raise ValueError(f"{dotted(path)} changes in training: checkpoints hold {known}, not {value!r:.80}")
        for path in self.start.keys() - there:
            if not any(path[:length] in changed for length in range(len(path))):
                raise ValueError(f"{dotted(path)} is removed in training: checkpoints do not tell")
        others = {name: buffer for name, buffer in buffers.items() if name not in lasting}
        return {"weights": params | lasting, "buffers": others, "changed": changed}

    def states(self) -> list[dict]:
        """What a checkpoint holds, of every member, on the CPU."""

        def part(value, member: int | None):
            if isinstance(value, dict):
                return {key: part(inner, member) for key, inner in value.items()}
            if isinstance(value, list | tuple):
                return type(value)(part(inner, member) for inner in value)
            if isinstance(value, torch.Tensor):  # of what goes by elements only numbers for all members have no axis
                return (value[member] if member is not None and value.ndim else value).detach().cpu().clone()
            return value

        held, members = self.held(), range(len(self.group)) if self.stacked else [None]
        changed = held.pop("changed")
        return [
            part(held, member)
            | {"changed": {path: part(changed[path], member if "optimizer" in path else None) for path in changed}}
            for member in members
        ]

    @torch.no_grad()
    def restore(self) -> None:
        """Continue where the checkpoints of all members, of the same step, stopped."""

        def merged(there, values: list):
            """The members' values as one, in the tensors, lists and dicts that are there: others may hold them too."""
            first = values[0]
            if isinstance(first, torch.Tensor):
                own = isinstance(there, torch.Tensor)
                value = torch.stack(values) if self.stacked and own and there.ndim else first
                alike = own and (there.shape, there.dtype) == (value.shape, value.dtype)
                return there.copy_(value) if alike else value.to(self.device, copy=True)
            if isinstance(first, dict):
                known = there if isinstance(there, dict) else {}
                new = {key: merged(known.get(key), [value[key] for value in values]) for key in first}
            elif isinstance(first, list | tuple):
                known = [*there][: len(first)] if isinstance(there, list | tuple) else []
                pairs = itertools.zip_longest(known, zip(*values, strict=True))
                new = type(first)(merged(*pair) for pair in pairs)
            else:
                return first
            if type(there) is not type(new):
                return new
            if isinstance(new, tuple):
                return there if [*map(id, there)] == [*map(id, new)] else new
            there.clear()
            there.update(new) if isinstance(new, dict) else there.extend(new)
            return there

        def place(holder, values: list, key, *rest):
            """Put the members' values where this path leads from the holder; dicts on it may be new."""
            items = isinstance(holder, dict | list | tuple) and key != "__dict__"
            if isinstance(key, tuple):
                key = self.params[key[0]] if key[0] in self.params else list(holder)[key[0]]
            try:
                there = holder[key] if items else getattr(holder, key)
            except (LookupError, AttributeError):
                there = None
            value = place({} if there is None else there, values, *rest) if rest else merged(there, values)
            if isinstance(holder, list) and key == len(holder):
                holder.append(value)
            elif value is not there:
                holder.__setitem__(key, value) if items else object.__setattr__(holder, key, value)
            return holder

        if self.stacked:  # an update makes the state that tells what each member has of its own
            for p in self.params.values():
                p.grad = torch.zeros_like(p)
            self.optimizer.step()
        saved, held = [progress.state for progress in self.group], self.held()
        for path in saved[0]["changed"]:
            roots = {"model": self.model, "optimizer": self.optimizer}
            try:
                place(roots, [state["changed"][path] for state in saved], *path)
            except Exception as error:
                raise ValueError(f"a checkpoint cannot bring back {dotted(path)}: {error}") from error
        for kind in ("weights", "buffers"):  # last, for an attribute may share memory with one of them
            for name, value in merged({**held[kind]}, [state[kind] for state in saved]).items():
                if value is not held[kind].get(name):  # made in training, or of another shape then
                    owner, _, last = name.rpartition(".")
                    self.model.get_submodule(owner)._buffers[last] = value
        self.step = self.group[0].step


def tensors_of(parts: dict) -> dict[str, torch.Tensor]:
    """The tensors in a member's state, or in other dicts and lists, by name and in float64."""
    parts = parts | {"changed": {dotted(path): value for path, value in parts.get("changed", {}).items()}}
    tensors = ((name, x) for name, x in leaves(parts) if isinstance(x, torch.Tensor))
    return {name: (torch.view_as_real(x) if x.is_complex() else x).cpu().double() for name, x in tensors}


def check_continuation(trajectory: Trajectory, device: torch.device) -> None:
    """ValueError with the name of what a checkpoint does not bring back: of two copies of the model that make three
    updates one is continued after the first, and is as the other, to the bit on a CPU."""
    whole, part = Ensemble([Progress(trajectory)], device), Progress(trajectory)
    whole.load(0)
    whole.make(whole.peak)
    part.step, part.state = 1, torch.load(io.BytesIO(serialized(whole.states()[0])), weights_only=True)
    continued = Ensemble([part], device)
    continued.restore()
    continued.load(0)
    continued.cursor.fill_(1)
    for ensemble in 2 * [whole, continued]:
        ensemble.make(ensemble.peak)
        ensemble.check_rates()
    wanted, found = (tensors_of(ensemble.states()[0]) for ensemble in (whole, continued))
    for name in wanted.keys() & found.keys():
        size = wanted[name].nan_to_num(0.0, 0.0, 0.0).norm()
        if not less(found[name], wanted[name]).norm() <= (0 if device.type == "cpu" else 1e-3) * size:
            raise ValueError(
                f"a checkpoint does not hold all that {name} depends on, nor what batches() or loss() keep for later: "
                "continued, it is another one"
            )


def less(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a - b, and 0 where both are the same: also for infinity, as in a mask."""
    return torch.where((a == b) | a.isnan() & b.isnan(), 0.0, a - b)


def trial(group: list[Progress], device: torch.device, rung: str, training=True, nudge=0.0) -> list[dict]:
    """What updates make of the first and of the last model, on copies and in float32: the last gradients, what is
    reported and observed, and what parameters, buffers and the optimizer's state are less what they were, by name.

    After four updates at half the highest rate, in which a graph is captured, come four at the highest; if there is a
    next chunk of batches, they lead into it. nudge: how far off parameters start, relative to their size.
    """
    ensemble = Ensemble(group, device, rung)
    ensemble.reduced = False
    if group[0].step:
        ensemble.restore()
    following = (ensemble.step // CHUNK + 1) * CHUNK
    if following < ensemble.last:
        ensemble.step = following - 6
    ensemble.model.train(training)
    generator = torch.Generator().manual_seed(0)
    for p in ensemble.params.values():
        if p.is_floating_point() or p.is_complex():
            p.data.mul_(1 + nudge * (2 * torch.rand(p.shape, generator=generator).to(p) - 1))

    ends = sorted({0, len(group) - 1})
    starts = [tensors_of(ensemble.states()[member]) for member in ends]
    for update in range(8):
        ensemble.load(ensemble.step // CHUNK)
        ensemble.cursor.fill_(ensemble.step % CHUNK)
        ensemble.make(ensemble.peak * (0.5 if update < 4 else 1.0))
    ensemble.step, found = min({*ensemble.first.measured, *ensemble.first.cells}), []
    for member, start in zip(ends, starts, strict=True):
        grads = {name: p.grad for name, p in ensemble.params.items() if p.grad is not None}
        grads = {name: grad[member] if ensemble.stacked else grad for name, grad in grads.items()}
        state = tensors_of(ensemble.states()[member])
        changes = {name: less(end, start.get(name, torch.zeros(()))) for name, end in state.items()}
        told = {"reported": ensemble.reported[:, member], "observed": ensemble.observe(member)}
        found.append(tensors_of({"gradients": grads} | told) | changes)
    return found


def disagreement(group: list[Progress], device: torch.device, rung: str) -> str | None:
    """How this rung fails, or differs from plain PyTorch by more than 1e-4 and what rounding explains: ten times the
    effect of parameters that are off by 1e-6, and of all gradients together at most a hundredth or, where they jump
    (at the kinks of ReLU), that effect itself up to a tenth. None if it does not.
    """

    def positions() -> bytes:
        numpys = [g.bit_generator.state for g in draws.generators if isinstance(g, np.random.Generator)]
        ways = [getattr(g, "get_state", getattr(g, "getstate", lambda: None)) for g in draws.generators]
        return pickle.dumps((numpys, [way() for way in ways]))

    ends = list(dict.fromkeys([group[0], group[-1]]))
    draws = Ensemble(ends[:1], device)
    draws.load(draws.step // CHUNK)
    draws.seed(draws.step)
    before = positions()
    draws.make(draws.peak)
    training = positions() == before  # else without its draws
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        plain, nudged = ([trial([p], device, "plain", training, nudge)[0] for p in ends] for nudge in (0.0, 1e-6))
        try:
            fast = trial(group, device, rung, training)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    finally:
        torch.set_float32_matmul_precision(precision)
    for progress, ours, theirs, near in zip(ends, fast, plain, nudged, strict=True):
        if ours.keys() != theirs.keys():
            return f"{min(ours.keys() ^ theirs.keys())} of {progress.trajectory.name} is on one side alone"
        errors, rounding = ({name: less(x[name], theirs[name]).norm() for name in theirs} for x in (ours, near))
        sizes = {name: wanted.nan_to_num(0.0, 0.0, 0.0).norm() for name, wanted in theirs.items()}
        for name, size in sizes.items():
            if not errors[name] <= 1e-4 * size + 10 * rounding[name]:
                return f"{name} of {progress.trajectory.name} differs by {errors[name]:.1e}, is {size:.1e}"
        grads = [name for name in theirs if name.startswith("gradients.")]
        error, size, noise = (torch.stack([x[name] for name in grads]).norm() for x in (errors, sizes, rounding))
        if not error <= min(max(1e-2 * size, noise), 0.1 * size):
            return f"the gradient of {progress.trajectory.name} differs by {error:.1e}, is {size:.1e}"
    return None


def train_group(run: "RunDirectory", group: list[Progress], device: torch.device, rung: str, report, stop) -> None:
    """Train a group on this rung of the ladder; where that fails, in halves if memory is short, else on the next."""
    waiting = [(group, rung)]
    while waiting and not stop.value:
        group, rung = waiting.pop(0)
        if rung == "plain":
            for progress in group:
                if not stop.value:
                    train(run, [progress], device, rung, report, stop)
            continue
        try:
            with faults_name(group):
                fault, parts = disagreement(group, device, rung), 1
            if not fault:
                train(run, group, device, rung, report, stop)
                continue
        except torch.OutOfMemoryError:
            fault, parts = "out of memory", min(2, len(group))
        except FastPathError as error:
            fault, parts = str(error), 1
        counted = len(group) * max(progress.step for progress in group)  # one that has ended is counted with the others
        for progress in group:
            progress.restart()
            run.load(progress)
        steps = [progress.trajectory.updates if progress.done else progress.step for progress in group]
        report(0, sum(steps) - counted, math.nan)
        left = [progress for progress in group if not progress.done]
        following = rung if parts == 2 else list(RUNGS)[list(RUNGS).index(rung) + 1]
        how = "in halves" if parts == 2 else RUNGS[following]
        who = f"{len(group)} models ({group[0].trajectory.name}, ..)"
        print(one_line(f"{who} not {RUNGS[rung]}: {fault}; now {how}", 1000), file=sys.stderr, flush=True)
        size = -(-len(left) // parts)
        waiting[:0] = [(left[i : i + size], following) for i in range(0, len(left), max(1, size))]
        if device.type == "cuda":
            torch.cuda.empty_cache()


@contextlib.contextmanager
def fast_path(rung: str):
    """A fault while this lasts is one of the rung, if there is a lower one that can tell whether it is the study's."""
    try:
        yield
    except Exception as error:
        if rung == "plain" or isinstance(error, torch.OutOfMemoryError):
            raise
        raise FastPathError(f"{type(error).__name__}: {error}") from error


def train(run: "RunDirectory", group: list[Progress], device: torch.device, rung: str, report, stop) -> None:
    """Train trajectories of one shape and step to their ends, or until stop.value; measure and checkpoint on the way.

    report(updates, skipped, loss) tells of updates that were made, and of those that an early end saves.
    """
    first, saved, rehearsed = group[0].trajectory, time.monotonic(), False
    measured = {*first.measured, *first.cells}
    threads = ThreadPoolExecutor(min(len(group), cpu_count()), initializer=prepare_thread, initargs=(device,))
    with faults_name(group), threads:
        list(threads.map(lambda progress: progress.trajectory.data, group))
        if not group[0].step:
            check_continuation(first, device)
        ensemble = Ensemble(group, device, rung)
        if group[0].step:
            ensemble.restore()
        for progress in group:
            progress.rungs += [rung] * (rung not in progress.rungs)
        report(0, 0, math.nan)
        for goal in sorted({*range(CHUNK, first.updates, CHUNK), *measured}):
            if goal < ensemble.step or goal == ensemble.step and (goal > 0 or group[0].points):
                continue
            with fast_path(rung):
                objectives, reported = ensemble.advance(goal - ensemble.step, stop)
            live = [e for e, progress in enumerate(group) if not progress.done]
            for e in live:
                group[e].step = ensemble.step
                for name, values in reported[e].items():
                    group[e].recent.setdefault(name, deque(maxlen=first.window)).extend(values)
            report(len(objectives), 0, np.mean(objectives) if objectives else math.nan)
            if ensemble.step == goal and goal in measured:
                with fast_path(rung):
                    observed = [ensemble.observe(e) for e in live]
                list(threads.map(Progress.measure, [group[e] for e in live], observed))
                for progress in (group[e] for e in live if goal and (goal == min(first.cells) or not rehearsed)):
                    with faults_name([progress], n=goal if goal in first.cells else None):
                        run.contents([progress.rehearsal()], {})  # fails now rather than at the end
                rehearsed = rehearsed or goal > 0
            for e in live if run.track else ():
                run.track(*tracked(group[e], reported[e]))
            due = goal in first.cells or time.monotonic() - saved > CHECKPOINT_SECONDS
            if due or stop.value or any(group[e].done for e in live):
                with fast_path(rung):
                    states = ensemble.states()
                for e in live:
                    group[e].seconds += (time.monotonic() - saved) / len(live)
                list(threads.map(run.save, [group[e] for e in live], [states[e] for e in live]))
                saved = time.monotonic()
            if all(progress.done for progress in group):
                return report(0, len(group) * (first.updates - ensemble.step), math.nan)
            if stop.value:
                return


def members_that_fit(group: list[Progress], device: torch.device) -> int:
    """How many of these models fit the GPU's free memory together, by the measured peaks of one and of two."""

    def peak(members: list[Progress]) -> int:
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        tried = Ensemble(members, device, "captured")
        tried.advance(min(5, tried.last), SimpleNamespace(value=False))
        tried.observe(0)
        return torch.cuda.max_memory_allocated(device) - before

    try:
        one, two = peak(group[:1]), peak(group[:2])
    except torch.OutOfMemoryError:
        return 1
    except Exception:  # whoever trains them finds out why
        return len(group)
    torch.cuda.empty_cache()
    return max(1, 1 + int((0.8 * torch.cuda.mem_get_info(device)[0] - one) / max(1, two - one)))


def plan_groups(plan: list[Progress], device: torch.device, rung: str = "captured") -> list[tuple[list[Progress], str]]:
    """Which trajectories train together, and from which rung of the ladder on: on a GPU as many as fit that do the same
    from the same step on, elsewhere each alone."""
    if device.type != "cuda" or rung == "plain":
        return [([progress], "plain") for progress in plan]
    alike = {}
    for progress in plan:
        t = progress.trajectory
        shape = (t,) if t.shape is None else t.shape
        same = (type(t), shape, progress.step, tuple(t.cells), t.measured, t.window, t.clip_norm)
        alike.setdefault((same, tuple(progress.rates)), []).append(progress)
    groups = []
    for group in alike.values():
        alone = Ensemble(group[:1], torch.device("cpu"))
        kinds = {type(optimizer) for optimizer in (alone.optimizer, *alone.optimizers)}
        hooks = [o for o in alone.optimizers if o._optimizer_step_pre_hooks or o._optimizer_step_post_hooks]
        stacks = kinds <= ELEMENTWISE and not hooks
        size = 1 if len(group) == 1 or not stacks else members_that_fit(group, device)
        if size < len(group):
            print(f"{len(group)} models of one shape train in groups of {size}", flush=True)
        groups += [(group[i : i + size], rung if stacks else "plain") for i in range(0, len(group), size)]
    return groups


def prepare_thread(device: torch.device) -> None:
    """One core and one device per thread: both are properties of a thread in PyTorch."""
    torch.set_num_threads(1)
    if device.type == "cuda":
        torch.cuda.set_device(device)


def pick_device(config) -> torch.device:
    """The device that config.device asks for. UserError if this machine has none, or if the precision is unknown."""
    if not hasattr(config, "device"):
        raise TypeError("Config must have a field device: auto, cpu, cuda or mps")
    require(config, "device", config.device in ("auto", "cpu", "cuda", "mps"), "auto or cpu or cuda or mps")
    if hasattr(config, "precision"):
        known = ("float32", "tf32", "bf16")
        require(config, "precision", config.precision in known, " or ".join(known))
        torch.set_float32_matmul_precision("high" if config.precision == "tf32" else "highest")
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    name = next(name for name in there if there[name]) if config.device == "auto" else config.device
    require(config, "device", there[name], "a device that this machine has; auto picks one")
    if name != "cuda":
        return torch.device(name)
    return torch.device("cuda", from_torchrun("LOCAL_RANK", 0) % torch.cuda.device_count())


def from_torchrun(name: str, otherwise: int) -> int:
    """A number that torchrun tells its processes. UserError if the variable holds none."""
    told = os.environ.get(name, "").strip() or str(otherwise)
    if not told.isdecimal():
        raise UserError(f"{name}={told}: must be a whole number, as torchrun sets it")
    return int(told)


def cpu_count() -> int:
    """Cores that this process may use; under torchrun its share of them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    ranks = from_torchrun("LOCAL_WORLD_SIZE", 1) if from_torchrun("WORLD_SIZE", 1) > 1 else 1
    return max(1, cores // max(1, ranks))


class Bar(tqdm):
    monitor_interval = 0  # no thread, for processes are forked


class Tally:
    """Updates of all models: a bar on a terminal, elsewhere at most one plain line per 5% on standard output."""

    def __init__(self, plan: list[Progress], workers: int, silent: bool):
        total = sum(progress.trajectory.updates for progress in plan)
        done = sum(progress.trajectory.updates if progress.done else progress.step for progress in plan)
        self.terminal, self.silent = not silent and sys.stderr.isatty(), silent
        self.trained, self.started = 0, None
        self.announce = min(workers * CHUNK, total - done)  # updates from which the speed is known
        file = sys.stderr if self.terminal else io.StringIO()
        self.bar = Bar(total=total, initial=done, unit="step", smoothing=0, file=file, disable=False)
        if not self.terminal:
            self.bar.mininterval = math.inf
            self.bar.bar_format = "progress: {n_fmt} of {total_fmt} steps{postfix}, {remaining} left"

    def report(self, updates: int, skipped: int, loss: float) -> None:
        """Count updates that were made, with their mean loss, and updates that an early end saves. The first call
        starts the clock: what came before is not paid for every update."""
        if not self.trained:
            self.bar.start_t = self.started = self.started or time.time()
        share, self.trained = 20 * self.bar.n // self.bar.total, self.trained + updates
        self.bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
        self.bar.update(updates + skipped)
        known = self.trained - updates < self.announce <= self.trained
        if not (self.silent or self.terminal) and updates and (known or 20 * self.bar.n // self.bar.total > share):
            print(self.bar, flush=True)


class Interrupted(BaseException):
    """SIGINT or SIGTERM, by its number, has ended the run."""


class WorkerError(Exception):
    """What a process that trains has failed of: lines for standard error."""


@contextlib.contextmanager
def on_signals(handle):
    """While this lasts, SIGINT and SIGTERM call handle(number, frame) if this is the thread that gets them."""
    with contextlib.ExitStack() as restore:
        for number in (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ():
            restore.callback(signal.signal, number, signal.signal(number, handle) or signal.SIG_DFL)
        yield


def work(run: "RunDirectory", progress: Progress, device: torch.device, connection, stop) -> None:
    """Train one trajectory in this process, which ends with the one that started it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the process that started this one sets stop

    def end_with_parent():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.cuda.is_available = lambda: False  # optimizers then ask the GPU, which a forked process cannot
    try:
        run.close()  # the lock is that of the process that started this one
        prepare_thread(device)
        run.load(progress)
        run.track = run.track and (lambda *tracked: connection.send(tracked))
        train(run, [progress], device, "plain", lambda *report: connection.send(report), stop)
    except BaseException as error:
        connection.send(describe(error, run.study, run.again))
    connection.send("")


def train_in_processes(run: "RunDirectory", plan: list[Progress], device, workers: int, tally: Tally, stop) -> None:
    """One trajectory after the other in each of `workers` processes of one core. WorkerError as soon as one fails."""
    # A fork shares what is imported and costs milliseconds; elsewhere it is not safe.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    torch.optim.SGD([torch.zeros(())], lr=0.0)  # the first optimizer of a process imports for seconds
    waiting, running, ended = [progress for progress in plan if not progress.done], {}, set()
    try:
        while running or waiting and not stop.value:
            while waiting and len(running) < workers and not stop.value:
                progress = waiting.pop(0)
                ours, theirs = context.Pipe(duplex=False)
                process = context.Process(target=work, args=(run, progress, device, theirs, stop))
                process.start()
                theirs.close()
                running[ours] = progress, process
            for connection in multiprocessing.connection.wait(running):
                progress, process = running[connection]
                try:
                    message = connection.recv()
                except (EOFError, ConnectionResetError):
                    process.join()
                    del running[connection]
                    if connection not in ended:
                        code = process.exitcode
                        how = f"was killed by signal {-code}" if code < 0 else f"ended with status {code}"
                        with faults_name([progress]):
                            raise RuntimeError(f"the process that trained it {how}") from None
                    continue
                if message == "":
                    ended.add(connection)
                    continue
                if isinstance(message, str):
                    raise WorkerError(message)
                if len(message) == 2:
                    run.track(*message)
                    continue
                progress.step += message[0]
                tally.report(*message)
    finally:
        for _, process in running.values():
            process.kill()
            process.join()


def train_all(run: "RunDirectory", plan: list[Progress], device: torch.device, rung: str, silent: bool) -> int:
    """Train the trajectories of this process and return the number of updates. Interrupted after a signal.

    On a CPU every model has a process of one core: two side by side on two cores are faster than one model on both, no
    number depends on how many cores there are, and what a model draws by itself comes from a generator of its own.
    """
    left = [progress for progress in plan if not progress.done]
    workers = min(len(left), cpu_count()) if device.type == "cpu" and rung != "plain" else 1
    tally = Tally(plan, workers, silent)
    stop, signals = multiprocessing.RawValue("b", False), []

    def handle(number, frame):
        now = time.monotonic()
        if signals and now - signals[0][1] > 1:  # the second signal ends the process at once; timeout(1) sends two
            with contextlib.suppress(OSError):
                os.write(2, f"{run.study.path.name}: killed by a second signal: {run.again}\n".encode())
            os._exit(128 + number)
        signals.append((number, now))
        stop.value = True

    with on_signals(handle), contextlib.closing(tally.bar):
        if device.type == "cpu" and rung != "plain":
            train_in_processes(run, left, device, workers, tally, stop)
        else:
            for group, highest in plan_groups(left, device, rung):
                for progress in group:
                    run.load(progress)
                train_group(run, group, device, highest, tally.report, stop)
                for progress in group:
                    progress.state = None
    if signals:
        raise Interrupted(signals[0][0])
    return tally.trained


# ==== Trackers ========================================================================================================

TRACKER_SECONDS = 60  # that a tracker has at the end for what it still holds


def tensorboard_logger(path: Path, run_id: str, stem: str, first: int, settings: dict) -> tuple[Callable, Callable]:
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(path / "tensorboard" / stem, purge_step=first)  # a killed run was beyond its checkpoint
    return lambda step, numbers: [writer.add_scalar(*number, step) for number in numbers.items()], writer.close


def wandb_logger(path: Path, run_id: str, stem: str, first: int, settings: dict) -> tuple[Callable, Callable]:
    import wandb

    for name in ("WANDB_SWEEP_ID", "WANDB_SWEEP_PARAM_PATH"):  # of a sweep there is one run, not one per trajectory
        os.environ.pop(name, None)
    where = {"dir": os.environ.get("WANDB_DIR", path), "group": path.name, "name": stem, "id": run_id}
    quiet = wandb.Settings(console="off", silent=True)
    run = wandb.init(**where, config=settings, resume="allow", reinit="create_new", settings=quiet)
    return lambda step, numbers: run.log(numbers, step=step), run.finish


# Each opens the tracker's run of a trajectory, and gives what logs numbers there and what closes it.
TRACKERS = {"tensorboard": tensorboard_logger, "wandb": wandb_logger}


def no_tracker(kind: str, why: str) -> str:
    return one_line(f"--track {kind} has ended, the run goes on: {why}", 1000)


def log_all(kind: str, run: "RunDirectory", connection, sender) -> None:
    """Log (stem, [(step, numbers)]) as they arrive, in a process of its own, until the sender is closed or killed."""
    sender.close()
    run.close()  # the lock is that of the process that started this one
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # whoever started this one ends it
    errors, nowhere = os.fdopen(os.dup(2), "w"), os.open(os.devnull, os.O_WRONLY)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    sys.stdout = sys.stderr = open(os.devnull, "w")
    arrived, loggers = queue.SimpleQueue(), {}

    def receive():  # also while a logger hangs: the sender never waits
        with contextlib.suppress(EOFError, OSError):
            while True:
                arrived.put(connection.recv())
        arrived.put(None)

    threading.Thread(target=receive, daemon=True).start()
    try:
        while message := arrived.get():
            stem, rows = message
            if rows and stem not in loggers:
                run_id = hashlib.sha256(f"{run.key} {stem}".encode()).hexdigest()[:16]
                loggers[stem] = TRACKERS[kind](run.path, run_id, stem, rows[0][0], asdict(run.config))
            for step, numbers in rows:
                loggers[stem][0](step, numbers)
        for _, close in loggers.values():
            close()
    except BaseException as error:
        print(no_tracker(kind, f"{type(error).__name__}: {error}"), file=errors, flush=True)
        while message:
            message = arrived.get()
    os._exit(0)  # whatever threads a tracker has


class Tracker:
    """Hands numbers to a process that logs them: a tracker that fails, hangs or prints harms no training."""

    def __init__(self, kind: str, run: "RunDirectory"):
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        theirs, self.connection = context.Pipe(duplex=False)
        self.kind, self.lost = kind, False
        self.process = context.Process(target=log_all, args=(kind, run, theirs, self.connection))
        self.process.start()
        theirs.close()

    def __call__(self, *message) -> None:
        try:
            if not self.lost:
                self.connection.send(message)
        except OSError as error:
            self.lost = True
            print(no_tracker(self.kind, f"its process does not listen ({error})"), file=sys.stderr, flush=True)

    def close(self) -> None:
        self()  # the end
        try:
            self.process.join(TRACKER_SECONDS)
        finally:
            if self.process.is_alive():
                self.process.kill()
                why = f"it was not ready {TRACKER_SECONDS} seconds after the training"
                print(no_tracker(self.kind, why), file=sys.stderr, flush=True)


def tracked(progress: Progress, reported: dict[str, list[float]]) -> tuple[str, list[tuple[int, dict]]]:
    """What a tracker gets after some updates: what loss() reported of each, and what was measured, but for lists."""
    names = [f"train/{name}" for name in reported]
    updates = [dict(zip(names, row, strict=True)) for row in zip(*reported.values(), strict=True)]
    rows = [*enumerate(updates, progress.step - len(updates) + 1)]
    if progress.points and progress.points[-1]["step"] == progress.step:
        numbers = {name: x for name, x in leaves(progress.points[-1]) if isinstance(x, Real) and name != "step"}
        rows.append((progress.step, {name: x for name, x in numbers.items() if not re.search(r"\.\d+(\.|$)", name)}))
    return progress.trajectory.stem, rows


# ==== The folder of a run =============================================================================================


class WriteError(Exception):
    """A file of the run could not be written; what was written before is intact."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write, flush and rename: a reader sees the old file or the new one, never a part. WriteError if it fails."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise WriteError(f"cannot write {path}: {error.strerror}") from None


def strict_json(value) -> bytes:
    """JSON in which NaN and infinity are null, with every list of numbers on a line."""
    strict = json.loads(json.dumps(value), parse_constant=lambda constant: None)
    text = re.sub(r"(?<=\[)\n +(?=[-\dn])|(?<=[\dl])\n *(?=\])", "", json.dumps(strict, indent=1))
    return (re.sub(r",\n +(?=[-\dn])", ", ", text) + "\n").encode()


def read_json(path: Path) -> dict:
    """What the file holds; nothing if it is not there, damaged or no object."""
    try:
        return dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError):
        return {}


def definition(thing) -> str:
    """Source of a function or class, with the values of its constants and defaults, and with what its module has put in
    its place, or in that of a method, since."""
    text, now = inspect.getsource(thing), sys.modules[thing.__module__]
    for name in thing.__qualname__.split("."):
        now = getattr(now, name, None)
    for key, part in [("", now), *(vars(now).items() if inspect.isclass(now) else ())]:
        original = part is thing or key and getattr(part, "__qualname__", None) == f"{thing.__qualname__}.{key}"
        part = inspect.unwrap(getattr(part, "func", getattr(part, "fget", getattr(part, "__func__", part))))
        if inspect.isroutine(part) or not key:
            text += "" if original else f"{key} {getattr(part, '__qualname__', part)} in its place"
            with contextlib.suppress(OSError, TypeError):  # a dataclass has methods without source
                text += inspect.getsource(part) * (inspect.getsource(part) not in text)
            values = [*(getattr(part, "__defaults__", ()) or ()), *(getattr(part, "__kwdefaults__", ()) or {}).items()]
            text += "".join(repr(value) for value in values if savable(value, {}))
        elif not key.startswith("__") and savable(part, {}):
            text += f"{key} = {part!r}"
    return text


def environment(study: Study, device: torch.device) -> dict[str, str]:
    """What the numbers may depend on besides the configuration."""

    def sha256(content: bytes) -> str:
        return hashlib.sha256(content).hexdigest()

    cuda_name = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "device": device.type,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "device_name": cuda_name or f"{platform.machine()}, {cpu_count()} cores",
        "script_sha256": sha256(source_of(str(study.path))),
        "harness_sha256": sha256(source_of(__file__)),
        "yardstick_sha256": sha256("".join(map(definition, (*study.yardstick, *YARDSTICK_HERE))).encode()),
    }


class RunDirectory:
    """The folder of a run. While it trains: a fingerprint and a checkpoint per trajectory. At the end: the results."""

    OWN = (
        "script_sha256",
        "harness_sha256",
        "yardstick_sha256",
        "device",
    )  # what tells a run besides its configuration
    RESULTS = ("all_results.json", "cells.csv", "final_info.json")  # in this order: who sees the last one sees all

    def __init__(self, path: Path, study: Study, config, device: torch.device, overwrite: bool = False):
        self.path = path = path.absolute()  # a study may go to another folder
        self.study, self.config, self.overwrite = study, config, overwrite
        self.lock, self.opened, self.track = None, False, None
        self.checkpoints, self.models = path / "checkpoint", path / "models"
        self.marker = self.checkpoints / "fingerprint.json"  # there from the first update until the results are
        self.environment = environment(study, device)
        own = {"config": asdict(config)} | {key: self.environment[key] for key in self.OWN}
        self.fingerprint = json.loads(strict_json(own))
        self.doubt = ""  # why the run in the folder is no part of this one
        self.found, self.earlier = {}, []  # what all_results.json has had of this run, or of a part of it

    @property
    def key(self) -> str | None:
        """What tells this run from every other one, as long as it is trained: a tracker continues its runs by it."""
        return read_json(self.marker).get("key")

    @property
    def again(self) -> str:
        """What continues this run."""
        return f"the same command {'without --overwrite ' * self.overwrite}continues"

    def holder(self) -> dict | None:
        """Fingerprint of the run that the folder holds, None if there is none. UserError if it cannot be told."""
        paths = [self.marker, self.path / "all_results.json", self.path / "final_info.json"]
        for found in map(read_json, paths[:2]):
            own = found.get("environment", found)
            if isinstance(found.get("config"), dict) and isinstance(own, dict):
                return {"config": found["config"]} | {key: own.get(key) for key in self.OWN}
        for path in filter(Path.exists, paths):
            raise UserError(self.refusal(f"holds a run, and nothing that is whole tells which ({path.name} is there)"))
        return None

    def refusal(self, why: str) -> str:
        return f"--out_dir {self.path}: {why}; must be a new folder, one of the same run, or come with --overwrite"

    def changed(self, found: dict) -> str:
        """What differs between the run in the folder and this one. A field that the older run does not have means its
        default."""
        defaults, hashes = json.loads(strict_json(asdict(self.study.Config()))), self.OWN[:3]
        told = (found, self.fingerprint)
        was, now = (defaults | run["config"] | {key: str(run.get(key))[:8] for key in hashes} for run in told)
        if was == now:  # of the same configuration, "auto" has picked another device
            was, now = found, self.fingerprint
        return ", ".join(f"{key} {was.get(key)} -> {now.get(key)}" for key in was | now if was.get(key) != now.get(key))

    def recall(self, plan: list[Progress]) -> bool:
        """Bring those trajectories to their ends that all_results.json has, if it is whole and of this run or of one
        that has fewer cells and else is the same."""
        results = read_json(self.path / "all_results.json")
        try:
            if any(results["environment"][key] != self.environment[key] for key in self.OWN):
                return False
            now = self.fingerprint["config"]
            same = results["config"] == now
            was = {key: tuple(value) if isinstance(value, list) else value for key, value in results["config"].items()}
            alike = {key: getattr(self.config, key) for key in was if results["config"][key] == now[key]}
            config = self.config if same else self.study.Config(**was | alike)  # JSON has no infinity
            was, cells = planned(self.study, config), {(cell["cell"], cell["seed"]): cell for cell in results["cells"]}
            for progress, told in zip(was, results["trajectories"], strict=True):
                t, curves = progress.trajectory, told["curves"]
                progress.cells = {name: cells.pop((name, t.seed)) for name in t.cells.values()}
                progress.points = [
                    dict(zip(curves, point, strict=True)) for point in zip(*curves.values(), strict=True)
                ]
                progress.extras = {key: value for key, value in told.items() if key not in (*TOLD, "curves")}
                progress.step, progress.rungs = progress.points[-1]["step"], told["rungs"]
                progress.seconds = results["timing"]["seconds_by_model"][t.stem]
            final_info = json.loads(self.contents(was, results["timing"])["final_info.json"])
            summary(final_info, results["timing"])  # fails here if it is not what a run writes
            told = read_json(self.path / "final_info.json")
            parts = [cell.keys() if isinstance(cell, dict) else () for cell in told.values()]
            whole = told and all({"means", "stderrs", "final_info_dict"} <= {*keys} for keys in parts)
            if cells or sum(len(p.cells) for p in was) < len(results["cells"]) or whole and told != final_info:
                return False
            pairs = list(zip(plan, was, strict=True)) if same else self.grown(plan, was, config)
        except Exception:
            return False
        for new, old in pairs:
            vars(new).update({key: getattr(old, key) for key in Progress.HELD})
        self.found, self.earlier = results, results.get("earlier_environments", [])
        if all(progress.done for progress in plan):  # what is written again is of the machine that trained it
            self.environment = results["environment"]
        elif self.environment != results["environment"]:
            self.earlier = [*self.earlier, results["environment"]]
        return True

    def grown(self, plan: list[Progress], was: list[Progress], config) -> list[tuple[Progress, Progress]]:
        """Pairs of a trajectory that needs no training and what it was in a run of this configuration. ValueError if a
        field that differs does not add cells alone, or changes what the first or the last of these makes."""

        def pairs(plan: list[Progress]) -> list[tuple[Progress, Progress]]:
            found = [(new, old) for old in was for new in plan if new.grows_from(old)]
            if len(found) < len(was) or sum(len(p.trajectory.cells) for p in plan) <= sum(len(p.cells) for p in was):
                raise ValueError("not a part of this run")
            return found

        for field in fields(config):
            value = getattr(self.config, field.name)
            if strict_json([value]) != strict_json([getattr(config, field.name)]):
                pairs(planned(self.study, replace(config, **{field.name: value})))
        kept = []
        for new, old in pairs(plan):
            one, other = new.trajectory, old.trajectory
            if (one.cells, one.measured) == (other.cells, other.measured):  # else it was another model at its end
                kept.append((new, old))
        for new, old in dict.fromkeys([*kept[:1], *kept[-1:]]):
            try:
                self.compare(new.trajectory, old)
            except Exception as error:
                self.doubt = f": {error}"
                raise
        return kept

    def compare(self, new: Trajectory, old: Progress) -> None:
        """ValueError if the methods of what the trajectory has become do not what those of the old one did."""
        again, last = Progress(new), max(0, new.updates - 1) // CHUNK * CHUNK
        for n in new.cells:
            again.points = [point for point in old.points if point["step"] <= n]
            again.reach({n})
        told, made = [], []
        for progress, t in ((again, new), (old, old.trajectory)):
            fresh, first = Ensemble([Progress(t)], torch.device("cpu")), min({*t.measured, *t.cells})
            _, (recent,) = fresh.advance(min(1, t.updates), SimpleNamespace(value=False))
            fresh.step = first
            numbers = plain(t.measure(fresh.observe(0), first, recent, []))
            early = [t.finished(old.points[: i + 1]) for i in range(len(old.points))]
            known = leaves([progress.cells, progress.extras, numbers, early])
            told.append(strict_json([leaf for leaf in known if leaf[1] is not None]))  # what a point lacks is null
            made.append(trial([Progress(t)], fresh.device, "plain")[0] | t.batches(last, CHUNK, fresh.device))
        absent = torch.zeros(0)
        every = [(name, *(found.get(name, absent) for found in made)) for name in made[0] | made[1]]
        differ = [name for name, *two in every if not torch.equal(*two)]
        if differ or told[0] != told[1]:
            what = differ[0] if differ else "what is measured or told"
            raise ValueError(f"what its methods read off config makes {what} of {new.name} another one")

    def open(self, plan: list[Progress], restarted: bool) -> None:
        """Lock the folder for this process and recall what it has of this run. UserError if it holds another."""
        missing, overwrite = [], self.overwrite and not restarted
        try:
            missing = [path for path in (self.path, *self.path.parents) if not path.exists()]
            if not missing and not self.path.is_dir():
                raise NotADirectoryError("is a file")
            self.path.mkdir(parents=True, exist_ok=True)
            if fcntl:
                self.lock = os.open(self.path, os.O_RDONLY)
                try:
                    fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except OSError as error:
                    if error.errno not in (errno.ENOLCK, errno.ENOTSUP):  # a file system without locks
                        raise
            if found := None if overwrite else self.holder():
                whole, running = self.recall(plan), bool(read_json(self.marker))
                if found != self.fingerprint and (running or not whole):
                    raise UserError(self.refusal(f"holds another run ({self.changed(found)}){self.doubt}"))
                if not whole and not running:
                    raise UserError(
                        self.refusal(
                            "holds a run whose all_results.json is not whole, or disagrees with final_info.json"
                        )
                    )
            self.opened = True
            stems = self.stems(plan)
            if overwrite:
                files = [f"{stem}.pt" for stem in stems]
                self.remove(self.path, *self.RESULTS)
                self.remove(self.checkpoints, self.marker.name, *files, *(f"{file}.damaged-*" for file in files))
                self.remove(self.models, *files)
                for stem in stems:
                    self.remove(self.path / "tensorboard" / stem, "events.out.tfevents.*")
                self.remove(self.path / "tensorboard")
            if not all(progress.done for progress in plan):
                held = {"stems": stems, "key": self.key or uuid.uuid4().hex}
                write_atomically(self.marker, strict_json(self.fingerprint | held))
        except BlockingIOError:
            raise UserError(f"--out_dir {self.path}: another process is running in it; must be a free folder") from None
        except (OSError, WriteError) as error:
            for path in (self.checkpoints, *missing):  # leave nothing behind, where it is empty
                with contextlib.suppress(OSError):
                    path.rmdir()
            raise UserError(f"--out_dir {self.path}: must be a folder that can be written ({error})") from None

    def __getstate__(self) -> dict:
        return self.__dict__ | {"lock": None, "track": bool(self.track)}  # what means nothing in another process

    def close(self) -> None:
        """Release the lock."""
        if self.lock is not None:
            os.close(self.lock)
            self.lock = None

    def abandon(self) -> None:
        """After a failure: a folder of this run in which nothing was saved is free for the next attempt."""
        if self.opened and not list(self.checkpoints.glob("*.pt*")):
            with contextlib.suppress(OSError):
                self.remove(self.checkpoints, self.marker.name)

    def stems(self, plan: list[Progress]) -> list[str]:
        """What files of cells are called: of this plan, and of the run that the folder holds, as far as it tells."""
        stems = [t.stem_at(n) for t in (progress.trajectory for progress in plan) for n in t.cells]
        marker, results = map(read_json, (self.marker, self.path / "all_results.json"))
        with contextlib.suppress(KeyError, TypeError):
            stems += map(str, marker.get("stems", ()))
            stems += [file_stem(cell["cell"], cell["seed"]) for cell in results.get("cells", ())]
        return list(dict.fromkeys(stems))

    def remove(self, folder: Path, *names: str) -> None:
        """Remove files of a run, what a killed process had begun of them, and a subfolder if nothing is left in it."""
        for path in [path for name in names for pattern in (name, f".{name}.tmp") for path in folder.glob(pattern)]:
            path.unlink()
        if folder != self.path and folder.exists() and not any(folder.iterdir()):
            folder.rmdir()

    def save(self, progress: Progress, state: dict) -> None:
        """Replace the trajectory's checkpoint, led by its SHA-256. It holds the models of cells that are reached."""
        trajectory = progress.trajectory
        for n, name in trajectory.cells.items():
            if name in progress.cells:
                progress.models.setdefault(trajectory.stem_at(n), state["weights"])
        held = {key: getattr(progress, key) for key in Progress.HELD} | {"state": state}
        content = serialized(held | {"recent": {name: list(values) for name, values in progress.recent.items()}})
        write_atomically(self.checkpoints / f"{trajectory.stem}.pt", self.seal(trajectory, content) + content)

    def seal(self, trajectory: Trajectory, content: bytes) -> bytes:
        """The first 32 bytes of a checkpoint: it is intact and belongs to this trajectory of this run."""
        return hashlib.sha256(strict_json([self.fingerprint, trajectory.stem]) + content).digest()

    def load(self, progress: Progress) -> None:
        """Bring a trajectory to its checkpoint, if it has one. A damaged one is set aside and training starts anew."""
        path = self.checkpoints / f"{progress.trajectory.stem}.pt"
        if not path.exists():
            return
        content = path.read_bytes()
        try:
            if self.seal(progress.trajectory, content[32:]) != content[:32]:
                raise ValueError
            saved = torch.load(io.BytesIO(content[32:]), weights_only=True)
        except Exception:
            aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
            path.rename(aside)
            print(f"{path} is damaged: set aside as {aside.name}, {progress.trajectory.stem} starts anew", flush=True)
            return
        window = progress.trajectory.window
        saved["recent"] = {name: deque(values, maxlen=window) for name, values in saved["recent"].items()}
        vars(progress).update(saved)

    def contents(self, plan: list[Progress], timing: dict) -> dict[str, bytes]:
        """The results of these trajectories, by the names of their files."""
        names = dict.fromkeys(name for progress in plan for name in progress.trajectory.cells.values())
        cells = {name: [progress.cells[name] for progress in plan if name in progress.cells] for name in names}
        trajectories, every = [], [cell for seeds in cells.values() for cell in seeds]
        for progress in plan:
            keys = dict.fromkeys(key for point in progress.points for key in point)
            curves = {key: [point.get(key) for point in progress.points] for key in keys}
            t = progress.trajectory
            told = dict(zip(TOLD, (t.name, t.seed, t.updates, progress.rungs), strict=True))
            trajectories.append(told | progress.extras | told | {"curves": curves})
        results = {"config": asdict(self.config), "environment": self.environment}
        results |= {"earlier_environments": self.earlier} if self.earlier else {}
        results |= {"trajectories": trajectories}
        timing = timing | {"seconds_by_model": {p.trajectory.stem: round(p.seconds, 2) for p in plan}}
        with faults_name([], self.study.headlines):
            headlines = self.study.headlines(self.config)
            final_info = strict_json({name: summarize(name, seeds, headlines) for name, seeds in cells.items()})
        rows, table = [dict(leaves(cell)) for cell in json.loads(strict_json(every))], io.StringIO()
        writer = csv.DictWriter(table, dict.fromkeys(key for row in rows for key in row), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        contents = (strict_json(results | {"cells": every, "timing": timing}), table.getvalue().encode())
        return dict(zip(self.RESULTS, (*contents, final_info), strict=True))

    def finish(self, plan: list[Progress], timing: dict, save_models: bool) -> None:
        """Write the results, remove the checkpoints, print the summary."""
        for name, content in self.contents(plan, timing).items():
            if not (self.path / name).is_file() or (self.path / name).read_bytes() != content:
                write_atomically(self.path / name, content)
        lacking = []
        for trajectory, models in ((progress.trajectory, progress.models) for progress in plan if save_models):
            for stem in map(trajectory.stem_at, trajectory.cells):
                if stem in models:
                    write_atomically(self.models / f"{stem}.pt", serialized(models[stem]))
                elif not (self.models / f"{stem}.pt").exists():
                    lacking.append(stem)
        self.remove(self.checkpoints, self.marker.name, *(f"{stem}.pt" for stem in self.stems(plan)))
        if lacking:
            why = "the checkpoints that had them went when the run was complete; --overwrite --save_models trains anew"
            print(f"no models of {one_line(', '.join(lacking), 300)}: {why}")
        print(summary(json.loads(content), timing), flush=True)


def serialized(value) -> bytes:
    torch.save(value, buffer := io.BytesIO())
    return buffer.getvalue()


def summarize(name: str, seeds: list[dict], headlines: tuple[str, ...]) -> dict:
    """What final_info.json holds of a cell: mean, standard error and the value of every seed of its headline numbers.

    The mean is over the seeds that have the number. Where not all do, beside it stand `<key>_k` of `<key>_n`.
    """
    entry = {"means": {}, "stderrs": {}, "final_info_dict": {}}
    for key in headlines:
        values = [cell.get(key, "missing") for cell in seeds]
        if not all(value is None or isinstance(value, Real) for value in values):
            has = ", ".join(seeds[0])
            raise TypeError(f"headline {key} of {name} must be a number or None, is {values!r:.100}; there are {has}")
        there = [value for value in values if value is not None]
        stderr = np.std(there, ddof=1) / math.sqrt(len(there)) if len(there) > 1 else 0.0
        entry["means"][f"{key}_mean"] = float(np.mean(there)) if there else None
        if len(there) < len(values):
            entry["means"] |= {f"{key}_k": len(there), f"{key}_n": len(values)}
        entry["stderrs"][f"{key}_stderr"] = float(stderr) if there else None
        entry["final_info_dict"][key] = values
    return entry


# What of the harness the headline numbers are measured with, beside a study's own yardstick.
YARDSTICK_HERE = (Ensemble.observe, Progress.measure, Progress.reach, summarize)


def summary(final_info: dict, timing: dict) -> str:
    """One greppable `key: value` line per number."""
    lines = []
    for cell, numbers in final_info.items():
        means = numbers["means"]
        for key in numbers["final_info_dict"]:
            mean = means[f"{key}_mean"]
            reached = f" ({means[f'{key}_k']} of {means[f'{key}_n']})" if f"{key}_k" in means else ""
            lines.append(f"{cell}_{key}: {math.nan if mean is None else mean:.4f}{reached}")
    return "\n".join([*lines, *(f"{key}: {value}" for key, value in timing.items())])


# ==== Main ============================================================================================================


def read_word(kind: type, optional: bool, word: str):
    """A flag's word as a number, text, path or boolean, or None where that is possible."""
    word = word[word.startswith(" -") :]  # see parse_arguments
    if optional and word.strip().lower() == "none":
        return None
    try:
        if not word.strip():
            raise ValueError
        booleans = {"true": True, "1": True, "false": False, "0": False}
        return booleans[word.strip().lower()] if kind is bool else kind(word)
    except (ValueError, KeyError):
        name = {float: "a number", int: "a whole number", bool: "true or false", str: "a word", Path: "a path"}[kind]
        raise argparse.ArgumentTypeError(
            f"{word.strip() or repr(word)} must be {name}{' or none' * optional}"
        ) from None


def parse_arguments(study: Study, argv: list[str]) -> tuple[object, argparse.Namespace]:
    """The configuration and the options of this call. UserError names a bad flag, its value and what is allowed.

    A field is a number, text, a boolean, a list or a pair of them (tuple[int, ...], tuple[int, int]), or one of these
    or None, which the command line calls "none". TypeError names a field that is none of these, or whose value is not.
    """

    class Parser(argparse.ArgumentParser):
        def error(self, message):
            raise UserError(message)

    Config, presets = study.Config, study.presets or {}
    comments = dict(re.findall(r"^    (\w+):.*?  # (.*)$", inspect.getsource(Config), re.M))
    parser = Parser(study.path.name, description=sys.modules[Config.__module__].__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    forms = {}  # of every field: kind of its values, their number (0: no tuple, None: any), whether it may be None
    hints = typing.get_type_hints(Config)
    for field, hint in ((field, hints[field.name]) for field in fields(Config)):
        parts = typing.get_args(hint)
        optional = type(None) in parts
        if optional and len(parts) == 2:
            (hint,) = [part for part in parts if part is not type(None)]
        kinds = typing.get_args(hint) if typing.get_origin(hint) is tuple else (hint,)
        kind = kinds[0] if kinds else None
        if kind not in (int, float, str, bool) or {*kinds} - {kind, ...} or field.default is MISSING:
            known = "a number, text, bool, tuple[int, ...], a pair, or one of these or None"
            raise TypeError(f"Config.{field.name} must be {known}, and have a default")
        length = (None if kinds[-1] is ... else len(kinds)) if typing.get_origin(hint) is tuple else 0
        forms[field.name] = kind, length, optional
        shown = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        parser.add_argument(
            f"--{field.name}",
            type=partial(read_word, kind, optional),
            nargs="*" if length != 0 else "?" if kind is bool else None,
            const=True if kind is bool and length == 0 else None,  # such a flag alone means true
            default=argparse.SUPPRESS,
            metavar="X",
            help=f"{comments.get(field.name, '')} (default {shown})".replace("%", "%%"),
        )
    if presets and "preset" not in forms:
        raise TypeError("Config must have a field preset: there are presets")
    path = partial(read_word, Path, False)
    parser.add_argument("--out_dir", type=path, default=Path("run_0"), help="where the results go (default run_0)")
    parser.add_argument("--overwrite", action="store_true", help="remove what another run wrote to OUT_DIR")
    parser.add_argument("--save_models", action="store_true", help="keep the weights of every cell in OUT_DIR/models")
    parser.add_argument("--track", choices=[*TRACKERS], help="also log every number there (default: nowhere)")
    parser.add_argument("--plain", action="store_true", help="train one model after the other, the plainest way")
    flag = ""
    for word in argv:  # an unset variable of a shell, say
        flag, word = (word.split("=", 1) if "=" in word else (word, word)) if word.startswith("--") else (flag, word)
        if not word.strip():
            raise UserError(f"{flag} {word!r}: must not be empty".lstrip())
    # No flag has a single dash: "-1e-4" is a value that is out of range, not a flag that is unknown.
    options = parser.parse_args([f" {word}" if re.match(r"-[^-h]", word) else word for word in argv])
    if options.track and not getattr(importlib.util.find_spec(options.track), "origin", None):
        raise UserError(f"--track {options.track}: must be installed (pip install {options.track})")
    given = {name: getattr(options, name) for name in forms if hasattr(options, name)}
    for name, words in given.items():
        length = forms[name][1]
        if length != 0:
            given[name] = None if words == [None] else tuple(words)
            if None in words and len(words) > 1 or length not in (None, len(words)) and words != [None]:
                raise UserError(f"--{name} {' '.join(map(str, words))}: must be {length or 'a list of'} values")
    preset = given.get("preset", getattr(Config, "preset", None))
    if presets and preset is not None and preset not in presets:
        raise UserError(f"--preset {preset}: must be {' or '.join(presets)}")
    values = {field.name: field.default for field in fields(Config)} | presets.get(preset, {}) | given
    for name, value in values.items():
        kind, length, optional = forms.get(name) or (None, 0, False)
        known = {int: int, float: (int, float)}.get(kind, kind or ())
        inner = value if isinstance(value, tuple) else (value,)
        fits = isinstance(value, tuple) == (length != 0) and length in (0, None, len(inner))
        if not (fits and all(isinstance(x, known) and (kind is bool or type(x) is not bool) for x in inner)):
            if not (optional and value is None):
                one = length != 0 and not isinstance(value, tuple) and value is not None
                known = inspect.formatannotation(hints[name]) if name in hints else "a field of Config"
                comma = f": {'a tuple is' if isinstance(value, list) else 'one value needs a comma,'} " * one
                comma += repr(tuple(value) if isinstance(value, list) else (value,)) * one
                where = f" (--preset {preset})" if name in presets.get(preset, {}) and name not in given else ""
                raise TypeError(f"Config.{name} = {value!r}{where} must be {known}{comma}")
    config = Config(**values)
    for name in (name for name, value in given.items() if value == ()):
        raise UserError(f"--{name}: must be one or more values")
    return config, options


def train_and_write(run: RunDirectory, options: argparse.Namespace, device: torch.device) -> None:
    """Train, measure and write what the command line asks for."""
    started = time.monotonic()
    prepare_thread(device)  # see train_all

    # Under torchrun every rank trains its share of the trajectories; the first one owns the folder.
    world = from_torchrun("WORLD_SIZE", 1)
    rank = from_torchrun("RANK", 0) if world > 1 else 0  # a variable that was left over makes no rank
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    plan = planned(run.study, run.config)  # before anything is written: it may refuse the configuration
    if rank == 0:
        run.open(plan, restarted=attempt != "0")
    if world > 1:
        store = next(dist.rendezvous("env://", rank, world, timeout=timedelta(days=30)))[0]
        store = dist.PrefixStore(attempt, store)  # not the last attempt's keys
        store.set("opened", "") if rank == 0 else store.wait(["opened"], timedelta(days=30))
    if rank > 0:
        run.recall(plan)
    complete = all(progress.done for progress in plan)
    if rank == 0 and complete:
        print(f"{run.path} is complete: nothing to train (--overwrite trains it anew)")
    elif rank == 0 and world > len(plan):
        print(f"{world} processes for {len(plan)} trajectories: {world - len(plan)} have nothing to do")

    own = [progress for progress in plan if not progress.done][rank::world]
    for progress in own:
        run.load(progress)
        progress.state = None  # who trains it reads it again
        if progress.step:
            print(f"continuing {progress.trajectory.stem} after step {progress.step}", flush=True)
    training_started = time.monotonic()
    tracker = contextlib.closing(Tracker(options.track, run)) if own and options.track else contextlib.nullcontext()
    with tracker as run.track:
        trained = train_all(run, own, device, "plain" if options.plain else "captured", silent=rank > 0) if own else 0
    if world > 1:
        trained = store.add("trained", trained)
        store.add("ended", 1)
        while rank == 0 and store.add("ended", 0) < world:
            time.sleep(0.1)
        trained = store.add("trained", 0)
    if rank > 0:
        return

    for progress in plan:
        run.load(progress)
        progress.state = None
        if not progress.done:
            raise WriteError(
                f"no checkpoint of {progress.trajectory.stem} in {run.path}, which all processes must share"
            )
    seconds = time.monotonic() - training_started
    timing = {
        "seconds_total": round(time.monotonic() - started, 2),
        "seconds_training": round(seconds, 2),
        "model_steps": trained,
        "model_steps_per_second": round(trained / seconds, 2) if seconds else None,
    }
    run.finish(plan, run.found["timing"] if complete else timing, options.save_models)


def one_line(text: str, room: int) -> str:
    """The text without line breaks, cut in the middle to at most `room` characters."""
    text = " ".join(text.split())
    return text if len(text) <= room else f"{text[: room // 2 - 5]} ... {text[-room // 2 :]}"


def describe(error: BaseException, study: Study, again: str = "") -> str:
    """Lines for the end of standard error, at most 1500 characters, which is what loops read: the last frames of the
    study, else of the harness, cells and exception, after those of its first cause. One line for what needs no frames.
    """
    name = study.path.name
    if isinstance(error, WorkerError):
        return str(error)
    if isinstance(error, NotFiniteError | WriteError):
        mended = f"; once that is mended {again}" if isinstance(error, WriteError) else ""
        return f"{name}: {error}{mended}"

    def frames(fault, n):
        frames = {str(study.path): [], __file__: []}
        for frame in traceback.extract_tb(fault.__traceback__):
            file = "" if frame.filename == str(study.path) else f"{Path(__file__).name} "
            line = f"  {file}line {frame.lineno} in {frame.name}: {frame.line[:100]}"
            frames.get(frame.filename, []).append(line)
        return (frames[str(study.path)] or frames[__file__])[-n:]

    def message(fault, room):
        return one_line(f"{type(fault).__name__}: {fault}", room)

    cause, seen = error, []
    while cause not in [None, *seen]:
        seen.append(cause)
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    lines = [*frames(seen[-1], 1), f"  {message(seen[-1], 200)}", "which led to"] if len(seen) > 1 else []
    lines += frames(error, 3)
    lines += [f"  {note[:200]}" for note in getattr(error, "__notes__", [])[-3:]]
    lines.append(f"{name} failed: ")
    return "\n".join(lines) + message(error, 1490 - len("\n".join(lines)))


class Output:
    """A standard stream that nobody may be reading: what cannot be written is lost, and nothing else is."""

    def __init__(self, stream):
        self.stream = stream  # None if it was closed when Python started
        self.own = stream is not None and stream in (sys.__stdout__, sys.__stderr__)
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            data = text.encode(getattr(self.stream, "encoding", None) or "utf-8", "backslashreplace")
            while data and self.own:  # past its buffer, which Python would fail to empty when it ends
                data = data[os.write(self.stream.fileno(), data) :]
            if data:
                self.stream.write(data.decode(self.stream.encoding or "utf-8"))
                self.stream.flush()
        return len(text)

    def flush(self) -> None:
        self.write("")

    def isatty(self) -> bool:
        with contextlib.suppress(OSError, ValueError, AttributeError):
            return self.stream.isatty()
        return False

    def __getattr__(self, name):
        return getattr(self.stream, name)


RUNNING = threading.RLock()  # random numbers, streams and warnings are those of a whole process


@contextlib.contextmanager
def as_found():
    """While this lasts, a stream or terminal that is gone ends nothing. Afterwards the program around has its threads,
    precision, random numbers, streams, warnings and signals as they were."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:  # it is closed: no file of the run may take its place
            os.open(os.devnull, os.O_RDWR)
    with RUNNING, contextlib.ExitStack() as restore:
        restore.callback(torch.set_num_threads, torch.get_num_threads())
        restore.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
        restore.callback(torch.set_rng_state, torch.get_rng_state())
        restore.callback(random.setstate, random.getstate())
        restore.callback(np.random.set_state, np.random.get_state())
        restore.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float32)
        restore.enter_context(torch.enable_grad())
        if torch.get_default_device().type != "cpu":
            restore.callback(torch.set_default_device, torch.get_default_device())
            torch.set_default_device(None)
        if torch.cuda.is_initialized():
            restore.callback(torch.cuda.set_device, torch.cuda.current_device())
        restore.enter_context(contextlib.redirect_stdout(Output(sys.stdout)))
        restore.enter_context(contextlib.redirect_stderr(Output(sys.stderr)))
        restore.enter_context(warnings.catch_warnings())
        if hasattr(signal, "SIGHUP") and threading.current_thread() is threading.main_thread():
            restore.callback(signal.signal, signal.SIGHUP, signal.signal(signal.SIGHUP, signal.SIG_IGN))
        yield


def run_study(study: Study, argv: list[str] | None = None) -> int:
    """Run a study with these arguments, else those of the command line; returns the exit status: 0 complete, 1 failed,
    2 bad input, 130 or 143 interrupted."""

    def interrupt(number, frame):
        raise Interrupted(number)

    argv, run, name = sys.argv[1:] if argv is None else argv, None, study.path.name
    with as_found():
        if not sys.stderr.isatty():
            warnings.simplefilter("ignore")  # loops read only the end of standard error
        try:
            alone = from_torchrun("WORLD_SIZE", 1) <= 1  # a rank that waits for others dies of the signal
            with on_signals(interrupt) if alone else contextlib.nullcontext():
                config, options = parse_arguments(study, argv)
                device = pick_device(config)
                run = RunDirectory(options.out_dir, study, config, device, options.overwrite)
                train_and_write(run, options, device)
                return 0
        except Interrupted as error:
            by, again = signal.Signals(error.args[0]).name, run.again if run else "the same command starts anew"
            print(f"interrupted by {by}: {again}", file=sys.stderr)
            return 128 + error.args[0]
        except BaseException as error:
            if isinstance(error, SystemExit) and {"-h", "--help"} & set(argv):
                raise
            if isinstance(error, UserError) and not hasattr(error, "__notes__"):  # of no cell
                print(f"{name}: {one_line(str(error), 1400)}", file=sys.stderr)
                return 2
            print(describe(error, study, run.again if run else ""), file=sys.stderr)
        finally:
            if run:
                run.close()
        if run and (alone or from_torchrun("RANK", 0) == 0):
            run.abandon()
        return 1


# ==== One file ========================================================================================================


def bundle(script: Path) -> str:
    """Source of one script that holds a study and, as a text line by line, the harness as the module it imports."""
    study, harness = (path.read_text("utf-8") for path in (script, Path(__file__)))
    if not re.search(r"\b(import|from) harness\b", study):
        raise ValueError(f"{script}: must be a study, which imports harness")
    node = ast.parse(study).body[0]
    head = node.end_lineno if isinstance(getattr(node, "value", None), ast.Constant) else 0  # what --help shows
    lines, quotes = study.splitlines(), "'" * 3
    before = [*lines[:head], "", "import sys", "import types", "", f"# {'=' * 10} harness.py {'=' * 10}", ""]
    after = [
        'sys.modules["harness"] = harness = types.ModuleType("harness")',
        "harness.__file__ = __file__",
        f'exec(compile("\\n" * {len(before)} + HARNESS, __file__, "exec"), vars(harness))  # its lines are those above',
        f"\n# {'=' * 10} {script.name} {'=' * 10}\n",
    ]
    whole = "\n".join([*before, f"HARNESS = r{quotes}{harness}{quotes}", *after, *lines[head:], ""])
    compile(whole, str(script), "exec")  # SyntaxError: an import from the future, say
    return whole


if __name__ == "__main__":
    command_line = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command_line.add_argument("command", choices=["bundle"], help="write a study and the harness as one script")
    command_line.add_argument("script", type=partial(read_word, Path, False), help="the study's experiment.py")
    command_line.add_argument(
        "-o", "--output", type=partial(read_word, Path, False), metavar="FILE", help="default: standard output"
    )
    asked = command_line.parse_args()
    try:
        if asked.output and asked.output.resolve() == asked.script.resolve():
            raise UserError(f"--output {asked.output}: must be another file than the study")
        single = bundle(asked.script)
        write_atomically(asked.output, single.encode()) if asked.output else print(single, end="")
    except (WriteError, OSError, ValueError, SyntaxError) as error:
        print(f"harness.py: {one_line(str(error), 1400)}", file=sys.stderr)
        sys.exit(2)
