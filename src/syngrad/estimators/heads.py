"""Estimators that are heads: they predict the model's output from h, and their loss's derivative is δ̂.

`local` learns from the labels alone (decoupled greedy learning, Belilovsky et al. 2019, arXiv 1901.08164; Nøkland &
Eidnes 2019, arXiv 1901.06656). `sobolev` is the same head, fitted also to the gradient that comes back (Sobolev
training, Czarnecki et al. 2017, arXiv 1706.04859):

    minimise   L(head(h), y)  +  weight · Σ‖δ̂ − δ‖² / (n·ρ)        with  δ̂ = ∂(sum of sample losses)/∂h

where ρ is a running mean of ‖δ‖², so that one weight serves every depth, width and stage of training.

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
from syngrad.estimators.closed_form import (
    Statistics,
    hidden_units,
    masked,
    normalised,
    softmax_error,
    through_normalisation,
    through_softmax,
)
from syngrad.estimators.regressors import check_width


class Head(GradientEstimator):
    """δ̂ = ∂/∂h of the user's loss at head(h), per sample. See the module's docstring for the equations.

    hidden: layers before the last, 0 to 3, each of `width` units. derivative: weight of the fit to the gradient that
    comes back, 0 for labels alone. channels, pool: an image is brought to pool×pool by a strided convolution of
    `channels` outputs (0: by averaging alone). norm: the head sees each sample normalised to mean 0 and variance 1, so
    that what it learns does not move with the scale of h.
    """

    def __init__(
        self,
        hidden: int = 0,
        width: int = 64,
        derivative: float = 0.0,
        channels: int = 32,
        pool: int = 4,
        norm: bool = False,
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
        self.channels, self.pool, self.norm = channels, pool, norm
        self.feedback_every, self.learning_rate = feedback_every, learning_rate
        self.wants_feedback = derivative > 0
        self.power: Tensor
        self.register_buffer("power", torch.zeros(()))
        self.closed = False

    def build(self, binding: Binding) -> None:
        """The head's network, and whether the closed form applies to it."""
        self.body = body(binding, self.hidden, self.width, self.channels, self.pool, self.norm)
        self.loss, self.count = binding.loss, binding.count
        self.closed = (
            is_cross_entropy(binding.loss)
            and binding.count is None
            and binding.kind == "vector"
            and binding.context.kind == "labels"
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
        """The derivative fit: adds weight·∂(Σ‖δ̂ − δ‖²/(n·ρ)) to `.grad`."""
        if self.derivative == 0:
            return
        weight = self._weight(received.detach(), scale)
        if self.closed and h.dtype == self.binding.parameter_dtype:  # type: ignore[union-attr]
            with torch.no_grad():
                return self._fit_closed(h.detach(), context, received.detach(), scale, kept, weight)
        with torch.enable_grad():
            scaled = kept if kept is not None else self(h, context) * scale
        if scaled.requires_grad:
            residual = scaled.detach().sub(received).mul_(weight)
            torch.autograd.backward(scaled, residual, inputs=[p for p in self.parameters() if p.requires_grad])

    @torch.no_grad()
    def _weight(self, received: Tensor, scale: float) -> Tensor:
        """2·weight/(scale·ρ), by which scale·(δ̂ − δ) is multiplied on its way back.

        ρ follows ‖δ‖² slowly down and at once up: when the estimators above have just begun, what comes back grows by
        orders of magnitude from one minibatch to the next. Nothing is fitted to a gradient of zero.
        """
        power = received.square().sum().to(self.power.dtype) / (scale * scale * max(received.shape[0], 1))
        self.power.copy_(torch.maximum(self.power.lerp(power, 0.1), power))
        return torch.where(self.power > 0, 2 * self.derivative / scale / self.power, 0.0)

    def _estimate_closed(self, h: Tensor, labels: Tensor, scale: float, keep: bool) -> tuple[Tensor, Any]:
        x, statistics = normalised(h) if self.norm else (h, None)
        error, z, inner = self._upwards(x, labels, scale)
        last = self.linears[-1]
        add_grad(last.weight, error.t() @ (x if z is None else z))
        add_grad(last.bias, error.sum(0))
        if inner is not None:
            add_grad(self.linears[0].weight, inner.t() @ x)
            add_grad(self.linears[0].bias, inner.sum(0))
        # δ̂ is made again from the error when feedback comes: it is as large as h, the error is not
        memo = (error, z, inner, statistics) if keep and self.derivative else None
        return self._downwards(h, error, inner, statistics), memo

    def _upwards(self, x: Tensor, labels: Tensor, scale: float) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """The scores' error; and with a hidden layer its units, and the gradient in front of them."""
        first, last = self.linears[0], self.linears[-1]
        z = hidden_units(x, first.weight, first.bias) if self.hidden else None
        error = softmax_error(torch.addmm(last.bias, x if z is None else z, last.weight.t()), labels, scale)
        return error, z, masked(error @ last.weight, z) if z is not None else None

    def _downwards(self, h: Tensor, error: Tensor, inner: Tensor | None, statistics: Statistics | None) -> Tensor:
        """scale·δ̂ from the error."""
        below = (error if inner is None else inner) @ self.linears[0].weight
        return through_normalisation(below, h, statistics) if statistics is not None else below

    def _fit_closed(
        self, h: Tensor, labels: Tensor, received: Tensor, scale: float, kept: Any, weight: Tensor
    ) -> None:
        if kept is None:
            x, statistics = normalised(h) if self.norm else (h, None)
            kept = (*self._upwards(x, labels, scale), statistics)
        error, z, inner, statistics = kept
        first, last = self.linears[0], self.linears[-1]
        residual = self._downwards(h, error, inner, statistics).sub_(received).mul_(weight)
        x = h
        if statistics is not None:
            x = normalised(h)[0]
            residual = through_normalisation(residual, h, statistics)
        into_error = residual @ first.weight.t()
        add_grad(first.weight, (error if inner is None else inner).t() @ residual)
        if z is not None:
            into_error = masked(into_error, z)
            add_grad(last.weight, error.t() @ into_error)
            into_error = into_error @ last.weight.t()
        into_scores = through_softmax(error, labels, into_error, scale)
        add_grad(last.weight, into_scores.t() @ (x if z is None else z))
        add_grad(last.bias, into_scores.sum(0))
        if z is not None:
            into_z = masked(into_scores @ last.weight, z)
            add_grad(first.weight, into_z.t() @ x)
            add_grad(first.bias, into_z.sum(0))


def is_cross_entropy(loss: Any) -> bool:
    """Whether the loss is plain mean softmax cross-entropy, for which the closed form is written."""
    if isinstance(loss, nn.CrossEntropyLoss):
        plain = loss.weight is None and loss.reduction == "mean" and loss.label_smoothing == 0.0
        return plain and loss.ignore_index == -100
    return loss is F.cross_entropy
