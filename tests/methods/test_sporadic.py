"""Sporadic updates: who takes part, and what stands still."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests._support.models import CASES, assert_same, tensors_of
from tests._support.training import momentum_trainer
from torch import nn

CASE = CASES["mlp"]


def sporadic(
    method: str, seed: int, p: float, steps: int = 30, **options: Any
) -> tuple[list[tuple[bool, ...]], Any, Any]:
    """What moved on every minibatch: (stages…, interfaces…), and every tensor at the end."""
    model = CASE.model()
    trainer = momentum_trainer(model, method=method, estimator="linear", seed=seed, update_probability=p, **options)
    batches = CASE.batches(steps)
    trainer.bind(batches[0])
    torch.manual_seed(9)
    for parameter in trainer.net.estimators.parameters():
        nn.init.normal_(parameter, std=0.1)
    things = [*trainer.net.segments, *trainer.net.interfaces]
    rows = []
    for batch in batches:
        before = [tensors_of(thing) for thing in things]
        trainer.step(batch)
        after = [tensors_of(thing) for thing in things]
        rows.append(tuple(any(not torch.equal(a[n], b[n]) for n in a) for a, b in zip(before, after, strict=True)))
    return rows, tensors_of(model), tensors_of(trainer.net.estimators)


@pytest.mark.parametrize("scope", ["model", "stage"])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("synthetic", {}),
        ("synthetic", {"feedback": "true"}),
        ("synthetic", {"warmup": 30}),
        ("mixed(0.5)", {}),
        ("backprop", {}),
    ],
    ids=["synthetic", "true", "warmup", "mixed", "backprop"],
)
def test_sporadic_updates(method: str, options: dict[str, Any], scope: str) -> None:
    rows, weights, estimators = sporadic(method, 1, 0.5, optimizer_scope=scope, **options)
    stages = list(zip(*rows, strict=True))[:4]
    for moved in stages:
        assert 5 <= sum(moved) <= 25
    assert len(set(stages)) == 4, "each stage draws for itself"
    again, same_weights, same_estimators = sporadic(method, 1, 0.5, optimizer_scope=scope, **options)
    assert again == rows
    assert_same(same_weights, weights)
    assert_same(same_estimators, estimators)
    assert sporadic(method, 2, 0.5, 8, optimizer_scope=scope, **options)[0] != rows[:8]


@pytest.mark.parametrize(
    ("method", "options"),
    [("synthetic", {}), ("synthetic", {"feedback": "true"}), ("synthetic", {"warmup": 30}), ("mixed(0.5)", {})],
    ids=["synthetic", "true", "warmup", "mixed"],
)
def test_an_estimator_under_a_stage_that_does_not_take_part_is_not_fitted(method: str, options: dict[str, Any]) -> None:
    rows, _, _ = sporadic(method, 1, 0.5, **options)
    fitted = [(row[k + 1], row[4 + k]) for row in rows for k in range(3)]
    assert any(estimator for _, estimator in fitted)
    assert all(stage for stage, estimator in fitted if estimator)


def test_with_probability_one_everybody_takes_part() -> None:
    rows, _, _ = sporadic("synthetic", 1, 1.0, 5)
    assert all(all(row) for row in rows)
