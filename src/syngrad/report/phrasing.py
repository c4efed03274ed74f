"""Figures in words: as they stand in tables, and in the sentences that both verdicts are made of."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from syngrad.results import Aggregate

NONE = "–"
#: where the metric is accuracy: what one seed moves by itself, and what is lost at most where it still pays
NOISE = 0.01
#: for other metrics, as a share of backprop's value
RELATIVE_NOISE = 0.05
#: estimates that point less than this along the gradient, or are this much longer or shorter, explain a gap
WEAK_COSINE, WRONG_NORM = 0.3, 3.0
LIKELY = "The likely reason for the gap"


def number(value: float | None, form: str) -> str:
    """A number with a true minus, or a dash for one that is not known."""
    return NONE if value is None else f"{value:{form}}".replace("-", "−")


def size(value: float | None) -> str:
    """Bytes as KiB or MiB, three figures."""
    if value is None:
        return NONE
    for unit, factor in (("B", 1), ("KiB", 2**10), ("MiB", 2**20)):
        if value < 1000 * factor:
            return f"{value / factor:.{0 if unit == 'B' or value >= 100 * factor else 1}f} {unit}"
    return f"{value / 2**30:.1f} GiB"


def share(value: float | None) -> str:
    """A share of time in per cent, without more digits than a run can tell."""
    if value is None:
        return NONE
    return f"{100 * value:.1f} %" if value < 0.0995 else f"{100 * value:.0f} %"


def to_target(row: Aggregate) -> str:
    """The seconds to the target, or "not reached"; with how many seeds, where some did not get there."""
    if row.time_to_target_s is None:
        return "not reached"
    shown = f"{row.time_to_target_s:.3g} s"
    return shown if row.reached == row.seeds else f"{shown} {row.reached}/{row.seeds}"


def amount(difference: float, metric: str) -> str:
    """The size of a difference, in points for an accuracy."""
    return f"{abs(difference) * 100:.1f} points" if metric == "accuracy" else f"{abs(difference):.4g}"


def signed(difference: float, metric: str) -> str:
    """A difference with its sign, in points for an accuracy."""
    shown = f"{difference * 100:+.1f}" if metric == "accuracy" else f"{difference:+.3g}"
    return shown.replace("-", "−")


def plural(count: int, thing: str) -> str:
    """A count of things."""
    return f"{count} {thing}" if count == 1 else f"{count} {thing}s"


def join(parts: Sequence[str]) -> str:
    """a, b and c."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def small(row: Aggregate, base: Aggregate) -> float:
    """A loss of the metric that is bearable: a point of accuracy, or a twentieth of another metric's value."""
    return NOISE if row.metric == "accuracy" else RELATIVE_NOISE * abs(base.value or 0.0)


def noise(row: Aggregate, base: Aggregate) -> float:
    """Differences of the metric up to this say nothing: half the 95 % interval of the paired differences over the
    seeds; for one seed what is small.
    """
    if row.metric_difference_interval is not None:
        low, high = row.metric_difference_interval
        return (high - low) / 2
    return small(row, base)


def lost(row: Aggregate) -> float | None:
    """How much worse than the baseline, above 0, or better, below; None where nobody said which way is better."""
    gap, better = row.metric_difference, row.higher_is_better
    return None if gap is None or better is None else -gap if better else gap


def ending(row: Aggregate, base: Aggregate) -> str | None:
    """How its metric ends against another row's, as a verb phrase; None where that is not known."""
    gap = row.metric_difference
    if gap is None:
        return None
    by, way, over = amount(gap, row.metric), "higher" if gap > 0 else "lower", f"{row.seeds} seeds"
    if row.metric_difference_interval is not None:
        low, high = (signed(bound, row.metric) for bound in row.metric_difference_interval)
        over += f", 95 % interval {low} to {high}"
    elif row.seeds == 1:
        over = "one seed"
    if abs(gap) > small(row, base) and abs(gap) <= noise(row, base):
        return f"ends {by} {way} in {row.metric}, which the seeds cannot tell from chance ({over})"
    if abs(gap) <= noise(row, base):
        return f"ends with the same {row.metric} within noise ({'+' if gap >= 0 else '−'}{by}, {over})"
    return f"ends {by} {way} in {row.metric} ({over})"


def feedback_gain(row: Aggregate, done: Sequence[Aggregate]) -> tuple[float | None, str]:
    """What the gradient that comes back adds over a head that learns from the labels alone: in the metric, in words."""
    local = next((each for each in done if each.method == row.method and each.estimator == "local"), None)
    if local is None or local is row or local.value is None or row.value is None:
        return None, ""
    gain, better = row.value - local.value, row.higher_is_better
    if abs(gain) <= noise(row, local):
        return gain, "the gradient that comes back adds nothing clear over local"
    by = amount(gain, row.metric)
    if better is None:
        return gain, f"against local its {row.metric} differs by {by}"
    return gain, f"the gradient that comes back {'gains' if (gain > 0) == better else 'loses'} {by} over local"


def race(row: Aggregate, base: Aggregate, goal: str) -> list[str]:
    """How long both took to the target, in seconds of training."""
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
    worse = lost(row)
    if worse is None or worse <= noise(row, base) or not row.estimator:
        return []
    against = "true" if row.true_cosines else "returning"
    known = _known(row.true_cosines or row.cosines)
    if known and min(known.values()) < WEAK_COSINE:
        cut = min(known, key=lambda name: known[name])
        value = number(known[cut], ".2f")
        return [f"{LIKELY}: at {cut} the cosine of its estimates with the {against} gradient is {value}."]
    ratios = _known(row.norm_ratios)
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
    skipped = [f"{row.guarded} of {row.label}" for row in rows if row.guarded]
    return [f"Updates skipped because an estimate was not finite or ran away: {join(skipped)}."] if skipped else []


def missing_seeds(rows: Sequence[Aggregate]) -> list[str]:
    """Seeds that are missing from a row's means."""
    return [
        f"{row.label} rests on {row.seeds} of {row.seeds + row.failed} seeds: {row.failure}."
        for row in rows
        if row.failed and row.failure
    ]
