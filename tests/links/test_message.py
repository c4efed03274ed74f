"""The wire format: round trips, and everything else refused."""

from __future__ import annotations

import struct
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from syngrad.errors import LinkError, MessageError
from syngrad.links.link import Frame, Kind
from syngrad.links.message import decode, encode, session

TOKEN = session(b"token")
H, Y = torch.randn(5, 7), torch.arange(5)


def frame() -> Frame:
    return Frame(Kind.MESSAGE, 12, 0.25, True, [H, Y])


def parts(number: int = 3) -> list[bytes]:
    return [bytes(part) for part in encode(frame(), number, TOKEN)]


plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(plain, st.integers(-(2**40), 2**40), st.floats(1e-9, 1e9))
def test_plain_bodies_come_back(body: Any, minibatch: int, scale: float) -> None:
    sent = Frame(Kind.ORDER, minibatch, scale, False, body)
    back = decode([bytes(part) for part in encode(sent, 0, TOKEN)], 0, TOKEN)
    assert (back.kind, back.minibatch, back.scale, back.wanted, back.body) == (
        Kind.ORDER,
        minibatch,
        scale,
        False,
        body,
    )


@given(st.lists(st.binary(max_size=300), max_size=4))
def test_anything_at_all_is_refused(found: list[bytes]) -> None:
    with pytest.raises(LinkError):
        decode(found, 0, TOKEN)


@given(st.data())
@settings(max_examples=300)
def test_a_flipped_bit_is_refused_or_gives_a_frame(data: st.DataObject) -> None:
    found = [bytearray(part) for part in parts()]
    part = data.draw(st.integers(0, len(found) - 1))
    at = data.draw(st.integers(0, len(found[part]) * 8 - 1))
    found[part][at // 8] ^= 1 << at % 8
    said = ""
    try:
        decode(found, 3, TOKEN)
    except LinkError as error:
        said = str(error)
    assert "\n" not in said


@given(st.data())
def test_a_truncated_frame_is_refused(data: st.DataObject) -> None:
    found = parts()
    part = data.draw(st.integers(0, len(found) - 1))
    found[part] = found[part][: data.draw(st.integers(0, len(found[part]) - 1))]
    with pytest.raises(LinkError):
        decode(found, 3, TOKEN)


def test_a_frame_again_or_of_another_connection_is_refused() -> None:
    with pytest.raises(LinkError, match="number 3, and 4 is due"):
        decode(parts(), 4, TOKEN)
    with pytest.raises(LinkError, match="another connection"):
        decode(parts(), 3, session(b"other"))


def test_another_version_is_refused() -> None:
    found = [bytearray(part) for part in parts()]
    found[0][4] = 99
    with pytest.raises(LinkError, match="wire version 99"):
        decode(found, 3, TOKEN)


def test_what_a_header_claims_is_not_believed() -> None:
    found = [bytearray(part) for part in parts()]
    struct.pack_into("<Q", found[0], 48 + 8, 2**60)  # the first tensor's first dimension
    with pytest.raises(LinkError, match="brings 140 bytes"):
        decode(found, 3, TOKEN)


def test_what_is_no_plain_data_is_not_sent() -> None:
    with pytest.raises(MessageError, match="cannot cross"):
        encode(Frame(Kind.MESSAGE, body=object()), 0, TOKEN)
