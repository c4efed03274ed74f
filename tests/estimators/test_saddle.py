"""Losses for which a head that predicts zero has no slope: it leaves zero. For all others it starts there as ever."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests._support.models import CASES, tensors_of
from tests._support.training import case_trainer, trainer_of
from torch import Tensor, nn
from torch.nn import functional as F

from syngrad.errors import TrainingError

Loss = Callable[[Any, Any], Tensor]


def pairs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(32, 16, generator=generator)
    return torch.stack([a, a + 0.1 * torch.randn(32, 16, generator=generator)], 1), torch.zeros(32)


def dot(output: Tensor, _: Any) -> Tensor:
    return F.cross_entropy(output[:, 0] @ output[:, 1].T, torch.arange(len(output)))


def cosine(output: Tensor, _: Any) -> Tensor:
    one, other = F.normalize(output, dim=2).unbind(1)
    return F.cross_entropy(one @ other.T * 5, torch.arange(len(output)))


def towards(output: Tensor, _: Any) -> Tensor:
    """A cosine to something fixed: at zero its gradient is as large as the reciprocal of a guard against 0/0."""
    return 1 - F.normalize(output, dim=2).mean()


def standardised(output: Tensor, _: Any) -> Tensor:
    flat = output.flatten(1)
    return ((flat - flat.mean(0)) / flat.std(0)).pow(4).mean()


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8))


@pytest.mark.parametrize("estimator", ["default", "local", "local(hidden=1)", "sobolev"])
@pytest.mark.parametrize("loss", [dot, cosine, towards, standardised])
def test_the_first_stage_moves_and_none_of_its_updates_is_skipped(loss: Loss, estimator: str) -> None:
    model = net()
    before = model[0].weight.detach().clone()
    trainer = trainer_of(model, ["2"], loss=loss, estimator=estimator)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(40):
            trainer.step(pairs())
    assert not torch.equal(model[0].weight, before)
    assert trainer.guarded == {}


@pytest.mark.parametrize("loss", [dot, cosine])
def test_it_leads_somewhere(loss: Loss) -> None:
    losses = {}
    for method in ("synthetic", "zero"):
        trainer = trainer_of(net(), ["2"], loss=loss, method=method)
        losses[method] = [trainer.step(pairs()).item() for _ in range(150)][-1]
    assert losses["synthetic"] < 1.0


@pytest.mark.parametrize("name", ["mlp", "cnn", "gpt", "regression", "residual"])
@pytest.mark.parametrize("estimator", ["default", "local(hidden=1)"])
def test_where_there_is_no_saddle_the_first_estimate_is_zero(name: str, estimator: str) -> None:
    case = CASES[name]
    model = case.model()
    start = copy.deepcopy(tensors_of(model))
    trainer = case_trainer(case, model, estimator=estimator)
    trainer.step(case.batches(1)[0])
    first = trainer.stages[0].segment.parameter_names
    assert all(torch.equal(tensors_of(model)[key], start[key]) for key in first)


def test_where_nothing_is_lost_at_zero_the_head_stays_there() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    trainer = trainer_of(model, ["2"], loss=F.mse_loss, estimator="local")
    x, y = torch.randn(8, 6), torch.zeros(8, 2)
    trainer.step((x, y))
    assert not any(bool(p.any()) for p in trainer.net.estimators.parameters())
    trainer.step((x, y + 1))
    assert any(bool(p.any()) for p in trainer.net.estimators.parameters())


def test_a_large_target_is_no_saddle() -> None:
    """Its gradient is large, and so is its loss."""
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 2))
    trainer = trainer_of(model, ["2"], loss=F.mse_loss, estimator="local")
    before = model[0].weight.detach().clone()
    trainer.step((torch.randn(8, 6), torch.full((8, 2), 1e6)))
    assert torch.equal(model[0].weight, before)


def test_a_first_minibatch_of_padding_alone_decides_nothing() -> None:
    model = nn.Sequential(nn.Embedding(5, 8), nn.Linear(8, 8), nn.Linear(8, 4))
    trainer = trainer_of(model, ["2"], loss=lambda out, y: F.cross_entropy(out.flatten(0, 1), y.flatten()))
    with pytest.raises(TrainingError, match="nan"):
        trainer.step((torch.randint(5, (3, 6)), torch.full((3, 6), -100)))
    assert not any(bool(p.any()) for p in trainer.net.estimators.parameters())
