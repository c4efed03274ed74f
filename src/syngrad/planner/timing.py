"""How long a minibatch takes once its parts are known: three shapes of a run, each with its closed form.

    Lockstep       every worker computes, and then all combine what they have: data parallelism, rare averages
    Chain          workers one after the other, none waiting for a gradient: `synthetic`, `delayed`, `corrected`
    Microbatches   workers one after the other, every minibatch in parts and back again: `gpipe`, `1f1b`, `zb1p`

They hold seconds alone and know nothing of models; :mod:`syngrad.planner.recursion` runs the same shapes minibatch by
minibatch, and :mod:`syngrad.planner.discrete_events` event by event.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from syngrad.planner.microbatch_orders import Action, orders


class Bound(NamedTuple):
    """What a minibatch takes at least, for one reason.

    Args:
        seconds: at least.
        why: "worker", "link" or "round trip".
        where: the worker, or the worker before the link, from 0.
    """

    seconds: float
    why: str
    where: int


@dataclass(frozen=True)
class Lockstep:
    """Workers that wait for each other.

    Args:
        compute_s: of every worker, a minibatch.
        combine_s: of what all do together; every: minibatches between two times.
    """

    compute_s: tuple[float, ...]
    combine_s: float = 0.0
    every: int = 1

    @property
    def seconds(self) -> float:
        """max_k compute_k + combine / every: all wait for the slowest (the bulk-synchronous model, Valiant 1990)."""
        return max(self.compute_s) + self.combine_s / self.every

    def bounds(self) -> list[Bound]:
        """The slowest worker, and what is done together."""
        slowest = max(range(len(self.compute_s)), key=self.compute_s.__getitem__)
        return [Bound(self.compute_s[slowest], "worker", slowest), Bound(self.combine_s / self.every, "link", 0)]


@dataclass(frozen=True)
class Chain:
    """Workers one after the other; each trains on what comes, and sends on at once. `K` workers, `K − 1` links.

    A worker begins minibatch t when it is done with t − 1, its message is there, and the next worker has answered
    t − depth. Its message leaves `send_s` after that, its answer to the previous worker `answer_s` after that.

    Args:
        work_s: of every worker, a minibatch.
        send_s: from a step's beginning until its message leaves; answer_s: until its answer does.
        forward_s: how long a message holds the link after each worker but the last; backward_s: an answer likewise.
        delay_s: from one end of that link to the other.
        depth: minibatches that may be under way between two workers.
        waits: whether a worker answers only when its own answer has come (`delayed`).
    """

    work_s: tuple[float, ...]
    send_s: tuple[float, ...]
    answer_s: tuple[float, ...]
    forward_s: tuple[float, ...]
    backward_s: tuple[float, ...]
    delay_s: tuple[float, ...]
    depth: int
    waits: bool = False

    @property
    def workers(self) -> int:
        """How many there are."""
        return len(self.work_s)

    def round_trip_s(self, k: int) -> float:
        """From the beginning of a step of worker k until the answer to its message is back."""
        until = k + 1 if not self.waits else self.workers - 1
        links = range(k, until)
        there = sum(self.send_s[j] + self.forward_s[j] + self.delay_s[j] for j in links)
        back = sum(self.backward_s[j] + self.delay_s[j] + self.answer_s[j + 1] for j in links)
        return there + back

    def bounds(self) -> list[Bound]:
        """Every cycle of the event graph: a worker, a link in each direction, a round trip over the queue's depth."""
        found = [Bound(seconds, "worker", k) for k, seconds in enumerate(self.work_s)]
        for k in range(self.workers - 1):
            found.append(Bound(self.forward_s[k], "link", k))
            found.append(Bound(self.backward_s[k], "link", k))
            found.append(Bound(self.round_trip_s(k) / self.depth, "round trip", k))
        return found

    @property
    def seconds(self) -> float:
        """The largest mean of a cycle: T = max(work_k, forward_k, backward_k, round trip_k / depth).

        The steady rate of a timed event graph is its critical cycle's (Baccelli, Cohen, Olsder and Quadrat 1992,
        Synchronization and Linearity, theorem 3.28). Every other cycle is made of these, and so between them.
        """
        return max(self.bounds()).seconds

    def staleness(self, k: int) -> float:
        """Minibatches that worker k has begun since it sent a message, when the answer comes: a round trip of them.

        Where what comes after is slower than what stands before, the queue is full: `depth`.
        """
        before = max([*self.work_s[: k + 1], *self.forward_s[:k]])
        after = max([*self.work_s[k + 1 :], *self.forward_s[k:], *self.backward_s[k:]])
        if after > before:
            return float(self.depth)
        return min(self.round_trip_s(k) / self.seconds, float(self.depth))


