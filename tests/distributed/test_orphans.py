"""Whoever starts the processes is killed: they end too, wherever in training they are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.distributed.faults import command, environment, pids, program
from tests.distributed.scripts import await_, lives

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
