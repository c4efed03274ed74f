"""Whether a part of a graph may write into what it received, so that the message has to be copied first."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import fx, nn

from syngrad.partition.chain import writes_in_place

_OPERATORS = frozenset(
    ["iadd", "isub", "imul", "imatmul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor", "setitem"]
)


def writes_received(nodes: Sequence[fx.Node], received: Iterable[fx.Node], module: Callable[[str], nn.Module]) -> bool:
    """Errs on the safe side: what is computed from the message without a module that has parameters may be a view."""
    reached = set(received)
    for node in nodes:
        if not reached.intersection(node.all_input_nodes):
            continue
        if _writes(node, module):
            return True
        if node.op != "call_module" or not any(True for _ in module(str(node.target)).parameters()):
            reached.add(node)
    return False


def _writes(node: fx.Node, module: Callable[[str], nn.Module]) -> bool:
    target: Any = node.target
    if node.op == "call_module":
        return writes_in_place(module(target))
    if node.op == "call_method":
        return bool(target.endswith("_") and not target.endswith("__"))
    if isinstance(target, torch._ops.OpOverload):
        return target._schema.is_mutable
    name = getattr(target, "__name__", "")
    if getattr(target, "__module__", "") == "_operator":
        return name in _OPERATORS
    return (name.endswith("_") and not name.endswith("__")) or _asked_in_place(node)


def _asked_in_place(node: fx.Node) -> bool:
    """`F.relu(x, inplace=True)`, spelled by position or by name."""
    if node.kwargs.get("inplace") is True:
        return True
    target: Any = node.target
    if not inspect.isfunction(target):
        return False
    names = list(inspect.signature(target).parameters)
    return "inplace" in names and node.args[names.index("inplace") :][:1] == (True,)
