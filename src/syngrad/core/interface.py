"""The interface: what stands on a cut. It passes the message on, gives δ̂ back, and learns from what returns.

Two ways of use. The methods drive it piece by piece (`estimate`, `fit`), because only the detach form

    m = h.detach().requires_grad_();  h.backward(scale·δ̂);  the next stage runs on m

lets a stage update before the next one has run. In a loop of one's own it is a module like another, an identity whose
backward swaps the gradient; that fires only when the backward of what follows does, so it is locked, but exact:

    forward h,   backward λ·received + (1−λ)·scale·δ̂.

Source: Jaderberg et al. 2016 (arXiv 1608.05343), section 2 and BP(λ).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from syngrad.checks import real, whole
from syngrad.core.views import View
from syngrad.errors import ConfigError, MessageError, SyngradError, TrainingError, first_line
from syngrad.estimators.base import Binding, Context, GradientEstimator, steady
from syngrad.estimators.registry import EstimatorSpec, make, parse
from syngrad.estimators.regressors import Zero
from syngrad.targets import check_lambda, mixed
from syngrad.tree import batch_size, structure, tensors


class Interface(nn.Module):
    """Forward the identity; backward λ·received + (1−λ)·δ̂, while the estimator's own `.grad` is filled.

    Sizes come from the first message. As with PyTorch's lazy modules, run one batch through the model (or call
    `bind`) *before* making the optimiser. In evaluation mode, or without gradients, it is the identity.

    With several interfaces the received gradient is the true one only where every later interface has λ=1. A path that
    goes round the interface carries its own gradient. Under `torch.compile` it makes a graph break. Differentiating
    twice through it raises. A message may be nested; there is one estimator a differentiable leaf.

    Args:
        estimator: a name ("default", "linear", "mlp(hidden=2)"), a module with `forward(h, context)`, or a function
            that makes one.
        lam: λ in [0, 1]; 0 is synthetic only, 1 leaves back-propagation untouched and still fits the estimator.
        loss: only for an estimator that is a head, alone: what it differentiates, (output, target) → scalar.
        output: likewise: the shape of one sample's output (a number of classes, or a tuple).
        classes: the number of labels, where the context is labels and `output` does not tell.
        loss_count: context → the number of sample losses the loss averages over; len(batch) unless given.
        scale: ∂loss/∂(sum of sample losses); one over that count unless given here or in the call, where gradient
            accumulation or a GradScaler's factor decide.
        name: how errors call it.

    Raises:
        ConfigError: for a λ outside [0, 1] or an unknown estimator.
        MessageError: in the forward pass, for a message that changes shape.
    """

    def __init__(
        self,
        estimator: EstimatorSpec = "default",
        *,
        lam: float = 0.0,
        loss: Callable[[Any, Any], Tensor] | None = None,
        output: int | tuple[int, ...] | None = None,
        classes: int | None = None,
        loss_count: Callable[[Any], float] | None = None,
        scale: float | None = None,
        name: str = "interface",
    ) -> None:
        super().__init__()
        check_spec(estimator)
        if loss is not None and not callable(loss):
            raise ConfigError(f"an interface's loss must be a function of (output, target), got {type(loss).__name__}")
        if scale is not None:
            check_scale(scale)
        sizes = output if isinstance(output, tuple) else (output,)
        for given in (*(size for size in sizes if size is not None), *([classes] if classes is not None else [])):
            if (size := whole(given)) is None or size < 1:
                raise ConfigError(f"an interface's output and classes are sizes of at least 1, got {given!r}")
        # in a tuple, so that neither a template nor a loss that is a module becomes part of this one
        self._given = (estimator, loss, loss_count)
        self.lam = check_lambda(lam)
        self.scale, self.name = scale, name
        self.output = torch.Size(output if isinstance(output, tuple) else (output,)) if output is not None else None
        self.classes = classes if classes is not None else (self.output[-1] if self.output else None)
        self.estimators = nn.ModuleList()
        self.bound = False
        self._structure = ""
        self.positions: list[int] = []
        #: how the estimators see the leaves, one a leaf; empty where all of them, and the labels, are seen as they are
        self.views: list[View] = []
        # a leaf that always requires a gradient: the backward runs, and the estimator learns, even where nothing
        # before the interface is trained
        self._anchor = torch.zeros((), requires_grad=True)

    @property
    def wants_feedback(self) -> bool:
        """Whether any of its estimators learns from what comes back."""
        return any(e.wants_feedback for e in self.heads)

    @property
    def silent(self) -> bool:
        """Whether every estimate is 0, and an update by it nothing."""
        return all(isinstance(e, Zero) for e in self.heads)

    @property
    def heads(self) -> list[GradientEstimator]:
        """The estimators, one a differentiable leaf, in the order of the message's leaves."""
        return [e for e in self.estimators if isinstance(e, GradientEstimator)]

    def bind(self, message: Any, context: Any = None) -> None:
        """Make the estimators for a message like this one; what is bound already stays as it is."""
        if self.bound:
            return
        self._structure = structure(message)
        leaves = [t for t in pytree.tree_leaves(message) if isinstance(t, Tensor) and t.is_floating_point()]
        kind = infer_context(context, self.classes)
        _, loss, count = self._given
        self.bind_leaves([Binding(t.shape[1:], t.dtype, t.device, kind, self.output, loss, count) for t in leaves])

    def bind_leaves(
        self,
        bindings: list[Binding],
        where: list[int] | None = None,
        *,
        views: Sequence[View] = (),
    ) -> None:
        """Make one estimator for each leaf described.

        Args:
            bindings: of the leaves, as they are seen.
            where: they stand in the flattened message.
            views: how they are seen, one a leaf; as they are unless given.
        """
        self.positions = where if where is not None else []
        views = views or [View()] * len(bindings)
        self.views = [] if all(view.plain for view in views) else list(views)
        with torch.inference_mode(False):  # what is made under it can never be trained
            made = [
                make("zero" if view.carried else self._given[0], binding, self.name)
                for view, binding in zip(views, bindings, strict=True)
            ]
            self.estimators.extend(made)
        self._plain: list[GradientEstimator] = made
        self.bound = True

    @property
    def turned(self) -> list[int]:
        """The leaves whose samples stand in their second dimension."""
        return [i for i, view in enumerate(self.views) if view.turned]

    def seen(self, leaves: list[Tensor]) -> list[Tensor]:
        """The leaves, or gradients of them, as their estimators see them."""
        if not self.views:
            return leaves
        return [view.of(each) for view, each in zip(self.views, leaves, strict=True)]

    def context_at(self, i: int, context: Any) -> Any:
        """The context as the estimator of leaf i sees it: the user's own loss, in a head, takes it as it comes."""
        if not self.views or self._plain[i].takes_loss:
            return context
        return self.views[i].labels(context)

    def check(self, leaves: list[Tensor]) -> None:
        """Refuse a message that is not what the estimators were made for."""
        if len(leaves) != len(self._plain):
            raise MessageError(
                f"the message at {self.name!r} has {len(leaves)} differentiable tensors, but had {len(self._plain)} "
                "when it was bound; a message must keep its structure"
            )
        for leaf, estimator in zip(leaves, self._plain, strict=True):
            bound = estimator.binding
            assert bound is not None
            if leaf.shape[1:] != bound.shape and not (bound.kind == "sequence" and leaf.shape[2:] == bound.shape[1:]):
                raise MessageError(
                    f"the message at {self.name!r} changed shape: one sample was {tuple(bound.shape)} when it was "
                    f"bound and is {tuple(leaf.shape[1:])} now; only the batch and a sequence's length may vary"
                )

    def estimate(self, leaves: list[Tensor], context: Any, scale: float, keep: bool) -> tuple[list[Tensor], list[Any]]:
        """scale·δ̂ for every leaf, and what `fit` will want of each of these runs."""
        seen = self.seen(leaves)
        self.check(seen)
        estimates, kept = [], []
        for i, (estimator, leaf) in enumerate(zip(self._plain, seen, strict=True)):
            try:
                labels = self.context_at(i, context) if self.views else context
                made, memo = estimator.estimate(leaf, labels, scale, keep and estimator.wants_feedback)
            except SyngradError as error:
                if repr(self.name) in str(error):
                    raise
                raise type(error)(f"at {self.name!r}: {error}{self._uneven(seen, context)}") from error
            except Exception as error:
                hint = (
                    "; a batch of one cannot be batch-normalised: use drop_last=True, or batch_norm=False"
                    if "more than 1 value per" in str(error)
                    else ""
                )
                raise TrainingError(f"the estimator at {self.name!r} raised {first_line(error)}{hint}") from error
            estimates.append(made)
            kept.append(memo)
        if self.views:
            estimates = [view.back(made, h) for view, made, h in zip(self.views, estimates, leaves, strict=True)]
        return estimates, kept

    def _uneven(self, seen: list[Tensor], context: Any) -> str:
        """What to do where parts of the message have other numbers of samples than the labels; "" where none has."""
        views = self.views or [View()] * len(seen)
        counts = [leaf.shape[0] for leaf, view in zip(seen, views, strict=True) if view.samples and leaf.dim()]
        samples = batch_size(context) if tensors(context) else max(counts, default=1)
        other = next((count for count in counts if count != samples), samples)
        if other == samples:
            return ""
        remedy = "cut where every sample has a row, or begin with a minibatch of a size that nothing else has"
        if other == 1:
            remedy = "begin with a minibatch of two samples or more"
        part = "a part of the message that had as many in the first minibatch"
        return f"; there are {samples} samples, and {other} in {part}: {remedy}"

    def fit(
        self, leaves: list[Tensor], context: Any, received: list[Tensor], scale: float, kept: list[Any] | None = None
    ) -> None:
        """Fit every leaf's estimator to what came back for it."""
        leaves, received = self.seen(leaves), self.seen(received)
        for i, estimator in enumerate(self._plain):
            if estimator.wants_feedback:
                labels = self.context_at(i, context) if self.views else context
                estimator.fit(leaves[i], labels, received[i], scale, kept[i] if kept is not None else None)

    def forward(self, message: Any, context: Any = None, scale: float | None = None) -> Any:
        """The message itself, with the gradient swapped on its way back."""
        if not self.bound:
            if self.training and torch.is_grad_enabled():
                raise ConfigError(
                    f"{self.name!r} is not bound yet: run one batch through the model under torch.no_grad(), or call "
                    "bind(h, context), before making the optimiser; otherwise the estimator would never be trained"
                )
            if not self.training and context is None:
                return message  # an identity, and not yet the moment to say that there is no context
            self.bind(message, context)
        if not self.training or not torch.is_grad_enabled():
            return message
        context = steady(context)
        if scale is None:
            scale = self.scale if self.scale is not None else 1.0 / self._count(message, context)
        check_scale(scale)
        flat, spec = pytree.tree_flatten(message)
        if structure(message) != self._structure:
            raise MessageError(
                f"the message at {self.name!r} changed structure: it was {self._structure} when it was bound and is "
                f"{structure(message)} now; a message must keep its structure"
            )
        where = [i for i, leaf in enumerate(flat) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
        self.check([flat[i] for i in where])
        for i, estimator in zip(where, self._plain, strict=True):
            swapped = _SwapGradient.apply(flat[i], self._anchor, self, estimator, context, scale)  # type: ignore[no-untyped-call]
            flat[i] = swapped
        return pytree.tree_unflatten(flat, spec)

    def _count(self, message: Any, context: Any) -> float:
        count = self._given[2]
        return float(count(context)) if count is not None else float(batch_size(message))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *rest: Any) -> None:
        """As any module's, but an interface without sizes cannot take an estimator's weights."""
        if not self.bound and any(key.startswith(f"{prefix}estimators.") for key in state_dict):
            raise ConfigError(
                f"{self.name!r} is not bound yet and cannot take saved weights: run one batch through the model under "
                "torch.no_grad(), or call bind(h, context), before load_state_dict"
            )
        super()._load_from_state_dict(state_dict, prefix, *rest)

    def extra_repr(self) -> str:
        """What it was made from."""
        return f"name={self.name!r}, lam={self.lam}, bound={self.bound}"


