"""A minibatch taken apart: what goes into the model, what the loss is held against, and the scale of its gradients."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from syngrad.errors import ConfigError, SyngradError, TrainingError, first_line
from syngrad.tagged_json import PlainError, encode
from syngrad.targets import scalar
from syngrad.tree import batch_size, map_tensors, tensors, to_device

#: what stands for a tensor in the description of a minibatch
EXAMPLE = "shape and dtype"
TARGET_KEYS = ("target", "targets", "label", "labels", "y")

#: batch → (arguments of the model, keyword arguments, target of the loss)
Unpack = Callable[[Any], tuple[tuple[Any, ...], dict[str, Any], Any]]


@dataclass
class Batch:
    """What a minibatch holds.

    Args:
        args, kwargs: of the model; where another worker runs the previous stage, its message is the one argument.
        target: what the loss is held against; the context of every estimator.
        scale: ∂loss/∂(sum of sample losses).
        size: number of samples, for averages over minibatches.
        wanted: whether the worker that has sent the message asks for feedback.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    target: Any
    scale: float
    size: int
    wanted: bool = False


def unpack(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """The usual forms: (x, y), (x1, x2, …, y), or a mapping with one of the usual names for its target.

    A mapping's other entries are the model's keyword arguments.
    """
    if isinstance(batch, Mapping):
        found = [key for key in TARGET_KEYS if key in batch]
        if len(found) != 1:
            raise ConfigError(
                f"a batch with keys {sorted(map(str, batch))} has no single target among {', '.join(TARGET_KEYS)}; "
                "give unpack= a function of the batch that returns (args, kwargs, target)"
            )
        return (), {key: value for key, value in batch.items() if key != found[0]}, batch[found[0]]
    if isinstance(batch, tuple | list) and len(batch) >= 2:
        return tuple(batch[:-1]), {}, batch[-1]
    raise ConfigError(
        f"a batch must be (inputs…, target) or a mapping, got {type(batch).__name__}; "
        "give unpack= a function of the batch that returns (args, kwargs, target)"
    )


def keeping_target(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any], Any]:
    """As :func:`unpack` takes a mapping apart, with the target among the model's arguments too."""
    args, kwargs, target = unpack(batch)
    key = next(key for key in batch if key in TARGET_KEYS)
    return args, {**kwargs, key: target}, target


def read(batch: Any, unpack_with: Unpack, count: Callable[[Any], float] | None, device: torch.device | None) -> Batch:
    """The batch taken apart and on its device; scale = 1/count(target), 1/len(batch) without a count."""
    args, kwargs, target = unpack_with(batch)
    if device is not None:
        args, target = to_device(args, device), to_device(target, device)
        kwargs = to_device(kwargs, device) if kwargs else kwargs
    size = samples(args, kwargs, target)
    if size == 0:
        raise TrainingError("a batch of no samples cannot be trained on; use a loader that yields at least one")
    number = losses(target, size, count)
    if not number > 0:
        raise TrainingError(
            f"loss_count gave {number:g} for a batch of {size}; it must be the positive number of losses"
        )
    return Batch(args, kwargs, target, 1.0 / number, size)


def samples(args: Any, kwargs: Any, target: Any) -> int:
    """How many samples a minibatch has: the first dimension of its first tensor, unless the target says otherwise.

    It does where another input, or the second dimension of the first one, is as long as the target is: sequences with
    time in front, graphs that begin with their edges.
    """
    given = args[0] if args else None
    first = given.shape[0] if isinstance(given, Tensor) and given.dim() else batch_size((args, kwargs, target))
    if not isinstance(target, Tensor) or not target.dim() or target.shape[0] == first:
        return first
    inputs = [leaf for leaf in tensors((args, kwargs)) if leaf.dim()]
    n = target.shape[0]
    if any(leaf.shape[0] == n for leaf in inputs) or (inputs and inputs[0].dim() > 1 and inputs[0].shape[1] == n):
        return n
    return first


def losses(target: Any, size: int, count: Callable[[Any], float] | None) -> float:
    """The number of sample losses that a minibatch's loss averages over.

    Args:
        target: of the minibatch.
        size: the number of its samples.
        count: target → that number, where the user gives it; otherwise one a sample, or one an element of a target that
            has been flattened, the tokens of all samples in a row.
    """
    if count is not None:
        return float(count(target))
    return float(flat_losses(target, size) or size)


