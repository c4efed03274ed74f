"""The third route's recording: torch.export runs the model on its example and records the operations themselves."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ShapesCollection

from syngrad.partition.inputs import Inputs
from syngrad.partition.names import has_hooks
from syngrad.partition.program import RouteError
from syngrad.partition.recording import Trace
from syngrad.partition.segment import owner_of


def record(model: nn.Module, inputs: Inputs) -> Trace:
    """Record the model's forward in its present mode, on the example, for batches of any size."""
    hooked = [name for name, module in model.named_modules() if has_hooks(module)]
    if hooked:
        raise RouteError(f"module {hooked[0]!r} has hooks, which an exported graph would lose")
    if len(inputs) == 0:
        raise RouteError("the model takes no inputs")
    try:
        return _recorded(model, inputs, every_dim=True)
    except RouteError:
        raise
    except Exception:
        # Sizes other than the batch may be constants to the model (they are compared, or decide a branch). If the batch
        # is such a constant too, this raises in its turn.
        return _recorded(model, inputs, every_dim=False)


def _recorded(model: nn.Module, inputs: Inputs, *, every_dim: bool) -> Trace:
    shapes = ShapesCollection()
    tensors = [leaf for leaf in inputs.leaves(inputs.args, inputs.kwargs) if isinstance(leaf, Tensor)]
    for tensor in tensors:
        if tensor.dim() > 0:
            dims = range(tensor.dim()) if every_dim else range(1)
            shapes[tensor] = {dim: Dim.AUTO for dim in dims}
    with _quiet():
        dynamic = shapes.dynamic_shapes(model, inputs.args, inputs.kwargs)
        program = torch.export.export(model, inputs.args, inputs.kwargs, dynamic_shapes=dynamic, strict=False)
        module = program.module()
    if not isinstance(module, fx.GraphModule) or program.call_spec.out_spec is None:
        raise RouteError("it returned no graph")
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    if len(placeholders) != len(inputs):
        raise RouteError(f"it made {len(placeholders)} inputs of {len(inputs)}")
    _check_batch(placeholders)
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
