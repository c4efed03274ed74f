"""What replicas that average rarely cost and save: the final metric, bytes, time, and nothing where there are none.

See README.md.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parent / "identical")]

import without  # noqa: E402
from common import spread  # noqa: E402
from seeds import Run, train_missing  # noqa: E402
from turns import put, take_turns  # noqa: E402

from syngrad.launch.fork_server import put_aside  # noqa: E402
from syngrad.launch.launcher import launch  # noqa: E402
from syngrad.launch.replica_launcher import launch_replicas  # noqa: E402
from syngrad.results import environment, interval  # noqa: E402

CLAIM = "replicas that average rarely"
REPLICAS, SEEDS = 2, 3
PARTS = ("fashion", "characters", "bytes", "time", "none")
#: recipe → (epochs, minibatches of a replica between averagings)
LENGTHS = {"fashion": (20, 100), "characters": (1, 100)}
#: of char-gpt, whose runs take minutes, these seeds and rows alone, unless others are named
FEW_SEEDS = 2
#: a replica waits for the other as long as it takes, so that no averaging is missed on a busy machine
PATIENT = {"replicas_wait_s": 120.0}
#: minibatches of each replica that are timed, after those of a first averaging; of the bytes
TIMED, WARM_UP, SENT = 600, 110, 500
NEVER = 1_000_000


@dataclass(frozen=True)
class Row:
    """How many replicas (0: none, a pipeline alone), workers of each, the method, and options."""

    replicas: int
    workers: int
    method: str = "synthetic"
    options: dict[str, Any] = field(default_factory=dict)


ALONE, TWO, OWN = "one pipeline of 2 stages", "2 replicas × 2 stages", "2 replicas × 2 stages, own estimators"
OUTER = "2 replicas × 2 stages, outer step of DiLoCo"
EXACT, EXACT_TWO = "one process, back-propagation", "2 replicas × 1 stage, back-propagation"
#: the mean itself
MEAN = {"replicas_outer": None}
ROWS = {
    ALONE: Row(0, 2),
    TWO: Row(REPLICAS, 2, options=MEAN),
    OWN: Row(REPLICAS, 2, options={**MEAN, "replicas_estimators": False}),
    OUTER: Row(REPLICAS, 2),
    EXACT: Row(0, 1, "backprop"),
    EXACT_TWO: Row(REPLICAS, 1, "backprop", MEAN),
}
#: which row each is held against, seed by seed
AGAINST = {TWO: ALONE, OWN: ALONE, OUTER: ALONE, EXACT_TWO: EXACT}
FEW = [ALONE, TWO, OWN]


def run(row: Row, recipe: str, length: int, seed: int, options: dict[str, Any], warm_up: int = 0) -> list[Run]:
    """What every replica, or the pipeline alone, has left."""
    spec = {
        "recipe": recipe,
        "length": length,
        "method": row.method,
        "seed": seed,
        "options": {**(options if row.replicas else {}), **row.options},
        "warm_up": warm_up,
    }
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out")
        command = [sys.executable, str(HERE / "worker.py"), json.dumps(spec), str(out)]
        if row.replicas:
            launch_replicas(command, row.replicas, row.workers, restarts=0)
        else:
            launch(command, row.workers, restarts=0)
        found = [Path(f"{out}.{index}") for index in range(max(row.replicas, 1))]
        return [json.loads(each.read_text()) for each in found]


def metric(path: Path, recipe: str, rows: list[str], seeds: int, args: argparse.Namespace) -> None:
    """The final metric of every row, paired by seed."""
    epochs, every = args.epochs or LENGTHS[recipe][0], args.every or LENGTHS[recipe][1]
    options = {"replicas_every": every, "replicas_dtype": "int8", **PATIENT, **args.options}

    def call(row: str, seed: int, runs: list[Run]) -> Run:
        first, *others = run(ROWS[row], recipe, epochs, seed, options)
        return {
            "history": [[0.0, 0.0, value] for value in first["history"]],
            "train_s": first["train_s"],
            "minibatches": [each["minibatches"] for each in (first, *others)],
            "replicas": [each["replica"] for each in (first, *others)],
        }

    settings = {"recipe": recipe, "epochs": epochs, **options}
    wanted = [(row, seed) for seed in range(seeds) for row in rows]
    train_missing(path, CLAIM, recipe, settings, wanted, call, metric_summary, again=args.again)


def metric_summary(runs: list[Run]) -> dict[str, Any]:
    """By row: mean, and the difference to the row without replicas, seed by seed, with its 95 %."""
    last = {(run["row"], run["seed"]): run["history"][-1][2] for run in runs}
    found: dict[str, Any] = {}
    for row in (name for name in ROWS if any(run["row"] == name for run in runs)):
        values = {seed: value for (name, seed), value in last.items() if name == row}
        found[row] = {"seeds": len(values), "mean": statistics.mean(values.values()), "gap": None, "gap_95": None}
        against = AGAINST.get(row)
        gaps = [value - last[against, seed] for seed, value in values.items() if (against, seed) in last]
        if gaps:
            found[row] |= {"against": against, "gap": statistics.mean(gaps), "gap_95": interval(gaps)}
        found[row]["missed"] = sum(
            each.get("missed", 0) for run in runs if run["row"] == row for each in run["replicas"]
        )
    return found


def sent(path: Path, args: argparse.Namespace) -> None:
    """Bytes that each replica, of two workers, sends a minibatch, against an all-reduce of every gradient."""
    options = {"replicas_every": 100, "replicas_dtype": "int8", **PATIENT}
    first, second = run(ROWS[TWO], "steady", 2 * SENT, 0, options)
    # the first has handed its state to the other as the run began: that is no averaging
    averaging, state = second["replica"]["bytes_sent"], first["replica"]["bytes_sent"] - second["replica"]["bytes_sent"]
    reduced = 2 * (REPLICAS - 1) / REPLICAS * 4 * first["parameters"]
    found = {
        "parameters": first["parameters"],
        "estimators": first["estimators"],
        "minibatches": second["minibatches"],
        "averagings": second["replica"]["averagings"],
        "bytes_a_minibatch": averaging / second["minibatches"],
        "ddp_bytes_a_minibatch": reduced,
        "share": averaging / second["minibatches"] / reduced,
        "state_bytes": state,
        "share_with_state": (first["replica"]["bytes_sent"]) / first["minibatches"] / reduced,
    }
    print(json.dumps(found, indent=1), flush=True)
    put(path, CLAIM, "bytes", {"settings": options, "environment": environment(threads=1), "summary": found})


def timed(path: Path, args: argparse.Namespace) -> None:
    """A minibatch of replicas that average every 100th, and of those that never do, taking turns."""
    rows = {"every 100": 100, "never": NEVER}

    def call(row: str, earlier: list[Run]) -> Run:
        options = {"replicas_every": rows[row], "replicas_dtype": "int8"}
        length = REPLICAS * (WARM_UP + TIMED)
        found = run(Row(REPLICAS, 1), "steady", length, 0, options, WARM_UP)
        return {
            "minibatch_s": statistics.mean(each["minibatch_s"] for each in found),
            "waited_s": [each["replica"]["waited_s"] for each in found],
            "averagings": [each["replica"]["averagings"] for each in found],
            "missed": [each["replica"]["missed"] for each in found],
        }

    settings = {"timed": TIMED, "warm_up": WARM_UP, "dtype": "int8"}
    take_turns(path, CLAIM, "time", settings, list(rows), args.rounds, call, time_summary, args.again)


def time_summary(runs: dict[str, list[Run]]) -> dict[str, Any]:
    """Milliseconds of either, and the ratio round by round."""
    each = {row: [run["minibatch_s"] for run in found] for row, found in runs.items()}
    ratios = [a / b for a, b in zip(each["every 100"], each["never"], strict=False)]
    return {
        "ms": {row: spread([1e3 * value for value in values]) for row, values in each.items() if values},
        "ratio": spread(ratios) if ratios else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), help="of the final metric")
    parser.add_argument("--seeds", type=int, help=f"{SEEDS} without it, of char-gpt {FEW_SEEDS}")
    parser.add_argument("--rounds", type=int, default=5, help="of the times")
    parser.add_argument("--turns", type=int, default=60, help="of the step without replicas")
    parser.add_argument("--base", default=without.BASE, help="the commit before replicas")
    parser.add_argument("--epochs", type=int, help="of the final metric, for a quick look; needs --out")
    parser.add_argument("--every", type=int, help="minibatches between averagings, for a quick look; needs --out")
    parser.add_argument("--options", type=json.loads, default={}, help="more options, as JSON; needs --out")
    parser.add_argument("--again", action="store_true", help="make these figures anew")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if (args.epochs or args.every or args.options) and args.out is None:
        parser.error("other settings make no results; name another file with --out")
    path = args.out or HERE / "results" / "replicas.json"
    for part in args.parts:
        if part in LENGTHS:
            few = part == "characters"
            metric(
                path, part, args.rows or (FEW if few else list(ROWS)), args.seeds or (FEW_SEEDS if few else SEEDS), args
            )
        elif part == "bytes":
            sent(path, args)
        elif part == "time":
            timed(path, args)
        else:
            without.measure(path, CLAIM, args.base, args.turns, args.again)


if __name__ == "__main__":
    with put_aside():  # as the launcher of `syngrad train --replicas` has it
        main()
