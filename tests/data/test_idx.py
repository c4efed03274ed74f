from __future__ import annotations

import gzip
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from syngrad.data import image_folders
from syngrad.data.image_folders import parse_idx
from syngrad.errors import SyngradError


def idx(values: bytes, *shape: int, kind: int = 8) -> bytes:
    return bytes([0, 0, kind, len(shape)]) + struct.pack(f">{len(shape)}I", *shape) + values


@pytest.mark.parametrize("pack", [bytes, gzip.compress], ids=["plain", "gzip"])
@pytest.mark.parametrize("shape", [(7,), (2, 3, 4), (0,)])
def test_what_was_written_is_read(shape: tuple[int, ...], pack) -> None:
    expected = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    read = parse_idx(pack(idx(expected.tobytes(), *shape)), "file", dimensions=len(shape))
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, expected)


GOOD = idx(bytes(range(6)), 1, 2, 3)
PACKED = gzip.compress(GOOD, mtime=0)  # no time in it: tests are named after their bytes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not an idx file: it begins with nothing"),
        (b"<!DOCTYPE html>", "not an idx file: it begins with 3c 21 44 4f, not 00 00"),
        (b"\0\0\x08", "not an idx file: it begins with 00 00 08"),
        (idx(bytes(24), 1, 2, 3, kind=13), "idx type 13; only unsigned bytes"),
        (idx(bytes(6), 6), "has 1 dimensions where 3 were expected"),
        (GOOD[:9], "truncated: 9 bytes, less than its own header"),
        (GOOD[:-1], "truncated: 5 values where its header says 1×2×3"),
        (GOOD + b"\0", "too long: 7 values where its header says 1×2×3"),
        (idx(b"", 2**32 - 1, 2**32 - 1, 2**32 - 1), "truncated: 0 values"),
        (PACKED[:-9], "damaged: it does not unpack"),
        (b"\x1f\x8b" + bytes(20), "damaged: it does not unpack"),
        (PACKED[:12] + b"\xff" + PACKED[13:], "damaged: it does not unpack"),
    ],
)
def test_a_file_that_is_not_right_is_named_in_one_line(content: bytes, message: str) -> None:
    with pytest.raises(SyngradError) as caught:
        parse_idx(content, "some-file.gz", dimensions=3)
    assert message in str(caught.value)
    assert str(caught.value).startswith("some-file.gz ")
    assert "\n" not in str(caught.value)


def test_a_small_file_does_not_unpack_to_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_folders, "_MOST_BYTES", 1000)
    assert len(parse_idx(gzip.compress(idx(bytes(992), 992)), "file.gz", dimensions=1)) == 992
    with pytest.raises(SyngradError, match=r"^file\.gz unpacks to more than 1,000 bytes"):
        parse_idx(gzip.compress(idx(bytes(993), 993)), "file.gz", dimensions=1)


@given(st.binary(max_size=64), st.sampled_from([b"", b"\0\0", b"\0\0\x08\x01", b"\x1f\x8b", b"\x1f\x8b\x08\0"]))
def test_no_bytes_end_in_anything_but_an_array_or_a_syngrad_error(tail: bytes, head: bytes) -> None:
    try:
        read = parse_idx(head + tail, "file", dimensions=1)
    except SyngradError:
        return
    assert read.ndim == 1
