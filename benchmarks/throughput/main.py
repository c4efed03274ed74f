"""Samples a second of every way to use two cores, rows taking turns; four configurations. See README.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from quick import parsed  # noqa: E402
from rows import Row, parts, timed  # noqa: E402
from turns import Run, estimate, rates, take_turns  # noqa: E402

#: name → (function in nets.py, batch size, milliseconds of a step by the plain loop with one thread, about,
#: seconds that a run is timed)
CONFIGURATIONS: dict[str, tuple[str, int, float, float]] = {
    "wide, batch 128": ("wide", 128, 62, 4),
    "char-gpt": ("gpt", 16, 55, 4),
    "wide, batch 32": ("wide", 32, 22, 3),
    "narrow, batch 128": ("narrow", 128, 7, 3),
}
#: row → (kind, threads, options, about how long its step is against the plain loop's, seconds to start it)
ROWS: dict[str, tuple[str, int, dict[str, Any], float, float]] = {
    "plain, 1 thread": ("plain", 1, {}, 1.0, 2.5),
    "plain, 2 threads": ("plain", 2, {}, 0.55, 2.5),
    "ddp": ("ddp", 1, {}, 1.1, 3.0),
    "gpipe": ("gpipe", 1, {}, 1.0, 4.0),
    "1f1b": ("1f1b", 1, {}, 1.0, 4.0),
    "delayed, queue_depth=8": ("syngrad", 1, {"method": "delayed", "queue_depth": 8}, 0.6, 4.5),
    "synthetic:local": ("syngrad", 1, {"method": "synthetic", "estimator": "local"}, 0.5, 4.5),
    "synthetic": ("syngrad", 1, {"method": "synthetic"}, 0.55, 4.5),
}
EXACT = ("ddp", "gpipe", "1f1b")
#: what was tried to make the narrow net faster, each beside the row that it changes, and the entry it goes into
TRIED = "narrow, what was tried"
WAYS: dict[str, tuple[str, int, dict[str, Any], float, float]] = {
    "plain, 2 threads": ROWS["plain, 2 threads"],
    "synthetic": ROWS["synthetic"],
    **{
        f"synthetic, {name}": ("syngrad", 1, {"method": "synthetic", **options}, 0.55, 4.5)
        for name, options in {
            "feedback every 16th": {"feedback_every": 16},
            "bfloat16 messages": {"message_dtype": "bfloat16"},
            "no guard": {"guard": None},
            "no samples of quality": {"quality_every": 0},
        }.items()
    },
    "synthetic:local": ROWS["synthetic:local"],
}
WARM_UP = 20


def rows_of(configuration: str, quick: bool, which: Mapping[str, Any] = ROWS) -> dict[str, Row]:
    """The rows, each with as many minibatches as its time needs, in whole sevenths."""
    _, _, plain_ms, wanted_s = CONFIGURATIONS[configuration]
    made = {}
    for name, (kind, threads, options, relative, start_s) in which.items():
        step_s = plain_ms * relative / 1e3
        count, before = (7, 2) if quick else (7 * round(wanted_s / step_s / 7), WARM_UP)
        made[name] = Row(kind, threads, options, count, before, start_s + (count + before) * step_s)
    return made


def run(configuration: str, rounds: int, path: Path, again: bool, quick: bool, which: Mapping[str, Any]) -> None:
    experiment, batch_size, _, _ = CONFIGURATIONS[configuration]
    rows = rows_of(configuration, quick, which)
    ours = [name for name, row in rows.items() if row.options.get("method") == "synthetic"]

    def call(name: str, earlier: list[Run]) -> Run:
        return timed(rows[name], experiment, batch_size, microbatches=parts(rows[name], earlier))

    settings = {
        "experiment": experiment,
        "batch_size": batch_size,
        "rows": {name: row.plain() for name, row in rows.items()},
    }
    take_turns(
        path,
        "throughput",
        TRIED if which is WAYS else configuration,
        settings,
        list(rows),
        rounds,
        call,
        lambda runs: rates(runs, ours if which is WAYS else ["synthetic"], EXACT),
        again,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--configurations", nargs="+", default=list(CONFIGURATIONS), choices=list(CONFIGURATIONS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--again", action="store_true", help="make these configurations' figures anew")
    parser.add_argument("--ways", action="store_true", help="the narrow net alone, and what was tried with it")
    options = parsed(parser)
    which = WAYS if options.ways else ROWS
    if options.ways:
        options.configurations = ["narrow, batch 128"]
    path = options.out or HERE / "results" / "throughput.json"
    every = [row for name in options.configurations for row in rows_of(name, options.quick, which).values()]
    estimate(every, options.rounds)
    for configuration in options.configurations:
        run(configuration, options.rounds, path, options.again, options.quick, which)


if __name__ == "__main__":
    main()
