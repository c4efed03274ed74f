"""Rows that take turns, several rounds of them, written down after every run so that a stop loses nothing.

A results file holds one entry a configuration:

    {"environment": …, "entries": {name: {"settings": …, "rounds": n, "busy": …, "runs": {row: [one a round]},
                                          "summary": …}}}

Running a configuration goes on where its entry stands, if its settings are the same, and touches no other entry.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from common import spread, write

from syngrad.errors import SyngradError
from syngrad.results import environment

Run = dict[str, Any]
#: (row, what earlier rounds gave for it) → one more
Call = Callable[[str, list[Run]], Run]
Summary = Callable[[dict[str, list[Run]]], dict[str, Any]]
#: above this share of busy cores before the start the figures are not worth much
QUIET = 0.1


def busy(seconds: float = 1.0) -> float:
    """The share of all cores' time that others use, or that the host of this machine takes, right now."""

    def ticks() -> tuple[int, int]:
        values = [int(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
        return sum(values), values[3] + values[4]

    before = ticks()
    time.sleep(seconds)
    total, waiting = (b - a for a, b in zip(before, ticks(), strict=True))
    return 1 - waiting / total if total else 0.0


def entries(path: Path) -> dict[str, Any]:
    """What the file holds by now."""
    return json.loads(path.read_text())["entries"] if path.exists() else {}


def put(path: Path, claim: str, name: str, entry: dict[str, Any]) -> None:
    """Set one entry."""
    write(path, {"claim": claim, "entries": {**entries(path), name: entry}})


def take_turns(
    path: Path,
    claim: str,
    name: str,
    settings: dict[str, Any],
    rows: Sequence[str],
    rounds: int,
    call: Call,
    summary: Summary,
    again: bool = False,
) -> None:
    """Run every row once a round, each round beginning with another row, until there are so many rounds of each."""
    known = entries(path).get(name)
    fresh = again or known is None or known["settings"] != settings
    entry: dict[str, Any] = {"runs": {}} if fresh or known is None else known
    runs: dict[str, list[Run]] = {row: entry["runs"].get(row, []) for row in rows}
    entry["runs"] = runs
    wanted = [row for row in rows if len(runs[row]) < rounds]
    if not wanted:
        print(f"{name}: all {rounds} rounds are there; --again makes them anew", flush=True)
        return
    used = busy()
    if used > QUIET:
        print(f"warning: {used:.0%} of this machine is in use by others; these figures will say little", flush=True)
    entry |= {"settings": settings, "busy": max(used, entry.get("busy", 0.0)), "rounds": rounds}
    entry["environment"] = environment(threads=torch.get_num_threads())
    for turn in range(rounds):
        for k in range(len(rows)):
            row = rows[(turn + k) % len(rows)]
            if len(runs[row]) > turn:
                continue
            begin = time.perf_counter()
            try:
                run = call(row, runs[row])
            except SyngradError as error:
                print(f"{name}, {row}: failed: {error}", flush=True)
                continue
            run["took_s"] = time.perf_counter() - begin
            runs[row].append(run)
            put(path, claim, name, {**entry, "summary": summary(runs)})
            rate = f"{run['samples_per_s']:8.0f} samples/s" if "samples_per_s" in run else ""
            print(f"{name}, round {turn + 1} of {rounds}: {row:20s} {rate}  took {run['took_s']:.1f} s", flush=True)


def estimate(rows: Sequence[Any], rounds: int) -> None:
    """Say how long so many rounds of these rows will take, those that are there already among them."""
    print(f"about {rounds * sum(row.seconds for row in rows) / 60:.0f} minutes on a quiet machine", flush=True)


def rates(runs: dict[str, list[Run]], ours: Sequence[str], best_of: Sequence[str]) -> dict[str, Any]:
    """Samples a second of every row, and of ours the ratio to every row and to the best of some, round by round.

    The best is that of each round: whichever was lucky then.
    """
    found: dict[str, Any] = {"rows": {}, "ratios": {}}
    for row, each in runs.items():
        if each:
            found["rows"][row] = {"samples_per_s": spread([run["samples_per_s"] for run in each])}
            for name in ("idle", "bytes_a_minibatch", "staleness", "microbatches", "peak_memory_bytes"):
                values = [_number(run[name]) for run in each if run.get(name) is not None]
                if values:
                    found["rows"][row][name] = spread(values)
    speeds = {row: [run["samples_per_s"] for run in each] for row, each in runs.items()}
    rivals = [speeds[row] for row in best_of if speeds.get(row)]
    if rivals:
        speeds["best of them"] = [max(each) for each in zip(*rivals, strict=False)]
    for row in ours:
        own = speeds.get(row, [])
        ratios = {
            other: [a / b for a, b in zip(own, values, strict=False)]
            for other, values in speeds.items()
            if other != row
        }
        found["ratios"][row] = {other: spread(values) for other, values in ratios.items() if values}
    return found


def _number(value: Any) -> float:
    """Of several processes the largest."""
    return float(max(value) if isinstance(value, list) else value)
