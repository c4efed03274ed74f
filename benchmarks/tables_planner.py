"""The table of what plans said beside what was measured."""

from __future__ import annotations

import statistics
from collections.abc import Callable

from cells import load, table


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def planner() -> str:
    entries = {name: entry for name, entry in load("planner")["entries"].items() if entry.get("summary")}
    rows = []
    for name, entry in entries.items():
        found = entry["summary"]
        memory = [abs(each) for each in found["memory"].values()]
        rows.append(
            [
                name,
                str(len(found["errors"])),
                f"{_percent(found['median'])}, {_percent(found['worst'])}",
                _percent(max(memory)) if memory else "–",
                found["chosen"],
                found["fastest"],
                _percent(found["chosen_over_fastest"]),
                _percent(entry["busy"]),
            ]
        )
    errors = [abs(error) for entry in entries.values() for error in entry["summary"]["errors"].values()]
    chosen = [entry["summary"]["chosen_over_fastest"] for entry in entries.values()]
    right = sum(each >= 0.95 for each in chosen)
    both = f"{_percent(statistics.median(errors))}, {_percent(max(errors))}"
    rows.append(["all", str(len(errors)), both, "", f"right in {right} of {len(chosen)}", "", "", ""])
    head = ["", "rows", "throughput off by: median, worst", "memory, worst", "chosen", "fastest", "chosen over fastest"]
    return table([*head, "used by others"], rows)


def plan_times() -> str:
    """Seconds that a plan takes, and what of it; and a simulation."""
    rows = []
    for name, entry in load("planner", "plan_times")["entries"].items():
        taken = dict(entry["runs"])
        whole = taken.pop("all")
        of_it = ", ".join(f"{part} {seconds:.1f}" for part, seconds in taken.items())
        rows.append([name, f"{whole:.1f} s", f"{entry['settings']['bar_s']:.0f} s", of_it])
    return table(["", "taken", "bar", "of it, seconds"], rows)


TABLES: dict[str, Callable[[], str]] = {"planner": planner, "plan_times": plan_times}
