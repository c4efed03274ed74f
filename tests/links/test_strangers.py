"""Who is no part of the run, and comes to a link over ZeroMQ all the same: alone, in a flood, early and late."""

from __future__ import annotations

import os
import socket
import time
import warnings

import pytest
import torch
from tests._support.link_pairs import (
    EARLIER,
    HOST,
    LATER,
    QUICK,
    SECRET,
    TOKEN,
    WAIT_S,
    Aside,
    address_of,
    foreign_socket,
    pair,
    port_of,
)

from syngrad.errors import TrainingWarning
from syngrad.links.auth import Key
from syngrad.links.frame_format import encode, session
from syngrad.links.link import Frame, Kind
from syngrad.links.zeromq import ZeromqLink, connect, listen

pytestmark = pytest.mark.distributed


def hear_strangers(link: ZeromqLink) -> None:
    for _ in range(200):
        assert link.receive(0.05) is None
        if link._monitored.strangers >= 3:
            return
    pytest.fail("nothing came from them")


def run_among_strangers(earlier: ZeromqLink, later: ZeromqLink) -> None:
    address = address_of(later)
    for text in (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 20, os.urandom(500), b"", b"\xff" * 64 + b"\x7f" * 200):
        with socket.create_connection((HOST, port_of(address)), timeout=5) as raw:
            raw.sendall(text)
    with (
        foreign_socket(address) as other,
        foreign_socket(address, token=b"another") as guessing,
        foreign_socket(address, b"S" + TOKEN, TOKEN) as late,  # who knows everything, and comes too late
    ):
        for each in (other, guessing, late):
            each.send_multipart(encode(Frame(Kind.FAILED, body="no"), 0, session(TOKEN)))
            each.send(b"x" * 100_000)
        hear_strangers(later)
        earlier.send(Frame(Kind.MESSAGE, 1, body=torch.ones(2)))
        later.send(Frame(Kind.DONE, 1))
        first, answer = later.receive(WAIT_S), earlier.receive(WAIT_S)
        assert first is not None
        assert first.minibatch == 1
        assert answer == Frame(Kind.DONE, 1)


def test_strangers_do_not_disturb() -> None:
    with pair() as ends:
        # Listened for before anybody comes: the link may say so as soon as the first of them does.
        with pytest.warns(TrainingWarning, match="outside this run") as seen:
            run_among_strangers(*ends)
        assert len(seen) == 1


def test_strangers_who_come_and_go_before_the_peer_are_not_taken_for_it() -> None:
    listener = listen(HOST, None, TOKEN, None, EARLIER)
    for _ in range(3):
        with socket.create_connection((HOST, port_of(listener.address)), timeout=5) as raw:
            raw.sendall(b"GET / HTTP/1.1\r\n\r\n")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TrainingWarning)
        aside = Aside(lambda: listener.accept(WAIT_S))
        earlier = connect(listener.address, TOKEN, None, LATER, WAIT_S)
        later = aside.result()
        earlier.send(Frame(Kind.MESSAGE, 3))
        assert later.receive(WAIT_S) == Frame(Kind.MESSAGE, 3)
        later.check()
    earlier.close()
    later.close()


#: what ZMTP 3.0 begins with, from one that will speak PLAIN, and its user and password
GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"PLAIN".ljust(20, b"\0") + bytes(32)
LOGIN = b"\x05HELLO\x07syngrad\x08password"
MIB = 1 << 20


def taken(address: str, *first: bytes) -> int:
    """How much a listener reads of somebody who sends these bytes and then messages of a MiB without end."""
    frame = b"\x02" + MIB.to_bytes(8, "big") + bytes(MIB)
    taken = 0
    with socket.create_connection((HOST, port_of(address)), timeout=5) as raw:
        raw.settimeout(1)
        try:
            for text in first:
                raw.sendall(text)
            while taken < 64 * MIB:
                raw.sendall(frame)
                taken += len(frame)
        except OSError:  # sent away, or not read any more
            pass
    return taken


@pytest.mark.parametrize("key", [None, Key(SECRET)], ids=["open", "encrypted"])
@pytest.mark.filterwarnings("ignore:somebody outside this run")
def test_a_stranger_who_floods_is_not_read(key: Key | None) -> None:
    listener = listen(HOST, None, TOKEN, key, EARLIER)
    login = b"\x04" + bytes([len(LOGIN)]) + LOGIN
    openings = [(GREETING, login), (GREETING.replace(b"PLAIN", b"NULL\0"), b"\x04\x06\x05READY"), (GREETING,), ()]
    for opening in openings:  # nobody is at the door yet
        assert taken(listener.address, *opening) < 32 * MIB
    aside = Aside(lambda: listener.accept(WAIT_S))
    earlier = connect(listener.address, TOKEN, key, LATER, WAIT_S)
    later = aside.result()
    for opening in openings:
        assert taken(listener.address, *opening) < 32 * MIB
    earlier.send(Frame(Kind.MESSAGE, 3))
    assert later.receive(WAIT_S) == Frame(Kind.MESSAGE, 3)
    later.check()
    earlier.close()
    later.close()


@pytest.mark.filterwarnings("ignore:somebody outside this run")
def test_many_who_come_and_go_do_not_cut_the_link() -> None:
    with pair(**QUICK) as (earlier, later):
        address = address_of(later)
        for _ in range(1500):  # each makes ZeroMQ report several events, which nobody looks at meanwhile
            socket.create_connection((HOST, port_of(address)), timeout=5).close()
        time.sleep(1.0)  # longer than the silence that counts
        earlier.send(Frame(Kind.MESSAGE, 3))
        assert later.receive(WAIT_S) == Frame(Kind.MESSAGE, 3)
        earlier.check()
