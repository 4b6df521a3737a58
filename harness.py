"""What every single-script study rests on: flags, random streams, training, checkpoints, faults and results.

A study trains small models and measures them. It gives a `Config`, whose fields are its flags, and `plan(config)`, a
list of `Trajectory` objects: each is one model from its start to its last update, with methods that make its batches,
its loss and its numbers. `run_study` does the rest: it trains the trajectories side by side, continues a run that was
interrupted, and writes `final_info.json` and `all_results.json`.

    python harness.py bundle experiment.py > single.py    # a study and this file as one script
"""

import abc
import argparse
import ast
import builtins
import contextlib
import copy
import hashlib
import inspect
import io
import itertools
import json
import math
import multiprocessing
import multiprocessing.connection
import os
import platform
import re
import signal
import symtable
import sys
import threading
import time
import traceback
import typing
import warnings
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import MISSING, asdict, dataclass, fields, replace
from datetime import timedelta
from functools import cached_property, partial
from numbers import Real
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
import torch.distributed as dist
import torch.nn as nn
from tqdm import tqdm

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
        raise UserError(f"--{flag} {shown}: must be {allowed}")


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
    into the batches or learning_rate, for on a GPU the update is recorded once and replayed.
    """

    config: object  # the study's Config; its field `device` and, if it has one, `precision` concern the harness
    name: str  # in words that a person reads: "width=64, seed=0"
    seed: int
    cells: dict[int, str]  # the cells of the results that it serves, by their number of updates: {7500: "width_64"}
    streams: tuple  # what its random streams are named by: models that share it start and are trained alike
    measured: tuple[int, ...] = ()  # after which further updates it is measured; 0 is before the first
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
        """Numbers, lists of numbers or None made of what was observed after `update` updates and of what loss()
        reported in the last of them, oldest first ({} at the start). `points` are those before, each at a `step`."""

    def finished(self, points: list[dict]) -> bool:
        """Whether training may end early, by the measured points alone."""
        return False

    @abc.abstractmethod
    def cell(self, points: list[dict]) -> dict:
        """The numbers of a cell from the points measured up to it; None stands for "never". After an early end the last
        point has fewer updates than the cell."""

    def extras(self, points: list[dict]) -> dict:
        """What all_results.json keeps of the trajectory beside the curves of its points."""
        return {}


@dataclass(frozen=True)
class Study:
    """What a script hands to run_study."""

    Config: type  # a frozen dataclass with a comment per field; every field is a flag
    plan: Callable[[object], list[Trajectory]]  # the trajectories of a configuration
    headlines: tuple[str, ...]  # the numbers of a cell that final_info.json has
    yardstick: tuple  # the functions and classes that these are measured with: the results keep a hash of their source
    presets: dict[str, dict] | None = None  # by the value of Config's field `preset`: fields, below explicit flags

    @property
    def path(self) -> Path:
        """The study's script."""
        return Path(inspect.getfile(self.Config))


# ==== Training ========================================================================================================

CHUNK = 100  # updates whose batches are made at once: part of what defines the random streams
CHECKPOINT_SECONDS = 60
# Optimizers that treat every element of a tensor alike: on stacked parameters they do what they do on each model's.
ELEMENTWISE = "Adadelta Adagrad Adam Adamax AdamW ASGD NAdam RAdam RMSprop Rprop SGD".split()
ELEMENTWISE = tuple(getattr(torch.optim, name) for name in ELEMENTWISE)


class NotFiniteError(RuntimeError):
    """A loss or what was observed stopped being finite; the message names trajectory and step."""


def plain(value):
    """The value as plain JSON types, NaN and infinity included. TypeError if it cannot be stored."""
    return json.loads(json.dumps(value))


class Progress:
    """Where a trajectory stands: what its checkpoint holds."""

    def __init__(self, trajectory: Trajectory):
        self.trajectory = trajectory
        self.step, self.state = 0, None  # after which update, and models and optimizer there
        self.recent: dict[str, deque[float]] = {}  # what loss() reported in the last updates
        self.points: list[dict] = []  # what was measured, in the order of the steps
        self.cells: dict[str, dict] = {}  # the cells that are reached, all of them at an early end
        self.extras: dict = {}

    @property
    def done(self) -> bool:
        return len(self.cells) == len(self.trajectory.cells)

    def not_finite(self, step: int) -> NotFiniteError:
        return NotFiniteError(f"the loss is not finite at {self.trajectory.name}, step={step}")

    def measure(self, observed) -> None:
        """Add a point, and the cells that it completes. What results cannot hold fails here, not after hours."""
        trajectory = self.trajectory
        with faults_name_cells([self]):
            with faults_name(trajectory.observe):
                tensors = observed.values() if isinstance(observed, dict) else [observed]
                defined = all(not values.isnan().any() for values in tensors)
            if not defined:
                raise self.not_finite(self.step)
            recent = {name: list(values) for name, values in self.recent.items()}
            numbers = trajectory.measure(observed, self.step, recent, self.points)
            with faults_name(trajectory.measure):
                self.points.append(plain({"step": self.step} | numbers | {"step": self.step}))
            early = self.step < trajectory.updates and trajectory.finished(self.points)
            for n, name in trajectory.cells.items():
                if n == self.step or early and n > self.step:
                    with faults_name(trajectory.cell):
                        numbers = trajectory.cell(self.points)
                        self.cells[name] = plain({"cell": name, "seed": trajectory.seed, **numbers})
            if self.done:
                with faults_name(trajectory.extras):
                    self.extras = plain(trajectory.extras(self.points))


