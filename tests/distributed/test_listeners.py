"""What a callback sees, saves and changes is the whole model's, however many processes train it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.distributed.cases import trainer
from tests.distributed.faults import whole
from tests.distributed.listening import counted, listened, remembered

from syngrad.launch.launcher import launch

pytestmark = pytest.mark.distributed


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("listening")
    launch([sys.executable, "-m", "tests.distributed.listening", str(folder)], 2, restarts=0)
    return folder, [torch.load(folder / f"found.{rank}") for rank in range(2)]


def test_callbacks_see_the_whole_model_and_may_change_its_options(
    found: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    folder, (first, second) = found
    here = listened(tmp_path)
    there = first["listened"]
    assert there["steps"] == here["steps"] == list(range(1, len(here["steps"]) + 1))
    for mine, its in zip(here["seen"], there["seen"], strict=True):
        for a, b in zip(mine, its, strict=True):
            assert whole(a, b) if isinstance(a, dict) and "0.weight" in a else a == b
    for rank in (first, second):
        assert whole(rank["listened"]["model"], here["model"])
    assert "on_validate or on_epoch" in there["refused"]
    assert here["refused"] == ""
    loaded = trainer(feedback_delay=1)
    loaded.load(folder / "own")
    assert whole(dict(loaded.model.state_dict()), here["model"])


def test_a_loss_that_remembers_is_saved_where_it_has_run(
    found: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    remembered(tmp_path, 1, False)
    here = remembered(tmp_path, 2, True)
    _, ranks = found
    for rank in ranks:
        assert whole(rank["gone on"]["model"], here["model"])
    assert torch.equal(ranks[0]["gone on"]["mean"], here["mean"])


def test_a_run_with_nothing_left_to_do_is_the_same_on_every_rank(found: tuple[Path, list[dict[str, Any]]]) -> None:
    _, ranks = found
    for rank in ranks:
        assert whole(rank["again"]["model"], ranks[0]["gone on"]["model"])
        assert rank["again"]["losses"] == ranks[0]["gone on"]["losses"]
        assert len(rank["again"]["losses"]) == 2


def test_extra_state_comes_from_where_it_was_made_and_one_process_writes(
    found: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    folder, ranks = found
    here = counted(tmp_path)
    assert ranks[0]["counted"] == here
    assert ranks[1]["counted"] == [*here[:2], "by all"]
    assert [each.name for each in (folder / "by all").iterdir()] == ["000001"]
