"""The example of one call: how the model is called, whether it runs so, and whether its segments compute the same.

Tracing sees one set of arguments, and Python decides on the rest (`if targets is None`), so a call with other arguments
than the traced ones must fail rather than compute something else. A recording also keeps every decision that plain
Python took (`isinstance(x, Tensor)`, a list that grew). Those are rare and silent, so the segments are run once and
must give what the model gives.
"""

from __future__ import annotations

import contextlib
import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from syngrad.errors import MessageError, SyngradError, TrainingError, first_line
from syngrad.partition.cuts import RouteError
from syngrad.partition.segment import Segment, compose
from syngrad.partition.unread import without_stand_ins
from syngrad.preserve_state import preserve_state
from syngrad.tree import map_tensors, tensors

T = TypeVar("T")
Example = tuple[tuple[Any, ...], dict[str, Any]]

_CONSTANTS = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)
_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class Inputs:
    """The arguments of the model as a flat list of leaves, the same list for every call."""

    def __init__(self, model: nn.Module, example: Example | None) -> None:
        self._signature = inspect.signature(model.forward)
        #: whether forward takes `*args` or `**kwargs`
        self.variadic = any(each.kind in _VARIADIC for each in self._signature.parameters.values())
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


class UnitError(TrainingError):
    """A unit of the model raised while it was measured; where the model was traced, another route may still do."""


def without_data(parts: Sequence[nn.Module], example: Any, run: Callable[..., T], *, bare: bool = False) -> T:
    """`run`, given the example as tensors without data: for what shapes and graphs alone tell.

    A model that cannot run on such tensors (it looks at values) is run for real, in evaluation mode. Either way
    generators, buffers and plain attributes are afterwards what they were, so that a cache filled on the way is filled
    again, with numbers, by the first minibatch. Hooks of the model do run, as its output may depend on them: they see
    tensors without data, and what they do outside the model stays done.

    Args:
        parts: whose state is put back.
        example: what `run` is called with, element by element: any nesting of tensors.
        bare: whether tensors without a device will do, too, which cost a fifth; parameters and buffers of `parts` then
            have none either.

    Raises:
        TrainingError: where the model raises on the real example too.
    """
    if bare:
        try:
            with preserve_state(*parts), on_meta(*parts), torch.enable_grad(), _unlogged():
                return run(*map_tensors(lambda leaf: leaf.to("meta"), example))
        except Exception:  # it makes tensors on a device of its own, or looks at values
            return without_data(parts, example, run)
    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        with preserve_state(*parts):
            try:
                with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.enable_grad(), _unlogged():
                    return run(*map_tensors(mode.from_tensor, example))
            except Exception:  # whatever such tensors cannot do; what is wrong with the model itself raises again there
                return _for_real(parts, example, run)
    finally:
        torch.clear_autocast_cache()  # of casts made from tensors without data


@contextlib.contextmanager
def _unlogged() -> Iterator[None]:
    """Keeps PyTorch from logging pages about what fails on such tensors: it is raised, or found out with data."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


@contextlib.contextmanager
def on_meta(*parts: nn.Module) -> Iterator[dict[int, int]]:
    """Inside it all parameters and buffers have neither data nor a device, which is the fastest way to see a graph.

    Yields:
        The ids of those that stand there → the ids of the model's own.
    """
    made: dict[int, Tensor] = {}
    tables = [
        (table, dict(table))
        for part in parts
        for module in part.modules()
        for table in (module._parameters, module._buffers)
        if table
    ]
    try:
        for table, own in tables:
            for name, tensor in own.items():
                if tensor is not None and id(tensor) not in made:
                    empty = torch.empty_like(tensor, device="meta")
                    made[id(tensor)] = (
                        nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
                    )
                if tensor is not None:
                    table[name] = made[id(tensor)]  # type: ignore[assignment]
        yield {id(stands): own for own, stands in made.items()}
    finally:
        for table, own in tables:
            table.clear()
            table.update(own)  # type: ignore[arg-type]


def _for_real(parts: Sequence[nn.Module], example: Any, run: Callable[..., T]) -> T:
    modes = [(module, module.training) for part in parts for module in part.modules()]
    try:
        for module, _ in modes:
            module.training = False
        with torch.enable_grad():
            return run(*map_tensors(torch.clone, example))
    except SyngradError:
        raise
    except Exception as error:
        # alone: what tensors without data could not do before is nobody's affair
        raise TrainingError(f"the model raised on the first batch: {first_line(error)}") from None
    finally:
        for module, training in modes:
            module.training = training


def check_runs(model: nn.Module, example: Example) -> None:
    """Raise TrainingError if the model as it is, uncut, raises on the example in training."""
    if not _have_numbers(model, example):
        return
    try:
        with preserve_state(model), torch.enable_grad():  # it may differentiate
            if not model.training:
                model.train()
            args, kwargs = map_tensors(torch.clone, example)
            model(*args, **kwargs)
    except SyngradError:
        raise
    except Exception as error:
        raise TrainingError(f"the model raised {said(error, example)}") from None


def said(error: Exception, example: Any) -> str:
    """The exception in one line, and what to give instead. Batch norm refuses a batch of one, often an epoch's last."""
    shapes = [tuple(leaf.shape) for leaf in tensors(example)]
    if isinstance(error, ValueError) and "more than 1 value per channel" in str(error):
        instead = "batch norm cannot train on a batch of one: use drop_last=True or another batch size"
    else:
        instead = "give it a batch that it can be called with, or mend its forward"
    of = f" on a batch of shape {', '.join(map(str, shapes[:4]))}" if shapes else ""
    return f"{first_line(error)}{of}; {instead}"


