"""The wire format: a frame as a few buffers and back, without pickling anything and without copying what is large.

The first part is a little-endian header of fixed size, one descriptor of fixed size a tensor, the structure of the body
as JSON (:mod:`syngrad.tagged_json`), in which tensors stand by number, and the values of small tensors, one after
another (every part costs some microseconds at both ends). Every further part is the values of one larger tensor. Values
stand row by row. All sizes are there before anything is read:

    4s magic "SGRD" · B version · B kind · B flags (1: wanted) · B zero · 8s session · Q sequence · q minibatch
    d scale · I tensors · I bytes of structure                                              48 bytes
    B dtype · B dimensions · 6s zero · 8Q shape                                             72 bytes a tensor

What arrives is held against what is really there before memory is taken for it: nothing is allocated in proportion to
what a header claims.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import struct
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from syngrad import tagged_json
from syngrad.errors import LinkError, MessageError, first_line
from syngrad.links.link import Frame, Kind

MAGIC, VERSION = b"SGRD", 1
#: more than any state has, and than any structure takes; what claims more is not a frame
MOST_TENSORS, MOST_STRUCTURE_BYTES = 1 << 16, 1 << 26
MOST_DIMENSIONS = 8
#: tensors up to this size travel in the first part, and are copied out of it, into memory of their own and aligned
SMALL_BYTES = 1 << 12

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
_KINDS = {int(kind): kind for kind in Kind}
#: the numbers that NumPy has too
_NUMPY = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float32, torch.float64)
_NUMBERS = {dtype: torch.empty(0, dtype=dtype).numpy().dtype for dtype in _NUMPY}
#: by NumPy's own number of the dtype, which is looked up sooner than the dtype
_ARRAYS = {number.num: _CODES[dtype] for dtype, number in _NUMBERS.items()}
_NAMES = [f"t{i}" for i in range(64)]
_NAMED = [f'{{"tensor":"{name}"}}' for name in _NAMES]
#: the structure of a body that is a list of so many tensors, which most are
_LISTS = [f"[{','.join(_NAMED[:count])}]".encode() for count in range(len(_NAMED))]
#: descriptors and structures up to this size are remembered: those of a run's messages are nearly always the same
_REMEMBERED_BYTES = 1 << 12
_json = json.JSONEncoder(separators=(",", ":"), allow_nan=False, check_circular=False).encode

Buffer = bytes | bytearray | memoryview


def session(token: bytes) -> bytes:
    """The eight bytes in every header that tell the frames of one connection from those of any other."""
    return hashlib.blake2b(token, digest_size=8, person=b"syngrad frame").digest()


def encode(frame: Frame, sequence: int, token: bytes) -> list[Buffer]:
    """The parts of a frame. Those of contiguous tensors on the CPU are views: to be sent before these are written to.

    Args:
        frame: what to send.
        sequence: its number in its direction, from 0.
        token: eight bytes, see :func:`session`.

    Raises:
        MessageError: for a body that holds anything but plain data and tensors.
    """
    found: dict[str, Any] = {}  # by name: a tensor, or what NumPy sees of it
    try:
        structure = _structure(frame.body, found).encode()
    except tagged_json.PlainError as error:
        raise MessageError(f"this cannot cross a link: {_place(frame.body, error)}") from error
    except RecursionError as error:
        raise MessageError("this cannot cross a link: it is nested too deep, or holds itself") from error
    count, length = len(found), len(structure)
    if count > MOST_TENSORS or length > MOST_STRUCTURE_BYTES:
        raise MessageError(
            f"this cannot cross a link: {count} tensors and {length} bytes of structure are more than {MOST_TENSORS} "
            f"and {MOST_STRUCTURE_BYTES}; put small tensors together into larger ones"
        )
    flags = _WANTED if frame.wanted else 0
    head: list[Buffer] = [
        _HEADER.pack(MAGIC, VERSION, frame.kind, flags, 0, token, sequence, frame.minibatch, frame.scale, count, length)
    ]
    small: list[Buffer] = [structure]
    parts: list[Buffer] = [b""]
    for each in found.values():
        if type(each) is np.ndarray:
            head.append(_descriptor(_ARRAYS[each.dtype.num], each.shape))
            if each.nbytes <= SMALL_BYTES:
                small.append(each.tobytes())
            else:
                parts.append(each.data.cast("B"))
            continue
        shape, code = each.shape, _CODES.get(each.dtype)
        if code is None or len(shape) > MOST_DIMENSIONS:
            raise MessageError(
                f"a tensor of dtype {each.dtype} and {len(shape)} dimensions cannot cross a link; at most "
                f"{MOST_DIMENSIONS} dimensions of an ordinary dtype can"
            )
        head.append(_descriptor(code, shape))
        values = _values(each)
        (small if len(values) <= SMALL_BYTES else parts).append(values)
    parts[0] = b"".join(head + small)
    return parts


def decode(parts: Sequence[Buffer], sequence: int, token: bytes, source: str = "the other end") -> Frame:
    """The frame of these parts; its larger tensors are views of them.

    Args:
        parts: in memory that nobody else will write to; large ones where :func:`aligned` puts them.
        sequence: the number that is due.
        token: this connection's.
        source: who sent it, for errors.

    Raises:
        LinkError: in one line, for anything that :func:`encode` has not written for this place and connection.
    """
    head = parts[0] if parts else b""
    if len(head) < _HEADER.size:
        refuse(source, "it is too short")
    magic, version, kind, flags, zero, its_token, its_sequence, minibatch, scale, count, length = _HEADER.unpack_from(
        head
    )
    if magic != MAGIC:
        refuse(source, "it is not Syngrad's")
    if version != VERSION:
        refuse(source, f"it has wire version {version}, and this Syngrad speaks {VERSION}; use the same everywhere")
    if its_token != token:
        refuse(source, "it belongs to another connection")
    if its_sequence != sequence:
        refuse(source, f"it is number {its_sequence}, and {sequence} is due: one is lost or came twice")
    if kind not in _KINDS or flags & ~_WANTED or zero:
        refuse(source, f"kind {kind} with flags {flags} is unknown")
    # From here on the head claims sizes. Each is held against the bytes that are there before anything is made of it.
    structure_at = _HEADER.size + count * _DESCRIPTOR.size
    small_at = structure_at + length
    if count > MOST_TENSORS or length > MOST_STRUCTURE_BYTES or small_at > len(head):
        refuse(source, f"it claims {count} tensors and {length} bytes of structure, and its head has {len(head)}")
    made: list[Tensor] = []
    small, part = small_at, 1
    # Small tensors lie in the first part, one after another; every larger one is a part of its own, in the same order.
    for dtype, shape, size in _described(bytes(head[_HEADER.size : structure_at]), source):
        if size <= SMALL_BYTES:
            buffer, at = head, small
            small += size
        else:
            buffer, at = parts[part] if part < len(parts) else b"", 0
            part += 1
        if at + size > len(buffer) or (buffer is not head and size != len(buffer)):
            refuse(source, f"a tensor of shape {'×'.join(map(str, shape))} brings {max(0, len(buffer) - at)} bytes")
        made.append(_tensor(dtype, shape, buffer, at, size))
    if small != len(head) or part != len(parts):
        refuse(source, f"it has {len(parts)} parts, the first of {len(head)} bytes, and claims {part} and {small}")
    structure = bytes(head[structure_at:small_at])
    if count < len(_LISTS) and structure == _LISTS[count]:  # nothing to parse: the body is this very list
        return Frame(_KINDS[kind], minibatch, scale, bool(flags & _WANTED), made)
    tensors = _Brought((_name(index), tensor) for index, tensor in enumerate(made))
    try:
        body = _body(_parsed(structure), tensors)
    except tagged_json.PlainError as error:
        refuse(source, str(error))
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        refuse(source, f"its structure cannot be read ({first_line(error):.80})")
    if tensors:
        refuse(source, f"its structure leaves out {len(tensors)} of the {count} tensors that it brings")
    return Frame(_KINDS[kind], minibatch, scale, bool(flags & _WANTED), body)


def aligned(pieces: Sequence[Buffer]) -> Buffer:
    """The bytes of these pieces, one after another, in memory of their own that begins where PyTorch's own does.

    Where numbers lie decides in which order some kernels add them up: a message that was received anywhere would give
    other last digits than the one that was sent.
    """
    room = torch.empty(sum(map(len, pieces)), dtype=torch.uint8).numpy()
    at = 0
    for piece in pieces:
        room[at : at + len(piece)] = np.frombuffer(piece, np.uint8)
        at += len(piece)
    values: memoryview = room.data
    return values


def part_sizes(head: Buffer, source: str) -> list[int]:
    """How many bytes each part after this first one has, for a transport that must know beforehand.

    Raises:
        LinkError: for what is not the first part of a frame.
    """
    if len(head) < _HEADER.size:
        refuse(source, "it is too short")
    *_, count, length = _HEADER.unpack_from(head)
    if _HEADER.size + count * _DESCRIPTOR.size + length > len(head):
        refuse(source, f"it claims {count} tensors and {length} bytes of structure, and its head has {len(head)}")
    described = _described(bytes(head[_HEADER.size : _HEADER.size + count * _DESCRIPTOR.size]), source)
    return [size for _, _, size in described if size > SMALL_BYTES]


def _structure(body: Any, found: dict[str, Any]) -> str:
    """The JSON of :func:`syngrad.tagged_json.encode`, in a fraction of the time for what crosses most often.

    `found` is given the tensors by name; as NumPy's views where they lie as they travel, in numbers that NumPy has too:
    it is asked once and refuses, rather than that each reason (graph, device, layout, dtype) is looked at.
    """
    kind = type(body)
    if kind is Tensor:
        try:
            array = body.numpy()
        except (RuntimeError, TypeError):
            return _json(tagged_json.encode(body, found))
        if array.dtype.num in _ARRAYS and array.flags.c_contiguous and array.ndim <= MOST_DIMENSIONS:
            index = len(found)
            found[_name(index)] = array
            return _NAMED[index] if index < len(_NAMED) else f'{{"tensor":"t{index}"}}'
    elif kind is list:
        return "[" + ",".join([_structure(each, found) for each in body]) + "]"
    elif body is None:
        return "null"
    elif kind is int or (kind is float and math.isfinite(body)):
        return repr(body)
    elif kind is dict and len(body) > 1 and all(type(key) is str for key in body):
        items = [f"{_json(key)}:{_structure(each, found)}" for key, each in body.items()]
        return "{" + ",".join(items) + "}"
    return _json(tagged_json.encode(body, found))


@functools.lru_cache(maxsize=256)
def _descriptor(code: int, shape: tuple[int, ...]) -> bytes:
    return _DESCRIPTOR.pack(code, len(shape), *shape, *_PADDING[len(shape)])


def _name(index: int) -> str:
    return _NAMES[index] if index < len(_NAMES) else f"t{index}"


def _place(body: Any, error: tagged_json.PlainError) -> str:
    """The error once more, with the place in the whole body."""
    try:
        tagged_json.encode(body, {})
    except tagged_json.PlainError as again:
        return str(again)
    return str(error)


def _parsed(structure: bytes) -> Any:
    """The structure's JSON. What is decoded from it is made anew each time."""
    return _loaded(structure) if len(structure) <= _REMEMBERED_BYTES else _loaded.__wrapped__(structure)