@contextlib.contextmanager
def faults_name_cells(group: list[Progress], n: int | None = None):
    """An exception raised while this lasts gets a note with the cells, at most four, that these trajectories are on
    their way to, or that of n updates."""
    try:
        yield
    except BaseException as error:
        if not any(note.startswith("in cell") for note in getattr(error, "__notes__", [])):
            cells = []
            for t, reached in ((progress.trajectory, progress.cells) for progress in group[:4]):
                left = [n for n, name in t.cells.items() if name not in reached] or t.cells
                cells.append(f"{t.cells[n or min(left)]} (seed {t.seed})")
            error.add_note(f"in cell {', '.join(cells)}, after step {group[0].step}")
        raise


@contextlib.contextmanager
def faults_name(method: Callable):
    """An exception raised while this lasts, and not in a study's own lines, gets a note with the study's method that it
    is about and the line where that begins."""
    try:
        yield
    except Exception as error:
        code = getattr(inspect.unwrap(method), "__code__", None)  # below decorators; None if it is no function
        if code and all(frame.filename != code.co_filename for frame in traceback.extract_tb(error.__traceback__)):
            where = f"{Path(code.co_filename).name} line {code.co_firstlineno}"
            error.add_note(f"{where}: {method.__qualname__}(), or what it returned")
        raise


def rates_of(progress: Progress, n: int) -> list[float]:
    """The learning rates of the n updates to a cell. ValueError if one is no rate."""
    with faults_name_cells([progress], n):
        rates = [progress.trajectory.learning_rate(update, n) for update in range(n)]
        for update, rate in enumerate(rates):
            if not (isinstance(rate, Real) and 0 <= rate < math.inf):
                raise ValueError(
                    f"learning_rate() must be a finite number of at least 0, is {rate!r} at update {update}"
                )
        return rates


def planned(study: Study, config) -> list[Progress]:
    """The trajectories of a study before their first update. One whose learning rates depend on how many updates there
    are is trained once for each of its cells: the model on its way to many updates is not that of few."""
    plan = []
    for trajectory in study.plan(config):
        progress = Progress(trajectory)
        rates = {n: rates_of(progress, n) for n in trajectory.cells}
        if all(rates[n] == rates[trajectory.updates][:n] for n in rates):
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


