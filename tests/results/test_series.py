"""Targets, thinning and Student's t: pure functions, literal cases."""

from __future__ import annotations

import math

import pytest

from syngrad.results import interval, student_t, thinned, time_to_target

RISING = [(0.25, 1.0, 0.5), (0.5, 2.0, 0.7), (0.75, 4.0, 0.8), (1.0, 5.0, 0.6), (1.25, 6.0, 0.9)]


@pytest.mark.parametrize(
    ("target", "seconds"),
    [
        (0.6, 1.5),
        (0.7, 2.0),
        (0.75, 3.0),
        (0.8, 4.0),
        (0.85, 5.0 + 0.25 / 0.3),  # the dip at 5 s is where the last way up begins
        (0.4, 1.0),  # reached before anybody looked: by then
        (0.95, None),
    ],
)
def test_the_first_crossing_is_interpolated(target: float, seconds: float | None) -> None:
    assert time_to_target(RISING, target, True) == (None if seconds is None else pytest.approx(seconds))


def test_a_metric_that_is_better_low() -> None:
    falling = [(epoch, s, -value) for epoch, s, value in RISING]
    assert time_to_target(falling, -0.75, False) == pytest.approx(3.0)
    assert time_to_target(falling, -0.95, False) is None


def test_what_is_no_number_is_passed_over() -> None:
    assert time_to_target([(1, 1.0, 0.5), (2, 2.0, math.nan), (3, 3.0, 0.7)], 0.6, True) == pytest.approx(2.0)
    assert time_to_target([], 0.6, True) is None


@pytest.mark.parametrize(("n", "most"), [(0, 5), (1, 5), (5, 5), (6, 5), (1000, 200), (201, 200)])
def test_thinned_series_keep_their_ends(n: int, most: int) -> None:
    points = list(range(n))
    short = thinned(points, most)
    assert len(short) == min(n, most)
    assert short[:1] == points[:1]
    assert short[-1:] == points[-1:]
    assert short == sorted(set(short))


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [(1, 12.706), (2, 4.303), (4, 2.776), (10, 2.228), (11, 2.201), (15, 2.131), (30, 2.042), (120, 1.980)],
)
def test_students_t(freedom: int, quantile: float) -> None:
    assert student_t(freedom) == pytest.approx(quantile, abs=6e-4)


def test_an_interval_needs_two() -> None:
    assert interval([0.1]) is None
    assert interval([]) is None
    assert interval([1.0, 3.0]) == pytest.approx([2 - 12.7062, 2 + 12.7062])
    assert interval([2.0, 2.0]) == [2.0, 2.0]
