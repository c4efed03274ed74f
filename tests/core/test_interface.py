"""The interface as the methods drive it: estimate and fit, leaf by leaf, without a graph through it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests._support.interface_net import CLASSES, KINDS, WIDTH, N, batch, bound, interface
from torch import Tensor, nn
from torch.nn import functional as F

from syngrad import Interface
from syngrad.errors import MessageError, TrainingError
from syngrad.estimators import Binding, Context


def leaves() -> tuple[list[Tensor], Tensor]:
    x, y = batch()
    return [x, torch.randn(N, 2, dtype=torch.float64)], y


@pytest.mark.parametrize("name", list(KINDS))
@pytest.mark.parametrize("keep", [True, False])
def test_every_leaf_is_estimated_and_fitted_by_its_own(name: str, keep: bool) -> None:
    messages, y = leaves()
    received = [torch.randn_like(leaf) for leaf in messages]
    i, twin = (bound(interface(name, **KINDS[name]), tuple(messages), y) for _ in range(2))
    twin.load_state_dict(i.state_dict())
    estimates, kept = i.estimate(messages, y, 0.25, keep)
    i.fit(messages, y, received, 0.25, kept if keep else None)
    assert isinstance(estimates, list)
    assert isinstance(kept, list)
    assert len(estimates) == len(kept) == 2
    for leaf, got, estimate, memo, estimator in zip(messages, received, estimates, kept, twin.heads, strict=True):
        want, _ = estimator.estimate(leaf, y, 0.25, False)
        assert torch.equal(estimate, want)
        assert not estimate.requires_grad
        assert (memo is not None) == (keep and estimator.wants_feedback)
        if estimator.wants_feedback:
            estimator.fit(leaf, y, got, 0.25)
    for a, b in zip(i.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_it_wants_feedback_if_any_of_its_estimators_does() -> None:
    x, y = batch()
    for name, wants in (("linear", True), ("zero", False), ("local", False), ("sobolev", True)):
        i = bound(interface(name, loss=F.cross_entropy, output=CLASSES), x, y)
        assert i.wants_feedback is wants


def test_bound_from_descriptions_it_knows_where_its_leaves_stand() -> None:
    i = Interface("linear")
    bindings = [Binding(torch.Size((n,)), context=Context("labels", CLASSES)) for n in (WIDTH, 2)]
    i.bind_leaves(bindings, [0, 3])
    assert i.bound
    assert i.positions == [0, 3]
    assert [estimator.binding for estimator in i.heads] == bindings


def test_another_number_of_leaves_is_refused() -> None:
    messages, y = leaves()
    i = bound(interface(name="cut 4"), tuple(messages), y)
    for wrong in ([], messages[:1], [*messages, messages[0]]):
        with pytest.raises(MessageError, match=f"'cut 4' has {len(wrong)} differentiable tensors, but had 2") as error:
            i.estimate(wrong, y, 0.25, False)
        assert "\n" not in str(error.value)


class Failing(nn.Module):
    def forward(self, h: Tensor, context: Any) -> Tensor:
        raise ValueError("no such thing\nand a second line")


def test_what_an_estimator_of_ones_own_raises_is_told_in_one_line() -> None:
    x, y = batch()
    i = interface(Failing(), name="cut 4")
    i.bind(x, y)
    with pytest.raises(TrainingError, match=r"the estimator at 'cut 4' raised .*no such thing") as error:
        i.estimate([x], y, 0.25, True)
    assert "\n" not in str(error.value)
    assert isinstance(error.value.__cause__, ValueError)


def test_a_batch_of_one_cannot_be_batch_normalised() -> None:
    x, y = batch()
    i = bound(interface("mlp", name="cut 4"), x, y)
    with pytest.raises(TrainingError, match=r"'cut 4' raised .*; a batch of one cannot be batch-normalised") as error:
        i.estimate([x[:1]], y[:1], 1.0, True)
    assert "\n" not in str(error.value)


def test_what_is_wrong_with_a_context_keeps_its_own_words() -> None:
    x, y = batch()
    i = bound(interface(), x, y)
    for context, says in (
        (None, "bound with labels as context, but now got NoneType"),
        (y[:3], "does not fit"),
        (torch.full_like(y, CLASSES), f"label {CLASSES} is outside the model's {CLASSES} outputs"),
    ):
        with pytest.raises(MessageError, match=says) as error:
            i.estimate([x], context, 0.25, False)
        assert "\n" not in str(error.value)
