"""torchft's lighthouse in a process of its own, for as long as a launch lasts: the place where replicas meet.

It knows nothing that the replicas do not tell it anew, so one that was lost is started again at the same address.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager

from syngrad.errors import LinkError
from syngrad.replicas.native_library import ended, started

#: milliseconds for which those that have come wait for others that live
JOIN_MS = 30_000
#: milliseconds without a sign of life after which a replica counts as dead
DEAD_MS = 5_000
#: seconds between two tries to start it again
AGAIN_S = 1.0

_PROGRAM = """
found = torchft.LighthouseServer(
    bind=sys.argv[2], min_replicas=1, join_timeout_ms=int(sys.argv[3]), heartbeat_timeout_ms=int(sys.argv[4])
)
print(found.address(), flush=True)
sys.stdin.read()
os._exit(0)
"""


class Lighthouse:
    """One at work.

    Args:
        host: this host's address, as the replicas reach it; nobody else is listened to.
        join_ms: as JOIN_MS.
        dead_ms: as DEAD_MS.

    Raises:
        ConfigError: where torchft is not installed.
        LinkError: where it does not start.
    """

    def __init__(self, host: str, join_ms: int = JOIN_MS, dead_ms: int = DEAD_MS) -> None:
        self._host, self._settings = host, (str(join_ms), str(dead_ms))
        self._tried = time.monotonic()
        self._process, self.port = self._started(0)

    def _started(self, port: int) -> tuple[subprocess.Popen[bytes], int]:
        running = started(_PROGRAM, f"{self._host}:{port}", *self._settings)
        assert running.stdout is not None
        said = running.stdout.readline().decode().strip()
        found = said.rpartition(":")[2]
        if not found.isdecimal():
            ended(running)
            raise LinkError(f"torchft's lighthouse does not start at {self._host} (it says {said!r:.80})")
        return running, int(found)

    @property
    def address(self) -> str:
        """As in "http://127.0.0.1:29510"."""
        return f"http://{self._host}:{self.port}"

    @property
    def pid(self) -> int:
        """Of its process."""
        return self._process.pid

    def again(self) -> bool:
        """Start it again if it has ended; whether it was: where its port is taken, it is tried again later."""
        if self._process.poll() is None or time.monotonic() < self._tried + AGAIN_S:
            return False
        self._tried = time.monotonic()
        ended(self._process)
        try:
            self._process, _ = self._started(self.port)
        except LinkError:
            return False
        return True

    def close(self) -> None:
        """End it."""
        ended(self._process)


@contextmanager
def lighthouse(host: str, *, join_ms: int = JOIN_MS, dead_ms: int = DEAD_MS) -> Iterator[Lighthouse]:
    """Inside it there is one; it ends when this process does. See :class:`Lighthouse`."""
    made = Lighthouse(host, join_ms, dead_ms)
    try:
        yield made
    finally:
        made.close()
