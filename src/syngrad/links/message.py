"""The wire format: a frame as a few buffers and back, without pickling anything and without copying what is large.

The first part is a little-endian header of fixed size, one descriptor of fixed size a tensor, and the structure of the
body as JSON (see :mod:`syngrad.plain`), in which tensors stand by number. Every further part is one tensor's values,
row by row. All sizes are there before anything is read:

    4s magic "SGRD" · B version · B kind · B flags (1: wanted) · B zero · 8s session · Q sequence · q minibatch
    d scale · I tensors · I bytes of structure                                              48 bytes
    B dtype · B dimensions · 6s zero · 8Q shape                                             72 bytes a tensor

What arrives is held against what is really there before memory is taken for it: nothing is allocated in proportion to
what a header claims.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor

from syngrad import plain
from syngrad.errors import LinkError, MessageError, first_line
from syngrad.links.link import Frame, Kind

MAGIC, VERSION = b"SGRD", 1
#: more than any state has, and than any structure takes; what claims more is not a frame
MOST_TENSORS, MOST_STRUCTURE_BYTES = 1 << 16, 1 << 26
MOST_DIMENSIONS = 8
#: a received tensor up to this size is copied into memory of its own: it costs a microsecond or two, aligns it, and
#: does not keep the larger buffer alive into which small parts are received together
COPIED_BYTES = 1 << 14

_HEADER = struct.Struct("<4sBBBB8sQqdII")
_DESCRIPTOR = struct.Struct("<BB6x8Q")
_PADDING = [(0,) * (MOST_DIMENSIONS - n) for n in range(MOST_DIMENSIONS + 1)]
_WANTED = 1
_MOST_ELEMENTS = 1 << 62
#: the codes are part of the format: they are never given to another dtype
_DTYPES = {
    1: torch.bool,
    2: torch.uint8,
    3: torch.int8,
    4: torch.int16,
    5: torch.int32,
    6: torch.int64,
    7: torch.float16,
    8: torch.bfloat16,
    9: torch.float32,
    10: torch.float64,
    11: torch.complex64,
    12: torch.complex128,
    13: torch.uint16,
    14: torch.uint32,
    15: torch.uint64,
    16: torch.float8_e4m3fn,
    17: torch.float8_e5m2,
}
_CODES = {dtype: code for code, dtype in _DTYPES.items()}
_WIDTHS = {code: dtype.itemsize for code, dtype in _DTYPES.items()}
_KINDS = {int(kind): kind for kind in Kind}
_NAMES = [f"t{i}" for i in range(64)]
_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False, check_circular=False).encode

Buffer = bytes | bytearray | memoryview


def session(token: bytes) -> bytes:
    """The eight bytes in every header that tell the frames of one connection from those of any other."""
    return hashlib.blake2b(token, digest_size=8, person=b"syngrad frame").digest()


def encode(frame: Frame, sequence: int, token: bytes) -> list[Buffer]:
    """The parts of a frame. Those of contiguous tensors on the CPU are views: to be sent before these are written to.

    sequence: the number of the frame in its direction, from 0. token: eight bytes, see :func:`session`.

    Raises MessageError for a body that holds anything but plain data and tensors.
    """
    tensors: dict[str, Tensor] = {}
    try:
        structure = _json(_structure(frame.body, tensors)).encode()
    except plain.PlainError as error:
        raise MessageError(f"this cannot cross a link: {error}") from error
    except RecursionError as error:
        raise MessageError("this cannot cross a link: it is nested too deep, or holds itself") from error
    if len(tensors) > MOST_TENSORS or len(structure) > MOST_STRUCTURE_BYTES:
        raise MessageError(
            f"this cannot cross a link: {len(tensors)} tensors and {len(structure)} bytes of structure are more than "
            f"{MOST_TENSORS} and {MOST_STRUCTURE_BYTES}; put small tensors together into larger ones"
        )
    flags = _WANTED if frame.wanted else 0
    head = [
        _HEADER.pack(
            MAGIC, VERSION, frame.kind, flags, 0, token, sequence, frame.minibatch, frame.scale, len(tensors),
            len(structure),
        )
    ]  # fmt: skip
    parts: list[Buffer] = [b""]
    for tensor in tensors.values():
        shape, code = tensor.shape, _CODES.get(tensor.dtype)
        if code is None or len(shape) > MOST_DIMENSIONS:
            raise MessageError(
                f"a tensor of dtype {tensor.dtype} and {len(shape)} dimensions cannot cross a link; at most "
                f"{MOST_DIMENSIONS} dimensions of an ordinary dtype can"
            )
        head.append(_DESCRIPTOR.pack(code, len(shape), *shape, *_PADDING[len(shape)]))
        parts.append(_values(tensor))
    head.append(structure)
    parts[0] = b"".join(head)
    return parts


def decode(parts: Sequence[Buffer], sequence: int, token: bytes, source: str = "the other end") -> Frame:
    """The frame of these parts; its larger tensors are views of them.

    sequence: the number that is due. token: this connection's. source: who sent it, for errors.

    Raises LinkError, in one line, for anything that :func:`encode` has not written for this place and connection.
    """
    if not parts or len(parts[0]) < _HEADER.size:
        _refuse(source, "it is too short")
    head = parts[0]
    magic, version, kind, flags, zero, its_token, its_sequence, minibatch, scale, count, length = _HEADER.unpack_from(
        head
    )
    if magic != MAGIC:
        _refuse(source, "it is not Syngrad's")
    if version != VERSION:
        _refuse(source, f"it has wire version {version}, and this Syngrad speaks {VERSION}; use the same everywhere")
    if its_token != token:
        _refuse(source, "it belongs to another connection")
    if its_sequence != sequence:
        _refuse(source, f"it is number {its_sequence}, and {sequence} is due: one is lost or came twice")
    if kind not in _KINDS or flags & ~_WANTED or zero:
        _refuse(source, f"kind {kind} with flags {flags} is unknown")
    if count != len(parts) - 1 or count > MOST_TENSORS:
        _refuse(source, f"it claims {count} tensors and brings {len(parts) - 1}")
    start = _HEADER.size + count * _DESCRIPTOR.size
    if length != len(head) - start or length > MOST_STRUCTURE_BYTES:
        _refuse(source, f"its first part has {len(head)} bytes and claims {start + length}")
    tensors = {}
    for index in range(count):
        name = _NAMES[index] if index < len(_NAMES) else f"t{index}"
        at = _HEADER.size + index * _DESCRIPTOR.size
        tensors[name] = _tensor(_DESCRIPTOR.unpack_from(head, at), parts[index + 1], source)
    try:
        structure = json.loads(bytes(head[start:]), parse_constant=_no_constant)
        body = plain.decode(structure, tensors)
    except plain.PlainError as error:
        _refuse(source, str(error))
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        _refuse(source, f"its structure cannot be read ({first_line(error):.80})")
    return Frame(_KINDS[kind], minibatch, scale, bool(flags & _WANTED), body)


def _structure(body: Any, tensors: dict[str, Tensor]) -> Any:
    try:
        return _plain(body, tensors)
    except plain.PlainError:
        plain.encode(body, {})  # fails as well, and says where
        raise


def _plain(body: Any, tensors: dict[str, Tensor]) -> Any:
    """What :func:`syngrad.plain.encode` makes of the body, in a quarter of the time for what crosses most often."""
    if type(body) is Tensor and body.is_contiguous() and body.layout is torch.strided:
        name = f"t{len(tensors)}"
        tensors[name] = body
        return {"tensor": name}
    if type(body) is list:
        return [_plain(each, tensors) for each in body]
    if type(body) is dict and len(body) > 1 and all(type(key) is str for key in body):
        return {key: _plain(each, tensors) for key, each in body.items()}
    if body is None or type(body) in (int, str, bool) or (type(body) is float and math.isfinite(body)):
        return body
    return plain.encode(body, tensors)


def _values(tensor: Tensor) -> Buffer:
    """A tensor's values, row by row, as bytes: a view wherever they lie like that already."""
    if tensor.numel() == 0:
        return b""
    tensor = tensor.detach()
    if not tensor.is_cpu:
        tensor = tensor.cpu()
    if tensor.is_neg() or tensor.is_complex():
        tensor = tensor.resolve_conj().resolve_neg()
    values: memoryview = tensor.contiguous().view(-1).view(torch.uint8).numpy().data
    return values


