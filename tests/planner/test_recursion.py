"""The recursion against the closed forms, in the steady state, and against a plain loop over workers."""

from __future__ import annotations

import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from syngrad.errors import ConfigError
from syngrad.planner.microbatch_orders import orders
from syngrad.planner.recursion import Variation, run_chain, run_lockstep, run_microbatches
from syngrad.planner.timing import Chain, Lockstep, Microbatches

seconds = st.floats(0.01, 5.0)


@st.composite
def chains(draw: st.DrawFn, waits: bool | None = None) -> Chain:
    workers = draw(st.integers(1, 6))
    work = [draw(seconds) for _ in range(workers)]
    shares = [sorted((draw(st.floats(0, 1)), draw(st.floats(0, 1)))) for _ in work]
    links = [[draw(st.floats(0, 5)) for _ in range(workers - 1)] for _ in range(3)]
    return Chain(
        tuple(work),
        tuple(w * early for w, (early, _) in zip(work, shares, strict=True)),
        tuple(w * late for w, (_, late) in zip(work, shares, strict=True)),
        *map(tuple, links),
        depth=draw(st.integers(1, 6)),
        waits=draw(st.booleans()) if waits is None else waits,
    )


def plain(chain: Chain, minibatches: int) -> list[float]:
    """The same, worker by worker as one would write it down; the ends of every minibatch."""
    k = chain.workers
    end, line, line_back = [0.0] * k, [-np.inf] * k, [-np.inf] * k
    answered: list[list[float]] = []
    ends = []
    for t in range(minibatches):
        start = [0.0] * k
        for w in range(k):
            start[w] = end[w]
            if t >= chain.depth and w < k - 1:
                start[w] = max(start[w], answered[t - chain.depth][w])
            if w:
                line[w - 1] = max(start[w - 1] + chain.send_s[w - 1], line[w - 1]) + chain.forward_s[w - 1]
                start[w] = max(start[w], line[w - 1] + chain.delay_s[w - 1])
            end[w] = start[w] + chain.work_s[w]
        back = [0.0] * k
        for w in range(k - 1, 0, -1):
            told = start[w] + chain.answer_s[w]
            if chain.waits and w < k - 1:
                told = max(told, back[w] + chain.answer_s[w])
            line_back[w - 1] = max(told, line_back[w - 1]) + chain.backward_s[w - 1]
            back[w - 1] = line_back[w - 1] + chain.delay_s[w - 1]
        answered.append(back)
        ends.append(max(end))
    return ends


@given(chains())
@settings(max_examples=60, deadline=None)
def test_vectors_say_what_a_plain_loop_says(chain: Chain) -> None:
    assert run_chain(chain, 40).ends == pytest.approx(plain(chain, 40), rel=1e-9)


@given(chains())
@settings(max_examples=30, deadline=None)
def test_the_steady_pace_of_a_chain_is_the_closed_form(chain: Chain) -> None:
    # the pace is periodic by then: over whole turns of the queue what has come before no longer matters
    ends = run_chain(chain, 50 * chain.depth).ends
    pace = (ends[-1] - ends[-1 - 8 * chain.depth]) / (8 * chain.depth)
    late = max(chain.bounds()).seconds
    assert pace == pytest.approx(late, rel=1e-9) or _transient(chain) > len(ends)


def _transient(chain: Chain) -> float:
    """About how many minibatches it takes until the slowest cycle alone decides."""
    first, second = sorted({round(bound.seconds, 12) for bound in chain.bounds()}, reverse=True)[:2] + [0.0] * (
        2 - len(chain.bounds())
    )
    total = sum(chain.work_s) + sum(chain.forward_s) + 2 * sum(chain.delay_s) + sum(chain.backward_s)
    return total * chain.depth * 4 / max(first - second, 1e-12)


def test_a_worker_alone_takes_its_own_time() -> None:
    assert run_chain(Chain((2.0,), (1.0,), (2.0,), (), (), (), 4), 10).seconds == pytest.approx(2.0)


def test_a_queue_of_one_waits_for_the_round_trip() -> None:
    chain = Chain((1.0, 1.0), (0.5, 0.5), (1.0, 1.0), (0.25,), (0.125,), (2.0,), 1)
    assert chain.seconds == 0.5 + 0.25 + 2.0 + 1.0 + 0.125 + 2.0
    assert run_chain(chain, 20).seconds == pytest.approx(chain.seconds, rel=1e-12)
    assert max(chain.bounds()).why == "round trip"


