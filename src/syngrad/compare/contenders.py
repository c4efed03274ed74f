"""The rows of a comparison as they are asked for, and who is told how far it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from syngrad.errors import ConfigError
from syngrad.estimators.registry import parse as parse_estimator
from syngrad.methods.policy import Method
from syngrad.methods.registry import split_row

ROWS = ("backprop", "synthetic", "synthetic:linear", "synthetic:local", "zero")


@dataclass(frozen=True, eq=False)
class Contender:
    """One row as it was asked for. spec: what the Trainer is given as estimator; estimator: its name, "" for none."""

    label: str
    method: Method
    spec: Any
    estimator: str


def contenders(rows: Sequence[str], estimator: Any = "default") -> list[Contender]:
    """The rows, checked before anything runs. estimator: of the rows that estimate and do not name one.

    Raises ConfigError for an unknown method or estimator, a row named twice, or none.
    """
    made: list[Contender] = []
    for text in rows:
        method, name = split_row(text)
        spec = estimator if method.estimates and ":" not in text else name
        if isinstance(spec, str) and method.estimates:
            parse_estimator(spec)
        shown = spec if isinstance(spec, str) else readable(getattr(spec, "__name__", type(spec).__name__))
        made.append(Contender(text.strip(), method, spec, shown))
    twice = [c.label for i, c in enumerate(made) if (c.method, c.spec) in [(d.method, d.spec) for d in made[:i]]]
    if twice:
        raise ConfigError(f"row {twice[0]!r} is there twice; name each row once")
    if not made:
        raise ConfigError(f"there are no rows to compare; name some, as in {','.join(ROWS)}")
    return made


def readable(name: str) -> str:
    """A function's name for tables and files; "custom" for one that has none of its own (a lambda, a partial)."""
    return "custom" if name.startswith("<") or name == "partial" else name


class Observer(Protocol):
    """Who is told how far a comparison is."""

    def begin(self, total: int) -> None:
        """There will be so many calls of `advance`."""

    def note(self, text: str) -> None:
        """What is being done."""

    def advance(self) -> None:
        """One piece of it is done."""


class Silent:
    """Tells nobody."""

    def begin(self, total: int) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def advance(self) -> None:
        """Nothing."""
