"""What is asked of a disk, with its refusals in one line, and the two kinds of failure that a fetch tells apart."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from syngrad.errors import ConfigError, SyngradError, first_line

try:
    import fcntl
except ImportError:  # not a POSIX system: there the folder is not locked
    fcntl = None  # type: ignore[assignment]


class SourceError(SyngradError):
    """A source does not give the set, or gives something else: the next one may do better."""


class StorageError(ConfigError):
    """The set cannot be put where it was to go: no other source changes that."""


def read_bytes(path: Path) -> bytes:
    """The whole file, or a ConfigError with what the operating system says."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({first_line(error)})") from error


@contextmanager
def storing(path: Path) -> Iterator[None]:
    """What the operating system says while `path` is written, as a :class:`StorageError` with the remedy."""
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written ({first_line(error)}); nothing that was there is lost: free some space there, "
            "or name another folder with --root"
        ) from error


@contextmanager
def locked(folder: Path, note: Callable[[str], None]) -> Iterator[None]:
    """Hold the folder, after waiting for another process that holds it; a process that ends lets go of it.

    The lock is on the folder itself and leaves no file, as a lock file of the `filelock` package would. Where the file
    system has none, as some network ones, `note` is told.
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
            note(f"another fetch is under way in {folder}; waiting for it")
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
            note(f"{folder} cannot be locked ({error.strerror}); fetch there from one process at a time")
        yield
    finally:
        os.close(handle)
