"""What follows over the seeds: means, spreads, and differences to the baseline, paired seed by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from syngrad.results.rows import BACKPROP, Row

MEANS = ("step_s", "step_ratio", "saved_activation_bytes", "peak_memory_bytes", "samples_per_s", "train_s")


@dataclass
class Aggregate:
    """A compared row over its seeds: means, and the spread (standard deviation; None for one seed).

    Args:
        status: "ok" where any seed ran to its end, else the first one's failure.
        metric_difference: to the baseline, backprop, in the metric's own unit, paired seed by seed;
            metric_difference_interval: the 95 % interval of its mean, [low, high]; None for fewer than two pairs.
        saved_ratio, step_ratio: × backprop.
        cosines, norm_ratios: one a cut, against the gradient that came back; true_cosines: against the true one, where
            it was sampled.
        time_to_target_s: mean over the `reached` seeds that got there; time_to_target_ratio: × backprop, seeds paired.
        guarded: updates skipped, all seeds and stages.
        failed, failure: how many seeds did not run to their end, and what the first of them said.
        base: whether the others are held against this row; None in files that are older than other baselines.
    """

    method: str
    estimator: str
    status: str
    seeds: int
    metric: str
    higher_is_better: bool | None
    value: float | None = None
    value_spread: float | None = None
    metric_difference: float | None = None
    metric_difference_spread: float | None = None
    step_s: float | None = None
    step_ratio: float | None = None
    saved_activation_bytes: float | None = None
    saved_ratio: float | None = None
    samples_per_s: float | None = None
    train_s: float | None = None
    cosines: dict[str, float | None] = field(default_factory=dict)
    metric_difference_interval: list[float] | None = None
    step_split: dict[str, float] | None = None
    peak_memory_bytes: float | None = None
    reached: int = 0
    time_to_target_s: float | None = None
    time_to_target_spread: float | None = None
    time_to_target_ratio: float | None = None
    norm_ratios: dict[str, float | None] = field(default_factory=dict)
    true_cosines: dict[str, float | None] = field(default_factory=dict)
    guarded: int = 0
    failed: int = 0
    failure: str | None = None
    base: bool | None = None

    @property
    def is_base(self) -> bool:
        """Whether the others are held against this one."""
        return self.method == BACKPROP if self.base is None else self.base

    @property
    def label(self) -> str:
        """`method` or `method:estimator`, as it is typed."""
        return self.method if self.estimator in ("", "default") else f"{self.method}:{self.estimator}"

    @property
    def ok(self) -> bool:
        """Whether at least one seed ran to its end."""
        return self.status == "ok"


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


#: 97.5 % quantiles for 1 to 10 degrees of freedom
QUANTILES = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)
#: the normal distribution's
Z = 1.959964


def student_t(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, from a table to 10 degrees of freedom.

    Beyond, by the expansion in 1/freedom around the normal quantile, right to four digits.

    Args:
        freedom: degrees of freedom, at least 1.
    """
    if freedom <= len(QUANTILES):
        return QUANTILES[freedom - 1]
    first = (Z**3 + Z) / 4
    second = (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96
    third = (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384
    return Z + first / freedom + second / freedom**2 + third / freedom**3


def interval(differences: Sequence[float]) -> list[float] | None:
    """The 95 % interval [low, high] of the mean of paired differences: mean ± t·s/√n; None for fewer than two."""
    n = len(differences)
    if n < 2:
        return None
    mean = statistics.fmean(differences)
    half = student_t(n - 1) * statistics.stdev(differences) / math.sqrt(n)
    return [mean - half, mean + half]
