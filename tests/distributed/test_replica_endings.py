"""Replicas that are killed so late that the others have ended: they take what came of the run, and end well too."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from tests._support.replica_runs import DEAD_MS, JOIN_MS, launched, same
from tests._support.worker_programs import await_

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


@pytest.mark.parametrize("workers", [1, 2])
def test_where_all_die_at_once_the_first_goes_back_to_what_it_has_saved(tmp_path: Path, workers: int) -> None:
    """With one of `restarts` each: nobody is asked in vain."""
    folder = tmp_path / "run"
    given = settings(killed_late={"0": 2, "1": 2}, epochs=3, fit={"save": str(folder)})
    (first, second), said = launched(tmp_path, 2, given, workers=workers, restarts=1)
    assert sorted(line.split(":")[0].split()[1] for line in said) == ["0", "1"]
    assert [first["minibatches"], second["minibatches"]] == [30, 30]
    assert same(first, second)
    assert first["metrics"] == second["metrics"]
    assert (first["replica"]["healed"], second["replica"]["healed"]) == (0, 1)


def host(place: dict[str, str], folder: Path, given: dict[str, Any]) -> int:
    """A host of its own: what it runs is started again once, as torchrun does; the last exit code."""
    command = [sys.executable, "-m", "tests._support.replica_runs", str(folder), json.dumps(given)]
    code = 1
    for attempt in range(2):
        environment = {**os.environ, **place, "TORCHELASTIC_RESTART_COUNT": str(attempt), "OMP_NUM_THREADS": "1"}
        code = subprocess.run(command, env=environment, timeout=100, check=False).returncode
        if not code:
            break
    return code


@pytest.mark.parametrize("victim", [0, 1])
def test_on_hosts_of_their_own_the_first_stays_for_one_that_was_lost_lately(tmp_path: Path, victim: int) -> None:
    """And the others for the first: no launcher knows of all of them."""
    with lighthouse(LOOPBACK, join_ms=JOIN_MS, dead_ms=DEAD_MS) as meeting, ThreadPoolExecutor() as hosts:
        common = {LIGHTHOUSE: meeting.address, COUNT: "2"}
        given = settings(killed_late={str(victim): 2})
        places = [{**common, INDEX: str(index)} for index in range(2)]
        assert list(hosts.map(lambda place: host(place, tmp_path, given), places)) == [0, 0]
    first, second = (torch.load(tmp_path / str(index)) for index in range(2))
    assert (first, second)[victim]["replica"]["healed"] == 1
    assert same(first, second)
    assert first["metrics"] == second["metrics"]


def test_ctrl_c_ends_one_that_waits_for_others(tmp_path: Path) -> None:
    """It has nothing to save yet."""
    given = settings(fit={"save": str(tmp_path / "run")})

    def interrupt() -> None:
        await_((tmp_path / "run").exists)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    began = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            launched(tmp_path, 1, given, environment={COUNT: "2"}, grace_s=60.0)
    finally:
        thread.join()
    assert time.monotonic() - began < 45.0, "long before it is killed, or begins alone"


def test_one_that_is_gone_for_good_is_not_waited_for(tmp_path: Path) -> None:
    """Nor does a launcher wait for one that was lost lately: the first has ended, and with it the run."""
    (first, second), said = launched(tmp_path, 2, settings(killed_late={"1": 2}), restarts=0, after_s=0.0)
    assert len(said) == 1
    assert said[0].endswith("the others go on without it")
    assert second is None
    assert first["minibatches"] == 20
    assert first["seconds"] < 40.0
