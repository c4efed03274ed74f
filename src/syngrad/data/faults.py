"""The two ways in which fetching fails that need different answers: a source that fails, and a disk that does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from syngrad.errors import ConfigError, SyngradError, first_line


class SourceError(SyngradError):
    """A source does not give the set, or gives something else: the next one may do better."""


class StorageError(ConfigError):
    """The set cannot be put where it was to go: no other source changes that."""


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
