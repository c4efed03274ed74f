"""Processes that are killed, stopped, or killed while they write: the run goes on as if nothing had happened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.distributed.cases import run
from tests.distributed.faults import Told, checkpoints, launched, lines, whole

from syngrad.errors import SyngradError

pytestmark = pytest.mark.distributed

#: what befalls each attempt: the last process is killed, in the middle of a minibatch
TWO = [{"attempt": 0, "rank": 1, "what": "kill", "at": 5, "module": "9"}]
#: the first is killed, in the middle of a file; the middle one is stopped
THREE = [
    {"attempt": 0, "rank": 0, "what": "torn write", "at": 3},
    {"attempt": 1, "rank": 1, "what": "stop", "at": 11, "module": "6"},
]


@pytest.mark.parametrize(
    ("place", "faults", "options"),
    [([2, 2], TWO, {"feedback_delay": 1}), ([1, 2, 1], THREE, {"method": "delayed(2)"})],
    ids=["two processes, synthetic", "three processes, delayed"],
)
def test_the_run_ends_where_it_would_have_ended(
    place: list[int], faults: list[dict[str, Any]], options: dict[str, Any], tmp_path: Path
) -> None:
    spec: dict[str, Any] = {
        "options": {**options, "place": place},
        "fit": {"save": str(tmp_path / "checkpoints"), "save_every": 2, "resume": "auto"},
        # and in the last attempt the disk is full for a while: training goes on
        "faults": [*faults, {"attempt": len(faults), "rank": 0, "what": "full disk", "at": 2}],
    }
    if any(fault["what"] == "stop" for fault in faults):
        spec["silence_ms"] = 3000
    told: list[str] = []
    assert launched(tmp_path, spec, len(place), restarts=len(faults), say=told.append) == len(faults)
    reference = run(options, validate=None, validate_every=None)
    for rank in range(len(place)):
        left = torch.load(tmp_path / f"left.{rank}")
        assert whole(left["model"], reference["model"]), f"rank {rank}"
        assert left["losses"] == reference["losses"]
    assert whole(torch.load(tmp_path / "left.0")["estimators"], reference["estimators"])
    for line, fault in zip(told, faults, strict=True):
        Told(line).of(fault, place)
    # every attempt goes on from the last checkpoint of those before it, and none was half written
    saved, begun = lines(tmp_path, "saved"), lines(tmp_path, "begun")
    assert len(begun) == len(faults) + 1
    for start in begun[1:]:
        assert start in saved
    assert begun == sorted(begun)
    assert checkpoints(tmp_path / "checkpoints") == saved[-2:]
    assert not list((tmp_path / "checkpoints").glob(".*"))
    warned = (tmp_path / "logs" / f"attempt_{len(faults)}" / "rank_0" / "stderr.log").read_text()
    assert warned.count("No space left on device") == 1
    assert "training goes on" in warned


def test_without_restarts_one_error_names_the_process(tmp_path: Path) -> None:
    fault = {"rank": 0, "what": "kill", "at": 4, "module": "3"}
    with pytest.raises(SyngradError) as error:
        launched(tmp_path, {"options": {"place": [3, 1]}, "faults": [fault]}, 2)
    Told(str(error.value)).of(fault, [3, 1])
    assert "\n" not in str(error.value)
