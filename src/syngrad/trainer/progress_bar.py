"""The bar that a terminal shows while a run trains."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from syngrad.checks import is_terminal

#: called once a minibatch with the text that its bar shows
Advance = Callable[[str], None]


@contextmanager
def bar(total: int | None, show: bool | None) -> Iterator[Advance]:
    """A bar over `total` minibatches; `show` None for "when standard error is a terminal"."""
    if not (is_terminal(sys.stderr) if show is None else show):
        yield lambda text: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("training", total=total)
        yield lambda text: progress.update(task, advance=1, description=text)