class Ensemble:
    """Models of trajectories of one shape, trained in lockstep.

    Stacked, on a GPU, all models are one program: their parameters are [E, ..], and one update of all of them is
    captured as a CUDA graph and replayed without host synchronization. Otherwise there is one model, in plain PyTorch.
    """

    def __init__(self, group: list[Progress], device: torch.device, stacked: bool):
        self.group, self.device, self.stacked = group, device, stacked
        self.first = group[0].trajectory
        self.step, self.last, self.lr = 0, self.first.updates, None
        models = []
        for progress in group:
            with faults_name_cells([progress]), torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(progress.trajectory.stream("initial weights").initial_seed())
                models.append(progress.trajectory.model().to(device))
        self.model = models[0]  # stacked: the plain model that members are put into
        self.objective = Objective(self.first, self.model)
        self.params, self.buffers = dict(self.model.named_parameters()), dict(self.model.named_buffers())
        if stacked:
            self.params, self.buffers = torch.func.stack_module_state(models)
        peak = max((self.first.learning_rate(update, self.last) for update in range(self.last)), default=0.0)
        with faults_name(self.first.optimizer):
            self.optimizer = self.first.optimizer(self.params, peak)
            self.scales = [float(options["lr"]) / peak if peak else 1.0 for options in self.optimizer.param_groups]
        if device.type == "cuda":  # a graph reads its learning rate from the device
            for options in self.optimizer.param_groups:
                if "capturable" in options:
                    options["capturable"], options["lr"] = True, torch.tensor(float(options["lr"]), device=device)
        self.chunk, self.batches, self.ahead = None, {}, {}
        self.reported, self.names = None, []
        self.cursor = torch.zeros(1, dtype=torch.int64, device=device)
        self.own_draws = self.first.stream("own draws").initial_seed()
        self.graphed, self.graph, self.warm_up = device.type == "cuda", None, 3
        self.side = torch.cuda.Stream(device) if device.type == "cuda" else None

    def sample(self, chunk: int) -> dict[str, torch.Tensor]:
        """Batches [CHUNK, E, ..] of the updates from chunk * CHUNK on."""
        with faults_name(self.first.batches):
            members = [p.trajectory.batches(chunk * CHUNK, CHUNK, self.device) for p in self.group]
            for key, values in members[0].items():
                if len(values) != CHUNK:
                    raise ValueError(f"batches() must give n = {CHUNK} batches, gives {len(values)} of {key}")
            return {key: torch.stack([batches[key].to(self.device) for batches in members], 1) for key in members[0]}

    def precision(self):
        bf16 = getattr(self.first.config, "precision", None) == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16, enabled=bf16)

    def losses(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Objectives and reported numbers [E] of every model on its batch [E, ..]."""
        with self.precision():
            if not self.stacked:
                objective, reported = self.first.loss(self.model, **{key: values[0] for key, values in batch.items()})
                return objective[None], {name: value[None] for name, value in reported.items()}

            def one(state, batch):
                return torch.func.functional_call(self.objective, state, (batch,))

            state = {f"model.{name}": value for name, value in (self.params | self.buffers).items()}
            return torch.vmap(one, randomness="different")(state, batch)

    def update(self) -> None:
        """One update of every model, on the batch under the cursor, without host synchronization."""
        batch = {key: values.index_select(0, self.cursor)[0] for key, values in self.batches.items()}
        objectives, reported = self.losses(batch)
        self.optimizer.zero_grad(set_to_none=True)
        objectives.sum().backward()  # the models share no parameter: the gradient of the sum is every model's own
        if self.first.clip_norm is not None:
            clip = clip_by_member if self.stacked else nn.utils.clip_grad_norm_
            clip(list(self.params.values()), self.first.clip_norm)
        self.optimizer.step()
        if self.reported is None:
            kind = torch.float32 if self.device.type == "mps" else torch.float64
            self.names = list(reported)
            self.reported = torch.zeros(CHUNK, len(self.group), 1 + len(reported), dtype=kind, device=self.device)
        row = torch.stack([objectives, *(reported[name] for name in self.names)], 1).detach()
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
        if lr == self.lr:
            return
        for options, scale in zip(self.optimizer.param_groups, self.scales, strict=True):
            if isinstance(options["lr"], torch.Tensor):
                options["lr"].fill_(lr * scale)
            elif options["lr"] != lr * scale:  # a number is part of the graph: it is captured anew
                options["lr"], self.graph, self.warm_up = lr * scale, None, 3
        self.lr = lr

    def seed_own_draws(self) -> None:
        """Seed the generators that models draw from by themselves (dropout), for the next update alone."""
        seed = (self.own_draws + self.step) % 2**63
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.default_generators[self.device.index or 0].manual_seed(seed)
        elif self.device.type == "mps":
            torch.mps.manual_seed(seed)

    def advance(self, n: int, stop) -> tuple[list[float], list[dict[str, list[float]]]]:
        """Make n updates within one chunk, fewer once stop.value is true. The objectives of all members, and of every
        member what its loss reported, by name. NotFiniteError if one of them is not finite."""
        first, start = self.step, self.step % CHUNK
        if n:
            self.load(self.step // CHUNK)
        self.cursor.fill_(start)
        while self.step < first + n and not stop.value:
            self.set_rate(self.first.learning_rate(self.step, self.last))
            self.seed_own_draws()
            with faults_name(self.first.loss):
                self.replay() if self.graphed else self.update()
            self.step += 1
        following = first // CHUNK + 1
        if self.graphed and following not in self.ahead and following * CHUNK < self.last:
            self.ahead = {following: self.sample(following)}  # drawn while the GPU works
        if self.step == first:
            return [], [{} for _ in self.group]
        reported = self.reported[start : start + self.step - first].cpu()  # [n, E, 1 + names]
        for member, progress in enumerate(self.group):  # one that has ended early may do what it likes
            if not progress.done and not (finite := reported[:, member].isfinite().all(1)).all():
                raise progress.not_finite(first + finite.int().argmin().item() + 1)
        rates = [float(options["lr"]) for options in self.optimizer.param_groups]
        if not np.allclose(rates, [self.lr * scale for scale in self.scales], rtol=1e-6, atol=1e-30):  # float32 tensors
            raise RuntimeError("a schedule belongs in learning_rate(): elsewhere nothing notices what depends on it")
        by_member = [dict(zip(self.names, own[:, 1:].T.tolist(), strict=True)) for own in reported.unbind(1)]
        return reported[..., 0].flatten().tolist(), by_member

    @torch.no_grad()
    def observe(self, member: int):
        """What the trajectory of this member reads off its model."""
        if self.stacked:
            for name, value in itertools.chain(self.model.named_parameters(), self.model.named_buffers()):
                value.copy_((self.params | self.buffers)[name][member])
        self.model.eval()
        with self.precision():
            observed = self.group[member].trajectory.observe(self.model, self.step)
        self.model.train()
        return observed

    def held(self) -> dict:
        """What a checkpoint holds, of all members: parameters, buffers and optimizer state by name, and options."""
        buffers = {name: buffer for name, buffer in self.buffers.items() if name in self.model.state_dict()}
        names = {id(p): name for name, p in self.model.named_parameters()}
        aliases = self.model.named_parameters(remove_duplicate=False)  # tied parameters have several names
        params = {alias: self.params[names[id(p)]] for alias, p in aliases}
        state = {name: self.optimizer.state[p] for name, p in self.params.items()}
        options = dict(enumerate(self.optimizer.param_groups))
        return {"parameters": params, "buffers": buffers, "optimizer": state, "options": options}

    def states(self) -> list[dict]:
        """What a checkpoint holds, of every member, on the CPU."""

        def part(value, member: int):
            if isinstance(value, dict):
                return {key: part(inner, member) for key, inner in value.items() if key != "params"}
            if isinstance(value, torch.Tensor):  # of what goes by elements only numbers for all members have no axis
                return (value[member] if self.stacked and value.ndim else value).detach().cpu().clone()
            return copy.deepcopy(value)

        return [part(self.held(), member) for member in range(len(self.group))]

    @torch.no_grad()
    def restore(self) -> None:
        """Continue where the checkpoints of all members, of the same step, stopped."""

        def fill(target: dict, values: list[dict]):
            for key in target.keys() - values[0].keys() - {"params"}:
                del target[key]
            for key, value in values[0].items():
                if isinstance(value, dict):
                    fill(target[key], [own[key] for own in values])
                elif isinstance(target.get(key), torch.Tensor):
                    stack = self.stacked and target[key].ndim > 0
                    target[key].copy_(torch.stack([own[key] for own in values]) if stack else torch.as_tensor(value))
                else:
                    target[key] = value

        for p in self.params.values():
            p.grad = torch.zeros_like(p)
        self.optimizer.step()  # makes the state that is filled now
        fill(self.held(), [progress.state for progress in self.group])
        self.step = self.group[0].step


def train(run: "RunDirectory", group: list[Progress], device: torch.device, stacked: bool, report, stop) -> None:
    """Train trajectories of one shape and step to their ends, or until stop.value; measure and checkpoint on the way.

    report(updates, skipped, loss) tells of updates that were made, and of those that an early end saves.
    """
    first, saved = group[0].trajectory, time.monotonic()
    measured = {*first.measured, *first.cells}
    members = ThreadPoolExecutor(min(len(group), cpu_count()), initializer=prepare_thread, initargs=(device,))
    with faults_name_cells(group), members:

        def each(function, *arguments):  # one alone stays in this thread
            if len(group) == 1:
                return list(function(*values) for values in zip(*arguments, strict=True))
            return list(members.map(function, *arguments))

        each(lambda progress: progress.trajectory.data, group)
        ensemble = Ensemble(group, device, stacked)
        if group[0].step:
            ensemble.restore()
        report(0, 0, math.nan)
        for goal in sorted({*range(CHUNK, first.updates, CHUNK), *measured}):
            if goal < ensemble.step or goal == ensemble.step and (goal > 0 or group[0].points):
                continue
            objectives, reported = ensemble.advance(goal - ensemble.step, stop)
            live = [e for e, progress in enumerate(group) if not progress.done]
            for e in live:
                group[e].step = ensemble.step
                for name, values in reported[e].items():
                    group[e].recent.setdefault(name, deque(maxlen=first.window)).extend(values)
            report(len(objectives), 0, np.mean(objectives) if objectives else math.nan)
            if ensemble.step == goal and goal in measured:
                each(Progress.measure, [group[e] for e in live], [ensemble.observe(e) for e in live])
                for name, cell in ((name, cell) for e in live for name, cell in group[e].cells.items()):
                    summarize(name, [cell], run.study.headlines)  # fails now rather than at the end
            due = goal in first.cells or time.monotonic() - saved > CHECKPOINT_SECONDS
            if due or stop.value or any(group[e].done for e in live):
                states = ensemble.states()
                each(run.save, [group[e] for e in live], [states[e] for e in live])
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
        trial = Ensemble(members, device, stacked=True)
        trial.advance(min(5, trial.last), SimpleNamespace(value=False))
        trial.observe(0)
        return torch.cuda.max_memory_allocated(device) - before

    try:
        one, two = peak(group[:1]), peak(group[:2])
    except torch.cuda.OutOfMemoryError:
        return 1
    torch.cuda.empty_cache()
    return max(1, 1 + int((0.8 * torch.cuda.mem_get_info(device)[0] - one) / max(1, two - one)))


def plan_groups(plan: list[Progress], device: torch.device) -> list[tuple[list[Progress], bool]]:
    """Which trajectories train together, and whether stacked: on a GPU as many as fit that do the same from the same
    step on, elsewhere each alone."""
    if device.type != "cuda":
        return [([progress], False) for progress in plan]
    alike = {}
    for progress in plan:
        t = progress.trajectory
        shape = (t,) if t.shape is None else t.shape
        same = (type(t), shape, progress.step, tuple(t.cells), t.measured, t.window, t.clip_norm)
        alike.setdefault((same, tuple(rates_of(progress, t.updates))), []).append(progress)
    groups = []
    for group in alike.values():
        size = 1
        if len(group) > 1:
            one = Ensemble(group[:1], torch.device("cpu"), stacked=False)
            size = members_that_fit(group, device) if type(one.optimizer) in ELEMENTWISE else 1
        if size < len(group):
            print(f"{len(group)} models of one shape train in groups of {size}", flush=True)
        groups += [(group[i : i + size], size > 1) for i in range(0, len(group), size)]
    return groups


def prepare_thread(device: torch.device) -> None:
    """One core and one device per thread: both are properties of a thread in PyTorch."""
    torch.set_num_threads(1)
    if device.type == "cuda":
        torch.cuda.set_device(device)


def pick_device(config) -> torch.device:
    """The device that config.device asks for. UserError if this machine has none, or if the precision is unknown."""
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
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())


def cpu_count() -> int:
    """Cores that this process may use; under torchrun its share of them."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


class Tally:
    """Updates of all models: a bar on a terminal, elsewhere at most one plain line per 5% on standard output."""

    def __init__(self, plan: list[Progress], workers: int, silent: bool):
        self.total = sum(progress.trajectory.updates for progress in plan)
        self.done = sum(progress.trajectory.updates if progress.done else progress.step for progress in plan)
        self.trained, self.started = 0, None
        self.announce = min(workers * CHUNK, self.total - self.done)  # updates from which the speed is known
        self.silent = silent
        self.bar = tqdm(total=self.total, initial=self.done, unit="step", disable=silent or not sys.stderr.isatty())

    def report(self, updates: int, skipped: int, loss: float) -> None:
        """Count updates that were made, with their mean loss, and updates that an early end saves. The first call
        starts the clock: what came before is not paid for every update."""
        self.started = self.started or time.monotonic()
        before, self.done, self.trained = self.done, self.done + updates + skipped, self.trained + updates
        self.bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
        self.bar.update(updates + skipped)
        if self.silent or not self.bar.disable or not updates:
            return
        left = (time.monotonic() - self.started) / self.trained * (self.total - self.done) / 60
        if self.trained - updates < self.announce <= self.trained:
            print(f"expected to take {left:.1f} min for the other {self.total - self.done} model steps", flush=True)
        if 20 * self.done // self.total > 20 * before // self.total:
            print(f"progress: {self.done} of {self.total} steps, loss {loss:.3f}, {left:.1f} min left", flush=True)


class Interrupted(BaseException):
    """SIGINT or SIGTERM, by its number, has ended the run."""


class WorkerError(Exception):
    """What a process that trains has failed of: lines for standard error."""


@contextlib.contextmanager
def on_signals(handle):
    """While this lasts, SIGINT and SIGTERM call handle(number, frame)."""
    with contextlib.ExitStack() as restore:
        for number in (signal.SIGINT, signal.SIGTERM):
            restore.callback(signal.signal, number, signal.signal(number, handle))
        yield


def work(run: "RunDirectory", progress: Progress, device: torch.device, connection, stop) -> None:
    """Train one trajectory in this process, which ends with the one that started it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the process that started this one sets stop

    def end_with_parent():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        run.close()  # the lock is that of the process that started this one
        prepare_thread(device)
        run.load(progress)
        train(run, [progress], device, False, lambda *report: connection.send(report), stop)
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
                        with faults_name_cells([progress]):
                            raise RuntimeError(f"the process that trained it {how}") from None
                    continue
                if message == "":
                    ended.add(connection)
                    continue
                if isinstance(message, str):
                    raise WorkerError(message)
                progress.step += message[0]
                tally.report(*message)
    finally:
        for _, process in running.values():
            process.kill()
            process.join()


def train_all(run: "RunDirectory", plan: list[Progress], device: torch.device, silent: bool) -> int:
    """Train the trajectories of this process and return the number of updates. Interrupted after a signal.

    On a CPU every model has a process of one core: two side by side on two cores are faster than one model on both, no
    number depends on how many cores there are, and what a model draws by itself comes from a generator of its own.
    """
    workers = min(sum(not progress.done for progress in plan), cpu_count()) if device.type == "cpu" else 1
    tally = Tally(plan, workers, silent)
    stop, signals = multiprocessing.RawValue("b", False), []

    def handle(number, frame):
        if signals:  # the second signal ends the process at once
            os._exit(128 + number)
        signals.append(number)
        stop.value = True

    with on_signals(handle), contextlib.closing(tally.bar):
        if workers > 1:
            train_in_processes(run, plan, device, workers, tally, stop)
        else:
            for group, stacked in plan_groups([progress for progress in plan if not progress.done], device):
                for progress in group:
                    run.load(progress)
                train(run, group, device, stacked, tally.report, stop)
                for progress in group:
                    progress.state = None
                if stop.value:
                    break
    if signals:
        raise Interrupted(signals[0])
    return tally.trained


# ==== The folder of a run =============================================================================================


class WriteError(Exception):
    """A file of the run could not be written; what was written before is intact."""


def write_atomically(path: Path, content: bytes) -> None:
    """Write, flush and rename: a reader sees the old file or the new one, never a part. WriteError if it fails."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
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
    """JSON in which NaN and infinity are null."""
    strict = json.loads(json.dumps(value), parse_constant=lambda constant: None)
    return (json.dumps(strict, indent=1) + "\n").encode()


def patterns(cells) -> list[str]:
    """What the files of these cells are called in the folders of a run."""
    return [f"{file_stem(cell, '[0-9]*')}.pt" for cell in cells]


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
        "device_name": cuda_name or f"{platform.machine()}, {cpu_count()} cores",
        "script_sha256": sha256(study.path.read_bytes()),
        "harness_sha256": sha256(Path(__file__).read_bytes()),
        "yardstick_sha256": sha256("".join(map(inspect.getsource, (*study.yardstick, *YARDSTICK_HERE))).encode()),
    }


