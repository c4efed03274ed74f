"""What a worker does again once another has taken a lost one's place, and what that costs its clock."""

from __future__ import annotations

import time

import pytest

from syngrad.errors import LinkError
from syngrad.pipeline.neighbours import RemoteError
from syngrad.pipeline.survivor import Survivor

STOOD_S = 0.05


class Rejoining(Survivor):
    """It has lost a worker so often, and each time another takes its place after a while."""

    def __init__(self, losses: int) -> None:
        self.losses, self.heard, self._stood_s = losses, list[str](), 0.0

    def rejoin(self, lost: LinkError) -> None:
        self.heard.append(str(lost))
        time.sleep(STOOD_S)

    def call(self) -> str:
        if self.losses:
            self.losses -= 1
            raise LinkError(f"lost {self.losses}")
        return "done"


def test_a_call_is_made_again_until_nobody_is_lost() -> None:
    worker = Rejoining(2)
    assert worker.outliving(worker.call, training=True) == "done"
    assert worker.heard == ["lost 1", "lost 0"]
    assert 2 * STOOD_S <= worker.stood() < 60 * STOOD_S
    assert worker.stood() == 0.0, "it is told once"


def test_what_is_no_training_anyhow_is_not_told() -> None:
    worker = Rejoining(1)
    assert worker.outliving(worker.call) == "done"
    assert worker.stood() == 0.0


def test_what_others_take_over_with_the_minibatch_is_said_once() -> None:
    worker = Rejoining(1)
    worker.once(worker.call)
    assert worker.heard == ["lost 0"]
    assert worker.losses == 0
    worker.once(worker.call)
    assert worker.heard == ["lost 0"]


def test_a_worker_that_fails_is_not_outlived() -> None:
    worker = Rejoining(0)

    def failing() -> None:
        raise RemoteError("TrainingError", "the model is broken")

    for outlive in (worker.outliving, worker.once):
        with pytest.raises(RemoteError):
            outlive(failing)
    assert worker.heard == []
