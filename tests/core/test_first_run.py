"""What a stage's first run shows of it: writing into its message, and parameters that stand behind its input."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests._support.models import CASES, CLASSES, assert_same, tensors_of
from tests._support.training import momentum_trainer
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import syngrad
from syngrad.core.first_run import first_run, hides_parameters

CASE = CASES["mlp"]


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.inner, self.reentrant = nn.Linear(12, 12), reentrant

    def forward(self, h: Tensor) -> Tensor:
        made: Tensor = checkpoint(lambda v: torch.tanh(self.inner(v)), h, use_reentrant=self.reentrant)
        return made


class Adds(nn.Module):
    """Begins by writing into what it is given."""

    def __init__(self, how: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.p, self.how, self.over = nn.Parameter(torch.full((12,), 0.3)), how, nn.Linear(12, 12)

    def forward(self, h: Tensor) -> Tensor:
        return torch.tanh(self.over(self.how(h, self.p)))


def augmented(h: Tensor, p: Tensor) -> Tensor:
    h += p
    return h


WAYS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "+=": (augmented, lambda h, p: h + p),
    "add_": (lambda h, p: h.add_(p), lambda h, p: h + p),
    "clamp_": (lambda h, p: h.clamp_(min=-0.2) + p, lambda h, p: h.clamp(min=-0.2) + p),
    "view": (lambda h, p: (h.view(-1).mul_(2), h + p)[1], lambda h, p: h * 2 + p),
}


class Own(nn.Module):
    """A forward of its own, in which a block as a leaf of the trace, or the forward itself, writes into the message."""

    def __init__(self, how: Callable[[Tensor, Tensor], Tensor], inside: bool) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Linear(6, 12), Adds(how), nn.Linear(12, CLASSES)
        self.mid = nn.Linear(12, 12)
        self.how, self.inside = how, inside

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.stem(x))
        h = self.block(h) if self.inside else self.how(self.mid(h), self.block.p)
        return self.head(torch.tanh(h))


def chain(how: Callable[[Tensor, Tensor], Tensor]) -> nn.Module:
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), Adds(how), nn.Linear(12, CLASSES))


MODELS: dict[str, tuple[Callable[[Callable[[Tensor, Tensor], Tensor]], nn.Module], list[str]]] = {
    "chain": (chain, ["2"]),
    "torch.fx, in a block": (lambda how: Own(how, True), ["block"]),
    "torch.fx, in the forward": (lambda how: Own(how, False), ["head"]),
}


def trained(model: nn.Module, cuts: list[str], **options: Any) -> dict[str, Tensor]:
    trainer = momentum_trainer(model.double(), cuts, **options)
    for batch in CASE.batches(6):
        trainer.step(batch)
    trainer.flush()
    return tensors_of(model)


@pytest.mark.parametrize("options", [{}, {"estimator": "local"}, {"method": "delayed(1)"}, {"method": "zero"}], ids=str)
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", MODELS)
def test_a_stage_that_begins_in_place_trains_as_one_that_does_not(name: str, way: str, options: dict[str, Any]) -> None:
    (make, cuts), (inside, outside) = MODELS[name], WAYS[way]
    torch.manual_seed(1)
    first = make(inside)
    torch.manual_seed(1)
    second = make(outside)
    options = {"estimator": "linear", "true_every": 3, "quality_every": 2, **options}
    assert_same(trained(first, cuts, **options), trained(second, cuts, **options))


def test_balancing_and_binding_leave_a_batch_that_the_model_writes_into_as_it_was() -> None:
    model = nn.Sequential(Adds(WAYS["add_"][0]), Adds(WAYS["add_"][0]), nn.Linear(12, CLASSES)).double()
    trainer = syngrad.Trainer(syngrad.decouple(model, stages=2), loss=F.cross_entropy)
    x = torch.randn(8, 12, dtype=torch.float64)
    before = x.clone()
    trainer.bind((x, torch.zeros(8, dtype=torch.long)))
    assert torch.equal(x, before)


@pytest.mark.parametrize("options", [{}, {"method": "delayed(1)"}, {"method": "zero"}, {"method": "backprop"}], ids=str)
@pytest.mark.parametrize("estimator", ["default", "local"])
def test_a_block_under_reentrant_checkpointing_learns_on_every_minibatch(
    estimator: str, options: dict[str, Any]
) -> None:
    def run(reentrant: bool) -> tuple[int, dict[str, Tensor]]:
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 12), Checkpointed(reentrant), nn.Linear(12, CLASSES)).double()
        trainer = momentum_trainer(model, ["1"], estimator=estimator, **options)
        moved = 0
        for batch in CASE.batches(9):
            before = model[1].inner.weight.detach().clone()
            trainer.step(batch)
            moved += not torch.equal(before, model[1].inner.weight)
        trainer.flush()
        return moved, tensors_of(model)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*Gradients will be None")  # said by torch in the first forward
        moved, found = run(True)
    plain, expected = run(False)
    assert moved == plain == 9
    assert_same(found, expected)


def test_a_message_is_not_asked_for_its_gradient_where_that_changes_nothing() -> None:
    trainer = momentum_trainer(CASE.model())
    trainer.step(CASE.batches(1)[0])
    assert not any(stage.needs_gradient for stage in trainer.stages)


class Straight(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        return h.round()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def test_a_node_that_parameters_lead_to_hides_none() -> None:
    layer, h = nn.Linear(3, 3), torch.randn(2, 3, requires_grad=True)
    assert hides_parameters([Straight.apply(h)], [h])
    assert not hides_parameters([Straight.apply(layer(h))], [h])
    assert not hides_parameters([layer(h)], [h])
    assert hides_parameters([layer(Straight.apply(h))], [h])


def test_a_copy_hands_the_gradient_to_the_message_itself() -> None:
    h = torch.randn(2, 3, requires_grad=True)
    found = first_run(lambda m: m["h"].mul_(2), {"h": h, "n": torch.arange(2)}, [0])
    assert found.writes
    found.output.sum().backward()
    assert torch.equal(h.grad, torch.full((2, 3), 2.0))
