"""Curves of a run: when a target is reached, and long ones made short."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Point = TypeVar("Point")


def time_to_target(
    history: Sequence[tuple[float, float, float]], target: float, higher_is_better: bool
) -> float | None:
    """Seconds of training until the metric first reaches `target`; None where it never does.

    history: (epoch, seconds, value) of every validation, in order. Between the last validation short of the target and
    the first that has reached it the value is taken to run in a straight line. A first validation that has reached it
    already says only "by then", and its own time is given.
    """
    sign = 1.0 if higher_is_better else -1.0
    before: tuple[float, float] | None = None
    for _, seconds, value in history:
        missing = sign * (target - value)
        if missing <= 0:
            if before is None:
                return seconds
            earlier, lacked = before
            return earlier + (seconds - earlier) * lacked / (lacked - missing)
        if missing == missing:  # a value that is NaN lies nowhere
            before = seconds, missing
    return None


def thinned(points: Sequence[Point], most: int = 200) -> list[Point]:
    """At most `most` of the points, evenly spread, the first and the last among them."""
    if len(points) <= most:
        return list(points)
    return [points[round(k * (len(points) - 1) / (most - 1))] for k in range(most)]
