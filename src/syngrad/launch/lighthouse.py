"""torchft's lighthouse in a process of its own, for as long as a launch lasts: the place where replicas meet.

In a process of its own since it logs every look for a quorum to standard error, whatever one tells it. That process
loads torchft's own library alone, without PyTorch, so that it is there at once; it ends when this one does.
"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from syngrad.errors import ConfigError, LinkError
from syngrad.replicas.membership import INSTALL

#: milliseconds for which those that have come wait for others that live
JOIN_MS = 30_000
#: milliseconds without a sign of life after which a replica counts as dead
DEAD_MS = 5_000
#: seconds that it may take to end
ENDED_S = 5.0

_PROGRAM = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("_torchft", sys.argv[1])
library = importlib.util.module_from_spec(spec)
spec.loader.exec_module(library)
found = library.LighthouseServer(
    bind=sys.argv[2], min_replicas=1, join_timeout_ms=int(sys.argv[3]), heartbeat_timeout_ms=int(sys.argv[4])
)
print(found.address(), flush=True)
sys.stdin.read()
"""


@contextmanager
def lighthouse(host: str, *, join_ms: int = JOIN_MS, dead_ms: int = DEAD_MS) -> Iterator[str]:
    """Inside it there is one; its address, as in "http://127.0.0.1:29510".

    Args:
        host: this host's address, as the replicas reach it; nobody else is listened to.
        join_ms: as JOIN_MS.
        dead_ms: as DEAD_MS.

    Raises:
        ConfigError: where torchft is not installed.
        LinkError: where the lighthouse does not start.
    """
    command = [sys.executable, "-S", "-c", _PROGRAM, str(_library()), f"{host}:0", str(join_ms), str(dead_ms)]
    running = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )
    assert running.stdin is not None
    assert running.stdout is not None
    try:
        said = running.stdout.readline().decode().strip()
        port = said.rpartition(":")[2]
        if not port.isdecimal():
            raise LinkError(f"torchft's lighthouse does not start at {host} (it says {said!r:.80})")
        yield f"http://{host}:{port}"
    finally:
        running.stdin.close()
        try:
            running.wait(ENDED_S)
        except subprocess.TimeoutExpired:
            running.kill()
            running.wait()
        running.stdout.close()


def _library() -> Path:
    found = importlib.util.find_spec("torchft")
    places = found.submodule_search_locations if found is not None else None
    for place in places or ():
        for path in sorted(Path(place).glob("_torchft*.so")):
            return path
    raise ConfigError(INSTALL)
