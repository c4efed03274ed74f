"""The second and third route's recorders: a forward as a graph over the user's own modules and tensors.

torch.fx follows the forwards around the cuts and keeps every other module whole. torch.export, which is tried where
that fails, runs the model on its example and records the operations themselves.
"""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from syngrad.partition.chain import tensor_names
from syngrad.partition.cuts import PlaceError, RouteError, ancestors, has_hooks
from syngrad.partition.example import Inputs
from syngrad.partition.segment import find_tensor, owner_of
from syngrad.partition.unread import names_of_leaves
from syngrad.partition.while_recorded import by_leaves, checkpointing_refused, drop_dead, returning, unchanging

# Functions that make a tensor from numbers. fx does not see them: with a traced size they fail, without one they would
# run once, while tracing, and their result be kept as a constant.
_FACTORIES = (
    *("arange", "linspace", "eye", "zeros", "ones", "full", "empty", "tensor", "as_tensor"),
    *("rand", "randn", "randint", "randperm"),
)
_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.Tensor, torch.dtype, torch.device, fx.Proxy)


@dataclass(frozen=True)
class Trace:
    """One recording of the model's forward, with one placeholder for each leaf of the inputs."""

    model: nn.Module
    graph: fx.Graph
    out_spec: pytree.TreeSpec
    constants: dict[str, Any] = field(default_factory=dict)
    """What the graph refers to that is not in the model: tensors made while tracing, sub-graphs."""
    unread: tuple[int, ...] = ()
    """The positions, in the flattened output, of what it returns None for."""

    @functools.cached_property
    def nodes(self) -> list[fx.Node]:
        """The nodes that compute something, in execution order."""
        return [node for node in self.graph.nodes if node.op.startswith("call_")]

    @functools.cached_property
    def output(self) -> fx.Node:
        """The node that returns."""
        found: fx.Node = next(node for node in self.graph.nodes if node.op == "output")
        return found

    def code(self) -> str:
        """The graph as Python, by which two recordings are the same."""
        return str(self.graph.python_code("self").src)

    def position(self, cut: str) -> int:
        """The index of the first node inside the named module; raises PlaceError where no stage can start at it."""
        module = self.model.get_submodule(cut)
        at: int | None = None
        calls: set[str] = set()
        for index, node in enumerate(self.nodes):
            for stack in self._stacks(node):
                entered = [key for key, (path, _) in stack.items() if self._is(path, module)]
                if entered and at is None:
                    at = index
                calls.update(entered)
        if at is None:
            raise PlaceError("is never called in forward, or does nothing there")
        if len(calls) > 1:
            raise PlaceError(f"is called {len(calls)} times in forward, so it starts no one stage")
        first = next(self._stacks(self.nodes[at]))
        if not any(self._is(path, module) for path, _ in first.values()):
            raise PlaceError("lies inside a part that runs under no_grad or autocast")
        return at

    def is_differentiated_through(self, cut: str) -> bool:
        """Whether the forward takes a derivative after the cut, with respect to what was made before it."""
        taken = [at for at, node in enumerate(self.nodes) if node.target is torch.autograd.grad]
        if not taken:
            return False
        start, made = self.position(cut), {node: at for at, node in enumerate(self.nodes)}
        return any(
            start <= at and any(made.get(each, -1) < start for each in self.nodes[at].all_input_nodes) for at in taken
        )

    def starts(self, cuts: Sequence[str]) -> list[int]:
        """The positions of the cuts; raises RouteError where they are not in the order of execution here."""
        starts = [self.position(cut) for cut in cuts]
        if starts != sorted(starts):
            raise RouteError(f"the modules run in another order in evaluation than in training: {', '.join(cuts)}")
        return starts

    def uses(self, cuts: Sequence[str]) -> list[list[str]]:
        """For each stage the names of the tensors that its nodes refer to."""
        found = [
            [name for node in self.nodes[start:stop] for name in self._used_by(node)]
            for start, stop in pairwise([0, *self.starts(cuts), len(self.nodes)])
        ]
        found[-1].extend(self._used_by(self.output))
        return found

    def _used_by(self, node: fx.Node) -> Iterator[str]:
        if node.op == "call_module" and str(node.target) not in self.constants:
            yield from tensor_names(self.model.get_submodule(str(node.target)), str(node.target))
        for given in node.all_input_nodes:
            if given.op == "get_attr" and str(given.target) not in self.constants:
                yield self._name_at(node, str(given.target))

    def _name_at(self, node: fx.Node, name: str) -> str:
        """A shared tensor's name as seen from the module that uses it: both uses of a tied weight get their own."""
        tensor = find_tensor(self.model, name)
        paths = [path for stack in self._stacks(node) for path, _ in stack.values()]
        aliases = [key for key, value in self.model.named_parameters(remove_duplicate=False) if value is tensor]
        here = [key for key in aliases if key.rpartition(".")[0] in paths and "." in key]
        return max(here, key=len, default=name)

    def _is(self, path: str, module: nn.Module) -> bool:
        try:
            return self.model.get_submodule(path) is module
        except AttributeError:
            return False  # an entry that torch.export makes up for the nodes it adds itself

    def _stacks(self, node: fx.Node) -> Iterator[dict[str, tuple[str, Any]]]:
        """The modules a node was recorded in; one that holds a sub-graph (a region under no_grad) has those inside."""
        subgraphs = [
            self.constants[str(given.target)]
            for given in node.all_input_nodes
            if given.op == "get_attr" and isinstance(self.constants.get(str(given.target)), fx.GraphModule)
        ]
        inner = [inside for module in subgraphs for inside in module.graph.nodes if inside.op.startswith("call_")]
        for each in inner or [node]:
            yield each.meta.get("nn_module_stack") or {}


