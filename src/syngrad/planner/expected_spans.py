"""What every worker of a layout is expected to do, moment by moment: spans as those that a run's workers tell."""

from __future__ import annotations

from typing import Any

from syngrad.planner.cost import Costs, chained, data_parallel, microbatched, spans
from syngrad.planner.discrete_events import simulate
from syngrad.planner.layouts import Cluster, Layout
from syngrad.planner.quantities import Profile
from syngrad.planner.recursion import Span, run_microbatches
from syngrad.planner.timing import Lockstep

#: minibatches that are simulated; the queues have filled by the half of them
MINIBATCHES = 48


def expected_spans(profile: Profile, cluster: Cluster, layout: Layout) -> list[list[Span]]:
    """Of every worker: (name, minibatch, begin, end), in seconds from the start, names as in a run's own accounts.

    Args:
        profile: of the model.
        cluster: the workers.
        layout: what they do; not one process alone, which does one thing.
    """
    named = layout.kind.partition(":")[2]
    costs = Costs(profile, cluster, named if named in profile.estimates else None)
    found: list[list[Span]] = [[] for _ in range(cluster.workers)]
    if layout.family == "data":
        _in_lockstep(data_parallel(costs, layout)[0], found)
    elif layout.family == "microbatches":
        run_microbatches(microbatched(costs, layout)[0], MINIBATCHES, told=found)
    else:
        chain, _ = chained(costs, layout)
        simulate(chain, max(MINIBATCHES, 4 * chain.depth), told=found)
    return found


def accounts(profile: Profile, cluster: Cluster, layout: Layout) -> list[dict[str, Any]]:
    """As a run's workers give account of themselves: spans, the seconds they add up to, and their part."""
    parts = spans(Costs(profile, cluster), layout) if layout.cuts else [(0, len(profile.units))] * cluster.workers
    made = []
    for rank, (told, (lo, hi)) in enumerate(zip(expected_spans(profile, cluster, layout), parts, strict=True)):
        seconds: dict[str, float] = {}
        for name, _, begin, end in told:
            seconds[name] = seconds.get(name, 0.0) + end - begin
        part = f"{hi - lo} of {len(profile.units)} units" if layout.cuts else "whole model"
        made.append({"rank": rank, "spans": told, "seconds": seconds, "part": part})
    return made


def _in_lockstep(shape: Lockstep, found: list[list[Span]]) -> None:
    """All compute, wait for the slowest, and combine now and then."""
    now = [0.0] * len(shape.compute_s)
    for t in range(MINIBATCHES):
        for k, seconds in enumerate(shape.compute_s):
            found[k].append(("work", t, now[k], now[k] + seconds))
            now[k] += seconds
        if (t + 1) % shape.every == 0:
            slowest = max(now)
            for told in found:
                told.append(("send", t, slowest, slowest + shape.combine_s))
            now = [slowest + shape.combine_s] * len(now)
