"""Event by event against the recursion, where nothing is drawn; failures against the closed form."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from tests.planner.test_recursion import chains

from syngrad.errors import ConfigError
from syngrad.planner.discrete_events import simulate
from syngrad.planner.recursion import Variation, run_chain
from syngrad.planner.timing import Chain
from syngrad.planner.worker_failures import Failures, run_with_failures

EVEN = Chain((1.0,) * 4, (0.4,) * 4, (0.9,) * 4, (0.1,) * 3, (0.1,) * 3, (0.2,) * 3, 8)


@given(chains())
@settings(max_examples=40, deadline=None)
def test_events_say_what_the_recursion_says(chain: Chain) -> None:
    assert simulate(chain, 25).ends == pytest.approx(run_chain(chain, 25).ends, rel=1e-9)


@given(chains(waits=False))
@settings(max_examples=20, deadline=None)
def test_both_draw_the_same(chain: Chain) -> None:
    variation = Variation(jitter=0.3, stragglers=0.1, slower=4.0, seed=5)
    # the recursion draws for a replica, events for a worker: one row of the same numbers
    assert simulate(chain, 25, variation).ends == pytest.approx(run_chain(chain, 25, variation).ends, rel=1e-9)


def test_a_failure_throws_back_to_what_was_saved() -> None:
    failures = Failures(mean_s=400.0, restart_s=7.0, saved_every=10)
    run = simulate(EVEN, 200, Variation(seed=1), failures)
    assert run.failures > 0
    assert 0 < run.lost <= 10 * run.failures + 8
    assert list(run.ends) == sorted(run.ends)
    assert run.ends[-1] > simulate(EVEN, 200).ends[-1] + 7.0 * run.failures


@pytest.mark.parametrize("mean_s", [500.0, 2000.0, 10_000.0])
def test_failures_cost_what_the_closed_form_says(mean_s: float) -> None:
    failures = Failures(mean_s, restart_s=5.0, saved_every=20)
    ends = [run_with_failures(EVEN, 2000, failures, Variation(seed=seed))[0].ends[-1] for seed in range(12)]
    filling = run_chain(EVEN, 1).ends[0]
    assert 2000 * EVEN.seconds / np.mean(ends) == pytest.approx(failures.goodput(4, EVEN.seconds, filling), rel=0.06)


def test_events_fail_as_often_as_the_recursion_does() -> None:
    failures = Failures(1000.0, restart_s=5.0, saved_every=20)
    events = [simulate(EVEN, 400, Variation(seed=seed), failures).ends[-1] for seed in range(8)]
    recursion = [run_with_failures(EVEN, 400, failures, Variation(seed=seed))[0].ends[-1] for seed in range(8)]
    assert np.mean(events) == pytest.approx(np.mean(recursion), rel=0.05)


def test_without_failures_nothing_is_lost() -> None:
    run, count = run_with_failures(EVEN, 50, Failures(1e12))
    assert count == 0
    assert run.ends == pytest.approx(run_chain(EVEN, 50).ends)
    assert Failures(1e12).goodput(4, 1.0) == pytest.approx(1.0)


def test_where_nothing_can_be_finished_the_goodput_is_none() -> None:
    assert Failures(1.0, saved_every=1000).goodput(10, 1.0) == 0.0


def test_thousands_of_workers_with_failures_take_seconds() -> None:
    k = 64
    chain = Chain((1.0,) * k, (0.4,) * k, (0.9,) * k, (0.1,) * (k - 1), (0.05,) * (k - 1), (0.02,) * (k - 1), 8)
    begin = time.perf_counter()
    run, count = run_with_failures(
        chain, 100, Failures(2e5, saved_every=10), Variation(jitter=0.1, seed=0), replicas=64
    )
    assert count > 0
    assert run.ends[-1] > 100
    assert time.perf_counter() - begin < 6.0  # a tenth of 1,000 minibatches in 60 s


@pytest.mark.parametrize(("given", "said"), [({"mean_s": 0.0}, "mean_s"), ({"mean_s": 1.0, "saved_every": 0}, "every")])
def test_failures_out_of_range_are_refused(given: dict[str, float], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Failures(**given)


def test_no_minibatch_is_refused() -> None:
    with pytest.raises(ConfigError, match="minibatches"):
        simulate(EVEN, 0)
