"""A chain of workers event by event: for what a recursion cannot say, workers that fail and are started again.

Every worker and every direction of a link is a process of simpy's, which takes what comes and works for as long as it
takes. Without failures and variation that is the recursion of :mod:`syngrad.planner.recursion`, to the last digits.

A failure ends the run everywhere, as it does in Syngrad: all start again `restart_s` later from the last minibatch that
was saved, with empty queues.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import numpy as np
import simpy

from syngrad.checks import check_whole
from syngrad.pipeline.neighbours import WAIT_NEXT, WAIT_PREVIOUS
from syngrad.planner.recursion import STEADY, Span, Variation
from syngrad.planner.timing import Chain
from syngrad.planner.worker_failures import Failures

Events = Generator[Any, Any, None]


@dataclass(frozen=True)
class Simulated:
    """What came of a simulated run.

    Args:
        ends: seconds at which the last of all workers was done with each minibatch, for good.
        failures: how many there were.
        lost: minibatches that were trained on and then lost.
    """

    ends: tuple[float, ...]
    failures: int = 0
    lost: int = 0


def simulate(
    chain: Chain,
    minibatches: int,
    variation: Variation = STEADY,
    failures: Failures | None = None,
    told: list[list[Span]] | None = None,
) -> Simulated:
    """Run a chain of workers, event by event.

    Args:
        chain: the workers, their links, and how many minibatches may be under way.
        minibatches: how many.
        variation: of the workers' times.
        failures: of workers; None for none.
        told: takes what every worker does, where it is given; of a run without failures.

    Raises:
        ConfigError: for no minibatches.
    """
    check_whole("minibatches", minibatches, 1)
    generator = np.random.default_rng(variation.seed)
    broken = np.random.default_rng((variation.seed, 1))
    ends = [0.0] * minibatches
    begun, now, count, lost = 0, 0.0, 0, 0
    while True:
        until = None if failures is None else float(broken.exponential(failures.mean_s / chain.workers))
        attempt = _Attempt(chain, minibatches - begun, variation, generator, told)
        attempt.run(until)
        done = attempt.done
        ends[begun : begun + len(done)] = [now + end for end in done]
        if begun + len(done) == minibatches or failures is None or until is None:
            return Simulated(tuple(ends), count, lost)
        saved = (begun + len(done)) // failures.saved_every * failures.saved_every
        saved = max(saved, begun)
        lost += begun + len(done) - saved
        begun, count = saved, count + 1
        now += until + failures.restart_s


class _Attempt:
    """One start of all workers, from empty queues, until they are done or one of them fails."""

    def __init__(
        self,
        chain: Chain,
        minibatches: int,
        variation: Variation,
        generator: np.random.Generator,
        told: list[list[Span]] | None,
    ) -> None:
        self.told = told
        self.chain, self.minibatches, self.variation, self.generator = chain, minibatches, variation, generator
        self.environment = simpy.Environment()
        k = chain.workers
        links = range(k - 1)
        self.messages = [simpy.Store(self.environment) for _ in range(k)]
        self.leaving = [simpy.Store(self.environment) for _ in links]
        self.answers = [simpy.Store(self.environment) for _ in links]
        self.answered = [simpy.Store(self.environment) for _ in links]
        self.room = [simpy.Container(self.environment, init=chain.depth) for _ in links]
        self.devices = np.broadcast_to(np.asarray(variation.devices((1, k))), (1, k))[0]
        #: workers that are done with each minibatch, and when all are
        self.missing = [k] * minibatches
        self.done: list[float] = []
        self._factors: list[Any] = []
        for worker in range(k):
            self.environment.process(self._work(worker))
        for link in links:
            self.environment.process(self._carry(self.leaving[link], chain.forward_s[link], link, self._arrived))
            self.environment.process(self._carry(self.answers[link], chain.backward_s[link], link, self._returned))

    def run(self, until: float | None) -> None:
        """Let it go on until all are done, or for so many seconds."""
        if until is None:
            self.environment.run()
        elif until > 0:
            self.environment.run(until=until)

    def _factor(self, minibatch: int, worker: int) -> float:
        """What a worker's time is multiplied with; drawn for all workers of a minibatch together."""
        while len(self._factors) <= minibatch:
            self._factors.append(
                np.broadcast_to(self.variation.factors(self.generator, (self.chain.workers,)), self.chain.workers)
            )
        return float(self._factors[minibatch][worker] * self.devices[worker])

    def _work(self, worker: int) -> Events:
        chain, first, last = self.chain, worker == 0, worker == self.chain.workers - 1
        for minibatch in range(self.minibatches):
            begin = self.environment.now
            if not first:
                yield self.messages[worker].get()
                begin = self._tell(worker, WAIT_PREVIOUS, minibatch, begin)
            if not last:
                yield self.room[worker].get(1)
                begin = self._tell(worker, WAIT_NEXT, minibatch, begin)
            factor = self._factor(minibatch, worker)
            if not last:
                self._after(factor * chain.send_s[worker], self.leaving[worker], minibatch)
            if not first:
                self.environment.process(self._answer(worker, minibatch, factor * chain.answer_s[worker]))
            yield self.environment.timeout(factor * chain.work_s[worker])
            self._tell(worker, "work", minibatch, begin)
            self.missing[minibatch] -= 1
            if self.missing[minibatch] == 0:
                self.done.append(self.environment.now)

    def _tell(self, worker: int, name: str, minibatch: int, begin: float) -> float:
        """What a worker did from there until now; now."""
        now = float(self.environment.now)
        if self.told is not None and now > begin:
            self.told[worker].append((name, minibatch, begin, now))
        return now

    def _answer(self, worker: int, minibatch: int, seconds: float) -> Events:
        """Answer the previous worker; where its own answer has to be there first, so long after that."""
        begun = self.environment.now
        if self.chain.waits and worker < self.chain.workers - 1:
            yield self.answered[worker].get()
        yield self.environment.timeout(max(begun, self.environment.now) + seconds - self.environment.now)
        yield self.answers[worker - 1].put(minibatch)

    def _after(self, seconds: float, store: simpy.Store, what: int) -> None:
        def later() -> Events:
            yield self.environment.timeout(seconds)
            yield store.put(what)

        self.environment.process(later())

    def _carry(self, store: simpy.Store, seconds: float, link: int, arrived: Any) -> Events:
        """One direction of a link: one thing after the other holds it, and reaches the other end a delay later."""
        while True:
            what = yield store.get()
            yield self.environment.timeout(seconds)
            self.environment.process(arrived(link, what))

    def _arrived(self, link: int, minibatch: int) -> Events:
        yield self.environment.timeout(self.chain.delay_s[link])
        yield self.messages[link + 1].put(minibatch)

    def _returned(self, link: int, minibatch: int) -> Events:
        yield self.environment.timeout(self.chain.delay_s[link])
        yield self.room[link].put(1)
        if self.chain.waits and link > 0:
            yield self.answered[link].put(minibatch)
