"""One fetch at a time in a cache folder: two that wrote the same files would spoil each other's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from syngrad.data.faults import storing
from syngrad.data.watch import Watch

try:
    import fcntl
except ImportError:  # not a POSIX system: there the folder is not locked
    fcntl = None  # type: ignore[assignment]


@contextmanager
def alone(folder: Path, watch: Watch) -> Iterator[None]:
    """Hold the folder, after waiting for another process that holds it; a process that ends lets go of it.

    The lock is on the folder itself and leaves no file. Where the file system has none, as some network ones, that is
    said.
    """
    if fcntl is None:
        yield
        return
    with storing(folder):
        handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            watch.note(f"another fetch is under way in {folder}; waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            watch.note(f"{folder} cannot be locked ({error.strerror}); fetch there from one process at a time")
        yield
    finally:
        os.close(handle)
