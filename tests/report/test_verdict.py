"""The verdict is a pure function of the rows: literal rows, literal sentences."""

from __future__ import annotations

from typing import Any

import pytest

from syngrad.report.verdict import noise, verdict
from syngrad.results import Aggregate


def base(**more: Any) -> Aggregate:
    given: dict[str, Any] = {"value": 0.90, "metric_difference": 0.0, "step_ratio": 1.0, "saved_ratio": 1.0}
    return Aggregate("backprop", "", "ok", 1, "accuracy", True, **{**given, **more})


def synthetic(
    ratio: float | None, gap: float, saved: float | None, estimator: str = "default", **more: Any
) -> Aggregate:
    given: dict[str, Any] = {
        "value": 0.90 + gap,
        "metric_difference": gap,
        "step_ratio": ratio,
        "saved_ratio": saved,
    }
    status, seeds = more.pop("status", "ok"), more.pop("seeds", 1)
    return Aggregate("synthetic", estimator, status, seeds, "accuracy", True, **{**given, **more})


@pytest.mark.parametrize(
    ("rows", "pays", "text"),
    [
        (
            [base(), synthetic(0.8, -0.004, 0.5)],
            "yes",
            "In one process synthetic is faster (a step takes 0.80 × backprop's time), ends with the "
            "same accuracy within "
            "noise (−0.4 points, one seed) and keeps 0.50 × the activations: it pays.",
        ),
        (
            [base(), synthetic(1.25, -0.004, 0.3)],
            "memory",
            "In one process synthetic is slower (a step takes 1.25 × backprop's time), ends with the "
            "same accuracy within "
            "noise (−0.4 points, one seed) and keeps 0.30 × the activations: it pays only where memory "
            "is short, otherwise "
            "meh.",
        ),
        (
            [base(), synthetic(1.25, -0.042, 0.3)],
            "no",
            "In one process synthetic is slower (a step takes 1.25 × backprop's time), ends 4.2 points "
            "lower in accuracy "
            "(one seed) and keeps 0.30 × the activations: meh, it does not pay.",
        ),
        (
            [base(), synthetic(1.25, 0.0, 0.9)],
            "no",
            "In one process synthetic is slower (a step takes 1.25 × backprop's time), ends with the "
            "same accuracy within "
            "noise (+0.0 points, one seed) and keeps 0.90 × the activations: meh, it does not pay.",
        ),
        (
            [base(), synthetic(1.01, 0.03, 1.0)],
            "no",
            "In one process synthetic is as fast (a step takes 1.01 × backprop's time), ends 3.0 points "
            "higher in accuracy "
            "(one seed) and keeps 1.00 × the activations: meh, it does not pay.",
        ),
        (
            [base(), synthetic(0.5, -0.03, 0.5), synthetic(0.5, -0.06, 0.5, "local")],
            "no",
            "In one process synthetic is faster (a step takes 0.50 × backprop's time), ends 3.0 points "
            "lower in accuracy "
            "(one seed) and keeps 0.50 × the activations: meh, it does not pay; the gradient that comes back gains 3.0 "
            "points over local.",
        ),
        (
            [base(), synthetic(0.5, 0.0, 0.5), synthetic(0.5, 0.005, 0.5, "local")],
            "yes",
            "In one process synthetic is faster (a step takes 0.50 × backprop's time), ends with the "
            "same accuracy within "
            "noise (+0.0 points, one seed) and keeps 0.50 × the activations: it pays; the gradient that "
            "comes back adds "
            "nothing clear over local.",
        ),
        ([synthetic(None, -0.03, None)], None, "No verdict: there is no finished backprop row to compare with."),
        (
            [base(), synthetic(1.0, 0.0, 1.0, status="failed: x")],
            None,
            "No verdict: no row to hold against backprop has finished.",
        ),
    ],
)
def test_sentences(rows: list[Aggregate], pays: str | None, text: str) -> None:
    made = verdict(rows)
    assert (made.text, made.pays) == (text, pays)


def test_the_figures_stand_beside_the_sentence() -> None:
    made = verdict([base(), synthetic(1.25, -0.02, 0.3), synthetic(1.1, -0.05, 0.3, "local")])
    assert made.row == "synthetic"
    assert made.faster_by == pytest.approx(0.8)
    assert (made.metric_gap, made.memory_ratio) == (-0.02, 0.3)
    assert made.feedback_gain == pytest.approx(0.03)
    assert set(made.to_dict()) >= {"text", "faster_by", "metric_gap"}


def test_a_metric_that_is_better_low() -> None:
    rows = [
        Aggregate("backprop", "", "ok", 1, "mse", False, value=1.0, step_ratio=1.0, saved_ratio=1.0),
        Aggregate("synthetic", "default", "ok", 1, "mse", False, 1.5, None, 0.5, None, 0.1, 0.7, 1, 1.0),
    ]
    assert verdict(rows).pays == "no"
    assert "ends 0.5 higher in mse" in verdict(rows).text


def test_a_metric_of_the_users_own_is_not_judged() -> None:
    rows = [
        Aggregate("backprop", "", "ok", 1, "bleu", None, value=1.0, step_ratio=1.0, saved_ratio=1.0),
        Aggregate("synthetic", "default", "ok", 1, "bleu", None, 1.5, None, 0.5, None, 0.1, 0.7, 1, 1.0),
    ]
    assert verdict(rows).pays is None
    assert "pay" not in verdict(rows).text


def test_noise_shrinks_with_seeds_and_grows_with_spread() -> None:
    one = synthetic(1.0, 0.0, 1.0)
    three = synthetic(1.0, 0.0, 1.0, seeds=3, metric_difference_spread=0.001)
    wide = synthetic(1.0, 0.0, 1.0, seeds=3, metric_difference_spread=0.01)
    assert noise(one, base()) == 0.01
    assert noise(three, base()) == pytest.approx(4.3 * 0.001 / 3**0.5)
    assert noise(wide, base()) == pytest.approx(10 * noise(three, base()))
