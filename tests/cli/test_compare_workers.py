"""`syngrad compare --workers`: what it writes and prints, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.report import several

from syngrad.cli import main
from syngrad.compare.over_workers import WorkersComparison
from syngrad.errors import TrainingError
from syngrad.results import Row, validate


@pytest.fixture
def made_up(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Rows without any training; the Trainer's options that they would have had."""
    options: list[dict[str, Any]] = []

    def row(self: WorkersComparison, label: str, seed: int, hosts: Any) -> Row:
        options.append(self.options)
        if label == "gpipe":
            raise TrainingError(several.FAILURE.removeprefix("failed: "))
        if label == "1f1b":
            raise RuntimeError("a mistake of ours")
        if label == "ddp:periodic":
            raise KeyboardInterrupt
        made = several.row(label, seed)
        if "trace" in self.options:
            self.accounts |= several.accounts([made])
        return made

    monkeypatch.setattr(WorkersComparison, "_row", row)
    return options


def compare(*arguments: str) -> int:
    return main(["compare", "regression", "--workers", "2", *arguments])


def test_the_report_with_its_timeline(
    made_up: list[dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    html, file, trace = tmp_path / "r.html", tmp_path / "r.json", tmp_path / "t.json"
    rows = "alone,ddp,gpipe,synthetic"
    given = ("--html", str(html), "--json", str(file), "--trace", str(trace), "--target", "0.8")
    assert compare("--methods", rows, *given) == 0
    assert all(each["trace"] is True for each in made_up)
    text = html.read_text(encoding="utf-8")
    assert 'id="figure-timeline-0"' in text
    assert several.FAILURE.replace("'", "&#39;") in text
    document = json.loads(file.read_text(encoding="utf-8"))
    validate(document)
    assert document["config"]["methods"] == rows.split(",")
    assert document["config"]["workers"] == 2
    assert document["verdict"]["pays"] == "yes"
    assert json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    printed = capsys.readouterr().out
    assert printed.startswith("row ")
    assert document["verdict"]["text"] in " ".join(printed.split())
    assert printed.endswith(f"the report: {html}\n")
    assert max(map(len, printed.partition("\nthe report")[0].splitlines())) <= 80


@pytest.mark.usefixtures("made_up")
def test_a_failed_row_that_is_the_first_does_not_name_the_metric(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "r.json"
    assert compare("--methods", "gpipe,alone", "--json", str(file)) == 0
    failed = json.loads(file.read_text(encoding="utf-8"))["results"][0]
    assert (failed["status"], failed["metric"]["name"]) == (several.FAILURE, "mse")
    assert capsys.readouterr().out.split()[1] == "mse"


@pytest.mark.usefixtures("made_up")
def test_a_results_file_is_run_again_from_itself(tmp_path: Path) -> None:
    first, again = tmp_path / "first.json", tmp_path / "again.json"
    assert compare("--methods", "alone,synthetic", "--estimator", "linear", "--json", str(first)) == 0
    assert main(["compare", "--config", str(first), "--json", str(again)]) == 0
    one, two = (json.loads(file.read_text(encoding="utf-8")) for file in (first, again))
    assert one["config"] == two["config"]
    assert one["config"]["methods"] == ["alone", "synthetic:linear"]
    assert [row["estimator"] for row in two["results"]] == ["", "linear"]


def test_without_a_file_that_shows_it_nothing_is_traced(made_up: list[dict[str, Any]]) -> None:
    assert compare("--methods", "alone,synthetic") == 0
    assert all("trace" not in each for each in made_up)


@pytest.mark.usefixtures("made_up")
def test_an_interrupt_or_a_mistake_loses_nothing_that_is_finished(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    html = tmp_path / "r.html"
    assert compare("--methods", "synthetic,ddp:periodic", "--html", str(html)) == 130
    assert html.exists()
    assert "finished rows: 1" in capsys.readouterr().err
    html.unlink()
    assert compare("--methods", "synthetic,1f1b", "--html", str(html)) == 2
    assert html.exists()
    told = capsys.readouterr()
    assert "a mistake of ours" in told.err
    assert told.out.startswith("row ")


@pytest.mark.usefixtures("made_up")
def test_two_files_of_one_name_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = str(tmp_path / "r.html")
    assert compare("--trace", file, "--html", file) == 2
    assert "--html and --trace both name" in capsys.readouterr().err


@pytest.mark.distributed
def test_a_comparison_of_two_rows_from_beginning_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    html, file = tmp_path / "r.html", tmp_path / "r.json"
    rows = ("--methods", "alone,synthetic", "--epochs", "1")
    assert compare(*rows, "--html", str(html), "--json", str(file)) == 0
    document = json.loads(file.read_text(encoding="utf-8"))
    validate(document)
    alone, several_ = document["results"]
    assert (alone["status"], several_["status"]) == ("ok", "ok")
    assert (alone["bytes_sent"], several_["processes"]) == (None, 2)
    assert alone["peak_memory_bytes"] > 0
    # 79 minibatches of 128 floats a sample and its two targets go up; something comes back for some of them
    samples, floats = 20_000, 128 + 2
    assert 4 * samples * floats <= several_["bytes_sent"] < 2.2 * 4 * samples * floats
    text = html.read_text(encoding="utf-8")
    assert 'id="figure-timeline-0"' in text
    assert "waits for the process below" in text
    table = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in table[:4:3]] == ["row", "synthetic"]
