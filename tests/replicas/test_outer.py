"""The outer step, against the same written by hand, and against PyTorch's own Nesterov."""

from __future__ import annotations

import pytest
import torch

from syngrad.errors import ConfigError
from syngrad.replicas.outer import OuterRule, OuterStep


@pytest.mark.parametrize("text", ["nesterov(0.7, 0.9)", "nesterov(1.0, 0.5)", "sgd(0.4)", "none", None])
def test_it_is_what_torch_does(text: str | None) -> None:
    rule = OuterRule.parse(text)
    start = [torch.randn(3, 2).double(), torch.randn(5).double()]
    step = OuterStep(rule, start)
    twins = [torch.nn.Parameter(each.clone()) for each in start]
    nesterov = rule.momentum > 0
    twin = torch.optim.SGD(twins, lr=rule.rate, momentum=rule.momentum, nesterov=nesterov)
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        theirs = [[t - torch.randn(t.shape, generator=generator).double() for t in step.start] for _ in range(3)]
        deltas = [step.deltas([0, 1], values) for values in theirs]
        means = [torch.stack([each[i] for each in deltas]).mean(0) for i in (0, 1)]
        for parameter, delta in zip(twins, means, strict=True):
            parameter.grad = delta.clone()
        twin.step()
        step.step([0, 1], means)
        for own, its in zip(step.start, twins, strict=True):
            torch.testing.assert_close(own, its.detach())
        if text is None:
            expected = torch.stack([each[0] for each in theirs]).mean(0)
            torch.testing.assert_close(step.start[0], expected)


def test_a_fragment_moves_alone_and_keeps_its_own_momentum() -> None:
    step = OuterStep(OuterRule.parse("nesterov(0.7, 0.9)"), [torch.zeros(2), torch.zeros(2)])
    step.step([1], [torch.ones(2)])
    assert torch.equal(step.start[0], torch.zeros(2))
    assert torch.allclose(step.start[1], torch.full((2,), -0.7 * 1.9))
    assert torch.equal(step.velocity[0], torch.zeros(2))


def test_what_was_given_is_not_moved() -> None:
    given = torch.zeros(2)
    OuterStep(OuterRule(), [given]).step([0], [torch.ones(2)])
    assert torch.equal(given, torch.zeros(2))


def test_its_state_goes_over_to_another() -> None:
    one = OuterStep(OuterRule.parse("nesterov(0.7, 0.9)"), [torch.zeros(2)])
    one.step([0], [torch.ones(2)])
    two = OuterStep(OuterRule.parse("nesterov(0.7, 0.9)"), [torch.zeros(2)])
    two.load(one.state())
    for each in (one, two):
        each.step([0], [torch.ones(2)])
    assert torch.equal(one.start[0], two.start[0])
    with pytest.raises(ValueError, match="outer start is of other tensors"):
        OuterStep(OuterRule(), [torch.zeros(3)]).load(one.state())


@pytest.mark.parametrize(
    "text",
    ["adam(0.1)", "nesterov", "nesterov(0.7)", "sgd(0.1, 0.9)", "sgd('a')", "sgd(lr=1)", "nesterov(", 3, "x" * 99],
)
def test_what_it_is_not_is_refused(text: object) -> None:
    with pytest.raises(ConfigError, match="outer must be") as caught:
        OuterRule.parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["sgd(0)", "sgd(-1)", "nesterov(0.7, 1.0)", "nesterov(0.7, -0.1)", "sgd(1e999)"])
def test_so_are_numbers_that_lead_nowhere(text: str) -> None:
    with pytest.raises(ConfigError, match="rate above 0 and a momentum"):
        OuterRule.parse(text)
