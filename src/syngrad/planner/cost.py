"""What a layout costs: seconds a minibatch, bytes, memory, waiting and staleness, from a profile and a cluster.

A worker's time is the sum of what its units take, one after the other, times what its neighbours on the machine cost
it; what it waits for is the business of :mod:`syngrad.planner.timing`. What is not modelled: caches that two parts of a
model share, a link that others use too, and a minibatch that is another size than the profiled one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import accumulate, pairwise

from syngrad.errors import ConfigError
from syngrad.planner.layouts import Cluster, Layout
from syngrad.planner.quantities import DTYPES, Estimates, Link, Profile, Unit
from syngrad.planner.timing import Chain, Lockstep, Microbatches

#: gloo sends a tensor round the ring in pieces of at most so many bytes, and at least so many of each worker's share
SEGMENT, SEGMENTS = 2**20, 2
#: DDP reduces gradients in buckets: the first of so many bytes, and each other one
BUCKETS = (2**20, 25 * 2**20)
#: PowerSGD reduces one thin matrix, then the other, and what is no matrix by itself
ROUNDS_OF_LOW_RANK = 3
#: minibatches between two averagings of what workers of a pipeline share
SHARE_EVERY = 16


class Costs:
    """What parts of a model take on a cluster.

    Args:
        profile: of the model.
        cluster: the workers.
        estimator: a name in the profile's `estimates`; None for the first one there.
    """

    def __init__(self, profile: Profile, cluster: Cluster, estimator: str | None = None) -> None:
        self.profile, self.cluster, self.machine = profile, cluster, cluster.machine
        names = list(profile.estimates)
        self.estimates = profile.estimates[estimator or names[0]] if names else (None,) * (len(profile.units) - 1)
        self._sums = {
            name: [0.0, *accumulate(float(getattr(unit, name)) for unit in profile.units)]
            for name in Unit.__dataclass_fields__
            if name != "name"
        }

    def total(self, name: str, i: int, j: int) -> float:
        """Of a quantity, over the units i … j − 1."""
        sums = self._sums[name]
        return sums[j] - sums[i]

    def forward_s(self, i: int, j: int, share: float = 1.0) -> float:
        """Of a share of a minibatch: fixed + share · (whole − fixed)."""
        whole, fixed = self.total("forward_s", i, j), self.total("fixed_forward_s", i, j)
        return fixed + share * (whole - fixed)

    def backward_s(self, i: int, j: int, share: float = 1.0, answered: bool = True) -> float:
        """Likewise; without the gradient of the units' input where nobody is to be answered."""
        whole, fixed = self.total("backward_s", i, j), self.total("fixed_backward_s", i, j)
        spared = 0.0 if answered else self.profile.units[i].input_gradient_s
        return fixed + share * (whole - fixed - spared)

    def message_bytes(self, cut: int, dtype: str, context: bool = True) -> float:
        """Of a message that crosses before unit `cut`, a minibatch; int8 has a scale of 4 bytes a row."""
        unit = self.profile.units[cut - 1]
        size = unit.message_bytes * DTYPES[dtype] / 4 + (unit.context_bytes if context else 0)
        return size + (4 * unit.message_bytes / unit.row_bytes if dtype == "int8" else 0)

    def estimates_at(self, cut: int) -> Estimates:
        """Of the estimator before unit `cut`.

        Raises:
            ConfigError: where none can stand there.
        """
        found = self.estimates[cut - 1]
        if found is None:
            raise ConfigError(f"no estimator can stand before {self.profile.units[cut].name!r}; cut elsewhere")
        return found

    def send_s(self, cut: int, size: float, dtype: str) -> float:
        """What either end of a link spends on one message: half of what it takes on one machine, and packing."""
        return self.machine.message(size) / 2 + self.packing_s(cut, dtype) / 2

    def packing_s(self, cut: int, dtype: str) -> float:
        """What it takes to bring the message before unit `cut` into a form, and back, at both ends together."""
        pack = self.machine.pack.get(dtype)
        return pack(self.profile.units[cut - 1].message_bytes) if pack is not None else 0.0


