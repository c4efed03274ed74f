"""The reasons of a verdict: a sentence each, or none where there is nothing to say. Pure functions of the rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from syngrad.report.words import join, loss, noise
from syngrad.results import Aggregate

#: estimates that point less than this along the gradient, or are this much longer or shorter, explain a gap
WEAK_COSINE, WRONG_NORM = 0.3, 3.0
LIKELY = "The likely reason for the gap"


def to_target(row: Aggregate, base: Aggregate, target: float | None) -> list[str]:
    """How long both took to the target, in seconds of training."""
    if target is None:
        return []
    goal = f"{target * 100:g} %" if row.metric == "accuracy" else f"{target:g}"
    if not row.reached and not base.reached:
        return [f"Neither {row.label} nor {base.label} reaches {row.metric} {goal}."]
    if not row.reached or not base.reached:
        there, away = (row, base) if row.reached else (base, row)
        return [f"Only {there.label} reaches {row.metric} {goal}, in {_seconds(there)}; {away.label} does not."]
    ratio = row.time_to_target_ratio
    times = f" ({ratio:.2f} × the time)" if ratio is not None else ""
    return [f"To {row.metric} {goal} {row.label} takes {_seconds(row)}, {base.label} {_seconds(base)}{times}."]


def _seconds(row: Aggregate) -> str:
    assert row.time_to_target_s is not None
    shown = f"{row.time_to_target_s:.3g} s"
    return shown if row.reached == row.seeds else f"{shown} with {row.reached} of {row.seeds} seeds"


def estimates(row: Aggregate, base: Aggregate) -> list[str]:
    """The quality of the estimates, where the row is clearly worse than the baseline and an interface says why."""
    gap, better = row.metric_difference, row.higher_is_better
    lost = None if gap is None else loss(gap, better)
    if lost is None or lost <= noise(row, base) or not row.estimator:
        return []
    against = "true" if row.true_cosines else "returning"
    known = _known(row.true_cosines or row.cosines)
    ratios = _known(row.norm_ratios)
    if known and min(known.values()) < WEAK_COSINE:
        cut = min(known, key=lambda name: known[name])
        value = f"{known[cut]:.2f}".replace("-", "−")
        return [f"{LIKELY}: at {cut} the cosine of its estimates with the {against} gradient is {value}."]
    off = {cut: ratio for cut, ratio in ratios.items() if ratio > WRONG_NORM or 0 < ratio < 1 / WRONG_NORM}
    if off:
        cut = max(off, key=lambda name: max(off[name], 1 / off[name]))
        return [f"{LIKELY}: at {cut} its estimates are {off[cut]:.2g} × as long as the returning gradient."]
    if known:
        cut = min(known, key=lambda name: known[name])
        return [
            f"Its estimates point the right way (the lowest cosine with the {against} gradient is {known[cut]:.2f}, at "
            f"{cut}); the gap is not explained by their direction."
        ]
    return []


def _known(values: Mapping[str, float | None]) -> dict[str, float]:
    return {cut: value for cut, value in values.items() if value is not None and math.isfinite(value)}


def guarded(rows: Sequence[Aggregate]) -> list[str]:
    """Updates that were skipped rather than let an estimate poison a stage."""
    skipped = [row for row in rows if row.guarded]
    if not skipped:
        return []
    said = join([f"{row.guarded} of {row.label}" for row in skipped])
    return [f"Updates skipped because an estimate was not finite or ran away: {said}."]


def failures(rows: Sequence[Aggregate]) -> list[str]:
    """Seeds that are missing from a row's means."""
    return [
        f"{row.label} rests on {row.seeds} of {row.seeds + row.failed} seeds: {row.failure}."
        for row in rows
        if row.failed and row.failure
    ]


def seeds(row: Aggregate) -> list[str]:
    """What one seed cannot tell."""
    if row.metric_difference_interval is not None or row.metric_difference is None:
        return []
    return ["With one seed there is no interval; --seeds 3 gives one."]
