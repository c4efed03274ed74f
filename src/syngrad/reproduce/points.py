"""What a study's runs come to: a point a row and place, with its spread, its gap to the base, and what is published."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from syngrad.reproduce.study import PublishedFigure, Study
from syngrad.results import interval, mean_spread


@dataclass
class Point:
    """A row at a place.

    Args:
        seeds: runs that ended well; failed: those that did not.
        mean: of the metric; half: half the width of its 95 % interval over seeds, None for one seed.
        gap: to the base at the same place, paired by seed, with half its interval.
        seconds: of training, the mean; times: as a multiple of the base's.
        published: what others have of it.
    """

    row: str
    x: float | None
    seeds: int = 0
    failed: int = 0
    mean: float | None = None
    half: float | None = None
    gap: float | None = None
    gap_half: float | None = None
    seconds: float | None = None
    times: float | None = None
    published: list[PublishedFigure] = field(default_factory=list)


def summary(study: Study, document: Mapping[str, Any]) -> list[Point]:
    """Every row at every place that was run, and those of which there are only published figures."""
    groups: dict[tuple[str, float | None], list[Mapping[str, Any]]] = {}
    for run in document["runs"]:
        groups.setdefault((run["row"], run["x"]), []).append(run)
    bases = [runs for (row, _), runs in groups.items() if row == study.base]
    only = bases[0] if len(bases) == 1 else []  # of a base that has one place, all gaps are to that
    points = [_point(key, groups[key], groups.get((study.base, key[1]), only)) for key in groups]
    found = {(point.row, point.x): point for point in points}
    for figure in study.published:
        key = figure.row, figure.x
        if key not in found:
            found[key] = Point(*key)
            points.append(found[key])
        found[key].published.append(figure)
    order = {row: k for k, row in enumerate(dict.fromkeys(point.row for point in points))}
    return sorted(points, key=lambda point: (point.x is not None, point.x or 0.0, order[point.row]))


def _point(
    key: tuple[str, float | None], runs: Sequence[Mapping[str, Any]], base: Sequence[Mapping[str, Any]]
) -> Point:
    values = {run["seed"]: run["value"] for run in runs if run["value"] is not None}
    exact = {run["seed"]: run["value"] for run in base if run["value"] is not None}
    made = Point(*key, seeds=len(values), failed=len(runs) - len(values))
    made.mean, _ = mean_spread(list(values.values()))
    made.half = _half(list(values.values()))
    if base is not runs:
        gaps = [values[seed] - exact[seed] for seed in values if seed in exact]
        made.gap, _ = mean_spread(gaps)
        made.gap_half = _half(gaps)
    made.seconds, _ = mean_spread([run["seconds"] for run in runs])
    whole, _ = mean_spread([run["seconds"] for run in base])
    if made.seconds is not None and whole:
        made.times = made.seconds / whole
    return made


def _half(values: Sequence[float]) -> float | None:
    found = interval(values)
    return None if found is None else (found[1] - found[0]) / 2