@functools.lru_cache(maxsize=64)
def _loaded(structure: bytes) -> Any:
    return json.loads(structure, parse_constant=_no_constant)


def _values(tensor: Tensor) -> Buffer:
    """A tensor's values, row by row, as bytes: a view wherever they lie like that already."""
    if tensor.numel() == 0:
        return b""
    if tensor.requires_grad:
        tensor = tensor.detach()
    if not tensor.is_cpu:
        tensor = tensor.cpu()
    if tensor.is_neg() or tensor.is_complex():
        tensor = tensor.resolve_conj().resolve_neg()
    values: memoryview = tensor.contiguous().view(-1).view(torch.uint8).numpy().data
    return values


class _Brought(dict[str, Tensor]):
    """The tensors of a frame. Each stands in its structure once; a copy of one for every mention would be memory that
    nobody has sent.
    """

    def __getitem__(self, name: str) -> Tensor:
        return self.pop(name)


def _body(structure: Any, tensors: _Brought) -> Any:
    """:func:`syngrad.tagged_json.decode`, with a short cut for lists of tensors."""
    if type(structure) is list:
        return [_body(each, tensors) for each in structure]
    if type(structure) is dict and len(structure) == 1 and type(name := structure.get("tensor")) is str:
        found = tensors.pop(name, None)
        if found is not None:
            return found
    return tagged_json.decode(structure, tensors)


