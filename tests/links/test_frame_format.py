"""The wire format: what goes in comes out, and what is not whole, or not ours, is refused and nothing else."""

from __future__ import annotations

import json
import math
import struct
import tracemalloc
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from syngrad.errors import LinkError, MessageError
from syngrad.links import frame_format
from syngrad.links.frame_format import Buffer, decode, encode, session
from syngrad.links.link import Frame, Kind
from syngrad.tree import tensors

TOKEN = session(b"token")
HEADER, DESCRIPTOR = 48, 72

DTYPES = st.sampled_from(list(frame_format._DTYPES.values()))
SHAPES = st.lists(st.integers(0, 5), max_size=4)


def made(shape: list[int], dtype: torch.dtype) -> torch.Tensor:
    count = math.prod(shape) * dtype.itemsize
    values = torch.arange(count, dtype=torch.int64).remainder(120).to(torch.uint8)
    if dtype is torch.bool:
        values = values.remainder(2)
    return values.view(dtype).view(shape) if count else torch.empty(shape, dtype=dtype)


LEAVES = st.builds(made, SHAPES, DTYPES) | st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
BODIES = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=6), inner, max_size=4)
        | st.dictionaries(st.sampled_from(["tensor", "tuple", "map"]), inner, max_size=2)
    ),
    max_leaves=8,
)
FRAMES = st.builds(Frame, st.sampled_from(Kind), st.integers(-1, 2**62), st.floats(), st.booleans(), BODIES)
ONE = Frame(Kind.MESSAGE, 3, 0.5, True, [torch.randn(40, 30), {"y": torch.arange(4), "n": (1, 2.5)}, torch.zeros(0, 2)])


def received(parts: list[Buffer]) -> list[Buffer]:
    """The parts in memory of their own, as from a socket."""
    return [bytearray(part) for part in parts]


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            return False
        return a.numel() == 0 or torch.equal(*(x.contiguous().view(-1).view(torch.uint8) for x in (a, b)))
    if isinstance(a, dict):
        return type(b) is dict and list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, float) and math.isnan(a):
        return isinstance(b, float) and math.isnan(b)
    return type(a) is type(b) and bool(a == b)


@given(FRAMES, st.integers(0, 2**64 - 1))
def test_what_goes_in_comes_out(frame: Frame, sequence: int) -> None:
    got = decode(received(encode(frame, sequence, TOKEN)), sequence, TOKEN)
    assert (got.kind, got.minibatch, got.wanted) == (frame.kind, frame.minibatch, frame.wanted)
    assert same(got.scale, frame.scale)
    assert same(got.body, frame.body)


def test_the_header_is_what_is_documented() -> None:
    parts = encode(ONE, 9, TOKEN)
    head = bytes(parts[0])
    assert struct.unpack_from("<4sBBBB8sQqdII", head)[:-1] == (b"SGRD", 1, 1, 1, 0, TOKEN, 9, 3, 0.5, 3)
    assert struct.unpack_from("<BB6x8Q", head, HEADER) == (9, 2, 40, 30, 0, 0, 0, 0, 0, 0)
    (length,) = struct.unpack_from("<I", head, 44)
    assert len(head) == HEADER + 3 * DESCRIPTOR + length + 32
    assert head[-32:] == struct.pack("<4q", 0, 1, 2, 3)
    assert json.loads(head[HEADER + 3 * DESCRIPTOR : -32]) == [
        {"tensor": "t0"},
        {"y": {"tensor": "t1"}, "n": {"tuple": [1, 2.5]}},
        {"tensor": "t2"},
    ]
    assert [len(part) for part in parts[1:]] == [4800]


def test_a_large_tensor_is_neither_copied_on_the_way_out_nor_on_the_way_in() -> None:
    h = torch.randn(256, 256)
    parts = encode(Frame(Kind.MESSAGE, body=h), 0, TOKEN)
    assert torch.frombuffer(parts[1], dtype=torch.float32).data_ptr() == h.data_ptr()
    there = received(parts)
    got = decode(there, 0, TOKEN).body
    assert got.data_ptr() == torch.frombuffer(there[1], dtype=torch.float32).data_ptr()
    del there, parts
    assert torch.equal(got, h)


