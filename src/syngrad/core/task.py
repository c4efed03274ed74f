"""What estimators are made for: a minibatch's samples, its labels, and what the loss reads of the model's output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from syngrad.core.batch import samples
from syngrad.core.binding import Bound, Crossing, InStructure, Loss
from syngrad.core.interface import Interface
from syngrad.errors import CutError, warn
from syngrad.estimators.base import Binding, Context
from syngrad.estimators.registry import EstimatorSpec
from syngrad.tree import tensors


@dataclass(frozen=True)
class Task:
    """The part of every estimator's binding that is not its message.

    Args:
        batch: the number of samples of the first minibatch.
        context: what the targets are to an estimator.
        outputs: the shapes of one sample's parts of the output that the loss reads; empty where they cannot be told.
        loss: of (those parts, target).
        count: target → the number of sample losses whose mean the loss is.
        why: what keeps a head from predicting the output; "" for nothing.
    """

    batch: int
    context: Context
    outputs: tuple[torch.Size, ...]
    loss: Loss
    count: Callable[[Any], float] | None
    why: str = ""

    @classmethod
    def of(
        cls, bound: Bound, args: Any, kwargs: Any, target: Any, loss: Loss, count: Callable[[Any], float] | None
    ) -> Task:
        """From a run of the model and the loss."""
        batch, output = samples(args, kwargs, target), bound.output
        parts = [output] if isinstance(output, Tensor) else bound.predicted
        context = described(parts or tensors(output), target)
        places = [sample_dimension(part.shape, batch) for part in parts]
        turned = [place == 1 for place in places]
        if isinstance(output, Tensor):
            loss = InStructure(loss, output, [0], turned) if any(turned) else loss
        elif bound.read is not None:
            loss = InStructure(loss, output, bound.read, turned)
        shapes = [(part.transpose(0, 1) if place else part).shape for part, place in zip(parts, turned, strict=True)]
        why = ""
        if any(part.dim() == 0 for part in parts) and not isinstance(output, Tensor):
            why = "the loss reads a scalar that the model itself has made of the labels"
        elif None in places:
            why = f"a part of it, {tuple(parts[places.index(None)].shape)}, does not begin with the {batch} samples"
        elif bound.raised and not isinstance(output, Tensor):
            why = f"the loss, given {_contents(output)} as the model returns it, raised {bound.raised}"
        elif not parts:
            why = "no tensor of it that the loss differentiates was found"
        return cls(batch, context, () if why else tuple(shape[1:] for shape in shapes), loss, count, why)

    def binding(self, h: Tensor, context: Context) -> Binding:
        """Of one leaf, its samples in front."""
        single = self.outputs[0] if len(self.outputs) == 1 else None
        several = self.outputs if len(self.outputs) > 1 else ()
        return Binding(h.shape[1:], h.dtype, h.device, context, single, self.loss, self.count, several, self.why)


def interface(name: str, crossing: Crossing, estimator: EstimatorSpec, task: Task) -> Interface:
    """An interface bound to what crosses a cut.

    A leaf whose samples stand in its second dimension is turned for its estimator. One that has no samples at all, a
    position bias or the rows of a graph's nodes, is carried: the gradient that comes back for it passes on where the
    method passes any on, and no estimate of it is made.
    """
    made = Interface(estimator, loss=task.loss, name=name)
    bindings, turned, carried = [], [], []
    for h in crossing.leaves:
        if h.is_complex() and _estimates(estimator, name):
            raise CutError(
                f"cannot cut at {name!r}: a complex tensor, {tuple(h.shape)}, crosses it, and estimates are real; send "
                "torch.view_as_real(h) and take torch.view_as_complex of it, or cut elsewhere"
            )
        place = sample_dimension(h.shape, task.batch)
        turned.append(place == 1)
        carried.append(place is None)
        bindings.append(task.binding(h.transpose(0, 1) if place == 1 else h, task.context))
    if any(carried) and _estimates(estimator, name):
        shapes = ", ".join(str(tuple(h.shape)) for h, alone in zip(crossing.leaves, carried, strict=True) if alone)
        warn(
            f"what crosses the cut at {name!r} has a part without the {task.batch} samples in it, {shapes}: it is "
            "carried, and its gradient is not estimated"
        )
    made.bind_leaves(bindings, crossing.where, turned=turned, carried=carried)
    return made


def sample_dimension(shape: torch.Size, batch: int) -> int | None:
    """0 or 1, where the samples of a leaf stand; None where it has none."""
    return next((dim for dim in (0, 1) if len(shape) > dim and shape[dim] == batch), None)


def _contents(output: Any) -> str:
    """A mapping or a sequence, as a library returns it, in the words of an error."""
    keys = f" ({', '.join(map(str, output))})" if isinstance(output, Mapping) else ""
    return f"{type(output).__name__}{keys}"


def _estimates(estimator: EstimatorSpec, name: str) -> bool:
    if isinstance(estimator, Mapping):
        estimator = estimator.get(name, estimator.get("default", "default"))
    return estimator != "zero"


def described(parts: list[Tensor], target: Any) -> Context:
    """What the targets are to an estimator.

    Integer targets are class labels (or token labels); their number of classes is the output's last dimension, or its
    second where the output is (n, classes, …) as cross-entropy has it. Where the model returns several tensors, the
    first that fits the labels tells. Integers for an output of one number a sample are amounts, and no labels.
    """
    if not isinstance(target, Tensor):
        return Context("other" if target is not None else "none")
    if target.is_floating_point() or target.is_complex():
        return Context("vector", target[0].numel() if target.dim() else 1)
    kind = "labels" if target.dim() == 1 else "tokens"
    for scores in parts if target.dim() else []:
        classes = 0
        if scores.shape[:-1] == target.shape:
            classes = scores.shape[-1]
        elif scores.dim() == target.dim() + 1 and scores.shape[2:] == target.shape[1:]:
            classes = scores.shape[1]
        if classes > 1:
            return Context(kind, classes)
        if classes == 1 or scores.shape == target.shape:
            return Context("vector", target[0].numel())
    return Context("other")
