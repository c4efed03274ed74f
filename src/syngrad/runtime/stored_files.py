"""The files of a checkpoint: opened only if they are plain, held against their sizes and digests before they are used.

A folder that came from elsewhere may hold anything under these names: a pipe that nobody writes to, an endless device,
a header of millions of entries, a file of a hundred gigabytes that takes no room on the disk. Each is refused by what
the file system says of it, or by its first bytes, before it is read.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from syngrad.errors import first_line

#: more than any run has; what claims more is no file of ours
MOST_TENSORS, HEADER_LIMIT_BYTES = 1 << 18, 1 << 25
_LENGTH_BYTES = 8
#: those of them that this system has
_FLAGS = sum(getattr(os, name, 0) for name in ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY"))


@contextmanager
def opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """(a plain file open for reading, its bytes); what is none is not even opened, and nothing waits.

    Raises:
        ValueError: for what is no plain file.
        OSError: for what is not there or may not be read.
    """
    _check_plain(path, os.stat(path))
    with os.fdopen(os.open(path, os.O_RDONLY | _FLAGS), "rb") as file:
        now = os.fstat(file.fileno())
        _check_plain(path, now)
        yield file, now.st_size


def _check_plain(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise ValueError(f"{path.name} is no plain file")


def beginning(path: Path, size: int) -> bytes:
    """The first bytes of a file; none where there is no plain file that may be read."""
    try:
        with opened(path) as (file, _):
            return file.read(size)
    except (OSError, ValueError):
        return b""


def whole(path: Path, limit: int) -> bytes:
    """All of a file.

    Raises:
        ValueError: for more than `limit` bytes, or what is no plain file.
    """
    with opened(path) as (file, size):
        if size > limit:
            raise ValueError(f"{path.name} is too large")
        return file.read(size)


def record(path: Path) -> dict[str, Any]:
    """What is kept of a file, to be held against it later."""
    with opened(path) as (file, size):
        return {"bytes": size, "sha256": _digest(file, size)}


def check_size(path: Path, kept: dict[str, Any]) -> int:
    """The file's bytes, if they are as many as were written and its header describes just these; little is read.

    Raises:
        ValueError: otherwise.
    """
    with opened(path) as (file, size):
        if size != kept["bytes"]:
            raise ValueError(f"{path.name} has {size} bytes, and {kept['bytes']!r:.20} were written")
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if length > min(size - _LENGTH_BYTES, HEADER_LIMIT_BYTES):
            raise ValueError(f"{path.name} has a header that cannot be")
        header = file.read(length)
        if header.count(b'"data_offsets"') > MOST_TENSORS:
            raise ValueError(f"{path.name} claims more than {MOST_TENSORS} tensors")
        entries = json.loads(header)
        entries.pop("__metadata__", None)
        end = max((int(entry["data_offsets"][1]) for entry in entries.values()), default=0)
        if _LENGTH_BYTES + length + end != size:
            raise ValueError(f"{path.name} is not as long as its header says")
        return size


def read_tensors(path: Path, kept: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors of a file that is, byte for byte, what was written.

    Raises:
        ValueError: for one that is not.
    """
    if record(path)["sha256"] != kept["sha256"]:
        raise ValueError(f"{path.name} has another checksum")
    # copies: a file's tensors stand at any address, and the last bits of a matrix product may depend on that
    return {name: tensor.clone() for name, tensor in load_file(path).items()}


def write_tensors(path: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Write a safetensors file; every tensor is a copy of its own, so that tied ones stand there under every name.

    Returns:
        Its :func:`record`.
    """
    seen: set[int] = set()
    plain: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        alone = tensor.detach().cpu().contiguous()
        key = alone.untyped_storage().data_ptr()
        plain[name] = alone.clone() if key in seen else alone
        seen.add(key)
    try:
        save_file(plain, path)
    except SafetensorError as error:  # it reports a full disk in its own way
        raise OSError(0, first_line(error)) from error
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    return record(path)


def write(path: Path, content: bytes) -> None:
    """Write a file and see it on the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _digest(file: BinaryIO, size: int) -> str:
    made = hashlib.sha256()
    while size > 0 and (block := file.read(min(size, 1 << 20))):
        made.update(block)
        size -= len(block)
    return made.hexdigest()
