"""Training in this process, without a folder for the run."""

from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import patch

import harness
from experiment import STUDY, Config, TestBed

import torch

CPU = torch.device("cpu")
GO_ON = SimpleNamespace(value=False)  # the stop that is never set


def planned(config: Config, **settings) -> list[harness.Progress]:
    """The trajectories of the grid, with these of their settings changed."""
    return [harness.Progress(replace(p.trajectory, **settings)) for p in harness.planned(STUDY, config)]


def nowhere(**parts) -> SimpleNamespace:
    """What training asks of the folder of a run, without a folder."""
    nothing = {"save": lambda progress, state: None, "load": lambda progress: None, "contents": lambda *_: None}
    return SimpleNamespace(study=STUDY, track=None, **nothing | parts)


def trained(config: Config, device=CPU, rung="plain", until: int = 0) -> harness.Progress:
    """The only trajectory of the grid at its end, the only step at which it is measured, its noise with one draw; or
    stopped after so many of its updates, where it is measured instead."""
    (progress,) = planned(config, measured=(until,) if until else ())
    stop = SimpleNamespace(value=False)
    folder = nowhere(contents=lambda *_: setattr(stop, "value", bool(until)))  # tried after the first measurement
    with patch.object(TestBed, "EMBEDDING_DRAWS", 1):
        harness.train(folder, [progress], device, rung, lambda *updates: None, stop)
    return progress
