"""Estimators that are heads: they predict the model's output from h, and their loss's derivative is δ̂.

`local` learns from the labels alone (decoupled greedy learning, Belilovsky et al. 2019, arXiv 1901.08164; Nøkland &
Eidnes 2019, arXiv 1901.06656). `sobolev` is the same head, fitted also to the gradient that comes back (Sobolev
training, Czarnecki et al. 2017, arXiv 1706.04859):

    minimise   L(head(h), y)  +  weight · Σ‖δ̂ − δ‖² / (n·ρ)        with  δ̂ = ∂(sum of sample losses)/∂h

where ρ is a running mean of ‖δ‖², so that one weight serves every depth, width and stage of training.

The value is fitted on every minibatch, where δ̂ is made; the derivative where a gradient comes back, every n-th. A head
differentiates the experiment's own loss, so regression and token-wise losses work as classification does. For softmax
cross-entropy on vectors, and on images that are small already, with one hidden layer or none, everything is done in
closed form (closed_form.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from syngrad.checks import real
from syngrad.errors import ConfigError, MessageError, first_line
from syngrad.estimators.base import Binding, GradientEstimator, add_grad, bad_label, exact, steady
from syngrad.estimators.bodies import aligned, bodies, flat, one_by_one, time_dimension, token_wise
from syngrad.estimators.closed_form import (
    affine,
    masked,
    rms_reciprocal,
    softmax_error,
    through_normalisation,
    through_softmax,
)
from syngrad.estimators.losses import count_targets, token_cross_entropy
from syngrad.estimators.regressors import check_hidden, whole
from syngrad.estimators.saddle import Start
from syngrad.targets import scalar

ResultT = TypeVar("ResultT")

#: the learning rate of a token-wise head as a multiple of its stage's, unless it is given
TOKEN_RATE = 10.0
#: weights of the derivative fit where none is given
VECTOR_WEIGHT, IMAGE_WEIGHT, TOKEN_WEIGHT = 0.03, 0.5, 1.0


class Head(GradientEstimator):
    """δ̂ = ∂/∂h of the user's loss at head(h), per sample. See the module's docstring for the equations.

    norm, learning_rate and derivative are chosen from the message where they are None: normalised and 1, but for a head
    with an output for every token not normalised and 10. What a residual stream carries is small and its classes are
    many: from zero such a head must grow fast to lead its stage, and a norm takes from it what grows with the stream.
    The derivative's weight is small for vectors, where it hardly matters, and large for images and tokens, where in a
    longer training it does.

    Args:
        hidden: layers before the last, 0 to 3, each of `width` units.
        width: of those.
        derivative: weight of the fit to the gradient that comes back, 0 for labels alone.
        channels: an image is brought to pool×pool by convolutions of stride 2 with up to so many outputs; 0: by
            averaging alone.
        pool: the sides of what becomes of an image.
        norm: the head sees each sample (each token; an image when it has become small) at a root mean square of 1, so
            that what it learns does not move with the scale of h.
        feedback_every: feedback is asked for on every n-th minibatch.
        learning_rate: as a multiple of the stage's.

    Raises:
        ConfigError: for a number that is none of these.
    """

    takes_loss = True

    def __init__(
        self,
        hidden: int = 0,
        width: int = 64,
        derivative: float | None = 0.0,
        channels: int = 64,
        pool: int = 4,
        norm: bool | None = False,
        feedback_every: int = 1,
        learning_rate: float | None = 1.0,
    ) -> None:
        super().__init__()
        check_hidden(hidden)
        for name, value in (("width", width), ("pool", pool), ("feedback_every", feedback_every)):
            whole(name, value, 1)
        whole("channels", channels, 0)
        weight = VECTOR_WEIGHT if derivative is None else derivative
        if (number := real(weight)) is None or not 0 <= number < math.inf:
            raise ConfigError(f"the weight of the derivative fit must be 0 or more, got derivative={derivative!r}")
        rate = 1.0 if learning_rate is None else learning_rate
        if (factor := real(rate)) is None or not 0 < factor < math.inf:
            raise ConfigError(f"an estimator's learning rate is a factor above 0, got learning_rate={learning_rate!r}")
        self.hidden, self.width, self.derivative = hidden, width, float(weight)
        self.channels, self.pool, self.norm = channels, pool, norm
        self.feedback_every, self.learning_rate = feedback_every, rate
        self._rate_given, self._weight_given = learning_rate is not None, derivative is not None
        self.wants_feedback = weight > 0
        self.power: Tensor
        self.register_buffer("power", torch.zeros(()))
        self.closed = False

    def build(self, binding: Binding) -> None:
        """The head's network, and whether the closed form applies to it."""
        parts = one_by_one(binding)
        by_token = any(map(token_wise, parts))
        self._times = [time_dimension(part) for part in parts]
        if by_token and not self._rate_given:
            self.learning_rate = TOKEN_RATE
        if not self._weight_given and (by_token or binding.kind == "image"):
            self.derivative = TOKEN_WEIGHT if by_token else IMAGE_WEIGHT
        wished = not by_token if self.norm is None else self.norm
        self.body = bodies(binding, self.hidden, self.width, self.channels, self.pool, wished)
        self.start = Start(self.body.children() if binding.outputs else [self.body])
        self.norm = any(isinstance(part, nn.RMSNorm) for part in self.body.modules())
        self.closed = (
            is_cross_entropy(binding.loss, binding.count)
            and (len(binding.shape) == 1 or flat(next(iter(self.body.children()))))
            and binding.output is not None
            and len(binding.output) == 1
            and binding.context.kind == "labels"
            and self.hidden <= 1
        )
        if self.closed:
            self.linears = [layer for layer in self.body.modules() if isinstance(layer, nn.Linear)]

    def forward(self, h: Tensor, context: Any = None) -> Tensor:
        """δ̂, per sample, in the shape of h; differentiable in the head's parameters."""
        with torch.enable_grad():
            h = h.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(self.value(h, context), h, create_graph=True)
        return gradient * self.samples(h, context)

    def value(self, h: Tensor, context: Any) -> Tensor:
        """The user's loss at head(h), a scalar."""
        binding = self.binding
        if binding is None or binding.loss is None:
            raise ConfigError("a head must be bound to a message, an output and a loss before it can estimate")
        dtype = next(self.body.parameters()).dtype
        output = self.body(h if h.dtype == dtype else h.to(dtype))
        if isinstance(output, tuple):
            output = tuple(aligned(each, context, time) for each, time in zip(output, self._times, strict=True))
        elif self._times[0] is not None:
            output = aligned(output, context, self._times[0])
        try:
            loss = binding.loss(output, context)
        except (RuntimeError, ValueError, IndexError, TypeError, AttributeError, KeyError) as error:
            about_labels = isinstance(error, IndexError) or "out of bounds" in str(error)
            outside = bad_label(context, binding.context.size) if about_labels and binding.context.size else None
            raise outside or MessageError(f"the loss raised on a head's output: {first_line(error)}") from error
        return scalar(loss)

    def samples(self, h: Tensor, context: Any) -> float:
        """The number of sample losses whose mean the loss is: what turns its gradient into that of a sum."""
        count = self.binding.count if self.binding is not None else None
        return float(count(context)) if count is not None else float(h.shape[0])

    def estimate(self, h: Tensor, context: Any, scale: float, keep: bool) -> tuple[Tensor, Any]:
        """scale·δ̂; the value fit's gradients are added to `.grad` on the way."""
        h = h.detach()
        if self._closes(h, context):
            made = self._try(self._estimate_closed, h.flatten(1), context, scale, keep)
            if made is not None:
                return made[0].view(h.shape), made[1]
        parameters = [p for p in self.parameters() if p.requires_grad]
        double = keep and self.derivative > 0
        with torch.enable_grad():
            h = h.requires_grad_()
            loss = self.value(h, steady(context))
            gradients = torch.autograd.grad(loss, [h, *parameters], create_graph=double, allow_unused=True)
            if self.start.open and self.start.leaves(loss, h, context, parameters, gradients[1:]):
                loss = self.value(h, steady(context))
                gradients = torch.autograd.grad(loss, [h, *parameters], create_graph=double, allow_unused=True)
            factor = scale * self.samples(h, context)
            scaled = gradients[0] * factor
        for parameter, gradient in zip(parameters, gradients[1:], strict=True):
            if gradient is not None:
                add_grad(parameter, gradient.detach() * factor)
        return scaled.detach(), scaled if double else None

    def _try(self, closed_form: Callable[..., ResultT], h: Tensor, labels: Tensor, *rest: Any) -> ResultT | None:
        """The closed form's result, or None for labels that it cannot take: then the loss itself says what they mean.

        Such labels are −100, which does not count, and those that are out of range. They show before any gradient has
        been added to, and cost nothing where there are none.
        """
        try:
            with torch.no_grad(), exact(h):
                return closed_form(h, labels, *rest)
        except (RuntimeError, IndexError):
            if self._in_range(labels):
                raise
            return None

    def _closes(self, h: Tensor, context: Any) -> bool:
        """Whether the closed form serves this call: anything but one whole number a sample is the loss's own affair."""
        return (
            self.closed
            and h.dtype == self.linears[0].weight.dtype
            and isinstance(context, Tensor)
            and context.dtype == torch.int64
            and context.shape == h.shape[:1]
            # on a device a label out of range ends the process's use of it, so there it is looked for beforehand
            and (h.is_cpu or self._in_range(context))
        )

    def _in_range(self, labels: Tensor) -> bool:
        size = self.binding.context.size if self.binding is not None else 0
        return bool(((labels >= 0) & (labels < size)).all())

    def fit(self, h: Tensor, context: Any, received: Tensor, scale: float, kept: Any = None) -> None:
        """The derivative fit: adds weight·∂(Σ‖δ̂ − δ‖²/(n·ρ)) to `.grad`."""
        if self.derivative == 0:
            return
        h, received = h.detach(), received.detach()
        weight = self._weight(received, scale)
        closes = self._closes(h, context) and not isinstance(kept, Tensor)
        if closes and self._try(self._fit_closed, h.flatten(1), context, received.flatten(1), scale, kept, weight):
            return
        trained = [p for p in self.parameters() if p.requires_grad]
        if not trained:
            return
        with torch.enable_grad():
            scaled = kept if kept is not None else self(h, steady(context)) * scale
        if scaled.requires_grad:
            residual = scaled.detach().sub(received).mul_(weight)
            torch.autograd.backward(scaled, residual, inputs=trained)

    @torch.no_grad()
    def _weight(self, received: Tensor, scale: float) -> Tensor:
        """2·weight/(scale·ρ), by which scale·(δ̂ − δ) is multiplied on its way back.

        ρ follows ‖δ‖² slowly when it falls and at once when it grows: when the estimators of later stages have just
        begun, what comes back grows by orders of magnitude from one minibatch to the next. Nothing is fitted to a
        gradient of zero, and one that is not finite (of a minibatch that fails, or where a GradScaler overflows) is not
        remembered.
        """
        norm = torch.linalg.vector_norm(received, dtype=self.power.dtype)
        power = (norm / scale).square() / max(received.shape[0], 1)
        following = torch.maximum(self.power.lerp(power, 0.1), power)
        self.power.copy_(torch.where(following.isfinite(), following, self.power))
        return torch.where(self.power > 0, 2 * self.derivative / scale / self.power, 0.0)

    def _estimate_closed(self, h: Tensor, labels: Tensor, scale: float, keep: bool) -> tuple[Tensor, Any]:
        s = rms_reciprocal(h) if self.norm else None
        first, last = self.linears[0], self.linears[-1]
        error, z, v, along = self._error_at(h, s, labels, scale)
        if z is not None:
            add_grad(last.weight, error @ z.t())
            add_grad(last.bias, error.sum(1))
        small = v if s is None else v * s
        add_grad(first.weight, small @ h)
        add_grad(first.bias, v.sum(1))
        # δ̂ is made again from the error when feedback comes: it is as large as h, the error is not
        memo = (s, error, z, v, along) if keep and self.derivative else None
        return self._gradient_at(h, s, small, along), memo

    def _error_at(
        self, h: Tensor, s: Tensor | None, labels: Tensor, scale: float
    ) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
        """Forward and half of the way back: the scores' error e, the hidden units z, v = ∂/∂(first linear layer's
        output), all as columns (·, n), and ⟨v, W·x⟩ of each sample (n,) under a norm.
        """
        first, last = self.linears[0], self.linears[-1]
        reached = affine(h, s, first.weight, first.bias)
        if not self.hidden:
            error = softmax_error(reached, labels, scale)
            along = None if s is None else reached.sub_(first.bias.unsqueeze(1)).mul_(error).sum(0)
            return error, None, error, along
        z = reached.relu_()
        error = softmax_error(torch.addmm(last.bias.unsqueeze(1), last.weight, z), labels, scale)
        v = masked(last.weight.t() @ error, z)
        return error, z, v, None if s is None else z.sub(first.bias.unsqueeze(1)).mul_(v).sum(0)

    def _gradient_at(self, h: Tensor, s: Tensor | None, small: Tensor, along: Tensor | None) -> Tensor:
        """scale·δ̂ (n, f) from s·v, and from its part along x, which a norm takes away."""
        gradient = small.t() @ self.linears[0].weight
        if s is None or along is None:
            return gradient
        return gradient.addcmul_(h, s.square().mul_(along).div_(-h.shape[1]).unsqueeze(1))

    def _fit_closed(self, h: Tensor, labels: Tensor, received: Tensor, scale: float, kept: Any, weight: Tensor) -> bool:
        if kept is None:
            s = rms_reciprocal(h) if self.norm else None
            kept = (s, *self._error_at(h, s, labels, scale))
        s, error, z, v, along = kept
        first, last = self.linears[0], self.linears[-1]
        small = v if s is None else v * s
        residual = self._gradient_at(h, s, small, along).sub_(received).mul_(weight)
        if s is not None:
            residual = through_normalisation(residual, h, s)
        add_grad(first.weight, v @ residual)
        # What the residual makes of δ̂ = e·W (or u·V, u = (e·W) ⊙ [z > 0]) goes through its other factors, to e first.
        into = first.weight @ residual.t()
        if z is not None:
            into = masked(into, z)
            add_grad(last.weight, error @ into.t())
            into = last.weight @ into
        # Then from e through the softmax to the scores, and from those through the layers as any gradient does.
        into = through_softmax(error, labels, into, scale)
        if z is not None:
            add_grad(last.weight, into @ z.t())
            add_grad(last.bias, into.sum(1))
            into = masked(last.weight.t() @ into, z)
        add_grad(first.bias, into.sum(1))
        add_grad(first.weight, (into if s is None else into * s) @ h)
        return True


def is_cross_entropy(loss: Any, count: Any = None) -> bool:
    """Whether the loss is plain mean softmax cross-entropy, for which the closed form is written, over all samples
    whose label is a class.
    """
    if count is not None and count is not count_targets:
        return False
    if type(loss) is nn.CrossEntropyLoss:
        plain = loss.weight is None and loss.reduction == "mean" and loss.label_smoothing == 0.0
        return plain and loss.ignore_index == -100
    return loss is F.cross_entropy or loss is token_cross_entropy
