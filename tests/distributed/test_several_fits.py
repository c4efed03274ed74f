"""A script that fits several times: no fit is refused for another one's error, or meets a store that is closing."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.distributed

SCRIPT = """
import os, time, torch, torch.nn.functional as F
from torch import nn
import syngrad
torch.set_num_threads(1)
x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0)); y = x[:, :4].argmax(1)
def fit(loader, **more):
    torch.manual_seed(0)
    net = syngrad.decouple(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), cuts=["2"])
    options = syngrad.Distributed(timeout_s=20)
    try:
        made = syngrad.Trainer(net, loss=F.cross_entropy, progress=False, distributed=options, **more)
        return f"trained on {made.fit(loader).epochs[0].samples}"
    except syngrad.SyngradError as error:
        return type(error).__name__
good = [(x, y)]
print(fit(good))
print(fit([]))
print(fit(good))
print(fit(good, clip_norm=1.0, clip_scope="model"))
for k in range(6):
    print(fit(good))
    if os.environ["RANK"] == "0":
        time.sleep(0.05)  # a report, say, while the other begins the next
"""


def test_by_hand_started_processes_meet_at_every_fit(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            env={**os.environ, **place, "RANK": str(rank), "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=90) for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert [process.returncode for process in processes] == [0, 0], outputs
    trained = "trained on 64"
    for rank, (said, _) in enumerate(outputs):
        refused = "TrainingError" if rank == 0 else "ConfigError"  # what the others are told
        assert said.splitlines() == [trained, refused, trained, "ConfigError", *[trained] * 6]
