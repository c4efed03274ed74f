"""torchrun itself, as a user types it: processes meet, and meet again after it has restarted them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.distributed

MEETING = """
import os, signal, sys, time
from syngrad.launch.parent_death import die_with_parent
from syngrad.links.world import world
die_with_parent()
from syngrad.errors import LinkError
from syngrad.links.rendezvous import Rendezvous
from syngrad.pipeline.failures import report_failure
place, first = world(), os.path.join(sys.argv[1], "first")
rendezvous = Rendezvous.join(60)
neighbour = 1 - place.rank
if not os.path.exists(first):
    if place.rank == 1:
        rendezvous.post("address 1", "stale")
        rendezvous.wait("seen", 60, "rank 0")
        open(first, "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
    assert rendezvous.wait("address 1", 60, "rank 1") == "stale"
    rendezvous.post("seen", True)
    if sys.argv[2] == "notices":
        while not os.path.exists(first):
            time.sleep(0.01)
        report_failure(LinkError("rank 1 is gone"))
        sys.exit(1)
    time.sleep(600)
rendezvous.post(f"address {place.rank}", f"fresh {place.rank}")
assert rendezvous.wait(f"address {neighbour}", 60, f"rank {neighbour}") == f"fresh {neighbour}"
with open(os.path.join(sys.argv[1], f"well {place.rank}"), "w") as file:
    file.write(f"{place.attempt} {rendezvous.own_address()}")
rendezvous.close()
"""


def torchrun(folder: Path, word: str, *arguments: str) -> subprocess.Popen[str]:
    """word: whether rank 0 "notices" that rank 1 is gone, or "sleeps"."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path), "TMPDIR": str(folder)}
    script = folder / "script.py"
    script.write_text(MEETING)
    command = [sys.executable, "-m", "torch.distributed.run", "--max-restarts", "2", "--monitor-interval", "0.1"]
    return subprocess.Popen(
        [*command, *arguments, str(script), str(folder), word],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*processes: subprocess.Popen[str]) -> None:
    try:
        output = "\n".join(process.communicate(timeout=100)[0] for process in processes)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert [process.returncode for process in processes] == [0] * len(processes), output


def test_processes_meet_again_after_a_restart(tmp_path: Path) -> None:
    finish(torchrun(tmp_path, "notices", "--standalone", "--nproc-per-node", "2"))
    for rank in range(2):
        assert (tmp_path / f"well {rank}").read_text() == "1 127.0.0.1"


def test_launchers_that_count_attempts_apart_meet_again(tmp_path: Path) -> None:
    """Of two launchers the one whose worker is lost counts an attempt; the other only sees that it comes again."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    where = ("--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-id", "run")
    endpoint = ("--rdzv-endpoint", f"127.0.0.1:{port}", "--local-addr", "127.0.0.1")
    finish(*[torchrun(tmp_path, "sleeps", *where, *endpoint) for _ in range(2)])
    attempts = sorted((tmp_path / f"well {rank}").read_text().split()[0] for rank in range(2))
    assert attempts == ["0", "1"]
