"""Training in this process, without a folder for the run."""

from dataclasses import replace
from types import SimpleNamespace

import torch

import harness
from experiment import STUDY, Config

CPU = torch.device("cpu")
GO_ON = SimpleNamespace(value=False)  # the stop that is never set


def planned(config: Config, **settings) -> list[harness.Progress]:
    """The trajectories of the grid, with these of their settings changed."""
    return [harness.Progress(replace(p.trajectory, **settings)) for p in harness.planned(STUDY, config)]


def trained(config: Config, device=CPU, stacked=False) -> harness.Progress:
    """The only trajectory of the grid at its end, the only step at which it is measured."""
    (progress,) = planned(config, measured=())
    nowhere = SimpleNamespace(save=lambda progress, state: None, study=STUDY)
    harness.train(nowhere, [progress], device, stacked, lambda *updates: None, GO_ON)
    return progress
