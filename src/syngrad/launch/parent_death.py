"""This process among the others, and its bond to the launcher that started it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from syngrad.links.world import World, world

__all__ = ["LAUNCHER", "World", "die_with_launcher", "die_with_parent", "world"]

#: the environment variable in which Syngrad's launcher tells its workers its own process id
LAUNCHER = "SYNGRAD_LAUNCHER"

_PR_SET_PDEATHSIG = 1


def die_with_launcher() -> None:
    """The same as :func:`die_with_parent` for a process that torchrun has started; any other is left alone.

    torchrun itself, when it is killed, leaves its workers to themselves.
    """
    if os.environ.get("TORCHELASTIC_RUN_ID"):
        die_with_parent()


def die_with_parent() -> None:
    """From now on the kernel kills this process when the one that started it ends, however it ends.

    Where that, or the launcher that :data:`LAUNCHER` names, has ended already, this process ends here. Only Linux can;
    elsewhere this does nothing. The kernel watches the parent's *thread* that started this process.
    """
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"the parent's death cannot be watched: {os.strerror(number)}")
    # it may have ended before the kernel was told to watch it: then no signal will come
    launcher = os.environ.get(LAUNCHER, "")
    if os.getppid() != parent or (launcher.isdecimal() and not _lives(int(launcher))):
        os.kill(os.getpid(), signal.SIGKILL)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
