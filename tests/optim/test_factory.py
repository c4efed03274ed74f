"""Optimisers by name: what is read, what is refused, and that nothing is run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from syngrad import SyngradError
from syngrad.optim.factory import NAMED, parse_optimizer


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.zeros(2, 2))]


@pytest.mark.parametrize(
    ("text", "kind", "options"),
    [
        ("adam(lr=1e-3)", torch.optim.Adam, {"lr": 1e-3}),
        ("Adam", torch.optim.Adam, {}),
        (" ADAMW ( lr = 0.01, weight_decay = 0.1 ) ", torch.optim.AdamW, {"lr": 0.01, "weight_decay": 0.1}),
        (
            "sgd(lr=0.1,momentum=0.9,weight_decay=5e-4,nesterov=True)",
            torch.optim.SGD,
            {"lr": 0.1, "momentum": 0.9, "weight_decay": 5e-4, "nesterov": True},
        ),
        ("adam(betas=(0.8, 0.9))", torch.optim.Adam, {"betas": (0.8, 0.9)}),
        ("rmsprop()", torch.optim.RMSprop, {}),
    ],
)
def test_names_with_options(text: str, kind: type, options: dict[str, Any]) -> None:
    made = parse_optimizer(text)(parameters())
    assert type(made) is kind
    for name, value in options.items():
        assert made.defaults[name] == value


def test_groups_keep_what_they_say() -> None:
    first, second = parameters()
    made = parse_optimizer("adam(lr=0.5)")([{"params": [first], "name": "weights"}, {"params": [second], "lr": 0.1}])
    assert [(group["lr"], group.get("name")) for group in made.param_groups] == [(0.5, "weights"), (0.1, None)]


def test_each_call_makes_a_new_one_from_a_generator_too() -> None:
    factory = parse_optimizer("sgd(lr=0.1)")
    made = factory(p for p in parameters())
    assert made is not factory(parameters())
    assert len(made.param_groups[0]["params"]) == 2


def test_the_fastest_form_unless_another_is_asked_for() -> None:
    assert parse_optimizer("adam(lr=0.1)")(parameters()).defaults["fused"] is True
    assert parse_optimizer("adam(lr=0.1, foreach=False)")(parameters()).defaults["fused"] is None
    assert parse_optimizer("adam(fused=False)")(parameters()).defaults["fused"] is False


def test_every_name_can_be_made() -> None:
    for name in NAMED:
        assert isinstance(parse_optimizer(name)(parameters()), torch.optim.Optimizer)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("adamm", ["unknown optimizer 'adamm'", "'adam'", "sgd"]),
        ("lbfgs", ["unknown optimizer 'lbfgs'", "adam"]),
        ("optimizer", ["unknown optimizer"]),
        ("adam(rate=1)", ["takes no option 'rate'", "lr, betas"]),
        ("adam(params=[])", ["takes no option 'params'"]),
        ("adam(0.1)", ["cannot read optimizer 'adam(0.1)'", "adam(lr=1e-3)"]),
        ("adam(**{'lr': 1})", ["cannot read"]),
        ("adam(lr=1, lr=2)", ["cannot read"]),
        ("adam(lr=__import__('os').system('true'))", ["cannot read"]),
        ("torch.optim.Adam(lr=1)", ["cannot read"]),
        ("", ["cannot read"]),
        ("adam(" * 500, ["cannot read"]),
        ("adam(lr=-1)", ["cannot be made", "learning rate: -1"]),
        ("adam(lr='high')", ["cannot be made"]),
        ("adam(lr=1e999)", ["lr must be a finite number"]),
        ("sgd(nesterov=True)", ["cannot be made", "momentum"]),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(text: str, said: list[str]) -> None:
    with pytest.raises(SyngradError) as caught:
        parse_optimizer(text)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    for part in said:
        assert part in message