def record_by_fx(
    model: nn.Module, cuts: list[str], inputs: Inputs, unread: Callable[[], Sequence[int]] = tuple
) -> Trace:
    """Record the model's forward in its present mode. Raises whatever the forward raises when given stand-ins."""
    opened = {model.get_submodule(around) for cut in cuts for around in ancestors(cut)}
    before = {module: dict(vars(module)) for module in opened}
    tracer = _Tracer(opened, inputs)
    with _factories_recorded(tracer), checkpointing_refused():
        graph = tracer.trace(model)
    left = forget(graph, tracer, unread)
    drop_dead(graph, model)
    made = {name: value for name, value in vars(model).items() if name not in before[model]}
    constants = {str(node.target) for node in graph.nodes if node.op == "get_attr"} & made.keys()
    for module, old in before.items():
        changed = [k for k, v in vars(module).items() if k not in constants and (k not in old or old[k] is not v)]
        if changed:
            raise RouteError(f"forward of {type(module).__name__} sets self.{changed[0]}")
    if tracer.out_spec is None:
        raise RouteError("the forward was not followed")
    return Trace(model, graph, tracer.out_spec, {name: made[name] for name in constants}, left)


def forget(graph: fx.Graph, tracer: _Tracer, unread: Callable[[], Sequence[int]]) -> tuple[int, ...]:
    """Have a recording return None for what nobody reads, and give its positions; what is odd and read cannot be."""
    (output,) = (node for node in graph.nodes if node.op == "output")
    returned = output.args[0]
    if len(returned) == 1 and not tracer.odd:
        return ()
    left = unread()
    for at, kind in tracer.odd.items():
        if at not in left:
            raise RouteError(f"it returns a {kind}, which torch's pytree does not know")
    output.args = (tuple(None if at in left else leaf for at, leaf in enumerate(returned)),)
    return tuple(left)


class _Proxy(fx.Proxy):
    """Notes an attribute where it is asked for. fx would note it where it is first used, perhaps stages later, and the
    whole tensor would have to cross until then.
    """

    def __getattr__(self, name: str) -> Any:
        found = super().__getattr__(name)
        if name in ("shape", "device", "dtype"):
            _ = found.node
        return found


class _Tracer(fx.Tracer):
    # Otherwise `self.mask[:T]` would slice the buffer with a stand-in for T, which a real tensor cannot.
    proxy_buffer_attributes = True

    def __init__(self, opened: set[nn.Module], inputs: Inputs) -> None:
        super().__init__()
        self.out_spec: pytree.TreeSpec | None = None
        self._opened = opened
        self._inputs = inputs
        #: leaves of the output that are neither tensors nor plain, by position: the names of their types
        self.odd: dict[int, str] = {}
        self._modes = _modes()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m not in self._opened

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        leaves = [self.create_proxy("placeholder", f"input_{i}", (), {}) for i in range(len(self._inputs))]
        args, kwargs = self._inputs.filled(leaves)

        def run():  # type: ignore[no-untyped-def]  # fx would put a return annotation into the graph
            result = root_fn(self.root, *args, **kwargs)
            leaves, self.out_spec = pytree.tree_flatten(result)
            self.odd = {i: type(leaf).__name__ for i, leaf in enumerate(leaves) if not isinstance(leaf, _PLAIN)}
            return tuple(None if i in self.odd else leaf for i, leaf in enumerate(leaves))

        return run, []

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        if _modes() != self._modes:
            # fx records calls, not the `with` around them: the graph would compute gradients that the model does not.
            raise RouteError("forward runs a part under no_grad or autocast")
        return super().create_node(*args, **kwargs)


