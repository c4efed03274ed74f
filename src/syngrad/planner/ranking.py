"""Which layout to take: all of them side by side, what decides, how near the next one is, and what would change it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from syngrad.errors import ConfigError
from syngrad.planner.choices import WORTH, chosen, replicated
from syngrad.planner.layouts import EXACT, KINDS, RARE, Cluster
from syngrad.planner.prediction import Prediction
from syngrad.planner.quantities import Link, Profile

#: two layouts whose paces differ by less than this share cannot be told apart by a plan
TOLERANCE = 0.10
#: steps that differ by more than this share were measured while others used the machine
RESTLESS = 0.25
#: so does a share of the cores that others have
OTHERS = 0.15
#: rates in bytes a second, and delays in seconds, over which the answer is looked for
RATES, DELAYS = (1e6 / 8, 1e11 / 8), (1e-5, 1.0)
#: points on each of these, before the place of a change is narrowed down
POINTS = 13


@dataclass(frozen=True)
class Change:
    """Where another layout becomes the fastest, as a link between the workers gets slower or longer.

    Args:
        rate: bytes a second below which it does; None where it is the delay that changes.
        delay_s: seconds from one end to the other above which it does.
        before: the layout that was the fastest until there; after: the one that is from there on.
    """

    rate: float | None
    delay_s: float | None
    before: str
    after: str


@dataclass(frozen=True)
class Plan:
    """The answer to "does it pay for me?".

    Args:
        profile: what it was computed from; cluster: likewise.
        ranked: every layout that can be, the fastest first; those that are averaged rarely see other minibatches at the
            same time, and are ranked among themselves in `rare`.
        rare: likewise, for layouts whose workers train apart and average now and then.
        left_out: (kind, why) of the layouts that cannot be.
        changes: where the fastest one changes with the link.
        memory_bytes: the bound that was given.
        experiment: as it was typed; the profile's name where it was not.
    """

    profile: Profile
    cluster: Cluster
    ranked: tuple[Prediction, ...]
    rare: tuple[Prediction, ...] = ()
    left_out: tuple[tuple[str, str], ...] = ()
    changes: tuple[Change, ...] = ()
    memory_bytes: int | None = None
    experiment: str = ""

    @property
    def typed(self) -> str:
        """The experiment, as one would type it."""
        return self.experiment or self.profile.name

    @property
    def best(self) -> Prediction:
        """The fastest of all that train on one minibatch after the other; of those that are as fast, the plainest."""
        limit, kinds = self.ranked[0].samples_per_s / (1 + WORTH), list(KINDS)
        alike = [each for each in self.ranked if each.samples_per_s >= limit]
        return min(alike, key=lambda each: (each.layout.updates != EXACT, kinds.index(each.layout.kind)))

    @property
    def exact(self) -> Prediction | None:
        """The fastest whose updates are those of back-propagation."""
        return next((each for each in self.ranked if each.layout.updates == EXACT), None)

    @property
    def near(self) -> tuple[Prediction, ...]:
        """Those that are too near to the best one for a plan to tell them apart."""
        best = self.best
        limit = best.samples_per_s / (1 + TOLERANCE)
        return tuple(each for each in self.ranked if each.samples_per_s >= limit and each is not best)

    @property
    def restless(self) -> bool:
        """Whether others used the machine while it was measured, so that figures say less."""
        return self.profile.spread > RESTLESS or self.profile.others > OTHERS

    def to_dict(self) -> dict[str, Any]:
        """As plain data, with what it was computed from."""
        plain = dataclasses.asdict(self)
        plain["estimates_near"] = [str(each.layout) for each in self.near]
        return {"layouts": [_plain(each) for each in (*self.ranked, *self.rare)], **_finite(plain)}


def _plain(prediction: Prediction) -> dict[str, Any]:
    return {
        "name": str(prediction.layout),
        "updates": prediction.layout.updates,
        **_finite(dataclasses.asdict(prediction)),
        "bound": prediction.bound._asdict(),
    }


def _finite(value: Any) -> Any:
    """Without what JSON has no word for: an endless rate is None."""
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def layouts(
    profile: Profile, cluster: Cluster, cuts: Sequence[int] | None = None
) -> tuple[list[Prediction], list[tuple[str, str]]]:
    """The best layout of every kind, and (kind, why) of those that cannot be.

    Args:
        profile: of the model.
        cluster: the workers.
        cuts: where workers part; None: wherever each kind is fastest.
    """
    made: list[Prediction] = []
    left_out: list[tuple[str, str]] = []

    def attempt(name: str, call: Callable[[], Prediction]) -> None:
        try:
            made.append(call())
        except ConfigError as error:
            left_out.append((name, str(error)))

    for kind in KINDS:
        if kind.endswith(":local") and "local" not in profile.estimates:
            continue
        attempt(kind, lambda kind=kind: chosen(profile, cluster, kind, cuts))  # type: ignore[misc]
    for count in range(2, cluster.workers // 2 + 1):
        if cluster.workers % count == 0 and count * 2 <= cluster.workers:
            call = lambda count=count: replicated(profile, cluster, "synthetic", count)  # noqa: E731
            attempt(f"{count} × synthetic", call)
    return made, left_out


def ranking(
    profile: Profile, cluster: Cluster, memory_bytes: int | None = None, cuts: Sequence[int] | None = None
) -> Plan:
    """All layouts side by side.

    Args:
        profile: of the model.
        cluster: the workers.
        memory_bytes: the most that a worker may hold; None for no bound.
        cuts: where workers part; None: wherever each kind is fastest.

    Raises:
        ConfigError: where no layout keeps within the bound.
    """
    made, left_out = layouts(profile, cluster, cuts)
    fits = [each for each in made if memory_bytes is None or each.peak_bytes <= memory_bytes]
    for each in made:
        if each not in fits:
            left_out.append((str(each.layout), f"holds {each.peak_bytes / 2**20:,.0f} MiB a worker"))
    if not fits:
        least = min(made, key=lambda each: each.peak_bytes)
        raise ConfigError(
            f"memory {(memory_bytes or 0) / 2**20:,.0f} MiB is less than any layout needs: {least.layout} needs least, "
            f"{least.peak_bytes / 2**20:,.0f} MiB a worker; give --memory {math.ceil(least.peak_bytes / 2**20)}, more "
            "workers or a smaller --batch-size"
        )
    fits.sort(key=lambda each: -each.samples_per_s)
    ranked = tuple(each for each in fits if RARE not in each.layout.updates)
    rare = tuple(each for each in fits if RARE in each.layout.updates)
    if not ranked:
        ranked, rare = rare, ()
    return Plan(profile, cluster, ranked, rare, tuple(left_out), (), memory_bytes)


def changes(plan: Plan, cuts: Sequence[int] | None = None) -> tuple[Change, ...]:
    """Where the fastest layout changes with the rate, and with the delay, if every worker were on a host of its own.

    The other of the two is as it is in the plan; where there is no link there, the rate suffices and nothing is late.
    """
    if plan.cluster.workers < 2:
        return ()
    apart = replace(plan.cluster, hosts=plan.cluster.workers)
    link = plan.cluster.link

    def fastest(rate: float, delay_s: float, before: str | None) -> str:
        """The fastest kind there; the one that was it before, as long as no other is clearly faster."""
        there = replace(apart, link=Link(delay_s, rate))
        ranked = ranking(plan.profile, there, plan.memory_bytes, cuts).ranked
        known = next((each for each in ranked if each.layout.kind == before), None)
        if known is not None and known.samples_per_s * (1 + WORTH) >= ranked[0].samples_per_s:
            return known.layout.kind
        return ranked[0].layout.kind

    def by_rate(at: float, before: str | None) -> str:
        return fastest(at, link.delay_s, before)

    def by_delay(at: float, before: str | None) -> str:
        return fastest(link.bytes_per_s, at, before)

    return (
        *(Change(at, None, before, after) for at, before, after in _changes(by_rate, [*reversed(_points(*RATES))])),
        *(Change(None, at, before, after) for at, before, after in _changes(by_delay, _points(*DELAYS))),
    )


def _points(least: float, most: float) -> list[float]:
    return [least * (most / least) ** (k / (POINTS - 1)) for k in range(POINTS)]


def _changes(fastest: Callable[[float, str | None], str], points: Sequence[float]) -> list[tuple[float, str, str]]:
    """Where the answer changes along the points: each place narrowed down by halves."""
    found = []
    known = fastest(points[0], None)
    for near, far in pairwise(points):
        after = fastest(far, known)
        if after == known:
            continue
        low, high = near, far
        for _ in range(5):
            middle = math.sqrt(low * high)
            low, high = (middle, high) if fastest(middle, known) == known else (low, middle)
        found.append((math.sqrt(low * high), known, after))
        known = after
    return found
