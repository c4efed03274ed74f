"""Messages and batches are nested tensors; these few functions take them apart and put them together again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


def as_tree(output: Any) -> Any:
    """The output itself; a dataclass in it, that torch's pytree does not know yet, is made known to it."""
    for leaf in pytree.tree_leaves(output):
        if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
            pytree.register_dataclass(type(leaf))
    return output


def tensors(tree: Any) -> list[Tensor]:
    """The tensors of a nested structure, in a fixed order."""
    if isinstance(tree, Tensor):
        return [tree]
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def differentiable(tree: Any) -> list[Tensor]:
    """The tensors through which a gradient can pass: floating and part of a graph."""
    if isinstance(tree, Tensor):
        return [tree] if tree.requires_grad else []
    return [leaf for leaf in tensors(tree) if leaf.requires_grad]


def positions(tree: Any) -> list[int]:
    """Where in the flattened message the differentiable leaves stand."""
    return [i for i, leaf in enumerate(pytree.tree_leaves(tree)) if isinstance(leaf, Tensor) and leaf.requires_grad]


def leaves_at(tree: Any, where: list[int]) -> list[Tensor]:
    """The leaves of the flattened message at these positions; none if it has no such positions."""
    if isinstance(tree, Tensor):
        return [tree] if where else []
    flat = pytree.tree_leaves(tree)
    return [flat[i] for i in where if i < len(flat) and isinstance(flat[i], Tensor)]


def detach(tree: Any, where: list[int], feedback: bool) -> tuple[Any, list[Tensor]]:
    """The message as the next stage gets it, and its leaves at these positions, which may receive a gradient.

    Every tensor is cut from its graph; those at `where` require a gradient again when `feedback` is asked for. The
    positions are those found at binding: a leaf that a stage only passes on has no graph where no feedback was asked
    for, and belongs to the message all the same. Integer and boolean leaves, and what is no tensor, pass through.
    """
    if isinstance(tree, Tensor):
        leaf = tree.detach()
        return (leaf.requires_grad_(feedback), [leaf]) if where else (leaf, [])
    flat, spec = pytree.tree_flatten(tree)
    flat = [value.detach() if isinstance(value, Tensor) else value for value in flat]
    found = [flat[i] for i in where if i < len(flat) and isinstance(flat[i], Tensor)]
    for leaf in found:
        leaf.requires_grad_(feedback)
    return pytree.tree_unflatten(flat, spec), found


def backward(sent: list[Tensor], gradients: list[Tensor], again: bool = False) -> None:
    """Back through a stage from those of its leaves that are part of its graph; others it has only passed on.

    With `again` the graph stays, for one more way back.
    """
    if len(sent) == 1 and sent[0].requires_grad:
        sent[0].backward(gradients[0], retain_graph=again)
        return
    pairs = [(h, g) for h, g in zip(sent, gradients, strict=True) if h.requires_grad]
    if pairs:
        torch.autograd.backward([h for h, _ in pairs], [g for _, g in pairs], retain_graph=again)


def structure(tree: Any) -> str:
    """The containers of a nested message, in one line, with a dot for every tensor."""
    if isinstance(tree, Tensor):
        return "·"
    if isinstance(tree, Mapping):
        return "{" + ", ".join(f"{key}: {structure(value)}" for key, value in tree.items()) + "}"
    if isinstance(tree, list):
        return "[" + ", ".join(map(structure, tree)) + "]"
    if isinstance(tree, tuple):
        return "(" + ", ".join(map(structure, tree)) + ")"
    return type(tree).__name__


def map_tensors(function: Callable[[Tensor], Any], tree: Any) -> Any:
    """The structure with `function` applied to each of its tensors."""
    if isinstance(tree, Tensor):
        return function(tree)
    return pytree.tree_map(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, tree)


def to_device(tree: Any, device: torch.device) -> Any:
    """The structure with every tensor on `device`."""
    if isinstance(tree, Tensor):
        return tree if tree.device == device else tree.to(device, non_blocking=True)
    return map_tensors(lambda leaf: leaf.to(device, non_blocking=True), tree)


def batch_size(tree: Any) -> int:
    """The first dimension of the first tensor that has one; 1 if there is none."""
    return next((leaf.shape[0] for leaf in tensors(tree) if leaf.dim() > 0), 1)