class RunDirectory:
    """The folder of a run. While it trains: a fingerprint and a checkpoint per trajectory. At the end: the results."""

    OWN = ("script_sha256", "harness_sha256", "device")  # what tells a run besides its configuration

    def __init__(self, path: Path, study: Study, config, device: torch.device, overwrite: bool = False):
        self.path, self.study, self.config, self.overwrite = path, study, config, overwrite
        self.lock, self.opened = None, False
        self.checkpoints, self.models = path / "checkpoint", path / "models"
        self.results = [path / "final_info.json", path / "all_results.json"]
        self.environment = environment(study, device)  # read now: a loop may edit the script while it runs
        own = {"config": asdict(config)} | {key: self.environment[key] for key in self.OWN}
        self.fingerprint = json.loads(strict_json(own))

    def found(self) -> dict | None:
        """Fingerprint of the run that the folder holds: {} if it cannot be told, None if there is no run."""
        try:
            if (self.checkpoints / "fingerprint.json").exists():
                found = json.loads((self.checkpoints / "fingerprint.json").read_bytes())
                return {"config": dict(found["config"])} | {key: found.get(key) for key in self.OWN}
            if self.results[1].exists():
                results = json.loads(self.results[1].read_bytes())
                return {"config": dict(results["config"])} | {k: results["environment"].get(k) for k in self.OWN}
        except (ValueError, KeyError, TypeError, AttributeError):
            return {}
        return {} if self.results[0].exists() else None

    @property
    def again(self) -> str:
        """What continues this run."""
        return f"the same command {'without --overwrite ' * self.overwrite}continues"

    def cells_found(self) -> list[str]:
        """The cells of the run that the folder holds, as far as it tells."""
        cells = []
        for path, key in ((self.checkpoints / "fingerprint.json", "cells"), (self.results[0], None)):
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
                found = json.loads(path.read_bytes())
                cells += list(found[key] if key else found)
        return [cell for cell in cells if isinstance(cell, str)]

    def open(self, plan: list[Progress], restarted: bool) -> bool:
        """Lock the folder for this process. True if it holds this run complete; UserError if it holds another."""
        missing, overwrite = [], self.overwrite and not restarted
        cells = list(dict.fromkeys(cell for progress in plan for cell in progress.trajectory.cells.values()))
        try:
            missing = [path for path in (self.path, *self.path.parents) if not path.exists()]
            if not missing and not self.path.is_dir():
                raise NotADirectoryError("is a file")
            self.path.mkdir(parents=True, exist_ok=True)
            if fcntl:
                self.lock = os.open(self.path, os.O_RDONLY)
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = self.found()
            if found not in (None, self.fingerprint) and not overwrite:
                raise UserError(
                    f"--out_dir {self.path}: holds another run ({self.changed(found)}); must be a new folder, "
                    "one of the same run, or come with --overwrite"
                )
            self.opened = True
            self.remove_temporary()
            files = patterns(dict.fromkeys([*cells, *self.cells_found()]))
            if overwrite:
                damaged = [f"{pattern}.damaged-*" for pattern in files]
                self.remove(self.path, "final_info.json", "all_results.json")
                self.remove(self.checkpoints, "fingerprint.json", *files, *damaged)
                self.remove(self.models, *files)
            elif all(path.exists() for path in self.results) and not (self.checkpoints / "fingerprint.json").exists():
                self.remove(self.checkpoints, *files)
                return True
            write_atomically(self.checkpoints / "fingerprint.json", strict_json(self.fingerprint | {"cells": cells}))
        except BlockingIOError:
            raise UserError(f"--out_dir {self.path}: another process is running in it; must be a free folder") from None
        except (OSError, WriteError) as error:
            for path in missing:  # leave nothing behind
                with contextlib.suppress(OSError):
                    path.rmdir()
            raise UserError(f"--out_dir {self.path}: must be a folder that can be written ({error})") from None
        return False

    def changed(self, found: dict) -> str:
        """What differs between the run in the folder and this one. A field that the older run does not have means its
        default."""
        if not found:
            return "no readable fingerprint"
        defaults, hashes = json.loads(strict_json(asdict(self.study.Config()))), self.OWN[:2]
        told = (found, self.fingerprint)
        was, now = (defaults | run["config"] | {key: run.get(key) for key in hashes} for run in told)
        if was == now:  # of the same configuration, "auto" has picked another device
            was, now = found, self.fingerprint
        return ", ".join(f"{key} {was.get(key)} -> {now[key]}" for key in now if was.get(key) != now[key])

    def __getstate__(self) -> dict:
        return self.__dict__ | {"lock": None}  # a file descriptor means nothing in a process that is not a fork

    def close(self) -> None:
        """Release the lock."""
        if self.lock is not None:
            os.close(self.lock)

    def abandon(self) -> None:
        """After a failure: a folder of this run in which nothing was saved is free for the next attempt."""
        if self.opened:
            with contextlib.suppress(OSError):
                self.remove_temporary()
                if not list(self.checkpoints.glob("*.pt*")):
                    self.remove(self.checkpoints, "fingerprint.json")

    def remove(self, folder: Path, *patterns: str) -> None:
        """Remove files of a run, and a subfolder if nothing else is in it."""
        for path in [path for pattern in patterns for path in folder.glob(pattern)]:
            path.unlink()
        if folder != self.path and folder.exists() and not any(folder.iterdir()):
            folder.rmdir()

    def remove_temporary(self) -> None:
        """Remove what a killed process had begun to write."""
        for folder in (self.path, self.checkpoints, self.models):
            self.remove(folder, ".*.json.*.tmp", ".*_s[0-9]*.pt.*.tmp")

    def save(self, progress: Progress, state: dict) -> None:
        """Replace the trajectory's checkpoint, led by its SHA-256; at a cell also save that model."""

        def serialized(value) -> bytes:
            torch.save(value, buffer := io.BytesIO())
            return buffer.getvalue()

        seen = {"points": progress.points, "cells": progress.cells, "extras": progress.extras}
        seen["recent"] = {name: list(values) for name, values in progress.recent.items()}
        content = serialized({"step": progress.step, "state": state, **seen})
        trajectory = progress.trajectory
        for n in trajectory.cells:
            if n == progress.step or progress.done and n > progress.step:
                model = serialized(state["parameters"] | state["buffers"])
                write_atomically(self.models / f"{trajectory.stem_at(n)}.pt", model)
        # After the model: what a checkpoint says is done is not done again.
        write_atomically(self.checkpoints / f"{trajectory.stem}.pt", self.seal(content) + content)

    def seal(self, content: bytes) -> bytes:
        """The first 32 bytes of a checkpoint: it is intact and belongs to this run."""
        return hashlib.sha256(strict_json(self.fingerprint) + content).digest()

    def load(self, progress: Progress) -> None:
        """Bring a trajectory to its checkpoint, if it has one. A damaged one is set aside and training starts anew."""
        path = self.checkpoints / f"{progress.trajectory.stem}.pt"
        if not path.exists():
            return
        content = path.read_bytes()
        try:
            if self.seal(content[32:]) != content[:32]:
                raise ValueError
            saved = torch.load(io.BytesIO(content[32:]), weights_only=True)
        except Exception:
            aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
            path.rename(aside)
            print(f"{path} is damaged: set aside as {aside.name}, {progress.trajectory.stem} starts anew", flush=True)
            return
        for key in ("step", "state", "points", "cells", "extras"):
            setattr(progress, key, saved[key])
        window = progress.trajectory.window
        progress.recent = {name: deque(values, maxlen=window) for name, values in saved["recent"].items()}

    def finish(self, plan: list[Progress], timing: dict, save_models: bool) -> None:
        """Print the summary, write all_results.json, then final_info.json, then remove the checkpoints."""
        names = dict.fromkeys(name for progress in plan for name in progress.trajectory.cells.values())
        cells = {name: [progress.cells[name] for progress in plan if name in progress.cells] for name in names}
        trajectories = []
        for progress in plan:
            keys = dict.fromkeys(key for point in progress.points for key in point)
            curves = {key: [point.get(key) for point in progress.points] for key in keys}
            told = {"name": progress.trajectory.name, "seed": progress.trajectory.seed}
            trajectories.append(told | progress.extras | told | {"curves": curves})
        results = {"config": asdict(self.config), "environment": self.environment, "trajectories": trajectories}
        results |= {"cells": [cell for seeds in cells.values() for cell in seeds], "timing": timing}
        final_info = {name: summarize(name, seeds, self.study.headlines) for name, seeds in cells.items()}
        short, long = strict_json(final_info), strict_json(results)  # whatever fails, fails before a file is there
        print(summary(final_info, timing), flush=True)
        write_atomically(self.results[1], long)
        write_atomically(self.results[0], short)
        if not save_models:
            self.remove(self.models, *patterns(names))
        self.remove(self.checkpoints, "fingerprint.json", *patterns(names))


