"""One run at a time saves into a folder: a lock that ends with the process that holds it, however that ends.

It is the operating system's own (a record lock on a small file), so nothing of a killed process is in the way of the
next one, and processes that a loader has forked do not hold it on. Where a file system knows no locks, as some network
ones, there is none.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from syngrad.errors import CheckpointError

try:
    import fcntl
except ImportError:  # no locks on this system
    fcntl = None  # type: ignore[assignment]

NAME = ".syngrad.lock"
#: what a file system says that has no locks
_WITHOUT = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM}
_FLAGS = sum(getattr(os, name, 0) for name in ("O_CLOEXEC", "O_NOFOLLOW"))
_guard = threading.Lock()
#: (process, folder) → how often it is held; a forked process holds nothing of its parent's
_held: dict[tuple[int, str], int] = {}


@contextmanager
def held(root: Path) -> Iterator[None]:
    """Hold a folder, which is made if need be; within one process that is done as often as one likes.

    Raises:
        CheckpointError: where another process holds it, naming that.
        OSError: for a folder that cannot be made or written to.
    """
    root.mkdir(parents=True, exist_ok=True)
    key = os.getpid(), os.path.realpath(root)
    with _guard:
        first = key not in _held
        handle = _take(root) if first else None
        _held[key] = _held.get(key, 0) + 1
    try:
        yield
    finally:
        with _guard:
            _held[key] -= 1
            if not _held[key]:
                del _held[key]
        if handle is not None:
            with suppress(OSError):  # the folder is gone, or may not be written to any more
                os.unlink(root / NAME)
            os.close(handle)


def _take(root: Path) -> int:
    path = root / NAME
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | _FLAGS, 0o666)
        try:
            if not _locked(handle):
                raise CheckpointError(
                    f"{str(root)!r} is being saved into by another run ({_holder(handle)}); name another folder, or "
                    "wait until that one has ended"
                )
            if _still(handle, path):
                os.ftruncate(handle, 0)
                os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)  # the one who held it has just removed the file: once more, with a new one


def _locked(handle: int) -> bool:
    if fcntl is None:
        return True
    try:
        fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        if error.errno not in _WITHOUT:
            raise
    return True


def _still(handle: int, path: Path) -> bool:
    """Whether the file that is locked is the one that others find."""
    try:
        there = os.stat(path)
    except FileNotFoundError:
        return False
    own = os.fstat(handle)
    return (there.st_dev, there.st_ino) == (own.st_dev, own.st_ino)


def _holder(handle: int) -> str:
    said = os.read(handle, 100).decode("utf-8", "replace")
    return said if said.isprintable() and said else "a process that does not say which"
