"""What a graph is told of one of its modules, checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from syngrad.checks import check_names
from syngrad.core.interface import check_spec
from syngrad.errors import ConfigError
from syngrad.optim.groups import OptimizerFactory
from syngrad.recurrent.checks import check_least
from syngrad.recurrent.core import Core

#: (inputs, messages by sender) → what the module is called with
Join = Callable[[Any, dict[str, Tensor]], Any]


@dataclass(frozen=True)
class Plan:
    """What :meth:`Graph.add` was given for one module, checked."""

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


def core_of(name: str, module: Any, recurrent: bool | None) -> Core | None:
    """A recurrent module as such: PyTorch's own, or what is said to be one."""
    if not isinstance(name, str) or not name:
        raise ConfigError(f"a module's name is a text that is not empty, got {name!r:.40}")
    if not isinstance(module, nn.Module):
        raise ConfigError(f"{name!r} must be a module, got {type(module).__name__}")
    known = isinstance(module, nn.RNNBase | nn.RNNCellBase)
    return Core(module) if (known if recurrent is None else recurrent) else None


def sizes(name: str, message: int | tuple[int, ...] | None) -> torch.Size | None:
    """The shape of one sample's message, where it is told."""
    if message is None:
        return None
    given = message if isinstance(message, tuple) else (message,)
    return torch.Size(check_least(f"message of {name!r}", size, 1) for size in given)


def check(plan: Plan) -> None:
    """Refuse what cannot be used, in one line that names the module."""
    name = plan.name
    check_least(f"every of {name!r}", plan.every, 1)
    if check_least(f"window of {name!r}", plan.window, 1) > 1 and plan.core is None:
        raise ConfigError(
            f"window={plan.window} of {name!r}, which has no state to unroll; give recurrent=True if it returns "
            "(outputs, state), or leave window out"
        )
    if plan.readout is not None and not isinstance(plan.readout, nn.Module):
        raise ConfigError(f"readout of {name!r} must be a module, got {type(plan.readout).__name__}")
    check_names(f"receives of {name!r}", plan.receives)
    if len(set(plan.receives)) < len(plan.receives):
        raise ConfigError(f"receives of {name!r} names one module twice: {', '.join(plan.receives)}")
    for option in ("loss", "loss_count", "join", "optimizer"):
        function = getattr(plan, option)
        if function is not None and not callable(function):
            raise ConfigError(f"{option} of {name!r} must be a function, got {type(function).__name__}")
    check_spec(plan.estimator)


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
