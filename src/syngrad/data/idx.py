"""The idx format, in which MNIST and its relatives are published.

A file is a header, big-endian, then the values, row after row:

    byte 0-1  zero
    byte 2    type of the values: 8 is unsigned byte, the only one read here
    byte 3    number of dimensions d
    4·d bytes the size of each dimension, as unsigned 32-bit integers

The header is checked against the bytes that are there before anything is made of it.
"""

from __future__ import annotations

import gzip
import io
import math
import struct
import zlib

import numpy as np
import numpy.typing as npt

from syngrad.errors import SyngradError, first_line

_UNSIGNED_BYTE = 8
_GZIP_MAGIC = b"\x1f\x8b"
# A small file can unpack to any size. Twice the largest set published in this form.
_MOST_BYTES = 1 << 30


def parse_idx(content: bytes, name: str, *, dimensions: int) -> npt.NDArray[np.uint8]:
    """The array that an idx file holds.

    Args:
        content: the file's bytes, gzip'd or not (told by the bytes, not by the name).
        name: what to call the file in an error.
        dimensions: how many dimensions it must have: 3 for images, 1 for labels.

    Returns:
        A read-only array over the bytes: the values are not copied.

    Raises:
        SyngradError: the file is not idx, has other dimensions, or is shorter or longer than its header says.
    """
    if content[:2] == _GZIP_MAGIC:
        try:
            with gzip.GzipFile(fileobj=io.BytesIO(content)) as packed:
                content = packed.read(_MOST_BYTES + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise SyngradError(
                f"{name} is damaged: it does not unpack ({first_line(error)}); fetch it again"
            ) from error
        if len(content) > _MOST_BYTES:
            raise SyngradError(
                f"{name} unpacks to more than {_MOST_BYTES:,} bytes; it is no idx file that is read here"
            )
    if len(content) < 4 or content[:2] != b"\0\0":
        raise SyngradError(f"{name} is not an idx file: it begins with {content[:4].hex(' ') or 'nothing'}, not 00 00")
    kind, given = content[2], content[3]
    if kind != _UNSIGNED_BYTE:
        raise SyngradError(
            f"{name} holds values of idx type {kind}; only unsigned bytes (type {_UNSIGNED_BYTE}) are read"
        )
    if given != dimensions:
        raise SyngradError(f"{name} has {given} dimensions where {dimensions} were expected; is it the right file?")
    start = 4 + 4 * dimensions
    if len(content) < start:
        raise SyngradError(f"{name} is truncated: {len(content)} bytes, less than its own header; fetch it again")
    shape = struct.unpack(f">{dimensions}I", content[4:start])
    expected, found = math.prod(shape), len(content) - start
    if expected != found:
        sizes = "×".join(map(str, shape))
        fault = "truncated" if found < expected else "too long"
        raise SyngradError(f"{name} is {fault}: {found} values where its header says {sizes}; fetch it again")
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)
