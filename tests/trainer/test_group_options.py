"""Options of groups that the optimiser does not take, refused when it is made."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests._support.models import CASES
from tests._support.training import one_line, trainer_of

from syngrad.errors import ConfigError

CASE = CASES["mlp"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"weight_decy": 0.0}, "did you mean 'weight_decay'?"),
        ({"params": []}, "unknown option of Adam in groups['*.bias']: 'params'"),
        ({"nesterov": True}, "valid: amsgrad, betas"),
    ],
)
def test_an_option_that_the_optimiser_does_not_have_is_refused(options: dict[str, Any], says: str) -> None:
    """PyTorch itself would keep it in the group and never look at it."""
    with pytest.raises(ConfigError) as caught:
        trainer_of(groups={"*.bias": options}).bind(CASE.batches(1)[0])
    assert says in one_line(caught)


@pytest.mark.parametrize(
    "options",
    [
        {"lr": -1.0},
        {"lr": "fast"},
        {"lr": True},
        {"lr": float("nan")},
        {"weight_decay": "none"},
        {"weight_decay": -1},
        {"weight_decay": "x" * 500},
        {"betas": 3},
        {"betas": (1, 2)},
        {"betas": ("a", "b")},
        {"eps": float("inf")},
        {"amsgrad": "x"},
        {"maximize": None},
    ],
    ids=str,
)
@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_a_value_that_the_optimiser_does_not_take_is_one_line_when_it_is_made(
    kind: Any, options: dict[str, Any]
) -> None:
    trainer = trainer_of(groups={"*.bias": options}, optimizer=lambda p: kind(p, 1e-3, fused=True))
    batch = CASE.batches(1)[0]
    state = torch.get_rng_state()
    with pytest.raises(ConfigError) as caught:
        trainer.bind(batch)
    text = one_line(caught)
    assert "'*.bias'" in text
    assert next(iter(options)) in text
    assert len(text) < 200
    assert torch.equal(torch.get_rng_state(), state)


class Particular(torch.optim.SGD):
    """Cannot be made again from its defaults: what it does not know of it is not asked."""

    def __init__(self, params: Any, rate: float) -> None:
        super().__init__(params, lr=rate)


@pytest.mark.parametrize(
    ("factory", "options"),
    [
        (lambda p: Particular(p, 0.1), {"weight_decay": 0.1}),
        (lambda p: torch.optim.Adam(p, 1e-3, fused=True), {"foreach": True}),
        (lambda p: torch.optim.SGD(p, 0.1), {"nesterov": True, "momentum": 0.9}),
        (lambda p: torch.optim.Adam(p, 1e-3), {"lr": torch.tensor(0.1)}),
        (lambda p: torch.optim.Adam(p, 1e-3), {"betas": [0.8, 0.9]}),
    ],
)
def test_values_that_are_good_together_are_taken(factory: Any, options: dict[str, Any]) -> None:
    trainer = trainer_of(groups={"*.bias": options}, optimizer=factory)
    trainer.step(CASE.batches(1)[0])
    groups = [g for g in trainer.optimizers[0].param_groups if "*.bias" in g["name"]]
    assert {name: groups[0][name] for name in options} == options
