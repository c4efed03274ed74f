"""How far a comparison is: a bar on a terminal, a line a step of the work elsewhere if that is asked for."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from syngrad.compare import Observer, Silent


class Lines:
    """Plain lines, for a log."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._total, self._done = stream, 0, 0

    def begin(self, total: int) -> None:
        """There will be so many calls of `advance`."""
        self._total = total

    def note(self, text: str) -> None:
        """What is being done."""
        print(f"[{self._done}/{self._total}] {text}", file=self._stream, flush=True)

    def advance(self) -> None:
        """One piece of it is done."""
        self._done += 1


@contextmanager
def shown(show: bool | None) -> Iterator[Observer]:
    """What shows a comparison's progress.

    Args:
        show: True for a bar on a terminal and lines elsewhere, False for nothing, None for a bar on a terminal only.
    """
    terminal = sys.stderr.isatty()
    if show is False or (show is None and not terminal):
        yield Silent()
    elif not terminal:
        yield Lines(sys.stderr)
    else:
        with _bar() as observer:
            yield observer


@contextmanager
def _bar() -> Iterator[Observer]:
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TimeElapsedColumn())
    # A rate of four a second: what the bar costs is a part of what is measured.
    with Progress(*columns, console=Console(stderr=True), transient=True, refresh_per_second=4) as progress:
        task = progress.add_task("starting", total=None)

        class Bar:
            def begin(self, total: int) -> None:
                progress.update(task, total=total)

            def note(self, text: str) -> None:
                progress.update(task, description=escape(text))

            def advance(self) -> None:
                progress.update(task, advance=1)

        yield Bar()
