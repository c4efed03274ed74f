"""Copy and Repeat Copy: the longest output solved, with synthetic gradients and without, by window. See README.md."""

import statistics
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from lessons import main

WINDOWS = (2, 3, 4, 5, 8)
#: windows, which are updates, of each run
UPDATES = {"copy": 24_000, "repeat-copy": 16_000}
#: looked at so often
EPOCHS = 20
TASKS = tuple(UPDATES)
ROWS = ("bptt({})", "synthetic({})", "auxiliary({})")
#: what estimators see is the state alone here, as in the paper
BLIND = "synthetic({}):linear(context=False)"


def cells() -> list[tuple[str, str, str, dict[str, Any]]]:
    made = []
    for task in TASKS:
        for window in WINDOWS:
            budget = {"steps": window * UPDATES[task] // EPOCHS, "epochs": EPOCHS, "window": window}
            rows = [row.format(window) for row in (ROWS if task == "copy" else ROWS[:2])]
            made += [(f"{task} {window}", task, row, budget) for row in rows]
            if task == "copy" and window == 3:
                made.append((f"copy {window}", task, BLIND.format(window), budget))
    return made


def summary(medians: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """By task: of the medians over seeds, those with estimates as multiples of plain truncation at the same window."""
    found: dict[str, Any] = {}
    for task in TASKS:
        for kind in ("synthetic", "auxiliary"):
            ratios = {}
            for window in WINDOWS:
                rows = medians.get(f"{task} {window}", {})
                plain, ours = rows.get(f"bptt({window})"), rows.get(f"{kind}({window})")
                if plain and ours and plain["median"]:
                    ratios[str(window)] = ours["median"] / plain["median"]
            if ratios:
                found[f"{task}, {kind}"] = {
                    "ratios": ratios, "median": statistics.median(ratios.values()), "least": min(ratios.values())
                }  # fmt: skip
    return found


if __name__ == "__main__":
    main("copying", cells(), __doc__, summary)
