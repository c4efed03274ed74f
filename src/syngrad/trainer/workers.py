"""A run in one process, as the loop of `fit` sees it; over several workers a :class:`Leader` stands in its place."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

from syngrad.core.batch import Batch
from syngrad.pipeline.control import ControlChannel
from syngrad.runtime.progress import KnownLoss
from syngrad.runtime.runner import Runner


class Workers(Protocol):
    """Who trains: this process alone, or this one and others.

    Attributes:
        begun: whether training can start.
        control: to the other workers.
        level: whether no other worker can be ahead of this one.
        worker_reports: what every worker says of itself at the end.
    """

    worker_reports: list[dict[str, Any]]

    @property
    def begun(self) -> bool: ...  # noqa: D102

    @property
    def control(self) -> ControlChannel: ...  # noqa: D102

    @property
    def level(self) -> bool: ...  # noqa: D102

    def begin(self, runner: Runner, origin: dict[str, Any]) -> None:
        """Make ready to train from `origin`, a place in the data, with a runner that is bound."""

    def allow(self, boundary: int) -> None:
        """Let other workers run ahead, but not past the minibatch `boundary`."""

    def step(self, batch: Batch) -> list[KnownLoss]:
        """Train on one minibatch; those whose loss is known by now."""

    def settle(self) -> list[KnownLoss]:
        """Wait until every minibatch is done with everywhere; those whose loss has come meanwhile."""

    def flush(self) -> None:
        """Let the minibatches in flight end."""

    def saved(self, path: Path) -> Path:
        """The run can go on from that checkpoint, which it returns."""

    def lost(self) -> int:
        """Samples since the last such question whose loss was lost with a worker."""

    def stood(self) -> float:
        """Seconds since the last such question for which training stood still, until a worker had been replaced."""

    def whole(self) -> AbstractContextManager[None]:
        """Inside it this process holds all that was trained."""

    def gather(self) -> None:
        """Hold it from now on."""

    def evaluate(self, loader: Iterable[Any]) -> dict[str, float]:
        """Mean loss and metric."""

    def retake(self, restore: Callable[[], None]) -> None:
        """Put another state of the whole run in its place, by a function that does so in this process."""

    def schedule_epoch(self, loss: float | None, metric: float | None) -> None:
        """Step the schedulers that go by epochs."""

    def options(self, before: dict[str, Any] | None) -> dict[str, Any] | None:
        """What a callback may change; where it has since `before`, all workers do the same."""

    def finish(self, history: dict[str, Any]) -> None:
        """The run is over."""

    def interrupt(self, text: str) -> None:
        """The run ends here, saved."""


class Alone:
    """One process, which has nobody to tell."""

    level = True
    control = ControlChannel(None, None, "the only worker")

    def __init__(self, evaluate: Callable[[Iterable[Any]], dict[str, float]]) -> None:
        self.evaluate = evaluate
        self.worker_reports: list[dict[str, Any]] = []
        self.runner: Runner | None = None

    @property
    def begun(self) -> bool:
        """Whether it is bound."""
        return self.runner is not None

    def begin(self, runner: Runner, origin: dict[str, Any]) -> None:
        """Train with this runner."""
        self.runner = runner

    def allow(self, boundary: int) -> None:
        """Nobody runs ahead."""

    def step(self, batch: Batch) -> list[KnownLoss]:
        """Train on one minibatch."""
        assert self.runner is not None
        loss = self.runner.step(batch)
        assert loss is not None
        return [KnownLoss(self.runner.count, loss, 1.0 / batch.scale, batch.size)]

    def settle(self) -> list[KnownLoss]:
        """All is done with already."""
        return []

    def flush(self) -> None:
        """Let the minibatches in flight end."""
        if self.runner is not None:
            self.runner.flush()

    def saved(self, path: Path) -> Path:
        """Nobody else goes on from it."""
        return path

    def lost(self) -> int:
        """None ever is."""
        return 0

    def stood(self) -> float:
        """Nobody is waited for."""
        return 0.0

    def whole(self) -> AbstractContextManager[None]:
        """It always is."""
        return nullcontext()

    def gather(self) -> None:
        """There is nobody to take from."""

    def retake(self, restore: Callable[[], None]) -> None:
        """All of it is here."""
        restore()

    def schedule_epoch(self, loss: float | None, metric: float | None) -> None:
        """Step the schedulers that go by epochs."""
        assert self.runner is not None
        self.runner.schedule_epoch(loss, metric)

    def options(self, before: dict[str, Any] | None) -> dict[str, Any] | None:
        """Nobody else has any."""
        return None

    def finish(self, history: dict[str, Any]) -> None:
        """Nobody is to be told."""

    def interrupt(self, text: str) -> None:
        """Nobody is to be told."""
