"""The ways to train a recurrent net that are compared: rows as they are asked for.

    bptt(T)        truncated back-propagation over windows of T; of the experiment's own length where none is given
    synthetic(T)   the same, with an estimate of what the truncation cuts off
    auxiliary(T)   and with the auxiliary task beside it
    online(λ)      a step at a time, by online BP(λ)
    zero           a step at a time, and nothing comes back through time: the floor

Where an estimate is made a row may name the estimator: `synthetic(8):mlp(batch_norm=False)`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from syngrad.core.interface import check_spec
from syngrad.errors import ConfigError, unknown
from syngrad.recurrent.traceable import template
from syngrad.targets import check_lambda

KINDS = ("bptt", "synthetic", "auxiliary", "online", "zero")
WINDOWED = ("bptt", "synthetic", "auxiliary")


@dataclass(frozen=True)
class Way:
    """kind: of KINDS. window: T, 1 for those that have none. lam: λ of `online`. estimator: "" where none is made."""

    kind: str
    window: int = 1
    lam: float = 0.0
    estimator: Any = ""

    def __hash__(self) -> int:  # an estimator may be a mapping
        return hash((self.kind, self.window, self.lam))

    @property
    def method(self) -> str:
        """As a row of the results names it: `synthetic(8)`, `online(0.9)`, `zero`."""
        if self.kind in WINDOWED:
            return f"{self.kind}({self.window})"
        return f"online({self.lam:g})" if self.kind == "online" else self.kind

    @property
    def estimates(self) -> bool:
        """Whether gradients are estimated."""
        return self.kind not in ("bptt", "zero")


def parse(text: str, *, window: int, estimator: Any, online: Any, lam: float = 0.9) -> Way:
    """A row. window, estimator, online (the estimator of `online`), lam: where it does not say.

    Raises ConfigError for an unknown kind (the valid ones listed), a number that does not do, or an estimator that is
    not known, or has no place.
    """
    name, colon, named = text.partition(":")
    match = re.fullmatch(r"\s*([\w-]+)\s*(?:\(\s*([^()]*?)\s*\))?\s*", name)
    kind = match[1] if match else name.strip()
    if match is None or kind not in KINDS:
        raise unknown("method of a recurrent experiment", kind, KINDS)
    number, named = match[2], named.strip()
    if colon and kind in ("bptt", "zero"):
        raise ConfigError(f"row {text!r}: {kind} has no estimator; write {name.strip()}")
    if colon and not named:
        raise ConfigError(f"row {text!r} names no estimator; write {name.strip()}:linear")
    if kind == "online":
        spec = named or online
        template(spec)
        return Way(kind, 1, lam if number is None else _lam(text, number), spec)
    if kind == "zero":
        if number is not None:
            raise ConfigError(f"row {text!r}: zero takes no number; write bptt({number}) for a window of {number}")
        return Way(kind)
    steps = window if number is None else _whole(text, number)
    spec = (named or estimator) if kind != "bptt" else ""
    if kind != "bptt":
        check_spec(spec)
    return Way(kind, steps, 0.0, spec)


def ways(rows: Sequence[str], **otherwise: Any) -> list[Way]:
    """Several rows, see :func:`parse`. Raises ConfigError where one is there twice, or none is."""
    made = [parse(text, **otherwise) for text in rows]
    for k, way in enumerate(made):
        if way in made[:k]:
            raise ConfigError(f"row {rows[k]!r} is there twice; name each row once")
    if not made:
        raise ConfigError("there are no rows to compare; name some, as in bptt(8),synthetic(8)")
    return made


def _whole(text: str, number: str) -> int:
    if not number.isdecimal() or (steps := int(number)) < 1:
        raise ConfigError(f"row {text!r}: the window {number!r} must be a whole number of steps, at least 1")
    return steps


def _lam(text: str, number: str) -> float:
    try:
        return check_lambda(float(number))
    except ValueError:
        raise ConfigError(f"row {text!r}: {number!r} is not a number; write λ from 0 to 1") from None
