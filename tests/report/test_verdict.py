"""The verdict is a pure function of the rows: literal rows, literal sentences."""

from __future__ import annotations

from typing import Any

import pytest
from tests.report import made as made_up

from syngrad.report import verdict as told
from syngrad.report.phrasing import noise
from syngrad.results import Aggregate


def verdict(rows: list[Aggregate], target: float | None = None, baseline: str | None = None) -> told.Verdict:
    return told.verdict(made_up.compared(rows, target, baseline))


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


def test_noise_is_half_the_interval_where_there_is_one() -> None:
    assert noise(synthetic(1.0, 0.0, 1.0), base()) == 0.01
    assert noise(synthetic(1.0, 0.0, 1.0, metric_difference_interval=[-0.002, 0.004]), base()) == pytest.approx(0.003)


@pytest.mark.parametrize(
    ("gap", "interval", "pays", "said"),
    [
        (
            -0.005,
            [-0.02, 0.01],
            "yes",
            "ends with the same accuracy within noise (−0.5 points, 3 seeds, 95 % interval −2.0 to +1.0)",
        ),
        (-0.005, [-0.006, -0.004], "yes", "ends 0.5 points lower in accuracy (3 seeds, 95 % interval −0.6 to −0.4)"),
        # a wide interval is no licence: what the seeds cannot tell apart is not thereby bearable
        (
            -0.05,
            [-0.2, 0.1],
            "no",
            "ends 5.0 points lower in accuracy, which the seeds cannot tell from chance (3 seeds, 95 % interval "
            "−20.0 to +10.0)",
        ),
    ],
)
def test_several_seeds(gap: float, interval: list[float], pays: str, said: str) -> None:
    made = verdict([base(), synthetic(0.8, gap, 0.5, seeds=3, metric_difference_interval=interval)])
    assert made.pays == pays
    assert said in made.text
    assert made.reasons == [] or "seed" not in made.reasons[-1]


def test_one_seed_is_said_to_give_no_interval() -> None:
    made = verdict([base(), synthetic(0.8, -0.004, 0.5)])
    assert made.reasons == ["With one seed there is no interval; --seeds 3 gives one."]
    assert made.said == f"{made.text} {made.reasons[0]}"
    assert made.to_dict()["reasons"] == made.reasons


@pytest.mark.parametrize(
    ("mine", "backprop", "said"),
    [
        (
            {"reached": 1, "time_to_target_s": 6.0, "time_to_target_ratio": 1.2},
            {"reached": 1, "time_to_target_s": 5.0},
            "To accuracy 85 % synthetic takes 6 s, backprop 5 s (1.20 × the time).",
        ),
        (
            {"reached": 0},
            {"reached": 1, "time_to_target_s": 5.125},
            "Only backprop reaches accuracy 85 %, in 5.12 s; synthetic does not.",
        ),
        ({"reached": 0}, {"reached": 0}, "Neither synthetic nor backprop reaches accuracy 85 %."),
        (
            {"reached": 2, "seeds": 3, "time_to_target_s": 6.0},
            {"reached": 3, "seeds": 3, "time_to_target_s": 5.0},
            "To accuracy 85 % synthetic takes 6 s with 2 of 3 seeds, backprop 5 s.",
        ),
    ],
)
def test_the_time_to_a_target(mine: dict[str, Any], backprop: dict[str, Any], said: str) -> None:
    seeds = {"seeds": backprop.pop("seeds", 1)}
    first = Aggregate("backprop", "", "ok", seeds["seeds"], "accuracy", True, value=0.9, step_ratio=1.0, **backprop)
    assert verdict([first, synthetic(0.8, 0.0, 0.5, **mine)], target=0.85).reasons[0] == said
    assert all("85" not in reason for reason in verdict([first, synthetic(0.8, 0.0, 0.5, **mine)]).reasons)


@pytest.mark.parametrize(
    ("gap", "quality", "said"),
    [
        (
            -0.05,
            {"cosines": {"3": 0.8, "5": 0.1}},
            "The likely reason for the gap: at 5 the cosine of its estimates with the returning gradient is 0.10.",
        ),
        (
            -0.05,
            {"cosines": {"3": 0.8}, "true_cosines": {"3": -0.2}},
            "The likely reason for the gap: at 3 the cosine of its estimates with the true gradient is −0.20.",
        ),
        (
            -0.05,
            {"cosines": {"3": 0.8}, "norm_ratios": {"3": 7.5}},
            "The likely reason for the gap: at 3 its estimates are 7.5 × as long as the returning gradient.",
        ),
        (
            -0.05,
            {"cosines": {"3": 0.8, "5": 0.6}, "norm_ratios": {"3": 0.9}},
            "Its estimates point the right way (the lowest cosine with the returning gradient is 0.60, at 5); the gap "
            "is not explained by their direction.",
        ),
        (-0.005, {"cosines": {"3": 0.1}}, None),
        (0.05, {"cosines": {"3": 0.1}}, None),
        (-0.05, {"cosines": {"3": None}}, None),
    ],
)
def test_the_quality_of_the_estimates_where_it_explains_a_gap(
    gap: float, quality: dict[str, Any], said: str | None
) -> None:
    reasons = verdict([base(), synthetic(0.8, gap, 0.5, **quality)]).reasons
    assert [reason for reason in reasons if "estimates" in reason] == ([said] if said else [])


def test_updates_that_were_skipped() -> None:
    rows = [base(), synthetic(0.8, 0.0, 0.5, guarded=3), synthetic(0.8, 0.0, 0.5, "linear", guarded=40)]
    assert (
        "Updates skipped because an estimate was not finite or ran away: 3 of synthetic and 40 of synthetic:linear."
        in (verdict(rows).reasons)
    )


def test_seeds_that_are_missing() -> None:
    rows = [base(), synthetic(0.8, 0.0, 0.5, seeds=2, failed=1, failure="failed: loss is nan")]
    assert "synthetic rests on 2 of 3 seeds: failed: loss is nan." in verdict(rows).reasons


@pytest.mark.parametrize(
    ("ratio", "gain", "pays"), [(1.3, 0.5, "yes"), (1.6, 0.5, "no"), (1.3, 0.002, "no"), (1.3, -0.5, "no")]
)
def test_of_a_recurrent_net_a_better_metric_at_a_bearable_price_pays(ratio: float, gain: float, pays: str) -> None:
    kept: dict[str, Any] = {"metric_difference_interval": [gain - 0.001, gain + 0.001], "step_ratio": ratio}
    plain = Aggregate("bptt(3)", "", "ok", 3, "length", True, 3.0, step_ratio=1.0, saved_ratio=1.0, base=True)
    ours = Aggregate(
        "synthetic(3)", "linear", "ok", 3, "length", True, 3 + gain, metric_difference=gain, saved_ratio=1.0, **kept
    )
    said = verdict([plain, ours], baseline="bptt(3)")
    assert said.pays == pays
    assert f"{ratio:.2f} × bptt(3)'s time" in said.text
