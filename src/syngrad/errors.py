"""The one error class of Syngrad, and its few kinds.

Everything a user can get wrong ends in a :class:`SyngradError` whose message is one line: what was given, why it does
not do, and what to type instead. The command line prints that line and exits with code 2; a library user may catch the
base class alone. What does not stop a run is a :class:`TrainingWarning`, one line as well.
"""

from __future__ import annotations

import difflib
import re
import sys
import warnings
from collections.abc import Iterable

#: what changes how a terminal shows the text that follows: colours, the cursor, the window's title
_TERMINAL = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\-_])|\x9b[0-?]*[ -/]*[@-~]")
#: what stands in front of the trace that PyTorch puts into an error of a process or thread of its own
_TRACE = "Traceback (most recent call last):\n"
#: what stands in front of the place in PyTorch's own code, and of its frames
_RAISED_FROM = "Exception raised from "


class SyngradError(Exception):
    """Base of every error Syngrad raises on purpose."""


class ConfigError(SyngradError):
    """An option, a name or a number that cannot be used."""


class CutError(SyngradError):
    """A model that cannot be cut where it was asked to be."""


class MessageError(SyngradError):
    """What crosses an interface is not what the interface was bound to."""


class TrainingError(SyngradError):
    """The model, the loss or the data failed while training: NaN, an empty loader, a loss that is not a scalar."""


class CheckpointError(SyngradError):
    """A checkpoint that cannot be written, or one that is missing, damaged, foreign, or of another model.

    Attributes:
        damage: which one is damaged, and how, where another may not be.
    """

    damage: str = ""


class LinkError(SyngradError):
    """The other end of a link is gone, silent, foreign, or speaks another language."""


class TrainingWarning(UserWarning):
    """Training goes on, but something should be looked at: an estimate that diverges, an update that was skipped."""


def unknown(kind: str, given: object, valid: Iterable[str]) -> ConfigError:
    """The error for a name that is not known: it lists the valid ones, the nearest first if there is one."""
    names = sorted(valid)
    near = difflib.get_close_matches(str(given), names, n=1)
    hint = f" did you mean {near[0]!r}?" if near else ""
    return ConfigError(f"unknown {kind} {given!r};{hint} valid: {', '.join(names)}")


def warn(message: str) -> None:
    """A TrainingWarning that points at the user's own line: the first frame that is not Syngrad's."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] == "syngrad":
        level, frame = level + 1, frame.f_back
    warnings.warn(message, TrainingWarning, stacklevel=level)


def first_line(error: BaseException) -> str:
    """What an exception says, in one line, for use inside another message."""
    said = str(error).partition(_RAISED_FROM)[0].strip()
    if said.startswith("Caught ") and _TRACE in said:  # the first line tells where, and the trace's end what
        where = said.splitlines()[0].partition(" in ")[2].rstrip(".")
        what = [line for line in said.rpartition(_TRACE)[2].splitlines() if line and not line.startswith(" ")]
        if where and what:
            return f"{what[0].strip()} (in {where})"
    text = said.splitlines()
    return f"{type(error).__name__}: {text[0].strip()}" if text else type(error).__name__


def clean(text: str, most: int = 2000) -> str:
    """What others have written as one line that shows as it is: no terminal codes, no control characters, not endless.

    Args:
        text: from a process, a file or a network, perhaps a hostile one.
        most: characters that are kept.
    """
    shown = _TERMINAL.sub("", text[: 4 * most]).partition(_RAISED_FROM)[0]
    line = " ".join("".join(each if each.isprintable() else " " for each in shown).split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def short(error: BaseException, most: int = 80) -> str:
    """:func:`first_line` where that is short, and otherwise the kind of error alone: a sentence cut off says less."""
    text = first_line(error)
    return text if len(text) <= most else type(error).__name__