def _have_numbers(model: nn.Module, example: Example) -> bool:
    """Whether there is anything to compute with: nothing is on the meta device, nor fake."""
    found = [*tensors(example), *model.parameters()]
    return not any(tensor.is_meta or "FakeTensor" in type(tensor).__name__ for tensor in found)


def leave_out(output: Any, unread: Sequence[int]) -> Any:
    """The output with None for the leaves at these positions; as it is where it has no such leaves."""
    if not unread:
        return output
    flat, spec = pytree.tree_flatten(output)
    if unread[-1] >= len(flat):
        return output
    return pytree.tree_unflatten([None if i in unread else leaf for i, leaf in enumerate(flat)], spec)


def verify(model: nn.Module, segments: Sequence[Segment], example: Example, unread: Sequence[int] = ()) -> None:
    """Raise :class:`RouteError` unless the segments compute what the model computes, in both modes."""
    if not _have_numbers(model, example):
        return
    for training in (True, False):
        whole = _outcome(model, training, example, lambda args, kwargs: leave_out(model(*args, **kwargs), unread))
        parts = _outcome(
            model, training, example, lambda args, kwargs: without_stand_ins(compose(segments, args, kwargs))
        )
        if _same(whole, parts):
            continue
        again = _outcome(model, training, example, lambda args, kwargs: leave_out(model(*args, **kwargs), unread))
        if _same(whole, again):  # else the model itself gives other numbers every time, and nothing can be told
            mode = "training" if training else "evaluation"
            raise RouteError(f"the recorded graph gives other numbers than the model in {mode}")


def _outcome(model: nn.Module, training: bool, example: Example, run: Callable[[Any, Any], Any]) -> Any:
    """Output, whether gradients flow into it, and the buffers afterwards."""
    with preserve_state(model), torch.enable_grad():
        if training != model.training:
            model.train(training)
        torch.manual_seed(0)
        output = run(*map_tensors(lambda leaf: leaf.detach().clone(), example))
        leaves = pytree.tree_leaves(output)
        flows = [isinstance(leaf, Tensor) and leaf.requires_grad for leaf in leaves]
        detached = [leaf.detach().clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        return type(output), detached, flows, [buffer.clone() for buffer in model.buffers()]


def _same(one: Any, other: Any) -> bool:
    if one[0] is not other[0] or one[2] != other[2] or len(one[1]) != len(other[1]):
        return False
    return all(_equal(a, b) for a, b in zip([*one[1], *one[3]], [*other[1], *other[3]], strict=True))


def _equal(one: Any, other: Any) -> bool:
    if not isinstance(one, Tensor) or not isinstance(other, Tensor):
        return isinstance(one, Tensor) == isinstance(other, Tensor) and bool(one == other)
    if one.shape != other.shape or one.dtype != other.dtype:
        return False
    if not one.is_floating_point():
        return torch.equal(one, other)
    # Kernels may sum in another order; a wrong decision in the graph is wrong by more than that.
    tolerance = 1e3 * torch.finfo(one.dtype).eps
    return torch.allclose(one, other, rtol=tolerance, atol=tolerance, equal_nan=True)
