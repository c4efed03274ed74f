"""Workers that fail: what is lost with them, in closed form, and over thousands of workers with draws.

Where workers wait for each other a failure ends the run everywhere: all start again, `restart_s` later, from the last
minibatch saved. Replicas that average rarely fail alone: see :mod:`syngrad.planner.replica_rounds`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from syngrad.checks import check_positive, check_whole
from syngrad.planner.recursion import STEADY, Run, Variation, run_chain
from syngrad.planner.timing import Chain

#: seconds of silence after which a replica is done without
SILENT_S = 5.0


@dataclass(frozen=True)
class Failures:
    """How often workers fail, and what that costs.

    Args:
        mean_s: seconds between two failures of one worker, in the mean; they come at any time alike (exponential).
        restart_s: from a failure until all workers run again.
        saved_every: minibatches between two checkpoints.
        saving_s: what one takes.

    Raises:
        ConfigError: for numbers out of range.
    """

    mean_s: float
    restart_s: float = 10.0
    saved_every: int = 100
    saving_s: float = 0.0

    def __post_init__(self) -> None:
        check_positive("mean_s", self.mean_s)
        check_whole("saved_every", self.saved_every, 1)

    def goodput(self, workers: int, minibatch_s: float, filling_s: float = 0.0) -> float:
        """The share of all time that is not lost: λτ / ((1 + λR) (e^(λτ') − 1)), λ = workers / mean_s.

        A stretch of τ seconds between two checkpoints (with saving τ' = τ + saving_s) succeeds with probability
        e^(−λτ') and is begun anew otherwise; each failure costs R, the restart and the filling of the queues. (Daly
        2006, A higher order estimate of the optimum checkpoint interval; there the next failure may come while one
        restarts, which here it does not.)

        Args:
            workers: how many there are.
            minibatch_s: seconds of one.
            filling_s: until the first minibatch after a start is through.
        """
        rate, stretch = workers / self.mean_s, self.saved_every * minibatch_s
        lost = rate * (stretch + self.saving_s)
        if lost > 700:
            return 0.0
        return rate * stretch / (1 + rate * (self.restart_s + filling_s)) / math.expm1(lost)

    def share_averaged(self, workers: int, round_s: float, replicas: int = 1, filling_s: float = 0.0) -> float:
        """The share of all minibatches that go into an average, where replicas fail alone.

        A round, from one averaging to the next, succeeds with p = e^(−λT), λ = workers / mean_s. A failure costs what
        was trained since the last averaging, and the rounds until the first averaging after the restart: R / T + 1 in
        the mean. So p / (1 − p) rounds go into an average for every 1 + R / T that do not. The others wait for one that
        has failed within the last S seconds until it has been silent for so long, S − (1 − e^(−NλS)) / (Nλ) in the mean
        over N replicas, and for the queues of one that has come back.

        Args:
            workers: of one replica.
            round_s: seconds from one averaging to the next.
            replicas: how many there are.
            filling_s: until the first minibatch after a start is through.
        """
        rate = workers * replicas / self.mean_s
        waited = SILENT_S + math.expm1(-rate * SILENT_S) / rate if replicas > 1 else 0.0
        returning = -math.expm1(-rate * round_s) if replicas > 1 else 0.0
        longer = round_s + waited + returning * filling_s
        failing = -math.expm1(-workers * longer / self.mean_s)
        return round_s / longer * (1 - failing) / (1 + failing * self.restart_s / longer)

    def saved_best(self, workers: int, minibatch_s: float) -> Failures:
        """These failures, with a checkpoint as often as loses least: every √(2 · saving · mean / workers) s.

        (Young 1974, A first order approximation to the optimum checkpoint interval.)

        Args:
            workers: how many there are.
            minibatch_s: seconds of one.
        """
        every = math.sqrt(2 * self.saving_s * self.mean_s / workers) / minibatch_s
        return replace(self, saved_every=max(1, round(every)))


def run_with_failures(
    chain: Chain, minibatches: int, failures: Failures, variation: Variation = STEADY, *, replicas: int = 1
) -> tuple[Run, int]:
    """Thousands of workers with failures: the recursion, begun anew after each; and how many failures there were.

    Without failures a run is drawn once; what a start from empty queues loses is in it. A failure at a time that is
    drawn throws back to the last minibatch saved, and the rest of the run follows `restart_s` later.

    Args:
        chain: one pipeline.
        minibatches: of each replica.
        failures: of workers.
        variation: of the workers' times.
        replicas: of the whole pipeline; one that fails stops all.
    """
    generator = np.random.default_rng((variation.seed, 1))
    whole = run_chain(chain, minibatches, variation, replicas=replicas)
    rate = chain.workers * replicas / failures.mean_s
    ends = np.empty(minibatches)
    begun, now, count = 0, 0.0, 0
    fill = float(whole.ends[0])
    while begun < minibatches:
        # from empty queues the first minibatch takes as long as it ever does, and the others follow at their pace
        offset = float(whole.ends[begun]) - fill
        rest = (
            whole.ends[begun:] - offset + failures.saving_s * (np.arange(minibatches - begun) // failures.saved_every)
        )
        until = float(generator.exponential(1 / rate))
        done = int(np.searchsorted(rest, until))
        ends[begun : begun + done] = now + rest[:done]
        if begun + done >= minibatches:
            break
        begun = max((begun + done) // failures.saved_every * failures.saved_every, begun)
        now, count = now + until + failures.restart_s, count + 1
    return Run(ends, whole.busy * whole.ends[-1] / ends[-1]), count
