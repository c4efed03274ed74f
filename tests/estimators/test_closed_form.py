"""What is written out by hand equals what autograd finds, for every size; and is left alone where it does not apply."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from syngrad.estimators import Binding, Context, Head, Linear
from syngrad.estimators.closed_form import (
    affine,
    masked,
    rms_reciprocal,
    softmax_error,
    through_normalisation,
    through_softmax,
)
from syngrad.estimators.heads import is_cross_entropy
from syngrad.estimators.losses import count_targets, token_cross_entropy

Loss = Callable[[Any, Any], Tensor]
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
    norm: bool,
) -> tuple[Tensor, list[Tensor]]:
    """The estimate and every parameter's gradient from the definition alone, by plain autograd.

    total = scale·(sum of sample losses) + derivative·scale·Σ‖δ̂ − δ‖²/ρ,  δ = received/scale,  ρ = Σ‖δ‖²/n at first,
    and with a norm the head sees x = h/√(mean h² + 1e-5), unless h is one number, of which only the sign would be left
    """
    parameters = list(made.parameters())
    leaf = h.clone().requires_grad_()
    x = leaf
    if norm and h.shape[1] > 1:
        x = leaf / (leaf.square().mean(1, keepdim=True) + 1e-5).sqrt()
    for v, c in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
        x = (x @ v.t() + c).relu()
    w, b = parameters[-2:]
    value = loss(x @ w.t() + b, y) * samples
    (delta,) = torch.autograd.grad(value, leaf, create_graph=True)
    rho = (received / scale).square().sum() / len(h)
    total = value * scale + made.derivative * scale * (delta - received / scale).square().sum() / rho
    return delta.detach() * scale, list(torch.autograd.grad(total, parameters))


def compare(
    made: Head, loss: Loss, h: Tensor, y: Tensor, scale: float, samples: float, norm: bool, keep: bool = True
) -> None:
    received = torch.randn_like(h) * scale
    want, grads = twin(h, y, received, scale, made, loss, samples, norm)
    estimate, kept = made.estimate(h, y, scale, keep)
    made.fit(h, y, received, scale, kept)
    torch.testing.assert_close(estimate / scale, want / scale, **EXACT)
    for (name, parameter), grad in zip(made.named_parameters(), grads, strict=True):
        # relative to the largest entry: a sum of large terms may end near zero
        size = max(grad.abs().max().item(), scale)
        torch.testing.assert_close(parameter.grad / size, grad / size, **EXACT, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("hidden", [0, 1])
@pytest.mark.parametrize("derivative", [0.0, 1.0, 0.3])
@limits
@given(n=sizes, features=sizes, classes=st.integers(1, 5), scale=scales, seed=seeds)
@example(n=1, features=2, classes=2, scale=1.0, seed=0)
@example(n=3, features=1, classes=2, scale=1.0, seed=0)
def test_a_head_equals_autograd(
    hidden: int, derivative: float, norm: bool, n: int, features: int, classes: int, scale: float, seed: int
) -> None:
    torch.manual_seed(seed)
    made = head(features, classes, F.cross_entropy, hidden=hidden, derivative=derivative, norm=norm)
    assert made.closed
    h, y = torch.randn(n, features, dtype=torch.float64), torch.randint(0, classes, (n,))
    compare(made, F.cross_entropy, h, y, scale, n, norm)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("hidden", [0, 1])
def test_a_head_remade_without_what_was_kept_equals_autograd(hidden: int, norm: bool) -> None:
    made = head(4, 3, F.cross_entropy, hidden=hidden, derivative=1.0, norm=norm)
    h, y = torch.randn(6, 4, dtype=torch.float64), torch.randint(0, 3, (6,))
    compare(made, F.cross_entropy, h, y, 0.25, 6, norm, keep=False)


@pytest.mark.parametrize("count", [None, count_targets])
@pytest.mark.parametrize("labels", [[0, 2, 1, 2, 0, 1], [0, -100, 1, 2, -100, 1]])
def test_a_head_takes_the_loss_of_recurrent_nets_in_closed_form(labels: list[int], count: Any) -> None:
    made = head(4, 3, token_cross_entropy, count=count, hidden=1, derivative=0.7, norm=True)
    assert made.closed
    h, y = torch.randn(6, 4, dtype=torch.float64), torch.tensor(labels)
    compare(made, token_cross_entropy, h, y, 0.25, 6 if count is None else count(y), True)


@pytest.mark.parametrize("hidden", [0, 1])
@pytest.mark.parametrize("size", [0.0, 1e-5, 3e-3, 1e4])
def test_a_normalised_head_takes_messages_of_any_size(size: float, hidden: int) -> None:
    """Where h is small the 1e-5 under the root rules, and a row of zeros has a gradient as well."""
    made = head(4, 3, F.cross_entropy, hidden=hidden, derivative=1.0, norm=True)
    h, y = size * torch.randn(6, 4, dtype=torch.float64), torch.randint(0, 3, (6,))
    compare(made, F.cross_entropy, h, y, 0.25, 6, True)
    assert all(torch.isfinite(q.grad).all() for q in made.parameters())


@pytest.mark.parametrize("hidden", [0, 1])
def test_a_label_that_does_not_count_leaves_the_closed_form_once(hidden: int) -> None:
    """−100 goes through autograd, with the same definition, and nothing is added twice on the way."""
    made = head(4, 3, F.cross_entropy, hidden=hidden, derivative=0.7, norm=True)
    h, y = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, -100, 1, 2, -100, 1])
    compare(made, F.cross_entropy, h, y, 0.25, 6, True)
    assert made.closed
    made.zero_grad()
    made.power.zero_()
    compare(made, F.cross_entropy, h, y, 0.25, 6, True, keep=False)
    made.zero_grad()
    made.power.zero_()
    compare(made, F.cross_entropy, h, y.clamp_min(0), 0.25, 6, True)


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


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("hidden", [0, 1, 2])
@pytest.mark.parametrize("name", list(OPEN))
def test_any_other_loss_goes_through_autograd_and_is_right(name: str, hidden: int, norm: bool) -> None:
    loss, count = OPEN[name]
    made = head(4, 3, loss, count=count, hidden=hidden, derivative=0.7, norm=norm)
    assert not made.closed
    h, y = torch.randn(6, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 2, 1, 1])
    samples = count(y) if count else 6.0
    compare(made, loss, h, y, 0.25, samples, norm)


def test_which_losses_are_plain_cross_entropy() -> None:
    for loss in (F.cross_entropy, nn.CrossEntropyLoss(), token_cross_entropy):
        assert is_cross_entropy(loss)
        assert is_cross_entropy(loss, count_targets)
        assert not is_cross_entropy(loss, len)
    for loss, count in OPEN.values():
        assert count is not None or not is_cross_entropy(loss)
    for loss in (F.nll_loss, F.mse_loss, nn.NLLLoss(), None):
        assert not is_cross_entropy(loss)


@pytest.mark.parametrize(
    ("kind", "context"),
    [*product(("vector", "sequence", "image"), ("none", "labels", "vector")), ("sequence", "tokens")],
)
@limits
@given(n=sizes, f=sizes, t=sizes, classes=sizes, scale=scales, seed=seeds)
def test_the_linear_estimator_equals_autograd(
    kind: str, context: str, n: int, f: int, t: int, classes: int, scale: float, seed: int
) -> None:
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
        y = torch.where(torch.rand(n) < 0.2, -100, torch.randint(0, classes, (n,)))
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
        shift = y @ table if context == "vector" else table[torch.where(y < 0, 0, y + 1)]
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
    found = softmax_error(scores.detach().t(), labels, scale)  # samples stand in columns there
    torch.testing.assert_close(found.t() / scale, error.detach() / scale, **EXACT)
    again = found.clone()
    jacobian = through_softmax(found, labels, direction.t(), scale)
    torch.testing.assert_close(jacobian.t() / scale, want / scale, **EXACT)
    assert torch.equal(found, again), "the error is kept, so it may not be changed"


@limits
@given(n=sizes, f=sizes, size=st.sampled_from([0.0, 1e-4, 1.0, 1e3]), seed=seeds)
def test_the_normalisation_and_its_jacobian(n: int, f: int, size: float, seed: int) -> None:
    torch.manual_seed(seed)
    h = (size * torch.randn(n, f, dtype=torch.float64)).requires_grad_()
    x = h / (h.square().mean(1, keepdim=True) + 1e-5).sqrt()
    s = rms_reciprocal(h.detach())
    assert s.shape == (n,)
    torch.testing.assert_close(s.unsqueeze(1) * h.detach(), x.detach(), **EXACT)
    torch.testing.assert_close(nn.RMSNorm(f, eps=1e-5, elementwise_affine=False)(h), x, **EXACT)
    gradient = torch.randn(n, f, dtype=torch.float64)
    (want,) = torch.autograd.grad(x, h, gradient)
    found = through_normalisation(gradient, h.detach(), s)
    reach = s.max().item()  # J is of the size of s, and may be small by cancellation
    torch.testing.assert_close(found / reach, want / reach, **EXACT)
    back = torch.randn(n, f, dtype=torch.float64)
    lhs, rhs = (found * back).sum(), (through_normalisation(back, h.detach(), s) * gradient).sum()
    torch.testing.assert_close(lhs / reach, rhs / reach, **EXACT)


@limits
@given(n=sizes, f=sizes, classes=sizes, seed=seeds)
def test_a_linear_layer_behind_the_normalisation(n: int, f: int, classes: int, seed: int) -> None:
    torch.manual_seed(seed)
    h, s = torch.randn(n, f, dtype=torch.float64), torch.rand(n, dtype=torch.float64)
    weight, bias = torch.randn(classes, f, dtype=torch.float64), torch.randn(classes, dtype=torch.float64)
    normalised = F.linear(s.unsqueeze(1) * h, weight, bias)
    torch.testing.assert_close(affine(h, s, weight, bias).t(), normalised, **EXACT)
    torch.testing.assert_close(affine(h, None, weight, bias).t(), F.linear(h, weight, bias), **EXACT)


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
