"""Runs over processes, one after the other, that end well or fail: no thread, port or file of theirs is left open."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from syngrad.launch.launcher import launch

pytestmark = [
    pytest.mark.distributed,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts what /proc shows"),
]

#: after a first round of each, in which PyTorch starts what it keeps, as many again
RUNS = """
import gc, json, os, sys, time, torch
from pathlib import Path
from tests.distributed import cases
from syngrad.errors import SyngradError
from syngrad.launch.parent_death import die_with_parent
from syngrad.links.world import world
torch.set_num_threads(1)
die_with_parent()

def failing():
    yield from cases.batches()[:4]
    raise OSError("the disk is gone")

def use(link):
    cases.trainer(link=link).fit(cases.batches(), epochs=1)
    try:
        cases.trainer(link=link).fit(failing(), epochs=1)
    except (SyngradError, OSError) as error:
        return str(error)

def opened():
    gc.collect()
    names = [os.readlink(entry) for entry in Path("/proc/self/fd").iterdir() if entry.exists()]
    threads = sorted(Path("/proc/self/task", task, "comm").read_text() for task in os.listdir("/proc/self/task"))
    return [threads, sum(name.startswith(("socket", "anon_inode")) for name in names)]

def settled():
    # the system takes a moment to forget a thread that has ended: what the first round leaves is read when it stands
    seen = [opened()]
    while len(seen) < 20 or any(reading != seen[-1] for reading in seen[-20:]):
        time.sleep(0.05)
        seen.append(opened())
    return seen[-1]

said = use(sys.argv[2])
before = settled()
for _ in range(2):
    use(sys.argv[2])
deadline = time.monotonic() + 10
while opened() != before and time.monotonic() < deadline:
    time.sleep(0.05)
Path(sys.argv[1], str(world().rank)).write_text(json.dumps([before, opened(), said]))
"""


@pytest.mark.parametrize("link", ["zeromq", "process_group"])
def test_runs_leave_nothing_open(link: str, tmp_path: Path) -> None:
    environment = {"PYTHONPATH": os.pathsep.join(sys.path)}
    launch([sys.executable, "-c", RUNS, str(tmp_path), link], 2, restarts=0, environment=environment)
    for rank in range(2):
        before, after, said = json.loads((tmp_path / str(rank)).read_text())
        assert before == after, f"rank {rank}: threads and sockets"
        assert "the disk is gone" in said