@pytest.mark.parametrize("offset", range(1, 16))
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64, torch.complex128, torch.bool])
def test_a_tensor_may_arrive_at_any_address(dtype: torch.dtype, offset: int) -> None:
    h = made([64, 256], dtype)
    parts = encode(Frame(Kind.MESSAGE, body=h), 0, TOKEN)
    moved = bytearray(len(parts[1]) + 16)
    moved[offset : offset + len(parts[1])] = parts[1]
    got = decode([parts[0], memoryview(moved)[offset : offset + len(parts[1])]], 0, TOKEN).body
    assert same(got.clone(), h)


def test_bytes_that_are_no_truth_values_become_some() -> None:
    parts = received(encode(Frame(Kind.MESSAGE, body=torch.tensor([True, False, True])), 0, TOKEN))
    head = bytes(parts[0])[:-3] + b"\x02\x00\xff"
    assert decode([head], 0, TOKEN).body.view(torch.uint8).tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"a": [1, object()]}, r"a\.1 is a object"),
        ([torch.eye(2).to_mkldnn()], r"0 is a tensor of layout"),
        (torch.zeros([1] * 9), "9 dimensions"),
    ],
)
def test_what_cannot_cross_is_named(body: Any, said: str) -> None:
    with pytest.raises(MessageError, match=said):
        encode(Frame(Kind.MESSAGE, body=body), 0, TOKEN)


def test_what_is_nested_without_end_cannot_cross() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(MessageError, match="nested too deep"):
        encode(Frame(Kind.MESSAGE, body=endless), 0, TOKEN)


def head_of(
    structure: bytes,
    *descriptors: tuple[int, ...],
    count: int | None = None,
    length: int | None = None,
    sequence: int = 0,
) -> bytes:
    header = struct.pack(
        "<4sBBBB8sQqdII", b"SGRD", 1, 1, 0, 0, TOKEN, sequence, 0, 1.0,
        len(descriptors) if count is None else count, len(structure) if length is None else length,
    )  # fmt: skip
    return header + b"".join(struct.pack("<BB6x8Q", *each) for each in descriptors) + structure


