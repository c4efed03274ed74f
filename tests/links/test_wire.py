"""Large tensors in several parts, and what a stranger can make a listening process take."""

from __future__ import annotations

import socket
import struct
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests._support.link_pairs import TOKEN, WAIT_S, pair

from syngrad.errors import LinkError
from syngrad.links import wire, zeromq
from syngrad.links.link import Frame, Kind
from syngrad.links.message import decode, encode, session
from syngrad.links.wire import PART_BYTES, join_split, split_large

SMALL = 6_000


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "PART_BYTES", SMALL)


@given(st.lists(st.integers(0, 500) | st.integers(SMALL - 2, 5 * SMALL), max_size=4))
def test_what_was_cut_is_the_same_together(sizes: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "PART_BYTES", SMALL)
        body = [torch.arange(size, dtype=torch.int64).to(torch.uint8) for size in sizes]
        parts = encode(Frame(Kind.MESSAGE, 3, body=body), 0, session(TOKEN))
        cut = split_large(parts, "peer")
        assert max(map(len, cut)) <= SMALL
        found = decode(join_split([bytearray(part) for part in cut], "peer"), 0, session(TOKEN)).body
        assert len(found) == len(body)
        assert all(torch.equal(a, b) for a, b in zip(found, body, strict=True))


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("spoilt", ["missing", "more", "short", "claimed"])
def test_split_parts_that_do_not_add_up_are_refused(spoilt: str) -> None:
    parts = encode(Frame(Kind.MESSAGE, body=[torch.zeros(3 * SMALL, dtype=torch.uint8)]), 0, session(TOKEN))
    cut = [bytearray(part) for part in split_large(parts, "peer")]
    if spoilt == "missing":
        cut.pop()
    elif spoilt == "more":
        cut.append(bytearray(SMALL))
    elif spoilt == "short":
        del cut[2][-1]
    else:
        cut = [cut[0], bytearray(SMALL)]
    with pytest.raises(LinkError, match="is refused"):
        decode(join_split(cut, "peer"), 0, session(TOKEN))


@pytest.mark.usefixtures("small")
def test_too_much_structure_is_refused_before_it_is_sent() -> None:
    parts = encode(Frame(Kind.ORDER, body="x" * 2 * SMALL), 0, session(TOKEN))
    with pytest.raises(LinkError, match=r"structure and small tensors for stage '2' are more than its link carries"):
        split_large(parts, "stage '2'")


def test_a_tensor_of_more_than_a_part_crosses_a_link() -> None:
    values = torch.arange(PART_BYTES // 8 + 1)
    with pair() as (earlier, later):
        earlier.send(Frame(Kind.MESSAGE, 1, body=[values, torch.ones(3)]))
        frame = later.receive(WAIT_S)
        assert frame is not None
        assert torch.equal(frame.body[0], values)
        assert torch.equal(frame.body[1], torch.ones(3))


def test_a_stranger_takes_no_memory_by_what_he_claims() -> None:
    listener = zeromq.listen("127.0.0.1", None, TOKEN, None, "stage '2'")
    host, _, port = listener.address.removeprefix("tcp://").rpartition(":")
    greeting = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
    strangers = []
    try:
        before = _address_space()
        for _ in range(8):
            stranger = socket.create_connection((host, int(port)), timeout=WAIT_S)
            strangers.append(stranger)
            stranger.sendall(greeting)
            stranger.recv(64)
            stranger.sendall(b"\x06" + struct.pack(">Q", (1 << 32) - 1) + b"\x05READY")
        time.sleep(0.3)
        assert _address_space() - before < 1 << 30  # and not 8 × 4 GiB
    finally:
        for stranger in strangers:
            stranger.close()
        listener.close()


def _address_space() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * 4096
