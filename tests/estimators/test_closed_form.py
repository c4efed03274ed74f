"""What is written out by hand equals what autograd finds, for every size; and is left alone where it does not apply."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from syngrad.estimators import Binding, Context, Head, Linear
from syngrad.estimators.closed_form import masked, softmax_error, through_softmax
from syngrad.estimators.heads import is_cross_entropy
from syngrad.estimators.registry import option_names

Loss = Callable[[Any, Any], Tensor]
NORMS = (False, True) if "norm" in option_names("local") else (False,)
#: a layer-normalisation loses digits where a row is nearly constant, so its rows are kept apart
EXACT = {"rtol": 1e-11, "atol": 1e-12}

sizes = st.integers(1, 6)
scales = st.floats(1e-3, 1e3)
seeds = st.integers(0, 2**20)
limits = settings(max_examples=30, deadline=None, derandomize=True, database=None)


def head(features: int, classes: int, loss: Loss, *, count: Any = None, **options: Any) -> Head:
    binding = Binding(
        torch.Size((features,)),
        torch.float64,
        context=Context("labels", classes),
        output=torch.Size((classes,)),
        loss=loss,
        count=count,
    )
    made = Head(width=5, **options)
    made.bind(binding)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_()
    return made


def twin(
    h: Tensor,
    y: Tensor,
    received: Tensor,
    scale: float,
    made: Head,
    loss: Loss,
    samples: float,
) -> tuple[Tensor, list[Tensor]]:
    """The estimate and every parameter's gradient from the definition alone, by plain autograd.

    total = scale·(sum of sample losses) + derivative·scale·Σ‖δ̂ − δ‖²/ρ,  δ = received/scale,  ρ = Σ‖δ‖²/n at first
    """
    parameters = list(made.parameters())
    leaf = h.clone().requires_grad_()
    x = leaf
    if getattr(made, "norm", False):
        centred = leaf - leaf.mean(1, keepdim=True)
        x = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt()
    if made.hidden:
        v, c, w, b = parameters
        x = (x @ v.t() + c).relu()
    else:
        w, b = parameters
    value = loss(x @ w.t() + b, y) * samples
    (delta,) = torch.autograd.grad(value, leaf, create_graph=True)
    rho = (received / scale).square().sum() / len(h)
    total = value * scale + made.derivative * scale * (delta - received / scale).square().sum() / rho
    return delta.detach() * scale, list(torch.autograd.grad(total, parameters))


def compare(made: Head, loss: Loss, h: Tensor, y: Tensor, scale: float, samples: float | None = None) -> None:
    received = torch.randn_like(h) * scale
    want, grads = twin(h, y, received, scale, made, loss, len(h) if samples is None else samples)
    estimate, kept = made.estimate(h, y, scale, True)
    made.fit(h, y, received, scale, kept)
    torch.testing.assert_close(estimate / scale, want / scale, **EXACT)
    for (name, parameter), grad in zip(made.named_parameters(), grads, strict=True):
        # relative to the largest entry: a sum of large terms may end near zero
        size = max(grad.abs().max().item(), scale)
        torch.testing.assert_close(parameter.grad / size, grad / size, **EXACT, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("hidden", [0, 1])
@pytest.mark.parametrize("derivative", [0.0, 1.0, 0.3])
@limits
@given(n=sizes, features=st.integers(2, 6), classes=st.integers(1, 5), scale=scales, seed=seeds)
@example(n=1, features=2, classes=2, scale=1.0, seed=0)
def test_a_head_equals_autograd(
    hidden: int, derivative: float, norm: bool, n: int, features: int, classes: int, scale: float, seed: int
) -> None:
    torch.manual_seed(seed)
    options = {"norm": norm} if norm else {}
    made = head(features, classes, F.cross_entropy, hidden=hidden, derivative=derivative, **options)
    assert made.closed
    # entries a whole number apart, so that normalising is well conditioned
    h = torch.randn(n, features, dtype=torch.float64) * 0.1 + torch.stack(
        [torch.randperm(features).double() for _ in range(n)]
    )
    compare(made, F.cross_entropy, h, torch.randint(0, classes, (n,)), scale)


@pytest.mark.parametrize("hidden", [0, 1])
def test_a_head_remade_without_what_was_kept_equals_autograd(hidden: int) -> None:
    made = head(4, 3, F.cross_entropy, hidden=hidden, derivative=1.0)
    h, y = torch.randn(6, 4, dtype=torch.float64), torch.randint(0, 3, (6,))
    received = torch.randn_like(h)
    _, grads = twin(h, y, received, 0.25, made, F.cross_entropy, 6)
    made.estimate(h, y, 0.25, False)
    made.fit(h, y, received, 0.25, None)
    for parameter, grad in zip(made.parameters(), grads, strict=True):
        torch.testing.assert_close(parameter.grad, grad, **EXACT)


class Focal(nn.CrossEntropyLoss):
    """A user's loss that happens to inherit from cross-entropy."""

    def forward(self, input: Tensor, target: Tensor) -> Tensor:
        return (1 - (-F.cross_entropy(input, target, reduction="none")).exp()).square().mean()