class _SwapGradient(torch.autograd.Function):
    """Identity forwards; backwards it fits the estimator to what was received and returns the mixture."""

    @staticmethod
    def forward(
        ctx: Any, h: Tensor, anchor: Tensor, interface: Interface, estimator: Any, context: Any, scale: float
    ) -> Tensor:
        ctx.save_for_backward(h.detach())
        ctx.rest = (interface, estimator, context, scale)
        return h.view_as(h)

    @staticmethod
    def backward(ctx: Any, received: Tensor) -> Any:
        interface, estimator, context, scale = ctx.rest
        if torch.is_grad_enabled():
            raise SyngradError(
                f"double backward through {interface.name!r}: a synthetic gradient is a constant to its network; take "
                "second derivatives with the interface in eval mode, or without create_graph"
            )
        (h,) = ctx.saved_tensors
        estimate, kept = estimator.estimate(h, context, scale, estimator.wants_feedback)
        estimator.fit(h, context, received, scale, kept)
        return mixed(received, estimate, interface.lam), None, None, None, None, None


def check_spec(estimator: Any) -> None:
    """Refuse at once what can never become an estimator."""
    if isinstance(estimator, str):
        parse(estimator)
    elif isinstance(estimator, Mapping):
        for one in estimator.values():
            check_spec(one)
    elif not callable(estimator):
        raise ConfigError(
            f"an estimator is a name, a module or a function that makes one, got {type(estimator).__name__}"
        )


def check_scale(scale: float) -> None:
    """A factor of gradients: finite and above 0."""
    number = real(scale)
    if number is None or not 0 < number < math.inf:
        raise ConfigError(f"scale must be a number above 0, got {scale!r}; it is 1/len(batch) unless given")


def infer_context(context: Any, classes: int | None) -> Context:
    """What kind of context this is; the number of classes must be known where it is labels."""
    if context is None:
        return Context()
    if not isinstance(context, Tensor):
        return Context("other")
    if context.is_floating_point():
        return Context("vector", context[0].numel() if context.dim() else 1)
    if classes is None:
        raise ConfigError(
            f"the context is labels of shape {tuple(context.shape)}, but how many classes there are is not known; "
            "give classes= (or output=)"
        )
    return Context("labels" if context.dim() == 1 else "tokens", classes)


# What torch.compiler.disable would set, without importing the compiler, which costs a second: under torch.compile an
# interface makes a graph break and runs as it is.
vars(Interface.forward)["_torchdynamo_disable"] = True
