"""A timeline of all processes in the form that Perfetto and Chrome's tracing read."""

from __future__ import annotations

from typing import Any


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


def idle(process: dict[str, Any]) -> float | None:
    """The share of a process's time in which it waited for another one; None where it was never timed."""
    seconds = process["seconds"]
    total = sum(seconds.values())
    waited = sum(value for name, value in seconds.items() if name.startswith("wait"))
    return waited / total if total else None
