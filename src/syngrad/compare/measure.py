"""Step times side by side, and what a step keeps for its backward passes."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from syngrad.core.memory import SavedBytes
from syngrad.trainer import Trainer
from syngrad.tree import tensors

WARM_UP = 3
#: more than any machine has use for; beyond, PyTorch fails in ways of its own
THREADS = 4096
#: turns that a step time is made of, at least and at most
TURNS = (12, 400)
#: steps of a period that are looked at, at most, for what they keep: feedback comes with the first
PERIOD = 64


class RowError(Exception):
    """One of several trainers failed; which, and why."""

    def __init__(self, index: int, error: Exception) -> None:
        super().__init__(str(error))
        self.index, self.error = index, error


def turns(steps: Sequence[Callable[[Any], Any]], batches: Sequence[Any], seconds: float) -> list[list[float]]:
    """The seconds of every step of every trainer, who take turns: one list a trainer, all of one length. steps: what
    makes a step of each, from a minibatch.
    """
    times: list[list[float]] = [[] for _ in steps]
    n = len(steps)
    start = time.perf_counter()
    for turn in itertools.count():
        batch = batches[turn % len(batches)]
        for k in range(n):
            index = (turn + k) % n
            before = time.perf_counter()
            try:
                steps[index](batch)
            except Exception as error:
                raise RowError(index, error) from error
            synchronise()
            times[index].append(time.perf_counter() - before)
        if turn + 1 == WARM_UP:
            times = [[] for _ in steps]
            start = time.perf_counter()
        done = turn + 1 - WARM_UP
        if done >= TURNS[1] or (done >= TURNS[0] and time.perf_counter() - start > seconds):
            return times
    raise AssertionError("unreachable")


def windows(times: Sequence[float], length: int) -> list[float]:
    """Means of consecutive steps: where feedback is asked for on every n-th minibatch, n steps are one whole."""
    length = min(length, len(times))
    whole = len(times) - len(times) % length
    return [statistics.fmean(times[k : k + length]) for k in range(0, whole, length)]


def saved_bytes(trainer: Trainer, batches: Sequence[Any]) -> int:
    """The most that is kept for backward passes at any moment of a few steps, the minibatch itself left out.

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
    """The number of steps after which a trainer has done everything it does: feedback comes on every n-th."""
    return trainer.policy.feedback_every if trainer.policy.method.estimates else 1


def synchronise() -> None:
    """Wait for what a device still has to do."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.synchronize()


@contextmanager
def threads(count: int) -> Iterator[None]:
    """PyTorch's number of threads, inside it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
