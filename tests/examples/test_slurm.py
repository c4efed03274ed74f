"""The batch script for SLURM, with stand-ins for `srun` and `scontrol` that start everything here."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torchft")
pytestmark = pytest.mark.distributed

SCRIPT = Path(__file__).parents[2] / "examples" / "slurm" / "replicas.sbatch"
STAND_INS = Path(__file__).parent / "slurm"


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def test_it_trains_to_the_end(tmp_path: Path) -> None:
    """Two nodes, a replica of one process on each; the lighthouse ends with the job."""
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(STAND_INS), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": os.pathsep.join(sys.path),
        "SLURM_JOB_NODELIST": "127.0.0.1,127.0.0.1",
        "SLURM_JOB_NUM_NODES": "2",
        "WORKERS": "1",
        "PORT": str(free_port()),
        "TMPDIR": str(tmp_path),
    }
    words = ["fashion-mlp", "--epochs", "1", "--replicas-every", "5", "--save", str(tmp_path / "run")]
    job = subprocess.Popen(
        ["bash", str(SCRIPT), *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = job.communicate(timeout=120)
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGTERM)
            job.communicate()
    assert job.returncode == 0, said
    assert said.count("epoch 1/1") == 1, said  # the first replica alone says it
    assert (tmp_path / "run" / "run.json").exists()
    with socket.socket() as gone:
        assert gone.connect_ex(("127.0.0.1", int(environment["PORT"]))) != 0