def _tensor(descriptor: tuple[int, ...], part: Buffer, source: str) -> Tensor:
    code, dimensions, shape = descriptor[0], descriptor[1], descriptor[2:]
    if code not in _DTYPES or dimensions > MOST_DIMENSIONS:
        _refuse(source, f"a tensor has dtype {code} and {dimensions} dimensions")
    shape = shape[:dimensions]
    elements = math.prod(shape)
    # a shape such as 0×2⁶³ has no elements, and PyTorch no number for it
    if elements * _WIDTHS[code] != len(part) or (elements == 0 and math.prod(filter(None, shape)) > _MOST_ELEMENTS):
        _refuse(source, f"a tensor of shape {'×'.join(map(str, shape))} brings {len(part)} bytes")
    dtype = _DTYPES[code]
    if elements == 0:
        return torch.empty(shape, dtype=dtype)
    if memoryview(part).readonly:
        part = bytearray(part)
    values = torch.frombuffer(part, dtype=torch.uint8)
    if dtype is torch.bool:  # a byte other than 0 and 1 is no truth value, and PyTorch does not expect one
        return values.ne(0).view(shape)
    # As bytes: PyTorch ends the process where it copies numbers from an address that does not suit them.
    if len(part) <= COPIED_BYTES or values.data_ptr() % dtype.itemsize:
        values = values.clone()
    return values.view(dtype).view(shape)


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


def _refuse(source: str, why: str) -> NoReturn:
    raise LinkError(f"a frame from {source} is refused: {why}")