def custom(output: Tensor, target: Tensor) -> Tensor:
    return (output.sigmoid() - F.one_hot(target, output.shape[1])).square().sum(1).mean()


def weighted_count(target: Tensor) -> float:
    return float(torch.tensor([1.0, 2.0, 3.0])[target].sum())


WEIGHT = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
OPEN: dict[str, tuple[Loss, Any]] = {
    "label smoothing": (nn.CrossEntropyLoss(label_smoothing=0.1), None),
    "smoothing in a partial": (partial(F.cross_entropy, label_smoothing=0.1), None),
    "weights": (nn.CrossEntropyLoss(weight=WEIGHT), weighted_count),
    "sum": (nn.CrossEntropyLoss(reduction="sum"), lambda y: 1.0),
    "ignore_index": (nn.CrossEntropyLoss(ignore_index=0), lambda y: float((y != 0).sum())),
    "loss_count": (F.cross_entropy, lambda y: 2.0 * len(y)),
    "a loss of one's own": (custom, None),
    "a subclass": (Focal(), None),
    "a lambda": (lambda o, y: F.cross_entropy(2 * o, y), None),
}


@pytest.mark.parametrize("hidden", [0, 1, 2])
@pytest.mark.parametrize("name", list(OPEN))
def test_any_other_loss_goes_through_autograd_and_is_right(name: str, hidden: int) -> None:
    loss, count = OPEN[name]
    made = head(4, 3, loss, count=count, hidden=hidden, derivative=0.7)
    assert not made.closed
    h, y = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 2, 1, 1])
    samples = count(y) if count else 6.0
    if hidden == 2:
        estimate, _ = made.estimate(h, y, 0.25, False)
        leaf = h.clone().requires_grad_()
        (want,) = torch.autograd.grad(loss(made.body(leaf), y) * samples * 0.25, leaf)
        torch.testing.assert_close(estimate, want, **EXACT)
    else:
        compare(made, loss, h, y, 0.25, samples)


def test_which_losses_are_plain_cross_entropy() -> None:
    for loss in (F.cross_entropy, nn.CrossEntropyLoss()):
        assert is_cross_entropy(loss)
    for loss, count in OPEN.values():
        assert count is not None or not is_cross_entropy(loss)
    for loss in (F.nll_loss, F.mse_loss, nn.NLLLoss(), None):
        assert not is_cross_entropy(loss)


