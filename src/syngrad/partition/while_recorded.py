"""What is changed of a model while it is recorded, and taken out of the recording: what nobody reads.

A recording has no place for activation checkpointing, for arguments without names of their own, for outputs that are
never looked at; each is dealt with here, and the model is afterwards what it was.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import fx, nn

from syngrad.partition.cuts import RouteError
from syngrad.partition.example import Inputs, leave_out
from syngrad.partition.reads import changed, noted, written
from syngrad.partition.unread import names_of_leaves


@contextlib.contextmanager
def returning(model: nn.Module, unread: Sequence[int]) -> Iterator[set[str]]:
    """Inside it the model returns None for the leaves of its output at these positions; their names gather in a set."""
    names: set[str] = set()
    if not unread:
        yield names
        return
    forward = model.forward

    @functools.wraps(forward)
    def leaving_out(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        listed = names_of_leaves(output)
        names.update(listed[i] for i in unread if i < len(listed))
        return leave_out(output, unread)

    with _called(model, leaving_out):
        yield names


@contextlib.contextmanager
def unchanging(model: nn.Module) -> Iterator[None]:
    """Inside it the model's forward raises a RouteError where it changes plain values that it reads, as one that counts
    does: `torch.export` puts them back, and a recording would not change them.
    """
    forward, modules = model.forward, list(model.modules())

    @functools.wraps(forward)
    def watched(*args: Any, **kwargs: Any) -> Any:
        before = written(modules)
        with noted(modules) as read:
            result = forward(*args, **kwargs)
        if what := changed(before, written(modules), read):
            raise RouteError(f"its forward changes {what}, which a recording would not do again")
        return result

    with _called(model, watched):
        yield


@contextlib.contextmanager
def by_leaves(model: nn.Module, inputs: Inputs) -> Iterator[None]:
    """Inside it a model that takes `*args` or `**kwargs` is called with the leaves of its inputs, one by one, each of
    which has a name then.
    """
    if not inputs.variadic:
        yield
        return
    forward = model.forward

    def called(*leaves: Any) -> Any:
        args, kwargs = inputs.filled(leaves)
        return forward(*args, **kwargs)

    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    names = [inspect.Parameter(f"input_{i}", kind) for i in range(len(inputs))]
    called.__signature__ = inspect.Signature(names)  # type: ignore[attr-defined]
    with _called(model, called):
        yield


@contextlib.contextmanager
def _called(model: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Inside it this stands in the place of the model's forward."""
    own = vars(model).get("forward")
    vars(model)["forward"] = forward
    try:
        yield
    finally:
        if own is None:
            del vars(model)["forward"]
        else:
            vars(model)["forward"] = own


@contextlib.contextmanager
def checkpointing_refused() -> Iterator[None]:
    """Inside it activation checkpointing raises: a recording would run through it and keep every activation."""
    from torch.utils import checkpoint

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise RouteError("forward checkpoints activations, which a recording would lose")

    kept = checkpoint._checkpoint_without_reentrant_generator, checkpoint.CheckpointFunction.apply
    checkpoint._checkpoint_without_reentrant_generator = refuse
    checkpoint.CheckpointFunction.apply = refuse  # type: ignore[method-assign]
    try:
        yield
    finally:
        checkpoint._checkpoint_without_reentrant_generator = kept[0]
        del checkpoint.CheckpointFunction.apply


@contextlib.contextmanager
def checkpointing_noted() -> Iterator[list[bool]]:
    """Inside it every use of activation checkpointing is noted in a list."""
    from torch.utils import checkpoint

    found: list[bool] = []
    generator, apply = checkpoint._checkpoint_without_reentrant_generator, checkpoint.CheckpointFunction.apply

    def noted(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            found.append(True)
            return function(*args, **kwargs)

        return call

    checkpoint._checkpoint_without_reentrant_generator = noted(generator)
    checkpoint.CheckpointFunction.apply = noted(apply)  # type: ignore[method-assign]
    try:
        yield found
    finally:
        checkpoint._checkpoint_without_reentrant_generator = generator
        del checkpoint.CheckpointFunction.apply


def drop_dead(graph: fx.Graph, model: nn.Module) -> None:
    """Take out of a recording what nothing that is returned depends on, but for what it does beside: draw or count."""

    def does_more(node: fx.Node) -> bool:
        if node.op == "call_module":
            parts = list(model.get_submodule(str(node.target)).modules())
            return any(part._buffers or "dropout" in type(part).__name__.lower() for part in parts)
        return node.is_impure() or "dropout" in str(node.target) or _writes_somewhere(node)

    graph.eliminate_dead_code(does_more)


def _writes_somewhere(node: fx.Node) -> bool:
    name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    return bool(str(name).endswith("_") and not str(name).endswith("__")) or name in ("setitem", "iadd", "imul", "isub")
