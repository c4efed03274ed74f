"""What is seen of a fetch: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO


class Watch(Protocol):
    """Told what is done, and how many bytes of it."""

    def note(self, text: str) -> None:
        """Something that stays to be read."""

    def begin(self, what: str, total_bytes: int | None, done_bytes: int = 0) -> None:
        """A transfer begins, or goes on where it stopped; the total is None where the server does not say."""

    def advance(self, count_bytes: int) -> None:
        """So many bytes more."""


class Silent:
    """Nothing is seen."""

    def note(self, text: str) -> None:
        """Say nothing."""

    def begin(self, what: str, total_bytes: int | None, done_bytes: int = 0) -> None:
        """Show nothing."""

    def advance(self, count_bytes: int) -> None:
        """Show nothing."""


class Lines(Silent):
    """A line for each note and each transfer."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def note(self, text: str) -> None:
        """Print it."""
        print(text, file=self._stream, flush=True)

    def begin(self, what: str, total_bytes: int | None, done_bytes: int = 0) -> None:
        """Print what is transferred, and from where on."""
        size = "" if total_bytes is None else f", {megabytes(total_bytes)}"
        self.note(f"{what}{size}" + (f", going on after {megabytes(done_bytes)}" if done_bytes else ""))


def megabytes(count: int) -> str:
    """A size for people."""
    return f"{count / 1e6:,.1f} MB" if count < 10e6 else f"{count / 1e6:,.0f} MB"


@contextmanager
def watching(show: bool | None) -> Iterator[Watch]:
    """show: False for nothing; True and None for a bar where standard error is a terminal and lines elsewhere."""
    if show is False:
        yield Silent()
    elif not sys.stderr.isatty():
        yield Lines(sys.stderr)
    else:
        with _bar() as watch:
            yield watch


@contextmanager
def _bar() -> Iterator[Watch]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None, visible=False)

        class Bar:
            def note(self, text: str) -> None:
                progress.update(task, visible=False)
                progress.console.print(text, markup=False, highlight=False, soft_wrap=True)

            def begin(self, what: str, total_bytes: int | None, done_bytes: int = 0) -> None:
                progress.reset(task, total=total_bytes, completed=done_bytes, visible=True, description=escape(what))

            def advance(self, count_bytes: int) -> None:
                progress.advance(task, count_bytes)

        yield Bar()
