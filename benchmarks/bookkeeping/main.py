"""Syngrad's own time a minibatch, and how long the busiest process is idle. See README.md."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from common import spread, write  # noqa: E402
from rows import Row, started, timed  # noqa: E402
from turns import busy  # noqa: E402

BAR = 0.03


def bookkeeping(runs: int, blocks: int) -> dict[str, Any]:
    """Pairs of a block and of the bare loop before it, over several runs."""
    bare: list[float] = []
    run: list[float] = []
    for _ in range(runs):
        with tempfile.TemporaryDirectory(prefix="syngrad-") as folder:
            spec = {
                "experiment": f"{HERE.parent / 'nets.py'}:top_heavy",
                "threads": 1,
                "blocks": blocks,
                "folder": folder,
            }
            started(HERE / "worker.py", spec)
            found = json.loads(Path(folder, "last.json").read_text())
        bare += found["bare_s"]
        run += found["run_s"]
    return {
        "bare_ms": spread([each * 1e3 for each in bare]),
        "run_ms": spread([each * 1e3 for each in run]),
        "ratio": spread([a / b for a, b in zip(run, bare, strict=True)]),
        "pairs": len(run),
    }


def idle(rounds: int, minibatches: int) -> dict[str, Any]:
    """The share of its time that the busiest process waits, and what all processes do with theirs."""
    row = Row("syngrad", 1, {"method": "synthetic"}, minibatches, min(20, minibatches))
    found = {}
    for name in ("balanced", "unbalanced"):
        each = [timed(row, name, 128) for _ in range(rounds)]
        found[name] = {"idle": spread([run["idle"] for run in each]), "shares": [run["shares"] for run in each]}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--blocks", type=int, default=12, help="pairs a run")
    parser.add_argument("--rounds", type=int, default=7, help="runs of each pipeline whose idle time is measured")
    parser.add_argument("--minibatches", type=int, default=400)
    parser.add_argument("--out", default=str(HERE / "results" / "bookkeeping.json"))
    options = parser.parse_args()
    document: dict[str, Any] = {"claim": "bookkeeping", "bar": BAR, "busy": busy()}
    print(f"about {(options.runs * 25 + options.rounds * 2 * 10) / 60:.0f} minutes; {document['busy']:.0%} is in use")
    document["bookkeeping"] = bookkeeping(options.runs, options.blocks)
    write(options.out, document)
    print({name: document["bookkeeping"][name] for name in ("bare_ms", "run_ms", "ratio")}, flush=True)
    document["idle"] = idle(options.rounds, options.minibatches)
    write(options.out, document)
    print({name: each["idle"] for name, each in document["idle"].items()})


if __name__ == "__main__":
    main()
