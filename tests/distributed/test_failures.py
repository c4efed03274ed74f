"""What one process finds wrong is heard in every process, and the run is over there too."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pytest
from tests.distributed.cases import trainer
from tests.distributed.faults import launched, reported

from syngrad import errors
from syngrad.core.staleness import Record
from syngrad.errors import ConfigError, LinkError, TrainingError
from syngrad.trainer.fitting import check

pytestmark = pytest.mark.distributed

HOST = socket.gethostname()
PLACE = {"options": {"place": [1, 2, 1]}}
#: what is different in one process → what the others say of it
DIFFERENT: dict[str, tuple[dict[str, Any], str]] = {
    "model": ({"rank": 2, "model": True}, "model '12.bias' than rank 0: [[4], 'torch.float64'] instead of [[3], "),
    "option": ({"rank": 1, "options": {"clip_norm": 0.5}}, "option 'clip_norm' than rank 0: 0.5 instead of None"),
    "seed": ({"rank": 2, "options": {"seed": 5}}, "option 'seed' than rank 0: 5 instead of 0"),
    "free": ({"rank": 1, "options": {"feedback_delay": 0}}, "option 'feedback_delay' than rank 0: 0 instead of None"),
    "wire": ({"rank": 2, "options": {"message_dtype": "int8"}}, "option 'message_dtype' than rank 0: ['int8', 'int8'"),
    "version": ({"rank": 1, "version": "0"}, "version than rank 0: '0' instead of '1'"),
}
#: what goes wrong → the error where it happens, who that is, and the error that the others raise
FAILING: dict[str, tuple[dict[str, Any], str, int, str]] = {
    "forward": (
        {"odd": {"rank": 2, "faults": [{"what": "raise", "at": 4, "module": "9"}]}},
        "stage '9' raised ValueError: the model is broken",
        2,
        "TrainingError",
    ),
    "data": (
        {"options": {**PLACE["options"], "inputs": "linear"}, "odd": {"rank": 2, "from": "the second on"}},
        "minibatch 0 holds other data here than in stages '3' to '6' (rank 1",
        2,
        "ConfigError",
    ),
    "length": (
        {"options": {**PLACE["options"], "inputs": "linear"}, "from": "a short loader"},
        "where its length says that it ends",
        0,
        "TrainingError",
    ),
    "callback": ({"until": 5}, "the callback is tired", 0, "RuntimeError"),
    "validation": ({"validation": True}, "the loader raised OSError: the disk has gone", 0, "TrainingError"),
}


def said(folder: Path, name: str) -> list[list[str]]:
    """(kind, text) of the error of each of three processes."""
    return [json.loads((folder / f"said.{name}.{rank}").read_text()) for rank in range(3)]


def test_every_process_says_what_is_wrong(tmp_path: Path) -> None:
    cases: list[dict[str, Any]] = [{"name": name, **PLACE, "odd": odd} for name, (odd, _) in DIFFERENT.items()]
    cases += [{"name": name, **PLACE, **case} for name, (case, *_) in FAILING.items()]
    # in between all goes well; the last error is left to end the processes, and would come again
    cases += [{"name": "well", **PLACE}, {"name": "last", **PLACE, **FAILING["forward"][0], "uncaught": True}]
    told: list[str] = []
    with pytest.raises(TrainingError) as error:
        launched(tmp_path, cases, 3, restarts=3, say=told.append)
    assert str(error.value) == f"rank 2 (stage '9' on {HOST}): {FAILING['forward'][1]}"
    assert told == []
    for rank in range(3):
        found = reported(tmp_path, rank)
        assert (found["kind"], found["for_good"]) == ("TrainingError", True)
    for name, (odd, text) in DIFFERENT.items():
        kinds, texts = zip(*said(tmp_path, name), strict=True)
        assert set(kinds) == {"ConfigError"}, name
        for line in texts:
            assert f"rank {odd['rank']} on {HOST} has another {text}" in line, name
            assert "\n" not in line
    for name, (_, text, rank, kind) in FAILING.items():
        for other, (found, line) in enumerate(said(tmp_path, name)):
            theirs = (
                kind if hasattr(errors, kind) else "TrainingError"
            )  # of one of Syngrad's own kinds, whatever it was
            assert found == (kind if other == rank else theirs), name
            assert text in line, name
            assert (f"(rank {rank} on {HOST}): " in line) == (other != rank), name
    assert all((tmp_path / f"left.well.{rank}").exists() for rank in range(3))


def test_a_process_that_never_comes_is_named(tmp_path: Path) -> None:
    spec = {"options": {"timeout_s": 6.0}, "faults": [{"rank": 1, "what": "never starts"}]}
    with pytest.raises(LinkError, match=r"^rank [02]: rank 1 has not come within 6 s: see what their? host says"):
        launched(tmp_path, spec, 3)
    for rank in (0, 2):
        assert reported(tmp_path, rank)["line"].startswith("rank 1 has not come within 6 s")


def test_a_record_is_not_replayed_over_several_processes() -> None:
    made = trainer(replay=Record([{}, {}, {}]))
    with pytest.raises(ConfigError, match=r"replay= needs all stages in one process"):
        check(made)
