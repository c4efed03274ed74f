"""Step times under two commits, processes of the two taking turns on one machine. See README.md."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT / "src"), str(HERE.parent), str(HERE.parent / "identical")]

import checkout  # noqa: E402
from common import spread, write  # noqa: E402

#: no row may be slower than this in the median
BAR = 1.01


def steps(tree: Path, rounds: int) -> dict[str, float]:
    """Median seconds a row, in a process of its own with this tree's source."""
    environment = os.environ | {"PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(HERE / "steps.py"), str(rounds)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True, help="the commit that this tree is held against")
    parser.add_argument("--pairs", type=int, default=7, help="processes of each tree")
    parser.add_argument("--rounds", type=int, default=40, help="steps of each row in one process")
    parser.add_argument("--out", default=str(HERE / "results" / "before_after.json"))
    options = parser.parse_args()
    ratios: dict[str, list[float]] = {}
    before: dict[str, list[float]] = {}
    with checkout.base(ROOT, options.base) as base:
        for pair in range(options.pairs):
            first = [base, ROOT] if pair % 2 == 0 else [ROOT, base]  # who comes first takes turns too
            found = {tree: steps(tree, options.rounds) for tree in first}
            for name in found[base]:
                ratios.setdefault(name, []).append(found[ROOT][name] / found[base][name])
                before.setdefault(name, []).append(found[base][name] * 1e3)
    results: dict[str, Any] = {
        name: {"before_ms": spread(before[name]), "ratio": spread(ratios[name])} for name in ratios
    }
    for name, row in results.items():
        ratio = row["ratio"]
        print(f"{name:38s} {row['before_ms']['median']:8.2f} ms  × {ratio['median']:.3f} "
              f"[{ratio['q1']:.3f}, {ratio['q3']:.3f}]")  # fmt: skip
    document = {
        "claim": "before and after",
        "bar": BAR,
        "base": checkout.git(ROOT, "rev-parse", options.base),
        "tree": checkout.named(ROOT),
        "pairs": options.pairs,
        "rounds": options.rounds,
        "results": results,
    }
    write(options.out, document)


if __name__ == "__main__":
    main()