def _described(descriptors: bytes, source: str) -> list[tuple[torch.dtype, tuple[int, ...], int]]:
    """(dtype, shape, bytes) of each tensor, as the descriptors claim."""
    try:
        return _claims(descriptors) if len(descriptors) <= _REMEMBERED_BYTES else _claims.__wrapped__(descriptors)
    except ValueError as error:
        refuse(source, str(error))


@functools.lru_cache(maxsize=64)
def _claims(descriptors: bytes) -> list[tuple[torch.dtype, tuple[int, ...], int]]:
    claims = []
    for code, dimensions, *sizes in _DESCRIPTOR.iter_unpack(descriptors):
        if code not in _DTYPES or dimensions > MOST_DIMENSIONS:
            raise ValueError(f"a tensor has dtype {code} and {dimensions} dimensions")
        shape = tuple(sizes[:dimensions])
        elements = math.prod(shape)
        if elements == 0 and math.prod(filter(None, shape)) > _MOST_ELEMENTS:  # PyTorch has no number for 0×2⁶³
            raise ValueError(f"a tensor has shape {'×'.join(map(str, shape))}")
        claims.append((_DTYPES[code], shape, elements * _DTYPES[code].itemsize))
    return claims


def _tensor(dtype: torch.dtype, shape: tuple[int, ...], buffer: Buffer, at: int, size: int) -> Tensor:
    if size == 0:
        return torch.empty(shape, dtype=dtype)
    number = _NUMBERS.get(dtype)
    if number is not None and dtype is not torch.bool:  # NumPy takes a third of the time
        array = np.frombuffer(buffer, number, size // number.itemsize, at)
        if size <= SMALL_BYTES:  # into memory as PyTorch takes it, see `aligned`
            made = torch.empty(shape, dtype=dtype)
            made.numpy().reshape(-1)[:] = array
            return made
        # PyTorch ends the process where it copies numbers from an address that does not suit them.
        if not (flags := array.flags).writeable or not flags.aligned:
            array = array.copy()
        return torch.from_numpy(array if len(shape) == 1 else array.reshape(shape))
    if size <= SMALL_BYTES or memoryview(buffer).readonly:
        buffer, at = aligned([memoryview(buffer)[at : at + size]]), 0
    if dtype is torch.bool:  # a byte other than 0 and 1 is no truth value, and PyTorch does not expect one
        return torch.frombuffer(buffer, dtype=torch.uint8, count=size, offset=at).ne(0).view(shape)
    width = dtype.itemsize
    values = torch.frombuffer(buffer, dtype=dtype, count=size // width, offset=at)
    if values.data_ptr() % width:
        # as bytes, for the same reason
        values = torch.frombuffer(buffer, dtype=torch.uint8, count=size, offset=at).clone().view(dtype)
    return values if len(shape) == 1 else values.view(shape)


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is no JSON")


def refuse(source: str, why: str) -> NoReturn:
    """Raise the LinkError of a frame that is not what it should be."""
    raise LinkError(f"a frame from {source} is refused: {why}")