def flat_losses(target: Any, size: int) -> int:
    """The rows of a target that has some for every sample; 0 where it has not."""
    rows = target.shape[0] if isinstance(target, Tensor) and target.dim() else 0
    return rows if rows > size and rows % size == 0 else 0


def finite(
    loss: Any, batch: Batch, where: str, *, sent: bool = False, otherwise: Callable[[], str | None] | None = None
) -> Tensor:
    """The loss, checked to be a finite scalar.

    Args:
        loss: what the user's function gave for `batch`; where: "at minibatch 3", for the error.
        sent: whether the batch's input is what previous stages have sent, and no data.
        otherwise: says what else it may be, where the batch is finite.

    Raises:
        TrainingError: for any other loss, saying what it is and whose fault.
    """
    value = scalar(loss).item()
    if math.isfinite(value):
        checked: Tensor = loss
        return checked
    part = first_nonfinite(batch)
    cause = f"the batch's {part} holds NaN or infinity" if part else "lower the learning rate or check the loss"
    if part is None and otherwise is not None:
        cause = otherwise() or cause
    if part == "input" and sent:
        cause = "what the previous stages have sent holds NaN or infinity; check their data, or lower the learning rate"
    raise TrainingError(f"the loss is {value} {where}; {cause}")


def loss_error(error: Exception, output: Any) -> TrainingError:
    """What a loss has raised of this output, in one line."""
    hint = ""
    if isinstance(error, IndexError) and "out of bounds" in str(error):
        classes = output.shape[1] if isinstance(output, Tensor) and output.dim() > 1 else "own"
        hint = f"; a label is outside the model's {classes} outputs"
    return TrainingError(f"the loss raised {first_line(error)}{hint}")


def blame(output: Any, parameters: Iterable[Tensor]) -> str:
    """Why a loss is not finite where its data is: what was found of the output and of the weights that made it.

    Args:
        output: of the model.
        parameters: of the model.
    """
    if all(bool(t.isfinite().all()) for t in tensors(output) if t.is_floating_point()):
        return "the model's output is finite, so it is the loss that cannot take it; check the loss"
    if not all(bool(p.isfinite().all()) for p in parameters):
        return "weights of the model hold NaN or infinity; go back to a checkpoint, and lower the learning rate"
    return (
        "the model's output holds NaN or infinity though its weights are finite; check its forward, or lower the "
        "learning rate"
    )


def first_nonfinite(batch: Batch) -> str | None:
    """Which part of the batch holds a NaN or an infinity, for the message of an error."""
    for name, part in (("input", (batch.args, batch.kwargs)), ("target", batch.target)):
        for tensor in tensors(part):
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                return name
    return None


def batches(loader: Iterable[Any]) -> Iterator[Any]:
    """What the loader yields; what it raises becomes one clear line."""
    try:
        iterator = iter(loader)
        while True:
            try:
                batch = next(iterator)
            except StopIteration:
                return
            yield batch
    except SyngradError:
        raise
    except Exception as error:
        raise TrainingError(f"the loader raised {first_line(error)}") from error


def example_of(batch: Batch) -> Any:
    """A minibatch's structure, shapes and dtypes as plain data; None where it holds anything but tensors and that."""
    trees = [list(batch.args), dict(batch.kwargs), batch.target]
    shapes = map_tensors(lambda t: {EXAMPLE: [list(t.shape), t.dtype]}, trees)
    try:
        encode(shapes, {})
    except PlainError:
        return None
    return shapes


def example_batch(example: Any) -> Batch:
    """A minibatch of zeros of that description, to bind estimators with: they look at shapes and dtypes alone."""
    args, kwargs, target = _zeros(example)
    return Batch(tuple(args), kwargs, target, 1.0, 1)


def _zeros(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        if tree.keys() == {EXAMPLE}:
            shape, dtype = tree[EXAMPLE]
            return torch.zeros(shape, dtype=dtype)
        return {key: _zeros(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(map(_zeros, tree))
    return tree
