"""Many pipelines that train apart and average now and then, and fail alone: round by round, a recursion over all.

A round is what lies between two averagings. A replica of which a worker fails loses what it has trained since the last
one; it runs again `restart_s` later, takes the others' mean at their next averaging, and goes on from there. The others
do without it, once it has been silent for a while.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from syngrad.checks import check_whole
from syngrad.planner.recursion import STEADY, ChainClock, FlushedClock, Times, Variation
from syngrad.planner.timing import Chain, Microbatches
from syngrad.planner.worker_failures import SILENT_S, Failures


@dataclass(frozen=True)
class Rounds:
    """What came of replicas that average now and then.

    Args:
        ends: seconds at which each averaging was over.
        trained: minibatches that have gone into each, over all replicas.
        failures: how many there were.
    """

    ends: Times
    trained: NDArray[np.int64]
    failures: int = 0

    @property
    def minibatches_per_s(self) -> float:
        """That go into an average, over all replicas: of the second half, when the queues have filled."""
        half = len(self.ends) // 2
        begun = self.ends[half - 1] if half else 0.0
        return float(self.trained[half:].sum() / (self.ends[-1] - begun))


class Lifetimes:
    """When each replica fails: exponential, from a generator of its own, so that no order of asking matters."""

    def __init__(self, failures: Failures | None, workers: int, replicas: int, seed: int) -> None:
        self._mean_s = failures.mean_s / workers if failures is not None else np.inf
        self._drawn = [np.random.default_rng((seed, 3, replica)) for replica in range(replicas)] if failures else []

    def next(self, replica: int) -> float:
        """Seconds that it lives, from now on."""
        return float(self._drawn[replica].exponential(self._mean_s)) if self._drawn else np.inf


def run_replicas(
    shape: Chain | Microbatches,
    replicas: int,
    *,
    rounds: int,
    every: int,
    average_s: float,
    variation: Variation = STEADY,
    failures: Failures | None = None,
    slower: Times | float = 1.0,
) -> Rounds:
    """Replicas of a pipeline, whatever their number, in seconds.

    The workers of one stage average with those of the same stage: they wait for each other, and go on together. What
    one gave to an average before its replica failed stays in it, and does not count as trained. A worker's own time is
    drawn for every minibatch, whether its replica is alive or not, so that a failure changes no
    other draw.

    Args:
        shape: one pipeline; a worker that trains alone is a chain of one.
        replicas: of it.
        rounds: how many averagings.
        every: minibatches between two.
        average_s: what each takes.
        variation: of the workers' times.
        failures: of workers; how often is saved does not matter here.
        slower: what the times of each replica's workers are multiplied with.

    Raises:
        ConfigError: for no replica, no round, or no minibatch in one.
    """
    for name, value in (("replicas", replicas), ("rounds", rounds), ("every", every)):
        check_whole(name, value, 1)
    clock = ChainClock(shape, replicas) if isinstance(shape, Chain) else FlushedClock(shape, replicas)
    generator, own = np.random.default_rng(variation.seed), slower * np.asarray(variation.devices(clock.shape))
    lives = Lifetimes(failures, shape.workers, replicas, variation.seed)
    fails = np.array([lives.next(replica) for replica in range(replicas)])
    alive, back = np.full(replicas, True), np.zeros(replicas)
    ends, trained, count = np.empty(rounds), np.zeros(rounds, dtype=np.int64), 0
    for n in range(rounds):
        clock.steps([own * variation.factors(generator, clock.shape) for _ in range(every)])
        done = clock.end
        reached = alive[:, None] & (fails[:, None] >= done)
        failed = alive & ~reached.all(axis=1)
        silent = np.where(alive[:, None] & ~reached, fails[:, None] + SILENT_S, -np.inf).max(axis=0)
        alive &= ~failed
        count += int(failed.sum())
        if failures is not None:
            back[failed] = fails[failed] + failures.restart_s
        if alive.any():
            together = np.maximum(np.where(reached, done, -np.inf).max(axis=0), silent) + average_s
            clock.go_on(alive, together)
            now = float(together.max())
            trained[n] = every * int(alive.sum())
        else:  # the last one has failed: the first that is back goes on from what was saved
            now = float(max(back.min(), fails[failed].max(initial=0.0)))
        returned = ~alive & (back <= now)
        if returned.any():
            clock.begin(returned, now)
            alive |= returned
            for replica in np.flatnonzero(returned):
                fails[replica] = now + lives.next(int(replica))
        ends[n] = now
    return Rounds(ends, trained, count)
