"""What fails after an epoch in another process than the first does not take the epoch's work with it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tests._support.faulty_launch import checkpoints, environment, whole
from tests._support.late_failures import run

from syngrad.errors import TrainingError
from syngrad.launch.launcher import launch

pytestmark = pytest.mark.distributed


def test_a_metric_that_raises_in_the_last_worker_leaves_the_epoch_saved(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests._support.late_failures", str(tmp_path / "run")]
    with pytest.raises(TrainingError, match="evaluation failed: ConnectionError: no answer"):
        launch(command, 2, restarts=0, environment=environment(), logs=tmp_path / "logs")
    assert checkpoints(tmp_path / "run") == [9]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["000001"], "and no lock is left"
    made, history = run(tmp_path / "run", False)
    reference, undisturbed = run(tmp_path / "undisturbed", False)
    assert whole(dict(made.model.state_dict()), dict(reference.model.state_dict()))
    assert [epoch.metrics for epoch in history.epochs] == [epoch.metrics for epoch in undisturbed.epochs]
