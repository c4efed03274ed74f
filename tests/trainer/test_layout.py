"""Weights that lie in memory with the channels last: fused optimisers go through everything as it lies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests._support.options import keywords
from torch import Tensor, nn
from torch.nn import functional as F

from syngrad import Trainer, decouple
from syngrad.estimators.base import add_grad

BATCHES = [(torch.randn(6, 3, 8, 8), torch.randint(4, (6,))) for _ in range(6)]


def trainer_of(**options: Any) -> Trainer:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.Flatten(), nn.Linear(144, 4))
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return Trainer(decouple(model, cuts=["2"]), loss=F.cross_entropy, progress=False, **keywords(**options))


def everything(trainer: Trainer) -> list[Tensor]:
    return [p.detach() for p in [*trainer.model.parameters(), *trainer.net.estimators.parameters()]]


@pytest.mark.parametrize("method", ["synthetic", "backprop"])
def test_a_resumed_run_goes_on_as_the_whole_one(method: str, tmp_path: Path) -> None:
    whole, first, second = (trainer_of(method=method) for _ in range(3))
    for batch in BATCHES:
        whole.step(batch)
    for batch in BATCHES[:3]:
        first.step(batch)
    second.bind(BATCHES[0])
    second.load(first.save(tmp_path))
    for batch in BATCHES[3:]:
        second.step(batch)
    for a, b in zip(everything(whole), everything(second), strict=True):
        assert torch.equal(a, b)
        assert a.stride() == b.stride()


def test_the_fused_optimiser_does_what_the_plain_one_does() -> None:
    ends = []
    for fused in (False, True):
        trainer = trainer_of(optimizer=lambda groups, fused=fused: torch.optim.Adam(groups, 1e-3, fused=fused))
        for batch in BATCHES:
            trainer.step(batch)
        ends.append(everything(trainer))
    for a, b in zip(*ends, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_gradient_comes_to_lie_as_its_parameter(dtype: torch.dtype) -> None:
    parameter = nn.Parameter(torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last))
    grad = torch.randn(4, 3, 3, 3, dtype=dtype)
    for times in (1, 2):
        add_grad(parameter, grad)
        assert parameter.grad is not None
        assert parameter.grad.stride() == parameter.stride()
        torch.testing.assert_close(parameter.grad, times * grad.float())
