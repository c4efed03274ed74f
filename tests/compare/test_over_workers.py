"""The rows of a comparison over processes as they are asked for, checked before anything runs."""

from __future__ import annotations

from collections.abc import Callable

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


def made_of(peaks: dict[str, int]) -> Callable[..., Row]:
    def made(self: WorkersComparison, label: str, seed: int, hosts: object) -> Row:
        return Row(label, "", seed, metric="mse", higher_is_better=False, peak_memory_bytes=peaks[label] << 20)

    return made


def test_a_row_with_more_memory_than_there_may_be_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WorkersComparison, "_row", made_of({"alone": 401, "synthetic": 400}))
    large, fits = WorkersComparison("regression", 2, ["alone", "synthetic"], memory=400).run()
    assert large.status == "does not fit: its largest process had 401 MiB"
    assert large.peak_memory_bytes == 401 << 20
    assert fits.ok


def test_where_no_row_fits_the_least_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(WorkersComparison, "_row", made_of({"alone": 401, "synthetic": 300}))
    with pytest.raises(ConfigError, match="no row fits memory=200 MiB: the least has 300 MiB; give that or more"):
        WorkersComparison("regression", 2, ["alone", "synthetic"], memory=200).run()


@pytest.mark.parametrize("memory", [0, -3.0, float("nan")])
def test_what_is_no_memory(memory: float) -> None:
    with pytest.raises(ConfigError, match="memory must be above 0"):
        WorkersComparison("regression", 2, memory=memory)
