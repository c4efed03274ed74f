"""Where a model can be cut, tried on one batch: what each cut costs, and what crosses it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from syngrad.core.binding import Loss, bind_to_loss
from syngrad.errors import SyngradError
from syngrad.partition import split, working_places
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
    listed, trained = [], False
    for k, (name, crossing) in enumerate(zip(found.names, bound.crossings, strict=True), 1):
        trained = trained or trains(model, segments[k - 1].parameter_names)
        if crossing.escapes or not crossing.where:
            continue
        leaves = crossing.leaves
        size = sum(leaf.numel() * leaf.element_size() for leaf in leaves)
        shapes = tuple(tuple(leaf.shape) for leaf in leaves)
        shared = shared_across(model, segments, k)
        recorded = _recorded(model, name, segments, example, bool(shared), bound.unread)
        listed.append(Place(name, sum(costs[:k]), sum(costs[k:]), shapes, size, recorded, shared, trained))
        trained = False
    return listed


def _recorded(
    model: nn.Module, name: str, segments: Sequence[Segment], example: Any, shares: bool, unread: Sequence[int]
) -> bool:
    if segments[0].route != "forward" and not shares:  # what is shared may have running statistics beside it
        return True
    try:
        split(model, cuts=[name], example=example, unread=lambda: unread)
    except SyngradError:
        return False
    return True


def shared_across(model: nn.Module, segments: Sequence[Segment], at: int) -> tuple[tuple[str, int], ...]:
    """The parameters that segments before and from `at` on use, with their bytes."""
    before = {name for segment in segments[:at] for name in segment.parameter_names}
    after = {name for segment in segments[at:] for name in segment.parameter_names}
    return tuple(
        (name, p.numel() * p.element_size()) for name, p in model.named_parameters() if name in before and name in after
    )
