"""What modules are given and ignore does not cross a cut, and what they look at does, gradient or not."""

from __future__ import annotations

import copy

import pytest
import torch
from tests._support.any_models import FAMILIES, Ignores
from torch import Tensor, nn
from torch.nn import functional as F

import syngrad


def trainer_of(net: syngrad.core.decouple.DecoupledNetwork) -> syngrad.Trainer:
    return syngrad.Trainer(
        net,
        loss=F.cross_entropy,
        method="mixed(1.0)",
        estimator="linear",
        optimizer=lambda p: torch.optim.SGD(p, 0.1),
        guard=None,
        progress=False,
    )


def shapes(message: Tensor | tuple[Tensor, ...]) -> list[int]:
    return [leaf.shape[-1] for leaf in ([message] if isinstance(message, Tensor) else message)]


@pytest.mark.parametrize(("looks", "first"), [(False, [32]), (True, [32, 32])])
def test_what_no_later_stage_looks_at_stays_behind(looks: bool, first: list[int]) -> None:
    torch.manual_seed(0)
    model = Ignores(looks).double()
    twin = copy.deepcopy(model)
    net = syngrad.decouple(model, cuts=["b", "c"])
    batches = [FAMILIES["ignores"].batch() for _ in range(3)]
    optimizer = torch.optim.SGD(twin.parameters(), 0.1)
    for trainer in (trainer_of(net), trainer_of(net)):  # the second binds the network anew
        for x, y in batches:
            trainer.step((x, y))
            optimizer.zero_grad()
            F.cross_entropy(twin(x), y).backward()
            optimizer.step()
    assert net.segments[0].route == "torch.fx"
    message = net.segments[0](batches[0][0])
    assert shapes(message) == first
    assert shapes(net.segments[1](message)) == [32]
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)


def test_what_a_layer_looks_at_in_evaluation_alone_crosses() -> None:
    class Sometimes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.f = nn.Linear(32, 32)

        def forward(self, h: Tensor, extra: Tensor) -> Tensor:
            return self.f(h) if self.training else self.f(h + extra)  # type: ignore[no-any-return]

    model = Ignores()
    model.b = Sometimes()
    net = syngrad.decouple(model, cuts=["b"])
    x, y = torch.randn(6, 16), torch.randint(3, (6,))
    trainer_of(net).step((x, y))
    assert shapes(net.segments[0](x)) == [32, 32]
