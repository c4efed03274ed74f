"""The table of a comparison over several processes, and what follows from it in one sentence."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from syngrad.report.table import NONE, size
from syngrad.report.timeline import idle
from syngrad.results import BACKPROP, Row

HEADS = ("row", "metric", "samples/s", "× alone", "to target", "sent", "a process", "idle")


def table(rows: Sequence[Row], accounts: dict[tuple[str, int], list[dict[str, Any]]]) -> list[str]:
    """One line a row, means over its seeds. sent: bytes over the links; a process: the largest one's memory; idle: the
    share of its time that the busiest process waited for others.
    """
    grouped = _grouped(rows)
    alone = _mean([row.samples_per_s for row in grouped.get((BACKPROP, ""), []) if row.ok])
    lines = [HEADS]
    failures = []
    for (method, estimator), group in grouped.items():
        label = f"{method}:{estimator}" if estimator else method
        done = [row for row in group if row.ok]
        if not done:
            failures.append(f"{label}: {group[0].status}")
            continue
        rate = _mean([row.samples_per_s for row in done])
        share = [value for row in done if (value := _busiest(accounts.get((label, row.seed), []))) is not None]
        sent, most = _mean([row.bytes_sent for row in done]), _mean([row.peak_memory_bytes for row in done])
        lines.append(
            (
                "alone" if method == BACKPROP else label,
                _shown(_mean([row.value for row in done]), ".4f"),
                _shown(rate, ",.0f"),
                _shown(rate / alone if rate and alone else None, ".2f"),
                _shown(_mean([row.time_to_target_s for row in done]), ".3g"),
                size(sent),
                size(most),
                _shown(100 * statistics.fmean(share) if share else None, ".1f") + (" %" if share else ""),
            )
        )
    widths = [max(len(line[i]) for line in lines) for i in range(len(HEADS))]
    shown = ["  ".join(f"{cell:<{w}}" if i == 0 else f"{cell:>{w}}" for i, (cell, w) in enumerate(zip(line, widths, strict=True))) for line in lines]  # fmt: skip  # noqa: E501
    return [*shown, *failures]


def verdict(rows: Sequence[Row]) -> str:
    """Which row of several processes is fastest, which that updates every minibatch, and what it costs in the metric."""
    rates = {
        key: rate
        for key, group in _grouped(rows).items()
        if (rate := _mean([row.samples_per_s for row in group if row.ok])) is not None
    }
    several = {key: rate for key, rate in rates.items() if key[0] != BACKPROP and not key[0].startswith("alone")}
    if not several:
        return "No row over several processes has ended."
    ours = {key: rate for key, rate in several.items() if key[0] in ("synthetic", "mixed", "delayed", "zero")}
    theirs = {key: rate for key, rate in several.items() if key not in ours}
    said = []
    if ours and theirs:
        best, rival = max(ours, key=lambda k: ours[k]), max(theirs, key=lambda k: theirs[k])
        said.append(
            f"{_label(best)} trains {ours[best] / theirs[rival]:.2f} × as many samples a second as {_label(rival)}, the "
            "fastest of the others"
        )
        lock = {key: rate for key, rate in theirs.items() if "periodic" not in key[1]}
        if lock and "periodic" in rival[1]:
            exact = max(lock, key=lambda k: lock[k])
            said.append(
                f"{ours[best] / lock[exact]:.2f} × {_label(exact)}, the fastest that updates with every minibatch"
            )
    alone = rates.get((BACKPROP, ""))
    if alone and ours:
        best = max(ours, key=lambda k: ours[k])
        said.append(f"and {ours[best] / alone:.2f} × one process alone")
    return (", ".join(said) or "There is nothing to hold the rows against") + "."


def _grouped(rows: Sequence[Row]) -> dict[tuple[str, str], list[Row]]:
    grouped: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        grouped.setdefault((row.method, row.estimator), []).append(row)
    return grouped


def _label(key: tuple[str, str]) -> str:
    return ":".join(part for part in key if part)


def _busiest(processes: Sequence[dict[str, Any]]) -> float | None:
    shares = [share for process in processes if (share := idle(process)) is not None]
    return min(shares) if shares else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _shown(value: float | None, form: str) -> str:
    return NONE if value is None else f"{value:{form}}"
