"""The command line: what it prints, writes and returns when all goes well, or is interrupted."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import syngrad
from syngrad import Trainer, cli
from syngrad.cli import main
from syngrad.cli.options import listed
from syngrad.compare import Comparison
from syngrad.results import validate

OPTIONS = {
    "experiment",
    "methods",
    "workers",
    "answer",
    "link",
    "queue_depth",
    "message_dtype",
    "trace",
    "memory",
    "estimator",
    "stages",
    "cuts",
    "epochs",
    "batch_size",
    "seed",
    "seeds",
    "threads",
    "optimizer",
    "target",
    "json",
    "html",
    "progress",
    "config",
}


def test_the_options_are_frozen() -> None:
    assert set(inspect.signature(cli.compare).parameters) == OPTIONS


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"syngrad {syngrad.__version__}\n"


def test_alone_it_prints_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    alone = capsys.readouterr().out
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == alone
    assert "compare" in alone


def test_a_comparison(small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "r.json"
    assert main(["compare", small, "--json", str(file), "--epochs", "3", "--batch-size", "32"]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines[2:7]] == [
        "backprop",
        "synthetic",
        "synthetic:linear",
        "synthetic:local",
        "zero",
    ]
    assert any("In one process synthetic" in line for line in lines)
    assert printed.err == ""
    document = json.loads(file.read_text(encoding="utf-8"))
    validate(document)
    assert (document["experiment"]["epochs"], document["experiment"]["batch_size"]) == (3, 32)
    assert document["verdict"]["text"] in " ".join(lines)


def test_rows_and_seeds(small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "r.json"
    rows = "backprop, synthetic:mlp(hidden=1,width=4), synthetic"
    words = ["compare", small, "--methods", rows, "--estimator", "local", "--seeds", "2", "--seed", "4"]
    assert main([*words, "--json", str(file), "--epochs", "1"]) == 0
    assert "±" in capsys.readouterr().out
    results = json.loads(file.read_text(encoding="utf-8"))["results"]
    assert [(row["estimator"], row["seed"]) for row in results] == [
        ("", 4),
        ("", 5),
        ("mlp(hidden=1,width=4)", 4),
        ("mlp(hidden=1,width=4)", 5),
        ("local", 4),
        ("local", 5),
    ]


def test_progress_in_lines_where_there_is_no_terminal(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", small, "--methods", "backprop,zero", "--progress"]) == 0
    said = capsys.readouterr().err
    assert "[0/6] the data" in said
    assert "] zero: epoch 2/2, accuracy" in said
    assert main(["compare", small, "--methods", "backprop,zero", "--no-progress"]) == 0
    assert capsys.readouterr().err == ""


def test_a_failed_row_stands_in_the_table(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", small, "--methods", "backprop,synthetic:conv"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("backprop")
    assert lines[3].startswith("synthetic:conv  failed: ")
    assert max(map(len, lines)) <= 80


def test_ctrl_c_prints_and_writes_what_is_finished(
    small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fit, file = Trainer.fit, tmp_path / "r.json"

    def interrupted(self: Trainer, *args: Any, **more: Any) -> Any:
        if self.method.name == "zero":
            raise KeyboardInterrupt
        return fit(self, *args, **more)

    monkeypatch.setattr(Trainer, "fit", interrupted)
    assert main(["compare", small, "--methods", "backprop,zero,synthetic", "--json", str(file)]) == 130
    printed = capsys.readouterr()
    assert "backprop" in printed.out
    assert printed.err == "interrupted; finished rows: 1\n"
    document = json.loads(file.read_text(encoding="utf-8"))
    validate(document)
    assert [row["method"] for row in document["results"]] == ["backprop"]


def test_ctrl_c_before_anything_is_finished(
    small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "step", interrupted)
    file = tmp_path / "r.json"
    assert main(["compare", small, "--json", str(file)]) == 130
    assert capsys.readouterr().out == ""
    assert not file.exists()


def test_what_is_finished_is_published_when_a_later_row_cannot_be_run(
    small: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, file = Path(small.rpartition(":")[0]), tmp_path / "r.json"
    path.write_text(
        "from tests._support import small_run\ncalls = []\n\ndef data(batch_size, seed):\n    calls.append(seed)\n"
        "    assert len(calls) < 3, 'the third'\n    return small_run.data(batch_size, seed)\n\n"
        "def tiny():\n    return small_run.experiment(data=data)\n",
        encoding="utf-8",
    )
    assert main(["compare", small, "--methods", "backprop,zero", "--json", str(file)]) == 2
    printed = capsys.readouterr()
    assert printed.out.splitlines()[2].startswith("backprop")
    assert printed.err == "error: experiment 'small': data() raised AssertionError: the third\n"
    document = json.loads(file.read_text(encoding="utf-8"))
    validate(document)
    assert [row["method"] for row in document["results"]] == ["backprop"]


def test_ctrl_c_in_the_experiments_own_function(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(small.rpartition(":")[0]).write_text("def tiny():\n    raise KeyboardInterrupt\n", encoding="utf-8")
    assert main(["compare", small]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_what_nobody_thought_of_is_one_line_and_its_trace_can_be_had(
    small: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def surprising(*_: Any) -> Any:
        raise TypeError("a surprise\nof two lines")

    monkeypatch.setattr(Comparison, "run", surprising)
    monkeypatch.delenv("SYNGRAD_TRACE", raising=False)
    assert main(["compare", small]) == 2
    said = "error: unexpected TypeError: a surprise; set SYNGRAD_TRACE=1 for the trace\n"
    assert capsys.readouterr() == ("", said)
    monkeypatch.setenv("SYNGRAD_TRACE", "1")
    with pytest.raises(TypeError, match="a surprise"):
        main(["compare", small])


def test_code_that_ends_the_program_in_the_midst_of_it(
    small: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Comparison, "run", lambda *_: sys.exit(0))
    assert main(["compare", small]) == 2
    assert capsys.readouterr().err.startswith("error: the experiment's code ended the program (SystemExit: 0); ")


def test_ctrl_c_while_it_is_imported(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Interrupts:
        @property
        def main(self) -> Any:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "syngrad.cli", Interrupts())
    from syngrad.__main__ import run

    assert run() == 130
    assert capsys.readouterr().err == "interrupted\n"


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("backprop,zero", ["backprop", "zero"]),
        (" backprop , zero ,", ["backprop", "zero"]),
        ("synthetic:mlp(hidden=2,width=64),mixed(0.5)", ["synthetic:mlp(hidden=2,width=64)", "mixed(0.5)"]),
        (",", []),
    ],
)
def test_commas_within_brackets_part_nothing(text: str, rows: list[str]) -> None:
    assert listed(text) == rows


def test_the_module_is_the_same_program() -> None:
    command = [sys.executable, "-m", "syngrad", "--version"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, f"syngrad {syngrad.__version__}\n", "")


def test_a_reader_that_leaves_ends_it_quietly() -> None:
    """As in `syngrad --help | true`."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        command = [sys.executable, "-m", "syngrad", "--help"]
        ended = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(writer)
    assert ended.stderr == ""
    assert ended.returncode in (1, cli.BROKEN_PIPE)
