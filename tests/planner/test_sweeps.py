"""What more workers and other links would change, and what every worker would do, moment by moment."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from tests._support.planned import FREE, REAL, profile

from syngrad.planner.expected_spans import accounts, expected_spans
from syngrad.planner.layouts import Cluster
from syngrad.planner.prediction import predict
from syngrad.planner.quantities import Link
from syngrad.planner.ranking import ranking
from syngrad.planner.sweeps import over_delay, over_links, over_rate, over_workers

TWO = Cluster(REAL, 2)


def test_over_workers_a_point_is_a_plan_of_so_many() -> None:
    plan = ranking(profile(units=8), Cluster(FREE, 2))
    swept = over_workers(plan)
    assert swept.points == (1, 2, 4, 8)
    four = ranking(profile(units=8), Cluster(FREE, 4))
    by_kind = {each.layout.kind: each.samples_per_s for each in four.ranked if each.layout.replicas == 1}
    assert {kind: swept.rates[kind][2] for kind in by_kind} == by_kind
    assert swept.rates["synthetic"][0] is None
    assert over_workers(ranking(profile(units=8), Cluster(FREE, 3))).points == (1, 2, 3, 4, 8)


def test_workers_of_stated_speeds_are_as_many_as_they_are() -> None:
    assert over_workers(ranking(profile(), Cluster(FREE, 2, speeds=(1.0, 0.5)))).points == (2,)


def test_over_a_link_each_point_is_a_plan_with_it() -> None:
    plan = ranking(profile(), TWO)
    rate, delay = over_rate(plan), over_delay(plan)
    for swept, link in ((rate, Link(0.0, rate.points[5])), (delay, Link(delay.points[5]))):
        there = ranking(plan.profile, Cluster(REAL, 2, 2, link))
        assert swept.rates["ddp"][5] == next(each.samples_per_s for each in there.ranked if each.layout.kind == "ddp")
        assert over_links(plan, [link])["ddp"] == (swept.rates["ddp"][5],)
    assert rate.rates["ddp"] == tuple(sorted(rate.rates["ddp"], key=lambda value: value or 0.0))
    assert len(set(rate.rates["alone"])) == 1


def test_what_holds_too_much_is_left_out() -> None:
    plan = ranking(profile(), TWO)
    most = min(each.peak_bytes for each in plan.ranked)
    assert "alone" not in over_rate(replace(plan, memory_bytes=most)).rates


@pytest.mark.parametrize("kind", ["synthetic", "delayed", "ddp", "gpipe", "1f1b"])
def test_spans_do_not_overlap_and_keep_the_pace(kind: str) -> None:
    plan = ranking(profile(units=8, batch_size=48), Cluster(REAL, 3, 3, Link(0.5, 1e9)))
    layout = next(each.layout for each in plan.ranked if each.layout.kind == kind)
    told = expected_spans(plan.profile, plan.cluster, layout)
    assert len(told) == 3
    for spans in told:
        assert all(one[3] <= other[2] + 1e-9 for one, other in pairwise(spans))
        assert all(end > begin for _, _, begin, end in spans)
    ends: dict[int, float] = {}
    for name, minibatch, _, end in told[0]:
        if name in ("work", "send"):
            ends[minibatch] = max(end, ends.get(minibatch, 0.0))
    half = len(ends) // 2
    pace = (ends[len(ends) - 1] - ends[half]) / (len(ends) - 1 - half)
    assert pace == pytest.approx(predict(plan.profile, plan.cluster, layout).seconds, rel=0.02)


def test_accounts_say_which_part_a_worker_has() -> None:
    plan = ranking(profile(units=4), TWO)
    made = accounts(plan.profile, TWO, next(e.layout for e in plan.ranked if e.layout.kind == "synthetic"))
    assert [each["part"] for each in made] == ["2 of 4 units", "2 of 4 units"]
    whole = accounts(plan.profile, TWO, next(e.layout for e in plan.ranked if e.layout.kind == "ddp"))
    assert [each["part"] for each in whole] == ["whole model"] * 2
    assert whole[0]["seconds"].keys() == {"work", "send"}
