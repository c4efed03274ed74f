"""What a graph is told of one of its modules, and how that module is called, at one tick or at several at once.

Ticks of whole sequences are cut out only when a window is run, and then for the window at once: cut out tick by tick
and put together again, a window's inputs would be copied once more, for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from syngrad.checks import check_names, check_whole
from syngrad.core.interface import check_spec
from syngrad.errors import ConfigError, MessageError, SyngradError, TrainingError, first_line
from syngrad.optim.groups import OptimizerFactory
from syngrad.recurrent.core import Core
from syngrad.tree import map_tensors

#: (inputs, messages by sender) → what the module is called with
Join = Callable[[Any, dict[str, Tensor]], Any]


@dataclass(frozen=True)
class ModuleSpec:
    """What :meth:`Graph.add` was given for one module, checked.

    Raises:
        ConfigError: for what cannot be used; it names the module.
    """

    name: str
    module: nn.Module
    core: Core | None
    every: int
    window: int
    receives: tuple[str, ...]
    loss: Callable[[Any, Any], Tensor] | None
    loss_count: Callable[[Any], float] | None
    readout: nn.Module | None
    join: Join
    message: torch.Size | None
    classes: int | None
    estimator: Any
    optimizer: OptimizerFactory

    def __post_init__(self) -> None:
        name = self.name
        check_whole(f"every of {name!r}", self.every, 1)
        if check_whole(f"window of {name!r}", self.window, 1) > 1 and self.core is None:
            raise ConfigError(
                f"window={self.window} of {name!r}, which has no state to unroll; give recurrent=True if it returns "
                "(outputs, state), or leave window out"
            )
        if self.readout is not None and not isinstance(self.readout, nn.Module):
            raise ConfigError(f"readout of {name!r} must be a module, got {type(self.readout).__name__}")
        check_names(f"receives of {name!r}", self.receives)
        if len(set(self.receives)) < len(self.receives):
            raise ConfigError(f"receives of {name!r} names one module twice: {', '.join(self.receives)}")
        for option in ("loss", "loss_count", "join", "optimizer"):
            function = getattr(self, option)
            if function is not None and not callable(function):
                raise ConfigError(f"{option} of {name!r} must be a function, got {type(function).__name__}")
        check_spec(self.estimator)

    @property
    def parts(self) -> dict[str, nn.Module]:
        """The module, and its readout where it has one."""
        return {"module": self.module} | ({"readout": self.readout} if self.readout is not None else {})

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Of both."""
        return [p for part in self.parts.values() for p in part.parameters()]

    def joined(self, inputs: list[Any], messages: dict[str, Tensor]) -> Any:
        """What the module is called with at one tick, or at several at once where it is recurrent: time is in its place
        then, and messages are repeated along it.
        """
        core, given = self.core, inputs[0]
        if core is None:
            given = value(given)
        if given is None and not messages:
            raise ConfigError(
                f"module {self.name!r} listens to nobody and was given no inputs at a step at which it ticks"
            )
        if core is not None:
            if given is not None:
                given = stacked(inputs, core.time, self.name, "inputs")
            messages = {name: _repeated(message, core.time, len(inputs)) for name, message in messages.items()}
        try:
            return self.join(given, messages)
        except SyngradError as error:
            raise type(error)(f"at {self.name!r}: {error}") from error
        except Exception as error:
            raise TrainingError(f"join= of {self.name!r} raised {first_line(error)}") from error

    def call(self, inputs: list[Any], messages: dict[str, Tensor], state: Any) -> tuple[Any, Any]:
        """(output, state) of so many ticks. What goes wrong names the module."""
        joined = self.joined(inputs, messages)
        try:
            with naming(self.name):
                return self.core.run(joined, state) if self.core is not None else (self.module(joined), None)
        except SyngradError:
            raise
        except Exception as error:
            raise TrainingError(f"module {self.name!r} raised {first_line(error)}") from error

    def pick(self, output: Any, k: int) -> Any:
        """The output of the k-th tick of a call."""
        if self.core is None or not isinstance(output, Tensor):
            return output
        return output.select(self.core.time, k)

    def check_message(self, message: Any, shape: torch.Size | None, n: int) -> Tensor:
        """A message is one floating tensor, of the shape it had at first."""
        if not isinstance(message, Tensor) or not message.is_floating_point():
            got = f"a tensor of {message.dtype}" if isinstance(message, Tensor) else type(message).__name__
            raise MessageError(f"the output of {self.name!r} is its message and must be one floating tensor, got {got}")
        if message.dim() < 1 or len(message) != n:
            raise MessageError(f"the message of {self.name!r} is {tuple(message.shape)}, and there are {n} samples")
        if shape is not None and message.shape[1:] != shape:
            raise MessageError(
                f"the message of {self.name!r} changed shape: one sample was {tuple(shape)} when the graph was bound "
                f"(or message= said so) and is {tuple(message.shape[1:])} now"
            )
        return message


