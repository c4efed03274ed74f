"""Links over ZeroMQ: other versions, keys, ports, and peers that die or hang."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import zmq
from tests._support.link_pairs import (
    EARLIER,
    HOST,
    LATER,
    QUICK,
    SECRET,
    TOKEN,
    WAIT_S,
    Aside,
    foreign_socket,
    pair,
    port_of,
)

from syngrad.errors import ConfigError, LinkError, MessageError
from syngrad.links import message, zeromq
from syngrad.links.auth import Key, ZapAuthenticator
from syngrad.links.link import Frame, Kind
from syngrad.links.message import encode, session
from syngrad.links.zeromq import ZeromqLink, connect, listen

pytestmark = pytest.mark.distributed


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        (encode(Frame(Kind.DONE), 1, session(TOKEN)), "number 1, and 0 is due"),
        (encode(Frame(Kind.DONE), 0, session(b"another")), "another connection"),
        ([b"GET / HTTP/1.1" * 9], "is not Syngrad's"),
        ([b""], "too short"),
    ],
    ids=["lost or replayed", "another session", "garbage", "empty"],
)
def test_what_is_no_frame_of_this_link_ends_it(parts: list[bytes], said: str) -> None:
    with pair() as (earlier, later):
        earlier._socket.send_multipart(parts)
        with pytest.raises(LinkError, match=said):
            later.receive(WAIT_S)
        with pytest.raises(LinkError, match=r"stage '0' \(rank 0\) is not understood any more"):
            later.check()
        assert earlier.receive(0) is None


def test_what_is_too_large_is_refused_by_both_ends() -> None:
    with pair(limit_bytes=10_000) as (earlier, later):
        with pytest.raises(LinkError, match=r"40000 bytes in one tensor for stage '2' \(rank 1\) are more than"):
            earlier.send(Frame(Kind.MESSAGE, body=torch.zeros(10_000)))
        earlier.send(Frame(Kind.MESSAGE, 5, body=torch.zeros(1000)))
        first = later.receive(WAIT_S)
        assert first is not None
        assert first.minibatch == 5
        earlier._socket.send_multipart(encode(Frame(Kind.MESSAGE, body=torch.zeros(10_000)), 1, session(TOKEN)))
        with pytest.raises(LinkError, match=r"stage '0' \(rank 0\) is gone"):
            later.receive(WAIT_S)


def test_a_body_that_cannot_cross_leaves_the_link_as_it_was() -> None:
    with pair() as (earlier, later):
        with pytest.raises(MessageError, match="0 is a function"):
            earlier.send(Frame(Kind.ORDER, body=[lambda: 0]))
        earlier.send(Frame(Kind.ORDER, body="on"))
        assert later.receive(WAIT_S) == Frame(Kind.ORDER, body="on")


def test_a_port_that_is_taken() -> None:
    with socket.create_server((HOST, 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(LinkError, match=rf"cannot listen at 127\.0\.0\.1 port {port} \(taken\).*SYNGRAD_PORTS"):
            listen(HOST, (port, port), TOKEN, None, EARLIER)
        listener = listen(HOST, (port, port + 50), TOKEN, None, EARLIER)
        assert port < port_of(listener.address) <= port + 50
        listener.close()
        listener.close()


def test_an_address_of_another_host() -> None:
    with pytest.raises(LinkError, match=r"cannot listen at 192\.0\.2\.1"):
        listen("192.0.2.1", None, TOKEN, None, EARLIER)
    with pytest.raises(LinkError, match="cannot be reached at 'nonsense'"):
        connect("nonsense", TOKEN, None, LATER, 1)


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
def test_ipv6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 on loopback")
    with pair(address="::1") as (earlier, later):
        earlier.send(Frame(Kind.MESSAGE, 1))
        assert later.receive(WAIT_S) == Frame(Kind.MESSAGE, 1)


def test_a_peer_that_never_comes() -> None:
    listener = listen(HOST, None, TOKEN, None, EARLIER)
    with pytest.raises(LinkError, match=r"stage '0' \(rank 0\) has not connected to tcp://127\.0\.0\.1:\d+ within"):
        listener.accept(0.1)
    with pytest.raises(LinkError, match=r"stage '2' \(rank 1\) has not answered at tcp://127\.0\.0\.1:\d+ within 0\.1"):
        connect(listener.address, TOKEN, None, LATER, 0.1)
    with socket.create_server((HOST, 0)) as mute, pytest.raises(LinkError, match="has not answered"):
        connect(f"tcp://{HOST}:{mute.getsockname()[1]}", TOKEN, None, LATER, 0.1)


def test_one_of_another_run_is_told_so_and_the_right_one_still_gets_in() -> None:
    listener = listen(HOST, None, TOKEN, None, EARLIER)
    aside = Aside(lambda: listener.accept(WAIT_S))
    with pytest.raises(LinkError, match=r"stage '2' \(rank 1\) at .* belongs to another run or attempt"):
        connect(listener.address, b"another", None, LATER, WAIT_S)
    earlier = connect(listener.address, TOKEN, None, LATER, WAIT_S)
    later = aside.result()
    earlier.close()
    later.close()


def test_another_version_is_named_at_both_ends() -> None:
    listener = listen(HOST, None, TOKEN, None, EARLIER)
    with foreign_socket(listener.address, b"S" + TOKEN, TOKEN) as newer:
        newer.send(b"syngrad link 99")
        with pytest.raises(LinkError, match=r"stage '0' \(rank 0\) speaks version '99' .* this Syngrad 1"):
            listener.accept(WAIT_S)
        assert newer.poll(10_000)
        assert newer.recv() == b"syngrad link 1"
    context = zmq.Context()
    router = context.socket(zmq.ROUTER)
    authenticator = ZapAuthenticator(router, None, TOKEN)
    port = router.bind_to_random_port(f"tcp://{HOST}")
    aside = Aside(lambda: connect(f"tcp://{HOST}:{port}", TOKEN, None, LATER, WAIT_S))
    assert authenticator.socket.poll(10_000)
    authenticator.answer()
    router.send_multipart([router.recv_multipart()[0], b"syngrad link 0"])
    with pytest.raises(LinkError, match=r"stage '2' \(rank 1\) speaks version '0'"):
        aside.result()
    router.close(0)
    authenticator.close()
    context.term()
    assert message.VERSION == 1


@pytest.mark.parametrize("theirs", [None, Key(b"another secret, long enough")], ids=["none", "another"])
@pytest.mark.parametrize("mine_listens", [True, False])
def test_keys_must_be_the_same(theirs: Key | None, mine_listens: bool) -> None:
    mine = Key(SECRET)
    keys = (mine, theirs) if mine_listens else (theirs, mine)
    listener = listen(HOST, None, TOKEN, keys[0], EARLIER)
    aside = Aside(lambda: listener.accept(1.5))
    with pytest.raises(LinkError, match=r"stage '2' \(rank 1\) has not answered at .*the key of all processes must be"):
        connect(listener.address, TOKEN, keys[1], LATER, 1.0)
    with pytest.raises(LinkError, match=r"has not connected .*the key of all processes must be the same"):
        aside.result()


def test_who_knows_only_the_public_key_is_not_let_in() -> None:
    mine = Key(SECRET)
    thief = Key(b"another secret, long enough")
    context = zmq.Context()
    listener = listen(HOST, None, TOKEN, mine, EARLIER)
    dealer = context.socket(zmq.DEALER)
    dealer.routing_id = b"S" + TOKEN
    dealer.curve_serverkey, dealer.curve_publickey, dealer.curve_secretkey = mine.public, thief.public, thief.secret
    dealer.connect(listener.address)
    dealer.send(b"syngrad link 1")
    with pytest.raises(LinkError, match="has not connected"):
        listener.accept(0.7)
    dealer.close(0)
    context.term()


def test_a_key_file(tmp_path: Path) -> None:
    path = tmp_path / "key"
    with pytest.raises(ConfigError, match="cannot be read"):
        Key.from_file(str(path))
    path.write_bytes(b"short\n")
    with pytest.raises(ConfigError, match="holds 5 bytes, and a secret needs 16"):
        Key.from_file(str(path))
    path.write_bytes(SECRET)
    assert Key.from_file(str(path)).public == Key(SECRET).public != Key(SECRET + b"!").public


PEER = """
import sys, time, torch
from syngrad.links.link import Frame, Kind
from syngrad.links.zeromq import connect
link = connect(sys.argv[1], b"a token", None, "the test", 60, heartbeat_ms=100, silence_ms=500)
for i in range(3):
    link.send(Frame(Kind.MESSAGE, i, body=torch.ones(300, 300)))
