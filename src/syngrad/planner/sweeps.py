"""How a plan's layouts do with other numbers of workers and other links: what a report draws as curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from syngrad.errors import ConfigError
from syngrad.planner.layouts import Cluster
from syngrad.planner.quantities import Link
from syngrad.planner.ranking import DELAYS, RATES, Plan, layouts

#: points of a curve along a link, and the most workers of one over their number
POINTS, MOST = 17, 16


@dataclass(frozen=True)
class Sweep:
    """Every kind's samples a second as one thing changes.

    Args:
        points: its values, ascending.
        rates: a kind of layout → samples a second at each of them; None where it cannot be.
    """

    points: tuple[float, ...]
    rates: dict[str, tuple[float | None, ...]]


def over_workers(plan: Plan) -> Sweep:
    """Over the number of workers, laid out as the plan's are: on one machine, or each on a host of its own.

    Workers of stated speeds are as many as they are: then there is one point.
    """
    own = plan.cluster.workers
    points = [own]
    if not plan.cluster.speeds:
        doubled = {2**k for k in range(5) if 2**k <= min(MOST, max(2 * own, 8))}
        points = sorted({*doubled, own})
    apart = plan.cluster.hosts > 1
    return _swept(plan, points, [replace(plan.cluster, workers=count, hosts=count if apart else 1) for count in points])


def over_rate(plan: Plan) -> Sweep:
    """Over the rate between workers on hosts of their own, the delay as it is in the plan."""
    points = _points(*RATES)
    return _swept(plan, points, [_apart(plan, Link(plan.cluster.link.delay_s, rate)) for rate in points])


def over_delay(plan: Plan) -> Sweep:
    """Over the delay between workers on hosts of their own, the rate as it is in the plan."""
    points = _points(*DELAYS)
    return _swept(plan, points, [_apart(plan, Link(delay_s, plan.cluster.link.bytes_per_s)) for delay_s in points])


def over_links(plan: Plan, links: Sequence[Link]) -> dict[str, tuple[float | None, ...]]:
    """Every kind's samples a second over each of these links, workers on hosts of their own."""
    return _swept(plan, range(len(links)), [_apart(plan, link) for link in links]).rates


def _apart(plan: Plan, link: Link) -> Cluster:
    return replace(plan.cluster, hosts=plan.cluster.workers, link=link)


def _points(least: float, most: float) -> list[float]:
    return [least * (most / least) ** (k / (POINTS - 1)) for k in range(POINTS)]


def _swept(plan: Plan, points: Sequence[float], clusters: Sequence[Cluster]) -> Sweep:
    """Layouts that hold more than the plan's bound are left out, as they are in the plan."""
    found: dict[str, list[float | None]] = {}
    for k, cluster in enumerate(clusters):
        try:
            made, _ = layouts(plan.profile, cluster)
        except ConfigError:  # nothing can be laid out so
            made = []
        for each in made:
            if each.layout.replicas > 1 or (plan.memory_bytes is not None and each.peak_bytes > plan.memory_bytes):
                continue
            found.setdefault(each.layout.kind, [None] * len(clusters))[k] = each.samples_per_s
    return Sweep(tuple(map(float, points)), {kind: tuple(rates) for kind, rates in found.items()})
