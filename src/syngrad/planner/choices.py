"""What has to be chosen for each kind of layout: cuts, parts, form of messages, depth of the queue, averaging."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from syngrad.compare.rivals.rival_row import numbers_of_parts
from syngrad.errors import ConfigError
from syngrad.planner.contiguous import best_cuts
from syngrad.planner.cost import Costs, chained, data_parallel, holds, stage_times
from syngrad.planner.layouts import Cluster, Layout
from syngrad.planner.prediction import Prediction, predict
from syngrad.planner.quantities import DTYPES, Profile

#: minibatches under way, at least: Syngrad's own default; of `delayed`, whose gradients are as late as that
DEPTH, DEPTH_OF_DELAYED, DEEPEST = 8, 2, 10_000
#: minibatches between averagings; of DiLoCo the first is taken with which that takes no more than `WORTH` of the time
PERIODIC, AVERAGED = 8, (16, 32, 64, 128, 256, 500)
#: truths of `corrected`
TRUTHS = 4
#: how much faster another form of messages has to be, to be chosen
WORTH = 0.03


def chosen(profile: Profile, cluster: Cluster, kind: str, cuts: Sequence[int] | None = None) -> Prediction:
    """The best layout of a kind, as it is expected to do.

    Args:
        profile: of the model.
        cluster: the workers.
        kind: of `KINDS`.
        cuts: where the workers part; None: wherever it is fastest.

    Raises:
        ConfigError: where there is none: too few places for a cut, a batch that does not divide, one worker alone.
    """
    layout, workers = Layout(kind), cluster.workers
    if layout.family == "alone":
        return predict(profile, cluster, layout)
    if workers < 2:
        raise ConfigError(f"{kind} needs 2 workers or more, got {workers}; give --workers 2")
    costs = _costs(profile, cluster, layout)
    if layout.family == "data":
        if kind != "diloco" and profile.batch_size % workers:
            raise ConfigError(
                f"{kind}: a batch of {profile.batch_size} does not divide over {workers} workers; give --batch-size "
                f"{max(profile.batch_size // workers, 1) * workers}"
            )
        every = {"ddp:periodic": PERIODIC, "diloco": _rarely(costs)}.get(kind, 0)
        return predict(profile, cluster, replace(layout, every=every))
    if layout.family == "microbatches":
        return _of_parts(profile, cluster, costs, layout, cuts)
    return _of_stages(profile, cluster, costs, layout, cuts)


def replicated(profile: Profile, cluster: Cluster, kind: str, replicas: int) -> Prediction:
    """Several pipelines side by side, which average their weights rarely; each has a part of the workers.

    Raises:
        ConfigError: where the workers do not go into so many.
    """
    if cluster.workers % replicas or cluster.workers // replicas < 2:
        raise ConfigError(f"{cluster.workers} workers are no {replicas} pipelines of two or more each")
    each = cluster.workers // replicas
    hosts = max(cluster.hosts // replicas, 1)
    part = replace(cluster, workers=each, hosts=hosts, speeds=cluster.speeds[:each], replicas=replicas)
    found = chosen(profile, part, kind)
    return predict(profile, part, replace(found.layout, replicas=replicas, average_every=AVERAGED[2]))


def _costs(profile: Profile, cluster: Cluster, layout: Layout) -> Costs:
    named = layout.kind.partition(":")[2]
    return Costs(profile, cluster, named if named in profile.estimates else None)


def _rarely(costs: Costs) -> int:
    for every in AVERAGED:
        shape, _ = data_parallel(costs, Layout("diloco", every=every))
        if shape.combine_s / every <= WORTH * max(shape.compute_s):
            return every
    return AVERAGED[-1]


def _of_parts(
    profile: Profile, cluster: Cluster, costs: Costs, layout: Layout, cuts: Sequence[int] | None
) -> Prediction:
    """`gpipe`, `1f1b` and `zb1p`, with as many parts as are fastest, of those that `syngrad compare` tries."""
    try:
        tried = numbers_of_parts(layout.plain_kind, profile.batch_size, cluster.workers)
    except ConfigError as error:
        raise ConfigError(f"{layout.kind}: {error}") from None

    def part(i: int, j: int, k: int) -> float:
        return (costs.forward_s(i, j) + costs.backward_s(i, j) + costs.total("optimizer_s", i, j)) / cluster.speed(k)

    def cut(at: int, k: int) -> float:
        size = costs.message_bytes(at, layout.form, context=False)
        return costs.machine.exchange(size) + cluster.between(k).seconds(size)

    found = tuple(cuts) if cuts is not None else best_cuts(len(profile.units), cluster.workers, part, cut)
    made = [predict(profile, cluster, replace(layout, cuts=found, microbatches=parts)) for parts in tried]
    return min(made, key=lambda each: each.seconds)


def _of_stages(
    profile: Profile, cluster: Cluster, costs: Costs, layout: Layout, cuts: Sequence[int] | None
) -> Prediction:
    """`synthetic`, `delayed` and `corrected`: messages are packed only where that is worth it."""
    if layout.plain_kind == "corrected":
        layout = replace(layout, every=TRUTHS)
    best: Prediction | None = None
    for dtype in DTYPES:
        typed = replace(layout, message_dtype=dtype)
        found = tuple(cuts) if cuts is not None else _parted(costs, typed)
        made = predict(profile, cluster, with_depth(costs, replace(typed, cuts=found)))
        if best is None or made.seconds < best.seconds * (1 - WORTH):
            best = made
    assert best is not None
    return best


def _parted(costs: Costs, layout: Layout) -> tuple[int, ...]:
    def part(i: int, j: int, k: int) -> float:
        if j < len(costs.profile.units) and not _cuttable(costs, layout, j):
            return math.inf
        return stage_times(costs, layout, k, i, j)[2]

    def cut(at: int, k: int) -> float:
        return max(holds(costs, layout, at, k)) if _cuttable(costs, layout, at) else math.inf

    return best_cuts(len(costs.profile.units), costs.cluster.workers, part, cut)


def _cuttable(costs: Costs, layout: Layout, cut: int) -> bool:
    return layout.kind == "delayed" or costs.estimates[cut - 1] is not None


def with_depth(costs: Costs, layout: Layout) -> Layout:
    """The layout with the least queue with which no round trip is waited for; Syngrad's default where that will do."""
    least = DEPTH_OF_DELAYED if layout.kind == "delayed" else DEPTH
    chain, _ = chained(costs, replace(layout, queue_depth=1))
    pace = max([*chain.work_s, *chain.forward_s, *chain.backward_s])
    trips = [chain.round_trip_s(k) for k in range(chain.workers - 1)]
    needed = math.ceil(max(trips, default=0.0) / max(pace, 1e-9))
    return replace(layout, queue_depth=min(max(least, needed), DEEPEST))
