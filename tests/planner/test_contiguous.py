"""Cuts by dynamic programming against all cuts there are."""

from __future__ import annotations

import math
from itertools import combinations, pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syngrad.errors import ConfigError
from syngrad.partition import balanced
from syngrad.planner.contiguous import best_cuts, bottleneck

costs = st.lists(st.floats(0, 10), min_size=2, max_size=8)


@given(costs, st.data())
@settings(max_examples=150, deadline=None)
def test_they_are_as_good_as_the_best_of_all(units: list[float], data: st.DataObject) -> None:
    n = len(units)
    workers = data.draw(st.integers(2, n))
    speeds = [data.draw(st.floats(0.2, 3)) for _ in range(workers)]
    links = [data.draw(st.one_of(st.floats(0, 10), st.just(math.inf))) for _ in range(n)]

    def part(i: int, j: int, k: int) -> float:
        return sum(units[i:j]) / speeds[k] + (links[j] if j < n and links[j] < 5 else 0.0)

    def cut(at: int, k: int) -> float:
        return links[at] * (k + 1)

    every = [bottleneck(cuts, n, part, cut) for cuts in combinations(range(1, n), workers - 1)]
    if math.isinf(min(every)):
        with pytest.raises(ConfigError, match="no"):
            best_cuts(n, workers, part, cut)
    else:
        found = best_cuts(n, workers, part, cut)
        assert len(found) == workers - 1
        assert bottleneck(found, n, part, cut) == min(every)


@given(costs, st.data())
@settings(max_examples=50, deadline=None)
def test_without_links_they_are_those_of_balanced_stages(units: list[float], data: st.DataObject) -> None:
    n, workers = len(units), data.draw(st.integers(1, len(units)))
    found = best_cuts(n, workers, lambda i, j, k: sum(units[i:j]), lambda at, k: 0.0)
    other = balanced(units, [0.0] * (n - 1), workers)

    def worst(cuts) -> float:
        edges = [0, *cuts, n]
        return max(sum(units[a:b]) for a, b in pairwise(edges))

    assert worst(found) == pytest.approx(worst(other))


def test_more_workers_than_units_are_refused() -> None:
    with pytest.raises(ConfigError, match="--workers 3 or fewer"):
        best_cuts(3, 4, lambda i, j, k: 1.0, lambda at, k: 0.0)


def test_where_a_link_decides_parts_are_as_even_as_can_be() -> None:
    assert best_cuts(8, 2, lambda i, j, k: float(j - i), lambda at, k: 100.0) == (4,)
    assert best_cuts(9, 3, lambda i, j, k: float(j - i), lambda at, k: 100.0) == (3, 6)
    # but a cut that is worse than the least bottleneck is none, however even
    assert best_cuts(8, 2, lambda i, j, k: float(j - i), lambda at, k: 100.0 if at < 3 else 200.0) == (2,)
