"""The link over a process group, between processes: a peer that is killed, and one that never comes."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tests._support.link_pairs import EARLIER, LATER, QUICK, TOKEN, WAIT_S, Aside, group_pair

from syngrad.errors import LinkError
from syngrad.links import process_group
from syngrad.links.link import Frame, Kind
from syngrad.links.message import encode, session

pytestmark = pytest.mark.distributed

PEER = """
import sys, torch, torch.distributed as dist
from syngrad.links.link import Frame, Kind
from syngrad.links.process_group import join
link = join(dist.FileStore(sys.argv[1], 2), False, b"a token", "the test", 60, address="127.0.0.1", heartbeat_ms=100)
for i in range(3):
    link.send(Frame(Kind.MESSAGE, i, body=torch.ones(300, 300)))
link.receive(None)
"""


def test_a_peer_that_is_killed_is_noticed_and_what_it_sent_still_arrives(tmp_path: Path) -> None:
    store = tmp_path / "store"
    process = subprocess.Popen([sys.executable, "-c", PEER, str(store)], stderr=subprocess.DEVNULL)
    try:
        link = process_group.join(dist.FileStore(str(store), 2), True, TOKEN, EARLIER, 60, address="127.0.0.1")
        first = link.receive(60)
        assert first is not None
        aside = Aside(lambda: [link.receive(None) for _ in range(3)])
        process.kill()
        with pytest.raises(LinkError, match=r"stage '0' \(rank 0\) is gone"):
            aside.result()
        for call in (link.check, lambda: link.send(Frame(Kind.DONE, 0)), lambda: link.receive(0)):
            with pytest.raises(LinkError, match=r"stage '0' \(rank 0\) is gone"):
                call()
        link.close()
    finally:
        process.kill()
        process.communicate()


def test_a_peer_that_never_comes() -> None:
    with pytest.raises(LinkError, match=r"stage '2' \(rank 1\) has not come within 0\.2 s"):
        process_group.join(dist.HashStore(), False, TOKEN, LATER, 0.2, address="127.0.0.1")


def test_a_body_of_more_structure_than_the_first_block_holds() -> None:
    earlier, later = group_pair()
    body = ["x" * 20_000, torch.ones(3), torch.ones(5000), list(range(500))]
    earlier.send(Frame(Kind.REPLY, body=body))
    got = later.receive(WAIT_S)
    assert got is not None
    assert got.body[0] == body[0]
    assert got.body[3] == body[3]
    assert torch.equal(got.body[2], torch.ones(5000))
    earlier.close()
    later.close()


def test_what_is_no_frame_ends_the_link() -> None:
    earlier, later = group_pair()
    assert isinstance(earlier, process_group.ProcessGroupLink)
    earlier._group.send([torch.zeros(1 << 13, dtype=torch.uint8)], 1, 0).wait()
    with pytest.raises(LinkError, match=r"stage '0' \(rank 0\) is gone .*refused: its first block"):
        later.receive(WAIT_S)
    later.close()
    earlier.close()


@pytest.mark.parametrize("busy", [False, True], ids=["waiting", "sending"])
def test_a_peer_that_is_stopped_is_noticed(busy: bool, tmp_path: Path) -> None:
    store = tmp_path / "store"
    process = subprocess.Popen([sys.executable, "-c", PEER, str(store)], stderr=subprocess.DEVNULL)
    try:
        link = process_group.join(dist.FileStore(str(store), 2), True, TOKEN, EARLIER, 60, address="127.0.0.1", **QUICK)
        for i in range(3):
            frame = link.receive(WAIT_S)
            assert frame is not None
            assert frame.minibatch == i
        process.send_signal(signal.SIGSTOP)

        def go_on() -> None:
            for _ in range(80 if busy else 0):  # more than the buffers between the two hold
                link.send(Frame(Kind.DONE, body=torch.ones(1024, 64)))
            link.receive(60)

        with pytest.raises(LinkError, match=r"stage '0' \(rank 0\) is gone \(it was silent for 0\.5 s\)"):
            go_on()
        link.close()
    finally:
        process.kill()
        process.communicate()


def test_a_long_silence_of_both_is_no_loss() -> None:
    earlier, later = group_pair(**QUICK)
    assert earlier.receive(1.0) is None  # longer than the silence that counts
    earlier.send(Frame(Kind.MESSAGE, 1))
    assert later.receive(WAIT_S) == Frame(Kind.MESSAGE, 1)
    assert later.received_bytes == earlier.sent_bytes
    earlier.close()
    later.close()


def test_a_frame_that_takes_long_is_no_silence() -> None:
    earlier, later = group_pair(**QUICK)
    assert isinstance(earlier, process_group.ProcessGroupLink)
    with earlier._sending:  # as if the rest of the frame were on a slow way
        head, part = encode(Frame(Kind.MESSAGE, 1, body=torch.ones(3000)), 0, session(TOKEN))
        block = bytearray(process_group._BLOCK_BYTES)
        process_group._PREFIX.pack_into(block, 0, process_group._MAGIC, 1, len(head))
        block[process_group._PREFIX.size : process_group._PREFIX.size + len(head)] = head
        earlier._group.send([torch.frombuffer(block, dtype=torch.uint8)], 1, 0).wait()
        assert later.receive(1.0) is None
        earlier._group.send([torch.frombuffer(bytearray(part), dtype=torch.uint8)], 1, 0).wait()
    frame = later.receive(WAIT_S)
    assert frame is not None
    assert frame.body.eq(1).all()
    earlier.close()
    later.close()
