"""Binding to the loss: one run of stages and loss, which tells what the loss really differentiates.

    the leaves of the model's output that the loss reads    heads predict these, in the output's own structure
    the leaves of each message that a gradient comes to     these get an estimator; the others are dead, and stay
    what goes round a cut                                   a value that no message carries, and the loss differentiates

Nothing is computed where tensors without data will do: all of it is in the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from syngrad.core.ignored import find_ignored
from syngrad.errors import CutError, first_line
from syngrad.partition.example import without_data
from syngrad.partition.left_out import LeftOut
from syngrad.partition.segment import Segment
from syngrad.partition.survey import nodes_of
from syngrad.partition.unread import stand_ins
from syngrad.targets import scalar
from syngrad.tree import as_tree, map_tensors, tensors

Loss = Callable[[Any, Any], Tensor]


@dataclass
class Crossing:
    """What crosses a cut.

    Args:
        message: as the stage sends it, without data where that will do.
        where: the positions, in the flattened message, of the leaves that a gradient comes to.
        dead: of the leaves that could have one, in order, whether none comes; dead_at: the positions of those.
        escapes: a value made in an earlier stage that later ones use and no message carries; "" for none.
        ignored: the positions of the dead leaves that no later stage looks at, where the stages are recorded ones.
    """

    message: Any
    where: list[int]
    dead: list[bool] = field(default_factory=list)
    dead_at: list[int] = field(default_factory=list)
    escapes: str = ""
    ignored: list[int] = field(default_factory=list)

    def leave_out_dead(self) -> None:
        """The message without what no gradient comes to, as a stage sends it that can leave it out."""
        leaves = self.leaves
        self.message, self.where = leaves[0] if len(leaves) == 1 else tuple(leaves), list(range(len(leaves)))

    def leave_out_ignored(self) -> LeftOut:
        """The message without what nobody looks at; what the stages on both sides have to know of that."""
        left = LeftOut(self.message, self.ignored)
        self.message, self.where = left.sent(self.message), [left.kept.index(i) for i in self.where]
        return left

    @property
    def leaves(self) -> list[Tensor]:
        """Those that a gradient comes to."""
        flat = pytree.tree_leaves(self.message)
        return [flat[i] for i in self.where]


@dataclass
class Bound:
    """What one run of all stages and of the loss has told.

    Args:
        crossings: one a cut.
        output: the model's.
        read: the positions, in the flattened output, of the leaves that the loss differentiates; None where the loss
            could not be run on this output.
        unread: the positions of what the loss does without: a recording need not make it.
        raised: what the loss raised on this output; "" for nothing.
    """

    crossings: list[Crossing]
    output: Any
    read: list[int] | None
    unread: list[int] = field(default_factory=list)
    raised: str = ""

    @property
    def predicted(self) -> list[Tensor]:
        """The leaves of the output that a head has to predict."""
        flat = pytree.tree_leaves(self.output)
        return [flat[i] for i in self.read or []]


def bind_to_loss(
    model: nn.Module,
    segments: Sequence[nn.Module],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    target: Any,
    loss: Loss | None,
) -> Bound:
    """Run the stages one after the other, each cut from the one before, and the loss; nothing is left changed.

    Args:
        model: the user's.
        segments: of it, in order; the model itself, for what it returns alone.
        args: of the model, from the first batch; kwargs: likewise; target: of the loss.
        loss: the user's own, None for none.

    Raises:
        TrainingError: where the model raises on the batch.
    """
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    own = [loss] if isinstance(loss, nn.Module) else []

    def run(args: Any, kwargs: Any, target: Any) -> Bound:
        bound = _run(model, segments, args, kwargs, target, loss)
        _mark_ignored(bound, model, segments, args, kwargs)
        for crossing in bound.crossings:
            crossing.message = placed(crossing.message, device)
        return bound

    # recorded stages have tables of their own, with the same tensors in them
    recorded = [segment for segment in segments if getattr(segment, "route", "").startswith("torch")]
    return without_data([model, *own, *recorded], (args, kwargs, target), run, bare=True)


def _run(
    model: nn.Module, segments: Sequence[nn.Module], args: Any, kwargs: Any, target: Any, loss: Loss | None
) -> Bound:
    crossings: list[Crossing] = []
    received: list[list[Tensor]] = [[]]
    clocks = [_clock()]
    out = segments[0](*args, **kwargs)
    for segment in segments[1:]:
        out = as_tree(out)
        flat, spec = pytree.tree_flatten(out)
        where = [i for i, leaf in enumerate(flat) if isinstance(leaf, Tensor) and leaf.requires_grad]
        crossings.append(Crossing(out, where, [False] * len(where)))  # until the loss has told
        flat = list(flat)
        for i in where:
            flat[i] = flat[i].detach().requires_grad_()
        received.append([flat[i] for i in where])
        clocks.append(_clock())
        # a copy: a stage may begin by writing into what it gets, which a leaf would not stand
        out = segment(map_tensors(torch.clone, pytree.tree_unflatten(flat, spec)))
    out = as_tree(out)
    # cut off the model: one leaf of the output may have been made from another, which the loss does not read
    leaves, spec = pytree.tree_flatten(out)
    could = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]
    alone = [leaf.detach().requires_grad_() if i in could else leaf for i, leaf in enumerate(leaves)]
    value = _value(loss, pytree.tree_unflatten(alone, spec), target)
    if not isinstance(value, Tensor):
        return Bound(crossings, out, None, raised=value)
    found = _gradients([value], [alone[i] for i in could])
    read = [i for i, gradient in zip(could, found, strict=True) if gradient is not None]
    roots = [value, *(leaves[i] for i in read)]  # a loss may look at more than the output
    for k in reversed(range(len(crossings))):
        crossing = crossings[k]
        crossing.escapes = _escaping(roots, clocks[k + 1], model)
        came = _gradients(roots, received[k + 1])
        crossing.dead = [gradient is None for gradient in came]
        crossing.dead_at = [i for i, dead in zip(crossing.where, crossing.dead, strict=True) if dead]
        crossing.where = [i for i, dead in zip(crossing.where, crossing.dead, strict=True) if not dead]
        roots = crossing.leaves
    return Bound(crossings, out, read, _unread(out, read, loss, target) if loss is not None else [])


def _mark_ignored(bound: Bound, model: nn.Module, segments: Sequence[nn.Module], args: Any, kwargs: Any) -> None:
    """Find, of dead leaves, those that nobody looks at: on tensors without data, of which every worker has the same."""
    recorded = [segment for segment in segments if isinstance(segment, Segment) and segment.recorded]
    if len(recorded) < len(segments) or not any(any(crossing.dead) for crossing in bound.crossings):
        return
    if any(not (leaf.is_meta or "FakeTensor" in type(leaf).__name__) for leaf in tensors((args, kwargs))):
        return
    try:
        ignored = find_ignored(model, recorded, args, kwargs)
    except Exception:  # what a model cannot do in evaluation mode is no matter of training: all of it crosses
        return
    for crossing, found in zip(bound.crossings, ignored, strict=True):
        crossing.ignored = sorted(found.intersection(crossing.dead_at))


def placed(message: Any, device: torch.device) -> Any:
    """A message whose tensors have a device, though they may still have no data: one number stands for all of them."""

    def place(leaf: Tensor) -> Tensor:
        if not leaf.is_meta:
            return leaf
        return torch.zeros((), dtype=leaf.dtype, device=device).expand(leaf.shape).requires_grad_(leaf.requires_grad)

    return map_tensors(place, message)


def _clock() -> int:
    return int(torch._C._autograd._get_sequence_nr())


def _value(loss: Loss | None, output: Any, target: Any) -> Tensor | str:
    """The loss as a scalar of a graph; what it raised where it cannot be had, which the first minibatch says too."""
    try:
        value = scalar(loss(output, target)) if loss is not None else None
    except Exception as error:
        if any("FakeTensor" in type(leaf).__name__ or leaf.is_meta for leaf in tensors(output)):
            raise  # on tensors with data it may do
        return first_line(error)
    return value if value is not None and value.requires_grad else ""


def _gradients(roots: Sequence[Tensor], leaves: Sequence[Tensor]) -> list[Tensor | None]:
    """For every leaf whether a gradient comes to it from any of the roots, by a tensor or None."""
    roots = [root for root in roots if root.requires_grad]
    if not roots or not leaves:
        return [None] * len(leaves)
    ones = [torch.ones_like(root) for root in roots]
    try:
        return list(torch.autograd.grad(roots, list(leaves), ones, retain_graph=True, allow_unused=True))
    except RuntimeError as error:
        if "use_reentrant" not in str(error):
            raise
    # a block under reentrant checkpointing refuses that: what the graph leads to stands for what a gradient comes to
    reached = {id(node.variable) for node in nodes_of(roots) if hasattr(node, "variable")}
    return [leaf if id(leaf) in reached else None for leaf in leaves]


def _escaping(roots: Sequence[Tensor], since: int, model: nn.Module) -> str:
    """What was made before a stage began, and its results are differentiated through; "" for nothing."""
    old = [node for node in nodes_of(roots) if not hasattr(node, "variable") and node._sequence_nr() < since]
    if not old:
        return ""
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, Tensor) and value.grad_fn in old:
                return f"{f'{path}.{name}'.removeprefix('.')!r}, a tensor that a module keeps,"
    return f"a value ({old[0].name()})"


class InStructure:
    """The user's loss as a function of the leaves that it differentiates alone, put back where it looks for them.

    Args:
        loss: (output, target) → scalar.
        output: of the model, for its structure.
        read: the positions of those leaves in the flattened output.
        turned: which of them have their samples in the second dimension; they are predicted with the samples in front.
        unread: the positions of what it does without: a use of that later is refused.
    """

    def __init__(
        self, loss: Loss, output: Any, read: Sequence[int], turned: Sequence[bool], unread: Sequence[int] = ()
    ) -> None:
        flat, self._spec = pytree.tree_flatten(output)
        self._stand_ins = stand_ins(output, unread)
        self._loss, self._read, self._length, self._turned = loss, list(read), len(flat), list(turned)

    def __call__(self, predicted: Any, target: Any) -> Tensor:
        """The loss of an output that has these leaves, and none of the others."""
        flat: list[Any] = [None] * self._length
        for i, stand_in in self._stand_ins.items():
            flat[i] = stand_in
        leaves = predicted if isinstance(predicted, tuple) else (predicted,)
        for i, leaf, turned in zip(self._read, leaves, self._turned, strict=True):
            flat[i] = leaf.transpose(0, 1) if turned else leaf
        return self._loss(pytree.tree_unflatten(flat, self._spec), target)


def check_closed(crossings: Sequence[Crossing], names: Sequence[str]) -> None:
    """Refuse cuts that a differentiated value goes round."""
    for crossing, name in zip(crossings, names, strict=True):
        if crossing.escapes:
            raise CutError(
                f"cannot cut at {name!r}: {crossing.escapes} from before the cut is used after it and does not pass "
                "through it; hand it on in what forward returns, cut at a module that is given it, or use "
                "method='backprop'"
            )


def of_graphs(error: Exception) -> str:
    """Why autograd may have come to a graph that is gone: that of a stage that has been updated already."""
    if "backward through the graph a second time" not in str(error):
        return ""
    return (
        "; the loss or a later stage may differentiate a value from before a cut that does not cross it, which it did "
        "not on the first minibatch: have it do so from then on, times 0 if need be, or use method='backprop'"
    )


def _unread(output: Any, read: Sequence[int], loss: Loss, target: Any) -> list[int]:
    """The positions of what the loss does without. A tensor that has no gradient may be looked at all the same, a mask
    say, and stays.
    """
    leaves, spec = pytree.tree_flatten(output)
    flat = dict(enumerate(leaves))
    left = [i for i, leaf in flat.items() if i not in read and _may_be_dead(leaf)]
    if left:
        try:
            without = flat | stand_ins(output, left)
            loss(pytree.tree_unflatten([without[i] for i in range(len(flat))], spec), target)
        except Exception:  # it looks at some of it
            return []
    return left


def _may_be_dead(leaf: Any) -> bool:
    if isinstance(leaf, Tensor):
        return leaf.requires_grad
    return not isinstance(leaf, bool | int | float | str | torch.Size | None)
