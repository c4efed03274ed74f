"""A progress bar on a terminal, and nothing anywhere else."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Advance(Protocol):
    """Called once a minibatch with what to show."""

    def __call__(self, text: str) -> None:
        """Advance by one and show `text`."""


def _silent(text: str) -> None:
    """No bar."""


@contextmanager
def bar(total: int | None, show: bool | None) -> Iterator[Advance]:
    """A bar over `total` minibatches. show: True, False, or None for "when standard error is a terminal"."""
    if not (sys.stderr.isatty() if show is None else show):
        yield _silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("training", total=total)
        yield lambda text: progress.update(task, advance=1, description=text)
