"""Models of any shape end over two workers with the very parameters of one process, with a fixed delay."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch
from tests._support.family_runs import RECORDED, trained

from syngrad.launch.launcher import launch

pytestmark = pytest.mark.distributed


def test_two_workers_end_where_one_process_does(tmp_path: Path) -> None:
    environment = {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "tests._support.family_runs", str(tmp_path), *RECORDED]
    assert launch(command, 2, restarts=0, environment=environment) == 0
    for name in RECORDED:
        one, two = trained(name), torch.load(tmp_path / f"{name}.0")
        assert one["route"] == two["route"], name
        assert one["losses"] == two["losses"], name
        for path, parameter in one["parameters"].items():
            assert torch.equal(parameter, two["parameters"][path]), f"{name}: {path}"