# Data parallelism.


def ring_s(size: float, workers: int, link: Link) -> float:
    """Seconds that a ring all-reduce of so many bytes spends on the links.

    2 (W − 1) rounds, in each of which every worker sends a W-th of the tensor (Patarasuk and Yuan 2009); gloo divides
    it into two pieces or more, of 1 MiB at most. Two are under way at a time, and each begins to cross when the
    receiver has asked for it, so that two take two delays: pieces · delay + 2 (W − 1) / W · size / rate.
    """
    if workers < 2:
        return 0.0
    pieces = 2 * (workers - 1) * max(math.ceil(size / workers / SEGMENT), SEGMENTS)
    return pieces * link.delay_s + 2 * (workers - 1) / workers * link.seconds(size)


def exchange_s(size: float, workers: int, link: Link) -> float:
    """Seconds that an averaging of so many bytes spends on the links, as replicas and `diloco` do it.

    Everybody sends every other a W-th of its own, and then what it has made of its share: as many bytes as round a
    ring, 2 (W − 1) / W · size / rate, but four delays in all, as gloo sends what was asked for.
    """
    if workers < 2:
        return 0.0
    return 4 * link.delay_s + 2 * (workers - 1) / workers * link.seconds(size)


def data_parallel(costs: Costs, layout: Layout) -> tuple[Lockstep, float]:
    """The timing of a layout in which every worker has the whole model, and the bytes of a minibatch.

    Gradients go round while the backward pass is still on its way: a bucket begins when its gradients are there and the
    one before is through. What this takes of the processor is not hidden. Models are averaged between two steps.
    """
    profile, cluster, n, w = costs.profile, costs.cluster, len(costs.profile.units), costs.cluster.workers
    share = 1.0 if layout.kind == "diloco" else 1.0 / w
    size = float(profile.parameter_bytes)
    if layout.kind == "ddp:bf16":
        size /= 2
    elif layout.kind == "ddp:powersgd":
        size = costs.total("low_rank_bytes", 0, n)
    ring = 2 * (w - 1) / max(w, 1)
    rounds = ROUNDS_OF_LOW_RANK if layout.kind == "ddp:powersgd" else 1
    own = rounds * costs.machine.all_reduce(size / rounds) * ring if w > 1 else 0.0
    forward, backward, update = (
        costs.forward_s(0, n, share), costs.backward_s(0, n, share), costs.total("optimizer_s", 0, n),
    )  # fmt: skip
    rest = profile.reading_s + update + (profile.low_rank_s if layout.kind == "ddp:powersgd" else 0.0)
    compute = tuple((forward + backward + rest) * cluster.slowdown(k) for k in range(w))
    if layout.every:
        combine = own + (exchange_s if layout.kind == "diloco" else ring_s)(size, w, cluster.widest)
        if layout.kind == "diloco":  # an outer step over a copy of all weights: read two, write two
            combine += 4 * costs.machine.copy(size)
        return Lockstep(compute, combine, layout.every), ring * w * size / layout.every
    slow = max(cluster.slowdown(k) for k in range(w))
    through = _buckets(costs, size / max(profile.parameter_bytes, 1), rounds, share, slow) if w > 1 else 0.0
    hidden = max(0.0, (forward + backward) * slow)
    return Lockstep(compute, own + max(through - hidden, 0.0)), ring * w * size


