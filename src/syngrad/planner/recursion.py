"""The shapes of :mod:`syngrad.planner.timing` minibatch by minibatch: a max-plus recursion, vectorised over workers.

Times are only ever added and compared, so that a run of 1,000 workers is a few operations on vectors a minibatch. What
varies (jitter, stragglers) is drawn; where nothing varies the steady pace is that of the closed form.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from syngrad.errors import ConfigError
from syngrad.pipeline.neighbours import WAIT_NEXT, WAIT_PREVIOUS
from syngrad.planner.timing import BACKWARD, FORWARD, Chain, Lockstep, Microbatches

Times = NDArray[np.float64]
#: what a worker does: its name, the minibatch, begin and end in seconds
Span = tuple[str, int, float, float]


@dataclass(frozen=True)
class Variation:
    """What varies from minibatch to minibatch, drawn from a seed.

    Args:
        jitter: the standard deviation of the logarithm of a worker's time for a minibatch; its mean stays.
        stragglers: the share of a worker's minibatches that take longer; slower: how many times as long.
        seed: of all draws.

    Raises:
        ConfigError: for numbers out of range.
    """

    jitter: float = 0.0
    stragglers: float = 0.0
    slower: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.jitter >= 0 and 0 <= self.stragglers <= 1 and self.slower >= 1):
            raise ConfigError(
                f"jitter must be 0 or more, stragglers a share from 0 to 1 and slower 1 or more, got {self.jitter!r}, "
                f"{self.stragglers!r} and {self.slower!r}"
            )

    @property
    def none(self) -> bool:
        """Whether nothing varies."""
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

    start_k(t) = max(end_k(t − 1), arrival_k(t), answered_k(t − depth)). The arrival depends on the previous worker's
    start at the same t: start_k = max(c_k, start_{k−1} + lag_{k−1}) is a running maximum of c_k − Σ lag, so that all
    workers are computed at once.

    Args:
        chain: one pipeline.
        minibatches: of each replica.
        variation: of the workers' times.
        replicas: of the whole pipeline.
        every: minibatches between two averagings over the replicas; 0 for none.
        average_s: what each takes.
    """
    k, depth, generator = chain.workers, chain.depth, np.random.default_rng(variation.seed)
    work, send, answer = (np.array(each) for each in (chain.work_s, chain.send_s, chain.answer_s))
    ahead, back, delay = (np.array(each, dtype=float) for each in (chain.forward_s, chain.backward_s, chain.delay_s))
    shape = (replicas, k)
    end, busy = np.zeros(shape), np.zeros(shape)
    line, line_back = np.full((replicas, k - 1), -np.inf), np.full((replicas, k - 1), -np.inf)
    answered = np.full((depth, replicas, k - 1), -np.inf)
    ends = np.empty(minibatches)
    for t in range(minibatches):
        if every and t and t % every == 0:
            end = np.broadcast_to(end.max(axis=0) + average_s, shape)
        factor = variation.factors(generator, shape)
        now, sends, answers = work * factor, send * factor, np.broadcast_to(answer * factor, shape)
        ready = end.copy()
        ready[:, :-1] = np.maximum(ready[:, :-1], answered[t % depth])
        ready[:, 1:] = np.maximum(ready[:, 1:], line + ahead + delay)
        lags = np.zeros(shape)
        lags[:, 1:] = np.cumsum(np.broadcast_to(sends, shape)[:, :-1] + ahead + delay, axis=1)
        start = np.maximum.accumulate(ready - lags, axis=1) + lags
        end = start + now
        busy += now
        line = np.maximum(start[:, :-1] + np.broadcast_to(sends, shape)[:, :-1], line) + ahead
        told = start + answers
        if chain.waits and k > 1:
            told = _told_from_the_last(told, answers, line_back, back, delay)
        line_back = np.maximum(told[:, 1:], line_back) + back
        answered[t % depth] = line_back + delay
        ends[t] = end.max()
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
    compute = np.array(lockstep.compute_s)
    end, busy, ends = np.zeros(len(compute)), np.zeros(len(compute)), np.empty(minibatches)
    for t in range(minibatches):
        now = compute * variation.factors(generator, compute.shape)
        busy += now
        end = end + now
        if (t + 1) % lockstep.every == 0:
            end = np.full_like(end, end.max() + lockstep.combine_s)
        ends[t] = end.max()
    return Run(ends, busy / ends[-1])


def run_microbatches(
    shape: Microbatches, minibatches: int = 3, variation: Variation = STEADY, told: list[list[Span]] | None = None
) -> Run:
    """Every worker does its order; what it receives begins to cross when it has asked and the sender heard so.

    Args:
        shape: what they do.
        minibatches: how many.
        variation: of the workers' times.
        told: takes what every worker does, where it is given.
    """
    generator, k = np.random.default_rng(variation.seed), shape.workers
    clock, busy, ends = [0.0] * k, np.zeros(k), np.empty(minibatches)
    lines = {(link, way): 0.0 for link in range(k - 1) for way in (FORWARD, BACKWARD)}
    orders = [shape.order(worker) for worker in range(k)]
    for t in range(minibatches):
        factor = np.broadcast_to(np.asarray(variation.factors(generator, (k,))), (k,))
        sent: dict[tuple[int, str, int], float] = {}
        done = [0] * k
        while any(done[worker] < len(orders[worker]) for worker in range(k)):
            before = list(done)
            for worker, order in enumerate(orders):
                while done[worker] < len(order):
                    what, way, part = order[done[worker]]
                    begin_s = clock[worker]
                    link = worker if (what == "send") == (way == FORWARD) else worker - 1
                    if what == "run":
                        seconds = (shape.forward_s if way == FORWARD else shape.backward_s)[worker] * factor[worker]
                        clock[worker] += seconds
                        busy[worker] += seconds
                    elif what == "send":
                        sent[link, way, part] = clock[worker]
                    elif (link, way, part) in sent:
                        begin = max(sent[link, way, part], clock[worker] + shape.delay_s[link], lines[link, way])
                        lines[link, way] = begin + shape.message_s[link]
                        clock[worker] = max(clock[worker], lines[link, way] + shape.delay_s[link])
                    else:
                        break
                    if told is not None and clock[worker] > begin_s:
                        name = "work" if what == "run" else WAIT_PREVIOUS if way == FORWARD else WAIT_NEXT
                        told[worker].append((name, t, begin_s, clock[worker]))
                    done[worker] += 1
            if done == before:
                raise ConfigError(f"the schedule {shape.kind!r} of {shape.parts} parts over {k} workers never ends")
        for worker in range(k):
            if told is not None:
                told[worker].append(("work", t, clock[worker], clock[worker] + shape.update_s[worker]))
            clock[worker] += shape.update_s[worker]
            busy[worker] += shape.update_s[worker]
        ends[t] = clock[0]
    return Run(ends, busy / max(clock))
