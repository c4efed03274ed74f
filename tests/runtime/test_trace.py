"""Where a process's time goes: sums that add up, the newest spans, and waits that are none of training's."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests._support.local_link import pair

from syngrad.core.message import InFlight
from syngrad.links.link import Frame, Kind
from syngrad.pipeline.neighbours import Next, Previous
from syngrad.runtime import trace as tracing
from syngrad.runtime.trace import Trace


class Clock:
    """Each look at it takes a second."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        self.now += 1.0
        return self.now

    def time(self) -> float:
        return 1000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(tracing, "time", made)
    return made


@pytest.mark.usefixtures("clock")
def test_a_span_within_another_counts_for_itself_alone() -> None:
    trace = Trace(keep=True)
    with trace.span("work"):
        with trace.span("send"):
            pass
        with trace.span("wait for next"):
            pass
    assert trace.seconds == {"send": 1.0, "wait for next": 1.0, "work": 3.0}
    assert [span[0] for span in trace.spans] == ["send", "wait for next", "work"]
    (_, _, begin, end) = trace.spans[-1]
    assert end - begin == 5.0


@pytest.mark.usefixtures("clock")
def test_a_span_may_be_named_when_it_ends() -> None:
    trace = Trace()
    with trace.span("wait for previous") as span:
        span.name = "evaluate"
    assert trace.seconds == {"evaluate": 1.0}
    assert not trace.spans


def test_of_a_long_run_the_newest_spans_are_kept_and_the_sums_go_on(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracing, "MOST", 20)
    trace = Trace(keep=True, processes=4)
    for k in range(1000):
        trace.minibatch = k
        with trace.span("work"):
            pass
    state: dict[str, Any] = trace.state()
    assert [span[1] for span in state["spans"]] == [995, 996, 997, 998, 999]
    assert state["seconds"] == {"work": 1000.0}
    assert clock.now > 1000


def ends() -> tuple[Next, Previous, Callable[[], None]]:
    lower, upper = pair()
    dtypes = ("float32", "float32")
    following, previous = Next(lower, 8, dtypes, Trace(), 10.0), Previous(upper, dtypes, Trace(), 10.0)

    def close() -> None:
        lower.close()
        upper.close()

    return following, previous, close


def test_only_what_training_sends_is_counted_as_sent() -> None:
    following, previous, close = ends()
    out = torch.zeros(4, 8)
    following.send(InFlight(0), out, None, [])
    following.send(InFlight(-4), out, None, [], Kind.EVALUATE)
    following.tell("evaluating", {"state": torch.zeros(1000)})
    previous.answer(0, [torch.zeros(4, 8)])
    previous.answer(-4)
    previous.reply([torch.zeros(1000)])
    assert following.sent_bytes == out.nbytes
    assert previous.sent_bytes >= out.nbytes
    assert previous.sent_bytes < 1000
    assert set(following.trace.seconds) == set(previous.trace.seconds) == {"send", "evaluate"}
    close()


@pytest.mark.parametrize(
    ("frame", "named"),
    [
        (Frame(Kind.MESSAGE, 0, body=[None, None]), "wait for previous"),
        (Frame(Kind.EVALUATE, -4, body=[None, None]), "evaluate"),
        (Frame(Kind.ORDER, body=["epoch", None]), "orders"),
    ],
    ids=["message", "evaluate", "order"],
)
def test_a_wait_is_named_by_what_ends_it(frame: Frame, named: str) -> None:
    following, previous, close = ends()
    later = threading.Timer(0.05, following.link.send, [frame])
    later.start()
    assert previous.receive().kind == frame.kind
    later.join()
    assert set(previous.trace.seconds) == {named}
    close()


@pytest.mark.parametrize(("step", "named"), [(0, "wait for next"), (-4, "evaluate")])
def test_a_wait_for_a_minibatch_that_is_evaluated_is_none_of_training(step: int, named: str) -> None:
    following, previous, close = ends()
    kind = Kind.MESSAGE if step >= 0 else Kind.EVALUATE
    (following.outstanding if step >= 0 else following.evaluating).append(InFlight(step))
    following.depth = 1
    later = threading.Timer(0.05, previous.link.send, [Frame(Kind.DONE, step, body=[None, []])])
    later.start()
    following.room(kind)
    later.join()
    assert set(following.trace.seconds) == {named}
    close()