@dataclass(frozen=True)
class Microbatches:
    """Workers one after the other, and each minibatch in parts that go forward and back before any weight changes.

    A message over gloo begins to cross when the receiver has asked for it, and the sender heard so. What asks goes over
    the same socket as messages the other way, behind those that the asking worker has sent before.

    Args:
        kind: "gpipe", "1f1b" or "zb1p".
        parts: of a minibatch.
        forward_s: of every worker, a part; backward_s: likewise, with the gradients of weights but in `zb1p`.
        message_s: how long a part's message holds the link after each worker but the last, either way.
        delay_s: of that link.
        update_s: of every worker, a minibatch: what is done once all parts have gone back.
        weight_s: of every worker, a part: the gradients of weights, where they are a pass of their own (`zb1p`).
    """

    kind: str
    parts: int
    forward_s: tuple[float, ...]
    backward_s: tuple[float, ...]
    message_s: tuple[float, ...]
    delay_s: tuple[float, ...]
    update_s: tuple[float, ...]
    weight_s: tuple[float, ...] = ()

    @property
    def workers(self) -> int:
        """How many there are."""
        return len(self.forward_s)

    @property
    def work_s(self) -> tuple[float, ...]:
        """Of every worker, a minibatch."""
        weights = self.weight_s or (0.0,) * self.workers
        passes = zip(self.forward_s, self.backward_s, weights, self.update_s, strict=True)
        return tuple(self.parts * sum(passed) + update for *passed, update in passes)

    @property
    def seconds(self) -> float:
        """In closed form: of `gpipe` for any stages, of the others for equal ones and links that take no time.

        gpipe: all parts go forward, then all go back. With g_k = f_k + message + delay of what comes to worker k (f_0
        alone at the first), a flow shop of identical jobs takes Σ g_k + (m − 1) max_k (g_k + delay_k): worker k asks
        for a part when it is done with the one before, which the sender hears a delay later. Back likewise. (Huang et
        al. 2019, arXiv 1811.06965; permutation flow shop, Johnson 1954.)

        1f1b: (m − 1) max_k (f_k + b_k) + Σ (f_k + b_k) (Narayanan et al. 2021, arXiv 2104.04473).

        zb1p: m max_k (f_k + b_k + w_k) + (K − 1) max_k (f_k + b_k − w_k) (ZB-H1, Qi et al. 2023, arXiv 2401.10241).
        """
        m, first = self.parts, self.update_s[0]
        if self.kind == "zb1p":
            passes = list(zip(self.forward_s, self.backward_s, self.weight_s, strict=True))
            bubble = max(max(f + b - w for f, b, w in passes), 0.0)
            return m * max(map(sum, passes)) + (self.workers - 1) * bubble + first
        if self.kind == "1f1b":
            both = [forward + backward for forward, backward in zip(self.forward_s, self.backward_s, strict=True)]
            return sum(both) + (m - 1) * max(both) + first
        lags = [message + delay for message, delay in zip(self.message_s, self.delay_s, strict=True)]
        ahead = [f + lag for f, lag in zip(self.forward_s, [0.0, *lags], strict=True)]
        asked = [g + delay for g, delay in zip(ahead, [0.0, *self.delay_s], strict=True)]
        back = [b + lag for b, lag in zip(self.backward_s, [*lags, 0.0], strict=True)]
        asked_back = [g + delay for g, delay in zip(back, [*self.delay_s, 0.0], strict=True)]
        return sum(ahead) + (m - 1) * max(asked) + sum(back) + (m - 1) * max(asked_back) + first

    def order(self, worker: int) -> tuple[Action, ...]:
        """What a worker does in a minibatch, in order."""
        return orders(self.kind, self.parts, self.workers)[worker]
