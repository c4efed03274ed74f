"""Processes that are killed, stopped, or killed while they write: the run goes on as if nothing had happened."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests._support.faulty_launch import Told, checkpoints, environment, events, launched, pids, program, whole
from tests._support.worker_programs import lives
from tests._support.worker_runs import run

from syngrad.errors import SyngradError

pytestmark = pytest.mark.distributed


def spec(folder: Path, place: list[int], options: dict[str, Any], faults: list[dict[str, Any]]) -> dict[str, Any]:
    """A run that saves every other minibatch, and goes on from there where it is started again."""
    fit = {"save": str(folder / "checkpoints"), "save_every": 2, "resume": "auto"}
    return {"options": {**options, "place": place}, "fit": fit, "faults": faults}


def check(folder: Path, options: dict[str, Any], processes: int, starts: int) -> None:
    """It ended where an undisturbed run ends, after so many starts, each from the last checkpoint before it."""
    reference = run(options, validate=None, validate_every=None)
    for rank in range(processes):
        left = torch.load(folder / f"left.{rank}")
        assert whole(left["model"], reference["model"]), f"rank {rank}"
        assert left["losses"] == reference["losses"]
    assert whole(torch.load(folder / "left.0")["estimators"], reference["estimators"])
    newest, begun = 0, []
    for event, minibatch in events(folder):
        if event == "saved":
            newest = minibatch
        else:
            begun.append(minibatch)
            assert minibatch >= newest, "a checkpoint is lost"
    assert len(begun) == starts
    assert all(begun[1:]), "nothing was gone on from"
    assert (
        checkpoints(folder / "checkpoints")
        == [minibatch for event, minibatch in events(folder) if event == "saved"][-2:]
    )
    assert not list((folder / "checkpoints").glob(".*"))


def test_without_restarts_one_error_names_the_process_and_the_next_run_goes_on(tmp_path: Path) -> None:
    place, options = [2, 2], {"feedback_delay": 1}
    fault = {"rank": 1, "what": "kill", "at": 5, "module": "9"}
    with pytest.raises(SyngradError) as error:
        launched(tmp_path, spec(tmp_path, place, options, [fault]), 2)
    Told(str(error.value)).of(fault, place)
    assert "\n" not in str(error.value)
    # this time the disk is full for a while: training goes on
    full = {"rank": 0, "what": "full disk", "at": 2}
    assert launched(tmp_path, spec(tmp_path, place, options, [full]), 2) == 0
    check(tmp_path, options, 2, 2)
    warned = (tmp_path / "logs" / "attempt_0" / "rank_0" / "stderr.log").read_text()
    assert warned.count("No space left on device") == 1
    assert "training goes on" in warned


def test_a_run_of_which_one_is_killed_and_one_stopped_ends_where_it_would_have_ended(tmp_path: Path) -> None:
    place, options = [1, 2, 1], {"method": "delayed(2)"}
    faults = [
        {"attempt": 0, "rank": 0, "what": "torn write", "at": 3},  # in the middle of a file
        {"attempt": 1, "rank": 1, "what": "stop", "at": 11, "module": "6"},
    ]
    told: list[str] = []
    given = {**spec(tmp_path, place, options, faults), "silence_ms": 3000}
    assert launched(tmp_path, given, 3, restarts=2, say=told.append) == 2
    for line, fault in zip(told, faults, strict=True):
        Told(line).of(fault, place)
    check(tmp_path, options, 3, 3)


def test_torchrun_itself_starts_a_run_again_from_its_last_checkpoint(tmp_path: Path) -> None:
    """The first of two processes is killed, a stage of its own in the middle of a forward pass."""
    place, options = [2, 2], {"feedback_delay": 2, "feedback_every": 2}
    fault = {"attempt": 0, "rank": 0, "what": "kill", "at": 11, "module": "3"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", "2", "--monitor-interval", "0.1"]
    done = subprocess.run(
        [*command, *program(tmp_path, spec(tmp_path, place, options, [fault]))],
        env={**os.environ, **environment(), "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    check(tmp_path, options, 2, 2)
    assert not [pid for pid in pids(tmp_path) if lives(pid)]
