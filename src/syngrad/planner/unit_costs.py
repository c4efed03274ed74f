"""What each unit of a model takes, measured: seconds of its passes, and what it keeps for the backward one."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from syngrad.compare.rivals.recipe import part_of
from syngrad.compare.step_costs import now
from syngrad.core.batch import Batch
from syngrad.core.memory import SavedBytes
from syngrad.partition.segment import Segment, segment_parameters
from syngrad.preserve_state import preserve_state
from syngrad.targets import scalar
from syngrad.tree import differentiable, map_tensors, tensors

#: passes that are timed after one that is not, at least and at most
PASSES = (3, 15)
#: the share of a minibatch by which one sees what does not shrink with it
SMALL = 4


@dataclass(frozen=True)
class Passes:
    """Seconds of one unit's passes over a minibatch.

    Args:
        forward_s: of the forward pass.
        backward_s: of the backward pass, the gradient of the input included.
        spared_s: of one without that.
    """

    forward_s: float
    backward_s: float
    spared_s: float


def passes(
    model: nn.Module, segments: Sequence[Segment], batches: Sequence[Batch], loss: Any, seconds: float
) -> list[list[Passes]]:
    """Time every unit's passes over each minibatch, unit after unit as they run; nothing is left changed.

    Args:
        model: the user's.
        segments: its units.
        batches: what it is run on, in turns, so that all share the machine's moods.
        loss: (output, target) → scalar; its time is the last unit's.
        seconds: about how long it may take.

    Returns:
        For each minibatch one entry a unit.
    """
    taken: list[list[list[tuple[float, float, float]]]] = [[[] for _ in segments] for _ in batches]
    begin, turns = time.perf_counter(), 0
    with preserve_state(model), torch.enable_grad():
        model.train()
        while turns <= PASSES[0] or (turns <= PASSES[1] and time.perf_counter() - begin < seconds):
            for batch, each in zip(batches, taken, strict=True):
                _run_through(segments, batch, loss, each)
            turns += 1
    return [[Passes(*(low(one) for one in zip(*unit[1:], strict=True))) for unit in each] for each in taken]


def _run_through(
    segments: Sequence[Segment], batch: Batch, loss: Any, taken: Sequence[list[tuple[float, float, float]]]
) -> None:
    """One pass of all units over a minibatch, each one's seconds added to its own."""
    args, kwargs = batch.args, batch.kwargs
    for k, segment in enumerate(segments):
        target = batch.target if k == len(segments) - 1 else None
        forward, backward, message = _timed(segment, args, kwargs, loss, target, answered=k > 0)
        spared = backward
        if k:
            without = map_tensors(torch.Tensor.detach, args)
            again, spared, _ = _timed(segment, without, kwargs, loss, target, answered=False)
            forward = min(forward, again)
        taken[k].append((forward, backward, min(spared, backward)))
        args, kwargs = (message,), {}


def low(times: Sequence[float]) -> float:
    """The lower quartile: what others take of the machine now and then makes a step longer, and never shorter."""
    ordered = sorted(times)
    return ordered[(len(ordered) - 1) // 4]


def _timed(
    segment: Segment, args: Any, kwargs: Any, loss: Any, target: Any, answered: bool
) -> tuple[float, float, Any]:
    """(forward seconds, backward seconds, the message cut from its graph)."""
    given, more = map_tensors(torch.clone, (args, kwargs))  # a unit may write into what it gets
    begin = now()
    message = segment(*given, **more)
    ends = [scalar(loss(message, target))] if target is not None else differentiable(message)
    middle = now()
    wanted = [p for p in segment_parameters(segment) if p.requires_grad] + (differentiable(args) if answered else [])
    ends = [end for end in ends if end.requires_grad]
    if ends and wanted:
        torch.autograd.grad(ends, wanted, [torch.ones_like(end) for end in ends], allow_unused=True)
    end = now()
    return middle - begin, end - middle, map_tensors(_cut, message)


def _cut(leaf: torch.Tensor) -> torch.Tensor:
    return leaf.detach().requires_grad_(leaf.requires_grad)


def small_part(batch: Batch) -> Batch | None:
    """A part of the minibatch, of a `SMALL`-th of its samples; None where it has too few."""
    return part_of(batch, 0, SMALL) if batch.size >= 2 * SMALL else None


def kept_bytes(model: nn.Module, segments: Sequence[Segment], batch: Batch, loss: Any) -> list[int]:
    """What autograd keeps of each unit; what two of them keep in common counts for the first."""
    kept: list[int] = []
    alive: list[Any] = []  # graphs go only when all have been counted
    with preserve_state(model), torch.enable_grad():
        model.train()
        with SavedBytes(model, but=tensors((batch.args, batch.kwargs))) as meter:
            args, kwargs = batch.args, batch.kwargs
            for k, segment in enumerate(segments):
                before = meter.live_bytes
                try:
                    message = segment(*args, **kwargs)
                except RuntimeError:  # it writes into what it gets, which a leaf does not stand
                    message = segment(*map_tensors(torch.clone, args), **kwargs)
                alive.append(scalar(loss(message, batch.target)) if k == len(segments) - 1 else message)
                kept.append(meter.live_bytes - before)
                args, kwargs = (map_tensors(_cut, message),), {}
    return kept
