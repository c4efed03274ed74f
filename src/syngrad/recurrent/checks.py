"""Checks of what is given to the recurrent trainers: each refuses in one line that names it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from syngrad.checks import real, whole
from syngrad.errors import ConfigError, MessageError
from syngrad.tree import tensors


def check_least(name: str, value: Any, least: int) -> int:
    """A whole number of at least `least`."""
    count = whole(value)
    if count is None or count < least:
        raise ConfigError(f"{name} must be a whole number of at least {least}, got {value!r:.40}")
    return count


def check_factor(name: str, value: Any) -> float:
    """A finite number of at least 0."""
    number = real(value)
    if number is None or not 0 <= number < math.inf:
        raise ConfigError(f"{name} must be a finite number of at least 0, got {value!r:.40}")
    return float(number)


def check_rows(name: str, value: Any, n: int, device: torch.device, steps: int | None = None) -> Tensor | None:
    """None, or one truth value a sample, (n,); with `steps` also one a sample and step, (n, steps)."""
    if value is None:
        return None
    try:
        made = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError):
        raise MessageError(f"{name} must be a tensor of bool, one or more a sample, got {value!r:.40}") from None
    shapes = [(n,)] if steps is None else [(n,), (n, steps)]
    if made.dtype != torch.bool or tuple(made.shape) not in shapes:
        wished = " or ".join(str(shape) for shape in shapes)
        raise MessageError(f"{name} must be of bool and of shape {wished}, got {made.dtype} {tuple(made.shape)}")
    return made.to(device)


def check_time(name: str, tree: Any, time: int, steps: int) -> None:
    """Refuse tensors that do not have so many steps in dimension `time`."""
    for leaf in tensors(tree):
        if leaf.dim() <= time or leaf.shape[time] != steps:
            order = "(n, t, …)" if time else "(t, n, …)"
            raise MessageError(
                f"{name} must be {order} with {steps} steps as the inputs have, got {tuple(leaf.shape)}; repeat what "
                "holds for whole sequences at every step (labels that do not count are −100)"
            )
