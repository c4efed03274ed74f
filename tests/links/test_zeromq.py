"""ZeroMQ links against strangers, faults and other keys."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import threading
import time
import warnings
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
import torch
import zmq

from syngrad.errors import ConfigError, LinkError, TrainingWarning
from syngrad.links import zeromq
from syngrad.links.link import Frame, Kind

TOKEN = b"12345678"


def linked(listener: zeromq.Listener, **more: int) -> tuple[zeromq.ZeromqLink, zeromq.ZeromqLink]:
    made: list[zeromq.ZeromqLink] = []
    thread = threading.Thread(
        target=lambda: made.append(zeromq.connect(listener.address, TOKEN, None, "the upper end", 10.0, **more))
    )
    thread.start()
    upper = listener.accept(10.0)
    thread.join()
    return made[0], upper


def test_strangers_do_not_disturb() -> None:
    listener = zeromq.listen("127.0.0.1", None, TOKEN, None, "the lower end")
    lower, upper = linked(listener)
    port = int(listener.address.rpartition(":")[2])
    context = zmq.Context()
    stranger = context.socket(zmq.DEALER)
    stranger.connect(listener.address)
    stranger.send_multipart([b"hello", b"x" * 1000])
    with socket.create_connection(("127.0.0.1", port)) as raw:
        raw.sendall(b"GET / HTTP/1.1\r\nHost: here\r\n\r\n")
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            until = time.monotonic() + 10.0
            for t in range(20):
                lower.send(Frame(Kind.MESSAGE, t, body=torch.ones(3)))
                frame = upper.receive(10.0)
                assert frame is not None
                assert frame.minibatch == t
            while not said and time.monotonic() < until:
                assert upper.receive(0.1) is None
    stranger.close(0)
    context.term()
    upper.check()
    assert [warning.category for warning in said] == [TrainingWarning]
    assert "outside this run" in str(said[0].message)
    lower.close()
    upper.close()


@pytest.mark.parametrize("key", [None, zeromq.Key(b"another secret, as long")])
def test_whoever_has_another_key_is_not_let_in(key: zeromq.Key | None) -> None:
    listener = zeromq.listen("127.0.0.1", None, TOKEN, zeromq.Key(b"the secret of this run"), "the lower end")
    failures: list[str] = []

    def knock() -> None:
        try:
            zeromq.connect(listener.address, TOKEN, key, "the upper end", 1.5)
        except LinkError as error:
            failures.append(str(error))

    thread = threading.Thread(target=knock)
    thread.start()
    with pytest.raises(LinkError, match="the lower end has not connected"):
        listener.accept(1.5)
    thread.join()
    assert len(failures) == 1
    assert "the upper end has not answered" in failures[0]


def test_a_taken_port_is_said() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(LinkError, match=f"port {port} to {port}.*SYNGRAD_PORTS"):
            zeromq.listen("127.0.0.1", (port, port), TOKEN, None, "the lower end")


def test_whoever_does_not_come_is_named() -> None:
    listener = zeromq.listen("127.0.0.1", None, TOKEN, None, "stage '4' (rank 1 on b)")
    with pytest.raises(LinkError, match=r"stage '4' \(rank 1 on b\) has not connected"):
        listener.accept(0.2)
    with pytest.raises(LinkError, match="stage '5' has not answered"):
        zeromq.connect("tcp://127.0.0.1:9", TOKEN, None, "stage '5'", 0.3)


def _peer(address: str, ready: Connection) -> None:
    link = zeromq.connect(address, TOKEN, None, "the parent", 10.0)
    link.send(Frame(Kind.MESSAGE, 0))
    ready.send("linked")
    time.sleep(60)


@pytest.mark.distributed
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_dead_or_frozen_peer_is_noticed(how: signal.Signals) -> None:
    listener = zeromq.listen("127.0.0.1", None, TOKEN, None, "the child", silence_ms=1000)
    spawn = multiprocessing.get_context("spawn")
    here, there = spawn.Pipe()
    child = spawn.Process(target=_peer, args=(listener.address, there))
    child.start()
    upper = listener.accept(60.0)
    assert here.recv() == "linked"
    assert upper.receive(10.0) is not None
    assert child.pid is not None
    os.kill(child.pid, how)
    with pytest.raises(LinkError, match="the child is gone"):
        upper.receive(30.0)
    with pytest.raises(LinkError, match="the child is gone"):
        upper.send(Frame(Kind.DONE, 0))
    os.kill(child.pid, signal.SIGKILL)
    child.join()
    upper.close()
    here.close()
    there.close()


def test_what_is_not_understood_ends_the_link() -> None:
    listener = zeromq.listen("127.0.0.1", None, TOKEN, None, "the lower end")
    lower, upper = linked(listener)
    lower._wire.socket.send_multipart([b"nonsense", b"more"])
    with pytest.raises(LinkError, match="refused"):
        upper.receive(10.0)
    with pytest.raises(LinkError, match="not understood"):
        upper.check()
    lower.close()
    upper.close()


def test_a_key_comes_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_bytes(b"0123456789abcdef\n")
    assert zeromq.Key.from_file(str(file)).public == zeromq.Key(b"0123456789abcdef").public
    file.write_bytes(b"short")
    with pytest.raises(ConfigError, match="holds 5 bytes"):
        zeromq.Key.from_file(str(file))
    with pytest.raises(ConfigError, match="cannot be read"):
        zeromq.Key.from_file(str(tmp_path / "none"))