link.receive(None)
"""


@contextmanager
def other_process() -> Iterator[tuple[subprocess.Popen[bytes], ZeromqLink]]:
    """A process that sends three frames and then waits for one, and this end of the link to it."""
    listener = listen(HOST, None, TOKEN, None, EARLIER, **QUICK)
    process = subprocess.Popen([sys.executable, "-W", "error", "-c", PEER, listener.address], stderr=subprocess.PIPE)
    link = None
    try:
        link = listener.accept(60)
        yield process, link
    finally:
        process.kill()
        process.communicate()
        if link is not None:
            link.close()
        listener.close()


def test_a_peer_that_is_killed_is_noticed_and_what_it_sent_still_arrives() -> None:
    with other_process() as (process, link):
        first = link.receive(WAIT_S)
        assert first is not None
        aside = Aside(lambda: [link.receive(None), link.receive(None), link.receive(None)])
        process.send_signal(signal.SIGKILL)
        with pytest.raises(LinkError, match=r"stage '0' \(rank 0\) is gone"):
            aside.result()
        for call in (link.check, lambda: link.send(Frame(Kind.DONE, 0)), lambda: link.receive(0)):
            with pytest.raises(LinkError, match=r"stage '0' \(rank 0\) is gone"):
                call()


@pytest.mark.parametrize("busy", [False, True], ids=["waiting", "sending"])
def test_a_peer_that_is_stopped_is_noticed(busy: bool) -> None:
    with other_process() as (process, link):
        for i in range(3):
            frame = link.receive(WAIT_S)
            assert frame is not None
            assert frame.minibatch == i
        process.send_signal(signal.SIGSTOP)

        def go_on() -> None:
            for _ in range(20 if busy else 0):  # more than the buffers between the two hold
                link.send(Frame(Kind.DONE, body=torch.ones(1024, 1024)))
            link.receive(60)

        with pytest.raises(LinkError, match=r"stage '0' \(rank 0\) is gone"):
            go_on()
        with pytest.raises(LinkError, match="is gone"):
            link.check()


def test_a_process_that_ends_without_a_word_has_its_reason_read() -> None:
    with other_process() as (process, link):
        for _ in range(3):
            link.receive(WAIT_S)
        link.send(Frame(Kind.BYE))
        assert process.wait(60) != 0
        assert process.stderr is not None
        assert b"LinkError: the test has ended its link" in process.stderr.read()


def test_a_long_computation_is_no_silence() -> None:
    with pair(**QUICK) as (earlier, later):
        earlier.send(Frame(Kind.MESSAGE, 1))
        Aside(lambda: sum(i * i for i in range(4_000_000))).result()  # longer than the silence, with Python's lock
        Aside(lambda: sum(i * i for i in range(4_000_000))).result()
        assert later.receive(WAIT_S) == Frame(Kind.MESSAGE, 1)
        later.check()
        earlier.check()


def test_constants_leave_time_for_a_busy_machine() -> None:
    assert zeromq.SILENCE_MS >= 3 * zeromq.HEARTBEAT_MS
