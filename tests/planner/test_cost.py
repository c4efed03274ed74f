"""What layouts cost, by hand."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import pytest
from tests._support.planned import FREE, KIB, MIB, REAL, profile, unit

from syngrad.errors import ConfigError
from syngrad.planner.cost import Costs, chained, data_parallel, exchange_s, ring_s
from syngrad.planner.layouts import Cluster, Layout
from syngrad.planner.prediction import predict
from syngrad.planner.quantities import Estimates, Link, Machine, Profile, machine_of, profile_of, to_json

TWO = Cluster(FREE, 2)
#: of four units in one process: 4 forward, 1 + 3·2 back, 4/4 for the optimiser
ALONE = 4 + 7 + 1.0


def test_one_process_is_the_sum_of_its_parts_or_what_was_measured() -> None:
    assert predict(profile(), Cluster(FREE, 1), Layout("alone")).seconds == ALONE
    measured = profile(step_s=10.0, threads_s=6.0)
    assert predict(measured, TWO, Layout("alone")).seconds == 10.0
    assert predict(measured, TWO, Layout("alone(threads)")).samples_per_s == 32 / 6.0


def test_data_parallel_workers_have_a_share_each_and_combine() -> None:
    machine = Machine(64, all_reduce=replace(REAL.all_reduce, fixed_s=0.5, byte_s=0.0))
    found = predict(profile(), Cluster(machine, 2), Layout("ddp"))
    assert found.seconds == 11 / 2 + 1 + 0.5
    assert found.bytes_sent == 2 * 16 * MIB  # round the ring of two, each sends all of it once
    assert predict(profile(), Cluster(machine, 2), Layout("ddp:bf16")).bytes_sent == 16 * MIB
    averaged = predict(profile(), Cluster(machine, 2), Layout("ddp:periodic", every=5))
    assert averaged.seconds == pytest.approx(11 / 2 + 1 + 0.5 / 5)
    apart = predict(profile(), Cluster(machine, 2), Layout("diloco", every=5))
    assert apart.samples_per_s == pytest.approx(2 * 32 / (ALONE + 0.5 / 5))


def test_a_ring_waits_for_every_piece() -> None:
    # measured with 24.3 MB over 20 ms and 100 Mbit/s: about 2.5 s, of which 1.9 are the rate's
    assert ring_s(24.27e6, 2, Link(0.02, 100e6 / 8)) == pytest.approx(2.45, rel=0.03)
    assert ring_s(10.0, 1, Link(1.0, 1.0)) == 0.0


def test_a_small_tensor_goes_round_in_two_pieces_each_of_which_is_asked_for() -> None:
    # counted with 4 KiB over 100 ms: 4.0 delays among two workers, 12.1 among four
    assert ring_s(4096.0, 2, Link(1.0)) == 4.0
    assert ring_s(4096.0, 4, Link(1.0)) == 12.0


def test_an_averaging_waits_four_times_whatever_its_size() -> None:
    # counted over 100 ms: 2.0 delays among two workers, 2.1 among four, for each of two times that all send to all
    assert exchange_s(8.0, 4, Link(3.0, 2.0)) == 4 * 3.0 + 2 * 3 / 4 * 8.0 / 2.0
    assert exchange_s(10.0, 1, Link(1.0, 1.0)) == 0.0


def test_what_goes_round_meanwhile_is_hidden_by_the_backward_pass() -> None:
    cluster = Cluster(FREE, 2, 2, Link(0.0, MIB * 1.0))  # 1 MiB a second
    lockstep, _ = data_parallel(Costs(profile(), cluster), Layout("ddp"))
    # the last unit's 4 MiB are over the first bucket's limit and go by themselves; the other 12 when all are there
    assert lockstep.combine_s == pytest.approx((2 + 1 + 4) + 12 - (2 + 3.5))
    fast, _ = data_parallel(Costs(profile(), replace(cluster, link=Link(0.0, 1e12))), Layout("ddp"))
    assert fast.combine_s == pytest.approx(0.0, abs=1e-4)


def test_a_stage_goes_without_the_gradient_that_nobody_asks_for() -> None:
    chain, sent = chained(Costs(profile(), TWO), Layout("synthetic", (2,), queue_depth=8))
    # two units, an estimate, a fit every 4th time, both optimisers
    assert chain.work_s[0] == 2 + 3 + 0.125 + 0.25 / 4 + 0.5 + 0.0625
    # the gradient of its input is spared on three minibatches of four
    assert chain.work_s[1] == 2 + 3 + 1 / 4 + 0.5
    assert sent == MIB + KIB + MIB / 4
    local, sent = chained(Costs(profile(), TWO, "local"), Layout("synthetic:local", (2,), queue_depth=8))
    assert (local.work_s[1], sent) == (5.5, MIB + KIB)
    delayed, sent = chained(Costs(profile(), TWO), Layout("delayed", (2,), queue_depth=2))
    assert (delayed.work_s, sent) == ((5.5, 6.5), 2 * MIB + KIB)


def test_messages_shrink_with_their_form() -> None:
    costs = Costs(profile(), TWO)
    assert costs.message_bytes(1, "bfloat16") == MIB / 2 + KIB
    assert costs.message_bytes(1, "int8") == MIB / 4 + 4 * 256 + KIB  # 256 rows, a scale each


def test_a_pipeline_of_one_part_is_no_faster_than_one_process() -> None:
    found = predict(profile(), TWO, Layout("gpipe", (2,), microbatches=1))
    assert found.seconds == pytest.approx(ALONE - 0.5)  # but for the second worker's optimiser
    assert predict(profile(), TWO, Layout("gpipe", (2,), microbatches=4)).seconds < found.seconds
    assert predict(profile(), TWO, Layout("1f1b", (2,), microbatches=4)).seconds < found.seconds


def test_what_does_not_shrink_with_the_batch_stays() -> None:
    fixed = profile(units=1, estimates={})
    fixed = replace(fixed, units=(unit("input", fixed_forward_s=0.5, fixed_backward_s=0.25, input_gradient_s=0.0),))
    costs = Costs(fixed, TWO)
    assert costs.forward_s(0, 1, 0.5) == 0.75
    assert costs.backward_s(0, 1, 0.5) == 0.25 + 1.75 / 2


def test_two_busy_processes_slow_each_other_down_where_they_share_a_machine() -> None:
    assert Cluster(REAL, 2).slowdown(0) == 1.1
    assert Cluster(REAL, 4).slowdown(0) == 2.2  # four on two cores
    apart = Cluster(REAL, 2, 2)
    assert apart.slowdown(0) == 1.0
    assert replace(apart, emulated=True).slowdown(0) == 1.1
    assert replace(apart, speeds=(1.0, 0.5)).slowdown(1) == 2.0


def test_memory_is_of_what_a_worker_holds() -> None:
    base = 100 * MIB + 16 * MIB
    alone = predict(profile(), TWO, Layout("alone")).memory_bytes
    assert alone == (base + 16 * MIB + 32 * MIB + 8 * MIB,)
    half = predict(profile(), TWO, Layout("synthetic:local", (2,), queue_depth=8)).memory_bytes
    assert max(half) < alone[0]
    # weights, moments and activations of two units, a message, and eight that have come
    assert half[1] == base + 8 * MIB + 16 * MIB + 4 * MIB + 8 * (MIB + KIB)
    delayed = predict(profile(), TWO, Layout("delayed", (2,), queue_depth=3)).memory_bytes
    assert delayed[0] == base + 8 * MIB + 16 * MIB + 4 * MIB + MIB + KIB + 3 * (8 + 4) * MIB


def test_a_slow_link_decides_and_is_named() -> None:
    slow = Cluster(FREE, 2, 2, Link(0.0, MIB / 16.0))
    found = predict(profile(), slow, Layout("synthetic", (2,), queue_depth=8))
    assert found.bound.why == "link"
    assert found.seconds == pytest.approx(16.0, rel=0.01)
    late = predict(profile(), Cluster(FREE, 2, 2, Link(30.0)), Layout("synthetic", (2,), queue_depth=2))
    assert late.bound.why == "round trip"
    assert late.seconds > 30.0


def test_replicas_train_on_as_many_minibatches_and_average() -> None:
    single = predict(profile(), TWO, Layout("synthetic", (2,), queue_depth=8))
    both = predict(profile(), replace(TWO, replicas=2), Layout("synthetic", (2,), queue_depth=8, replicas=2, every=50))
    assert both.samples_per_s == pytest.approx(2 * single.samples_per_s)
    assert both.bytes_sent > 2 * single.bytes_sent


@pytest.mark.parametrize("made", [lambda: Layout("dpp"), lambda: Layout("ddp", message_dtype="int4")])
def test_an_unknown_layout_is_refused(made) -> None:
    with pytest.raises(ConfigError, match="unknown"):
        made()


@pytest.mark.parametrize(
    ("given", "said"),
    [({"workers": 0}, "workers"), ({"workers": 2, "hosts": 3}, "hosts"), ({"speeds": (1.0,)}, "devices"),
     ({"speeds": (1.0, -1.0)}, "-1.0")],
)  # fmt: skip
def test_a_cluster_that_cannot_be_is_refused(given, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Cluster(FREE, **given)


def test_cuts_out_of_order_are_refused() -> None:
    with pytest.raises(ConfigError, match="part 4 units"):
        predict(profile(), TWO, Layout("gpipe", (4,)))


def test_figures_go_into_json_and_come_back() -> None:
    kept = replace(profile(), estimates={"default": (Estimates(1.0), None, Estimates(2.0, 1.0, 4))}, cuts=(2,))
    assert profile_of(json.loads(to_json(kept))) == kept
    assert machine_of(json.loads(to_json(REAL))) == REAL
    for broken in ({}, {**asdict(kept), "units": [{"name": "1", "colour": 3}]}, {**asdict(kept), "units": ()}):
        with pytest.raises(ConfigError, match="anew"):
            profile_of(broken)
    with pytest.raises(ConfigError, match="anew"):
        machine_of({"clocks": 3})


def test_a_profile_that_does_not_fit_itself_is_refused() -> None:
    with pytest.raises(ConfigError, match="1 costs for 3 cuts"):
        Profile("a", 1, profile().units, {"default": (None,)})
