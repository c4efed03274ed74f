"""What a step's time goes into: forward, backward, estimator, optimiser.

The parts of a throw-away trainer are wrapped from outside, so that no step that is timed or trained for real carries
a clock of its own. What is left of a step when forward, estimator and optimiser are taken away is the backward pass,
and with it the little that hands messages on.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from syngrad.compare.measure import RowError, synchronise, windows
from syngrad.trainer import Trainer

PARTS = ("forward", "backward", "estimator", "optimizer")
WARM_UP, LEAST = 1, 8


class Clock:
    """The seconds that one trainer's steps spend in each part."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.steps: list[dict[str, float]] = []
        self._spent = dict.fromkeys(PARTS, 0.0)
        self._inside = False
        runner: Any = trainer.runner
        for stage in runner.stages:
            self._wrap(stage, "run", "forward")
            if stage.interface is not None:
                self._wrap(stage.interface, "estimate", "estimator")
                self._wrap(stage.interface, "fit", "estimator")
        self._wrap(runner.training, "loss", "forward")
        self._wrap(runner.updates, "step_all", "optimizer")

    def _wrap(self, owner: Any, name: str, part: str) -> None:
        """Put a clock around a bound method, in the object itself: its class, and all others of it, stay as they are.

        What a part calls of another part counts for the outer one alone, so that no second is counted twice.
        """
        method: Callable[..., Any] = getattr(owner, name)

        def timed(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return method(*args, **kwargs)
            synchronise()
            self._inside, before = True, time.perf_counter()
            try:
                return method(*args, **kwargs)
            finally:
                synchronise()
                self._spent[part] += time.perf_counter() - before
                self._inside = False

        setattr(owner, name, timed)

    def step(self, batch: Any) -> None:
        """One step, and where its time went."""
        self._spent = dict.fromkeys(PARTS, 0.0)
        synchronise()
        before = time.perf_counter()
        self.trainer.step(batch)
        synchronise()
        whole = time.perf_counter() - before
        self._spent["backward"] = max(whole - sum(self._spent.values()), 0.0)
        self.steps.append(self._spent)


def split(trainers: Sequence[Trainer], batches: Sequence[Any], window: int) -> list[dict[str, float]]:
    """Seconds of a step by part, for each of several bound trainers that take turns; they are of no use afterwards.

    window: the steps after which every trainer has done everything that it does; medians are over means of so many.
    """
    clocks = [Clock(trainer) for trainer in trainers]
    for turn in range(WARM_UP + max(LEAST, 2 * window)):
        for k in range(len(clocks)):
            index = (turn + k) % len(clocks)
            try:
                clocks[index].step(batches[turn % len(batches)])
            except Exception as error:
                raise RowError(index, error) from error
    return [
        {part: statistics.median(windows([step[part] for step in clock.steps[WARM_UP:]], window)) for part in PARTS}
        for clock in clocks
    ]
