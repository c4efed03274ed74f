"""Seconds of training until a test accuracy fixed beforehand; on loopback, and over a slow link. See README.md."""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from seeds import Run, train, train_missing  # noqa: E402

from syngrad.launch.emulated_link import emulated, parse_link  # noqa: E402
from syngrad.results import time_to_target  # noqa: E402

#: test accuracy: what back-propagation (seed 0) passes in its third epoch, and fixed before any other row had run
TARGET = 0.86
EXPERIMENT, EPOCHS = "full", 6
LINK, DEPTH = "20ms,100mbit", 16
#: a rival over the slow link is given so many times what synthetic took there, and the first of them twice that
PATIENCE = 3.3

#: row → (kind as seeds.train has it, threads, options)
LOOPBACK: dict[str, tuple[str, int, dict[str, Any]]] = {
    "plain, 1 thread": ("plain", 1, {}),
    "synthetic": ("synthetic", 1, {}),
    "plain, 2 threads": ("plain", 2, {}),
    "ddp": ("ddp", 1, {}),
    "1f1b": ("1f1b", 1, {}),
    "delayed": ("delayed", 1, {}),
    "synthetic:local": ("synthetic:local", 1, {}),
    "gpipe": ("gpipe", 1, {}),
}
SLOW: dict[str, tuple[str, int, dict[str, Any]]] = {
    "synthetic, bfloat16": ("synthetic", 1, {"queue_depth": DEPTH, "message_dtype": "bfloat16"}),
    "1f1b": ("1f1b", 1, {}),
    "gpipe": ("gpipe", 1, {}),
    "ddp:bf16": ("ddp:bf16", 1, {}),
    "ddp": ("ddp", 1, {}),
    "ddp:periodic": ("ddp:periodic", 1, {}),
}
LOCK_STEP = ("1f1b", "gpipe", "ddp:bf16", "ddp")


def reached(run: Run, target: float) -> float | None:
    return time_to_target([(a, b, c) for a, b, c in run["history"]], target, True)


def summary(runs: list[Run], target: float, reference: str, best_of: Sequence[str]) -> dict[str, Any]:
    """By row: seconds to the target of every seed, and the ratio to the reference's seed by seed.

    Where a run has not got there, `at_least_s` says how long it had trained.
    """
    found: dict[str, Any] = {}
    base = {run["seed"]: reached(run, target) for run in runs if run["row"] == reference}
    for row in dict.fromkeys(run["row"] for run in runs):
        own = {run["seed"]: reached(run, target) for run in runs if run["row"] == row}
        times = [each for each in own.values() if each is not None]
        ratios = [each / base[seed] for seed, each in own.items() if each and base.get(seed)]
        found[row] = {
            "seconds": own,
            "mean_s": statistics.mean(times) if times else None,
            "ratios": ratios,
            "mean_ratio": statistics.mean(ratios) if ratios else None,
            "at_least_s": {run["seed"]: run["train_s"] for run in runs if run["row"] == row and not own[run["seed"]]},
            "last": [run["history"][-1][2] for run in runs if run["row"] == row and run["history"]],
        }
    known = [found[row] for row in best_of if row in found]
    if known and reference in found and found[reference]["mean_s"]:
        # of one that has not got there all that is known is that it takes longer
        bounds = [each["mean_s"] or min(each["at_least_s"].values()) for each in known]
        found[reference]["of_the_best"] = {
            "ratio": found[reference]["mean_s"] / min(bounds),
            "bound_only": known[bounds.index(min(bounds))]["mean_s"] is None,
        }
    return found


def loopback(args: argparse.Namespace) -> None:
    rows = {name: LOOPBACK[name] for name in args.rows or [*LOOPBACK][:-1] if name in LOOPBACK}

    def call(row: str, seed: int, runs: list[Run]) -> Run:
        kind, threads, options = rows[row]
        return train(
            kind, EXPERIMENT, seed, args.epochs, threads=threads, validations=4, options=options, target=args.target
        )

    train_missing(
        args.path,
        "time to target",
        "loopback",
        {"experiment": EXPERIMENT, "target": args.target, "epochs": args.epochs, "validations": 4},
        [(row, seed) for seed in range(args.seeds) for row in rows],
        call,
        lambda runs: summary(runs, args.target, "plain, 1 thread", ()),
        again=args.again,
    )


def slow(args: argparse.Namespace) -> None:
    rows = {name: SLOW[name] for name in args.rows or SLOW if name in SLOW}
    first = next(iter(SLOW))
    if not rows:
        return
    with emulated(parse_link(LINK)) as hosts:

        def most(row: str, runs: list[Run]) -> float | None:
            if row == first:
                return None
            own = next((run for run in runs if run["row"] == first), None)
            allowed = PATIENCE * (reached(own, args.target) or own["train_s"]) if own else 600.0
            return allowed * 2 if row == "1f1b" else allowed

        def call(row: str, seed: int, runs: list[Run]) -> Run:
            kind, threads, options = rows[row]
            # validated more often, as time is looked at there, and a quarter of an epoch of ddp takes minutes
            return train(
                kind,
                EXPERIMENT,
                seed,
                args.epochs,
                threads=threads,
                validations=8,
                options=options,
                target=args.target,
                most_s=most(row, runs),
                hosts=hosts,
            )

        train_missing(
            args.path,
            "time to target",
            LINK,
            {"experiment": EXPERIMENT, "target": args.target, "epochs": args.epochs, "validations": 8, "link": LINK},
            [(row, 0) for row in rows],
            call,
            lambda runs: summary(runs, args.target, first, LOCK_STEP),
            again=args.again,
        )


PARTS = {"loopback": loopback, "slow": slow}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--rows", nargs="+", choices=sorted({*LOOPBACK, *SLOW}))
    parser.add_argument("--seeds", type=int, default=3, help="on loopback; over the slow link it is one")
    parser.add_argument("--target", type=float, default=TARGET)
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="at most")
    parser.add_argument("--again", action="store_true", help="make these parts' figures anew")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.out is None and (args.target, args.epochs) != (TARGET, EPOCHS):
        parser.error("another target or number of epochs makes no results; name another file with --out")
    args.path = args.out or HERE / "results" / "time_to_target.json"
    for part in args.parts:
        PARTS[part](args)


if __name__ == "__main__":
    main()
