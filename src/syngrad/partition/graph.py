"""Cutting a traced graph into parts: which values cross a cut, and modules that run the nodes between two cuts.

Imported only once a model has to be traced: importing torch.fx is not free.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

from torch import fx, nn
from torch.utils import _pytree as pytree

from syngrad.partition.aliasing import writes_received
from syngrad.partition.copying import Copier
from syngrad.partition.inputs import Inputs
from syngrad.partition.recording import Trace, size_of


def parts(trace: Trace, starts: Sequence[int], inputs: Inputs) -> list[Part]:
    """The graph cut before each of the given nodes."""
    builder = _Builder(trace, starts)
    return [builder.part(index, inputs) for index in range(len(starts) + 1)]


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
        self._homes = tuple(
            (table, key, owner, attribute)
            for key, (owner, attribute) in homes.items()
            for table in ("_parameters", "_buffers")
            if attribute in vars(owner)[table]
        )

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As :class:`Segment`'s."""
        module = self.graph_module
        for table, key, owner, attribute in self._homes:
            # The user may have moved or replaced the tensor since (`model.to(device)` makes new buffers). Straight from
            # table to table: this runs at every step, for every parameter of an exported stage.
            vars(module)[table][key] = vars(owner)[table][attribute]
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
        self._placeholders = [node for node in trace.graph.nodes if node.op == "placeholder"]
        stage = dict.fromkeys(self._placeholders, 0)
        stage |= {node: bisect_right(starts, at) for at, node in enumerate(self._nodes)}
        stage[self._output] = self._last
        # The stage that makes a value, and the last one that wants it. Attributes are looked up where they are used.
        self._life = {
            node: (stage[node], max((stage[user] for user in node.users if user in stage), default=0))
            for node in trace.graph.nodes
            if node in stage
        }

    def part(self, index: int, inputs: Inputs) -> Part:
        copier = Copier(self._trace)
        received = self._crossing(index) if index > 0 else self._placeholders
        for node in received:
            copier.receive(node)
        for node, (tensor, dim) in self._sizes(index).items():
            copier.measure(node, tensor, dim)
        start, stop = self._spans[index]
        for node in self._nodes[start:stop]:
            copier.copy(node)
        if index == self._last:
            copier.give(self._output.args[0])
        else:
            copier.send(self._crossing(index + 1))
        writes = index > 0 and writes_received(self._nodes[start:stop], received, copier.find_module)
        part = Part(copier.module(), copier.homes, unpacks=index > 0 and len(received) != 1, writes_received=writes)
        part.inputs = inputs if index == 0 else None
        part.out_spec = self._trace.out_spec if index == self._last else None
        return part

    def _crossing(self, index: int) -> list[fx.Node]:
        """The values that stage ``index`` gets from before, but for sizes that it can read off a tensor it gets."""
        sizes = self._sizes(index)
        return [node for node in self._wanted(index) if node not in sizes]

    def _sizes(self, index: int) -> dict[fx.Node, tuple[fx.Node, int]]:
        wanted = self._wanted(index)
        return {node: found for node in wanted if (found := size_of(node, wanted)) is not None}

    def _wanted(self, index: int) -> list[fx.Node]:
        return [node for node, (made, last) in self._life.items() if made < index <= last]
