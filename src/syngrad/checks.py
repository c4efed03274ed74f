"""Checks of what users give: each returns the value in Python's own kind, or refuses it in one line that names it.

A number is Python's own, NumPy's, or of any other kind that counts as one; a bool is none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any, TypeGuard

from syngrad.errors import ConfigError

#: the largest seed that every generator takes
LARGEST_SEED = 2**31 - 1


def whole(value: Any) -> int | None:
    """A whole number as an int; None for anything else, 2.0 among it."""
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None


def real(value: Any) -> int | float | None:
    """A number as an int or a float; None for anything else."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return None
    return int(value) if isinstance(value, Integral) else float(value)


def is_terminal(stream: Any) -> bool:
    """Whether a standard stream is a terminal; it may be closed, or anything that has `write` alone."""
    asks = getattr(stream, "isatty", None)
    try:
        return callable(asks) and bool(asks())
    except (OSError, ValueError):  # closed meanwhile
        return False


def check_whole(name: str, value: Any, least: int, most: int | None = None) -> int:
    """`value` if it is a whole number from `least` to `most`; otherwise a ConfigError that names it."""
    count = whole(value)
    if count is None or count < least or (most is not None and count > most):
        limit = "" if most is None else f" and at most {most}"
        raise ConfigError(f"{name} must be a whole number of at least {least}{limit}, got {value!r:.40}")
    return count


def check_positive(name: str, value: Any) -> float:
    """`value` if it is a finite number above 0; otherwise a ConfigError that names it."""
    number = real(value)
    if number is None or not 0 < number < math.inf:
        raise ConfigError(f"{name} must be above 0, got {value!r:.40}")
    return number


def check_not_negative(name: str, value: Any) -> float:
    """`value` if it is a finite number of at least 0; otherwise a ConfigError that names it."""
    number = real(value)
    if number is None or not 0 <= number < math.inf:
        raise ConfigError(f"{name} must be a finite number of at least 0, got {value!r:.40}")
    return float(number)


def check_choice(name: str, value: Any, choices: Sequence[str]) -> None:
    """Refuse what is not one of a few words."""
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_callable(name: str, value: Any, of: str = "") -> TypeGuard[Callable[..., Any]]:
    """Refuse what is no function; `of` says of what, as in "(output, target)"."""
    if not callable(value):
        raise ConfigError(f"{name} must be a function{f' of {of}' if of else ''}, got {type(value).__name__}")
    return True


def check_names(name: str, value: Any) -> None:
    """Refuse what is no list of names or patterns."""
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(each, str) for each in value):
        raise ConfigError(f"{name} must be a list of names or patterns, got {value!r}; write {name}=['encoder.*']")


def check_seed(seed: Any) -> int:
    """`seed` if it is a whole number that every generator takes; otherwise a ConfigError that names it."""
    number = whole(seed)
    if number is None or not 0 <= number <= LARGEST_SEED:
        raise ConfigError(f"seed must be a whole number from 0 to 2**31 − 1, got {seed!r}")
    return number
