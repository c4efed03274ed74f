"""The shapes of :mod:`syngrad.planner.timing` minibatch by minibatch: a max-plus recursion, vectorised over workers.

Times are only ever added and compared, so that a run of 1,000 workers is a few operations on vectors a minibatch. What
varies (jitter, stragglers) is drawn; where nothing varies the steady pace is that of the closed form.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from syngrad.errors import ConfigError
from syngrad.pipeline.neighbours import WAIT_NEXT, WAIT_PREVIOUS
from syngrad.planner.microbatch_orders import BACKWARD, FORWARD, WEIGHTS
from syngrad.planner.timing import Chain, Lockstep, Microbatches

Times = NDArray[np.float64]
#: what a worker does: its name, the minibatch, begin and end in seconds
Span = tuple[str, int, float, float]


@dataclass(frozen=True)
class Variation:
    """What varies from minibatch to minibatch, drawn from a seed.

    Args:
        jitter: the standard deviation of the logarithm of a worker's time for a minibatch; its mean stays.
        stragglers: the share of a worker's minibatches that take longer; slower: how many times as long.
        unequal: the standard deviation of the logarithm of the workers' own times, each the same for all its
            minibatches; the mean over many workers stays.
        seed: of all draws.

    Raises:
        ConfigError: for numbers out of range.
    """

    jitter: float = 0.0
    stragglers: float = 0.0
    slower: float = 1.0
    unequal: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.jitter >= 0 and 0 <= self.stragglers <= 1 and self.slower >= 1 and self.unequal >= 0):
            raise ConfigError(
                "jitter and unequal must be 0 or more, stragglers a share from 0 to 1 and slower 1 or more, got "
                f"{self.jitter!r}, {self.unequal!r}, {self.stragglers!r} and {self.slower!r}"
            )

    @property
    def none(self) -> bool:
        """Whether nothing varies from minibatch to minibatch."""
        return self.jitter == 0 and (self.stragglers == 0 or self.slower == 1)

    def factors(self, generator: np.random.Generator, shape: tuple[int, ...]) -> Times | float:
        """What the workers' times are multiplied with for one minibatch."""
        if self.none:
            return 1.0
        drawn = np.ones(shape)
        if self.jitter:
            drawn = generator.lognormal(-0.5 * self.jitter**2, self.jitter, shape)
        if self.stragglers:
            drawn = np.where(generator.random(shape) < self.stragglers, drawn * self.slower, drawn)
        return drawn

    def devices(self, shape: tuple[int, ...]) -> Times | float:
        """What the workers' times are multiplied with for all minibatches: their devices."""
        if not self.unequal:
            return 1.0
        return np.random.default_rng((self.seed, 2)).lognormal(-0.5 * self.unequal**2, self.unequal, shape)


#: the same time for the same work, always
STEADY = Variation()


@dataclass(frozen=True)
class Run:
    """When a simulated run was done with each minibatch.

    Args:
        ends: seconds at which the last of all workers was done with it.
        busy: of every worker, the share of all time until then.
    """

    ends: Times
    busy: Times

    @property
    def seconds(self) -> float:
        """A minibatch, once the queues have filled: over the second half."""
        half = len(self.ends) // 2
        if half < 1:
            return float(self.ends[-1])
        return float((self.ends[-1] - self.ends[half - 1]) / (len(self.ends) - half))


