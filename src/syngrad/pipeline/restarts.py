"""What a launcher and its workers tell each other, so that one that is killed is started again alone.

The launcher says in a file how often it has started workers again. Each worker says in one of its own that it could go
on without being started anew, whichever other is lost: from when there is a checkpoint until the run is about to end.
Where all have said so, a launcher starts only the one that was killed; otherwise, all of them.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from syngrad.links.world import world

#: the folder of these files, named by a launcher that can start one worker alone
FOLDER = "SYNGRAD_RESTARTS"
#: set in a worker that was started again alone
ALONE = "SYNGRAD_ALONE"
_STARTS, _READY, _INTERRUPTED = "starts", "ready", "interrupted"
#: seconds after an interrupt for which workers that meet wait for each other: one may have ended by it
MEET_S = 0.5


class UnmetError(KeyboardInterrupt):
    """The run is interrupted while a worker is away: what the others hold cannot be brought together to be saved."""


def folder() -> Path | None:
    """Where they tell each other; None where the launcher would start all of them again."""
    path = os.environ.get(FOLDER)
    return Path(path) if path else None


def started_alone() -> bool:
    """Whether this worker was started again while the others live on."""
    return folder() is not None and os.environ.get(ALONE) == "1"


def starts() -> int:
    """How often the launcher has started workers again, as far as it is known."""
    where = folder()
    try:
        return int((where / _STARTS).read_text()) if where is not None else world().attempt
    except (OSError, ValueError):
        return world().attempt


def starts_unless_interrupted() -> int:
    """As often as `starts` says, for workers that wait for each other: not for long after an interrupt.

    Raises:
        UnmetError: once the launcher was interrupted, a while ago.
    """
    where = folder()
    if where is not None:
        with suppress(OSError):
            if time.time() - (where / _INTERRUPTED).stat().st_mtime > MEET_S:
                raise UnmetError
    return starts()


def ready() -> None:
    """From now on this worker can go on with another in the place of one that is lost."""
    if (where := folder()) is not None:
        with suppress(OSError):  # a full disk: then all are started again
            (where / f"{_READY}.{world().rank}").write_text(str(starts()))


def not_ready() -> None:
    """From now on it cannot any more."""
    if (where := folder()) is not None:
        with suppress(OSError):
            (where / f"{_READY}.{world().rank}").unlink()


def expected() -> bool:
    """Whether the launcher will start one that is lost again alone: all are ready, and it may start any again."""
    where, most = folder(), os.environ.get("TORCHELASTIC_MAX_RESTARTS", "")
    return where is not None and all_ready(where, world().size) and most.isdecimal() and starts() < int(most)


def all_ready(where: Path, workers: int) -> bool:
    """For the launcher: whether one of them can be started again alone."""
    return all((where / f"{_READY}.{rank}").exists() for rank in range(workers))


def is_back(where: Path, rank: int, count: int) -> bool:
    """For the launcher: whether the worker that was started again alone for the `count`-th time has met the others."""
    try:
        return int((where / f"{_READY}.{rank}").read_text()) >= count
    except (OSError, ValueError):
        return False


def tell(where: Path, count: int) -> bool:
    """For the launcher: workers are started again, for the `count`-th time; whether they will know, on a full disk."""
    try:
        (where / f"{_STARTS}.new").write_text(str(count))
        os.replace(where / f"{_STARTS}.new", where / _STARTS)
    except OSError:
        return False
    return True


def interrupted(where: Path | None) -> None:
    """For the launcher: it was interrupted. None for one that starts none alone."""
    if where is not None:
        with suppress(OSError):
            (where / _INTERRUPTED).touch()


def all_anew(where: Path | None, count: int) -> None:
    """For the launcher: all are started, and what they have said is over. None for one that starts none alone."""
    if where is None:
        return
    for said in where.glob(f"{_READY}.*"):
        said.unlink()
    tell(where, count)
