"""Seconds to a value of the metric: when the validations of a short training reach it, or when a plain rule says so.

Between two validations the metric is taken to run in a straight line. Beyond the last one there is one rule, and it is
used where it holds only: what the metric lacks of the best there is (1 − accuracy, or a loss itself) falls as a power
of the samples, log lack = a − b log samples, over the second half of the validations. It holds where there are five of
them or more, the line explains them (R² ≥ 0.9), and the target lies within twice the samples that were trained on. The
line's own 95 % interval at that place says how sure it is.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from syngrad.results import student_t, time_to_target

#: validations that the rule needs, how well its line has to explain them, and how far it may reach
LEAST, EXPLAINED, FARTHEST = 5, 0.9, 2.0
#: a longer pilot is asked for by so much more than the line says, and by so much where there is no line
MARGIN, LONGER = 1.3, 5.0

#: (samples, value) of every validation, in order
Validations = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Reach:
    """When a training reaches a value of the metric.

    Args:
        samples: that it takes.
        half: half the 95 % interval of their logarithm, where they are the rule's; 0 where they were seen.
    """

    samples: float
    half: float = 0.0


@dataclass(frozen=True)
class _Line:
    """log lack = level − slope · (log samples − middle), over `count` validations."""

    level: float
    slope: float
    middle: float
    spread: float
    residual: float
    explained: float
    count: int

    def reach(self, lack: float) -> Reach:
        """Where it comes down to so much, with the interval of a line's place (inverse regression)."""
        away = (self.level - math.log(lack)) / self.slope
        error = self.residual / self.slope * math.sqrt(1 / self.count + away**2 / self.spread)
        return Reach(math.exp(self.middle + away), student_t(self.count - 2) * error)


def best_there_is(metric: str, higher_is_better: bool) -> float | None:
    """The value that no training can better, where anybody knows it: of an accuracy, and of what is to be small."""
    if not higher_is_better:
        return 0.0
    return 1.0 if metric == "accuracy" else None


def reach(validations: Validations, target: float, higher_is_better: bool, best: float | None) -> Reach | None:
    """When the target is reached; None where that cannot be told.

    Args:
        validations: of one training, the first of them before any step.
        target: a value of the metric.
        higher_is_better: whether more of it is better.
        best: the value that no training can better; None where nobody knows one.
    """
    seen = time_to_target([(0.0, samples, value) for samples, value in validations], target, higher_is_better)
    if seen is not None:
        return Reach(seen)
    line = None if best is None else _fitted(validations, best)
    if line is None or best is None or target == best or line.explained < EXPLAINED or line.slope <= 0:
        return None
    found = line.reach(abs(best - target))
    return found if found.samples * math.exp(found.half) <= FARTHEST * validations[-1][0] else None


def longer_pilot(seconds: float, validations: Validations, target: float, best: float | None) -> int:
    """Seconds of a pilot that would reach the target, as far as one can say."""
    line = None if best is None else _fitted(validations, best)
    factor = LONGER
    if line is not None and best is not None and target != best and line.slope > 0 and line.explained >= EXPLAINED:
        factor = MARGIN * line.reach(abs(best - target)).samples / validations[-1][0]
    return 10 * math.ceil(seconds * min(max(factor, MARGIN), 20.0) / 10)


def _fitted(validations: Validations, best: float) -> _Line | None:
    """The line through the second half, by least squares; None where there are too few validations for one."""
    known = [(math.log(n), math.log(abs(best - value))) for n, value in validations if n > 0 and value != best]
    points = known[len(known) // 2 :]
    if len(points) < LEAST:
        return None
    xs, ys = [x for x, _ in points], [y for _, y in points]
    middle, level = statistics.fmean(xs), statistics.fmean(ys)
    spread = sum((x - middle) ** 2 for x in xs)
    slope = -sum((x - middle) * (y - level) for x, y in points) / spread
    left = sum((y - level + slope * (x - middle)) ** 2 for x, y in points)
    total = sum((y - level) ** 2 for y in ys)
    explained = 1 - left / total if total > 0 else 0.0
    return _Line(level, slope, middle, spread, math.sqrt(left / (len(points) - 2)), explained, len(points))
