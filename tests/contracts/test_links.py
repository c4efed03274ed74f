"""What every kind of link does, whatever carries it. Those that are registered are opened as a run opens them.

A link of somebody else's passes by its own fixture `opened` and the names of this module: see test_toy_link.py.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests._support.link_pairs import EARLIER, LATER, OPEN, WAIT_S, Aside

from syngrad.errors import LinkError
from syngrad.links.link import Frame, Kind, Link
from syngrad.tree import tensors

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool]
DTYPES += [torch.int8, torch.int16, torch.int32, torch.complex64, torch.complex128]


@pytest.fixture(params=list(OPEN))
def opened(request: pytest.FixtureRequest) -> Callable[[], tuple[Link, Link]]:
    return OPEN[request.param]


@pytest.fixture
def ends(opened: Callable[[], tuple[Link, Link]]) -> Iterator[tuple[Link, Link]]:
    earlier, later = opened()
    yield earlier, later
    earlier.close()
    later.close()


def through(sender: Link, receiver: Link, body: Any) -> Any:
    sender.send(Frame(Kind.MESSAGE, body=body))
    frame = receiver.receive(WAIT_S)
    assert frame is not None
    return frame.body


def test_a_frame_arrives_as_it_was_sent(ends: tuple[Link, Link]) -> None:
    earlier, later = ends
    assert (earlier.peer, later.peer) == (LATER, EARLIER)
    sent = Frame(Kind.MESSAGE, 7, 1 / 3, True, [torch.randn(5, 3), torch.arange(5)])
    earlier.send(sent)
    got = later.receive(WAIT_S)
    assert got is not None
    assert (got.kind, got.minibatch, got.scale, got.wanted) == (Kind.MESSAGE, 7, 1 / 3, True)
    assert [torch.equal(a, b) for a, b in zip(got.body, sent.body, strict=True)] == [True, True]
    later.send(Frame(Kind.DONE, 7))
    answer = earlier.receive(WAIT_S)
    assert answer == Frame(Kind.DONE, 7)


def test_frames_keep_their_order(ends: tuple[Link, Link]) -> None:
    earlier, later = ends
    for i in range(200):
        earlier.send(Frame(Kind.MESSAGE, i, body=[torch.full((1 + i % 7, 3), float(i))]))
    for i in range(200):
        frame = later.receive(WAIT_S)
        assert frame is not None
        assert frame.minibatch == i
        assert frame.body[0].shape == (1 + i % 7, 3)
        assert frame.body[0].eq(i).all()


def test_nested_bodies(ends: tuple[Link, Link]) -> None:
    body = {
        "h": (torch.randn(2, 3), [torch.randn(1), {"mask": torch.tensor([True, False])}]),
        "numbers": [1, -2.5, 10**30, float("inf"), True, None, "text ∂"],
        "empty": [{}, [], (), torch.zeros(0, 4), torch.tensor(3.0)],
    }
    got = through(*ends, body)
    assert got["numbers"] == body["numbers"]
    assert isinstance(got["h"], tuple)
    assert got["empty"][:3] == [{}, [], ()]
    for a, b in zip(tensors(got), tensors(body), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert torch.equal(a, b)


@pytest.mark.parametrize("elements", [1, 3, 500, 1000, 1031, 1500, 2048, 5003, 300_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_numbers_arrive_where_pytorch_would_put_them(
    ends: tuple[Link, Link], elements: int, dtype: torch.dtype
) -> None:
    """Elsewhere some kernels add them up in another order, and the last digits are others than in one process."""
    body = [torch.randn(elements).to(dtype), torch.ones(3), torch.randn(7, elements).to(dtype)]
    for got in tensors(through(*ends, body)):
        assert got.data_ptr() % 64 == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_dtypes_shapes_and_layouts(ends: tuple[Link, Link], dtype: torch.dtype) -> None:
    values = torch.randn(3, 4, 5, 5, dtype=torch.complex64 if dtype.is_complex else torch.float32)
    h = (values * 10).to(dtype)
    sent = [h, h.transpose(0, 1), h[:, ::2], h.to(memory_format=torch.channels_last), h[0, 0, 0, 0], h[:0], h[:1]]
    sent += [h.conj(), h.conj().imag] if dtype.is_complex else []
    got = through(*ends, sent)
    for a, b in zip(got, sent, strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
        assert torch.equal(a, b)
    assert got[3].is_contiguous(memory_format=torch.channels_last)


def test_graphs_do_not_cross(ends: tuple[Link, Link]) -> None:
    w = torch.randn(3, 3, requires_grad=True)
    got = through(*ends, [torch.ones(2, 3) @ w, w])
    assert [t.requires_grad or t.grad_fn is not None for t in got] == [False, False]


def test_large_tensors_both_ways_at_once(ends: tuple[Link, Link]) -> None:
    earlier, later = ends
    count = 12

    def work(own: Link, first: float) -> float:
        total = 0.0
        for i in range(count):
            own.send(Frame(Kind.MESSAGE, i, body=torch.full((1024, 1024), first + i)))
        for i in range(count):
            frame = own.receive(WAIT_S)
            assert frame is not None
            assert frame.minibatch == i
            total += float(frame.body[0, 0] + frame.body[-1, -1])
        return total

    aside = Aside(lambda: work(later, 100.0))
    assert work(earlier, 0.0) == 2 * sum(100.0 + i for i in range(count))
    assert aside.result() == 2 * sum(range(count))


def test_what_has_arrived_may_be_written_to_and_outlives_its_link(ends: tuple[Link, Link]) -> None:
    earlier, later = ends
    got = through(earlier, later, [torch.ones(300, 300), torch.ones(2)])
    earlier.close()
    later.close()
    for tensor in got:
        tensor.mul_(2)
        assert tensor.eq(2).all()


def test_nothing_comes_within_the_time(ends: tuple[Link, Link]) -> None:
    earlier, later = ends
    assert later.receive(0) is None
    assert later.receive(0.05) is None
    earlier.send(Frame(Kind.ORDER, body="stop"))
    frame = later.receive(None)
    assert frame is not None
    assert frame.body == "stop"
    later.check()
    earlier.check()


def test_bytes_are_counted(ends: tuple[Link, Link]) -> None:
    earlier, later = ends
    for _ in range(3):
        through(earlier, later, [torch.randn(100_000), torch.zeros(8, dtype=torch.uint8)])
    assert 3 * 400_008 <= earlier.sent_bytes < 3 * 410_000
    assert later.received_bytes == earlier.sent_bytes
    assert later.sent_bytes == earlier.received_bytes == 0


def test_a_good_bye_comes_after_all_that_was_sent(ends: tuple[Link, Link]) -> None:
    earlier, later = ends
    for i in range(20):
        earlier.send(Frame(Kind.MESSAGE, i, body=torch.ones(256, 256)))
    earlier.close()
    for i in range(20):
        frame = later.receive(WAIT_S)
        assert frame is not None
        assert frame.minibatch == i
    for call in (lambda: later.receive(WAIT_S), later.check, lambda: later.send(Frame(Kind.DONE, 0))):
        with pytest.raises(LinkError, match=r"stage '0' \(rank 0\) has ended its link"):
            call()


def test_one_that_waits_is_woken_by_a_good_bye(ends: tuple[Link, Link]) -> None:
    earlier, later = ends
    aside = Aside(lambda: later.receive(None))
    earlier.close()
    with pytest.raises(LinkError, match="rank 0"):
        aside.result()


def test_a_closed_link_says_so(ends: tuple[Link, Link]) -> None:
    earlier, _ = ends
    earlier.close()
    earlier.close()
    for call in (earlier.check, lambda: earlier.receive(0), lambda: earlier.send(Frame(Kind.MESSAGE))):
        with pytest.raises(LinkError, match=r"the link to stage '2' \(rank 1\) is closed"):
            call()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts what /proc shows")
def test_nothing_is_kept(opened: Callable[[], tuple[Link, Link]]) -> None:
    def use() -> None:
        earlier, later = opened()
        through(earlier, later, [torch.randn(9)])
        later.close()
        earlier.close()

    use()
    before = (len(os.listdir("/proc/self/fd")), len(list(Path("/proc/self/task").iterdir())))
    for _ in range(3):
        use()
    assert (len(os.listdir("/proc/self/fd")), len(list(Path("/proc/self/task").iterdir()))) == before