def shape(code: int, *sizes: int) -> tuple[int, ...]:
    return (code, len(sizes), *sizes, *[0] * (8 - len(sizes)))


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([], "too short"),
        ([b"SGRD"], "too short"),
        ([bytes(48)], "not Syngrad's"),
        ([b"SGRD\x02" + bytes(43)], "wire version 2, and this Syngrad speaks 1"),
        ([b"SGRD\x01" + bytes(43)], "another connection"),
        ([head_of(b"null", count=2**32 - 1)], "claims 4294967295 tensors"),
        ([head_of(b"null", length=2**32 - 1)], "4294967295 bytes of structure"),
        ([head_of(b"null", length=3)], "claims 1 and 51"),
        ([head_of(b"null"), b""], "2 parts"),
        ([head_of(b"null", shape(9, 2)) + b"1234"], "shape 2 brings 4 bytes"),
        ([head_of(b"null", shape(9, 2**60)), b"1234"], "brings 4 bytes"),
        ([head_of(b"null", shape(9, 2**60))], "brings 0 bytes"),
        ([head_of(b"null", shape(9, 2**33, 2**33)), b""], "brings 0 bytes"),
        ([head_of(b"null", shape(9, 0, 2**63))], "a tensor has shape 0×"),
        ([head_of(b"null", shape(200, 1)) + b"1234"], "dtype 200"),
        ([head_of(b"null", (9, 9, *[1] * 8)) + b"1234"], "9 dimensions"),
        ([head_of(b"[" * 100_000)], "cannot be read"),
        ([head_of(b'{"tuple":[' * 100_000)], "cannot be read"),
        ([head_of(b'{"tuple":[' * 1_000 + b"]}" * 1_000)], "cannot be read"),
        ([head_of(b"{")], "cannot be read"),
        ([head_of(b"\xff")], "cannot be read"),
        ([head_of(b"NaN")], "cannot be read"),
        ([head_of(b"1" * 5000)], "cannot be read"),
        ([head_of(b'{"tensor":"t0"}')], "tensor 't0' is missing"),
        (
            [head_of(b'[{"laid out":["t0",[2,1]]},{"laid out":["t0",[2,1]]}]', shape(9, 1, 2)) + b"12345678"],
            "'t0' is missing",
        ),
        ([head_of(b'[{"tensor":"t0"},{"tensor":"t0"}]', shape(9, 1, 2)) + b"12345678"], "'t0' is missing"),
        ([head_of(b"[]", shape(9, 1, 2)) + b"12345678"], "leaves out 1 of the 1 tensors"),
        ([head_of(b'{"laid out":["t0",[1,-1]]}', shape(9, 1, 2)) + b"12345678"], "has no layout"),
        ([head_of(b'{"array":"t0"}', shape(8, 1)) + b"12"], "cannot be read"),
        ([head_of(b'{"dtype":"nn"}')], "no dtype"),
        ([head_of(b'{"map":[[[],1]]}')], "map cannot be read"),
    ],
)
def test_what_is_no_frame_is_refused(parts: list[bytes], said: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(LinkError, match=f"a frame from the other end is refused: .*{said}") as caught:
            decode(parts, 0, TOKEN)
        assert "\n" not in str(caught.value)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("sequence", [0, 6, 8])
def test_a_frame_that_is_lost_or_comes_twice_is_noticed(sequence: int) -> None:
    with pytest.raises(LinkError, match=f"number {sequence}, and 7 is due: one is lost or came twice"):
        decode(encode(ONE, sequence, TOKEN), 7, TOKEN)


def refused_or_read(parts: list[Buffer]) -> None:
    try:
        frame = decode(parts, 5, TOKEN)
    except LinkError as error:
        said = str(error)
    else:
        for tensor in tensors(frame.body):
            tensor.clone()
        return
    assert said.startswith("a frame from the other end is refused: ")
    assert "\n" not in said


@given(st.lists(st.binary(max_size=400), max_size=4))
def test_random_bytes(parts: list[bytes]) -> None:
    refused_or_read(list(parts))


@given(st.binary(max_size=60), st.lists(st.binary(max_size=72), max_size=3))
def test_random_bytes_behind_a_good_header(structure: bytes, descriptors: list[bytes]) -> None:
    head = struct.pack("<4sBBBB8sQqdII", b"SGRD", 1, 1, 0, 0, TOKEN, 5, 0, 1.0, len(descriptors), len(structure))
    parts = [head + b"".join(each.ljust(DESCRIPTOR, b"\0") for each in descriptors) + structure]
    refused_or_read(list(parts))
    refused_or_read([parts[0] + bytes(8), bytes(8)])


@given(st.integers(0, 1), st.integers(0, 10_000))
def test_truncation(part: int, keep: int) -> None:
    parts = received(encode(ONE, 5, TOKEN))
    parts[part] = parts[part][: keep % len(parts[part])]
    refused = [parts, parts[:1], parts[1:], [*parts, b""], []]
    for each in refused:
        with pytest.raises(LinkError):
            decode(each, 5, TOKEN)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 10_000), st.integers(0, 7)), min_size=1, max_size=3))
def test_flipped_bits(flips: list[tuple[int, int, int]]) -> None:
    parts = [bytearray(part) for part in encode(ONE, 5, TOKEN)]
    for part, place, bit in flips:
        parts[part][place % len(parts[part])] ^= 1 << bit
    refused_or_read(list(parts))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5)
    | st.sampled_from(["t0", "t1", "float32", "nn", "cpu", "inf"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["tensor", "laid out", "array", "tuple", "deque", "set", "map", "counter", "float", "complex",
                         "bytes", "dtype", "device", "x"]), inner, max_size=2),
    max_leaves=8,
)  # fmt: skip


@given(JSON)
def test_any_structure(structure: Any) -> None:
    text = json.dumps(structure).encode()
    head = head_of(text, shape(9, 2, 3), shape(6, 3), sequence=5)
    refused_or_read([head + struct.pack("<6f3q", *range(9))])
