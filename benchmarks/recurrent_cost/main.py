"""What a window with a synthetic gradient costs: time, each row in a process of its own, and memory. See README.md."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from characters import ROWS, WINDOW, rows  # noqa: E402
from common import spread, write  # noqa: E402

REFERENCES = ("plain", "hand-written")
#: how glibc keeps what is freed: as it does by itself, or all of it
SETTINGS = {
    "freed memory kept": {"MALLOC_TRIM_THRESHOLD_": "1000000000", "MALLOC_MMAP_THRESHOLD_": "1000000000"},
    "glibc as it is": {},
}
LENGTHS = (1_000, 100_000)
#: turns before the first that counts
WARM_UP = 4
#: of one window: seconds by the clock, seconds of the processor, page faults
Turn = tuple[float, float, float]


class Row:
    """A process that takes a turn whenever it is asked to."""

    def __init__(self, name: str, environment: dict[str, str]) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / "turn.py"), name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        assert self.process.stdout is not None
        self.process.stdout.readline()  # one after the other, so that a machine others use is not flooded

    def turn(self) -> Turn:
        """Of one window the seconds by the clock and of the processor, and the page faults."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        clock, used, faults = map(float, self.process.stdout.readline().split())
        return clock, used, faults

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def turns(names: Sequence[str], count: int, environment: dict[str, str]) -> dict[str, list[Turn]]:
    """So many turns of every row, one after the other; each process is new."""
    processes = {name: Row(name, environment) for name in names}
    try:
        for _ in range(WARM_UP):
            for each in processes.values():
                each.turn()
        found: dict[str, list[Turn]] = {name: [] for name in names}
        for _ in range(count):
            for name, each in processes.items():
                found[name].append(each.turn())
        return found
    finally:
        for each in processes.values():
            each.end()


def compared(repeats: Sequence[dict[str, list[Turn]]]) -> dict[str, dict[str, Any]]:
    """Of every row the milliseconds of a window, its page faults, and its ratio to the references: the median of the
    paired ratios of each repeat, and of these medians the median and the quartiles. There are two ways to time: by the
    "clock", and by the time that the "processor" has worked.
    """
    rows: dict[str, dict[str, Any]] = {}
    for name in repeats[0]:
        rows[name] = {}
        for k, way in enumerate(("clock", "processor")):
            seconds = [turn[k] for repeat in repeats for turn in repeat[name]]
            ratios = {
                f"to {reference}": spread(
                    [
                        median(a[k] / b[k] for a, b in zip(repeat[name], repeat[reference], strict=True))
                        for repeat in repeats
                    ]
                )
                for reference in REFERENCES
                if reference in repeats[0]
            }
            rows[name][way] = {"ms": spread([1e3 * each for each in seconds]), **ratios}
        rows[name]["faults"] = spread([turn[2] for repeat in repeats for turn in repeat[name]])
    return rows


def memory(row: str, steps: int, how: str) -> dict[str, int]:
    """What `peak.py` finds in a fresh process."""
    with tempfile.TemporaryDirectory(prefix="syngrad-") as folder:
        out = Path(folder, "out.json")
        spec = json.dumps({"row": row, "steps": steps, "how": how})
        subprocess.run([sys.executable, str(HERE / "peak.py"), spec, str(out)], check=True)
        found: dict[str, int] = json.loads(out.read_text())
        return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", default=["time", "memory"], choices=["time", "memory"])
    parser.add_argument("--turns", type=int, default=40, help="of each row in a repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--settings", nargs="+", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--rows", nargs="+", default=list(rows()), choices=list(rows()))
    parser.add_argument("--lengths", nargs="+", type=int, default=list(LENGTHS))
    parser.add_argument("--how", nargs="+", default=["stream", "run"], choices=["stream", "run"])
    parser.add_argument("--label", default="time", help="where in the results the times go")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "recurrent_cost.json")
    options = parser.parse_args()
    results = json.loads(options.out.read_text())["results"] if options.out.exists() else {}

    def note() -> None:
        write(options.out, {"claim": "cost of a boundary", "window": WINDOW, "threads": 1, "results": results})

    for setting in options.settings if "time" in options.parts else ():
        repeats = [turns(options.rows, options.turns, SETTINGS[setting]) for _ in range(options.repeats)]
        found = {"repeats": options.repeats, "turns": options.turns, "rows": compared(repeats)}
        results.setdefault(options.label, {})[setting] = found
        note()
        for name, row in found["rows"].items():
            for way, figures in ((way, row[way]) for way in ("clock", "processor")):
                ratios = {key: f"{value['median']:.3f}" for key, value in figures.items() if key != "ms"}
                print(f"{setting}: {name:30s} {way:9s} {figures['ms']['median']:7.2f} ms  {ratios}", flush=True)
    for steps in options.lengths if "memory" in options.parts else ():
        for how in options.how:
            for row in (row for row in options.rows if row in ROWS):
                results.setdefault("memory", {}).setdefault(f"{how} {steps}", {})[row] = memory(row, steps, how)
                note()
                print(f"{how} of {steps} steps: {row}: {results['memory'][f'{how} {steps}'][row]}", flush=True)


if __name__ == "__main__":
    main()
