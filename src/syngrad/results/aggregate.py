"""What follows over the seeds: means, spreads, and differences to the baseline, paired seed by seed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from syngrad.results.confidence import interval
from syngrad.results.rows import BACKPROP, Aggregate, Row

MEANS = ("step_s", "step_ratio", "saved_activation_bytes", "peak_memory_bytes", "samples_per_s", "train_s")


def aggregate(rows: Sequence[Row], baseline: str = BACKPROP) -> list[Aggregate]:
    """Take every method's rows together, in the order in which the methods first appear.

    Args:
        rows: one a method and seed.
        baseline: the method that the others are held against.
    """
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.method, row.estimator), []).append(row)
    base = {row.seed: row for row in rows if row.method == baseline and row.ok}
    return [_over_seeds(group, base, baseline) for group in groups.values()]


def _over_seeds(group: list[Row], base: dict[int, Row], baseline: str) -> Aggregate:
    done = [row for row in group if row.ok]
    first = done[0] if done else group[0]
    made = Aggregate(
        first.method, first.estimator, "ok" if done else first.status, len(done), first.metric, first.higher_is_better
    )
    made.base = first.method == baseline
    made.failed = len(group) - len(done)
    made.failure = next((row.status for row in group if not row.ok), None)
    made.value, made.value_spread = mean_spread([row.value for row in done])
    pairs = [(row, base[row.seed]) for row in done if row.seed in base]
    differences = [a.value - b.value for a, b in pairs if a.value is not None and b.value is not None]
    made.metric_difference, made.metric_difference_spread = mean_spread(differences)
    if not made.base:
        made.metric_difference_interval = interval(differences)
    for name in MEANS:
        setattr(made, name, mean_spread([getattr(row, name) for row in done])[0])
    saved, _ = mean_spread([row.saved_activation_bytes for row in base.values()])
    if saved and made.saved_activation_bytes is not None:
        made.saved_ratio = made.saved_activation_bytes / saved
    splits = [row.step_split for row in done if row.step_split]
    if splits:
        made.step_split = {part: statistics.fmean(each[part] for each in splits) for part in splits[0]}
    times = [row.time_to_target_s for row in done if row.time_to_target_s is not None]
    made.reached = len(times)
    made.time_to_target_s, made.time_to_target_spread = mean_spread(times)
    ratios = [a.time_to_target_s / b.time_to_target_s for a, b in pairs if a.time_to_target_s and b.time_to_target_s]
    made.time_to_target_ratio, _ = mean_spread(ratios)
    made.cosines, made.norm_ratios = _over_cuts(done, "cosine"), _over_cuts(done, "norm_ratio")
    sampled = _over_cuts(done, "true_cosine")
    made.true_cosines = sampled if any(value is not None for value in sampled.values()) else {}
    made.guarded = sum(sum(row.guarded.values()) for row in done)
    return made


def _over_cuts(rows: list[Row], figure: str) -> dict[str, float | None]:
    """The mean of one figure over the seeds, one a cut."""
    found: dict[str, list[Any]] = {}
    for row in rows:
        for interface in row.interfaces:
            found.setdefault(str(interface["cut"]), []).append(interface.get(figure))
    return {cut: mean_spread(values)[0] for cut, values in found.items()}


def mean_spread(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and sample standard deviation of what is known; None for what cannot be said."""
    known = [value for value in values if value is not None]
    if not known:
        return None, None
    return statistics.fmean(known), statistics.stdev(known) if len(known) > 1 else None
