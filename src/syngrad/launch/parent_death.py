"""A process's bond to the one that started it: it ends when that one does, however that ends.

Workers, the launchers of several hosts and the forwarder of an emulated link are all bound so. The forwarder runs
without Syngrad, so this file needs nothing but Python.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

#: the environment variable in which Syngrad's launcher tells what it starts its own process id
LAUNCHER = "SYNGRAD_LAUNCHER"

_PR_SET_PDEATHSIG = 1


def die_with_launcher() -> None:
    """Bind a process that torchrun has started to it; any other is left alone.

    torchrun itself, when it is killed, leaves its workers to themselves.
    """
    if os.environ.get("TORCHELASTIC_RUN_ID"):
        die_with_parent()


def die_with_parent(by: signal.Signals = signal.SIGKILL) -> None:
    """From now on the kernel ends this process when the one that started it ends, however it ends.

    Where that, or the launcher that :data:`LAUNCHER` names, has ended already, this process ends here. Only Linux can;
    elsewhere this does nothing. The kernel watches the parent's *thread* that started this process.

    Args:
        by: The signal that the kernel then sends; one that is handled leaves time to tidy up.

    Raises:
        OSError: The kernel refuses.
    """
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, by, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"the parent's death cannot be watched: {os.strerror(number)}")
    # The race: the parent may have ended before the kernel was told to watch it, and then no signal will ever come.
    # Another parent by now means that it ended since the first line. One that ended before it has left us to another
    # already, so only the launcher's own number, which came in the environment, can tell.
    launcher = os.environ.get(LAUNCHER, "")
    if os.getppid() != parent or (launcher.isdecimal() and not lives(int(launcher))):
        os.kill(os.getpid(), by)


def lives(process: int) -> bool:
    """Whether there is a process of that number, anybody's."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
