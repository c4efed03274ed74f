"""Whoever starts the processes is killed: they end too, wherever in training they are."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tests._support.faulty_launch import command, environment, pids, program
from tests._support.worker_programs import await_, lives

pytestmark = pytest.mark.distributed

LAUNCHER = "import sys; from syngrad.launch.launcher import launch; launch(sys.argv[1:], 2)"
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts", "3"]


@pytest.mark.parametrize("launcher", ["launch", "torchrun"])
def test_a_killed_launcher_leaves_nobody(launcher: str, tmp_path: Path) -> None:
    # the last process says that it trains, and then takes its time
    faults = [{"rank": 1, "what": what, "at": 3, "module": "9", "amount": 600.0} for what in ("note", "sleep")]
    spec = {"options": {"place": [2, 2]}, "faults": faults}
    own = ["-c", LAUNCHER, *command(tmp_path, spec)] if launcher == "launch" else [*TORCHRUN, *program(tmp_path, spec)]
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    with subprocess.Popen(
        [sys.executable, *own],
        env={**os.environ, **environment(), "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)},
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            await_((tmp_path / "ready").exists)
            assert [lives(pid) for pid in pids(tmp_path)] == [True, True]
        finally:
            process.kill()
    for pid in pids(tmp_path):
        await_(lambda pid=pid: not lives(pid))


#: a worker whose launcher is killed before it has imported anything
EARLY = """
import os, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
(folder / f"pid.{os.environ['RANK']}").write_text(str(os.getpid()))
while not (folder / "go on").exists():
    time.sleep(0.01)
from tests._support.worker_runs import run
run({})
"""


def test_workers_whose_launcher_died_while_they_were_starting_end(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(EARLY)
    own = ["-m", "torch.distributed.run", "--nproc-per-node", "2", str(script), str(tmp_path)]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        own[2:2] = ["--master-port", str(probe.getsockname()[1])]
    with subprocess.Popen(
        [sys.executable, *own],
        env={**os.environ, **environment(), "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)},
        stderr=subprocess.DEVNULL,
    ) as process:
        files = [tmp_path / f"pid.{rank}" for rank in range(2)]
        try:
            await_(lambda: all(file.exists() and file.read_text() for file in files))
        finally:
            process.kill()
    (tmp_path / "go on").touch()
    for file in files:
        await_(lambda file=file: not lives(int(file.read_text())))
