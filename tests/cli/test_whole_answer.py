"""`syngrad compare --answer`: three parts, one answer; what one of them loses, the others keep."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests._support import worker_rows
from tests._support.planned import REAL, profile

import syngrad.planner
from syngrad.cli import main, whole_answer
from syngrad.compare import Comparison
from syngrad.compare.over_workers import WorkersComparison
from syngrad.errors import TrainingError
from syngrad.experiments import load
from syngrad.planner.layouts import Cluster
from syngrad.planner.ranking import Plan, changes, ranking
from syngrad.results import Row


class Made:
    """What the parts do instead of training: rows made up, or an error; `ran` says which were begun."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.one: BaseException | None = None
        self.workers: BaseException | None = None
        self.plan: BaseException | None = None


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Made:
    found = Made()

    def described(self: Any) -> None:
        self.description = {
            "name": "fashion-mlp", "dataset": "made up", "parameters": 1, "samples": 1, "batch_size": 256, "epochs": 1,
            "stages": 2, "cuts": ["3"], "seed": 0, "seeds": 1, "target": None,
        }  # fmt: skip

    def one(self: Comparison) -> None:
        found.ran.append("one")
        described(self)
        for label in self.labels:
            row = worker_rows.row("alone" if label == "backprop" else label, processes=1)
            row.step_ratio, row.step_s = (1.0 if label == "backprop" else 1.3), 0.01
            self.rows.append(row)
            if found.one is not None:
                raise found.one

    def workers(self: WorkersComparison) -> None:
        found.ran.append(f"workers {self.workers}")
        described(self)
        for label in self.labels:
            self.rows.append(worker_rows.row(label))
            if found.workers is not None:
                raise found.workers
        self.accounts = worker_rows.accounts(self.rows)

    def planned(name: str, workers: int, **given: Any) -> Plan:
        found.ran.append(f"plan {workers}")
        if found.plan is not None:
            raise found.plan
        plan = ranking(profile(batch_size=32), Cluster(REAL, workers))
        return replace(plan, changes=changes(plan))

    monkeypatch.setattr(Comparison, "run", one)
    monkeypatch.setattr(WorkersComparison, "run", workers)
    monkeypatch.setattr(syngrad.planner, "plan", planned)
    monkeypatch.setattr(whole_answer, "cores", lambda: 2)
    return found


def answer(*arguments: str) -> int:
    return main(["compare", "fashion-mlp", "--answer", *arguments])


def test_three_parts_and_one_answer(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    html, file = tmp_path / "r.html", tmp_path / "r.json"
    assert answer("--html", str(html), "--json", str(file)) == 0
    assert made.ran == ["one", "workers 2", "plan 2"]
    printed = capsys.readouterr().out
    heads = ["1. In one process", "2. Over 2 workers", "3. Other links", "The answer"]
    assert [line for line in printed.splitlines() if line in heads] == heads
    text = " ".join(printed.split())
    assert "On this machine: synthetic:local over 2 workers, 36,000 samples a second" in text
    assert "With the workers on hosts of their own (planned)" in text
    assert max(map(len, printed.partition("\nthe report")[0].splitlines())) <= 80
    document = json.loads(file.read_text(encoding="utf-8"))
    assert document["verdict"]["row"] == "synthetic:local"
    assert document["plan"]["layouts"]
    assert len(document["workers"]["results"]) == len(whole_answer.ROWS)
    page = html.read_text(encoding="utf-8")
    for part in ("one-learning", "workers-waiting", "plan-speedup"):
        assert f'id="{part}"' in page
    assert 'id="figure-workers-timeline-0"' in page
    assert 'id="figure-plan-timeline-0"' in page


def test_its_results_file_runs_it_again(made: Made, tmp_path: Path) -> None:
    first, again = tmp_path / "first.json", tmp_path / "again.json"
    assert answer("--seeds", "2", "--json", str(first)) == 0
    assert main(["compare", "--config", str(first), "--json", str(again)]) == 0
    one, two = (json.loads(file.read_text(encoding="utf-8"))["config"] for file in (first, again))
    assert one == two
    assert made.ran == ["one", "workers 2", "plan 2"] * 2


def test_with_one_core_the_workers_are_left_out(
    made: Made, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(whole_answer, "cores", lambda: 1)
    assert answer() == 0
    assert made.ran == ["one", "plan 2"]
    said = " ".join(capsys.readouterr().out.split())
    assert "Several workers were left out: this machine has one core." in said


def test_one_stage_has_no_workers(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    assert answer("--stages", "1") == 0
    assert made.ran == ["one", "plan 2"]
    assert "fashion-mlp is one stage; --stages 2 cuts it." in " ".join(capsys.readouterr().out.split())


def test_there_are_no_more_workers_than_stages(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whole_answer, "cores", lambda: 64)
    assert answer() == 0
    cuts = load("fashion-mlp").cuts
    assert cuts is not None
    assert made.ran[1] == f"workers {len(cuts) + 1}"


@pytest.mark.parametrize("part", ["one", "workers", "plan"])
def test_a_part_that_fails_leaves_the_others(
    made: Made, part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setattr(made, part, TrainingError("it broke; mend it"))
    file, html = tmp_path / "r.json", tmp_path / "r.html"
    assert answer("--json", str(file), "--html", str(html)) == 2
    assert made.ran == ["one", "workers 2", "plan 2"]
    told = capsys.readouterr()
    assert told.err.count("error: it broke; mend it") == 1
    assert "it failed." in told.out
    document = json.loads(file.read_text(encoding="utf-8"))
    assert set(document) >= {"one_process", "workers", "plan"} - {part}
    assert html.exists()


@pytest.mark.parametrize(("part", "ran"), [("one", 1), ("workers", 2), ("plan", 3)])
def test_an_interrupt_keeps_what_is_finished(
    made: Made, part: str, ran: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    setattr(made, part, KeyboardInterrupt())
    file = tmp_path / "r.json"
    assert answer("--json", str(file)) == 130
    assert len(made.ran) == ran
    told = capsys.readouterr()
    assert "interrupted" in told.err
    assert "The answer" in told.out
    document = json.loads(file.read_text(encoding="utf-8"))
    assert document["one_process"]["results"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--methods", "zero"], "--answer says itself what it compares; leave --methods out, or it"),
        (["--link", "20ms,100mbit"], "leave --link out, or it"),
        (["--json", "/nowhere/r.json"], "there is no folder '/nowhere'"),
        (["--workers", "1"], "workers must be a whole number of at least 2"),
        (["--target", "85"], "target 85: an accuracy lies between 0 and 1"),
    ],
)
def test_what_it_cannot_use_is_refused(
    made: Made, arguments: Sequence[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert answer(*arguments) == 2
    assert said in capsys.readouterr().err
    assert made.ran == []


@pytest.mark.usefixtures("made")
def test_a_recurrent_net_is_no_case_for_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "copy", "--answer"]) == 2
    assert "trains a recurrent net, in one process" in capsys.readouterr().err


def test_rows_that_are_as_fast_are_answered_by_the_plainest() -> None:
    rows: list[Row] = [worker_rows.row("alone", rate=1000.0), worker_rows.row("synthetic", rate=1030.0)]
    from syngrad.report.measured import measured
    from syngrad.report.three_parts import Parts, answered

    document = worker_rows.whole(rows)
    said = answered(Parts(workers=measured(document)))
    assert (said.row, said.pays) == ("alone", "no")
    assert said.text.startswith("On this machine: one process alone, 1,000 samples a second; synthetic over 2 workers")
