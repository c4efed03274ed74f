"""A complete run in one object: what `syngrad compare` and `syngrad train` take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from syngrad.checks import whole
from syngrad.errors import ConfigError
from syngrad.metrics import Metric
from syngrad.optim.factory import default_optimizer
from syngrad.optim.groups import OptimizerFactory


@dataclass
class Experiment:
    """Model, data, loss, metric, cuts, optimiser, batch size, epochs.

    model: a function that makes the model (its weights drawn from the seed set just before). data: (batch size, seed) →
    (training loader, test loader), called anew for every run, so that every run sees the same order of the same data.
    loss, metric: as for :class:`syngrad.Trainer`. cuts: the names that start a new stage, or stages: their number.
    options: further keyword arguments of the Trainer. name, dataset: for tables and files.

    Raises ConfigError for what is missing or cannot be used.
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
            setattr(self, count, check_count(count, getattr(self, count), least))


def check_count(name: str, value: object, least: int, most: int | None = None) -> int:
    """`value` if it is a whole number from `least` to `most`; otherwise a ConfigError that names it."""
    count = whole(value)
    if count is None or count < least or (most is not None and count > most):
        limit = "" if most is None else f" and at most {most}"
        raise ConfigError(f"{name} must be a whole number of at least {least}{limit}, got {value!r:.40}")
    return count
