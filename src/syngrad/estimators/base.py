"""The gradient estimator: a module (h, context) → δ̂ that learns from what comes back.

An estimator speaks of one sample: δ̂ is the gradient of the *sum* of sample losses, so it keeps its scale when the batch
size changes (design: Scale). In the hot path the same number travels multiplied by `scale`, because then nothing has to
be divided: with r = scale·δ̂ − g, where g is the gradient as it came back, the gradient of the estimator loss
scale·Σ‖δ̂ − g/scale‖² with respect to δ̂ is simply 2·r. That loss is the squared error summed over features and averaged
over samples; a loss multiplied for gradient accumulation or by a GradScaler carries its factor in `scale`, and the
estimator's `.grad` carries it as every other parameter's does.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from syngrad.errors import ConfigError, MessageError
from syngrad.tree import map_tensors

_NOTHING: AbstractContextManager[Any] = nullcontext()
LayerT = TypeVar("LayerT", bound=nn.Module)


@dataclass(frozen=True)
class Context:
    """What travels with a batch and estimators may look at: labels, as a rule.

    Attributes:
        kind: "labels" (n,) of integers, "tokens" (n, t) of integers, "vector" (n, …) of floats, or "none" (no context).
            Any other kind, "other" for instance, is for estimators of the user's own.
        size: the number of classes for labels and tokens, the number of features of one sample for a vector.
    """

    kind: str = "none"
    size: int = 0


@dataclass(frozen=True)
class Binding:
    """All that an estimator's sizes follow from; made by one fake run of the model, never typed by hand.

    Attributes:
        shape: of one sample's h (the batch dimension left out).
        dtype: of h.
        device: of h.
        context: what else the estimator is given.
        output: the shape of one sample's model output, None when that is not a single tensor.
        loss: the user's own, (output, target) → scalar.
        count: target → the number of sample losses whose mean the loss is.
        outputs: the shapes of one sample's parts of the output, where the loss differentiates several of its tensors.
        why: what keeps a head from predicting the output, where `output` is None and there are no `outputs`.
    """

    shape: torch.Size
    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    context: Context = field(default_factory=Context)
    output: torch.Size | None = None
    loss: Callable[[Any, Any], Tensor] | None = None
    count: Callable[[Any], float] | None = None
    outputs: tuple[torch.Size, ...] = ()
    why: str = ""

    @property
    def features(self) -> int:
        """Number of elements of one sample's h."""
        return self.shape.numel()

    @property
    def kind(self) -> str:
        """vector (f,), sequence (t, f), image (c, y, x), or volume for anything of higher rank."""
        return {0: "vector", 1: "vector", 2: "sequence", 3: "image"}.get(len(self.shape), "volume")

    @property
    def width(self) -> int:
        """Size of the dimension an estimator mixes: features, a token's features, or channels."""
        if self.kind == "sequence":
            return self.shape[-1]
        return self.shape[0] if self.kind in ("image", "volume") else self.features

    @property
    def parameter_dtype(self) -> torch.dtype:
        """float64 stays, everything narrower is kept in float32, as under autocast."""
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def factory(self) -> dict[str, Any]:
        """dtype and device for making parameters."""
        return {"dtype": self.parameter_dtype, "device": self.device}


