"""What a worker leaves behind for its launcher: who it is, and why it failed.

A failure is written in the form in which torchrun reads it, so that a run started by torchrun itself shows it too.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from syngrad import errors
from syngrad.errors import LinkError, SyngradError, clean, first_line
from syngrad.links.world import world

#: where the launcher reads who a worker is
WORKER_FILE = "SYNGRAD_WORKER_FILE"
#: where torchrun reads why a worker failed
ERROR_FILE = "TORCHELASTIC_ERROR_FILE"

#: what a reported error begins with that is none of Syngrad's own
UNEXPECTED = "unexpected "
#: an attribute of an error that was reported
_REPORTED = "_syngrad_reported"
#: bytes of either file that are read
MOST = 1 << 20

#: who this worker has said it is
_who = ""


def lasting(error: BaseException) -> bool:
    """Whether a failure would come again after a restart: every error Syngrad raises on purpose, but a lost link."""
    return isinstance(error, SyngradError) and not isinstance(error, LinkError)


def introduce(who: str) -> None:
    """Tell the launcher who this worker is, as in "stages '4' to '8'": it then names it so, whatever ends it."""
    global _who
    _who = " ".join(who.split())
    if path := os.environ.get(WORKER_FILE):
        _write(path, _who)


def introduced() -> str:
    """Who this worker is, as in "rank 1 (stages '4' to '8')", once it has said so; until then, nothing."""
    return f"rank {world().rank} ({_who})" if _who else ""


def report_failure(error: BaseException, for_good: bool | None = None) -> None:
    """Leave a worker's error to the launcher, before it ends with an exit code that is not 0.

    Does nothing where no launcher asks, or where this very error was reported before.

    Args:
        error: Why the worker ends.
        for_good: Whether a restart would not help; :func:`lasting` says so where it is None.
    """
    path = os.environ.get(ERROR_FILE)
    if not path or getattr(error, _REPORTED, False):
        return
    setattr(error, _REPORTED, True)
    line = str(error) if isinstance(error, SyngradError) and str(error).strip() else f"{UNEXPECTED}{first_line(error)}"
    line = " ".join(line.split())
    now = time.time()
    trace = line if isinstance(error, SyngradError) else "".join(traceback.format_exception(error))
    document = {
        "message": {"message": line, "extraInfo": {"py_callstack": trace, "timestamp": str(int(now))}},
        "syngrad": {
            "kind": type(error).__name__,
            "for_good": lasting(error) if for_good is None else for_good,
            "at": now,
        },
    }
    _write(path, json.dumps(document))


def _write(path: str, text: str) -> None:
    """Write a file in one piece, since the worker may be killed meanwhile; or to standard error where that fails."""
    try:
        Path(f"{path}.new").write_text(text, encoding="utf-8")
        os.replace(f"{path}.new", path)
    except OSError as problem:
        if sys.stderr is not None:
            print(f"the launcher cannot be told ({first_line(problem)}): {text}", file=sys.stderr)


@dataclass(frozen=True)
class Failure:
    """How one worker ended, if not well.

    Args:
        rank, who: The worker's number, and what messages call it.
        exit_code: As subprocess gives it: −9 for signal 9; None where it is not known.
        told_to: Whether the launcher itself ended it.
        kind, line, for_good, at: What the worker reported, if it did: the class of its error, that error in one line,
            whether a restart would not help, and when that was, in seconds since 1970.
    """

    rank: int
    who: str
    exit_code: int | None
    told_to: bool = False
    kind: str = ""
    line: str = ""
    for_good: bool = False
    at: float = float("inf")

    def text(self) -> str:
        """One line that names the worker."""
        if self.line:
            return f"{self.who}: {self.line}"
        if self.exit_code is not None and self.exit_code < 0:
            number = -self.exit_code
            try:
                name = f" ({signal.Signals(number).name})"
            except ValueError:
                name = ""
            hint = "; if nobody did that, its machine may be out of memory" if number == signal.SIGKILL else ""
            return f"{self.who} was killed by signal {number}{name}{hint}"
        return f"{self.who} ended with exit code {self.exit_code}, and did not say why"

    def error(self, addition: str = "") -> SyngradError:
        """An error that says it, of the worker's own kind where that is one of Syngrad's."""
        kind: Any = getattr(errors, self.kind, SyngradError)
        known = isinstance(kind, type) and issubclass(kind, SyngradError)
        return (kind if known else SyngradError)(self.text() + addition)

    @property
    def consequence(self) -> bool:
        """Whether it says no more than that another worker is gone, or that the launcher ended it."""
        return self.weight()[0] >= 4

    def weight(self) -> tuple[int, float]:
        """Orders failures, the cause before what it has caused."""
        # An error of its own is a cause; that a neighbour is gone, or that the launcher ended it, is a consequence.
        if self.line and self.for_good:
            return 0, self.at
        if self.line and self.kind != LinkError.__name__:
            return 1, self.at
        if self.exit_code is not None and self.exit_code < 0 and not self.told_to:
            return 2, self.at
        if not self.line and not self.told_to:
            return 3, self.at
        return (4 if self.line else 5), self.at


class WorkersFailedError(Exception):
    """How every worker of a launch ended that did not end well: what stands behind the one error that is raised."""

    def __init__(self, failures: Sequence[Failure]) -> None:
        super().__init__("; ".join(failure.text() for failure in failures))
        self.failures = list(failures)

    def write(self, path: Path) -> None:
        """Leave them to a launcher of several hosts' launchers."""
        path.write_text(json.dumps([asdict(failure) for failure in self.failures]), encoding="utf-8")

    @classmethod
    def read(cls, paths: Iterable[Path]) -> WorkersFailedError:
        """What :meth:`write` has left, as far as there is any."""
        documents = [json.loads(path.read_text(encoding="utf-8")) for path in paths if path.exists()]
        return cls([Failure(**fields) for document in documents for fields in document])


def read_failure(rank: int, error_file: Path, worker_file: Path, exit_code: int | None, told_to: bool) -> Failure:
    """What a worker has left, and how it ended."""
    introduced = _read(worker_file)
    who = f"rank {rank} ({clean(introduced, 400)})" if introduced else f"rank {rank}"
    try:
        document = json.loads(_read(error_file) or "{}")
        said, own = document.get("message", {}), document.get("syngrad", {})
        line = said if isinstance(said, str) else str(said.get("message", ""))
        kind, for_good, at = str(own.get("kind", "")), own.get("for_good") is True, float(own.get("at", "inf"))
    except (ValueError, AttributeError, TypeError, RecursionError):
        line, kind, for_good, at = "it left an error that cannot be read", "", False, float("inf")
    return Failure(rank, who, exit_code, told_to, clean(kind, 80), clean(line), for_good, at)


def cause(failures: Iterable[Failure]) -> Failure | None:
    """The failure that has most likely caused the others."""
    return min(failures, key=Failure.weight, default=None)


def _read(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(MOST).decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