class ChainClock:
    """Pipelines of one shape, minibatch by minibatch: every operation is one for all replicas and workers.

    start_k(t) = max(end_k(t − 1), arrival_k(t), answered_k(t − depth)). The arrival depends on the previous worker's
    start at the same t: start_k = max(c_k, start_{k−1} + lag_{k−1}) is a running maximum of c_k − Σ lag, so that all
    workers are computed at once.

    Args:
        chain: one pipeline.
        replicas: of it.
    """

    def __init__(self, chain: Chain, replicas: int = 1) -> None:
        self.chain, self.shape = chain, (replicas, chain.workers)
        self.work, self.send, self.answer = (np.array(each) for each in (chain.work_s, chain.send_s, chain.answer_s))
        links = (chain.forward_s, chain.backward_s, chain.delay_s)
        self.ahead, self.back, self.delay = (np.array(each, dtype=float) for each in links)
        #: when each worker of each replica is done with what it has begun
        self.end = np.zeros(self.shape)
        self.turn = 0
        between = (replicas, chain.workers - 1)
        self.line, self.line_back = np.full(between, -np.inf), np.full(between, -np.inf)
        self.answered = np.full((chain.depth, *between), -np.inf)

    def step(self, factor: Times | float) -> Times | float:
        """One more minibatch in every replica, the workers' times multiplied; what each worked on it."""
        now, sends = self.work * factor, np.broadcast_to(self.send * factor, self.shape)
        answers, there = np.broadcast_to(self.answer * factor, self.shape), self.turn % self.chain.depth
        ready = self.end.copy()
        ready[:, :-1] = np.maximum(ready[:, :-1], self.answered[there])
        ready[:, 1:] = np.maximum(ready[:, 1:], self.line + self.ahead + self.delay)
        lags = np.zeros(self.shape)
        lags[:, 1:] = np.cumsum(sends[:, :-1] + self.ahead + self.delay, axis=1)
        start = np.maximum.accumulate(ready - lags, axis=1) + lags
        self.end = start + now
        self.line = np.maximum(start[:, :-1] + sends[:, :-1], self.line) + self.ahead
        told = start + answers
        if self.chain.waits and self.chain.workers > 1:
            told = _told_from_the_last(told, answers, self.line_back, self.back, self.delay)
        self.line_back = np.maximum(told[:, 1:], self.line_back) + self.back
        self.answered[there] = self.line_back + self.delay
        self.turn += 1
        return now

    def steps(self, factors: Sequence[Times | float]) -> None:
        """More minibatches in every replica, given what the workers' times are multiplied with for each."""
        for factor in factors:
            self.step(factor)

    def go_on(self, who: NDArray[np.bool_], at: Times) -> None:
        """Some replicas' workers have waited for others, until these times; what is under way stays so."""
        self.end[who] = at

    def begin(self, who: NDArray[np.bool_], at: float) -> None:
        """Some replicas begin anew, with empty queues."""
        self.end[who] = at
        self.line[who] = self.line_back[who] = -np.inf
        self.answered[:, who] = -np.inf


def run_chain(
    chain: Chain,
    minibatches: int,
    variation: Variation = STEADY,
    *,
    replicas: int = 1,
    every: int = 0,
    average_s: float = 0.0,
) -> Run:
    """Workers one after the other, whatever the number of minibatches and workers, in seconds.

    Args:
        chain: one pipeline.
        minibatches: of each replica.
        variation: of the workers' times.
        replicas: of the whole pipeline.
        every: minibatches between two averagings over the replicas; 0 for none.
        average_s: what each takes.
    """
    generator, clock = np.random.default_rng(variation.seed), ChainClock(chain, replicas)
    all_of_them, own = np.full(replicas, True), variation.devices(clock.shape)
    busy, ends = np.zeros(clock.shape), np.empty(minibatches)
    for t in range(minibatches):
        if every and t and t % every == 0:
            clock.go_on(all_of_them, clock.end.max(axis=0) + average_s)
        busy += clock.step(own * variation.factors(generator, clock.shape))
        ends[t] = clock.end.max()
    return Run(ends, busy.ravel() / ends[-1])


def _told_from_the_last(told: Times, answers: Times, line_back: Times, back: Times, delay: Times) -> Times:
    """When each worker answers, where it has to have its own answer first: a running maximum from the last one on."""
    lags = np.zeros_like(told)  # from the last worker to worker k
    lags[:, :-1] = np.cumsum((answers[:, :-1] + back + delay)[:, ::-1], axis=1)[:, ::-1]
    ready = told.copy()
    ready[:, :-1] = np.maximum(ready[:, :-1], line_back + back + delay + answers[:, :-1])
    return np.maximum.accumulate((ready - lags)[:, ::-1], axis=1)[:, ::-1] + lags


