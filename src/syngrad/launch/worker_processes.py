"""What a launcher holds while a launch lasts: its worker processes, and the folder of files that they leave.

The processes are asked to end first, and killed when they have had time enough. The folder goes with the launch; one
whose launcher was killed is removed by the next.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from syngrad.errors import SyngradError

#: seconds until a process that was killed is gone
KILLED_S = 5.0
#: what the folders of launches are called
PREFIX = "syngrad-launch-"
#: seconds for which a folder that nobody holds may be one that is just being made
YOUNG_S = 60.0


class LaunchTimeoutError(SyngradError):
    """A launch has taken longer than it may."""


class WorkerProcesses:
    """Child processes that each lead a process group of their own, by process id."""

    def __init__(self) -> None:
        self._pids: list[int] = []
        self._timer: threading.Timer | None = None

    def started(self, pids: Iterable[int]) -> None:
        """These are the workers now."""
        self._pids = list(pids)

    def ended(self) -> dict[int, int]:
        """The exit codes of those that have ended and have not been collected, by process id; −9 for signal 9."""
        found = {}
        for pid in self._pids:
            try:
                state = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                continue
            if state is not None:
                found[pid] = state.si_status if state.si_code == os.CLD_EXITED else -state.si_status
        return found

    def settle(self, most_s: float) -> dict[int, int]:
        """Where one has failed, give the others time to end by themselves and say why. What :meth:`ended` says then."""
        deadline = time.monotonic() + most_s
        while True:
            ended = self.ended()
            if not any(ended.values()) or len(ended) == len(self._pids) or time.monotonic() > deadline:
                return ended
            time.sleep(0.01)

    def kill_in(self, seconds: float) -> None:
        """Kill what is left then; a shorter time that was given before stands."""
        if self._timer is None:
            self._timer = threading.Timer(seconds, self.kill)
            self._timer.daemon = True
            self._timer.start()

    def spare(self) -> None:
        """Take :meth:`kill_in` back."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()
            self._timer = None

    def terminate(self, pid: int) -> None:
        """Ask one of them to end."""
        if self._runs(pid):
            os.kill(pid, signal.SIGTERM)

    def hand_on(self, number: int) -> None:
        """Send a signal to all of them."""
        for pid in self._pids:
            if self._runs(pid):
                os.kill(pid, number)

    def kill(self) -> None:
        """Kill them all, and what they have started in their groups."""
        for pid in self._pids:
            if self._runs(pid):
                os.killpg(pid, signal.SIGKILL)

    def end(self) -> None:
        """Kill those that are left, and collect them."""
        self.spare()
        self.kill()
        deadline = time.monotonic() + KILLED_S
        while any(self._runs(pid) for pid in self._pids) and time.monotonic() < deadline:
            time.sleep(0.005)
        for pid in self.ended():
            os.waitpid(pid, os.WNOHANG)

    @staticmethod
    def _runs(pid: int) -> bool:
        """Whether it is a child that has not ended: after that its number may be another process's."""
        try:
            return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
        except ChildProcessError:
            return False


@contextmanager
def scratch() -> Iterator[Path]:
    """A new folder for the time of one launch, held by a lock that ends with this process, and removed at the end."""
    _sweep()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _sweep() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue  # another user's, or gone by now
        try:
            if os.fstat(lock).st_uid == os.getuid() and time.time() - os.fstat(lock).st_mtime > YOUNG_S:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:
            continue  # held: its launcher lives
        finally:
            os.close(lock)
