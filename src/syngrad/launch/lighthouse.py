"""torchft's lighthouse in a process of its own, for as long as a launch lasts: the place where replicas meet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from syngrad.errors import LinkError
from syngrad.replicas.native_library import ended, started

#: milliseconds for which those that have come wait for others that live
JOIN_MS = 30_000
#: milliseconds without a sign of life after which a replica counts as dead
DEAD_MS = 5_000

_PROGRAM = """
found = torchft.LighthouseServer(
    bind=sys.argv[2], min_replicas=1, join_timeout_ms=int(sys.argv[3]), heartbeat_timeout_ms=int(sys.argv[4])
)
print(found.address(), flush=True)
sys.stdin.read()
os._exit(0)
"""


@contextmanager
def lighthouse(host: str, *, join_ms: int = JOIN_MS, dead_ms: int = DEAD_MS) -> Iterator[str]:
    """Inside it there is one; its address, as in "http://127.0.0.1:29510". It ends when this process does.

    Args:
        host: this host's address, as the replicas reach it; nobody else is listened to.
        join_ms: as JOIN_MS.
        dead_ms: as DEAD_MS.

    Raises:
        ConfigError: where torchft is not installed.
        LinkError: where the lighthouse does not start.
    """
    running = started(_PROGRAM, f"{host}:0", str(join_ms), str(dead_ms))
    assert running.stdout is not None
    try:
        said = running.stdout.readline().decode().strip()
        port = said.rpartition(":")[2]
        if not port.isdecimal():
            raise LinkError(f"torchft's lighthouse does not start at {host} (it says {said!r:.80})")
        yield f"http://{host}:{port}"
    finally:
        ended(running)