def _buckets(costs: Costs, shrunk: float, rounds: int, share: float, slow: float) -> float:
    """Seconds from a step's beginning until the last bucket of gradients has gone round."""
    n, w, link = len(costs.profile.units), costs.cluster.workers, costs.cluster.widest
    now, through, gathered = costs.forward_s(0, n, share) * slow, 0.0, 0.0
    limit, last = BUCKETS
    for i in reversed(range(n)):
        now += costs.backward_s(i, i + 1, share) * slow
        gathered += costs.total("parameter_bytes", i, i + 1)
        if gathered >= limit or i == 0:  # what is over the limit stays whole: a bucket is made of whole tensors
            through = max(through, now) + rounds * ring_s(gathered * shrunk / rounds, w, link)
            gathered, limit = 0.0, last
    return through


# Pipelines.


def spans(costs: Costs, layout: Layout) -> list[tuple[int, int]]:
    """The units (first, last + 1) of every worker.

    Raises:
        ConfigError: where the layout's cuts are none.
    """
    edges = [0, *layout.cuts, len(costs.profile.units)]
    if any(b <= a for a, b in pairwise(edges)):
        raise ConfigError(f"cuts at {list(layout.cuts)} do not part {len(costs.profile.units)} units in order")
    return list(pairwise(edges))


def averaging_s(costs: Costs, layout: Layout) -> float:
    """Seconds of an averaging of replicas: every worker's weights with those of its stage; the largest part decides."""
    largest = max(costs.total("parameter_bytes", i, j) for i, j in spans(costs, layout))
    return costs.machine.all_reduce(largest) + exchange_s(largest, layout.replicas, costs.cluster.apart)


def microbatched(costs: Costs, layout: Layout) -> tuple[Microbatches, float]:
    """The timing of `gpipe`, `1f1b` and `zb1p`, and the bytes of a minibatch. Every worker reads the data.

    `zb1p` parts a backward pass into that of what came and that of weights, which take as long as each other (arXiv
    2401.10241); the first worker, to whom nothing came, has the latter alone.
    """
    cluster, parts, each = costs.cluster, layout.microbatches, spans(costs, layout)
    forward, backward, weights, update, message, delay = (list[float]() for _ in range(6))
    sent = 0.0
    for k, (i, j) in enumerate(each):
        slow = cluster.slowdown(k) if parts > 1 else 1 / cluster.speed(k)  # of one part, one computes at a time
        packed = sum(costs.packing_s(cut, layout.form) for cut in (i, j) if 0 < cut < len(costs.profile.units)) / 2
        back, apart = costs.backward_s(i, j, 1 / parts), 0.0
        if layout.plain_kind == "zb1p":
            apart = back / 2 if k else back
            weights.append((apart + costs.machine.action_s) * slow)
        for into, passed in ((forward, costs.forward_s(i, j, 1 / parts)), (backward, back - apart)):
            into.append((passed + packed / parts + costs.machine.action_s) * slow)
        update.append((costs.total("optimizer_s", i, j) + costs.profile.reading_s) * slow)
        if k < len(each) - 1:
            size = costs.message_bytes(j, layout.form, context=False) / parts
            link = cluster.between(k)
            message.append(costs.machine.exchange(size) + link.seconds(size))
            delay.append(link.delay_s)
            sent += 2 * size * parts
    times = (tuple(forward), tuple(backward), tuple(message), tuple(delay), tuple(update))
    return Microbatches(layout.plain_kind, parts, *times, tuple(weights)), sent


def chained(costs: Costs, layout: Layout) -> tuple[Chain, float]:
    """The timing of `synthetic`, `delayed` and `corrected`, and the bytes of a minibatch."""
    cluster, profile = costs.cluster, costs.profile
    work, send, answer, ahead, back, delay = (list[float]() for _ in range(6))
    sent = 0.0
    each = spans(costs, layout)
    for k, (i, j) in enumerate(each):
        times = stage_times(costs, layout, k, i, j)
        for into, seconds in zip((send, answer, work), times, strict=True):
            into.append(seconds)
        if k < len(each) - 1:
            leaves = _crossing(costs, layout, j)
            shared = 2 * profile.units[j - 1].shared_bytes / SHARE_EVERY
            there, returned = holds(costs, layout, j, k)
            ahead.append(there)
            back.append(returned)
            delay.append(cluster.between(k).delay_s)
            sent += leaves.there + leaves.back * leaves.share + shared
    return Chain(
        tuple(work), tuple(send), tuple(answer), tuple(ahead), tuple(back), tuple(delay),
        depth=max(layout.queue_depth, 1), waits=layout.kind == "delayed",
    ), sent  # fmt: skip


