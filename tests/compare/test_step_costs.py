"""Where a step's time goes: measured from outside, on trainers that are thrown away."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from tests._support import small
from tests._support.options import keywords
from torch import nn

from syngrad import Trainer, decouple
from syngrad.compare import step_costs
from syngrad.compare.step_costs import PARTS, Clock, RowError, split_seconds

BATCH = small.samples(16)


def bound(method: str, estimator: str = "default", **more: Any) -> Trainer:
    made = Trainer(
        decouple(small.model(), ["2", "4"]),
        loss=nn.functional.cross_entropy,
        method=method,
        estimator=estimator,
        progress=False,
        **keywords(quality_every=0, **more),
    )
    made.bind(BATCH)
    return made


METHODS = [("backprop", "default"), ("synthetic", "linear"), ("synthetic", "default"), ("mixed(0.5)", "linear")]
METHODS += [("delayed(1)", "default"), ("zero", "default")]


@pytest.mark.parametrize(("method", "estimator"), METHODS)
def test_every_part_is_told_and_only_estimators_estimate(method: str, estimator: str) -> None:
    (spent,) = split_seconds([bound(method, estimator)], [BATCH], 1)
    assert tuple(spent) == PARTS
    assert spent["forward"] > 0
    assert spent["optimizer"] > 0
    assert spent["backward"] > 0
    assert (spent["estimator"] > 0) == (method in ("synthetic", "mixed(0.5)"))


@pytest.fixture
def ticks(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    """A clock that ticks once a reading, so that times are counts of readings."""
    numbers = itertools.count()
    monkeypatch.setattr(step_costs.time, "perf_counter", lambda: float(next(numbers)))
    return numbers


def test_the_parts_make_the_whole(ticks: Iterator[int]) -> None:
    clock = Clock(bound("synthetic", "linear"))
    first = next(ticks)
    clock.step(BATCH)
    assert sum(clock.steps[0].values()) == next(ticks) - first - 2
    assert all(spent > 0 for spent in clock.steps[0].values())


def test_what_a_part_calls_of_another_counts_once(ticks: Iterator[int]) -> None:
    def estimator(nested: bool) -> float:
        trainer = bound("synthetic", "linear")
        for interface in trainer.net.interfaces:
            fit, estimate = interface.fit, type(interface).estimate

            def calling(
                *args: Any, fit: Any = fit, inner: Any = interface, outer: Any = estimate, **kwargs: Any
            ) -> None:
                (inner.estimate if nested else functools.partial(outer, inner))(args[0], args[1], args[3], False)
                fit(*args, **kwargs)

            vars(interface)["fit"] = calling
        clock = Clock(trainer)
        clock.step(BATCH)
        return clock.steps[0]["estimator"]

    assert estimator(nested=True) == estimator(nested=False)


def test_other_trainers_carry_no_clock() -> None:
    other = bound("synthetic", "linear")
    Clock(bound("synthetic", "linear"))
    assert "run" not in vars(other.stages[0])
    assert "estimate" not in vars(other.net.interfaces[0])
    other.step(BATCH)


def test_the_trainer_that_fails_is_named() -> None:
    fine, failing = bound("backprop"), bound("backprop")
    failing.loss = lambda output, target: None  # type: ignore[assignment,return-value]
    failing.runner.loss = failing.loss  # type: ignore[union-attr]
    with pytest.raises(RowError) as caught:
        split_seconds([fine, failing], [BATCH], 1)
    assert caught.value.index == 1
