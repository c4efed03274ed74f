"""Layouts run through: without variation what is predicted; with it, and with failures, what each kind pays for it."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from tests._support.planned import FREE, profile

from syngrad.errors import ConfigError
from syngrad.planner import Cluster, Failures, Layout, Link, Variation, predict, simulate_layout
from syngrad.planner.cost import Costs, averaging_s

#: four units, two workers a replica, four replicas where there are any
TWO = Cluster(FREE, 2, 2, Link(0.1, 10 * 2**20))
LAYOUTS = [
    Layout("alone"),
    Layout("ddp"),
    Layout("ddp:periodic", every=5),
    Layout("diloco", every=10),
    Layout("gpipe", cuts=(2,), microbatches=4),
    Layout("gpipe", cuts=(2,), microbatches=4, replicas=4, average_every=1),
    Layout("1f1b", cuts=(2,), microbatches=4, replicas=4, average_every=10),
    Layout("synthetic", cuts=(2,), queue_depth=8),
    Layout("synthetic", cuts=(2,), queue_depth=8, replicas=4, average_every=10),
    Layout("corrected", cuts=(2,), queue_depth=8, every=4, replicas=4, average_every=10),
    Layout("delayed", cuts=(2,), queue_depth=4, replicas=4, average_every=10),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_without_variation_it_is_what_is_predicted(layout: Layout) -> None:
    found = simulate_layout(profile(), TWO, layout, minibatches=400)
    assert found.samples_per_s == pytest.approx(predict(profile(), TWO, layout).samples_per_s, rel=0.01)
    assert found.goodput == 1.0


def test_jitter_costs_those_most_who_wait_most() -> None:
    variation = Variation(jitter=0.5, seed=1)
    often, rarely = LAYOUTS[5], replace(LAYOUTS[5], average_every=20)
    lost = [
        simulate_layout(profile(), TWO, each, variation=variation).samples_per_s
        / simulate_layout(profile(), TWO, each).samples_per_s
        for each in (often, rarely)
    ]
    assert lost[0] < lost[1] < 1.0


def test_who_averages_rarely_fails_alone() -> None:
    failures = Failures(30_000.0, restart_s=300.0, saving_s=30.0)
    often, rarely = LAYOUTS[5], replace(LAYOUTS[5], average_every=10, replicas=64)
    together = simulate_layout(profile(), TWO, replace(often, replicas=64), failures=failures)
    alone = simulate_layout(profile(), TWO, rarely, failures=failures)
    assert 0.0 <= together.goodput < 0.5 < alone.goodput < 1.0


def test_a_slower_device_holds_up_those_who_wait_for_it() -> None:
    slow = replace(TWO, speeds=(1.0, 0.5))
    found = simulate_layout(profile(), slow, Layout("diloco", every=10))
    assert found.samples_per_s == pytest.approx(predict(profile(), slow, Layout("diloco", every=10)).samples_per_s)


def test_replicas_average_over_their_own_link() -> None:
    layout = LAYOUTS[8]
    near, far = Cluster(FREE, 2), Cluster(FREE, 2, between_replicas=Link(1.0, 2**20))
    averaged = predict(profile(), far, layout).seconds - predict(profile(), near, layout).seconds
    assert averaged == pytest.approx(averaging_s(Costs(profile(), far), layout) / 10)
    assert averaged == pytest.approx((4 * 1.0 + 2 * 3 / 4 * 8) / 10)
    assert TWO.apart == TWO.link


def test_a_plan_of_corrected_replicas_averages_as_rarely_as_the_others() -> None:
    assert str(LAYOUTS[9]) == "4 × corrected, averaged every 10"
    assert Layout("synthetic", cuts=(2,), replicas=4, every=64).averaged_every == 64
    assert LAYOUTS[5].updates == "exact"
    assert LAYOUTS[6].updates == "averaged rarely, exact"


def test_thousands_of_workers_take_seconds() -> None:
    begin = time.perf_counter()
    crowd = Cluster(FREE, 4096, 4096, Link(1e-3, 1e9))
    simulate_layout(profile(batch_size=4096), crowd, Layout("ddp"), variation=Variation(jitter=0.1))
    simulate_layout(profile(), crowd, Layout("diloco", every=100), variation=Variation(jitter=0.1))
    assert time.perf_counter() - begin < 6.0


def test_no_minibatch_is_refused() -> None:
    with pytest.raises(ConfigError, match="minibatches"):
        simulate_layout(profile(), TWO, LAYOUTS[0], minibatches=0)
