"""What estimators are made for: a minibatch's samples, its labels, and what the loss reads of the model's output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from syngrad.core.batch import flat_losses, samples
from syngrad.core.binding import Bound, Crossing, InStructure, Loss
from syngrad.core.interface import Interface
from syngrad.core.views import View, common_rows, leading_dimensions, sample_dimension
from syngrad.errors import CutError, warn
from syngrad.estimators.base import Binding, Context
from syngrad.estimators.registry import EstimatorSpec, predicts_output
from syngrad.partition.cuts import shown
from syngrad.tree import batch_size, tensors


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
        target: of the first minibatch.
        rows: how many rows all parts of the output have that the loss reads, where these are not the samples; 0 where
            they are, or differ.
        row_outputs: the shapes of one row's parts of the output then; empty where a head cannot predict by rows.
    """

    batch: int
    context: Context
    outputs: tuple[torch.Size, ...]
    loss: Loss
    count: Callable[[Any], float] | None
    why: str = ""
    target: Any = None
    rows: int = 0
    row_outputs: tuple[torch.Size, ...] = ()

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
            loss = InStructure(loss, output, bound.read, turned, bound.unread)
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
        rows = common_rows(parts, batch)
        # over how many losses the user's averages, of which a row's gradient is a part, later the target alone can tell
        flattened = flat_losses(target, batch) > 0
        told = count is not None or flattened or (bool(tensors(target)) and batch_size(target) == batch)
        by_row = tuple(part.shape[1:] for part in parts) if rows and told else ()
        if count is None and flattened:
            count = batch_size
        outputs = () if why else tuple(shape[1:] for shape in shapes)
        return cls(batch, context, outputs, loss, count, why, target, rows, by_row)

    def seen(self, h: Tensor, head: bool) -> tuple[View, Binding]:
        """How an estimator is to see one leaf, and what it is made for.

        Args:
            h: the leaf.
            head: whether it predicts what the loss reads of the output.
        """
        place = sample_dimension(h.shape, self.batch)
        if h.dim() and self.rows == h.shape[0] and (self.row_outputs or not head):
            return self._by_row(h, View(rows=True))
        if head and self.row_outputs and place == 0 and h.dim() > 1 and self.rows == h.shape[:2].numel():
            return self._by_row(h.flatten(0, 1), View(rows=True, folded=True))
        if place is not None:
            view = View(turned=place == 1)
            return view, self._binding(view.of(h), self.context, self.outputs, self.count, self.why)
        if not head and h.dim() > 1 and h.shape[0] > self.batch and h.shape[0] % self.batch == 0:
            return self._by_row(h, View(rows=True))
        return View(carried=True), self._binding(h, self.context, self.outputs, self.count, self.why)

    def _by_row(self, h: Tensor, view: View) -> tuple[View, Binding]:
        view = replace(view, leading=leading_dimensions(self.target, h.shape[0]))
        context = Context()
        if view.leading and self.target.is_floating_point():
            context = Context("vector", self.target.shape[view.leading :].numel())
        elif view.leading and view.leading == self.target.dim() and self.context.kind in ("labels", "tokens"):
            context = Context("labels", self.context.size)
        count = self.count
        if count in (None, batch_size):  # with one loss a row the closed form serves, which counts the rows itself
            count = None if batch_size(self.target) == h.shape[0] else batch_size
        return view, self._binding(h, context, self.row_outputs, count, "")

    def _binding(
        self,
        h: Tensor,
        context: Context,
        outputs: tuple[torch.Size, ...],
        count: Callable[[Any], float] | None,
        why: str,
    ) -> Binding:
        single = outputs[0] if len(outputs) == 1 else None
        several = outputs if len(outputs) > 1 else ()
        return Binding(h.shape[1:], h.dtype, h.device, context, single, self.loss, count, several, why)


def interface(name: str, crossing: Crossing, estimator: EstimatorSpec, task: Task) -> Interface:
    """An interface bound to what crosses a cut; how each leaf is seen by its estimator: see :mod:`syngrad.core.views`.

    A leaf that has no samples at all, a position bias or the rows of a graph's nodes, is carried: the gradient that
    comes back for it passes on where the method passes any on, and no estimate of it is made.
    """
    made = Interface(estimator, loss=task.loss, name=name)
    bindings, views = [], []
    for h in crossing.leaves:
        if h.is_complex() and estimates(estimator, name):
            raise CutError(
                f"cannot cut at {name!r}: a complex tensor, {tuple(h.shape)}, crosses it, and estimates are real; send "
                "torch.view_as_real(h) and take torch.view_as_complex of it, or cut elsewhere"
            )
        view, binding = task.seen(h, predicts_output(estimator, name))
        views.append(view)
        bindings.append(binding)
    made.bind_leaves(bindings, crossing.where, views=views)
    return made


def carried(made: Interface, crossing: Crossing) -> list[Tensor]:
    """The leaves of which no estimate is made, though the message's others may have one."""
    return [h for h, view in zip(crossing.leaves, made.views, strict=False) if view.carried]


def check_estimated(made: Interface, crossing: Crossing, task: Task, elsewhere: Callable[[], list[str]] | None) -> None:
    """Say of what no estimate is made, and refuse a cut where that is all.

    Args:
        made: the interface.
        crossing: what crosses.
        task: what it was made for.
        elsewhere: finds the places at which the model can be cut; None where stages do not rest on estimates.

    Raises:
        CutError: for such a cut.
    """
    alone = carried(made, crossing)
    if not alone:
        return
    shapes = ", ".join(str(tuple(h.shape)) for h in alone)
    if len(alone) < len(crossing.leaves) or elsewhere is None:
        warn(
            f"what crosses the cut at {made.name!r} has a part without the {task.batch} samples in it, {shapes}: it is "
            "carried, and its gradient is not estimated"
        )
        return
    remedies = [f"name {shown(names)}"] if (names := elsewhere()) else []
    if all(not task.seen(h, head=False)[0].carried for h in alone):
        remedies.append("use estimator='linear', which takes every row for itself")
    remedies.append("use method='backprop' or 'delayed', which need no estimate")
    raise CutError(
        f"cannot cut at {made.name!r}: what crosses it, {shapes}, has not the {task.batch} samples in it, so that no "
        f"gradient can be estimated; {', or '.join(remedies)}"
    )


def _contents(output: Any) -> str:
    """A mapping or a sequence, as a library returns it, in the words of an error."""
    keys = f" ({', '.join(map(str, output))})" if isinstance(output, Mapping) else ""
    return f"{type(output).__name__}{keys}"


def estimates(estimator: EstimatorSpec, name: str) -> bool:
    """Whether an estimate is asked for at this cut."""
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
        if scores.dim() == 2 and scores.shape[0] == target.numel():  # flattened by the model
            classes = scores.shape[1]
        if classes > 1:
            return Context(kind, classes)
        if classes == 1 or scores.shape == target.shape:
            return Context("vector", target[0].numel())
    return Context("other")
