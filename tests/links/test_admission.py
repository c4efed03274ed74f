"""Strangers who open connections without end: a few are let stand, and the process keeps its descriptors."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from tests._support.link_pairs import EARLIER, HOST, LATER, TOKEN, WAIT_S, Aside, address_of, pair, port_of

from syngrad.links import admission
from syngrad.links.admission import MOST
from syngrad.links.link import Frame, Kind
from syngrad.links.zeromq import ZeromqLink, connect, listen

pytestmark = pytest.mark.distributed

COUNT = 400


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@contextmanager
def crowd(port: int, count: int = COUNT, say: bytes = b"") -> Iterator[list[socket.socket]]:
    """So many connections to a port, begun at once, all at one end: this one's own descriptors."""
    made = []
    for _ in range(count):
        each = socket.socket()
        each.setblocking(False)
        each.connect_ex((HOST, port))
        made.append(each)
    try:
        for each in made if say else ():
            try:
                each.send(say)
            except OSError:
                continue
        yield made
    finally:
        for each in made:
            each.close()


def settled(within: int) -> int:
    """Descriptors once there are no more than so many, or after a while."""
    deadline = time.monotonic() + 5
    while (found := descriptors()) > within and time.monotonic() < deadline:
        time.sleep(0.02)
    return found


@pytest.mark.filterwarnings("ignore:somebody outside this run")
@pytest.mark.parametrize("say", [b"", b"\xff\0\0\0\0\0\0\0\x01\x7f\x03"], ids=["silent", "begins to speak"])
def test_a_crowd_at_a_link_is_sent_away_and_the_link_goes_on(say: bytes) -> None:
    with pair() as (earlier, later):
        before = descriptors()
        with crowd(port_of(address_of(later)), say=say):
            assert settled(before + COUNT + MOST) <= before + COUNT + MOST
            for k in range(5):
                earlier.send(Frame(Kind.MESSAGE, k, body=[torch.ones(3)]))
                frame = later.receive(WAIT_S)
                assert frame is not None
                assert frame.minibatch == k
            later.check()
            earlier.check()
        assert settled(before + MOST) <= before + MOST


@pytest.mark.filterwarnings("ignore:somebody outside this run")
def test_a_crowd_that_is_there_first_does_not_keep_the_peer_out() -> None:
    before = descriptors()
    listener = listen(HOST, None, TOKEN, None, EARLIER)
    with crowd(port_of(listener.address)):
        assert settled(before + COUNT + MOST + 20) <= before + COUNT + MOST + 20  # the listener's own are among them
        aside = Aside(lambda: listener.accept(WAIT_S))
        earlier = connect(listener.address, TOKEN, None, LATER, WAIT_S)
        later = aside.result()
        assert isinstance(later, ZeromqLink)
        earlier.send(Frame(Kind.MESSAGE, 3))
        assert later.receive(WAIT_S) == Frame(Kind.MESSAGE, 3)
        earlier.close()
        later.close()


@pytest.mark.filterwarnings("ignore:somebody outside this run")
def test_where_the_kernel_filters_nothing_they_are_cut_off_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "_ATTACH", 10_000)  # no option of any kernel's
    with pair() as (earlier, later):
        before = descriptors()
        with crowd(port_of(address_of(later))):
            assert settled(before + COUNT + MOST) <= before + COUNT + MOST
            earlier.send(Frame(Kind.MESSAGE, 3))
            assert later.receive(WAIT_S) == Frame(Kind.MESSAGE, 3)


def test_what_has_the_number_of_a_stranger_by_now_is_left_alone(tmp_path: Path) -> None:
    with (tmp_path / "file").open("wb") as file, socket.create_server((HOST, 0)) as other:
        assert not admission._cut(file.fileno(), 1)
        assert not admission._cut(other.fileno(), 1)
        file.write(b"still open")
    one, end = socket.socketpair()
    number = one.fileno()
    with one, end:
        assert not admission._cut(number, 0)
        one.sendall(b"x")
        assert end.recv(1) == b"x"
    assert not admission._cut(number, 0)