def summarize(name: str, seeds: list[dict], headlines: tuple[str, ...]) -> dict:
    """What final_info.json holds of a cell: mean, standard error and the value of every seed of its headline numbers.

    The mean is over the seeds that have the number. Where not all do, beside it stand `<key>_k` of `<key>_n`.
    """
    entry = {"means": {}, "stderrs": {}, "final_info_dict": {}}
    try:
        for key in (key for key in headlines if any(key in cell for cell in seeds)):
            values = [cell[key] for cell in seeds]
            if not all(value is None or isinstance(value, Real) for value in values):
                raise TypeError(f"{key} is a headline and must be a number or None, is {values}")
            there = [value for value in values if value is not None]
            stderr = np.std(there, ddof=1) / math.sqrt(len(there)) if len(there) > 1 else 0.0
            entry["means"][f"{key}_mean"] = float(np.mean(there)) if there else None
            if len(there) < len(values):
                entry["means"] |= {f"{key}_k": len(there), f"{key}_n": len(values)}
            entry["stderrs"][f"{key}_stderr"] = float(stderr) if there else None
            entry["final_info_dict"][key] = values
        strict_json(entry)  # a value that the file cannot hold fails here, with its cell
    except Exception as error:
        error.add_note(f"in cell {name}")
        raise
    return entry


