"""What `corrected` costs in throughput over two free-running processes, here and over a slow link. See README.md."""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from quick import parsed  # noqa: E402
from rows import Row, timed  # noqa: E402
from turns import Run, estimate, rates, take_turns  # noqa: E402

from syngrad.launch.emulated_link import emulated, parse_link  # noqa: E402

#: minibatches under way over the slow link, as in benchmarks/slow_link
DEPTH = 16
#: row → options of the Trainer
ROWS: dict[str, dict[str, Any]] = {
    "synthetic": {"method": "synthetic"},
    "corrected": {"method": "corrected"},
    "corrected(every=1)": {"method": "corrected(every=1)"},
    "synthetic:local": {"method": "synthetic", "estimator": "local"},
    "corrected:local": {"method": "corrected", "estimator": "local"},
    "corrected(every=1):local": {"method": "corrected(every=1)", "estimator": "local"},
    "delayed": {"method": "delayed"},
}
#: entry → (function in nets.py, batch size, minibatches timed, link or None, further options)
ENTRIES: dict[str, tuple[str, int, int, str | None, dict[str, Any]]] = {
    "wide, batch 128": ("wide", 128, 112, None, {}),
    "char-gpt": ("gpt", 16, 112, None, {}),
    "wide, 20ms,100mbit, bfloat16": (
        "wide",
        128,
        112,
        "20ms,100mbit",
        {"queue_depth": DEPTH, "message_dtype": "bfloat16"},
    ),
    "char-gpt, 20ms,100mbit, bfloat16": (
        "gpt",
        16,
        112,
        "20ms,100mbit",
        {"queue_depth": DEPTH, "message_dtype": "bfloat16"},
    ),
}


def run(name: str, rounds: int, path: Path, again: bool, quick: bool) -> None:
    experiment, batch_size, count, link, common = ENTRIES[name]
    timed_, before = (7, 2) if quick else (count, 25)
    rows = {row: Row("syngrad", 1, {**options, **common}, timed_, before) for row, options in ROWS.items()}

    def summary(runs: dict[str, list[Run]]) -> dict[str, Any]:
        return rates(runs, list(rows), ())

    settings = {"experiment": experiment, "batch_size": batch_size, "link": link}
    settings["rows"] = {row: each.plain() for row, each in rows.items()}
    with emulated(parse_link(link)) if link else nullcontext() as hosts:

        def call(row: str, earlier: list[Run]) -> Run:
            return timed(rows[row], experiment, batch_size, hosts)

        take_turns(path, "corrected over workers", name, settings, list(rows), rounds, call, summary, again)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", nargs="+", default=list(ENTRIES), choices=list(ENTRIES))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--again", action="store_true", help="make these entries' figures anew")
    options = parsed(parser)
    estimate([Row("syngrad", seconds=11)] * (len(options.entries) * len(ROWS)), options.rounds)
    for name in options.entries:
        path = options.out or HERE / "results" / "corrected_workers.json"
        run(name, options.rounds, path, options.again, options.quick)


if __name__ == "__main__":
    main()
