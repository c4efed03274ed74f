"""What a recorded forward is: a graph over the user's own modules and tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree


@dataclass(frozen=True)
class Trace:
    """One recording of the model's forward, with one placeholder for each leaf of the inputs."""

    model: nn.Module
    graph: fx.Graph
    out_spec: pytree.TreeSpec
    constants: dict[str, Any] = field(default_factory=dict)
    """What the graph refers to that is not in the model: tensors made while tracing, sub-graphs."""

    @property
    def nodes(self) -> list[fx.Node]:
        """The nodes that compute something, in execution order."""
        return [node for node in self.graph.nodes if node.op.startswith("call_")]


def is_shape(node: fx.Node) -> bool:
    """Whether a node's value is a torch.Size: ``x.shape`` or ``x.size()`` without a dimension."""
    if node.op == "call_method":
        return node.target == "size" and len(node.args) == 1 and not node.kwargs
    return node.op == "call_function" and node.target is getattr and node.args[1:2] == ("shape",)


def is_kind(node: fx.Node) -> bool:
    """Whether a node's value is the device or the dtype of a tensor."""
    return node.op == "call_function" and node.target is getattr and node.args[1:2] in (("device",), ("dtype",))


def size_of(node: fx.Node, tensors: Sequence[fx.Node]) -> tuple[fx.Node, int] | None:
    """A tensor among those given, and its dimension, whose size a node's integer is; known for exported graphs only."""
    value = node.meta.get("val")
    if not isinstance(value, torch.SymInt):
        return None
    for tensor in tensors:
        shaped = tensor.meta.get("val")
        if isinstance(shaped, Tensor):
            for dim, size in enumerate(shaped.shape):
                if isinstance(size, torch.SymInt) and bool(size.node.expr == value.node.expr):
                    return tensor, dim
    return None
