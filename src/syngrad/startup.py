"""What a command does before anything else is imported: Ctrl-C while PyTorch loads, and closed standard streams.

PyTorch takes seconds to import, and Ctrl-C meanwhile would end in a trace: no code of the command line runs yet. A
stream that was closed leaves its number to the next file that is opened, a results file perhaps, into which everything
printed would then go. The garbage collector is put off meanwhile: it would search a million new objects over and over,
none of which is garbage.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

#: exit code after Ctrl-C
INTERRUPTED = 130
#: seconds within which several signals are one: terminals, launchers and schedulers may each send theirs
TOGETHER_S = 0.5
#: what asks a run to end: Ctrl-C, and what systems and schedulers send beforehand
SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGUSR1") if hasattr(signal, name)
)


def _is_command() -> bool:
    """Whether this process is `syngrad` or `python -m syngrad`, and no program that imports it."""
    name = os.path.basename(sys.argv[0]) if sys.argv else ""
    module = sys.orig_argv[sys.orig_argv.index("-m") + 1 :][:1] if "-m" in sys.orig_argv else []
    return name in ("syngrad", "syngrad.exe") or (name == "-m" and module == ["syngrad"])


#: said once, while the program starts: later its arguments may have been changed
command = False
_asked = 0.0


def begin() -> None:
    """What is done before the first import; again in a process that is forked to become another program."""
    global command
    command = _is_command()
    if not command:
        return
    # torch prints a trace of its own for every connection that is lost; ours is the line that says which
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the smallest number that is free
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # ignored under nohup, and stays so
        signal.signal(signal.SIGINT, _end)


@contextmanager
def uncollected() -> Iterator[None]:
    """Inside it the garbage collector rests."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def imported() -> None:
    """From here on Ctrl-C is an error that the command line handles, and two at once are one."""
    keep()
    if command and signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, _interrupt)


def keep() -> None:
    """What has been imported stays: the collector no longer looks at it, neither in training nor at the end.

    For processes that are Syngrad's own: in another's program this would keep what is garbage by now for ever.
    """
    gc.freeze()


def ending_by_signal() -> None:
    """The command ends because it was asked to: who asks again changes nothing, least of all its last line."""
    if command:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def handled(number: int) -> bool:
    """Whether a run that can be saved takes this signal over: not one that is ignored, as under nohup.

    SIGUSR1 asks programs for many things: only where it would end this one.
    """
    handler = signal.getsignal(number)
    if handler in (None, signal.SIG_IGN):  # None: whoever started this process handles it outside Python
        return False
    return number != getattr(signal, "SIGUSR1", None) or (handler is signal.SIG_DFL and not _caught(number))


def _caught(number: int) -> bool:
    """Whether this process has a handler that Python does not know of, such as faulthandler's; on Linux."""
    status = "/proc/self/status"
    if not os.path.exists(status):
        return False
    with open(status, encoding="ascii", errors="replace") as file:
        masks = [int(line.split()[1], 16) for line in file if line.startswith("SigCgt:")]
    return any(mask >> (number - 1) & 1 for mask in masks)


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(INTERRUPTED)


def _interrupt(number: int, frame: FrameType | None) -> None:
    global _asked
    before, _asked = _asked, time.monotonic()
    if _asked - before > TOGETHER_S:
        raise KeyboardInterrupt


begin()
