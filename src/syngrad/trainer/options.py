"""Checks of the Trainer's options: each refuses what cannot be used in one line that names it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from syngrad.checks import real, whole
from syngrad.errors import ConfigError, short
from syngrad.methods.policy import Policy


def check_callable(name: str, value: Any) -> None:
    """A function of (output, target)."""
    if not callable(value):
        raise ConfigError(f"{name} must be a function of (output, target), got {type(value).__name__}")


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """One of a few words."""
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_count(name: str, value: Any) -> int:
    """A whole number of at least 0."""
    count = whole(value)
    if count is None or count < 0:
        raise ConfigError(f"{name} must be a whole number of at least 0, got {value!r}")
    return count


def check_positive(name: str, value: Any) -> float:
    """A finite number above 0."""
    number = real(value)
    if number is None or not 0 < number < math.inf:
        raise ConfigError(f"{name} must be above 0, got {value!r}")
    return number


def check_names(name: str, value: Any) -> None:
    """A list of names or patterns."""
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(each, str) for each in value):
        raise ConfigError(f"{name} must be a list of names or patterns, got {value!r}; write {name}=['encoder.*']")


def check_unlocked(policy: Policy) -> None:
    """Predicted inputs go with what waits for nothing: `synthetic`, bootstrapped, from the first minibatch on."""
    asked = {
        f"method={str(policy.method)!r}": policy.method.name != "synthetic",
        f"feedback={policy.feedback!r}": policy.feedback != "bootstrapped",
        f"warmup={policy.warmup}": policy.warmup > 0,
    }
    for option, given in asked.items():
        if given:
            raise ConfigError(
                f"inputs= does not go with {option}, which waits for the true gradient; use method='synthetic' with "
                "bootstrapped feedback and no warm-up, or leave inputs= out"
            )


def check_seed(seed: Any) -> int:
    """A whole number that every generator takes."""
    number = whole(seed)
    if number is None or not 0 <= number < 2**31:
        raise ConfigError(f"seed must be a whole number from 0 to 2**31 − 1, got {seed!r}")
    return number


def named(thing: Any) -> Any:
    """A function, class or module by its name; names, and mappings of them, as they are."""
    if thing is None or isinstance(thing, str):
        return thing
    if isinstance(thing, Mapping):
        return {str(key): named(value) for key, value in thing.items()}
    return getattr(thing, "__qualname__", type(thing).__name__)


def device(device: str | torch.device | None) -> torch.device | None:
    """The device, None for where the model is; refused where it is not known or not there."""
    if device is None:
        return None
    try:
        made = torch.device(device)
    except (RuntimeError, TypeError):
        raise ConfigError(f"device {device!r} is not known to PyTorch; write 'cpu', 'cuda' or 'cuda:0'") from None
    if made.type == "meta":
        raise ConfigError("device 'meta' has no numbers to train with; use 'cpu' or 'cuda'")
    if made.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {device!r} was asked for, but no CUDA device is available; use 'cpu'")
    try:
        torch.empty(1, device=made)
    except Exception as error:  # each kind of device says in a way of its own that it is not there
        raise ConfigError(f"device {device!r} cannot be used here ({short(error)}); use 'cpu'") from error
    return made
