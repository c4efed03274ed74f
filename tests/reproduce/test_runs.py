"""Runs of a study: kept after each, gone on with where they stopped, and never mixed with others."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests._support.small_study import STUDY, TINY, Tiny

from syngrad.errors import ConfigError, TrainingError
from syngrad.reproduce import Case, Runs, runs, summary
from syngrad.reproduce.study import BASE
from syngrad.results import Row


def test_all_of_it(tmp_path: Path) -> None:
    made = Runs(STUDY, TINY, tmp_path / "new" / "folder")
    assert len(made.missing) == 4
    document = made.run()
    assert made.missing == []
    kept = json.loads(made.file.read_text(encoding="utf-8"))
    assert kept == json.loads(json.dumps(document))
    assert made.file.name == "tiny-quick.json"
    assert {"cpu", "torch"} <= kept["environment"].keys()
    assert kept["scale"]["steps"] == 1
    assert [(run["row"], run["seed"]) for run in kept["runs"]] == [
        (BASE, 0), ("estimated", 0), (BASE, 1), ("estimated", 1)
    ]  # fmt: skip
    assert all(0 <= run["value"] <= 100 and run["seconds"] > 0 for run in kept["runs"])


def test_it_is_gone_on_with_after_an_interrupt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, trained = runs.train, []

    def interrupted(case: Case, seed: int, *how: Any) -> Row:
        if len(trained) == 3:
            raise KeyboardInterrupt
        trained.append((case.row, seed))
        return real(case, seed, *how)

    whole = Runs(STUDY, TINY, tmp_path / "whole").run()
    monkeypatch.setattr(runs, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Runs(STUDY, TINY, tmp_path).run()
    again = Runs(STUDY, TINY, tmp_path)
    assert [(case.row, seed) for case, seed in again.missing] == [("estimated", 1)]
    monkeypatch.setattr(runs, "train", real)
    values = [(run["row"], run["seed"], run["value"]) for run in again.run()["runs"]]
    assert values == [(run["row"], run["seed"], run["value"]) for run in whole["runs"]]
    more = Runs(STUDY, TINY, tmp_path, seeds=3)
    assert [seed for _, seed in more.missing] == [2, 2]


def test_other_settings_are_refused_and_nothing_is_lost(tmp_path: Path) -> None:
    file = Runs(STUDY, replace(TINY, seeds=1), tmp_path)
    file.run()
    before = file.file.read_bytes()
    with pytest.raises(ConfigError, match=r"other settings \(back-propagation at 2 had steps 1, here 2\); remove"):
        Runs(STUDY, replace(TINY, steps=2), tmp_path)
    fewer = replace(STUDY, cases=lambda scale: STUDY.cases(scale)[1:])
    with pytest.raises(ConfigError, match="is no longer a case"):
        Runs(fewer, TINY, tmp_path)
    assert file.file.read_bytes() == before


@pytest.mark.parametrize("text", ["{", "[]", '{"schema": 1}', '{"schema": 1, "study": "tiny", "runs": [{}]}'])
def test_what_is_no_file_of_runs_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "tiny-quick.json").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"tiny-quick\.json"):
        Runs(STUDY, TINY, tmp_path)


def test_a_run_that_fails_is_kept_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = runs.train

    def failing(case: Case, seed: int, *how: Any) -> Row:
        if case.row == BASE:
            return Row("backprop", "", seed, "failed: the loss is not finite")
        return real(case, seed, *how)

    monkeypatch.setattr(runs, "train", failing)
    document = Runs(STUDY, TINY, tmp_path).run()
    points = {(point.row, point.x): point for point in summary(STUDY, document)}
    assert (points[BASE, 2].seeds, points[BASE, 2].failed, points[BASE, 2].mean) == (0, 2, None)
    assert points["estimated", 2].seeds == 2
    assert points["estimated", 2].gap is None


def test_a_training_that_breaks_off_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any) -> Row:
        raise TrainingError("the loss is not finite\nmore")

    monkeypatch.setattr("syngrad.reproduce.one_run.Training.run", broken)
    row = runs.train(STUDY.cases(TINY)[0], 0)
    assert row.status.startswith("failed: ")
    assert "\n" not in row.status


def test_data_that_is_not_there_is_told_before_anything_runs(tmp_path: Path) -> None:
    absent = replace(STUDY, cases=lambda scale: [Case(BASE, Tiny(there=False), "backprop", 2)])
    with pytest.raises(ConfigError, match="run 'syngrad data fetch points'"):
        Runs(absent, TINY, tmp_path / "new").check_data()
    assert not (tmp_path / "new").exists()


def _run(row: str, x: float | None, seed: int, value: float | None) -> dict[str, Any]:
    return {"row": row, "x": x, "seed": seed, "value": value, "seconds": 2.0 if row == BASE else 3.0, "status": "ok"}


def test_means_intervals_and_gaps_are_paired_by_seed() -> None:
    values = {BASE: (90.0, 94.0), "estimated": (89.0, 92.0)}
    made = [_run(row, 2, seed, value) for row, both in values.items() for seed, value in enumerate(both)]
    base, ours, unrun = summary(STUDY, {"runs": made})
    assert base.mean == 92.0
    assert base.half == pytest.approx(12.7062 * 2)  # t·s/√n = t·|difference|/2 for two
    assert base.gap is None
    assert (ours.gap, ours.gap_half) == (-1.5, pytest.approx(12.7062 / 2))
    assert ours.times == 1.5
    assert [figure.value for figure in base.published] == [99.5]
    assert (unrun.row, unrun.x, unrun.seeds) == ("estimated", 50, 0)


def test_a_base_of_one_place_is_the_base_of_all() -> None:
    made = [_run(BASE, 1, 0, 90.0), _run("estimated", 0.5, 0, 80.0), _run("estimated", 1, 0, 85.0)]
    points = {(point.row, point.x): point.gap for point in summary(STUDY, {"runs": made})}
    assert (points["estimated", 0.5], points["estimated", 1]) == (-10.0, -5.0)
