"""Estimators that are heads: they predict the model's output from h, and their loss's derivative is δ̂.

`local` learns from the labels alone (decoupled greedy learning, Belilovsky et al. 2019, arXiv 1901.08164; Nøkland & Eidnes
2019, arXiv 1901.06656). `sobolev` is the same head, fitted also to the gradient that comes back (Sobolev training,
Czarnecki et al. 2017, arXiv 1706.04859):

    minimise   L(head(h), y)  +  weight · Σ‖δ̂ − δ‖² / n        with  δ̂ = ∂(sum of sample losses)/∂h

The value is fitted on every minibatch, where δ̂ is made; the derivative where a gradient comes back, every n-th. A head
differentiates the experiment's own loss, so regression and token-wise losses work as classification does. For softmax
cross-entropy on vectors, with one hidden layer or none, everything is done in closed form (closed_form.py).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from syngrad.errors import ConfigError, MessageError, first_line
from syngrad.estimators.base import Binding, GradientEstimator, add_grad
from syngrad.estimators.bodies import body
from syngrad.estimators.closed_form import hidden_units, masked, softmax_error, through_softmax
from syngrad.estimators.regressors import check_width


class Head(GradientEstimator):
    """δ̂ = ∂/∂h of the user's loss at head(h), per sample. See the module's docstring for the equations.

    hidden: layers before the last, 0 to 3, each of `width` units. derivative: weight of the fit to the gradient that
    comes back, 0 for labels alone. channels, pool: an image is brought to pool×pool by a strided convolution of
    `channels` outputs (0: by averaging alone).
    """

    def __init__(
        self,
        hidden: int = 0,
        width: int = 64,
        derivative: float = 0.0,
        channels: int = 32,
        pool: int = 4,
        feedback_every: int = 1,
        learning_rate: float = 1.0,
    ) -> None:
        super().__init__()
        if hidden not in (0, 1, 2, 3):
            raise ConfigError(f"a head takes 0 to 3 hidden layers, got hidden={hidden!r}")
        if derivative < 0:
            raise ConfigError(f"the weight of the derivative fit cannot be negative, got derivative={derivative!r}")
        check_width(width)
        self.hidden, self.width, self.derivative = hidden, width, float(derivative)
        self.channels, self.pool = channels, pool
        self.feedback_every, self.learning_rate = feedback_every, learning_rate
        self.wants_feedback = derivative > 0
        self.closed = False

    def build(self, binding: Binding) -> None:
        """The head's network, and whether the closed form applies to it."""
        self.body = body(binding, self.hidden, self.width, self.channels, self.pool)
        self.loss, self.count = binding.loss, binding.count
        self.closed = (
            is_cross_entropy(binding.loss)
            and binding.count is None
            and binding.kind == "vector"
            and binding.context.kind == "labels"
            and isinstance(self.body, nn.Sequential)
            and self.hidden <= 1
        )
        if self.closed:
            self.linears = [layer for layer in self.body if isinstance(layer, nn.Linear)]

    def forward(self, h: Tensor, context: Any = None) -> Tensor:
        """δ̂, per sample, in the shape of h; differentiable in the head's parameters."""
        with torch.enable_grad():
            h = h.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.value(h, context), h, create_graph=True)
        return gradient * self.samples(h, context)

    def value(self, h: Tensor, context: Any) -> Tensor:
        """The user's loss at head(h), a scalar."""
        assert self.loss is not None
        x = h.to(self.binding.parameter_dtype) if self.binding is not None else h
        try:
            return self.loss(self.body(x), context)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            raise MessageError(f"the loss raised on a head's output: {first_line(error)}") from error

    def samples(self, h: Tensor, context: Any) -> float:
        """The number of sample losses whose mean the loss is: what turns its gradient into that of a sum."""
        return self.count(context) if self.count is not None else float(h.shape[0])

    def estimate(self, h: Tensor, context: Any, scale: float, keep: bool) -> tuple[Tensor, Any]:
        """scale·δ̂; the value fit's gradients are added to `.grad` on the way."""
        h = h.detach()
        if self.closed and h.dtype == self.binding.parameter_dtype:  # type: ignore[union-attr]
            with torch.no_grad():
                return self._estimate_closed(h, context, scale, keep)
        parameters = [p for p in self.parameters() if p.requires_grad]
        double = keep and self.derivative > 0
        with torch.enable_grad():
            h = h.requires_grad_()
            gradients = torch.autograd.grad(
                self.value(h, context), [h, *parameters], create_graph=double, allow_unused=True
            )
        factor = scale * self.samples(h, context)
        for parameter, gradient in zip(parameters, gradients[1:], strict=True):
            if gradient is not None:
                add_grad(parameter, gradient.detach() * factor)
        scaled = gradients[0] * factor
        return scaled.detach(), scaled if double else None

    def fit(self, h: Tensor, context: Any, received: Tensor, scale: float, kept: Any = None) -> None:
        """The derivative fit: adds weight·∂(Σ‖δ̂ − δ‖²/n) to `.grad`."""
        if self.derivative == 0:
            return
        if self.closed and h.dtype == self.binding.parameter_dtype:  # type: ignore[union-attr]
            with torch.no_grad():
                return self._fit_closed(h.detach(), context, received, scale, kept)
        with torch.enable_grad():
            scaled = kept if kept is not None else self(h, context) * scale
        if scaled.requires_grad:
            residual = scaled.detach().sub(received).mul_(2 * self.derivative / scale)
            torch.autograd.backward(scaled, residual, inputs=[p for p in self.parameters() if p.requires_grad])

    def _estimate_closed(self, h: Tensor, labels: Tensor, scale: float, keep: bool) -> tuple[Tensor, Any]:
        last = self.linears[-1]
        z = hidden_units(h, self.linears[0].weight, self.linears[0].bias) if self.hidden else h
        error = softmax_error(torch.addmm(last.bias, z, last.weight.t()), labels, scale)
        add_grad(last.weight, error.t() @ z)
        add_grad(last.bias, error.sum(0))
        scaled = inner = error @ last.weight
        if self.hidden:
            first = self.linears[0]
            inner = masked(inner, z)
            add_grad(first.weight, inner.t() @ h)
            add_grad(first.bias, inner.sum(0))
            scaled = inner @ first.weight
        return scaled, (scaled, error, z, inner) if keep and self.derivative else None

    def _fit_closed(self, h: Tensor, labels: Tensor, received: Tensor, scale: float, kept: Any) -> None:
        last = self.linears[-1]
        if kept is None:
            z = hidden_units(h, self.linears[0].weight, self.linears[0].bias) if self.hidden else h
            error = softmax_error(torch.addmm(last.bias, z, last.weight.t()), labels, scale)
            inner = masked(error @ last.weight, z) if self.hidden else error @ last.weight
            kept = (inner @ self.linears[0].weight if self.hidden else inner, error, z, inner)
        scaled, error, z, inner = kept
        residual = scaled.sub(received).mul_(2 * self.derivative / scale)
        if not self.hidden:
            add_grad(last.weight, error.t() @ residual)
            grad_scores = through_softmax(error, labels, residual @ last.weight.t(), scale)
            add_grad(last.weight, grad_scores.t() @ h)
            add_grad(last.bias, grad_scores.sum(0))
            return
        first = self.linears[0]
        add_grad(first.weight, inner.t() @ residual)
        grad_inner = masked(residual @ first.weight.t(), z)
        add_grad(last.weight, error.t() @ grad_inner)
        grad_scores = through_softmax(error, labels, grad_inner @ last.weight.t(), scale)
        add_grad(last.weight, grad_scores.t() @ z)
        add_grad(last.bias, grad_scores.sum(0))
        grad_z = masked(grad_scores @ last.weight, z)
        add_grad(first.weight, grad_z.t() @ h)
        add_grad(first.bias, grad_z.sum(0))


def is_cross_entropy(loss: Any) -> bool:
    """Whether the loss is plain mean softmax cross-entropy, for which the closed form is written."""
    if isinstance(loss, nn.CrossEntropyLoss):
        plain = loss.weight is None and loss.reduction == "mean" and loss.label_smoothing == 0.0
        return plain and loss.ignore_index == -100
    return loss is F.cross_entropy
