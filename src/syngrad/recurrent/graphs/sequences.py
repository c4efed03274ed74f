"""Ticks of whole sequences: cut out only when a window is run, and then for the window at once, not one by one.

Cut out tick by tick and put together again, a window's inputs would be copied once more, for nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from syngrad.errors import MessageError, first_line
from syngrad.tree import map_tensors


@dataclass(frozen=True, eq=False)
class Tick:
    """The index-th tick of sequences (n, ticks, …), or of a structure of these."""

    tree: Any
    index: int

    def value(self) -> Any:
        """(n, …), without a copy."""
        return map_tensors(partial(Tensor.select, dim=1, index=self.index), self.tree)


def value(given: Any) -> Any:
    """What was given at one tick, whichever way."""
    return given.value() if isinstance(given, Tick) else given


def span(values: list[Any], time: int) -> Any:
    """Ticks that follow each other in the same sequences, with time in its place and without a copy; else None."""
    first = values[0]
    if not isinstance(first, Tick):
        return None
    for k, each in enumerate(values):
        if not isinstance(each, Tick) or each.tree is not first.tree or each.index != first.index + k:
            return None
    count = len(values)

    def cut(leaf: Tensor) -> Tensor:
        part = leaf.narrow(1, first.index, count)
        return part if time == 1 else part.transpose(0, 1)

    return map_tensors(cut, first.tree)


def stacked(values: list[Any], time: int, name: str, what: str) -> Any:
    """What was given at several ticks, with time in its place.

    Raises MessageError where structure or shape differ from tick to tick.
    """
    found = span(values, time)
    if found is not None:
        return found
    values = [value(each) for each in values]
    if isinstance(values[0], Tensor) and all(isinstance(v, Tensor) and v.shape == values[0].shape for v in values):
        return torch.stack(values, time)
    if len(values) == 1:
        return map_tensors(lambda leaf: leaf.unsqueeze(time), values[0])
    flat = [torch.utils._pytree.tree_flatten(each) for each in values]
    if any(spec != flat[0][1] for _, spec in flat):
        raise MessageError(f"the {what} of {name!r} changed structure within a window; every tick's must be alike")
    try:
        leaves = [
            torch.stack(each, time) if isinstance(each[0], Tensor) else each[0]
            for each in zip(*(leaves for leaves, _ in flat), strict=True)
        ]
    except (RuntimeError, TypeError) as error:
        raise MessageError(f"the {what} of {name!r} are not alike within a window: {first_line(error)}") from error
    return torch.utils._pytree.tree_unflatten(leaves, flat[0][1])