def test_staleness_is_the_round_trip_or_the_queue() -> None:
    even = Chain((1.0, 1.0), (0.5, 0.5), (1.0, 1.0), (0.0,), (0.0,), (1.0,), 8)
    assert even.staleness(0) == pytest.approx(0.5 + 1 + 1 + 1.0)
    assert Chain((1.0, 2.0), (0.5, 0.5), (1.0, 1.0), (0.0,), (0.0,), (1.0,), 8).staleness(0) == 8


@given(st.lists(seconds, min_size=1, max_size=6), seconds, st.integers(1, 7))
@settings(max_examples=40, deadline=None)
def test_lockstep_is_its_closed_form(compute: list[float], combine: float, every: int) -> None:
    shape = Lockstep(tuple(compute), combine, every)
    ends = run_lockstep(shape, every * 4).ends
    assert (ends[-1] - ends[every - 1]) / (3 * every) == pytest.approx(shape.seconds, rel=1e-9)


@st.composite
def microbatches(draw: st.DrawFn) -> Microbatches:
    workers, parts = draw(st.integers(1, 5)), draw(st.integers(1, 8))
    times = [tuple(draw(seconds) for _ in range(workers)) for _ in range(2)]
    links = [tuple(draw(st.floats(0, 3)) for _ in range(workers - 1)) for _ in range(2)]
    return Microbatches("gpipe", parts, *times, *links, (0.0,) * workers)


@given(microbatches())
@settings(max_examples=80, deadline=None)
def test_gpipe_is_its_closed_form(shape: Microbatches) -> None:
    ends = run_microbatches(shape).ends
    # the first worker is the last that is done, and all others wait for it by then, and have asked for what comes
    assert [b - a for a, b in pairwise(ends)] == pytest.approx([shape.seconds] * 2, rel=1e-9)


@pytest.mark.parametrize(("workers", "parts"), [(2, 2), (2, 8), (4, 4), (4, 16)])
def test_1f1b_is_its_closed_form_for_equal_stages(workers: int, parts: int) -> None:
    shape = Microbatches(
        "1f1b", parts, (1.0,) * workers, (2.0,) * workers, (0.0,) * (workers - 1), (0.0,) * (workers - 1),
        (0.5,) * workers,
    )  # fmt: skip
    assert run_microbatches(shape, 4).seconds == pytest.approx(shape.seconds, rel=1e-9)


def test_the_orders_are_those_of_the_schedules() -> None:
    def runs(kind: str, worker: int) -> str:
        shape = Microbatches(kind, 3, (1.0,) * 2, (1.0,) * 2, (0.0,), (0.0,), (0.0,) * 2)
        return " ".join(f"{way[0]}{part}" for what, way, part in shape.order(worker) if what == "run")

    assert runs("gpipe", 0) == runs("gpipe", 1) == "f0 f1 f2 b0 b1 b2"
    assert runs("1f1b", 0) == "f0 f1 b0 f2 b1 b2"
    assert runs("1f1b", 1) == "f0 b0 f1 b1 f2 b2"


@pytest.mark.parametrize(
    ("kind", "parts", "message", "delays"),
    [
        # counted over 100 ms and 10 Mbit/s, 2 workers, a tiny model and Reno: seconds of a minibatch over the delay
        ("gpipe", 1, 0.56, 3.2), ("gpipe", 1, 2.1, 6.4), ("gpipe", 2, 0.0, 6.07), ("gpipe", 2, 0.28, 7.25),
        ("gpipe", 2, 1.05, 10.5), ("gpipe", 4, 0.0, 14.15), ("gpipe", 4, 0.14, 15.4), ("gpipe", 4, 0.52, 18.6),
        ("1f1b", 2, 0.0, 4.06), ("1f1b", 2, 0.28, 5.3), ("1f1b", 2, 1.05, 8.4), ("1f1b", 4, 0.0, 8.1),
        ("1f1b", 4, 0.14, 9.35), ("1f1b", 4, 0.52, 12.6), ("zb1p", 2, 0.0, 4.1), ("zb1p", 2, 0.28, 5.1),
        ("zb1p", 2, 1.05, 7.4), ("zb1p", 4, 0.0, 8.15), ("zb1p", 4, 0.14, 9.2),
    ],
)  # fmt: skip
def test_so_many_delays_are_waited_for_as_were_counted(kind: str, parts: int, message: float, delays: float) -> None:
    nothing = (0.0, 0.0)
    shape = Microbatches(kind, parts, nothing, nothing, (message,), (1.0,), nothing, nothing if kind == "zb1p" else ())
    assert run_microbatches(shape, 4).seconds == pytest.approx(delays, rel=0.08)