def _modes() -> tuple[bool, ...]:
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        *(torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")),
    )


@contextlib.contextmanager
def _factories_recorded(tracer: fx.Tracer) -> Iterator[None]:
    originals = {name: getattr(torch, name) for name in _FACTORIES}

    def recording(original: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: tracer.create_proxy("call_function", original, args, kwargs)

    try:
        for name, original in originals.items():
            setattr(torch, name, recording(original))
        yield
    finally:
        for name, original in originals.items():
            setattr(torch, name, original)


def record_by_export(model: nn.Module, inputs: Inputs, unread: Sequence[int] = ()) -> Trace:
    """Record the model's forward in its present mode, on the example, for batches of any size."""
    hooked = [name for name, module in model.named_modules() if has_hooks(module)]
    if hooked:
        raise RouteError(f"module {hooked[0]!r} has hooks, which an exported graph would lose")
    if len(inputs) == 0:
        raise RouteError("the model takes no inputs")
    with checkpointing_refused(), unchanging(model), returning(model, unread) as left, by_leaves(model, inputs):
        try:
            made = _recorded(model, inputs, every_dim=True)
        except RouteError:
            raise
        except Exception:
            # Sizes other than the batch may be constants to the model (they are compared, or decide a branch). If the
            # batch is such a constant too, this raises in its turn.
            made = _recorded(model, inputs, every_dim=False)
    # fields of a dataclass that are None are no leaves to PyTorch: places may be others than in the model's own output
    spec = made.out_spec
    names = names_of_leaves(pytree.tree_unflatten(range(spec.num_leaves), spec)) if left else []
    return replace(made, unread=tuple(i for i, name in enumerate(names) if name in left))


def _recorded(model: nn.Module, inputs: Inputs, *, every_dim: bool) -> Trace:
    # Here and not above: only a model that torch.fx cannot follow pays for this import.
    from torch.export import Dim, ShapesCollection, export

    shapes = ShapesCollection()
    tensors = [leaf for leaf in inputs.leaves(inputs.args, inputs.kwargs) if isinstance(leaf, Tensor)]
    for tensor in tensors:
        if tensor.dim() > 0:
            dims = range(tensor.dim()) if every_dim else range(1)
            shapes[tensor] = {dim: Dim.AUTO for dim in dims}
    args, kwargs = inputs.args, inputs.kwargs
    if inputs.variadic:
        args, kwargs = tuple(inputs.leaves(args, kwargs)), {}
    with _quiet():
        dynamic = shapes.dynamic_shapes(model, args, kwargs)
        program = export(model, args, kwargs, dynamic_shapes=dynamic, strict=False)
        module = program.module()
    if not isinstance(module, fx.GraphModule) or program.call_spec.out_spec is None:
        raise RouteError("it returned no graph")
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    if len(placeholders) != len(inputs):
        raise RouteError(f"it made {len(placeholders)} inputs of {len(inputs)}")
    _check_batch(placeholders)
    drop_dead(module.graph, module)
    return Trace(model, module.graph, program.call_spec.out_spec, _constants(model, module))


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep to ourselves what export does on the side.

    A failing export prints the graph so far, besides raising; its warnings speak of torch's own deprecations; and it
    puts the name of a cache directory into the environment.
    """
    nowhere, environment, disabled = io.StringIO(), dict(os.environ), logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
        for name in os.environ.keys() - environment.keys():
            del os.environ[name]


def _check_batch(placeholders: list[fx.Node]) -> None:
    batch = next((p.meta["val"] for p in placeholders if isinstance(p.meta.get("val"), Tensor)), None)
    if batch is not None and batch.dim() > 0 and not isinstance(batch.shape[0], torch.SymInt):
        hint = "; give an example of two samples or more" if batch.shape[0] == 1 else ""
        raise RouteError(f"the forward fixes the batch size at {batch.shape[0]}{hint}")


def _constants(model: nn.Module, module: fx.GraphModule) -> dict[str, Any]:
    """What the graph refers to and the model does not have; what it has must be the model's own object."""
    found: dict[str, Any] = {}
    for node in module.graph.nodes:
        if node.op not in ("get_attr", "call_module"):
            continue
        name = str(node.target)
        owner, attribute = owner_of(module, name)
        value = getattr(owner, attribute)
        own = _attribute(model, name)
        if own is value:
            continue
        if isinstance(value, nn.Parameter) or own is not None:
            raise RouteError(f"the graph holds a copy of {name!r}, not the model's own")
        found[name] = value
    return found


def _attribute(model: nn.Module, name: str) -> Any:
    path, _, attribute = name.rpartition(".")
    try:
        return getattr(model.get_submodule(path), attribute, None)
    except AttributeError:
        return None
