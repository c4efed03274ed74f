"""The second and third route: a model whose forward was recorded, once for training and once for evaluation.

Two recordings, because a forward may ask ``self.training`` anywhere (``F.dropout(x, training=self.training)``) and a
recording keeps the answer. Which of them runs is decided at every call, by the user's model. Each recording is cut into
graphs of their own, one a stage; imported only once a model has to be traced, since importing torch.fx is not free.
"""

from __future__ import annotations

import inspect
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from syngrad.partition.chain import writes_in_place
from syngrad.partition.cuts import RouteError
from syngrad.partition.example import Inputs
from syngrad.partition.reads import Place, changed, noted, places, written
from syngrad.partition.recorded_truth import RecordedTruth
from syngrad.partition.recording import Trace
from syngrad.partition.segment import FIRST, Segment, owner_of
from syngrad.partition.unread import Unread, stand_ins
from syngrad.preserve_state import preserve_state

_OPERATORS = frozenset(
    ["iadd", "isub", "imul", "imatmul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor", "setitem"]
)


class Modes(nn.Module):
    """One stage in its two forms; runs the one for the mode the user's model is in."""

    def __init__(self, model: nn.Module, training: Part, evaluation: Part) -> None:
        super().__init__()
        self.when_training = training
        self.when_evaluating = evaluation
        self._model = (model,)  # in a tuple: the user's model is no child of a stage

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The part recorded in the mode that the user's model is in now."""
        part = self.when_training if self._model[0].training else self.when_evaluating
        return part(*args, **kwargs)


class Traced:
    """A model laid out as the nodes of its recordings."""

    def __init__(
        self,
        model: nn.Module,
        route: str,
        inputs: Inputs,
        record: Callable[[], Trace],
        followed: Sequence[str] | None = None,
    ) -> None:
        self._model, self._route, self._inputs, self._record = model, route, inputs, record
        named = dict(model.named_modules())
        self._followed = list(named.values() if followed is None else {named[name]: None for name in followed})
        self._truth = RecordedTruth(model, None if followed is None else self._holds)
        with preserve_state(model):
            if not model.training:
                model.train()
            self._training, read = self._recorded()
            self._truth.note(read)
        with preserve_state(model):
            model.eval()
            self._evaluation, read = self._recorded()
            self._truth.note(read)
        if self._training.code() == self._evaluation.code():
            self._evaluation = self._training

    def _recorded(self) -> tuple[Trace, list[Place]]:
        """A recording, and what Python read meanwhile."""
        before = written(self._followed)
        with noted(self._followed) as found:
            trace = self._record()
        if what := changed(before, written(self._followed), found):
            raise RouteError(f"its forward changes {what}, which a recording would not do again")
        return trace, places(self._model, found)

    def _holds(self) -> list[Place] | None:
        """What a recording made now, in the mode that the model is in, has read, where it is the one that there is."""
        there = self._training if self._model.training else self._evaluation
        try:
            with preserve_state(self._model):
                made, read = self._recorded()
        except Exception:  # it can no longer be followed
            return None
        return read if made.code() == there.code() else None

    def position(self, cut: str) -> int:
        """The index of the first node recorded inside the named module."""
        return self._training.position(cut)

    def uses(self, cuts: Sequence[str]) -> list[list[str]]:
        """The tensors each stage's nodes refer to, in either mode."""
        training = self._training.uses(cuts)
        if self._evaluation is self._training:
            return training
        return [[*first, *second] for first, second in zip(training, self._evaluation.uses(cuts), strict=True)]

    def segments(self, cuts: Sequence[str]) -> list[Segment]:
        """The stages, each a graph of its own for each mode."""
        for cut in cuts:
            if not self.closed(cut):
                raise RouteError(f"forward itself differentiates through {cut!r}")
        training = evaluation = parts(self._training, cuts, self._inputs)
        if self._evaluation is not self._training:
            evaluation = parts(self._evaluation, cuts, self._inputs)
        return [
            Segment(
                name,
                first if first is second else Modes(self._model, first, second),
                route=self._route,
                model=self._model,
                tensor_names=used,
                writes_message=first.writes_received or second.writes_received,
                # modules that torch.fx leaves whole see for themselves, and the first stage looks at the others for all
                truth=self._truth if self._route == "torch.export" or name == FIRST else None,
            )
            for name, first, second, used in zip([FIRST, *cuts], training, evaluation, self.uses(cuts), strict=True)
        ]

    def closed(self, cut: str) -> bool:
        """Whether forward takes no derivative through it; all that crosses is found in the recording."""
        return not any(trace.is_differentiated_through(cut) for trace in (self._training, self._evaluation))


def parts(trace: Trace, cuts: Sequence[str], inputs: Inputs) -> list[Part]:
    """The graph cut before the first node of each of the named modules."""
    builder = _Builder(trace, trace.starts(cuts))
    return [builder.part(index, inputs) for index in range(len(cuts) + 1)]


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
        #: for what it returns nothing for
        self.stand_ins: dict[int, Unread] = {}
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
            # table to table: this runs at every step, for every parameter of an exported stage. What stands in for a
            # parameter in this very call (weights as they were) is no Parameter, and stays.
            tensors = vars(module)[table]
            if table == "_buffers" or isinstance(tensors[key], nn.Parameter):
                tensors[key] = vars(owner)[table][attribute]
        if self.inputs is not None:
            result = module(*self.inputs.leaves(args, kwargs))
        else:
            result = module(*args[0]) if self._unpacks else module(*args)
        if self.out_spec is None:
            return result
        leaves = list(result)
        for at, stand_in in self.stand_ins.items():
            leaves[at] = stand_in
        return pytree.tree_unflatten(leaves, self.out_spec)


class _Builder:
    """Which values cross which cut of one recording, and the parts between the cuts."""

    def __init__(self, trace: Trace, starts: Sequence[int]) -> None:
        self._trace = trace
        self._last = len(starts)
        self._spans = list(pairwise([0, *starts, len(trace.nodes)]))
        self._placeholders = [node for node in trace.graph.nodes if node.op == "placeholder"]
        stage = dict.fromkeys(self._placeholders, 0)
        stage |= {node: bisect_right(starts, at) for at, node in enumerate(trace.nodes)}
        stage[trace.output] = self._last
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
        own = self._trace.nodes[start:stop]
        for node in own:
            copier.copy(node)
        if index == self._last:
            copier.give(self._trace.output.args[0])
        else:
            copier.send(self._crossing(index + 1))
        writes = index > 0 and writes_received(own, received, copier.find_module)
        part = Part(copier.module(), copier.homes, unpacks=index > 0 and len(received) != 1, writes_received=writes)
        part.inputs = inputs if index == 0 else None
        if index == self._last:
            spec = part.out_spec = self._trace.out_spec
            part.stand_ins = stand_ins(pytree.tree_unflatten(range(spec.num_leaves), spec), self._trace.unread)
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


def writes_received(nodes: Sequence[fx.Node], received: Iterable[fx.Node], module: Callable[[str], nn.Module]) -> bool:
    """Whether a part may write into what it received, so that the message has to be copied first.

    Errs on the safe side: what is computed from the message without a module that has parameters may be a view.
    """
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