def stage_times(costs: Costs, layout: Layout, k: int, i: int, j: int) -> tuple[float, float, float]:
    """Seconds from the beginning of worker k's step until its message is out, until its answer is, until it is done."""
    first = costs.profile.reading_s if i == 0 else 0.0
    arrives = _crossing(costs, layout, i) if i else None
    leaves = _crossing(costs, layout, j) if j < len(costs.profile.units) else None
    passed = first + costs.forward_s(i, j)
    if arrives:
        passed += costs.send_s(i, arrives.there, layout.message_dtype)
    if leaves:
        passed += costs.send_s(j, leaves.there, layout.message_dtype)
    answered = passed + stage_backward_s(costs, layout, i, j)
    if arrives:
        answered += costs.send_s(i, arrives.back, layout.message_dtype) * arrives.share
    done = answered + costs.total("optimizer_s", i, j) + costs.profile.overhead_s
    if leaves:
        done += costs.send_s(j, leaves.back, layout.message_dtype) * leaves.share
        if layout.kind != "delayed":
            at = costs.estimates_at(j)
            done += at.optimizer_s + at.fit_s * leaves.share
    slow = costs.cluster.slowdown(k)
    return passed * slow, answered * slow, done * slow


def holds(costs: Costs, layout: Layout, cut: int, k: int) -> tuple[float, float]:
    """How long a minibatch's message, and what comes back for it, hold the link after worker k."""
    crossing, link = _crossing(costs, layout, cut), costs.cluster.between(k)
    shared = costs.profile.units[cut - 1].shared_bytes / SHARE_EVERY
    sizes = (crossing.there + shared, crossing.back * crossing.share + shared)
    there, back = (max(link.seconds(size), costs.machine.message.byte_s * size) for size in sizes)
    return there, back


@dataclass(frozen=True)
class _Crossing:
    """Bytes of a message and of what comes back for it, and the share of minibatches for which anything does."""

    there: float
    back: float
    share: float


def _crossing(costs: Costs, layout: Layout, cut: int) -> _Crossing:
    there = costs.message_bytes(cut, layout.message_dtype)
    back = costs.message_bytes(cut, layout.message_dtype, context=False)
    return _Crossing(there, back, asked(costs, layout, cut))


def asked(costs: Costs, layout: Layout, cut: int) -> float:
    """The share of minibatches for which a gradient comes back over a cut."""
    if layout.kind == "delayed":
        return 1.0
    if layout.plain_kind == "corrected":
        return 1.0 / max(layout.every, 1)
    every = costs.estimates_at(cut).every
    return 1.0 / every if every else 0.0


def stage_backward_s(costs: Costs, layout: Layout, i: int, j: int) -> float:
    """What a worker does between its message and its answer: estimate, go back, or wait for nothing and stash."""
    n, stash = len(costs.profile.units), costs.machine.copy(costs.total("parameter_bytes", i, j))
    share = asked(costs, layout, i) if i else 0.0
    spared = costs.backward_s(i, j, answered=False)
    if layout.kind == "delayed":
        return costs.backward_s(i, j) + (stash if j < n else 0.0)
    seconds = spared + share * (costs.backward_s(i, j) - spared)
    if j == n:
        return seconds
    seconds += costs.estimates_at(j).estimate_s
    if layout.plain_kind == "corrected":  # the graph is gone through once more, through a copy of the weights
        seconds += (costs.backward_s(i, j, answered=i > 0) + stash) / max(layout.every, 1)
    return seconds
