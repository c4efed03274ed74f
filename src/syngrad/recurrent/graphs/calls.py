"""How a module is called at one tick, or at several at once, and what its output has to be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from syngrad.errors import ConfigError, MessageError, SyngradError, TrainingError, first_line
from syngrad.recurrent.graphs.plan import Plan
from syngrad.recurrent.graphs.sequences import stacked, value


def join(plan: Plan, inputs: list[Any], messages: dict[str, Tensor]) -> Any:
    """What the module is called with at one tick, or at several at once where it is recurrent: time is in its place
    then, and messages are repeated along it.
    """
    core, given = plan.core, inputs[0]
    if core is None:
        given = value(given)
    if given is None and not messages:
        raise ConfigError(f"module {plan.name!r} listens to nobody and was given no inputs at a step at which it ticks")
    if core is not None:
        if given is not None:
            given = stacked(inputs, core.time, plan.name, "inputs")
        messages = {name: repeated(message, core.time, len(inputs)) for name, message in messages.items()}
    try:
        return plan.join(given, messages)
    except SyngradError as error:
        raise type(error)(f"at {plan.name!r}: {error}") from error
    except Exception as error:
        raise TrainingError(f"join= of {plan.name!r} raised {first_line(error)}") from error


def call(plan: Plan, inputs: list[Any], messages: dict[str, Tensor], state: Any) -> tuple[Any, Any]:
    """(output, state) of so many ticks. What goes wrong names the module."""
    joined = join(plan, inputs, messages)
    try:
        with at(plan.name):
            return plan.core.run(joined, state) if plan.core is not None else (plan.module(joined), None)
    except SyngradError:
        raise
    except Exception as error:
        raise TrainingError(f"module {plan.name!r} raised {first_line(error)}") from error


@contextmanager
def at(name: str) -> Iterator[None]:
    """What Syngrad refuses inside it names the module."""
    try:
        yield
    except SyngradError as error:
        raise type(error)(f"at {name!r}: {error}") from error


def repeated(message: Tensor, time: int, count: int) -> Tensor:
    """The same at every one of `count` ticks, without a copy."""
    return message.unsqueeze(time).expand([count if k == time else -1 for k in range(message.dim() + 1)])


def pick(plan: Plan, output: Any, k: int) -> Any:
    """The output of the k-th tick of a call."""
    if plan.core is None or not isinstance(output, Tensor):
        return output
    return output.select(plan.core.time, k)


def check_message(name: str, message: Any, shape: torch.Size | None, n: int) -> Tensor:
    """A message is one floating tensor, of the shape it had at first."""
    if not isinstance(message, Tensor) or not message.is_floating_point():
        got = f"a tensor of {message.dtype}" if isinstance(message, Tensor) else type(message).__name__
        raise MessageError(f"the output of {name!r} is its message and must be one floating tensor, got {got}")
    if message.dim() < 1 or len(message) != n:
        raise MessageError(f"the message of {name!r} is {tuple(message.shape)}, and there are {n} samples")
    if shape is not None and message.shape[1:] != shape:
        raise MessageError(
            f"the message of {name!r} changed shape: one sample was {tuple(shape)} when the graph was bound (or "
            f"message= said so) and is {tuple(message.shape[1:])} now"
        )
    return message
