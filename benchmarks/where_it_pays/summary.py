"""What a cell says: the best of Syngrad's rows over the best rival of any kind, and over those that are like it."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

#: averaged rarely: their updates see other minibatches than back-propagation's
RARE = ("ddp:periodic", "diloco")


def summary(entry: Mapping[str, Any], ours: Sequence[str]) -> dict[str, Any]:
    """Medians over rounds; None for what has not been run yet. `complete` once every row that is run has been."""
    rows = {kind: each for kind, each in entry["rows"].items() if "planned" in each}
    runs = {kind: each for kind, each in entry["runs"].items() if each}
    rates = {kind: statistics.median(run["samples_per_s"] for run in each) for kind, each in runs.items()}
    peaks = {kind: max(_peak(run) for run in each) for kind, each in runs.items()}
    mine, theirs = [kind for kind in rates if kind in ours], [kind for kind in rates if kind not in ours]
    asked = [kind for kind, each in rows.items() if "left_out" not in each]
    found: dict[str, Any] = {
        "complete": all(kind in rates or kind in entry["failed"] for kind in asked),
        "rates": rates,
        "planned": {kind: each["planned"]["samples_per_s"] for kind, each in rows.items()},
        "peaks": peaks,
    }
    if not mine or not theirs:
        return {**found, "complete": False}
    best, rival = max(mine, key=rates.__getitem__), max(theirs, key=rates.__getitem__)
    found |= {"best": best, "rival": rival, "ratio": rates[best] / rates[rival]}
    exact = [kind for kind in theirs if kind not in RARE]
    found["ratio_exact"] = rates[best] / max(rates[kind] for kind in exact) if exact else None
    small = [kind for kind in theirs if peaks[kind] <= peaks[best]]
    found["ratio_memory"] = rates[best] / max(rates[kind] for kind in small) if small else None
    # what a plan would have said: its own best of each side, whether that was run or not
    plan = found["planned"]
    found["planned_ratio"] = max(plan[kind] for kind in plan if kind in ours) / max(
        plan[kind] for kind in plan if kind not in ours
    )
    # zero bubble is planned as 1f1b, which says nothing of a plan
    found["planned_errors"] = {
        kind: plan[kind] / rate - 1 for kind, rate in rates.items() if not kind.startswith("zb1p")
    }
    return found


def _peak(run: Mapping[str, Any]) -> float:
    """Of several processes the largest; where the system does not tell, nothing."""
    peak = run.get("peak_memory_bytes") or [0]
    return float(max([each or 0 for each in peak] if isinstance(peak, list) else [peak]))
