"""A complete run in one object: what `syngrad compare` and `syngrad train` take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from syngrad.checks import check_whole
from syngrad.errors import ConfigError
from syngrad.metrics import Metric
from syngrad.optim.factory import default_optimizer
from syngrad.optim.groups import OptimizerFactory


@dataclass
class Experiment:
    """Model, data, loss, metric, cuts, optimiser, batch size, epochs.

    Args:
        model: makes the model; its weights are drawn from the seed set just before.
        data: (batch size, seed) → (training loader, test loader), called anew for every run, so that every run sees the
            same order of the same data.
        loss: as for :class:`syngrad.Trainer`; so are metric, optimizer and scheduler.
        metric: a name, or a function.
        cuts: the names that start a new stage.
        stages: their number, instead of cuts.
        optimizer: parameter groups → optimiser.
        scheduler: optimiser → scheduler; None for a constant rate.
        batch_size: samples a minibatch.
        epochs: passes over the training data.
        name: for tables and files.
        dataset: for tables and files.
        options: further keyword arguments of the Trainer.

    Raises:
        ConfigError: something is missing or cannot be used.
    """

    model: Callable[[], nn.Module]
    data: Callable[[int, int], tuple[Iterable[Any], Iterable[Any]]]
    loss: Callable[[Any, Any], Tensor]
    metric: str | Metric = "accuracy"
    cuts: Sequence[str] | None = None
    stages: int | None = None
    optimizer: OptimizerFactory = default_optimizer
    scheduler: Callable[[torch.optim.Optimizer], Any] | None = None
    batch_size: int = 256
    epochs: int = 5
    name: str = "experiment"
    dataset: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for part in ("model", "data", "loss", "optimizer"):
            if not callable(getattr(self, part)):
                raise ConfigError(f"Experiment.{part} must be a function, got {type(getattr(self, part)).__name__}")
        if (self.cuts is None) == (self.stages is None):
            raise ConfigError(f"Experiment {self.name!r} needs either cuts=[names] or stages=N")
        for count, least in (("batch_size", 1), ("epochs", 0)):
            setattr(self, count, check_whole(count, getattr(self, count), least))


class Published(NamedTuple):
    """One figure that others measured, to stand beside an experiment; never quoted from memory.

    Args:
        task: the data it is for.
        model: the net, and what of its training matters.
        metric: what is measured, with its unit.
        values: method → figure.
        source: where it was read.
    """

    task: str
    model: str
    metric: str
    values: dict[str, float]
    source: str


def adam(rate: float) -> OptimizerFactory:
    """Parameter groups → fused Adam at this rate."""
    return lambda groups: torch.optim.Adam(groups, rate, fused=True)


def cosine(epochs: int) -> Callable[[torch.optim.Optimizer], Any]:
    """Optimiser → its rate on half a cosine over the epochs, down to 0."""
    return lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(epochs, 1))
