"""A pilot: what it trains, what it makes of it, and when it says that it cannot tell."""

from __future__ import annotations

import re
from dataclasses import replace
from itertools import count
from types import SimpleNamespace

import pytest
from tests._support.planned import REAL, profile
from tests._support.planned_experiment import small

from syngrad import Experiment
from syngrad.errors import ConfigError
from syngrad.planner.layouts import Cluster
from syngrad.planner.pilot import Pilot, Piloted, _smoothed, pilot
from syngrad.planner.quantities import Link
from syngrad.planner.ranking import Plan, ranking
from syngrad.report.plan_text import pilot_text


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look at the clock is 5 ms, so that a pilot has as many steps on every machine."""
    looks = count()
    monkeypatch.setattr("syngrad.planner.pilot.time", SimpleNamespace(perf_counter=lambda: 0.005 * next(looks)))


@pytest.fixture(scope="module")
def planned() -> Plan:
    """A plan by hand for the small experiment, whose second unit starts at "2"."""
    model = profile(units=2, batch_size=32)
    model = replace(model, units=(model.units[0], replace(model.units[1], name="2")))
    return ranking(model, Cluster(REAL, 2))


def of(plan: Plan, ratios: tuple[float, ...]) -> Pilot:
    exact = plan.exact
    assert exact is not None
    samples = tuple(1000.0 for _ in ratios)
    other = Piloted(plan.best, tuple(1000 * ratio for ratio in ratios), ratios)
    return Pilot(Piloted(exact, samples, (1.0,) * len(ratios)), (other,), 0.5, 100)


def test_seconds_to_the_target_are_samples_at_the_plan_s_pace(planned: Plan) -> None:
    made = of(planned, (1.1, 1.1, 1.1))
    other = made.others[0]
    assert other.seconds == pytest.approx(1100 / planned.best.samples_per_s)
    assert other.interval == pytest.approx((1.1, 1.1))
    faster = planned.best.samples_per_s / made.exact.prediction.samples_per_s
    assert made.gain(other) == pytest.approx((faster / 1.1, faster / 1.1))


@pytest.mark.parametrize(
    ("ratios", "said"),
    [((1.0, 1.01, 1.0), "pays"), ((5.0, 5.1, 5.0), "does not pay"), ((0.5, 1.5, 3.0), "cannot tell")],
)
def test_the_verdict_is_as_sure_as_the_seeds_are(planned: Plan, ratios: tuple[float, ...], said: str) -> None:
    made = of(planned, ratios)
    assert made.verdict(made.others[0]) == said
    lines = pilot_text(made)
    assert max(map(len, lines)) <= 80
    assert f": {said}." in " ".join(line.strip() for line in lines)


def test_losses_are_smoothed_over_the_last_few() -> None:
    assert _smoothed([1.0] * 8 + [9.0] * 8)[:10] == [1.0] * 8 + [5.0, 9.0]


def test_the_fastest_train_beside_back_propagation(planned: Plan) -> None:
    found = pilot(small(), planned, 3.0, seeds=2)
    assert found is not None
    stages = [each for each in planned.ranked if each.layout.family == "stages"]
    assert [each.prediction for each in found.others] == stages[:2]
    assert found.exact.ratios == (1.0, 1.0)
    assert all(each.samples[0] % 32 == 0 for each in (found.exact, *found.others))


def test_a_pilot_too_short_is_refused_with_a_longer_one(planned: Plan) -> None:
    with pytest.raises(ConfigError, match=r"pilot 0.01 s is too short: .* give --pilot \d+"):
        pilot(small(), planned, 0.01)


def test_exact_layouts_leave_nothing_open() -> None:
    slow = ranking(profile(), Cluster(REAL, 2, 2, Link(5.0, 1e3)))
    assert slow.best.layout.updates == "exact"
    assert pilot(small(), slow, 1.0) is None


def measured_small() -> Experiment:
    return replace(small(), metric="accuracy")


def test_seconds_to_a_value_of_the_metric(planned: Plan) -> None:
    found = pilot(measured_small(), planned, 3.0, seeds=2, target=0.6)
    assert found is not None
    assert found.aim is not None
    assert found.aim.race is not None
    exact = found.aim.race.exact
    assert exact.seconds == pytest.approx(sum(exact.samples) / 2 / exact.prediction.samples_per_s)
    assert all(samples > 0 for samples in exact.samples)
    assert exact.ratios == (1.0, 1.0)
    text = " ".join(line.strip() for line in pilot_text(found))
    assert "To accuracy 0.6, on held-out data: " in text
    assert "A loss this early" not in text


def test_exact_layouts_alone_have_seconds_to_the_metric_too() -> None:
    model = profile(units=2, batch_size=32)
    slow = ranking(replace(model, units=(model.units[0], replace(model.units[1], name="2"))), Cluster(REAL, 1))
    found = pilot(measured_small(), slow, 1.5, seeds=2, target=0.6)
    assert found is not None
    assert found.others == ()
    assert found.aim is not None
    assert found.aim.race is not None
    assert found.aim.race.others == ()


def test_a_value_out_of_reach_cannot_be_told(planned: Plan) -> None:
    def flat(output: object, target: object) -> float:
        return 0.5

    flat.higher_is_better = True  # type: ignore[attr-defined]
    found = pilot(replace(small(), metric=flat), planned, 1.5, seeds=2, target=0.99)
    assert found is not None
    assert found.aim is not None
    assert found.aim.race is None
    lines = " ".join(line.strip() for line in pilot_text(found))
    assert re.search(r"cannot tell: the pilot ended at 0\.5; give --pilot 10 or a nearer target", lines)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        (0.001, r"the untrained model has accuracy 0\.\d+ already, and more of it is better"),
        (1.2, "target 1.2: an accuracy lies between 0 and 1"),
        (float("nan"), "target nan must be a finite number"),
    ],
)
def test_bad_targets_are_refused(planned: Plan, target: float, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        pilot(measured_small(), planned, 1.0, seeds=2, target=target)


def test_a_metric_of_which_nobody_says_what_is_better_has_no_target(planned: Plan) -> None:
    with pytest.raises(ConfigError, match=r"nobody says whether more or less of 'custom' is better"):
        pilot(replace(small(), metric=lambda output, target: 0.5), planned, 1.0, target=0.5)
