"""What every gradient estimator makes of labels and other contexts, also of those that do not fit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from tests._support.estimator_cases import (
    CLASSES,
    CONTEXTS,
    HEADS,
    NO_CONV,
    SPECS,
    TIME,
    Case,
    N,
    free_loss,
    gradients,
    in_turn,
    learn,
    made,
    over,
    problem,
)
from torch import Tensor, nn
from torch.nn import functional as F

from syngrad.errors import ConfigError, MessageError
from syngrad.estimators import Context, Head


@in_turn
def test_a_missing_context_works_or_is_refused_in_one_line(name: str, kind: str, context: str) -> None:
    """Refused by every estimator that was bound to look at one; nothing has been learned by then."""
    p = problem(kind, context)
    estimator = made(name, p)
    missing = replace(p, context=None)
    if context != "none" and (getattr(estimator, "labels", None) is not None or isinstance(estimator, Head)):
        with pytest.raises(MessageError) as error:
            learn(estimator, missing)
        assert "\n" not in str(error.value)
        assert not gradients(estimator)
    else:
        assert learn(estimator, missing).shape == p.h.shape


@over(Case(name, kind, "labels") for name in SPECS for kind in CONTEXTS if kind != "vector" or name in NO_CONV)
def test_labels_that_do_not_count_are_taken(name: str, kind: str, context: str) -> None:
    """−100 among class labels, cross-entropy's ignore_index: such a sample moves nothing, and is no error."""
    p = problem(kind, context)
    labels = p.context.clone()
    labels[1] = -100
    estimator = made(name, p)
    estimate = learn(estimator, replace(p, context=labels))
    assert torch.isfinite(estimate).all()
    if isinstance(estimator, Head):
        assert torch.count_nonzero(estimate[1]) == 0
        leaf = p.h.clone().requires_grad_()
        (expected,) = torch.autograd.grad(F.cross_entropy(estimator.body(leaf), labels), leaf)
        torch.testing.assert_close(estimate, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in SPECS if name.startswith(("linear", "low_rank", "mlp"))])
def test_labels_that_do_not_count_share_a_row_of_their_own(name: str) -> None:
    """The first of the table: no class's estimate moves with it, and its own gradient is that of such samples alone."""
    p = problem("vector", "labels")
    labels = p.context.clone()
    labels[[1, 4]] = -100
    estimator = made(name, p)
    if getattr(estimator, "labels", None) is None:
        return
    assert estimator.labels.weight.shape[0] == CLASSES + 1
    learn(estimator, p)
    assert torch.count_nonzero(estimator.labels.weight.grad[0]) == 0
    estimator.zero_grad()
    learn(estimator, replace(p, context=labels))
    assert torch.count_nonzero(estimator.labels.weight.grad[0]) > 0
    if "batch_norm=True" in name or name == "mlp":
        return
    before = estimator(p.h, labels).detach()
    with torch.no_grad():
        estimator.labels.weight[0] += 1
    moved = (estimator(p.h, labels) != before).any(1)
    assert moved.tolist() == [False, True, False, False, True, False]


@pytest.mark.parametrize("name", [name for name in HEADS if "channels" not in name])
def test_a_heads_labels_must_be_one_a_sample(name: str) -> None:
    """Too few would be taken without a word where a gradient is only scattered."""
    p = problem("vector", "labels")
    for labels in (p.context[:-1], torch.cat([p.context, p.context]), p.context.unsqueeze(1), p.context.float()):
        estimator = made(name, p)
        with pytest.raises(MessageError, match="the loss raised on a head's output") as error:
            learn(estimator, replace(p, context=labels))
        assert "\n" not in str(error.value)
        assert not gradients(estimator)


@pytest.mark.parametrize("name", [name for name in HEADS if "channels" not in name])
def test_labels_that_are_shares_of_classes_go_to_the_loss_itself(name: str) -> None:
    p = problem("vector", "labels")
    shares = torch.randn(N, CLASSES, dtype=torch.float64).softmax(1)
    estimator = made(name, p)
    estimate = learn(estimator, replace(p, context=shares))
    leaf = p.h.clone().requires_grad_()
    (expected,) = torch.autograd.grad(F.cross_entropy(estimator.body(leaf), shares), leaf)
    torch.testing.assert_close(estimate, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["linear", "mlp(hidden=1, width=8, batch_norm=False)", "conv", "low_rank", "local"])
@pytest.mark.parametrize(
    ("kind", "labels"),
    [("vector", (N, TIME)), ("image", (N, 4, 3)), ("image", (N, TIME)), ("sequence", (N, TIME - 1))],
    ids=["a vector for a sequence", "a label a pixel", "a picture for a sequence", "labels of another length"],
)
def test_token_labels_that_do_not_fit_the_message_work_or_are_refused(
    name: str, kind: str, labels: tuple[int, ...]
) -> None:
    """An encoder may send one vector for a whole sequence, or a picture whose every pixel has a label."""
    p = problem(kind, "tokens" if kind == "sequence" else "labels")
    p = replace(p, binding=replace(p.binding, context=Context("tokens", CLASSES), loss=free_loss, count=None))
    p = replace(p, context=torch.zeros(labels, dtype=torch.long))
    try:
        estimate = learn(made(name, p), p)
    except MessageError as error:
        assert "\n" not in str(error)  # noqa: PT017
    except ConfigError as error:
        assert name == "conv"
        assert "needs images or sequences" in str(error)  # noqa: PT017
    else:
        assert estimate.shape == p.h.shape


@pytest.mark.parametrize("value", [CLASSES, CLASSES + 4])
@pytest.mark.parametrize("name", ["linear", "mlp", "conv", "low_rank", "local", "sobolev(hidden=1)", "local(hidden=2)"])
def test_a_label_beyond_the_classes_is_one_clear_line(name: str, value: int) -> None:
    p = problem("sequence" if name == "conv" else "vector", "labels")
    p = replace(p, context=torch.full_like(p.context, value))
    estimator = made(name, p)
    with pytest.raises(MessageError, match=rf"label {value} is outside the model's {CLASSES} outputs") as error:
        learn(estimator, p)
    assert "\n" not in str(error.value)
    assert not gradients(estimator)


@pytest.mark.parametrize("name", ["local", "sobolev", "local(hidden=2)"])
def test_a_loss_with_weights_of_its_own_stays_the_users(name: str) -> None:
    """Its parameters are no estimator's, are not converted, and are in no state dict of an estimator."""

    class Loss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.temperature = nn.Parameter(torch.ones(()))

        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            return F.cross_entropy(output * self.temperature, target)

    p, loss = problem("vector", "labels"), Loss()
    estimator = made(name, replace(p, binding=replace(p.binding, loss=loss)), random=False)
    learn(estimator, p)
    assert loss.temperature.dtype == torch.float32
    assert loss.temperature.grad is None
    assert not any(q is loss.temperature for q in estimator.parameters())
    assert not [key for key in estimator.state_dict() if "temperature" in key]
