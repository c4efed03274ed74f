"""A comparison on its way: what is refused before it, who is told how far it is, and how it is ended."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from syngrad.checks import is_terminal
from syngrad.cli.options import complain
from syngrad.errors import ConfigError
from syngrad.startup import INTERRUPTED

if TYPE_CHECKING:
    from syngrad.compare import Observer
    from syngrad.report.measured import Measured
    from syngrad.report.verdict import Verdict


class Compared(Protocol):
    """A comparison; `rows` holds what is finished, whatever ends it."""

    rows: list[Any]
    observer: Any

    def run(self) -> Any:
        """All of its rows."""


def documented(
    comparison: Any, config: Mapping[str, Any], accounts: Any = None, link: str | None = None, first: int = 0
) -> tuple[dict[str, Any], Measured, Verdict]:
    """What is finished of a comparison: the results file's content, the same as the report has it, and the verdict.

    Args:
        comparison: of any kind, ended in any way.
        config: the command's options, as the file and the report keep them.
        accounts: what every worker says of itself, where there are several; link: what is emulated between them.
        first: rows that stand before its own in a page of several parts.
    """
    from syngrad import results
    from syngrad.report.measured import measured
    from syngrad.report.verdict import verdict

    environment = results.environment(comparison.threads)
    if accounts is not None:
        environment |= {"link": link}
    document = results.document(environment, comparison.description, comparison.rows, None, config)
    if accounts is not None:
        document = results.finite(document)
    compared = measured(document, accounts, first)
    said = verdict(compared)
    document["verdict"] = said.to_dict()
    return document, compared, said


def check_files(options: Mapping[str, Any], names: Sequence[str]) -> None:
    """Refuse at once a file that cannot be written, and one that two of these options name."""
    from syngrad import results

    files = [(name, results.check_writable(options[name])) for name in names if options[name] is not None]
    for k, (name, file) in enumerate(files):
        if same := next((other for other, one in files[:k] if one == file), None):
            raise ConfigError(f"--{same} and --{name} both name {options[name]!r}; give each a file of its own")


def finish(comparison: Compared, progress: bool | None, publish: Callable[[], None]) -> int:
    """Run it, and publish what is finished, also where it is interrupted or a row fails: that is not lost."""
    interrupted, failure = False, None
    with shown(progress) as comparison.observer:
        try:
            comparison.run()
        except KeyboardInterrupt:
            interrupted = True
        except (Exception, SystemExit) as error:
            failure = error
    if interrupted:
        complain(f"interrupted; finished rows: {len(comparison.rows)}")
    if any(row.ok for row in comparison.rows) or (interrupted and comparison.rows):
        publish()
    if failure is not None:
        raise failure
    return INTERRUPTED if interrupted else 0


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
    from syngrad.compare import Silent

    terminal = is_terminal(sys.stderr)
    if show is False or sys.stderr is None or (show is None and not terminal):
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
