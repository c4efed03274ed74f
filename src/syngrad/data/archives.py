"""Files out of an archive that nobody vouches for.

Only files whose *last* name is expected are taken, to that name in one folder: whatever else a path in the archive
says, where it leads, and what links and devices there are, does not matter. A file may not be larger than it can be,
nor may the whole archive unpack to much more than what is expected of it.
"""

from __future__ import annotations

import gzip
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from syngrad.data.faults import SourceError, storing
from syngrad.data.watch import megabytes
from syngrad.errors import first_line

SPARE_BYTES = 64_000_000
"""How much an archive may have besides what is taken from it."""
CHUNK_BYTES = 1 << 20
# What tarfile, zipfile, gzip and zlib raise on bytes that are not theirs, or not whole.
_DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    struct.error,
    EOFError,
    OSError,
    ValueError,
    OverflowError,
    NotImplementedError,
)


class _Readable(Protocol):
    def read(self, count: int, /) -> bytes: ...


def take(archive: Path, wanted: Mapping[str, int], into: Path) -> None:
    """Unpack the files that are wanted.

    Args:
        archive: tar, gzip'd or not, or zip; told by its bytes.
        wanted: the names, each with the most bytes it may have.
        into: a folder that is there.

    Raises:
        SourceError: the archive is damaged, has a file twice or too large, or unpacks to too much. A file that it
            does not have is for the reader to miss.
        StorageError: a file cannot be written.
    """
    try:
        with archive.open("rb") as file:
            magic = file.read(4)
            file.seek(0)
            if magic == b"PK\x03\x04":
                _take_zip(file, archive.name, wanted, into)
            elif magic[:2] == b"\x1f\x8b":
                with gzip.GzipFile(fileobj=file) as unpacked:
                    _take_tar(unpacked, archive.name, wanted, into)
            else:
                _take_tar(file, archive.name, wanted, into)
    except _DAMAGE as error:
        raise SourceError(f"{archive.name} is damaged: it does not unpack ({first_line(error)})") from error


def _take_tar(stream: _Readable, name: str, wanted: Mapping[str, int], into: Path) -> None:
    bounded = _Bounded(stream, sum(wanted.values()) + SPARE_BYTES, name)
    taken: set[str] = set()
    with tarfile.open(fileobj=bounded, mode="r|") as tar:  # type: ignore[call-overload]  # it only reads
        for member in tar:
            base = PurePosixPath(member.name).name
            if member.isreg() and base in wanted:
                _check(name, base, member.size, wanted[base], taken)
                source = tar.extractfile(member)
                if source is not None:
                    _copy(name, source, into / base, member.size)


def _take_zip(file: IO[bytes], name: str, wanted: Mapping[str, int], into: Path) -> None:
    taken: set[str] = set()
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            base = PurePosixPath(member.filename).name
            if not member.is_dir() and base in wanted:
                _check(name, base, member.file_size, wanted[base], taken)
                if member.flag_bits & 1 or member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise SourceError(f"{name} has {base} encrypted or packed in a way that is not read")
                with archive.open(member) as source:
                    _copy(name, source, into / base, member.file_size)


def _check(archive: str, base: str, size: int, most: int, taken: set[str]) -> None:
    if base in taken:
        raise SourceError(f"{archive} has {base} twice; it is not what it should be")
    if size > most:
        raise SourceError(f"{archive} has a {base} of {megabytes(size)}, more than the {megabytes(most)} it can have")
    taken.add(base)


def _copy(archive: str, source: IO[bytes], target: Path, size: int) -> None:
    """`size` bytes and no more, whatever the compressed stream would still give."""
    with storing(target), target.open("wb") as file:
        while size > 0:
            chunk = _read(archive, source, min(CHUNK_BYTES, size))
            if not chunk:
                raise SourceError(f"{archive} is damaged: {target.name} ends early")
            file.write(chunk)
            size -= len(chunk)


def _read(archive: str, source: IO[bytes], count: int) -> bytes:
    """What the archive gives; its damage told apart from a disk's."""
    try:
        return source.read(count)
    except _DAMAGE as error:
        raise SourceError(f"{archive} is damaged: it does not unpack ({first_line(error)})") from error


class _Bounded:
    """A stream that refuses to give more than so many bytes: a small archive can unpack to any amount."""

    def __init__(self, stream: _Readable, most: int, name: str) -> None:
        self._stream, self._left, self._name = stream, most, name

    def read(self, count: int) -> bytes:
        content = self._stream.read(min(count, self._left + 1))
        self._left -= len(content)
        if self._left < 0:
            raise SourceError(f"{self._name} unpacks to far more than the set is")
        return content
