"""One measured row with its series."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, TypeVar

from syngrad.trainer.history import History

BACKPROP = "backprop"
#: how the status of a row begins that has run, in more memory than there may be
TOO_LARGE = "does not fit"
Point = TypeVar("Point")


@dataclass
class Row:
    """One method, one seed. Times in seconds; `step_s`, `step_ratio` (to backprop) and `step_split` (forward, backward,
    estimator, optimizer) are taken side by side, all else while training. `history` and `train_loss` are of
    (epoch, seconds of training, value), epochs in fractions where the metric was taken within one. `guarded`: updates
    that were skipped, by stage. `higher_is_better` is None for a metric that does not say.
    """

    method: str
    estimator: str
    seed: int
    status: str = "ok"
    processes: int = 1
    threads: int = 1
    optimizer: str | None = None
    placement: str | None = None
    queue_depth: int | None = None
    message_dtype: str | None = None
    microbatches: int | None = None
    bytes_sent: int | None = None
    step_split: dict[str, float] | None = None
    step_s: float | None = None
    step_ratio: float | None = None
    metric: str = "loss"
    higher_is_better: bool | None = None
    history: list[tuple[float, float, float]] = field(default_factory=list)
    train_loss: list[tuple[float, float, float]] = field(default_factory=list)
    samples_per_s: float | None = None
    train_s: float | None = None
    time_to_target_s: float | None = None
    peak_memory_bytes: int | None = None
    saved_activation_bytes: int | None = None
    interfaces: list[dict[str, object]] = field(default_factory=list)
    guarded: dict[str, int] = field(default_factory=dict)
    trainer: dict[str, Any] | None = None

    @property
    def value(self) -> float | None:
        """The metric after the last epoch."""
        return self.history[-1][2] if self.history else None

    @property
    def ok(self) -> bool:
        """Whether it ran to its end."""
        return self.status == "ok"

    def record(self, history: History) -> None:
        """Fill in the figures of training from what a run leaves, long series thinned."""
        self.history = history.values()
        self.train_loss = [(each.epoch, each.train_s, each.train_loss) for each in history.epochs]
        self.samples_per_s, self.train_s = history.samples_per_s, history.train_s
        self.interfaces = [
            {key: thinned(value) if isinstance(value, list) else value for key, value in interface.items()}
            for interface in history.interfaces
        ]
        self.guarded = dict(history.guarded)

    def to_dict(self) -> dict[str, Any]:
        """As the file has it: the metric's name, value and history in one object."""
        plain = asdict(self)
        history = [list(point) for point in plain.pop("history")]
        better = plain.pop("higher_is_better")
        plain["metric"] = {"name": self.metric, "value": self.value, "higher_is_better": better, "history": history}
        plain["train_loss"] = [list(point) for point in self.train_loss]
        return plain


def time_to_target(
    history: Sequence[tuple[float, float, float]], target: float, higher_is_better: bool
) -> float | None:
    """Seconds of training until the metric first reaches `target`; None where it never does.

    Between the last validation short of the target and the first that has reached it the value is taken to run in a
    straight line. A first validation that has reached it already says only "by then", and its own time is given.

    Args:
        history: (epoch, seconds, value) of every validation, in order.
        target: a value of the metric.
        higher_is_better: whether more of the metric is better.
    """
    sign = 1.0 if higher_is_better else -1.0
    before: tuple[float, float] | None = None
    for _, seconds, value in history:
        missing = sign * (target - value)
        if missing <= 0:
            if before is None:
                return seconds
            earlier, lacked = before
            return earlier + (seconds - earlier) * lacked / (lacked - missing)
        if missing == missing:  # a value that is NaN lies nowhere
            before = seconds, missing
    return None


def thinned(points: Sequence[Point], most: int = 200) -> list[Point]:
    """At most `most` of the points, evenly spread, the first and the last among them."""
    if len(points) <= most:
        return list(points)
    return [points[round(k * (len(points) - 1) / (most - 1))] for k in range(most)]
