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
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from syngrad.data.download import megabytes
from syngrad.data.storage import SourceError, storing
from syngrad.errors import first_line

SPARE_BYTES = 64_000_000
"""How much an archive may have besides what is taken from it."""
CHUNK_BYTES = 1 << 20
# What tarfile, zipfile, gzip and zlib raise on bytes that are not theirs, or not whole.
_FORMAT = (tarfile.TarError, zipfile.BadZipFile, zlib.error, struct.error, EOFError)
_DAMAGE = (*_FORMAT, OSError, ValueError, OverflowError, NotImplementedError)

_Member = tuple[str, int, Callable[[], IO[bytes] | None]]
"""A file of an archive: its path there, its size, and how to open it."""


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
    name, taken = archive.name, set[str]()
    try:
        with archive.open("rb") as file:
            for path, size, unpacked in _members(file, name, sum(wanted.values()) + SPARE_BYTES):
                base = PurePosixPath(path).name
                if base not in wanted:
                    continue
                if base in taken:
                    raise SourceError(f"{name} has {base} twice; it is not what it should be")
                if size > wanted[base]:
                    most = megabytes(wanted[base])
                    raise SourceError(f"{name} has a {base} of {megabytes(size)}, more than the {most} it can have")
                taken.add(base)
                source = unpacked()
                if source is not None:
                    with source:
                        _copy(name, source, into / base, size)
    except _DAMAGE as error:
        raise SourceError(f"{name} is damaged: it does not unpack ({first_line(error)})") from error


def _members(file: IO[bytes], name: str, most: int) -> Iterator[_Member]:
    """The files of an archive, in its order; `most` bytes are unpacked of a tar, whatever there is in it."""
    magic = file.read(4)
    file.seek(0)
    if magic == b"PK\x03\x04":
        with zipfile.ZipFile(file) as archive:
            for entry in archive.infolist():
                if not entry.is_dir():
                    yield entry.filename, entry.file_size, partial(_open_zipped, archive, entry, name)
        return
    unpacked = gzip.GzipFile(fileobj=file) if magic[:2] == b"\x1f\x8b" else file
    bounded = _Bounded(unpacked, most, name)
    with unpacked, tarfile.open(fileobj=bounded, mode="r|") as tar:  # type: ignore[call-overload]  # it only reads
        for member in tar:
            if member.isreg():
                yield member.name, member.size, partial(tar.extractfile, member)


def _open_zipped(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str) -> IO[bytes]:
    if entry.flag_bits & 1 or entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        base = PurePosixPath(entry.filename).name
        raise SourceError(f"{name} has {base} encrypted or packed in a way that is not read")
    return archive.open(entry)


def _copy(archive: str, source: IO[bytes], target: Path, size: int) -> None:
    """`size` bytes and no more, whatever the compressed stream would still give."""
    with storing(target), target.open("wb") as file:
        while size > 0:
            try:  # here, so that the archive's damage is told apart from the disk's
                chunk = source.read(min(CHUNK_BYTES, size))
            except _DAMAGE as error:
                raise SourceError(f"{archive} is damaged: it does not unpack ({first_line(error)})") from error
            if not chunk:
                raise SourceError(f"{archive} is damaged: {target.name} ends early")
            file.write(chunk)
            size -= len(chunk)


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
