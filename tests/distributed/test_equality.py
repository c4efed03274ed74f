"""One, two and four processes take the very steps of one process: every parameter, in float64, with dropout."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests._support.worker_runs import CASES, FREE, replayed, run

from syngrad.launch.launcher import launch

pytestmark = pytest.mark.distributed

_SEQUENTIAL: dict[str, Any] = {}


def sequential(name: str) -> dict[str, Any]:
    """The case in this process, once."""
    if name not in _SEQUENTIAL:
        _SEQUENTIAL[name] = run(CASES[name])
    found: dict[str, Any] = _SEQUENTIAL[name]
    return found


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_processes_take_the_steps_of_one(workers: int, tmp_path: Path) -> None:
    names = [*CASES, *FREE]
    environment = {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "tests._support.worker_runs", str(tmp_path), *names]
    assert launch(command, workers, restarts=0, environment=environment) == 0
    for name in names:
        ranks = [torch.load(tmp_path / f"{name}.{rank}") for rank in range(workers)]
        reference = sequential(name) if name in CASES else replayed(FREE[name], ranks[0])
        for rank, found in enumerate(ranks):
            assert same(reference["model"], found["model"]), f"{name}: rank {rank} has another model"
        lead = ranks[0]
        assert same(reference["estimators"], lead["estimators"]), f"{name}: other estimators"
        assert reference["losses"] == lead["losses"], name
        assert reference["points"] == lead["points"], name
        if name in CASES:
            assert reference["interfaces"] == lead["interfaces"], name
        for found in ranks[1:]:  # what `fit` returns is the same everywhere
            assert (found["losses"], found["points"]) == (lead["losses"], lead["points"]), name
        assert [each["stages"][1] for each in lead["processes"]][-1:] == ([4] if workers > 1 else [])
