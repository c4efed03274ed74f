"""A timeline of all processes in the form that Perfetto and Chrome's tracing read."""

from __future__ import annotations

from typing import Any

#: what a process does while it trains, as it is called in its trace
WAITS = ("wait below", "wait above")
KINDS = ("work", "send", *WAITS)


def chrome(accounts: dict[tuple[str, int], list[dict[str, Any]]]) -> dict[str, Any]:
    """Trace events from the processes' spans (name, minibatch, begin, end in seconds): one track a process and row."""
    events: list[dict[str, Any]] = []
    for group, ((label, seed), processes) in enumerate(accounts.items()):
        spans = [span for process in processes for span in process["spans"]]
        start = min((span[2] for span in spans), default=0.0)
        events.append({"ph": "M", "name": "process_name", "pid": group, "args": {"name": f"{label}, seed {seed}"}})
        for process in processes:
            lo, hi = process["stages"]
            named = f"rank {process['rank']} on {process['host']}, stages {lo + 1} to {hi}"
            where = {"pid": group, "tid": process["rank"]}
            events.append({"ph": "M", "name": "thread_name", **where, "args": {"name": named}})
            for name, minibatch, begin, end in process["spans"]:
                at = {"ts": (begin - start) * 1e6, "dur": (end - begin) * 1e6}
                events.append({"ph": "X", "name": name, **where, **at, "args": {"minibatch": minibatch}})
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def training(process: dict[str, Any]) -> dict[str, float]:
    """Seconds of training by what they went into: evaluation and orders, such as the end of an epoch, are left out."""
    return {name: seconds for name, seconds in process["seconds"].items() if name in KINDS}


def idle(process: dict[str, Any]) -> float | None:
    """The share of its training in which a process waited for another one; None where it was never timed."""
    seconds = training(process)
    total = sum(seconds.values())
    return sum(seconds.get(name, 0.0) for name in WAITS) / total if total else None
