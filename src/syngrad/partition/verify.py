"""A recorded graph against the model it was recorded from, on the example.

A recording keeps every decision that plain Python took (`isinstance(x, Tensor)`, a list that grew). Those are rare and
silent, so the segments are run once and must give what the model gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from syngrad.partition.inputs import Example
from syngrad.partition.program import RouteError
from syngrad.partition.running import has_numbers
from syngrad.partition.segment import Segment
from syngrad.preserve_state import preserve_state


def compose(segments: Sequence[Segment], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """All segments, one after the other: what the model computes."""
    message = segments[0](*args, **kwargs)
    for segment in segments[1:]:
        message = segment(message)
    return message


def verify(model: nn.Module, segments: Sequence[Segment], example: Example) -> None:
    """Raise :class:`RouteError` unless the segments compute what the model computes, in both modes."""
    args, kwargs = example
    tensors = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    if any(not has_numbers(tensor) for tensor in [*tensors, *model.parameters()]):
        return
    for training in (True, False):
        whole = _outcome(model, training, args, kwargs, lambda *a, **k: model(*a, **k))
        parts = _outcome(model, training, args, kwargs, lambda *a, **k: compose(segments, a, k))
        if _same(whole, parts):
            continue
        again = _outcome(model, training, args, kwargs, lambda *a, **k: model(*a, **k))
        if _same(whole, again):  # else the model itself gives other numbers every time, and nothing can be told
            mode = "training" if training else "evaluation"
            raise RouteError(f"the recorded graph gives other numbers than the model in {mode}")


def _outcome(
    model: nn.Module, training: bool, args: tuple[Any, ...], kwargs: dict[str, Any], run: Callable[..., Any]
) -> Any:
    """Output, whether gradients flow into it, and the buffers afterwards."""
    with preserve_state(model), torch.enable_grad():
        if training != model.training:
            model.train(training)
        torch.manual_seed(0)
        args, kwargs = pytree.tree_map_only(Tensor, lambda leaf: leaf.detach().clone(), (args, kwargs))
        output = run(*args, **kwargs)
        leaves, _ = pytree.tree_flatten(output)
        flows = [isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves]
        detached = [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return type(output), detached, flows, [buffer.clone() for buffer in model.buffers()]


def _same(one: Any, other: Any) -> bool:
    if one[0] is not other[0] or one[2] != other[2] or len(one[1]) != len(other[1]):
        return False
    return all(_equal(a, b) for a, b in zip([*one[1], *one[3]], [*other[1], *other[3]], strict=True))


def _equal(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return isinstance(one, Tensor) == isinstance(other, Tensor) and bool(one == other)
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    # Kernels may sum in another order; a wrong decision in the graph is wrong by more than that.
    tolerance = 1e3 * torch.finfo(one.dtype).eps
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance, equal_nan=True)
