"""What the first worker does again once another worker has been replaced, and what that costs its clock."""

from __future__ import annotations

import time

import pytest

from syngrad.errors import LinkError
from syngrad.pipeline.leader import Leader
from syngrad.pipeline.neighbours import RemoteError

STOOD_S = 0.05


class Rejoining(Leader):
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
    leader = Rejoining(2)
    assert leader._outliving(leader.call, training=True) == "done"
    assert leader.heard == ["lost 1", "lost 0"]
    assert 2 * STOOD_S <= leader.stood() < 60 * STOOD_S
    assert leader.stood() == 0.0, "it is told once"


def test_what_is_no_training_anyhow_is_not_told() -> None:
    leader = Rejoining(1)
    assert leader._outliving(leader.call) == "done"
    assert leader.stood() == 0.0


def test_what_others_take_over_with_the_minibatch_is_said_once() -> None:
    leader = Rejoining(1)
    leader._once(leader.call)
    assert leader.heard == ["lost 0"]
    assert leader.losses == 0
    leader._once(leader.call)
    assert leader.heard == ["lost 0"]


def test_a_worker_that_fails_is_not_outlived() -> None:
    leader = Rejoining(0)

    def failing() -> None:
        raise RemoteError("TrainingError", "the model is broken")

    for outlive in (leader._outliving, leader._once):
        with pytest.raises(RemoteError):
            outlive(failing)
    assert leader.heard == []
