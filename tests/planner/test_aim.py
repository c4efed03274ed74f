"""When a training reaches a value of its metric: seen, computed where the rule holds, or not to be told."""

from __future__ import annotations

import math

import pytest

from syngrad.planner.aim import best_there_is, longer_pilot, reach


def power(count: int = 20, exponent: float = 0.5, noise: float = 0.0) -> list[tuple[float, float]]:
    """An error of samples^−exponent, as an accuracy, with a ripple."""
    made = [(0.0, 0.1)]
    for k in range(1, count + 1):
        samples = 100.0 * k
        made.append((samples, 1 - samples**-exponent * math.exp(noise * (-1) ** k)))
    return made


def test_what_was_seen_is_interpolated() -> None:
    found = reach([(0, 0.1), (100, 0.5), (200, 0.7)], 0.6, True, 1.0)
    assert found is not None
    assert (found.samples, found.half) == (pytest.approx(150), 0)
    down = reach([(0, 2.0), (100, 1.0)], 1.5, False, 0.0)
    assert down is not None
    assert down.samples == pytest.approx(50)


def test_a_power_law_goes_on_up_to_twice_the_samples() -> None:
    there = reach(power(), 1 - 3000**-0.5, True, 1.0)
    assert there is not None
    assert there.samples == pytest.approx(3000, rel=1e-6)
    assert there.half == pytest.approx(0, abs=1e-6)
    assert reach(power(), 1 - 5000**-0.5, True, 1.0) is None


def test_the_interval_grows_with_the_noise_and_the_distance() -> None:
    near, far = (reach(power(noise=0.02), 1 - n**-0.5, True, 1.0) for n in (2300, 3000))
    assert near is not None
    assert far is not None
    assert 0 < near.half < far.half < 0.5


@pytest.mark.parametrize(
    "curve",
    [
        power(8),  # four validations in the second half
        [(100.0 * k, 0.5) for k in range(20)],  # nothing falls
        [(100.0 * k, 0.5 + 0.1 * (-1) ** k) for k in range(20)],  # no line
        [(100.0 * k, 0.9 - 0.01 * k) for k in range(20)],  # it gets worse
    ],
)
def test_where_the_rule_does_not_hold_nothing_is_told(curve: list[tuple[float, float]]) -> None:
    assert reach(curve, 0.97, True, 1.0) is None


def test_without_a_best_value_nothing_is_computed() -> None:
    assert best_there_is("bleu", True) is None
    assert (best_there_is("accuracy", True), best_there_is("mse", False)) == (1.0, 0.0)
    assert reach(power(), 1 - 3000**-0.5, True, None) is None


def test_a_longer_pilot_is_as_long_as_the_line_says() -> None:
    assert longer_pilot(60, power(), 1 - 6000**-0.5, 1.0) == 240  # 3 times the samples, and a third more
    assert longer_pilot(60, [(0, 0.1), (100, 0.1)], 0.9, 1.0) == 300