# What of the harness the headline numbers are measured with, beside a study's own yardstick.
YARDSTICK_HERE = (Ensemble.observe, Progress.measure, summarize)


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
    """A flag's word as a number, text or boolean, or None where that is possible."""
    word = word.strip()
    if optional and word.lower() == "none":
        return None
    try:
        return {"true": True, "1": True, "false": False, "0": False}[word.lower()] if kind is bool else kind(word)
    except (ValueError, KeyError):
        name = {float: "a number", int: "a whole number", bool: "true or false"}[kind]
        raise argparse.ArgumentTypeError(f"{word} must be {name}{' or none' * optional}") from None


def parse_arguments(study: Study, argv: list[str]) -> tuple[object, argparse.Namespace]:
    """The configuration and the options of this call. UserError names a bad flag, its value and what is allowed.

    A field is a number, text, a boolean, a list or a pair of them (tuple[int, ...], tuple[int, int]), or one of these
    or None, which the command line calls "none".
    """

    class Parser(argparse.ArgumentParser):
        def error(self, message):
            raise UserError(message)

    Config, presets = study.Config, study.presets or {}
    comments = dict(re.findall(r"^    (\w+):.*?  # (.*)$", inspect.getsource(Config), re.M))
    parser = Parser(study.path.name, description=sys.modules[Config.__module__].__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    lengths = {}  # of fields that are lists (None: any) or pairs
    hints = typing.get_type_hints(Config)
    for field, hint in ((field, hints[field.name]) for field in fields(Config)):
        parts = typing.get_args(hint)
        optional = type(None) in parts
        if optional and len(parts) == 2:
            (hint,) = [part for part in parts if part is not type(None)]
        kinds = typing.get_args(hint) if typing.get_origin(hint) is tuple else (hint,)
        if typing.get_origin(hint) is tuple:
            lengths[field.name] = None if kinds[-1] is ... else len(kinds)
        kind = kinds[0] if kinds else None
        if kind not in (int, float, str, bool) or {*kinds} - {kind, ...} or field.default is MISSING:
            known = "a number, text, bool, tuple[int, ...], a pair, or one of these or None"
            raise TypeError(f"Config.{field.name} must be {known}, and have a default")
        shown = " ".join(map(str, field.default)) if isinstance(field.default, tuple) else field.default
        parser.add_argument(
            f"--{field.name}",
            type=partial(read_word, kind, optional),
            nargs="*" if field.name in lengths else "?" if kind is bool else None,
            const=True if kind is bool and field.name not in lengths else None,  # such a flag alone means true
            default=argparse.SUPPRESS,
            metavar="X",
            help=f"{comments.get(field.name, '')} (default {shown})".replace("%", "%%"),
        )
    parser.add_argument("--out_dir", type=Path, default=Path("run_0"), help="where the results go (default run_0)")
    parser.add_argument("--overwrite", action="store_true", help="remove what another run wrote to OUT_DIR")
    parser.add_argument("--save_models", action="store_true", help="keep the weights of every cell in OUT_DIR/models")
    # No flag has a single dash: "-1e-4" is a value that is out of range, not a flag that is unknown.
    options = parser.parse_args([f" {word}" if re.match(r"-[^-h]", word) else word for word in argv])
    given = {field.name: getattr(options, field.name) for field in fields(Config) if hasattr(options, field.name)}
    for name, length in lengths.items():
        if name in given:
            words = given[name]
            given[name] = None if words == [None] else tuple(words)
            if None in words and len(words) > 1 or length not in (None, len(words)) and given[name] is not None:
                raise UserError(f"--{name} {' '.join(map(str, words))}: must be {length or 'a list of'} values")
    preset = given.get("preset", getattr(Config, "preset", None))
    if presets and preset is not None and preset not in presets:
        raise UserError(f"--preset {preset}: must be {' or '.join(presets)}")
    return Config(**presets.get(preset, {}) | given), options


def train_and_write(run: RunDirectory, options: argparse.Namespace, device: torch.device) -> None:
    """Train, measure and write what the command line asks for."""
    started = time.monotonic()
    prepare_thread(device)  # see train_all

    # Under torchrun every rank trains its share of the trajectories; the first one owns the folder.
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    plan = planned(run.study, run.config)  # before anything is written: it may refuse the configuration
    complete = [rank == 0 and run.open(plan, restarted=attempt != "0")]
    if world > 1:
        store = next(dist.rendezvous("env://", rank, world))[0]
        store = dist.PrefixStore(attempt, store)  # not the last attempt's keys
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=timedelta(days=30))
        dist.broadcast_object_list(complete)
    if complete[0]:
        if rank == 0:
            print(f"{run.path} is complete: nothing to train (--overwrite trains it anew)")
            final_info, results = (json.loads(path.read_bytes()) for path in run.results)
            print(summary(final_info, results["timing"]))
        return

    if rank == 0 and world > len(plan):
        print(f"{world} processes for {len(plan)} trajectories: {world - len(plan)} have nothing to do")
    own = plan[rank::world]
    for progress in own:
        run.load(progress)
        progress.state = None  # who trains it reads it again
        if progress.step:
            print(f"continuing {progress.trajectory.stem} after step {progress.step}", flush=True)

    training_started = time.monotonic()
    trained = train_all(run, own, device, silent=rank > 0)
    if world > 1:
        dist.all_reduce(trained := torch.tensor(trained))  # also waits for all ranks
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
        "model_steps": int(trained),
        "model_steps_per_second": round(int(trained) / seconds, 2),
    }
    run.finish(plan, timing, options.save_models)


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