@pytest.mark.parametrize("kind", ["vector", "sequence", "image"])
@pytest.mark.parametrize("context", ["none", "labels", "tokens", "vector"])
@limits
@given(n=sizes, f=sizes, t=sizes, classes=sizes, scale=scales, seed=seeds)
def test_the_linear_estimator_equals_autograd(
    kind: str, context: str, n: int, f: int, t: int, classes: int, scale: float, seed: int
) -> None:
    if context == "tokens" and kind != "sequence":
        return
    torch.manual_seed(seed)
    shape = {"vector": (f,), "sequence": (t, f), "image": (f, t, 2)}[kind]
    made = Linear()
    size = 0 if context == "none" else classes
    made.bind(Binding(torch.Size(shape), torch.float64, context=Context(context, size)))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_()
    h = torch.randn(n, *shape, dtype=torch.float64)
    y: Tensor | None = None
    if context == "labels":
        y = torch.randint(0, classes, (n,))
    elif context == "tokens":
        y = torch.where(torch.rand(n, t) < 0.3, -100, torch.randint(0, classes, (n, t)))
    elif context == "vector":
        y = torch.randn(n, classes, dtype=torch.float64)
    received = torch.randn_like(h) * scale

    mapped = torch.einsum("oi,ni...->no...", made.map.weight, h if kind != "sequence" else h.movedim(-1, 1))
    mapped = mapped + made.map.bias.view(1, -1, *[1] * (h.dim() - 2))
    delta = mapped.movedim(1, -1) if kind == "sequence" else mapped
    if made.labels is not None and y is not None:
        table = made.labels.weight
        shift = y @ table if context == "vector" else table[torch.where(y < 0, classes, y)]
        if kind == "sequence" and context != "tokens":
            shift = shift.unsqueeze(1).expand(n, t, f)
        delta = delta + shift.reshape(h.shape)
    total = scale * (delta - received / scale).square().sum()
    want = torch.autograd.grad(total, list(made.parameters()))

    estimate, kept = made.estimate(h, y, scale, True)
    made.fit(h, y, received, scale, kept)
    torch.testing.assert_close(estimate / scale, delta.detach(), **EXACT)
    for (name, parameter), grad in zip(made.named_parameters(), want, strict=True):
        torch.testing.assert_close(parameter.grad / scale, grad / scale, **EXACT, msg=lambda m, n=name: f"{n}: {m}")


@limits
@given(n=sizes, classes=st.integers(1, 5), scale=scales, seed=seeds)
def test_softmax_and_its_jacobian(n: int, classes: int, scale: float, seed: int) -> None:
    torch.manual_seed(seed)
    scores = torch.randn(n, classes, dtype=torch.float64, requires_grad=True)
    labels, direction = torch.randint(0, classes, (n,)), torch.randn(n, classes, dtype=torch.float64)
    value = scale * F.cross_entropy(scores, labels, reduction="sum")
    (error,) = torch.autograd.grad(value, scores, create_graph=True)
    (want,) = torch.autograd.grad((error * direction).sum(), scores)
    found = softmax_error(scores.detach(), labels, scale)
    torch.testing.assert_close(found / scale, error.detach() / scale, **EXACT)
    again = found.clone()
    torch.testing.assert_close(through_softmax(found, labels, direction, scale) / scale, want / scale, **EXACT)
    assert torch.equal(found, again), "the error is kept, so it may not be changed"


def test_masked_is_the_derivative_of_relu_and_zero_at_zero() -> None:
    z = torch.tensor([[-1.0, 0.0, 2.0]]).relu()
    assert torch.equal(masked(torch.tensor([[3.0, 4.0, 5.0]]), z), torch.tensor([[0.0, 0.0, 5.0]]))


def test_scores_far_apart_stay_finite() -> None:
    made = head(3, 4, F.cross_entropy, hidden=1, derivative=1.0)
    h, y = torch.randn(5, 3, dtype=torch.float64) * 1e4, torch.randint(0, 4, (5,))
    estimate, kept = made.estimate(h, y, 0.2, True)
    made.fit(h, y, torch.randn_like(h), 0.2, kept)
    assert torch.isfinite(estimate).all()
    assert all(torch.isfinite(q.grad).all() for q in made.parameters())
