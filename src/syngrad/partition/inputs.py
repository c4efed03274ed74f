"""How the model is called: one shape of call is traced, and later calls are checked against it.

Tracing sees one set of arguments. Python decides on the rest (`if targets is None`), so a call with other arguments
than the traced ones must fail rather than compute something else.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from syngrad.errors import MessageError
from syngrad.partition.program import RouteError

Example = tuple[tuple[Any, ...], dict[str, Any]]

_CONSTANTS = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Inputs:
    """The arguments of the model as a flat list of leaves, the same list for every call."""

    def __init__(self, model: nn.Module, example: Example | None) -> None:
        self._signature = inspect.signature(model.forward)
        self._by_structure = example is not None
        self.args, self.kwargs = self._example(example)
        leaves, self._spec = pytree.tree_flatten((self.args, self.kwargs), is_leaf=self._is_leaf)
        self.constant = [self._by_structure and isinstance(leaf, _CONSTANTS) for leaf in leaves]
        self._values = [leaf if fixed else None for leaf, fixed in zip(leaves, self.constant, strict=True)]

    def __len__(self) -> int:
        return len(self.constant)

    def leaves(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        """The leaves of a call, checked to be a call like the one that was traced."""
        called = self._canonical(args, kwargs)
        try:
            leaves: list[Any] = self._spec.flatten_up_to(called)
        except ValueError as error:
            raise MessageError(
                f"the model was cut for a call like {self._call(self.args, self.kwargs)} and is called as "
                f"{self._call(*called)}: cut it with an example of that form ({str(error).splitlines()[0]})"
            ) from error
        for leaf, fixed, value in zip(leaves, self.constant, self._values, strict=True):
            if fixed and (type(leaf) is not type(value) or leaf != value):
                raise MessageError(
                    f"the model was cut with {value!r} among its inputs and now gets {_kind(leaf)}: "
                    "pass what varies as a tensor, or cut it with an example of that form"
                )
        return leaves

    def filled(self, values: Iterable[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of the traced call with other leaves; the constant ones stay."""
        leaves = [old if fixed else new for new, old, fixed in zip(values, self._values, self.constant, strict=True)]
        args, kwargs = pytree.tree_unflatten(leaves, self._spec)
        return args, kwargs

    def _example(self, example: Example | None) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if example is not None:
            return self._canonical(*example)
        parameters = self._signature.parameters.values()
        if any(parameter.kind in _VARIADIC for parameter in parameters):
            raise RouteError("forward takes *args or **kwargs, so it needs example=(args, kwargs)")
        needed = [parameter for parameter in parameters if parameter.default is inspect.Parameter.empty]
        keywords = {parameter.name: None for parameter in needed if parameter.kind is inspect.Parameter.KEYWORD_ONLY}
        return (None,) * (len(needed) - len(keywords)), keywords

    def _canonical(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """One spelling for all calls that mean the same: positional where possible, defaults left out."""
        bound = self._signature.bind(*args, **kwargs)
        for name, value in list(bound.arguments.items()):
            if value is self._signature.parameters[name].default:
                del bound.arguments[name]
        return bound.args, bound.kwargs

    def _is_leaf(self, value: Any) -> bool:
        # Without an example nothing is known of an argument's structure: it travels as one opaque value.
        return not self._by_structure and value is None

    def _call(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        given = [*map(_kind, args), *(f"{key}={_kind(value)}" for key, value in kwargs.items())]
        return f"model({', '.join(given)})"


def _kind(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {_kind(part)}" for key, part in value.items()) + "}"
    if isinstance(value, tuple | list):
        return "(" + ", ".join(map(_kind, value)) + ")"
    return type(value).__name__ if not isinstance(value, _CONSTANTS) else repr(value)
