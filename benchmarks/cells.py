"""What tables are made of: a claim's results, and figures as they stand in a cell."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


class MissingError(Exception):
    """What a table is made of has not been measured yet."""


def load(claim: str, file: str | None = None) -> dict[str, Any]:
    """A claim's results, or another file of them; raises MissingError."""
    path = ROOT / "benchmarks" / claim / "results" / f"{file or claim}.json"
    if not path.exists():
        raise MissingError(str(path))
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def part(claim: str, *names: str) -> Any:
    """One part of a claim's results, by its keys; raises MissingError."""
    found: Any = load(claim)
    for name in names:
        if name not in found:
            raise MissingError(f"{claim}: {name}")
        found = found[name]
    return found


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def quartiles(spread: dict[str, float] | None, digits: int = 2, unit: str = "") -> str:
    """Median and quartiles."""
    if spread is None:
        return "–"
    low, middle, high = (f"{spread[name]:.{digits}f}" for name in ("q1", "median", "q3"))
    return f"{middle}{unit} [{low}, {high}]"


def mebibytes(count: float) -> str:
    return f"{count / 2**20:.1f} MiB"