def run_lockstep(lockstep: Lockstep, minibatches: int, variation: Variation = STEADY) -> Run:
    """Workers that wait for each other; between two times at which they combine each goes its own way."""
    generator = np.random.default_rng(variation.seed)
    compute = np.array(lockstep.compute_s) * variation.devices((len(lockstep.compute_s),))
    end, busy, ends = np.zeros(len(compute)), np.zeros(len(compute)), np.empty(minibatches)
    for t in range(minibatches):
        now = compute * variation.factors(generator, compute.shape)
        busy += now
        end = end + now
        if (t + 1) % lockstep.every == 0:
            end = np.full_like(end, end.max() + lockstep.combine_s)
        ends[t] = end.max()
    return Run(ends, busy / ends[-1])


class MicrobatchClock:
    """Pipelines whose workers each do their order; what one receives begins to cross when it has asked for it.

    The order does not depend on times, and so every operation is one for all replicas.

    Args:
        shape: one pipeline.
        replicas: of it.
        told: takes what every worker of the only replica does, where it is given.
    """

    def __init__(self, shape: Microbatches, replicas: int = 1, told: list[list[Span]] | None = None) -> None:
        self.kind, self.replicas, self.told, self.turn = shape, replicas, told, 0
        self.shape = (replicas, shape.workers)
        #: what is done in a minibatch, whatever it takes: (what, worker, link, way, part)
        self.done = list(_in_turn(shape))
        # of one replica plain numbers, which are quicker than vectors of one
        nothing: Any = 0.0 if replicas == 1 else np.zeros(replicas)
        self.larger: Any = max if replicas == 1 else np.maximum
        self.clock: list[Any] = [nothing] * shape.workers
        links = range(shape.workers - 1)
        #: of every link, each way: when the last message began to cross, and when it had left
        self.lines: dict[tuple[int, str], Any] = {
            (k, way): (nothing, nothing) for k in links for way in (FORWARD, BACKWARD)
        }

    @property
    def end(self) -> Times:
        """When each worker of each replica is done with what it has begun."""
        return np.array(self.clock).reshape(self.shape[::-1]).T

    def step(self, factor: Times | float) -> Times:
        """One more minibatch in every replica, the workers' times multiplied; what each worked on it."""
        shape, larger, clock, lines = self.kind, self.larger, self.clock, self.lines
        factors: Any = np.broadcast_to(np.asarray(factor), self.shape).T
        if self.replicas == 1:
            factors = factors[:, 0].tolist()
        passes = {
            way: [seconds * each for seconds, each in zip(times, factors, strict=True)]
            for way, times in ((FORWARD, shape.forward_s), (BACKWARD, shape.backward_s), (WEIGHTS, shape.weight_s))
            if times
        }
        #: when a message was sent, or asked for, whichever came first, and then when it has left its line
        known: dict[tuple[int, str, int], Any] = {}
        for what, worker, link, way, part in self.done:
            begin_s, message = clock[worker], (link, way, part)
            if what == "run":
                clock[worker] = clock[worker] + passes[way][worker]
            elif what == "receive":
                clock[worker] = larger(clock[worker], known[message] + shape.delay_s[link])
            else:
                ready = clock[worker]
                if what == "ask":  # behind what is crossing the other way by then
                    begun, left = lines[link, BACKWARD if way == FORWARD else FORWARD]
                    ready = larger(ready, left * (begun <= ready)) + shape.delay_s[link]
                if message in known:
                    begun = larger(larger(known[message], ready), lines[link, way][1])
                    ready = begun + shape.message_s[link]
                    lines[link, way] = begun, ready
                known[message] = ready
            if self.told is not None and clock[worker] > begin_s:
                name = "work" if what == "run" else WAIT_PREVIOUS if way == FORWARD else WAIT_NEXT
                self.told[worker].append((name, self.turn, begin_s, clock[worker]))
        for worker in range(shape.workers):
            if self.told is not None:
                self.told[worker].append(("work", self.turn, clock[worker], clock[worker] + shape.update_s[worker]))
            clock[worker] = clock[worker] + shape.update_s[worker]
        self.turn += 1
        update = np.array(shape.update_s)
        return np.asarray((np.array(shape.work_s) - update) * factor + update)


