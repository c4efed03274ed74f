"""The answer: what is ranked, chosen and said, of models written by hand."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from tests._support.planned import FREE, MIB, REAL, profile

from syngrad.errors import ConfigError
from syngrad.planner import plan
from syngrad.planner.choices import chosen, replicated
from syngrad.planner.layouts import KINDS, Cluster
from syngrad.planner.machine import used_by_others
from syngrad.planner.profile import calibrated
from syngrad.planner.quantities import Link
from syngrad.planner.ranking import changes, ranking
from syngrad.report.plan_text import plan_text

TWO = Cluster(REAL, 2)


def test_every_kind_is_ranked_the_fastest_first() -> None:
    found = ranking(profile(), TWO)
    assert {each.layout.kind for each in (*found.ranked, *found.rare)} == set(KINDS)
    speeds = [each.samples_per_s for each in found.ranked]
    assert speeds == sorted(speeds, reverse=True)
    assert found.best.layout.updates != "exact"
    assert found.exact is not None
    assert found.exact.layout.updates == "exact"
    assert {each.layout.kind for each in found.rare} == {"ddp:periodic", "diloco"}


def test_cuts_part_the_workers_evenly_and_by_their_speeds() -> None:
    assert chosen(profile(units=8), TWO, "synthetic").layout.cuts == (4,)
    uneven = Cluster(FREE, 2, speeds=(1.0, 0.3))
    assert chosen(profile(units=8), uneven, "synthetic").layout.cuts > (4,)
    assert chosen(profile(units=8), TWO, "gpipe", cuts=(6,)).layout.cuts == (6,)


def test_a_cut_where_no_estimator_can_stand_is_not_chosen() -> None:
    model = profile()
    estimates = {name: (costs[0], None, costs[2]) for name, costs in model.estimates.items()}
    hindered = replace(model, estimates=estimates)
    assert chosen(hindered, TWO, "synthetic").layout.cuts in ((1,), (3,))
    assert chosen(hindered, TWO, "delayed").layout.cuts == (2,)
    nowhere = replace(model, estimates={"default": (None,) * 3})
    with pytest.raises(ConfigError, match="cuts"):
        chosen(nowhere, TWO, "synthetic")


def test_messages_are_packed_where_the_rate_decides_alone() -> None:
    assert chosen(profile(), TWO, "synthetic").layout.message_dtype == "float32"
    slow = Cluster(REAL, 2, 2, Link(0.0, 0.1 * MIB))
    assert chosen(profile(), slow, "synthetic").layout.message_dtype == "bfloat16"
    assert chosen(profile(), replace(slow, link=Link(0.0, 0.05 * MIB)), "synthetic").layout.message_dtype == "int8"


def test_the_queue_is_as_deep_as_the_round_trip_needs() -> None:
    assert chosen(profile(), TWO, "synthetic").layout.queue_depth == 8
    assert chosen(profile(), TWO, "delayed").layout.queue_depth == 2
    far = chosen(profile(), Cluster(REAL, 2, 2, Link(60.0)), "synthetic")
    assert far.layout.queue_depth == pytest.approx(120 / 5.9, rel=0.25)
    assert far.bound.why == "worker"


def test_parts_are_tried_as_far_as_they_divide_the_batch() -> None:
    assert chosen(profile(batch_size=24), TWO, "gpipe").layout.microbatches in (1, 2, 4, 8)
    assert chosen(profile(batch_size=24), TWO, "zb1p").layout.microbatches in (2, 4, 8)


@pytest.mark.parametrize("kind", ["1f1b", "zb1p"])
def test_as_many_parts_are_tried_as_there_are_workers(kind: str) -> None:
    assert chosen(profile(units=24, batch_size=48), Cluster(FREE, 24), kind).layout.microbatches in (24, 48)
    with pytest.raises(ConfigError, match="a batch of 32 divides into none of 24 or more"):
        chosen(profile(units=24, batch_size=32), Cluster(FREE, 24), kind)
    with pytest.raises(ConfigError, match="batch of 7"):
        chosen(profile(batch_size=7), TWO, "1f1b")
    with pytest.raises(ConfigError, match="--batch-size 6"):
        chosen(profile(batch_size=7), TWO, "ddp")


def test_diloco_averages_so_rarely_that_it_hardly_costs() -> None:
    near, far = (chosen(profile(), cluster, "diloco").layout.every for cluster in (
        TWO, Cluster(REAL, 2, 2, Link(0.02, 100e3))))  # fmt: skip
    assert near == 16
    assert far > near


def test_pipelines_stand_side_by_side_where_there_are_workers_for_it() -> None:
    four = Cluster(FREE, 4)
    found = ranking(profile(units=8), four)
    assert "2 × synthetic" in " ".join(str(each.layout) for each in found.rare)
    assert replicated(profile(units=8), four, "synthetic", 2).layout.cuts == (4,)
    with pytest.raises(ConfigError, match="no 3 pipelines"):
        replicated(profile(), four, "synthetic", 3)


def test_a_bound_on_memory_leaves_out_what_holds_more() -> None:
    whole = ranking(profile(), TWO)
    peaks = sorted(each.peak_bytes for each in (*whole.ranked, *whole.rare))
    bounded = ranking(profile(), TWO, peaks[3])
    assert all(each.peak_bytes <= peaks[3] for each in (*bounded.ranked, *bounded.rare))
    assert any("MiB a worker" in why for _, why in bounded.left_out)
    with pytest.raises(ConfigError, match=r"memory 1 MiB is less than any layout needs: .* give --memory"):
        ranking(profile(), TWO, MIB)


def test_a_model_that_cannot_be_cut_still_gets_an_answer() -> None:
    found = ranking(profile(units=1, estimates={}), TWO)
    assert found.exact is not None
    assert {kind for kind, _ in found.left_out} >= {"gpipe", "1f1b", "synthetic", "delayed"}


def test_one_worker_is_one_process() -> None:
    assert {each.layout.family for each in ranking(profile(), Cluster(REAL, 1)).ranked} == {"alone"}
    assert changes(ranking(profile(), Cluster(REAL, 1))) == ()


def test_a_slower_link_changes_the_answer_where_it_is_said() -> None:
    model = calibrated(profile(step_s=0.1))
    made = ranking(model, TWO)
    found = changes(made)
    assert [each for each in found if each.rate is not None]
    first = found[0]
    assert first.rate is not None
    for rate, expected in ((first.rate * 1.5, first.before), (first.rate / 1.5, first.after)):
        there = ranking(model, Cluster(REAL, 2, 2, Link(0.0, rate)))
        known = next(each for each in there.ranked if each.layout.kind == expected)
        assert known.samples_per_s * 1.05 >= there.best.samples_per_s
    slowest = [each for each in found if each.rate is not None][-1]
    assert slowest.after.startswith("alone")


def test_the_text_keeps_within_80_columns_and_says_what_it_must() -> None:
    made = ranking(
        calibrated(profile(spread=0.5, step_s=0.1)), Cluster(REAL, 2, 2, Link(0.02, 12.5 * MIB)), 10_000 * MIB
    )
    lines = plan_text(replace(made, changes=changes(made)))
    assert max(map(len, lines)) <= 80
    text = " ".join(line.strip() for line in lines)
    for said in ("Fastest: ", "What decides it: ", "On hosts of their own: ", "nothing trained", "is not in a plan",
                 "Others used this machine", "20ms", "--cuts 2"):  # fmt: skip
        assert said in text


def test_layouts_that_are_too_near_are_called_so() -> None:
    text = " ".join(plan_text(ranking(profile(), TWO)))
    assert "Cannot tell it from" in text
    assert "syngrad compare by-hand --workers 2 --cuts 2 --methods" in " ".join(text.split())


def test_of_layouts_that_are_as_fast_the_plainest_is_taken() -> None:
    found = ranking(profile(units=1, estimates={}), Cluster(FREE, 2))
    # nothing that goes round costs anything here, so that every way of going round is as fast
    assert found.best.layout.kind == "ddp"
    assert {each.layout.kind for each in found.near} == {"ddp:bf16", "ddp:powersgd"}
    assert "as fast" in " ".join(plan_text(found))


def test_a_busy_machine_is_said_to_be_one() -> None:
    assert ranking(profile(others=0.5), TWO).restless
    assert not ranking(profile(), TWO).restless
    assert 0 <= used_by_others(0.05) <= 1


def test_a_plan_is_plain_data() -> None:
    made = ranking(profile(), TWO)
    plain = json.loads(json.dumps(made.to_dict(), allow_nan=False))
    assert plain["layouts"][0]["name"] == str(made.best.layout)
    assert plain["cluster"]["link"]["bytes_per_s"] is None


def test_plan_takes_what_has_been_measured() -> None:
    given = {"profile": profile(), "machine": REAL}
    assert plan("fashion-mlp", 2, **given).best == ranking(profile(), TWO).best
    over = plan("fashion-mlp", 2, "20ms,100mbit", cuts=["2"], **given)
    assert over.cluster.hosts == 2
    assert over.cluster.link == Link(0.02, 100e6 / 8)
    assert {each.layout.cuts for each in over.ranked if each.layout.cuts} == {(2,)}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"workers": 0}, "workers must be a whole number of at least 1 .*, got 0"),
        ({"link": "fast"}, "cannot read link 'fast'"),
        ({"memory": -1.0}, "memory must be above 0"),
        ({"devices": (1.0,)}, "devices names 1 speeds, and there are 2 workers"),
        ({"cuts": ["nowhere"]}, "cut 'nowhere' does not start a unit"),
        ({"cuts": ["1", "2"]}, "2 cuts part a model into 3, and there are 2 workers"),
        ({"seconds": 0}, "seconds must be above 0"),
    ],
)
def test_what_cannot_be_planned_is_refused_in_one_line(given, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        plan("fashion-mlp", profile=profile(), machine=REAL, **given)
