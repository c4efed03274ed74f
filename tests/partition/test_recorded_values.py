"""What Python reads in a forward that torch.fx has followed holds afterwards, or is refused when it has changed."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import syngrad
from syngrad.errors import TrainingError


class Scaled(nn.Module):
    """A net of its own forward, which reads attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 3)
        self.alpha, self.options, self.epoch = 1.0, {"scale": [1.0]}, 0
        self.register_buffer("beta", torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        """(n, 6) → (n, 3)."""
        h = self.b(self.a(x).relu()).relu() * self.beta
        if self.alpha < 2.5:
            h = h * self.options["scale"][0]
        return self.c(h)  # type: ignore[no-any-return]


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(5, 6, generator=generator), torch.tensor([0, 1, 2, 0, 1])) for _ in range(4)]


def trained(change: Callable[[Scaled, int], Any], method: str = "backprop") -> tuple[Scaled, Scaled]:
    """After four minibatches with what is changed before each: the model, and its twin by a plain loop."""
    torch.manual_seed(0)
    model = Scaled()
    twin = copy.deepcopy(model)
    net = syngrad.decouple(model, cuts=["b"])
    trainer = syngrad.Trainer(
        net, loss=F.cross_entropy, optimizer=lambda groups: torch.optim.SGD(groups, 0.1), method=method, guard=None
    )
    optimizer = torch.optim.SGD(twin.parameters(), 0.1)
    for step, (x, y) in enumerate(batches()):
        if step:
            change(model, step)
            change(twin, step)
        trainer.step((x, y))
        optimizer.zero_grad()
        F.cross_entropy(twin(x), y).backward()
        optimizer.step()
    assert {segment.route for segment in trainer.net.segments} == {"torch.fx"}
    return model, twin


@pytest.mark.parametrize(
    "change",
    [
        lambda model, step: setattr(model, "epoch", step),
        lambda model, step: setattr(model, "alpha", 1.0 + 0.1 * step),  # the same side of its bound
        lambda model, step: setattr(model, "notes", {"step": step}),
        lambda model, step: model.beta.fill_(1.0 + step),
        lambda model, step: setattr(model, "beta", torch.tensor(1.0 + step)),
    ],
    ids=["a note", "a number that decides nothing", "a new attribute", "a buffer", "another buffer"],
)
def test_what_the_recording_does_not_go_by_may_change(change: Callable[[Scaled, int], Any]) -> None:
    model, twin = trained(change)
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda model, step: setattr(model, "alpha", 1.0 + step), "the model.alpha is 3.0 and was 2.0"),
        (lambda model, step: model.options.update(scale=[2.0]), "the model.options is {'scale': {0: 2.0}} and was"),
        (lambda model, step: model.options["scale"].__setitem__(0, 2.0), "the model.options is {'scale': {0: 2.0}}"),
        (
            lambda model, step: model.register_forward_hook(lambda module, given, out: out * 3),
            "the model._forward_hooks is not what it was",
        ),
        (lambda model, step: setattr(model, "forward", lambda x: model.c(model.a(x))), "the model.forward is not what"),
    ],
    ids=["a number that decides", "a mapping", "a list in it", "a hook", "its forward"],
)
def test_what_it_goes_by_is_refused_when_it_has_changed(change: Callable[[Scaled, int], Any], said: str) -> None:
    with pytest.raises(TrainingError, match=re.escape(said)) as raised:
        trained(change)
    assert "keep it in a buffer, whose value is read every time" in str(raised.value)


@pytest.mark.parametrize("method", ["backprop", "synthetic", "delayed(1)", "corrected(1)"])
def test_a_backward_of_the_users_own_moves_nothing(method: str) -> None:
    """As one that a callback makes to look at gradients: a plain loop forgets them before its own."""

    def look(model: Scaled, step: int) -> None:
        model(batches()[0][0]).square().sum().mul(1e3).backward()

    (model, _), (undisturbed, _) = trained(look, method), trained(lambda model, step: None, method)
    for one, other in zip(model.parameters(), undisturbed.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