class GradientEstimator(nn.Module):
    """δ̂ = M(h, context): predicts the gradient of the sum of sample losses with respect to h, in the shape of h.

    To write your own, give `forward(h, context)`, and `build(binding)` if sizes depend on the message; the last layer
    should start at zero, weights and biases (`zero_`), so that an untrained estimate moves nothing. `h` arrives
    detached. Everything else has a default: `estimate` runs `forward` once, and `fit` differentiates that same run.

    Source: Jaderberg et al. 2016 (arXiv 1608.05343), section 2. Deviation: the reduction of the L2 loss is not
    published; here it is summed over features and averaged over samples.
    """

    #: whether fitting it needs a gradient to come back (a head that learns from labels alone does not)
    wants_feedback: bool = True
    #: whether it sees labels; read by `binding.context`
    context: bool = True
    #: feedback is asked for on every n-th minibatch unless the trainer is told otherwise
    feedback_every: int = 1
    #: the estimator's learning rate as a multiple of its stage's
    learning_rate: float = 1.0

    #: whether it differentiates the user's own loss, which takes the labels as they come
    takes_loss: bool = False

    #: whether every sample's estimate is its own, and is what `estimate` keeps: samples can then be put together, and
    #: what was kept be taken apart
    rowwise: bool = False

    binding: Binding | None = None

    def bind(self, binding: Binding) -> None:
        """Make the parameters for one place; called once, before training."""
        if self.binding is not None:
            raise ConfigError(f"{type(self).__name__} is bound already; give each interface its own estimator")
        self.binding = binding
        self.build(binding)
        self.to(**binding.factory())

    def build(self, binding: Binding) -> None:
        """Make the layers. Estimators whose sizes are fixed by hand have nothing to do here."""

    def forward(self, h: Tensor, context: Any = None) -> Tensor:
        """δ̂ for a detached h of shape (n, …): the same shape, per sample."""
        raise ConfigError(f"{type(self).__name__} has no forward(h, context); an estimator needs one")

    def own(self, h: Tensor) -> Tensor:
        """h detached, in the dtype of the estimator's own parameters: a message may be in a narrower one."""
        dtype = next((p.dtype for p in self.parameters() if p.is_floating_point()), h.dtype)
        return h.detach() if h.dtype == dtype else h.detach().to(dtype)

    def estimate(self, h: Tensor, context: Any, scale: float, keep: bool) -> tuple[Tensor, Any]:
        """scale·δ̂, and what `fit` will want of this run; one that learns from the context alone adds to `.grad` here.

        Args:
            h: the message, (n, …).
            context: what travels with it.
            scale: ∂loss/∂(sum of sample losses).
            keep: whether a gradient will come back for this message.

        Returns:
            scale·δ̂, detached, in the shape and dtype of h; and what `fit` is to be given as `kept`, None unless `keep`.

        Raises:
            MessageError: for an estimate of another shape than the message has.
        """
        with torch.set_grad_enabled(keep):
            predicted = self(self.own(h), steady(context))
        if not isinstance(predicted, Tensor) or predicted.shape != h.shape:
            got = tuple(predicted.shape) if isinstance(predicted, Tensor) else type(predicted).__name__
            name = type(getattr(self, "module", self)).__name__
            raise MessageError(f"{name} gave δ̂ of {got} for a message of {tuple(h.shape)}; they must agree")
        return predicted.detach().to(h.dtype) * scale, predicted if keep else None

    def fit(self, h: Tensor, context: Any, received: Tensor, scale: float, kept: Any = None) -> None:
        """Add the gradient of scale·Σ‖δ̂ − received/scale‖² to the parameters' `.grad`.

        Args:
            h: the message, (n, …).
            context: what travelled with it.
            received: the gradient as it came back, ∂loss/∂h, in the shape of h.
            scale: ∂loss/∂(sum of sample losses).
            kept: what `estimate` returned, or None when weights have changed since: the prediction is made again.
        """
        with torch.enable_grad():
            predicted = kept if kept is not None else self(self.own(h), steady(context))
        if predicted.requires_grad:
            torch.autograd.backward(predicted, (predicted.detach() * scale).sub_(received.detach()).mul_(2))


class Wrapped(GradientEstimator):
    """A user's own module with `forward(h, context)`, or `forward(h)`, as an estimator."""

    def __init__(self, module: nn.Module, takes_context: bool) -> None:
        super().__init__()
        self.module = module
        self.context = takes_context

    def forward(self, h: Tensor, context: Any = None) -> Tensor:
        """What the user's module says."""
        return self.module(h, context) if self.context else self.module(h)  # type: ignore[no-any-return]


def steady(context: Any) -> Any:
    """The context cut from any graph: fitting an estimator moves no more than the estimator."""
    if isinstance(context, Tensor):
        return context.detach() if context.requires_grad else context
    return map_tensors(Tensor.detach, context)


def exact(h: Tensor) -> AbstractContextManager[Any]:
    """Inside it autocast is off: closed forms keep the dtype of their weights."""
    if torch.is_autocast_enabled(h.device.type):
        return torch.autocast(h.device.type, enabled=False)
    return _NOTHING


def bad_label(labels: Any, size: int) -> MessageError | None:
    """The error for a label that is no class, if there is one: −100 does not count and may stand anywhere."""
    if not isinstance(labels, Tensor) or labels.is_floating_point():
        return None
    outside = labels[(labels >= size) | ((labels < 0) & (labels != -100))]
    if not outside.numel():
        return None
    value = int(outside[0])
    return MessageError(f"label {value} is outside the model's {size} outputs: labels run from 0 to {size - 1}")


def zero_(layer: LayerT) -> LayerT:
    """The layer with weights *and* biases at zero: an estimator's last layer starts so."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def add_grad(parameter: Tensor, grad: Tensor) -> None:
    """Accumulate into `.grad` as autograd would, for gradients found in closed form.

    A gradient comes to lie in memory as its parameter does: PyTorch's fused optimisers go through both as they lie.
    """
    if not parameter.requires_grad:
        return
    if parameter.grad is None:
        same = grad.dtype == parameter.dtype and grad.stride() == parameter.stride()
        parameter.grad = grad if same else torch.empty_like(parameter).copy_(grad)
    else:
        parameter.grad.add_(grad)
