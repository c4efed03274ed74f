"""The guard's rule: what it admits, and what it does not."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests._support.training import momentum_trainer, one_line

from syngrad.errors import ConfigError
from syngrad.optim.guard import DECAY, SETTLING, Guard

NORMS = st.floats(min_value=1e-6, max_value=1e6)


def settled(norm: float = 1.0, bound: float = 100.0) -> Guard:
    guard = Guard(bound)
    assert all(guard.admits("a", norm) for _ in range(SETTLING))
    return guard


@given(st.lists(NORMS, max_size=SETTLING))
def test_nothing_finite_runs_away_at_the_start(norms: list[float]) -> None:
    guard = Guard(2.0)
    assert all(guard.admits("a", norm) for norm in norms)
    assert guard.counts == {}


def test_a_rare_large_gradient_is_no_runaway() -> None:
    """Samples of a rare class, each after thousands that are learned already: what one norm of the first time tells."""
    guard = Guard(100.0)
    for _ in range(5):
        assert guard.admits("a", 3.0)
        assert all(guard.admits("a", 1e-6) for _ in range(5000))
    assert guard.counts == {}


@given(st.lists(NORMS, min_size=1, max_size=60), st.lists(st.sampled_from([math.nan, math.inf]), max_size=60))
def test_what_is_not_finite_is_never_admitted_and_moves_nothing(norms: list[float], bad: list[float]) -> None:
    guard, clean = Guard(math.inf), Guard(math.inf)
    for i, norm in enumerate(norms):
        if i < len(bad):
            assert not guard.admits("a", bad[i])
        assert guard.admits("a", norm)
        assert clean.admits("a", norm)
    assert (guard.references, guard.updates) == (clean.references, clean.updates)
    assert guard.counts == ({"a": min(len(bad), len(norms))} if bad else {})


@given(st.lists(NORMS, min_size=1, max_size=80))
def test_the_reference_is_the_largest_norm_of_late(norms: list[float]) -> None:
    guard = Guard(math.inf)
    for norm in norms:
        guard.admits("a", norm)
    last = len(norms) - 1
    assert guard.references["a"] == pytest.approx(max(n * DECAY ** (last - i) for i, n in enumerate(norms)))


@given(st.lists(NORMS, min_size=SETTLING, max_size=60), st.floats(1.01, 1e4), st.floats(0.1, 10.0))
def test_after_the_start_it_admits_up_to_the_bound_and_not_beyond(norms: list[float], bound: float, by: float) -> None:
    guard = Guard(bound)
    for norm in norms[:SETTLING]:
        guard.admits("a", norm)
    for norm in norms[SETTLING:]:
        reference = guard.references["a"]
        assert guard.admits("a", norm) == (norm <= bound * reference)
    reference = guard.references["a"]
    assert guard.admits("a", by * bound * reference) == (by * bound * reference <= bound * reference)


@given(st.floats(1e-12, 1e12), st.floats(1.01, 1e4), st.floats(1.0, 1e30))
def test_a_stage_whose_gradients_have_grown_for_good_is_not_held_up_for_ever(
    start: float, bound: float, growth: float
) -> None:
    guard = settled(start, bound)
    norm = growth * start
    wait = max(math.ceil(math.log2(growth / bound)), 0)
    admitted = [guard.admits("a", norm) for _ in range(wait + 10)]
    assert all(admitted[wait + 1 :])
    assert admitted == sorted(admitted), "once admitted, it stays so"
    assert guard.counts.get("a", 0) == admitted.count(False)


@given(st.lists(st.tuples(st.sampled_from("ab"), st.floats(allow_nan=True, min_value=None)), max_size=80))
def test_parts_do_not_know_of_each_other_and_a_state_is_taken_back(calls: list[tuple[str, float]]) -> None:
    calls = [(name, abs(norm)) for name, norm in calls]
    both, alone = Guard(3.0), {name: Guard(3.0) for name in "ab"}
    for name, norm in calls:
        both = taken_back(both)
        assert both.admits(name, norm) == alone[name].admits(name, norm)


def taken_back(guard: Guard) -> Guard:
    again = Guard(guard.bound)
    again.load_state_dict(json.loads(json.dumps(guard.state_dict())))
    return again


def test_gradients_of_zero_set_no_measure() -> None:
    guard = settled(0.0)
    assert guard.admits("a", 1e-9)
    assert not guard.admits("a", 1.0)


@pytest.mark.parametrize("bound", [0, 1, -3.0, True, "100", float("nan"), [2.0]])
def test_a_bound_that_is_none_is_refused(bound: Any) -> None:
    with pytest.raises(ConfigError, match="guard must be a number above 1") as caught:
        momentum_trainer(guard=bound)
    assert repr(bound) in one_line(caught)
