"""Replicas that are killed so late that the others have ended: they take what came of the run, and end well too."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests._support.replica_runs import DEAD_MS, JOIN_MS, launched, same

from syngrad.launch.lighthouse import lighthouse
from syngrad.links.world import LOOPBACK
from syngrad.replicas.place import COUNT, INDEX, LIGHTHOUSE
from syngrad.runtime import checkpoint

pytest.importorskip("torchft")
pytestmark = pytest.mark.distributed


def settings(**more: Any) -> dict[str, Any]:
    return {"replicas": {"every": 5, "timeout_s": 5.0, "wait_s": 20.0}, "batches": 20, **more}


@pytest.mark.parametrize("workers", [1, 2])
def test_the_first_replica_saves_what_the_others_have_kept_for_it(tmp_path: Path, workers: int) -> None:
    """It was killed before it could; the checkpoint before that is there, and is no obstacle."""
    folder = tmp_path / "run"
    given = settings(killed_late={"0": 2}, fit={"save": str(folder)})
    (first, second), said = launched(tmp_path, 2, given, workers=workers)
    assert len(said) == 1
    assert "killed by signal 9" in said[0]
    assert first["replica"]["healed"] == 1
    assert first["minibatches"] == second["minibatches"] == 20
    assert first["metrics"] == second["metrics"]
    assert len(first["metrics"]) == 2
    for part in ("model", "estimators"):
        assert same(first, second, part)
    model, _ = checkpoint.load(checkpoint.newest(folder))
    assert all(torch.equal(value, second["model"][name]) for name, value in model.items())
    # with the outer step's state: the run goes on from it
    more = settings(epochs=3, fit={"save": str(folder), "resume": True})
    (first, second), said = launched(tmp_path, 2, more, workers=workers)
    assert said == []
    assert first["minibatches"] == 30
    assert same(first, second)


def test_on_hosts_of_their_own_the_first_stays_for_one_that_was_lost_lately(tmp_path: Path) -> None:
    """And the others for the first: no launcher knows of all of them, only torchrun of each."""
    with lighthouse(LOOPBACK, join_ms=JOIN_MS, dead_ms=DEAD_MS) as meeting:
        for victim in (0, 1):
            folder = tmp_path / str(victim)
            folder.mkdir()
            given = json.dumps(settings(killed_late={str(victim): 2}))
            command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
            command += ["--max-restarts", "1", "--monitor-interval", "0.1", "-m", "tests._support.replica_runs"]
            running = []
            for index in range(2):
                place = {LIGHTHOUSE: meeting.address, INDEX: str(index), COUNT: "2", "OMP_NUM_THREADS": "1"}
                running.append(subprocess.Popen([*command, str(folder), given], env=os.environ | place))
            try:
                assert [each.wait(100) for each in running] == [0, 0]
            finally:
                for each in running:
                    each.kill()
                    each.wait()
            first, second = (torch.load(folder / str(index)) for index in range(2))
            assert (first, second)[victim]["replica"]["healed"] == 1
            assert same(first, second)
            assert first["metrics"] == second["metrics"]


def test_one_that_is_gone_for_good_is_not_waited_for(tmp_path: Path) -> None:
    """Nor does a launcher wait for one that was lost lately: the first has ended, and with it the run."""
    (first, second), said = launched(tmp_path, 2, settings(killed_late={"1": 2}), restarts=0, after_s=0.0)
    assert len(said) == 1
    assert said[0].endswith("the others go on without it")
    assert second is None
    assert first["minibatches"] == 20
    assert first["seconds"] < 40.0
