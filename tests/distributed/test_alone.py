"""A worker that is killed is started again alone: its neighbours live on, and the run is trained to its end."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tests._support.faulty_launch import checkpoints, events, launched, whole

from syngrad.errors import SyngradError

pytestmark = pytest.mark.distributed

PLACE, EPOCHS, LENGTH = [1, 2, 1], 3, 9
#: a module of the first, the middle and the last worker
MODULES = ["0", "3", "9"]


def kill(rank: int, at: int, **more: Any) -> dict[str, Any]:
    return {"attempt": 0, "rank": rank, "what": "kill", "at": at, "module": MODULES[rank], **more}


def run(
    folder: Path, faults: list[dict[str, Any]], restarts: int = 5, fit: dict[str, Any] | None = None, **options: Any
) -> list[str]:
    """What the launcher says of a run to which this happens."""
    own = {
        "save": str(folder / "checkpoints"),
        "save_every": 4,
        "resume": "auto",
        "epochs": EPOCHS,
        "validate_every": 5,
    }
    spec = {"options": {"place": PLACE, **options}, "fit": own | (fit or {}), "faults": faults, "validated": True}
    told: list[str] = []
    assert launched(folder, spec, 3, restarts=restarts, say=told.append) == len(told)
    return told


def starts(folder: Path) -> list[list[int]]:
    """Of each rank, at which attempts a process of it came to `fit`."""
    return [sorted(int(file.suffix[1:]) for file in folder.glob(f"pid.{rank}.*")) for rank in range(3)]


def check(folder: Path, epochs: int = EPOCHS) -> None:
    """All epochs were trained, all workers have the same model, and it has learnt."""
    first, *others = (torch.load(folder / f"left.{rank}") for rank in range(3))
    for other in others:
        assert whole(other["model"], first["model"])
        assert other["losses"] == first["losses"]
    assert len(first["losses"]) == epochs
    assert all(math.isfinite(loss) for loss in first["losses"])
    assert first["losses"][-1] < 0.9 * first["losses"][0]
    assert [point[0] for point in first["points"]] == [
        each for epoch in range(epochs) for each in (epoch + 5 / LENGTH, epoch + 1.0)
    ], "every validation, once each"
    assert checkpoints(folder / "checkpoints")[-1] == epochs * LENGTH
    assert [each["rank"] for each in first["processes"]] == [0, 1, 2]
    assert not list((folder / "checkpoints").glob(".*"))


@pytest.mark.parametrize("method", ["synthetic", "delayed", "corrected(every=2)"])
def test_the_first_the_middle_and_the_last_in_turn(tmp_path: Path, method: str) -> None:
    told = run(tmp_path, [kill(2, 6), kill(1, 14), kill(0, 23)], method=method)
    check(tmp_path)
    assert starts(tmp_path) == [[0, 3], [0, 2], [0, 1]], "nobody else was started again"
    for number, (line, rank) in enumerate(zip(told, (2, 1, 0), strict=True), start=1):
        assert line.startswith(f"rank {rank} (stage")
        assert line.endswith(f"; starting it again alone ({number} of 5)")
    assert [minibatch for event, minibatch in events(tmp_path) if event == "begun"] == [0, 20], "the first one's own"


def test_in_evaluation_in_a_save_and_while_it_is_started_again(tmp_path: Path) -> None:
    faults = [
        kill(2, 9, evaluating=True),  # the end of an epoch
        kill(1, 14, evaluating=True),  # within one
        {"attempt": 0, "rank": 0, "what": "torn write", "at": 8},
        kill(0, 20, attempt=3),  # that one's next, on its first minibatch
    ]
    told = run(tmp_path, faults)
    check(tmp_path)
    assert all("starting it again alone" in line for line in told)
    assert starts(tmp_path) == [[0, 3, 4], [0, 2], [0, 1]]


def test_two_at_once_are_started_again_with_all_or_one_after_the_other(tmp_path: Path) -> None:
    told = run(tmp_path, [{**kill(2, 14), "what": "kill two", "amount": 1}])
    check(tmp_path)
    lines = [line.rpartition("; ")[2] for line in told]
    one_by_one = [f"starting it again alone ({number} of 5)" for number in (1, 2)]
    assert lines in (["starting again (1 of 5)"], one_by_one), "the launcher may have looked between the two"
    assert starts(tmp_path)[0] == ([0, 1] if len(lines) == 1 else [0])


def test_one_death_costs_one_restart_also_where_starting_one_alone_is_in_vain(tmp_path: Path) -> None:
    told: list[str] = []
    fit = {"save": str(tmp_path / "checkpoints"), "save_every": 4, "resume": "auto", "epochs": EPOCHS}
    faults = [kill(1, 14), {"attempt": 1, "rank": 1, "what": "unmet"}]
    spec = {"options": {"place": PLACE}, "fit": {**fit, "validate_every": 5}, "faults": faults, "validated": True}
    assert launched(tmp_path, spec, 3, restarts=1, say=told.append) == 1
    check(tmp_path)
    assert [line.rpartition("; ")[2] for line in told] == [
        "starting it again alone (1 of 1)",
        "starting again (1 of 1)",
    ]


@pytest.mark.parametrize(
    ("fault", "options"),
    [
        (kill(1, 2), {}),  # before there is a checkpoint
        (kill(1, 14), {"feedback_delay": 1}),  # it promises its very steps
    ],
)
def test_otherwise_all_are_started_anew(tmp_path: Path, fault: dict[str, Any], options: dict[str, Any]) -> None:
    told = run(tmp_path, [fault], **options)
    check(tmp_path)
    assert [line.rpartition("; ")[2] for line in told] == ["starting again (1 of 5)"]
    assert starts(tmp_path) == [[0, 1]] * 3


def test_more_kills_than_restarts_end_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(SyngradError) as error:
        run(tmp_path, [kill(1, 14), kill(1, 20, attempt=1)], restarts=1)
    assert str(error.value).startswith("rank 1 (stages '3' to '6'")
    assert str(error.value).endswith("the run had been started again once, as often as it may be")
    assert "\n" not in str(error.value)
