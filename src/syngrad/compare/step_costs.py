"""What a step costs: its time, taken side by side, where that time goes, and what it keeps for its backward passes."""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from syngrad.core.memory import SavedBytes
from syngrad.trainer import Trainer
from syngrad.tree import tensors

#: turns, or steps of each trainer, that are not counted
WARM_UP, SPLIT_WARM_UP = 3, 1
#: more than any machine has use for; beyond, PyTorch fails in ways of its own
THREADS = 4096
#: turns that a step time is made of, at least and at most
TURNS = (12, 400)
#: steps of a period that are looked at, at most, for what they keep: feedback comes with the first
PERIOD = 64
#: what a step's time goes into, and the steps that this is taken over at least
PARTS, SPLIT_LEAST = ("forward", "backward", "estimator", "optimizer"), 8


class RowError(Exception):
    """One of several trainers failed; which, and why."""

    def __init__(self, index: int, error: Exception) -> None:
        super().__init__(str(error))
        self.index, self.error = index, error


def step_seconds(steps: Sequence[Callable[[Any], Any]], batches: Sequence[Any], seconds: float) -> list[list[float]]:
    """Seconds of every step of several trainers that take turns: one list a trainer, all of one length.

    Args:
        steps: What takes a step of each trainer, from a minibatch.
        batches: The minibatches, which all get in this order, again and again.
        seconds: About how long it may take.

    Raises:
        RowError: One of them failed.
    """
    times: list[list[float]] = [[] for _ in steps]
    start = time.perf_counter()
    for turn in itertools.count():
        for index, spent in take_turn(steps, turn, batches):
            times[index].append(spent)
        if turn + 1 == WARM_UP:
            times = [[] for _ in steps]
            start = time.perf_counter()
        done = turn + 1 - WARM_UP
        if done >= TURNS[1] or (done >= TURNS[0] and time.perf_counter() - start > seconds):
            return times
    raise AssertionError("unreachable")


def take_turn(steps: Sequence[Callable[[Any], Any]], turn: int, batches: Sequence[Any]) -> Iterator[tuple[int, float]]:
    """Take one step of each: its index and seconds. The first of a turn changes from turn to turn."""
    batch = batches[turn % len(batches)]
    for k in range(len(steps)):
        index = (turn + k) % len(steps)
        before = time.perf_counter()
        try:
            steps[index](batch)
        except Exception as error:
            raise RowError(index, error) from error
        synchronise()
        yield index, time.perf_counter() - before


def windows(times: Sequence[float], length: int) -> list[float]:
    """Means of consecutive steps: where feedback is asked for on every n-th minibatch, n steps are one whole."""
    length = min(length, len(times))
    whole = len(times) - len(times) % length
    return [statistics.fmean(times[k : k + length]) for k in range(0, whole, length)]


def saved_bytes(trainer: Trainer, batches: Sequence[Any]) -> int:
    """The most bytes that are kept for backward passes at any moment of a few steps, the minibatch itself left out.

    So many steps that one of them asks for feedback, which the first does, and that what is in flight has filled up.
    """
    steps = min(period(trainer), PERIOD) + trainer.policy.method.delay + trainer.policy.feedback_delay
    used = [batches[k % len(batches)] for k in range(steps)]
    with SavedBytes(trainer.model, trainer.net.estimators, but=tensors(used)) as meter:
        for batch in used:
            trainer.step(batch)
    return meter.peak_bytes


def size(batch: Any) -> int | None:
    """The samples of a minibatch, as its first tensor tells."""
    first = next(iter(tensors(batch)), None)
    return len(first) if first is not None and first.dim() else None


def period(trainer: Trainer) -> int:
    """The number of steps after which a trainer has done everything it does: feedback and truths come every n-th."""
    policy = trainer.policy
    return math.lcm(policy.feedback_every, policy.method.every or 1) if policy.method.estimates else 1


def synchronise() -> None:
    """Wait for what a CUDA device still has to do."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def now() -> float:
    """Seconds by a clock, read when the device has done all that it was given."""
    synchronise()
    return time.perf_counter()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """PyTorch's number of threads, inside it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Clock:
    """The seconds that one trainer's steps spend in each part.

    The parts of a throw-away trainer are wrapped from outside, so that no step that is timed or trained for real
    carries a clock of its own. What is left of a step when forward, estimator and optimiser are taken away is the
    backward pass, and with it the little that hands messages on.
    """

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


def split_seconds(trainers: Sequence[Trainer], batches: Sequence[Any], window: int) -> list[dict[str, float]]:
    """Seconds of a step by part, for each of several bound trainers that take turns; they are of no use afterwards.

    Args:
        trainers: The trainers.
        batches: The minibatches, which all get in this order, again and again.
        window: Steps after which every trainer has done everything that it does; medians are over means of so many.

    Raises:
        RowError: One of them failed.
    """
    clocks = [Clock(trainer) for trainer in trainers]
    for turn in range(SPLIT_WARM_UP + max(SPLIT_LEAST, 2 * window)):
        for _ in take_turn([clock.step for clock in clocks], turn, batches):
            continue
    counted = [clock.steps[SPLIT_WARM_UP:] for clock in clocks]
    return [
        {part: statistics.median(windows([step[part] for step in steps], window)) for part in PARTS}
        for steps in counted
    ]