@pytest.mark.parametrize(("workers", "parts"), [(2, 2), (2, 4), (3, 3), (3, 6), (4, 4), (4, 16)])
def test_zero_bubble_is_its_closed_form_for_equal_stages(workers: int, parts: int) -> None:
    one, none = (1.0,) * workers, (0.0,) * (workers - 1)
    shape = Microbatches("zb1p", parts, one, one, none, none, (0.5,) * workers, one)
    assert run_microbatches(shape, 4).seconds == pytest.approx(shape.seconds, rel=1e-9)
    assert shape.work_s == (3 * parts + 0.5,) * workers


def test_zero_bubble_asks_ahead_and_has_gradients_of_weights_wait() -> None:
    # as PyTorch's ScheduleInterleavedZeroBubble lays it out for two stages and four parts
    first, second = (" ".join(f"{what[0]}{way[0]}{part}" for what, way, part in each) for each in orders("zb1p", 4, 2))
    assert first == ("rf0 sf0 rf1 sf1 ab0 rb0 rb0 rw0 ab1 rf2 sf2 rb1 rb1 rw1 ab2 rf3 sf3 rb2 rb2 rw2 ab3 rb3 rb3 rw3")
    assert second == ("af0 rf0 rf0 af1 rb0 sb0 rf1 rf1 rb1 sb1 af2 rw0 rf2 rf2 rb2 sb2 af3 rw1 rf3 rf3 rb3 sb3 rw2 rw3")


def test_what_varies_is_drawn_from_the_seed_and_keeps_its_mean() -> None:
    shape = Lockstep((1.0,), 0.0)
    one = run_lockstep(shape, 4000, Variation(jitter=0.5, seed=1))
    assert one.seconds == pytest.approx(1.0, rel=0.05)
    assert (one.ends == run_lockstep(shape, 4000, Variation(jitter=0.5, seed=1)).ends).all()
    assert (one.ends != run_lockstep(shape, 4000, Variation(jitter=0.5, seed=2)).ends).any()
    straggling = run_lockstep(Lockstep((1.0,) * 8), 2000, Variation(stragglers=0.1, slower=3.0, seed=0)).seconds
    assert straggling == pytest.approx(1 + 2 * (1 - 0.9**8), rel=0.05)


def test_jitter_costs_those_who_wait_more_than_those_who_do_not() -> None:
    variation = Variation(jitter=0.4, seed=3)
    lockstep = run_lockstep(Lockstep((1.0,) * 8), 2000, variation).seconds
    chain = Chain((1.0,) * 8, (0.5,) * 8, (1.0,) * 8, (0.0,) * 7, (0.0,) * 7, (0.0,) * 7, 8)
    assert 1.0 < run_chain(chain, 2000, variation).seconds < lockstep


def test_replicas_that_average_pay_for_it_now_and_then() -> None:
    chain = Chain((1.0, 1.0), (0.5, 0.5), (1.0, 1.0), (0.0,), (0.0,), (0.0,), 4)
    assert run_chain(chain, 200, replicas=3, every=10, average_s=5.0).seconds == pytest.approx(1.5, rel=0.1)
    assert run_chain(chain, 200, replicas=3).ends == pytest.approx(run_chain(chain, 200).ends)


@pytest.mark.parametrize("given", [{"jitter": -1.0}, {"stragglers": 2.0}, {"slower": 0.5}])
def test_what_cannot_vary_so_is_refused(given: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=str(next(iter(given.values())))):
        Variation(**given)


def test_a_thousand_workers_take_seconds() -> None:
    k = 1000
    chain = Chain((1.0,) * k, (0.4,) * k, (0.9,) * k, (0.1,) * (k - 1), (0.05,) * (k - 1), (0.02,) * (k - 1), 8)
    begin = time.perf_counter()
    assert run_chain(chain, 500).ends[-1] > 500
    assert time.perf_counter() - begin < 3.0  # a twentieth of 10,000 minibatches in 60 s
