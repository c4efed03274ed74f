"""A stage that starts inside a region under activation checkpointing trains as it does without."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import syngrad
from syngrad.errors import CutError


class Model(nn.Module):
    """Three layers; the second is called as it is told."""

    def __init__(self, call: Callable[..., Tensor], named: bool) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 3)
        self.call, self.named = call, named

    def forward(self, x: Tensor) -> Tensor:
        """(n, 4) → (n, 3)."""
        if x.shape[0] < 0:
            raise ValueError
        if self.named:
            h = self.a(x).relu()
            return self.c(self.call(self.b, h).relu())  # type: ignore[no-any-return]
        return self.c(self.call(self.inner, self.a(x).relu()))  # type: ignore[no-any-return]

    def inner(self, h: Tensor) -> Tensor:
        """The second layer inside a larger region."""
        return torch.sin(self.b(torch.cos(h)).relu())


def plainly(function: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
    return function(h)


def reentrant(function: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
    return checkpoint(function, h, use_reentrant=True)  # type: ignore[no-any-return]


def without(function: Callable[[Tensor], Tensor], h: Tensor) -> Tensor:
    return checkpoint(function, h, use_reentrant=False)  # type: ignore[no-any-return]


def trained(call: Callable[..., Tensor], named: bool, steps: int = 6, **options: object) -> list[Tensor]:
    torch.manual_seed(0)
    model = Model(call, named).double()
    trainer = syngrad.Trainer(
        syngrad.decouple(model, cuts=["b"]),
        loss=F.cross_entropy,
        optimizer=lambda p: torch.optim.SGD(p, 0.1),
        progress=False,
        **options,  # type: ignore[arg-type]
    )
    for _ in range(steps):
        trainer.step((torch.randn(5, 4).double(), torch.randint(3, (5,))))
    trainer.flush()
    return [p.detach() for p in model.parameters()]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"estimator": "linear"},
        {"method": "zero"},
        {"method": "mixed(0.5)"},
        {"method": "delayed(1)"},
        {"method": "corrected(1)"},
        {"method": "backprop"},
    ],
    ids=lambda options: "-".join(options.values()) or "default",
)
@pytest.mark.parametrize("named", [True, False])
def test_what_is_checkpointed_is_computed_again_as_it_was(named: bool, options: dict[str, object]) -> None:
    for one, other in zip(trained(without, named, **options), trained(plainly, named, **options), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def test_such_a_place_is_chosen_and_trains() -> None:
    torch.manual_seed(0)
    model = Model(without, named=True)
    trainer = syngrad.Trainer(syngrad.decouple(model, stages=3), loss=F.cross_entropy, progress=False)
    for _ in range(6):
        trainer.step((torch.randn(5, 4), torch.randint(3, (5,))))
    assert trainer.net.cuts == ["b", "c"]


def test_a_region_that_has_no_graph_is_named_with_what_to_write() -> None:
    with pytest.raises(CutError, match=r"'b' is called without a graph: .* use_reentrant=False would do: name 'c'"):
        trained(reentrant, named=True)
