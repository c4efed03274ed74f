"""Models whose forward differentiates: forces from an energy, a gradient penalty."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import syngrad
from syngrad.core.places import list_places
from syngrad.errors import CutError


class Energy(nn.Module):
    """An energy, and its derivative with respect to the input or to what an inner layer has made."""

    def __init__(self, inner: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 1)
        self.inner = inner

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """(n, 4) → energies (n,) and forces."""
        x = x if self.inner else x.clone().requires_grad_()
        h = torch.tanh(self.b(torch.tanh(self.a(x))))
        energy = self.c(h)
        (force,) = torch.autograd.grad(energy.sum(), h if self.inner else x, create_graph=True)
        return {"energy": energy.squeeze(-1), "force": -force}


def loss(output: dict[str, Tensor], target: Tensor) -> Tensor:
    return F.mse_loss(output["energy"], target) + output["force"].square().mean()


def batch() -> tuple[Tensor, Tensor]:
    return torch.randn(5, 4).double(), torch.randn(5).double()


def trainer_of(model: nn.Module, **options: Any) -> syngrad.Trainer:
    return syngrad.Trainer(
        syngrad.decouple(model, **options.pop("at", {"cuts": ["b"]})),
        loss=loss,
        optimizer=lambda p: torch.optim.SGD(p, 0.1),
        guard=None,
        progress=False,
        **options,
    )


@pytest.mark.parametrize("method", ["synthetic", "mixed(1.0)", "backprop"])
def test_a_cut_that_forward_differentiates_through_is_refused_and_said_to_be(method: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(
        CutError, match=r"cannot cut at 'b': forward itself differentiates through it .*no other place.*stages=1"
    ) as told:
        trainer_of(Energy().double(), method=method).step(batch())
    assert "\n" not in str(told.value)


def test_such_a_place_is_neither_chosen_nor_listed() -> None:
    torch.manual_seed(0)
    x, y = batch()
    with pytest.raises(syngrad.SyngradError, match="it has 0 places for a cut"):
        trainer_of(Energy().double(), at={"stages": 2}).step((x, y))
    with pytest.raises(CutError):
        list_places(Energy().double(), (x,), {}, y, loss)


def test_it_trains_whole_and_where_no_derivative_crosses_the_cut() -> None:
    torch.manual_seed(0)
    for model, options in ((Energy(), {"at": {"stages": 1}}), (Energy(inner=True), {"method": "mixed(1.0)"})):
        model = model.double()
        plain = copy.deepcopy(model)
        trainer, optimizer = trainer_of(model, **options), torch.optim.SGD(plain.parameters(), 0.1)
        for _ in range(3):
            x, y = batch()
            trainer.step((x, y))
            optimizer.zero_grad()
            loss(plain(x), y).backward()
            optimizer.step()
        for one, other in zip(model.parameters(), plain.parameters(), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)
