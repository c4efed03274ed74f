"""What a failed worker leaves behind, and which of several failures is taken for the cause."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing.errors import ProcessFailure

from syngrad.errors import CheckpointError, ConfigError, LinkError, SyngradError, TrainingError
from syngrad.pipeline.failures import (
    ERROR_FILE,
    WORKER_FILE,
    Failure,
    cause,
    introduce,
    lasting,
    read_failure,
    report_failure,
)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    error, who = tmp_path / "error.json", tmp_path / "worker"
    monkeypatch.setenv(ERROR_FILE, str(error))
    monkeypatch.setenv(WORKER_FILE, str(who))
    return error, who


def test_the_launcher_reads_what_the_worker_wrote(files: tuple[Path, Path]) -> None:
    introduce("stages '0'\n to '4'")
    report_failure(TrainingError("the loss is\n nan"))
    failure = read_failure(1, *files, 1, False)
    assert failure.text() == "rank 1 (stages '0' to '4'): the loss is nan"
    assert (failure.kind, failure.for_good) == ("TrainingError", True)
    assert type(failure.error("; so")) is TrainingError
    assert str(failure.error("; so")) == "rank 1 (stages '0' to '4'): the loss is nan; so"


def test_torchrun_reads_it_too(files: tuple[Path, Path]) -> None:
    report_failure(LinkError("rank 0 is gone"))
    read = ProcessFailure(local_rank=0, pid=1, exitcode=1, error_file=str(files[0]))
    assert read.message["message"] == "rank 0 is gone"
    assert read.message["extraInfo"]["py_callstack"] == "rank 0 is gone"
    assert read.timestamp > 0


def test_an_error_of_another_kind_keeps_its_trace(files: tuple[Path, Path]) -> None:
    try:
        {}["key"]
    except KeyError as error:
        report_failure(error)
    failure = read_failure(0, *files, 1, False)
    assert failure.text() == "rank 0: unexpected KeyError: 'key'"
    assert type(failure.error()) is SyngradError
    assert "test_reporting.py" in json.loads(files[0].read_text())["message"]["extraInfo"]["py_callstack"]


def test_without_a_launcher_nothing_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (ERROR_FILE, WORKER_FILE):
        monkeypatch.delenv(name, raising=False)
    introduce("a")
    report_failure(ConfigError("b"))


def test_where_nothing_can_be_written_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(ERROR_FILE, str(tmp_path / "missing" / "error.json"))
    report_failure(ConfigError("the number is 0"))
    assert "the launcher cannot be told (FileNotFoundError" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", "{", "[]", "7", '{"message": 3}', '{"message": {}, "syngrad": {"at": "x"}}'])
def test_what_cannot_be_read_is_said(files: tuple[Path, Path], text: str) -> None:
    files[0].write_text(text)
    failure = read_failure(2, *files, 1, False)
    assert failure.text() in (
        "rank 2: it left an error that cannot be read",
        "rank 2 ended with exit code 1, and did not say why",
    )


def test_which_failures_last() -> None:
    assert all(lasting(kind("a")) for kind in (ConfigError, CheckpointError, TrainingError))
    assert not any(lasting(kind("a")) for kind in (LinkError, RuntimeError, OSError, KeyboardInterrupt))


def test_the_cause_comes_before_what_it_has_caused() -> None:
    in_order = [
        Failure(3, "refused", 1, kind="ConfigError", line="no", for_good=True, at=9.0),
        Failure(4, "broken", 1, kind="KeyError", line="x", at=1.0),
        Failure(5, "broken later", 1, kind="KeyError", line="x", at=2.0),
        Failure(0, "killed", -9),
        Failure(1, "silent", 1),
        Failure(2, "link", 1, kind="LinkError", line="gone", at=0.0),
        Failure(6, "told to", -15, told_to=True),
    ]
    for index in range(len(in_order)):
        assert cause(reversed(in_order[index:])) is in_order[index]
    assert cause([]) is None


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (-9, "rank 0 was killed by signal 9 (SIGKILL); if nobody did that, its machine may be out of memory"),
        (-11, "rank 0 was killed by signal 11 (SIGSEGV)"),
        (-99, "rank 0 was killed by signal 99"),
        (7, "rank 0 ended with exit code 7, and did not say why"),
    ],
)
def test_how_a_worker_ended_is_said(code: int, said: str) -> None:
    assert Failure(0, "rank 0", code).text() == said
