"""The second and third route: a model whose forward was recorded, once for training and once for evaluation.

Two recordings, because a forward may ask ``self.training`` anywhere (``F.dropout(x, training=self.training)``) and a
recording keeps the answer. Which of them runs is decided at every call, by the user's model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

from torch import fx, nn

from syngrad.partition.chain import tensor_names
from syngrad.partition.graph import Part, parts
from syngrad.partition.inputs import Inputs
from syngrad.partition.program import PlaceError, RouteError
from syngrad.partition.recording import Trace
from syngrad.partition.segment import FIRST, Segment, find_tensor
from syngrad.preserve_state import preserve_state


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

    def __init__(self, model: nn.Module, route: str, inputs: Inputs, record: Callable[[], Trace]) -> None:
        self._model = model
        self._route = route
        self._inputs = inputs
        with preserve_state(model):
            if not model.training:
                model.train()
            self._training = record()
        with preserve_state(model):
            model.eval()
            self._evaluation = record()
        if _code(self._training) == _code(self._evaluation):
            self._evaluation = self._training
        self._nodes = {id(trace): trace.nodes for trace in (self._training, self._evaluation)}

    @property
    def route(self) -> str:
        """Which recorder was used."""
        return self._route

    def position(self, cut: str) -> int:
        """The index of the first node recorded inside the named module."""
        return self._position(self._training, cut)

    def uses(self, cuts: Sequence[str]) -> list[list[str]]:
        """The tensors each stage's nodes refer to, in either mode."""
        training = self._uses(self._training, cuts)
        if self._evaluation is self._training:
            return training
        evaluation = self._uses(self._evaluation, cuts)
        return [[*first, *second] for first, second in zip(training, evaluation, strict=True)]

    def segments(self, cuts: Sequence[str]) -> list[Segment]:
        """The stages, each a graph of its own for each mode."""
        training = parts(self._training, self._starts(self._training, cuts), self._inputs)
        evaluation = training
        if self._evaluation is not self._training:
            evaluation = parts(self._evaluation, self._starts(self._evaluation, cuts), self._inputs)
        return [
            Segment(
                name,
                first if first is second else Modes(self._model, first, second),
                route=self.route,
                model=self._model,
                tensor_names=used,
                writes_message=first.writes_received or second.writes_received,
            )
            for name, first, second, used in zip([FIRST, *cuts], training, evaluation, self.uses(cuts), strict=True)
        ]

    def _starts(self, trace: Trace, cuts: Sequence[str]) -> list[int]:
        starts = [self._position(trace, cut) for cut in cuts]
        if starts != sorted(starts):
            raise RouteError(f"the modules run in another order in evaluation than in training: {', '.join(cuts)}")
        return starts

    def _position(self, trace: Trace, cut: str) -> int:
        module = self._model.get_submodule(cut)
        at: int | None = None
        calls: set[str] = set()
        for index, node in enumerate(self._nodes[id(trace)]):
            for stack in _stacks(trace, node):
                entered = [key for key, (path, _) in stack.items() if self._is(path, module)]
                if entered and at is None:
                    at = index
                calls.update(entered)
        if at is None:
            raise PlaceError("is never called in forward, or does nothing there")
        if len(calls) > 1:
            raise PlaceError(f"is called {len(calls)} times in forward, so it starts no one stage")
        first = next(_stacks(trace, self._nodes[id(trace)][at]))
        if not any(self._is(path, module) for path, _ in first.values()):
            raise PlaceError("lies inside a part that runs under no_grad or autocast")
        return at

    def _uses(self, trace: Trace, cuts: Sequence[str]) -> list[list[str]]:
        nodes = self._nodes[id(trace)]
        starts = [0, *self._starts(trace, cuts), len(nodes)]
        found = [
            [name for node in nodes[start:stop] for name in self._node_uses(trace, node)]
            for start, stop in pairwise(starts)
        ]
        output = next(node for node in trace.graph.nodes if node.op == "output")
        found[-1].extend(self._node_uses(trace, output))
        return found

    def _node_uses(self, trace: Trace, node: fx.Node) -> Iterator[str]:
        if node.op == "call_module" and str(node.target) not in trace.constants:
            yield from tensor_names(self._model.get_submodule(str(node.target)), str(node.target))
        for given in node.all_input_nodes:
            if given.op == "get_attr" and str(given.target) not in trace.constants:
                yield self._spelled_at(trace, node, str(given.target))

    def _spelled_at(self, trace: Trace, node: fx.Node, name: str) -> str:
        """A shared tensor's name as seen from the module that uses it: both uses of a tied weight get their own."""
        tensor = find_tensor(self._model, name)
        paths = [path for stack in _stacks(trace, node) for path, _ in stack.values()]
        aliases = [key for key, value in self._model.named_parameters(remove_duplicate=False) if value is tensor]
        here = [key for key in aliases if key.rpartition(".")[0] in paths and "." in key]
        return max(here, key=len, default=name)

    def _is(self, path: str, module: nn.Module) -> bool:
        try:
            return self._model.get_submodule(path) is module
        except AttributeError:
            return False  # an entry that torch.export makes up for the nodes it adds itself


def _stacks(trace: Trace, node: fx.Node) -> Iterator[dict[str, tuple[str, Any]]]:
    """The modules a node was recorded in. A node that holds a sub-graph (a region under no_grad) has those inside."""
    subgraphs = [
        trace.constants[str(given.target)]
        for given in node.all_input_nodes
        if given.op == "get_attr" and isinstance(trace.constants.get(str(given.target)), fx.GraphModule)
    ]
    inner = [inside for module in subgraphs for inside in module.graph.nodes if inside.op.startswith("call_")]
    for each in inner or [node]:
        yield each.meta.get("nn_module_stack") or {}


def _code(trace: Trace) -> str:
    return str(trace.graph.python_code("self").src)
