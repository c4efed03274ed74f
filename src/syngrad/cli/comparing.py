"""What both comparisons share, in one process and over several: their files, and how they end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from syngrad.cli.common import INTERRUPTED
from syngrad.errors import ConfigError


class Compared(Protocol):
    """A comparison; `rows` holds what is finished, whatever ends it."""

    rows: list[Any]
    observer: Any

    def run(self) -> Any:
        """All of its rows."""


def check_files(options: Mapping[str, Any], names: Sequence[str]) -> None:
    """Refuse at once a file that cannot be written, and one that two of these options name."""
    from syngrad import results

    files = [(name, results.check_writable(options[name])) for name in names if options[name] is not None]
    for k, (name, file) in enumerate(files):
        if same := next((other for other, one in files[:k] if one == file), None):
            raise ConfigError(f"--{same} and --{name} both name {options[name]!r}; give each a file of its own")


def finish(comparison: Compared, progress: bool | None, publish: Callable[[], None]) -> int:
    """Run it, and publish what is finished, also where it is interrupted or a row fails: that is not lost."""
    from syngrad.report.progress import shown

    interrupted, failure = False, None
    with shown(progress) as comparison.observer:
        try:
            comparison.run()
        except KeyboardInterrupt:
            interrupted = True
        except (Exception, SystemExit) as error:
            failure = error
    if interrupted:
        print(f"interrupted; finished rows: {len(comparison.rows)}", file=sys.stderr)
    if any(row.ok for row in comparison.rows) or (interrupted and comparison.rows):
        publish()
    if failure is not None:
        raise failure
    return INTERRUPTED if interrupted else 0
