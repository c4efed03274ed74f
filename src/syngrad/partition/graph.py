"""Cutting a traced graph into parts: which values cross a cut, and modules that run the nodes between two cuts.

Imported only once a model has to be traced: importing torch.fx is not free.
"""

from __future__ import annotations

import operator
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from syngrad.partition.aliasing import writes_received
from syngrad.partition.inputs import Inputs
from syngrad.partition.segment import owner_of


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

    def parts(self, starts: Sequence[int], inputs: Inputs) -> list[Part]:
        """The graph cut before each of the given nodes."""
        return [_Builder(self, starts).part(index, inputs) for index in range(len(starts) + 1)]


class Part(nn.Module):
    """Runs the nodes of one stage. Modules and tensors are the user's own."""

    def __init__(
        self, module: fx.GraphModule, homes: dict[str, tuple[nn.Module, str]], *, unpacks: bool, writes_received: bool
    ) -> None:
        super().__init__()
        self.graph_module = module
        self.writes_received = writes_received
        self.inputs: Inputs | None = None
        self.out_spec: pytree.TreeSpec | None = None
        self._unpacks = unpacks
        self._homes = tuple((key, owner, attribute) for key, (owner, attribute) in homes.items())

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        module = self.graph_module
        for key, owner, attribute in self._homes:
            # The user may have moved or replaced the tensor since (`model.to(device)` makes new buffers).
            live = getattr(owner, attribute)
            if getattr(module, key) is not live:
                registry = module._parameters if key in module._parameters else module._buffers
                registry[key] = live
        if self.inputs is not None:
            result = module(*self.inputs.leaves(args, kwargs))
        else:
            result = module(*args[0]) if self._unpacks else module(*args)
        return result if self.out_spec is None else pytree.tree_unflatten(list(result), self.out_spec)


class _Builder:
    def __init__(self, trace: Trace, starts: Sequence[int]) -> None:
        self._trace = trace
        self._nodes = trace.nodes
        self._last = len(starts)
        self._spans = list(zip([0, *starts], [*starts, len(self._nodes)], strict=True))
        self._output = next(node for node in trace.graph.nodes if node.op == "output")
        stage = {node: 0 for node in trace.graph.nodes if node.op == "placeholder"}
        stage |= {node: bisect_right(starts, at) for at, node in enumerate(self._nodes)}
        stage[self._output] = self._last
        # The stage that makes a value, and the last one that wants it. Attributes are looked up where they are used.
        self._life = {
            node: (stage[node], max((stage[user] for user in node.users if user in stage), default=0))
            for node in trace.graph.nodes
            if node in stage
        }

    def crossing(self, index: int) -> list[fx.Node]:
        """The values that stage ``index`` gets from before, but for sizes that it can read off a tensor it gets."""
        needed = [node for node, (made, wanted) in self._life.items() if made < index <= wanted]
        return [node for node in needed if _size_of(node, needed) is None]

    def part(self, index: int, inputs: Inputs) -> Part:
        copier = Copier(self._trace)
        start, stop = self._spans[index]
        if index == 0:
            received = [node for node in self._trace.graph.nodes if node.op == "placeholder"]
        else:
            received = self.crossing(index)
        for node in received:
            copier.receive(node)
        if index > 0:
            needed = [node for node, (made, wanted) in self._life.items() if made < index <= wanted]
            for node in needed:
                source = _size_of(node, needed)
                if source is not None:
                    copier.measure(node, *source)
        for node in self._nodes[start:stop]:
            copier.copy(node)
        if index == self._last:
            copier.give(self._output.args[0])
        else:
            sent = self.crossing(index + 1)
            copier.send(sent)
        module = copier.module()
        writes = index > 0 and writes_received(self._nodes[start:stop], received, copier.find_module)
        part = Part(module, copier.homes, unpacks=index > 0 and len(received) != 1, writes_received=writes)
        part.inputs = inputs if index == 0 else None
        part.out_spec = self._trace.out_spec if index == self._last else None
        return part
