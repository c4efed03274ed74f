"""What the tests of faults share: starting a faulty run, and what it has left."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from tests._support.worker_programs import lives

from syngrad.launch import agent
from syngrad.launch.launcher import launch
from syngrad.runtime import checkpoint

#: modules that start a stage of the model in worker_runs.py
STARTS = ["input", "3", "6", "9"]


def program(folder: Path, spec: dict[str, Any] | list[dict[str, Any]]) -> list[str]:
    """What a process of the run is: a module and its arguments."""
    module = "fault_injection" if isinstance(spec, dict) else "failing_runs"
    return ["-m", f"tests._support.{module}", str(folder), json.dumps(spec)]


def command(folder: Path, spec: dict[str, Any] | list[dict[str, Any]]) -> list[str]:
    """Starts it."""
    return [sys.executable, *program(folder, spec)]


def environment() -> dict[str, str]:
    """Lets it find the tests."""
    return {"PYTHONPATH": os.pathsep.join(sys.path)}


def launched(
    folder: Path,
    spec: dict[str, Any] | list[dict[str, Any]],
    workers: int,
    restarts: int = 0,
    say: Callable[[str], None] | None = None,
) -> int:
    """The run, from its beginning to its end; no process of it is left. A list: of cases, see failing.py."""
    logs, own = folder / "logs", command(folder, spec)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(agent, "FAULT_S", 1.0)  # a stopped process never ends by itself
            return launch(own, workers, restarts=restarts, environment=environment(), logs=logs, say=say)
    finally:
        assert not [pid for pid in pids(folder) if lives(pid)]


def pids(folder: Path) -> list[int]:
    """Of all processes that were in `fit`, in any attempt."""
    return [int(file.read_text()) for file in folder.glob("pid.[0-9].[0-9]")]


def events(folder: Path) -> list[tuple[str, int]]:
    """Every start ("begun") and checkpoint ("saved") of the run, in order, with its minibatch."""
    lines = [line.split() for line in (folder / "log").read_text().splitlines()]
    return [(event, int(minibatch)) for event, minibatch in lines]


def checkpoints(folder: Path) -> list[int]:
    """The minibatches of all checkpoints in it, each read whole."""
    return [checkpoint.load(path)[1]["stages"]["count"] for path in checkpoint.found(folder)]


def reported(folder: Path, rank: int, attempt: int = 0) -> dict[str, Any]:
    """What a process has left to its launcher: its error's kind, line and whether a restart would help."""
    file = folder / "logs" / f"attempt_{attempt}" / f"rank_{rank}" / "error.json"
    found = json.loads(file.read_text())
    return {"line": found["message"]["message"], **found["syngrad"]}


def whole(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether all is the same to the last bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def stages(rank: int, place: list[int]) -> str:
    """A process's stages, as errors call them."""
    first, count = sum(place[:rank]), place[rank]
    if count == 1:
        return f"stage {STARTS[first]!r}"
    return f"stages {STARTS[first]!r} to {STARTS[first + count - 1]!r}"


@dataclass
class Told:
    """A line that says why an attempt is over."""

    line: str

    def of(self, fault: dict[str, Any], place: list[int]) -> None:
        """It names the process that the fault befell, its stages and its host."""
        rank, host = fault["rank"], socket.gethostname()
        if fault["what"] == "stop":  # its neighbours have noticed, and it says nothing
            assert f"{stages(rank, place)} (rank {rank} on {host}) is gone" in self.line
        else:
            assert self.line.startswith(
                f"rank {rank} ({stages(rank, place)} on {host}) was killed by signal 9 (SIGKILL)"
            ), self.line
