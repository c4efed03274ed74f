"""Copying nodes of a recorded graph into the graph of one stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from syngrad.partition.recording import Trace, is_kind, is_shape
from syngrad.partition.segment import owner_of


class Copier:
    """Copies nodes into a graph of their own.

    Attributes get flat names there, so that no shell modules are needed and the user's modules are never written to.
    """

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._graph = fx.Graph()
        self._made: dict[fx.Node, fx.Node] = {}
        self._arrived: dict[fx.Node, fx.Node] = {}
        self._keys: dict[str, str] = {}
        self._root: dict[str, Any] = {}
        self.homes: dict[str, tuple[nn.Module, str]] = {}

    def receive(self, node: fx.Node) -> None:
        """Take a value from the message, in the form that :meth:`send` gave it."""
        arrived = self._arrived[node] = self._graph.placeholder(f"received_{len(self._made)}")
        if is_shape(node):
            arrived = self._graph.call_function(torch.Size, (arrived,))
        elif is_kind(node):
            arrived = self._graph.call_function(getattr, (arrived, node.args[1]))
        self._made[node] = arrived

    def measure(self, node: fx.Node, tensor: fx.Node, dim: int) -> None:
        """Read an integer off a tensor that was received."""
        self._made[node] = self._graph.call_function(torch.ops.aten.sym_size.int, (self._made[tensor], dim))

    def copy(self, node: fx.Node) -> None:
        """Compute a node here."""
        for given in node.all_input_nodes:
            self._fetch(given)
        made = self._graph.node_copy(node, self._made.__getitem__)
        made.meta = {}
        if node.op == "call_module":
            made.target = self._key(str(node.target), self.find_module(str(node.target)))
        self._made[node] = made

    def send(self, nodes: Sequence[fx.Node]) -> None:
        """End the graph with a message."""
        sent = [self._sendable(node) for node in nodes]
        self._graph.output(sent[0] if len(sent) == 1 else tuple(sent))

    def give(self, result: Any) -> None:
        """End the graph with the model's output."""

        def made(node: fx.Node) -> fx.Node:
            self._fetch(node)
            return self._made[node]

        self._graph.output(fx.node.map_arg(result, made))

    def module(self) -> fx.GraphModule:
        """The finished graph."""
        return fx.GraphModule(self._root, self._graph, class_name="Stage")

    def find_module(self, name: str) -> nn.Module:
        """The module a node calls: the user's, or one that the recorder made."""
        constant = self._trace.constants.get(name)
        return constant if isinstance(constant, nn.Module) else self._trace.model.get_submodule(name)

    def _sendable(self, node: fx.Node) -> fx.Node:
        """The leaves of a message are tensors and integers: a torch.Size goes as a tuple, and a device or dtype as an
        empty tensor that has it (a stage that lives elsewhere then sees its own device).
        """
        if is_shape(node):
            return self._graph.call_function(tuple, (self._made[node],))
        if is_kind(node):
            source = node.args[0]
            assert isinstance(source, fx.Node)
            return self._arrived.get(node) or self._graph.call_method("new_empty", (self._made[source], 0))
        return self._made[node]

    def _fetch(self, node: fx.Node) -> None:
        if node in self._made or node.op != "get_attr":
            return
        name = str(node.target)
        if name in self._trace.constants:
            self._made[node] = self._graph.get_attr(self._key(name, self._trace.constants[name]))
            return
        owner, attribute = owner_of(self._trace.model, name)
        value = getattr(owner, attribute)
        key = self._key(name, value)
        if isinstance(value, Tensor):
            self.homes[key] = (owner, attribute)
        self._made[node] = self._graph.get_attr(key)

    def _key(self, name: str, value: Any) -> str:
        if name not in self._keys:
            self._keys[name] = f"n{len(self._keys)}_" + "".join(c if c.isalnum() else "_" for c in name)
            self._root[self._keys[name]] = value
        return self._keys[name]