class FlushedClock:
    """Replicas of a pipeline of microbatches, as a recursion over rounds takes them: every minibatch by itself.

    The first worker is the last that is done with a minibatch, and begins the next: no minibatch meets another. So all
    minibatches of a round are computed at once, as if each were a replica of its own.

    Args:
        kind: one pipeline.
        replicas: of it.
    """

    def __init__(self, kind: Microbatches, replicas: int = 1) -> None:
        self.kind, self.shape, self.done = kind, (replicas, kind.workers), np.zeros(replicas)

    @property
    def end(self) -> Times:
        """When each worker of each replica is done."""
        return np.broadcast_to(self.done[:, None], self.shape)

    def steps(self, factors: Sequence[Times | float]) -> None:
        """More minibatches in every replica, given what the workers' times are multiplied with for each."""
        if all(np.size(factor) == 1 for factor in factors):
            one = MicrobatchClock(self.kind)
            one.step(factors[0])  # nothing varies, and all are alike
            self.done = self.done + one.clock[0] * len(factors)
            return
        every = np.concatenate([np.broadcast_to(factor, self.shape) for factor in factors])
        clock = MicrobatchClock(self.kind, len(every))
        clock.step(every)
        self.done = self.done + clock.end[:, 0].reshape(len(factors), -1).sum(axis=0)

    def go_on(self, who: NDArray[np.bool_], at: Times) -> None:
        """Some replicas have waited for others."""
        self.done[who] = at.max()

    def begin(self, who: NDArray[np.bool_], at: float) -> None:
        """Some replicas begin anew."""
        self.done[who] = at


def _in_turn(shape: Microbatches) -> Iterator[tuple[str, int, int, str, int]]:
    """What all workers do in a minibatch, so that nothing is received before it is sent."""
    orders = [shape.order(worker) for worker in range(shape.workers)]
    sent: set[tuple[int, str, int]] = set()
    done = [0] * shape.workers
    while any(done[worker] < len(orders[worker]) for worker in range(shape.workers)):
        before = list(done)
        for worker, order in enumerate(orders):
            while done[worker] < len(order):
                what, way, part = order[done[worker]]
                link = worker if (what == "send") == (way != BACKWARD) else worker - 1
                if what == "send":
                    sent.add((link, way, part))
                elif what == "receive" and (link, way, part) not in sent:
                    break
                yield what, worker, link, way, part
                done[worker] += 1
        if done == before:
            raise ConfigError(
                f"the schedule {shape.kind!r} of {shape.parts} parts over {shape.workers} workers never ends"
            )


def run_microbatches(
    shape: Microbatches, minibatches: int = 3, variation: Variation = STEADY, told: list[list[Span]] | None = None
) -> Run:
    """One pipeline of microbatches, minibatch by minibatch.

    Args:
        shape: what its workers do.
        minibatches: how many.
        variation: of the workers' times.
        told: takes what every worker does, where it is given.
    """
    generator, clock = np.random.default_rng(variation.seed), MicrobatchClock(shape, told=told)
    own, busy, ends = variation.devices(clock.shape), np.zeros(clock.shape), np.empty(minibatches)
    for t in range(minibatches):
        busy += clock.step(own * variation.factors(generator, clock.shape))
        ends[t] = clock.clock[0]
    return Run(ends, busy.ravel() / float(clock.end.max()))