def run_study(study: Study, argv: list[str] | None = None) -> int:
    """Run a study with these arguments, else those of the command line; returns the exit status: 0 complete, 1 failed,
    2 bad input, 130 or 143 interrupted."""

    def interrupt(number, frame):
        raise Interrupted(number)

    if not sys.stderr.isatty():
        warnings.simplefilter("ignore")  # loops read only the end of standard error
    argv, run, name = sys.argv[1:] if argv is None else argv, None, study.path.name
    alone = int(os.environ.get("WORLD_SIZE", 1)) == 1  # a rank that waits for others dies of the signal
    try:
        with on_signals(interrupt) if alone else contextlib.nullcontext():
            config, options = parse_arguments(study, argv)
            device = pick_device(config)
            run = RunDirectory(options.out_dir, study, config, device, options.overwrite)
            train_and_write(run, options, device)
            if not alone:
                sys.stdout.flush()
                os._exit(0)  # gloo's threads may still want the interpreter's lock: at its end that would abort
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
    if run and int(os.environ.get("RANK", 0)) == 0:
        run.abandon()
    return 1


# ==== One file ========================================================================================================


def bundle(script: Path) -> str:
    """Source of one script that holds a study and the harness. UserError if a name would mean two things in it."""
    parts, bound = [], []
    for path in (Path(__file__), script):
        source = path.read_text()
        tree, lines, imports = ast.parse(source), source.split("\n"), {}
        for node in (node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)):
            from_harness = getattr(node, "module", None) == "harness"
            plain_form = node in tree.body and [other.lineno for other in tree.body].count(node.lineno) == 1
            other_form = getattr(node, "module", None) == "__future__" or "harness" in {a.name for a in node.names}
            if other_form or from_harness and not plain_form:
                form = "names from the harness, outside of functions and on a line of its own"
                raise UserError(f"line {node.lineno} of {script} must import {form}")
        for node in tree.body:
            if (
                isinstance(node, ast.ImportFrom)
                and node.module == "harness"
                or (path != script and isinstance(node, ast.If) and "__name__" in ast.unparse(node.test))
            ):
                lines[node.lineno - 1 : node.end_lineno] = [""] * (node.end_lineno - node.lineno + 1)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                origin = getattr(node, "module", None)
                imports |= {a.asname or a.name.split(".")[0]: (origin, a.asname and a.name) for a in node.names}
        symbols = symtable.symtable(source, str(path), "exec").get_symbols()
        own = [symbol.get_name() for symbol in symbols if symbol.is_assigned() or symbol.is_imported()]
        if shadowed := {*own} & {*dir(builtins)} - {"__doc__"}:
            raise UserError(f"{min(shadowed)} in {script} must have another name: the harness needs Python's own")
        aliases = [a for node in tree.body if getattr(node, "module", "") == "harness" for a in node.names]
        given = {a.name for a in aliases}
        if renamed := [a.asname for a in aliases if a.asname]:
            raise UserError(f"{renamed[0]} in {script} must be imported by the name that harness.py gives it")
        bound.append({name: imports.get(name, path) for name in own if name not in given})
        head = tree.body[0].end_lineno if ast.get_docstring(tree) else 0
        parts.append(("\n".join(lines[:head]), "\n".join(lines[head:]).strip("\n")))
    harness, study = bound
    for name in harness.keys() & study.keys():
        if harness[name] != study[name]:
            raise UserError(f"{name} in {script} must have another name: harness.py has one that means something else")
    titles = [f"# {'=' * 10} {path.name} {'=' * 10}" for path in (Path(__file__), script)]
    return "\n\n".join([parts[1][0], titles[0], parts[0][1], titles[1], parts[1][1]]) + "\n"


if __name__ == "__main__":
    command_line = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    command_line.add_argument("command", choices=["bundle"], help="write a study and the harness as one script")
    command_line.add_argument("script", type=Path, help="the study's experiment.py")
    command_line.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: standard output")
    asked = command_line.parse_args()
    try:
        if asked.output and asked.output.resolve() == asked.script.resolve():
            raise UserError(f"--output {asked.output}: must be another file than the study")
        if asked.output:
            write_atomically(asked.output, bundle(asked.script).encode())
        else:
            print(bundle(asked.script), end="")
    except (WriteError, OSError, ValueError, SyntaxError) as error:
        print(f"harness.py: {one_line(str(error), 1400)}", file=sys.stderr)
        sys.exit(2)
