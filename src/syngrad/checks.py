"""Numbers as users give them: Python's own, NumPy's, and of any other kind that counts as one. A bool is none."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any


def whole(value: Any) -> int | None:
    """A whole number as an int; None for anything else, 2.0 among it."""
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else None


def real(value: Any) -> int | float | None:
    """A number as an int or a float; None for anything else."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return None
    return int(value) if isinstance(value, Integral) else float(value)
