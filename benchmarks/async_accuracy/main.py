"""The final metric of free-running processes against back-propagation's, seed by seed; and of small messages."""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from seeds import Run, train, train_missing  # noqa: E402

from syngrad.results import interval  # noqa: E402

SEEDS, SEEDS_OF_OTHERS = 5, 3
#: name → (function in nets.py, epochs)
EXPERIMENTS = {"wide": ("full_cosine", 5), "char-gpt, half": ("shortened", 1)}
#: row → (kind as seeds.train has it, options)
MAIN: dict[str, tuple[str, dict[str, Any]]] = {
    "backprop": ("plain", {}),
    "synthetic": ("synthetic", {}),
    "synthetic:local": ("synthetic:local", {}),
    "delayed": ("delayed", {}),
    "delayed, queue_depth=8": ("delayed", {"queue_depth": 8}),
    "corrected": ("corrected", {}),
    "corrected:local": ("corrected:local", {}),
    "corrected(every=1):local": ("corrected(every=1):local", {}),
}
#: message_dtype as (down, up), for activations and for gradients
DTYPES = {
    f"down {down}, up {up}": ("synthetic", {"message_dtype": [down, up]})
    for down, up in (
        ("bfloat16", "bfloat16"),
        ("int8", "int8"),
        ("bfloat16", "float32"),
        ("float32", "bfloat16"),
        ("int8", "float32"),
        ("float32", "int8"),
    )
}
#: every stage on a prediction of its input
UNLOCKED = {"synthetic, inputs predicted": ("synthetic", {"inputs": "linear"})}
ROWS = {**MAIN, **UNLOCKED, **DTYPES}


def summary(runs: list[Run]) -> dict[str, Any]:
    """By row: mean and, seed by seed, the difference to back-propagation and to whole messages, each with its 95 %."""
    last = {(run["row"], run["seed"]): run["history"][-1][2] for run in runs}
    found: dict[str, Any] = {}
    for row in (name for name in ROWS if any(run["row"] == name for run in runs)):
        values = {seed: value for (name, seed), value in last.items() if name == row}
        found[row] = {"seeds": len(values), "mean": statistics.mean(values.values())}
        found[row]["stdev"] = statistics.stdev(values.values()) if len(values) > 1 else None
        for against in ("backprop", "synthetic"):
            gaps = [value - last[against, seed] for seed, value in values.items() if (against, seed) in last]
            if gaps and row != against:
                found[row][f"to {against}"] = {"mean": statistics.mean(gaps), "interval": interval(gaps)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experiments", nargs="+", default=list(EXPERIMENTS), choices=list(EXPERIMENTS))
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--epochs", type=int, help="instead of an experiment's own, for a quick look; needs --out")
    parser.add_argument("--again", action="store_true", help="make these experiments' figures anew")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.epochs is not None and args.out is None:
        parser.error("another number of epochs makes no results; name another file with --out")
    path = args.out or HERE / "results" / "async_accuracy.json"
    for name in args.experiments:
        experiment, own = EXPERIMENTS[name]
        epochs = args.epochs or own

        def call(row: str, seed: int, runs: list[Run], experiment: str = experiment, epochs: int = epochs) -> Run:
            kind, options = ROWS[row]
            return train(kind, experiment, seed, epochs, options=options)

        # messages of other kinds and predicted inputs are tried on the wide net alone
        rows = [row for row in args.rows if row in MAIN or name == "wide"]
        wanted = [
            (row, seed)
            for row in rows
            for seed in range(args.seeds if row in MAIN else min(args.seeds, SEEDS_OF_OTHERS))
        ]
        train_missing(
            path,
            "accuracy of free-running processes",
            name,
            {"experiment": experiment, "epochs": epochs},
            wanted,
            call,
            summary,
            again=args.again,
            alike=["backprop"],
        )


if __name__ == "__main__":
    main()
