"""Which side of a cross: how wide must a network be that is shown a few points of the plane?

Points are labelled by the sign of the product of their coordinates. Networks of two layers and several widths learn
from a few of them, are tested on the others, and may stop once they have fitted theirs.

    python small_study.py --out_dir=run_1
"""

import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from harness import (  # noqa: E402
    Study,
    Trajectory,
    require,
    run_study,
    stream,
)

import torch  # noqa: E402
import torch.nn as nn  # noqa: E402
import torch.nn.functional as F  # noqa: E402

# ==== Configuration ===================================================================================================


@dataclass(frozen=True)
class Config:
    """Every knob of the study; each is also a flag of the same name. UserError if one is out of range."""

    preset: str = "default"  # default or quick (one seed, a tenth of the epochs)
    widths: tuple[int, ...] = (6, 12)  # hidden units; the last one is trained in float64 and clipped
    epochs: tuple[int, ...] = (14, 42)  # of the last width; narrower ones make as many multiplications
    targets: tuple[float, ...] = (0.8, 0.95)  # training accuracies (0 to 1) whose first steps are kept
    n_points: int = 40  # points, 60% of them for training
    span: tuple[float, float] = (-1.0, 2.0)  # interval that coordinates are drawn from
    batch_size: int = 10  # points per update; the last batch of an epoch is shorter
    dropout: float = 0.05  # share of hidden units that an update leaves out
    lr: float = 0.03  # AdamW learning rate of weights; that of biases is twice as high
    clip_norm: float | None = 0.25  # largest norm of the gradient at the last width, or none
    early_end: bool = True  # whether training ends 15 updates after the last target
    seeds: int = 3  # how many seeds
    seed: int = 0  # the first seed
    device: str = "auto"  # auto, cpu, cuda or mps

    def __post_init__(self):
        different = len(set(self.widths)) == len(self.widths) > 0
        require(self, "widths", different and min(self.widths) >= 1, "one or more different whole numbers")
        increasing = self.epochs == tuple(sorted(set(self.epochs)))
        require(
            self, "epochs", increasing and min(self.epochs, default=0) >= 1, "one or more whole numbers, increasing"
        )
        require(self, "span", self.span[0] < self.span[1], "the lower end and the upper end of an interval")
        for flag in ("n_points", "batch_size", "seeds"):
            require(self, flag, getattr(self, flag) >= 1, "at least 1")


PRESETS = {"default": {}, "quick": {"seeds": 1, "epochs": (1, 4)}}

# ==== Points ==========================================================================================================


