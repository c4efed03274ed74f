"""What a rival's timed windows are made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from syngrad.compare.rivals import RivalRun
from syngrad.compare.rivals.__main__ import Training
from syngrad.compare.rivals.recipe import GlooGroup

SMALL = f"{Path(__file__).parents[1] / '_support' / 'planned_experiment.py'}:small"


class _Counted(GlooGroup):
    """Counts what workers do together beside training."""

    def __init__(self) -> None:
        super().__init__()
        self.met: list[str] = []

    def barrier(self) -> None:
        self.met.append("barrier")

    def agree(self, value: Any) -> Any:
        self.met.append("agree")
        return value


@pytest.mark.parametrize(("most_s", "met"), [(None, ["barrier"]), (1e-9, ["barrier", "agree"])])
def test_workers_do_not_meet_between_the_windows_that_are_timed(most_s: float | None, met: list[str]) -> None:
    group = _Counted()
    run = RivalRun("plain", SMALL, minibatches=14, warm_up=0, most_s=most_s)
    row = Training(run, group).train()
    assert group.met == met  # over a long delay the first message after a meeting is asked for late
    assert row.samples_per_s is not None
    assert row.samples_per_s > 0
