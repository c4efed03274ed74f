"""Where a model can be cut, tried on one batch: what each cut costs, and what crosses it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from syngrad.core.binding import Crossing, Loss, bind_to_loss
from syngrad.core.task import Task, carried, interface
from syngrad.errors import SyngradError
from syngrad.estimators.registry import EstimatorSpec
from syngrad.partition import recordable, working_places
from syngrad.partition.balance import measured
from syngrad.partition.cuts import trains
from syngrad.partition.segment import Segment


@dataclass(frozen=True)
class Place:
    """A module that may start a stage.

    Args:
        name: of the module.
        before_s: seconds that the stages before it take for a forward and a backward pass; after_s: those after it.
        crosses: the shapes of the leaves that a gradient comes to.
        bytes: of those, a minibatch.
        recorded: whether it can be cut there for several workers too.
        shared: (name, bytes) of every parameter that stages on both sides use, and that crosses between workers too.
        trains: whether anything is trained between the place that is listed before it and this one.
    """

    name: str
    before_s: float
    after_s: float
    crosses: tuple[tuple[int, ...], ...]
    bytes: int
    recorded: bool
    shared: tuple[tuple[str, int], ...] = ()
    trains: bool = True

    @property
    def larger(self) -> float:
        """The share of all time in the larger of both parts; 0.5 is even."""
        return max(self.before_s, self.after_s) / max(self.before_s + self.after_s, 1e-12)


def list_places(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], target: Any, loss: Loss
) -> list[Place]:
    """Every place at which this model can be cut in two, in the order of execution; each is tried.

    Args:
        model: the user's.
        args: of the model, a real batch; kwargs: likewise; target: of the loss.
        loss: (output, target) → scalar.

    Raises:
        CutError: where there is none.
    """
    example = (args, kwargs)
    found = working_places(model, example, lambda: bind_to_loss(model, [model], args, kwargs, target, loss).unread)
    segments = found.segments
    costs, _ = measured(model, segments, example, None)
    bound = bind_to_loss(model, segments, args, kwargs, target, loss)
    task, listed, trained = Task.of(bound, args, kwargs, target, loss, None), [], False
    recorded = _recorded(model, segments, example, bound.unread)
    for k, (name, crossing) in enumerate(zip(found.names, bound.crossings, strict=True), 1):
        trained = trained or trains(model, segments[k - 1].parameter_names)
        leaves = crossing.leaves
        if crossing.escapes or all(task.seen(h, head=False)[0].carried for h in leaves):
            continue
        size = sum(leaf.numel() * leaf.element_size() for leaf in leaves)
        shapes = tuple(tuple(leaf.shape) for leaf in leaves)
        shared = shared_across(model, segments, k)
        listed.append(Place(name, sum(costs[:k]), sum(costs[k:]), shapes, size, name in recorded, shared, trained))
        trained = False
    return listed


def estimable(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    target: Any,
    loss: Loss,
    estimator: EstimatorSpec,
    task: Task,
    alone: bool,
) -> list[str]:
    """The places at which this model can be cut so that the gradient of all that crosses, or of some, is estimated.

    Args:
        model: the user's.
        args: of the model, a real batch; kwargs: likewise; target: of the loss.
        loss: (output, target) → scalar.
        estimator: what is made for the interface.
        task: what it is made for.
        alone: whether all stages run in one process.
    """
    try:
        whole = bind_to_loss(model, [model], args, kwargs, target, loss)
        found = working_places(model, (args, kwargs), lambda: whole.unread)
        crossings = bind_to_loss(model, found.segments, args, kwargs, target, loss).crossings
    except SyngradError:
        return []
    names = [
        name
        for name, crossing in zip(found.names, crossings, strict=True)
        if not crossing.escapes and crossing.where and _estimates(name, crossing, estimator, task)
    ]
    if alone:
        return names
    recorded = _recorded(model, found.segments, (args, kwargs), whole.unread, names)
    return [name for name in names if name in recorded]


def _estimates(name: str, crossing: Crossing, estimator: EstimatorSpec, task: Task) -> bool:
    """Whether an estimator can be made, and of some of the message."""
    try:
        made = interface(name, crossing, estimator, task)
    except SyngradError:
        return False
    return len(carried(made, crossing)) < len(crossing.leaves)


def _recorded(
    model: nn.Module,
    segments: Sequence[Segment],
    example: Any,
    unread: Sequence[int],
    among: Sequence[str] | None = None,
) -> set[str]:
    """Of the segments' names, or of some, those at which the model can be cut for several workers."""
    names = [segment.name for segment in segments[1:]] if among is None else among
    if segments[0].route == "forward":
        return recordable(model, names, example, lambda: unread)
    # recorded as they are; what stages share may have running statistics beside it
    starts = {segment.name: k for k, segment in enumerate(segments)}
    sharing = [name for name in names if shared_across(model, segments, starts[name])]
    return (set(names) - set(sharing)) | recordable(model, sharing, example, lambda: unread)


def shared_across(model: nn.Module, segments: Sequence[Segment], at: int) -> tuple[tuple[str, int], ...]:
    """The parameters that segments before and from `at` on use, with their bytes."""
    before = {name for segment in segments[:at] for name in segment.parameter_names}
    after = {name for segment in segments[at:] for name in segment.parameter_names}
    return tuple(
        (name, p.numel() * p.element_size()) for name, p in model.named_parameters() if name in before and name in after
    )
