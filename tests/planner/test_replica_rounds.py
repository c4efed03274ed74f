"""Replicas that average now and then and fail alone: the recursion against events, and the closed form against it."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests._support.replica_events import events
from tests.planner.test_recursion import chains

from syngrad.errors import ConfigError
from syngrad.planner.recursion import STEADY, Variation, run_chain, run_microbatches
from syngrad.planner.replica_rounds import run_replicas
from syngrad.planner.timing import Chain, Microbatches
from syngrad.planner.worker_failures import Failures

EVEN = Chain((1.0,) * 4, (0.4,) * 4, (0.9,) * 4, (0.1,) * 3, (0.1,) * 3, (0.2,) * 3, 8)
RESTLESS = Variation(jitter=0.3, stragglers=0.1, slower=3.0, unequal=0.2, seed=7)


@given(chains(waits=False), st.integers(1, 4))
@settings(max_examples=15, deadline=None)
def test_rounds_say_what_events_say(chain: Chain, replicas: int) -> None:
    every = longer_than_queues(chain)
    ends, trained, _ = events(chain, replicas, 4, every, 1.5, RESTLESS)
    run = run_replicas(chain, replicas, rounds=4, every=every, average_s=1.5, variation=RESTLESS)
    assert run.ends == pytest.approx(ends, rel=1e-9)
    assert run.trained.tolist() == trained == [every * replicas] * 4


@given(chains(waits=False), st.integers(1, 5), st.floats(0.5, 30.0), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_and_where_replicas_fail(chain: Chain, replicas: int, rounds_lived: float, seed: int) -> None:
    every = longer_than_queues(chain)
    mean_s = rounds_lived * every * chain.seconds * chain.workers
    failures, variation = Failures(mean_s, restart_s=9.0), Variation(jitter=0.2, seed=seed)
    ends, trained, count = events(chain, replicas, 8, every, 0.7, variation, failures)
    run = run_replicas(chain, replicas, rounds=8, every=every, average_s=0.7, variation=variation, failures=failures)
    assert run.ends == pytest.approx(ends, rel=1e-9)
    assert (run.trained.tolist(), run.failures) == (trained, count)


def longer_than_queues(chain: Chain) -> int:
    return chain.depth * (chain.workers - 1) + 1


def test_one_replica_that_averages_with_nobody_is_a_chain() -> None:
    run = run_replicas(EVEN, 1, rounds=5, every=10, average_s=0.0, variation=RESTLESS)
    chain = run_chain(EVEN, 50, RESTLESS, every=10)
    assert run.ends == pytest.approx(chain.ends[9::10])


@pytest.mark.parametrize("kind", ["gpipe", "1f1b"])
def test_microbatches_of_many_replicas_are_those_of_each(kind: str) -> None:
    shape = Microbatches(kind, 4, (1.0, 1.5, 0.5), (2.0, 2.5, 1.0), (0.2, 0.3), (0.1, 0.4), (0.5,) * 3)
    alone = run_microbatches(shape, 6).ends
    run = run_replicas(shape, 3, rounds=6, every=1, average_s=0.0)
    # a stage waits for no other stage between minibatches, as ever; the first one is done last
    assert run.ends == pytest.approx(alone)
    varied = run_replicas(shape, 1, rounds=3, every=4, average_s=0.0, variation=RESTLESS)
    assert varied.ends == pytest.approx(run_microbatches(shape, 12, RESTLESS).ends[3::4])
    slow = run_replicas(shape, 3, rounds=6, every=1, average_s=0.0, slower=np.array([[1.0], [3.0], [2.0]]))
    assert slow.ends[-1] > 2 * alone[-1]
    averaged = run_replicas(shape, 3, rounds=6, every=1, average_s=2.0)
    assert averaged.ends[-1] == pytest.approx(alone[-1] + 6 * 2.0)


@pytest.mark.parametrize(("mean_s", "restart_s"), [(5_000.0, 30.0), (2_000.0, 5.0)])
@pytest.mark.parametrize("replicas", [1, 32])
def test_what_goes_into_averages_is_what_the_closed_form_says(mean_s: float, restart_s: float, replicas: int) -> None:
    failures, every, k = Failures(mean_s, restart_s=restart_s), 40, EVEN.workers
    calm = run_replicas(EVEN, replicas, rounds=20, every=every, average_s=1.0)
    rounds = 600 if replicas == 1 else 150
    run = run_replicas(EVEN, replicas, rounds=rounds, every=every, average_s=1.0, failures=failures)
    round_s, filling = float(np.diff(calm.ends)[-10:].mean()), run_chain(EVEN, 1).ends[0]
    assert run.failures >= 10
    said = failures.share_averaged(k, round_s, replicas, filling)
    assert run.trained.sum() / run.ends[-1] / calm.minibatches_per_s == pytest.approx(said, rel=0.07)


def test_all_may_fail_at_once() -> None:
    failures = Failures(80.0, restart_s=50.0)
    run = run_replicas(EVEN, 2, rounds=40, every=5, average_s=0.0, failures=failures)
    assert (run.trained == 0).any()
    assert list(run.ends) == sorted(run.ends)


def test_a_checkpoint_is_made_as_often_as_loses_least() -> None:
    failures = Failures(1e5, restart_s=10.0, saving_s=20.0)
    best = failures.saved_best(100, 2.0)
    assert best.saved_every == round(math.sqrt(2 * 20.0 * 1e5 / 100) / 2.0)
    reached = best.goodput(100, 2.0)
    for times in (0.5, 2.0):
        other = Failures(1e5, 10.0, round(best.saved_every * times), 20.0)
        assert other.goodput(100, 2.0) < reached


@pytest.mark.parametrize("name", ["replicas", "rounds", "every"])
def test_none_of_something_is_refused(name: str) -> None:
    given = {"rounds": 1, "every": 1} | {name: 0}
    with pytest.raises(ConfigError, match=name):
        run_replicas(EVEN, given.pop("replicas", 2), average_s=0.0, **given)


def test_devices_differ_for_good() -> None:
    own = Variation(unequal=0.3, seed=4).devices((1000, 16))
    assert (own == Variation(unequal=0.3, seed=4).devices((1000, 16))).all()
    assert np.mean(own) == pytest.approx(1.0, rel=0.02)
    assert STEADY.devices((3,)) == 1.0
    with pytest.raises(ConfigError, match="unequal"):
        Variation(unequal=-1.0)


def test_thousands_of_workers_in_replicas_take_seconds() -> None:
    k = 16
    chain = Chain((1.0,) * k, (0.4,) * k, (0.9,) * k, (0.1,) * (k - 1), (0.05,) * (k - 1), (0.02,) * (k - 1), 8)
    begin = time.perf_counter()
    run = run_replicas(chain, 256, rounds=4, every=50, average_s=5.0, variation=RESTLESS, failures=Failures(1e5))
    assert run.failures > 0
    assert time.perf_counter() - begin < 5.0  # 200 minibatches of 4,096 workers
