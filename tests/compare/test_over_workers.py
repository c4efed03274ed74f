"""The rows of a comparison over processes as they are asked for, checked before anything runs."""

from __future__ import annotations

import pytest

from syngrad.compare.over_workers import ROWS, WorkersComparison
from syngrad.errors import ConfigError, LinkError
from syngrad.results import Row


def labels(rows: list[str] | None, estimator: str | None = None) -> list[str]:
    return WorkersComparison("regression", 2, rows, estimator=estimator).labels


def test_the_rows_where_nobody_names_any() -> None:
    assert labels(None) == list(ROWS)


def test_an_estimator_goes_to_the_rows_that_estimate_and_name_none() -> None:
    rows = [
        "alone",
        "alone(threads)",
        "ddp:bf16",
        "gpipe",
        "delayed",
        "zero",
        "synthetic",
        "synthetic:local",
        "mixed(0.5)",
    ]
    found = labels(rows, "mlp(hidden=2)")
    assert found[:6] == rows[:6]
    assert found[6:] == ["synthetic:mlp(hidden=2)", "synthetic:local", "mixed(0.5):mlp(hidden=2)"]


def test_an_estimator_that_makes_two_of_the_standing_rows_the_same() -> None:
    assert labels(None, "local") == list(ROWS[:-1])


@pytest.mark.parametrize(
    ("rows", "estimator", "said"),
    [
        (["alone", "alone"], None, "row 'alone' is there twice"),
        (["synthetic", "synthetic:linear"], "linear", "row 'synthetic:linear' is there twice"),
        ([], None, "there are no rows to compare"),
        (["synthetic:nonsense"], None, "unknown estimator 'nonsense'"),
        (["synthetic"], "nonsense", "unknown estimator 'nonsense'"),
        (["backprop"], None, "write alone for one process"),
        (["delayed:linear"], None, "has no estimator"),
    ],
)
def test_what_cannot_be_compared(rows: list[str], estimator: str | None, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        labels(rows, estimator)


def test_a_row_that_fails_has_the_metric_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: WorkersComparison, label: str, seed: int, hosts: object) -> Row:
        if label == "alone":
            raise LinkError("its process is gone")
        return Row("synthetic", "default", seed, metric="mse", higher_is_better=False)

    monkeypatch.setattr(WorkersComparison, "_row", fails)
    failed, done = WorkersComparison("regression", 2, ["alone", "synthetic"]).run()
    assert failed.status == "failed: its process is gone"
    assert (failed.metric, failed.higher_is_better) == (done.metric, done.higher_is_better)
