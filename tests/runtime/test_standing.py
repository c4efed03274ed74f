"""A stage that stands still is named once, with a cause that was looked at; one that is meant to is not."""

from __future__ import annotations

import re
import warnings
from typing import Any

import pytest
import torch
from tests._support.models import CASES
from tests._support.training import trainer_of
from torch import Tensor, nn

import syngrad
from syngrad.errors import TrainingWarning

CASE = CASES["mlp"]
BATCH = CASE.batches(1)[0]


class Silent(nn.Module):
    """An estimator whose estimates are zero, or no numbers at all, whatever comes back."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.value, self.weight = value, nn.Parameter(torch.zeros(()))

    def forward(self, h: Tensor, context: Any) -> Tensor:
        return torch.full_like(h, self.value)


class Dead(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return torch.relu(h - 1e6)


class Cut(nn.Module):
    def forward(self, h: Tensor) -> Tensor:
        return h.detach()


def said(trainer: syngrad.Trainer, steps: int = 60) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(steps):
            trainer.step(BATCH)
    assert all(issubclass(each.category, TrainingWarning) for each in caught)
    return [str(each.message) for each in caught if "has not moved" in str(each.message)]


def model(part: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), part, nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 4)).double()


@pytest.mark.parametrize(
    ("part", "options", "cause"),
    [
        (nn.Tanh(), {"estimator": Silent()}, r"exactly zero, as is the estimate at '2' that it is made from; use"),
        (nn.Tanh(), {"estimator": Silent(), "true_every": 0, "quality_every": 0}, r"exactly zero; check what"),
        (
            nn.Tanh(),
            {"estimator": Silent(float("nan"))},
            r"of them were skipped.*not finite, and neither was the estim",
        ),
        (Dead(), {"estimator": "local(norm=False)"}, r"exactly zero"),
        (Cut(), {}, r"no gradient has come to any of its weights; .*without detach\(\)"),
    ],
)
def test_it_is_named_once_with_its_cause(part: nn.Module, options: dict[str, Any], cause: str) -> None:
    (text,) = said(trainer_of(model(part), ["2"], **options))
    assert re.search(rf"stage 'input' has not moved in \d+ updates: .*{cause}", text)
    assert "\n" not in text
    assert "learning rate" not in text


@pytest.mark.parametrize(
    "options",
    [
        {"method": "zero"},
        {"estimator": "zero"},
        {"estimator": {"2": "zero", "default": "linear"}},
        {"method": "backprop"},
        {"method": "delayed(1)"},
        {"freeze": ["0"], "estimator": "linear"},
        {"estimator": "linear", "feedback_every": 8, "feedback_delay": 3},
        {"estimator": "linear", "guard": None},
        {"update_probability": 0.2},
    ],
    ids=str,
)
def test_one_that_is_meant_to_stand_still_is_not_named(options: dict[str, Any]) -> None:
    assert said(trainer_of(model(nn.Tanh()), ["2"], **options)) == []


def test_one_that_is_frozen_while_it_stands_still_is_not_named() -> None:
    trainer = trainer_of(model(nn.Tanh()), ["2"], estimator=Silent())
    trainer.step(BATCH)
    trainer.model[0].requires_grad_(False)
    assert said(trainer) == []


def test_the_first_of_many_stages_has_time_to_begin() -> None:
    """Regressors begin one after the other, from the last to the first."""
    layers = [part for _ in range(30) for part in (nn.Linear(12, 12), nn.Tanh())]
    deep = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), *layers, nn.Linear(12, 4)).double()
    cuts = [str(2 * k + 2) for k in range(31)]
    assert said(trainer_of(deep, cuts, estimator="linear", true_every=0), 60) == []


def test_it_costs_nothing_once_all_have_moved() -> None:
    trainer = trainer_of(model(nn.Tanh()), ["2"])
    for _ in range(3):
        trainer.step(BATCH)
    assert not trainer.runner.updates.standing