def sample_points(n: int, span: tuple[float, float], generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """n points of the square [n, 2] float64 and the side of the cross [n] int64 that they lie on."""
    points = span[0] + (span[1] - span[0]) * torch.rand(n, 2, generator=generator, dtype=torch.float64)
    return points, (points.prod(1) > 0).long()


def accuracy(logits: torch.Tensor, sides: torch.Tensor) -> float:
    """Share of points whose side has the larger logit: [n, 2], [n]."""
    return (logits.argmax(1) == sides).double().mean().item()


# ==== Training ========================================================================================================


@dataclass(frozen=True, kw_only=True, eq=False)
class CrossTrajectory(Trajectory):
    """One network of some width and one seed."""

    width: int

    # ---- What is trained ---------------------------------------------------------------------------------------------

    @cached_property
    def data(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Points and sides for training and for the test: of a seed the same for every width."""
        points, sides = sample_points(self.config.n_points, self.config.span, stream(self.seed, "points"))
        order = torch.randperm(len(points), generator=stream(self.seed, "split"))
        n_train = round(0.6 * len(points))
        parts = {"train": order[:n_train], "test": order[n_train:]}
        return {part: (points[which], sides[which]) for part, which in parts.items()}

    def model(self) -> nn.Module:
        layers = [nn.Linear(2, self.width), nn.Tanh(), nn.Dropout(self.config.dropout), nn.Linear(self.width, 2)]
        return nn.Sequential(*layers).to(torch.float64 if self.width == self.config.widths[-1] else torch.float32)

    def batches(self, first: int, n: int, device: torch.device) -> dict[str, torch.Tensor]:
        """points [n, B, 2], sides [n, B] and weights [n, B], which are zero where a short batch is padded."""
        points, sides = self.data["train"]
        size = self.config.batch_size
        per_epoch, padding = -(-len(points) // size), -len(points) % size
        epochs = range(first // per_epoch, (first + n - 1) // per_epoch + 1)
        orders = [torch.randperm(len(points), generator=self.stream("epoch", epoch)) for epoch in epochs]
        which = torch.cat([F.pad(order, (0, padding), value=-1) for order in orders]).view(-1, size)
        which = which[first - epochs[0] * per_epoch :][:n]
        return {"points": points[which], "sides": sides[which], "weights": (which >= 0).double()}

    def loss(self, model: nn.Module, points: torch.Tensor, sides: torch.Tensor, weights: torch.Tensor):
        """Cross-entropy in nats and the accuracy of the batch."""
        logits = model(points.to(next(model.parameters()).dtype))
        losses = F.cross_entropy(logits, sides, reduction="none")
        loss = (weights * losses).sum() / weights.sum()
        right = (weights * (logits.argmax(1) == sides)).sum() / weights.sum()
        return loss, {"loss": loss, "accuracy": right}

    def optimizer(self, params: dict[str, torch.Tensor], lr: float) -> torch.optim.Optimizer:
        weights = [p for name, p in params.items() if name.endswith("weight")]
        biases = [p for name, p in params.items() if name.endswith("bias")]
        groups = [{"params": weights, "weight_decay": 0.01}, {"params": biases, "weight_decay": 0.0, "lr": 2 * lr}]
        return torch.optim.AdamW(groups, lr=lr)

    def learning_rate(self, update: int, updates: int) -> float:
        """A warm-up of 10 updates, then constant."""
        return self.config.lr * min(1.0, (update + 1) / 10)

    # ---- What is measured --------------------------------------------------------------------------------------------

    def observe(self, model: nn.Module, update: int) -> dict[str, torch.Tensor]:
        """Logits of all points, and the weights of the first layer."""
        p = next(model.parameters())
        logits = {part: model(points.to(p)).cpu() for part, (points, _) in self.data.items()}
        return logits | {"weights": p.cpu().clone()}

    def measure(self, observed, update: int, recent: dict[str, list[float]], points: list[dict]) -> dict:
        """Exact accuracies, and in training the mean over the last updates, which there are none of at the start."""
        numbers = {"test_loss": self.test_loss(observed["test"])}
        for part, (_, sides) in self.data.items():
            numbers[f"{part}_accuracy"] = accuracy(observed[part], sides)
        for name, values in recent.items():
            numbers[f"recent_{name}"] = sum(values) / len(values)
        if update in (0, self.updates) or self.finished([*points, {"step": update, **numbers}]):
            numbers["weights"] = observed["weights"].tolist()  # at the start and the end
        return numbers

    def test_loss(self, logits: torch.Tensor) -> float:
        """Cross-entropy in nats of the test points."""
        return F.cross_entropy(logits.double(), self.data["test"][1]).item()

    def first_steps(self, points: list[dict]) -> list[int | None]:
        """After how many updates the training accuracy was first at every target; None: never."""
        reached = [[p["step"] for p in points if p["train_accuracy"] >= target] for target in self.config.targets]
        return [steps[0] if steps else None for steps in reached]

    def finished(self, points: list[dict]) -> bool:
        last = self.first_steps(points)[-1]
        return self.config.early_end and last is not None and points[-1]["step"] >= last + 15

    # ---- What is reported --------------------------------------------------------------------------------------------

    def cell(self, points: list[dict]) -> dict:
        numbers = {key: points[-1][key] for key in ("test_loss", "test_accuracy", "train_accuracy", "recent_loss")}
        steps = self.first_steps(points)
        return {"width": self.width, "stopped_at": points[-1]["step"]} | numbers | {"fitted": steps[-1], "steps": steps}

    def extras(self, points: list[dict]) -> dict:
        return {"width": self.width, "sides": self.data["train"][1].tolist()}


def plan(config: Config) -> list[CrossTrajectory]:
    """One trajectory per (width, seed), measured at the start and after every 5 updates."""
    trajectories = []
    for width in config.widths:
        per_epoch = -(-round(0.6 * config.n_points) // config.batch_size)
        updates = [epochs * per_epoch * config.widths[-1] // width for epochs in config.epochs]
        for seed in range(config.seed, config.seed + config.seeds):
            trajectories.append(
                CrossTrajectory(
                    config=config,
                    name=f"width={width}, seed={seed}",
                    seed=seed,
                    width=width,
                    cells={n: f"width_{width}_epochs_{e}" for n, e in zip(updates, config.epochs, strict=True)},
                    streams=(seed, width),
                    measured=tuple(range(0, updates[-1], 5)),
                    shape=width,
                    clip_norm=config.clip_norm if width == config.widths[-1] else None,
                    window=20,
                )
            )
    return trajectories


def headlines(config: Config) -> tuple[str, ...]:
    return ("test_accuracy", "test_loss", "fitted", "recent_loss")


YARDSTICK = (sample_points, accuracy, CrossTrajectory.observe, CrossTrajectory.measure, CrossTrajectory.cell)
STUDY = Study(Config, plan, headlines, YARDSTICK, PRESETS)


def main(argv: list[str] | None = None) -> int:
    """Run the study; returns the exit status: 0 complete, 1 failed, 2 bad input, 130 or 143 interrupted."""
    return run_study(STUDY, argv)


if __name__ == "__main__":
    sys.exit(main())
