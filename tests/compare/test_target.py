"""Targets, series and counts of a comparison; a stand-in for `fit` gives the curves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests._support import small

from syngrad import SyngradError, Trainer
from syngrad.compare import Comparison
from syngrad.results import Row, aggregate, document, environment, validate
from syngrad.trainer.history import Epoch, History


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `fit` was asked for; it trains nothing and says that accuracy rose by a tenth every quarter of an epoch."""
    asked: list[dict[str, Any]] = []

    def fit(self: Trainer, loader: Any, epochs: int, **more: Any) -> History:
        asked.append({"epochs": epochs, **{k: v for k, v in more.items() if k not in ("on_epoch", "validate")}})
        name = self.metric[0] if self.metric else "loss"
        made = History(name)
        start = 0.5 if self.method.name == "backprop" else 0.4
        made.points = [(k / 4, float(k), {name: start + k / 10}) for k in range(1, 5)]
        made.epochs = [Epoch(1, 0.7, 4.0, 64, 0.1, {name: 0.9})]
        series = [[10 * k, 0.5, 1.0, 0.2, 0.1] for k in range(1000)]
        made.interfaces = [{"cut": "2", "cosine": 0.5, "norm_ratio": 1.0, "estimator_loss": None, "staleness": 0.0,
                            "history": series, "true_history": []}]  # fmt: skip
        made.guarded = {"0": 2}
        self.bind(small.samples(16))
        return made

    monkeypatch.setattr(Trainer, "fit", fit)
    return asked


def compared(target: float | None = None, **changes: Any) -> list[Row]:
    comparison = Comparison(small.experiment(**changes), ["backprop", "synthetic"], timing_s=0, target=target)
    comparison.run()
    validate(document(environment(1), comparison.description, comparison.rows, None))
    assert comparison.description["target"] == target
    return comparison.rows


def test_a_target_is_looked_for_four_times_an_epoch(fitted: list[dict[str, Any]]) -> None:
    rows = compared(0.85)
    assert fitted == [{"epochs": 1, "validate_every": 1}] * 2  # an epoch has 4 minibatches
    assert [row.time_to_target_s for row in rows] == [pytest.approx(3.5), None]
    base, synthetic = aggregate(rows)
    assert (base.reached, synthetic.reached, synthetic.time_to_target_ratio) == (1, 0, None)


def test_without_a_target_the_metric_is_taken_once_an_epoch(fitted: list[dict[str, Any]]) -> None:
    rows = compared()
    assert fitted == [{"epochs": 1, "validate_every": None}] * 2
    assert [row.time_to_target_s for row in rows] == [None, None]


def test_a_loader_that_does_not_tell_its_length_is_counted(fitted: list[dict[str, Any]]) -> None:
    class Unsized:
        def __iter__(self) -> Iterator[Any]:
            return iter([small.samples(4)] * 41)

    compared(0.85, data=lambda batch_size, seed: (Unsized(), [small.samples()]))
    assert fitted[0]["validate_every"] == 10


def test_what_a_run_leaves_is_kept_with_its_row(fitted: list[dict[str, Any]]) -> None:
    row = compared()[0]
    series = row.interfaces[0]["history"]
    assert isinstance(series, list)
    assert (len(series), series[0][0], series[-1][0]) == (200, 0, 9990)
    assert row.guarded == {"0": 2}
    assert row.train_loss == [(1, 4.0, 0.7)]
    assert row.history[0] == (0.25, 1.0, 0.6)
    assert row.peak_memory_bytes is None


def test_a_real_run_validates_within_its_epochs() -> None:
    comparison = Comparison(small.experiment(epochs=2), ["backprop"], timing_s=0, target=0.4)
    (row,) = comparison.run()
    assert [epoch for epoch, _, _ in row.history] == [k / 4 for k in range(1, 9)]
    seconds = [s for _, s, _ in row.history]
    assert seconds == sorted(seconds)
    assert row.time_to_target_s is None or 0 < row.time_to_target_s <= seconds[-1]
    assert row.trainer is not None
    assert row.trainer["method"] == "backprop"


def no_name(output: Any, target: Any) -> float:
    return float((output.argmax(1) == target).float().mean())


def test_a_target_needs_to_know_which_way_is_better(fitted: list[dict[str, Any]], monkeypatch: Any) -> None:
    with pytest.raises(SyngradError, match=r"target 0.5: nobody says .* 'no_name' is better"):
        compared(0.5, metric=no_name)
    monkeypatch.setattr(no_name, "higher_is_better", True, raising=False)
    assert compared(0.65, metric=no_name)[0].time_to_target_s == pytest.approx(1.5)


@pytest.mark.parametrize("target", [85, 0, -0.1])
def test_an_accuracy_lies_between_nothing_and_one(target: float) -> None:
    with pytest.raises(SyngradError, match=r"write 0\.88 for 88 %"):
        compared(target)


def test_a_target_is_a_finite_number(fitted: list[dict[str, Any]]) -> None:
    with pytest.raises(SyngradError, match="target inf must be a finite number"):
        compared(float("inf"), metric="mse")


def test_the_split_stands_in_every_row_of_a_timed_run(fitted: list[dict[str, Any]]) -> None:
    comparison = Comparison(small.experiment(), ["backprop", "synthetic:linear"], timing_s=1e-9)
    comparison.run()
    for row in comparison.rows:
        assert row.step_split is not None
        assert set(row.step_split) == {"forward", "backward", "estimator", "optimizer"}
