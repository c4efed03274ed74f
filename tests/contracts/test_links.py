"""What every link does, whatever carries it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from syngrad.errors import LinkError
from syngrad.links import zeromq
from syngrad.links.link import Frame, Kind, Link
from syngrad.links.local import pair

TOKEN = b"\x01secret\xff"


def over_tcp(key: zeromq.Key | None) -> tuple[Link, Link]:
    listener = zeromq.listen("127.0.0.1", None, TOKEN, key, "the lower end")
    made: list[Link] = []
    thread = threading.Thread(
        target=lambda: made.append(zeromq.connect(listener.address, TOKEN, key, "the upper end", 10.0))
    )
    thread.start()
    upper = listener.accept(10.0)
    thread.join()
    return made[0], upper


KINDS: dict[str, Callable[[], tuple[Link, Link]]] = {
    "local": lambda: pair("the lower end", "the upper end"),
    "zeromq": lambda: over_tcp(None),
    "zeromq, encrypted": lambda: over_tcp(zeromq.Key(b"a secret of some length")),
}


@pytest.fixture(params=list(KINDS))
def ends(request: pytest.FixtureRequest) -> Iterator[tuple[Link, Link]]:
    lower, upper = KINDS[request.param]()
    yield lower, upper
    lower.close()
    upper.close()


def got(link: Link) -> Frame:
    frame = link.receive(10.0)
    assert frame is not None
    return frame


def test_frames_come_once_and_in_order_both_ways(ends: tuple[Link, Link]) -> None:
    lower, upper = ends
    for t in range(50):
        lower.send(Frame(Kind.MESSAGE, t, 1 / (t + 1), t % 2 == 0, [torch.full((3,), float(t)), None]))
        upper.send(Frame(Kind.DONE, t, body=[None, [[t, 0.5]]]))
    for t in range(50):
        down, up = got(upper), got(lower)
        assert (down.kind, down.minibatch, down.scale, down.wanted) == (Kind.MESSAGE, t, 1 / (t + 1), t % 2 == 0)
        assert torch.equal(down.body[0], torch.full((3,), float(t)))
        assert up.body == [None, [[t, 0.5]]]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.bool, torch.int8])
@pytest.mark.parametrize("shape", [(), (0, 4), (7, 3), (129, 5, 2)])
def test_tensors_arrive_as_they_were(ends: tuple[Link, Link], dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    value = torch.arange(torch.Size(shape).numel()).reshape(shape).to(dtype)
    ends[0].send(Frame(Kind.MESSAGE, body={"h": (value, [value.t() if value.dim() == 2 else value]), "more": "text"}))
    body = got(ends[1]).body
    assert body["h"][0].dtype == dtype
    assert torch.equal(body["h"][0], value)
    assert body["h"][1][0].shape == (value.t().shape if value.dim() == 2 else value.shape)
    assert body["more"] == "text"


def test_a_graph_does_not_cross(ends: tuple[Link, Link]) -> None:
    ends[0].send(Frame(Kind.MESSAGE, body=torch.ones(3, requires_grad=True) * 2))
    assert not got(ends[1]).body.requires_grad


def test_four_mebibytes_cross_whole(ends: tuple[Link, Link]) -> None:
    value = torch.randn(1024, 1024)
    ends[0].send(Frame(Kind.MESSAGE, body=value))
    assert torch.equal(got(ends[1]).body, value)
    assert ends[0].sent_bytes >= value.nbytes
    assert ends[1].received_bytes >= value.nbytes


def test_nothing_to_receive_is_none(ends: tuple[Link, Link]) -> None:
    assert ends[0].receive(0) is None
    assert ends[0].receive(0.05) is None
    ends[0].check()


def test_whoever_waits_is_woken_by_the_end_of_the_other(ends: tuple[Link, Link]) -> None:
    lower, upper = ends
    threading.Timer(0.1, lower.close).start()
    with pytest.raises(LinkError, match="the lower end"):
        upper.receive(20.0)
    with pytest.raises(LinkError, match="the lower end"):
        upper.check()


def test_what_was_sent_before_the_end_still_arrives(ends: tuple[Link, Link]) -> None:
    lower, upper = ends
    for t in range(20):
        lower.send(Frame(Kind.MESSAGE, t, body=torch.zeros(1000)))
    lower.close()
    assert [got(upper).minibatch for _ in range(20)] == list(range(20))
    with pytest.raises(LinkError, match="ended"):
        upper.receive(10.0)


def test_a_closed_link_is_closed_once_and_says_so(ends: tuple[Link, Link]) -> None:
    ends[0].close()
    ends[0].close()
    for call in (ends[0].check, lambda: ends[0].receive(0), lambda: ends[0].send(Frame(Kind.BYE))):
        with pytest.raises(LinkError, match="closed"):
            call()


@pytest.mark.parametrize("kind", list(KINDS))
def test_no_descriptor_is_left(kind: str) -> None:
    def once() -> None:
        lower, upper = KINDS[kind]()
        lower.send(Frame(Kind.MESSAGE, body=torch.zeros(10)))
        got(upper)
        lower.close()
        upper.close()

    def count() -> int:
        return len(os.listdir("/proc/self/fd"))

    once()
    before = count()
    for _ in range(3):
        once()
    until = time.monotonic() + 5.0
    while count() > before and time.monotonic() < until:
        time.sleep(0.02)
    assert count() <= before


def test_traffic_in_both_directions_at_once(ends: tuple[Link, Link]) -> None:
    lower, upper = ends
    failures: list[Any] = []

    def talk(link: Link) -> None:
        try:
            for t in range(100):
                link.send(Frame(Kind.MESSAGE, t, body=torch.full((100, 50), float(t))))
            for t in range(100):
                assert got(link).body[0, 0] == t
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=talk, args=(link,)) for link in (lower, upper)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
