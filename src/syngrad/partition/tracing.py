"""The second route's recording: torch.fx follows the forwards around the cuts, and every other module stays whole."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from syngrad.partition.inputs import Inputs
from syngrad.partition.names import ancestors
from syngrad.partition.program import RouteError
from syngrad.partition.recording import Trace

# Functions that make a tensor from numbers. fx does not see them: with a traced size they fail, without one they would
# run once, while tracing, and their result be kept as a constant.
_FACTORIES = (
    *("arange", "linspace", "eye", "zeros", "ones", "full", "empty", "tensor", "as_tensor"),
    *("rand", "randn", "randint", "randperm"),
)
_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.Tensor, torch.dtype, torch.device, fx.Proxy)


def record(model: nn.Module, cuts: list[str], inputs: Inputs) -> Trace:
    """Record the model's forward in its present mode. Raises whatever the forward raises when given stand-ins."""
    opened = {model.get_submodule(around) for cut in cuts for around in ancestors(cut)}
    before = {module: dict(vars(module)) for module in opened}
    tracer = _Tracer(opened, inputs)
    with _factories_recorded(tracer):
        graph = tracer.trace(model)
    made = {name: value for name, value in vars(model).items() if name not in before[model]}
    constants = {str(node.target) for node in graph.nodes if node.op == "get_attr"} & made.keys()
    for module, old in before.items():
        changed = [k for k, v in vars(module).items() if k not in constants and (k not in old or old[k] is not v)]
        if changed:
            raise RouteError(f"forward of {type(module).__name__} sets self.{changed[0]}")
    if tracer.out_spec is None:
        raise RouteError("the forward was not followed")
    return Trace(model, graph, tracer.out_spec, {name: made[name] for name in constants})


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
            for leaf in leaves:
                if not isinstance(leaf, _PLAIN):
                    raise RouteError(f"it returns a {type(leaf).__name__}, which torch's pytree does not know")
            return tuple(leaves)

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
