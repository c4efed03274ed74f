"""What a launcher and its workers tell each other of restarts."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from syngrad.pipeline import restarts


def test_one_is_started_alone_once_all_have_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(restarts.FOLDER, str(tmp_path))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "2")
    restarts.all_anew(tmp_path, 0)
    assert not restarts.expected()
    for rank in range(2):
        assert not restarts.all_ready(tmp_path, 2)
        monkeypatch.setenv("RANK", str(rank))
        restarts.ready()
        restarts.ready()
    assert restarts.all_ready(tmp_path, 2)
    restarts.not_ready()
    restarts.not_ready()
    assert not restarts.all_ready(tmp_path, 2)
    restarts.ready()
    restarts.tell(tmp_path, 1)
    assert restarts.starts() == 1
    assert restarts.expected(), "the others are ready still"
    restarts.tell(tmp_path, 2)
    assert not restarts.expected(), "no more than that"
    restarts.all_anew(tmp_path, 2)
    assert restarts.starts() == 2
    assert not restarts.all_ready(tmp_path, 2)


def test_one_that_is_started_alone_is_back_once_it_says_so_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(restarts.FOLDER, str(tmp_path))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    restarts.all_anew(tmp_path, 0)
    assert not restarts.is_back(tmp_path, 1, 1)
    restarts.ready()
    restarts.tell(tmp_path, 1)
    assert not restarts.is_back(tmp_path, 1, 1), "that was its process before"
    restarts.ready()
    assert restarts.is_back(tmp_path, 1, 1)


def test_without_a_launcher_that_can_do_so_nobody_is_started_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(restarts.FOLDER, raising=False)
    monkeypatch.setenv(restarts.ALONE, "1")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    restarts.ready()
    restarts.not_ready()
    assert not restarts.started_alone()
    assert restarts.starts() == 2


def test_a_folder_that_is_gone_counts_as_what_the_process_was_started_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(restarts.FOLDER, str(tmp_path / "gone"))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "3")
    assert restarts.starts() == 3


def test_some_seconds_after_an_interrupt_nobody_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(restarts.FOLDER, str(tmp_path))
    restarts.all_anew(tmp_path, 1)
    assert restarts.starts_unless_interrupted() == 1
    restarts.interrupted(tmp_path)
    assert restarts.starts_unless_interrupted() == 1, "who comes now is still met"
    earlier = time.time() - restarts.MEET_S - 1.0
    for file in tmp_path.iterdir():
        os.utime(file, (earlier, earlier))
    with pytest.raises(KeyboardInterrupt):
        restarts.starts_unless_interrupted()
    assert restarts.starts() == 1


def test_a_launcher_that_starts_none_alone_says_nothing() -> None:
    restarts.all_anew(None, 1)
    restarts.interrupted(None)
