"""Curves over the seeds: the mean, and the band between the lowest and the highest."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Number = float | None


@dataclass
class Curve:
    """x with the mean, the lowest and the highest y over the seeds; None where no seed has a value. seconds: the mean
    of the second column, where there is one.
    """

    x: list[float]
    seconds: list[Number]
    mean: list[Number]
    low: list[Number]
    high: list[Number]
    seeds: int

    @property
    def last(self) -> Number:
        """The last mean that is known."""
        return next((value for value in reversed(self.mean) if value is not None), None)

    def band(self, x: Sequence[Number]) -> tuple[list[float], list[float]] | None:
        """The outline of the band, there and back; None for one seed."""
        points = [
            (a, low, high)
            for a, low, high in zip(x, self.low, self.high, strict=True)
            if a is not None and low is not None and high is not None
        ]
        if self.seeds < 2 or not points:
            return None
        there, back = points, points[::-1]
        return [p[0] for p in there] + [p[0] for p in back], [p[2] for p in there] + [p[1] for p in back]


def over_seeds(series: Sequence[Sequence[Sequence[Any]]], column: int, seconds: int | None = None) -> Curve:
    """Several seeds' series of points (x, …) as one curve of `column`, where all have been.

    seconds: the column that holds a second scale for x, averaged as y is.
    """
    tables = [{point[0]: point for point in points if point[0] is not None} for points in series if points]
    shared = sorted(set.intersection(*(set(table) for table in tables))) if tables else []
    mean: list[Number] = []
    low: list[Number] = []
    high: list[Number] = []
    times: list[Number] = []
    for x in shared:
        values = known([table[x][column] for table in tables])
        mean.append(statistics.fmean(values) if values else None)
        low.append(min(values, default=None))
        high.append(max(values, default=None))
        taken = known([table[x][seconds] for table in tables]) if seconds is not None else []
        times.append(statistics.fmean(taken) if taken else None)
    return Curve([float(x) for x in shared], times, mean, low, high, len(tables))


def known(values: Sequence[Any]) -> list[float]:
    """Those that are finite numbers."""
    return [float(v) for v in values if isinstance(v, int | float) and math.isfinite(v)]
