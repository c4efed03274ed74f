"""What a training run leaves behind: one record an epoch, in plain data."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Epoch:
    """One epoch.

    Args:
        epoch: its number, from 1.
        train_s: seconds of training since the start, evaluation left out; it only grows.
        samples: that it trained on.
    """

    epoch: int
    train_loss: float
    train_s: float
    samples: int
    learning_rate: float
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass
class History:
    """The epochs of one call of `fit`, and the quality of every interface's estimates at its end.

    Args:
        started_s: seconds of training before it, in earlier calls.
        points: (epochs, seconds of training, metrics) of every validation, within epochs too.
        guarded: updates that the guard has skipped, by the stage's name.
        record: where it was asked for, one list an interface: [minibatch, that with whose update its feedback was
            applied].
        processes: over several, one entry each: its stages, host, bytes sent, what it shares with the next one (name,
            bytes each way, minibatches between two times), seconds by what they went into, and spans of a timeline.
        replica: of a run among replicas: this one's number, how many averagings it took part in, the bytes that it has
            sent to others, seconds that it stood still for them, how often it took another one's state (`healed`), and
            how often the others did not come in time (`missed`).
    """

    metric: str | None = None
    started_s: float = 0.0
    epochs: list[Epoch] = field(default_factory=list)
    points: list[tuple[float, float, dict[str, float]]] = field(default_factory=list)
    interfaces: list[dict[str, object]] = field(default_factory=list)
    guarded: dict[str, int] = field(default_factory=dict)
    record: list[list[list[int]]] = field(default_factory=list)
    processes: list[dict[str, Any]] = field(default_factory=list)
    replica: dict[str, Any] = field(default_factory=dict)

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

    def values(self) -> list[tuple[float, float, float]]:
        """(epochs, train_s, metric) of every validation; epochs is a fraction within one."""
        key = self.metric or "loss"
        return [(epoch, seconds, metrics[key]) for epoch, seconds, metrics in self.points if key in metrics]

    def to_dict(self) -> dict[str, Any]:
        """Everything, as dictionaries, lists, tuples, numbers and texts.

        Numbers stay what they are, so that `from_dict` gives the same again. `json.dumps` writes one that is not
        finite, such as a metric of NaN, as NaN, which Python reads and strict JSON (`allow_nan=False`) does not have.
        """
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> History:
        """What `to_dict` was taken of."""
        epochs = [Epoch(**record) for record in plain["epochs"]]
        points = [(epoch, seconds, metrics) for epoch, seconds, metrics in plain["points"]]
        return cls(**{**plain, "epochs": epochs, "points": points})