def core_of(name: str, module: Any, recurrent: bool | None) -> Core | None:
    """A recurrent module as such: PyTorch's own, or what is said to be one."""
    if not isinstance(name, str) or not name:
        raise ConfigError(f"a module's name is a text that is not empty, got {name!r:.40}")
    if not isinstance(module, nn.Module):
        raise ConfigError(f"{name!r} must be a module, got {type(module).__name__}")
    known = isinstance(module, nn.RNNBase | nn.RNNCellBase)
    return Core(module) if (known if recurrent is None else recurrent) else None


def message_shape(name: str, message: int | tuple[int, ...] | None) -> torch.Size | None:
    """The shape of one sample's message, where it is told."""
    if message is None:
        return None
    given = message if isinstance(message, tuple) else (message,)
    return torch.Size(check_whole(f"message of {name!r}", size, 1) for size in given)


def concatenated(inputs: Any, messages: dict[str, Tensor]) -> Any:
    """The usual way: inputs first, then the messages in the order of `receives`, along the last dimension."""
    parts = [*([inputs] if inputs is not None else []), *messages.values()]
    if len(parts) == 1:
        return parts[0]
    if any(not isinstance(part, Tensor) or part.shape[:-1] != parts[-1].shape[:-1] for part in parts):
        shapes = ", ".join(str(tuple(p.shape)) if isinstance(p, Tensor) else type(p).__name__ for p in parts)
        raise ConfigError(
            f"inputs and messages of {shapes} cannot be put side by side; give join= a function (inputs, messages) → "
            "what the module is called with"
        )
    return torch.cat(parts, -1)


@contextmanager
def naming(name: str) -> Iterator[None]:
    """What Syngrad refuses inside it names the module."""
    try:
        yield
    except SyngradError as error:
        raise type(error)(f"at {name!r}: {error}") from error


def _repeated(message: Tensor, time: int, count: int) -> Tensor:
    """The message at every one of `count` ticks, without a copy."""
    return message.unsqueeze(time).expand([count if k == time else -1 for k in range(message.dim() + 1)])


@dataclass(frozen=True, eq=False)
class TickView:
    """The index-th tick of sequences (n, ticks, …), or of a structure of these."""

    tree: Any
    index: int

    def value(self) -> Any:
        """(n, …), without a copy."""
        return map_tensors(partial(Tensor.select, dim=1, index=self.index), self.tree)


def value(given: Any) -> Any:
    """What was given at one tick, whichever way."""
    return given.value() if isinstance(given, TickView) else given


def stacked(values: list[Any], time: int, name: str, what: str) -> Any:
    """What was given at several ticks, with time in its place.

    Raises:
        MessageError: where structure or shape differ from tick to tick.
    """
    found = _span(values, time)
    if found is not None:
        return found
    values = [value(each) for each in values]
    if isinstance(values[0], Tensor) and all(isinstance(v, Tensor) and v.shape == values[0].shape for v in values):
        return torch.stack(values, time)
    if len(values) == 1:
        return map_tensors(lambda leaf: leaf.unsqueeze(time), values[0])
    flat = [torch.utils._pytree.tree_flatten(each) for each in values]
    if any(spec != flat[0][1] for _, spec in flat):
        raise MessageError(f"the {what} of {name!r} changed structure within a window; every tick's must be alike")
    try:
        leaves = [
            torch.stack(each, time) if isinstance(each[0], Tensor) else each[0]
            for each in zip(*(leaves for leaves, _ in flat), strict=True)
        ]
    except (RuntimeError, TypeError) as error:
        raise MessageError(f"the {what} of {name!r} are not alike within a window: {first_line(error)}") from error
    return torch.utils._pytree.tree_unflatten(leaves, flat[0][1])


def _span(values: list[Any], time: int) -> Any:
    """Ticks that follow each other in the same sequences, with time in its place and without a copy; else None."""
    first = values[0]
    if not isinstance(first, TickView):
        return None
    for k, each in enumerate(values):
        if not isinstance(each, TickView) or each.tree is not first.tree or each.index != first.index + k:
            return None

    def cut(leaf: Tensor) -> Tensor:
        part = leaf.narrow(1, first.index, len(values))
        return part if time == 1 else part.transpose(0, 1)

    return map_tensors(cut, first.tree)
