"""What a training run leaves behind: one record an epoch, in plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Epoch:
    """One epoch. train_s: seconds of training since the start, evaluation left out; it only grows."""

    epoch: int
    train_loss: float
    train_s: float
    samples: int
    learning_rate: float
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass
class History:
    """The epochs of one call of `fit`, and the quality of every interface's estimates at its end.

    started_s: seconds of training before it, in earlier calls.
    """

    metric: str | None = None
    started_s: float = 0.0
    epochs: list[Epoch] = field(default_factory=list)
    interfaces: list[dict[str, object]] = field(default_factory=list)

    @property
    def train_s(self) -> float:
        """Seconds of training in this call, evaluation left out."""
        return self.epochs[-1].train_s - self.started_s if self.epochs else 0.0

    @property
    def samples_per_s(self) -> float | None:
        """Samples trained on a second."""
        return sum(e.samples for e in self.epochs) / self.train_s if self.train_s > 0 else None

    @property
    def value(self) -> float | None:
        """The last epoch's metric, or its loss where no metric was asked for."""
        return self.values()[-1][2] if self.values() else None

    def values(self) -> list[tuple[int, float, float]]:
        """(epoch, train_s, metric) of every epoch that was validated."""
        key = self.metric or "loss"
        return [(e.epoch, e.train_s, e.metrics[key]) for e in self.epochs if key in e.metrics]

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        return asdict(self)
