"""Step times under two commits, a few steps of each in turns on one machine. See README.md."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT / "src"), str(HERE.parent), str(HERE.parent / "identical")]

import checkout  # noqa: E402
from common import spread, write  # noqa: E402
from steps import ROWS, STEPS  # noqa: E402

#: no row may be slower than this in the median
BAR = 1.01


class Tree:
    """A process with one tree's source, which runs steps when it is told to."""

    def __init__(self, tree: Path) -> None:
        environment = os.environ | {"PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(HERE / "steps.py")]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True)

    def seconds(self, row: str) -> float:
        """Of one step of the row."""
        sent, answers = self.process.stdin, self.process.stdout
        assert sent is not None
        assert answers is not None
        sent.write(f"{row}\n")
        sent.flush()
        return float(answers.readline())

    def close(self) -> None:
        self.process.communicate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True, help="the commit that this tree is held against")
    parser.add_argument("--rounds", type=int, default=60, help=f"turns of {STEPS} steps of each row")
    parser.add_argument("--out", default=str(HERE / "results" / "before_after.json"))
    options = parser.parse_args()
    before: dict[str, list[float]] = {name: [] for name in ROWS}
    ratios: dict[str, list[float]] = {name: [] for name in ROWS}
    with ExitStack() as ends:
        base = Tree(ends.enter_context(checkout.base(ROOT, options.base)))
        tree = Tree(ROOT)
        ends.callback(base.close)
        ends.callback(tree.close)
        for turn in range(options.rounds + 1):
            for name in ROWS:
                found = {each: each.seconds(name) for each in ((base, tree) if turn % 2 else (tree, base))}
                if turn:  # the first turn warms up
                    before[name].append(found[base] * 1e3)
                    ratios[name].append(found[tree] / found[base])
    results: dict[str, Any] = {
        name: {"before_ms": spread(before[name]), "ratio": spread(ratios[name])} for name in ROWS
    }
    for name, row in results.items():
        ratio = row["ratio"]
        print(
            f"{name:38s} {row['before_ms']['median']:8.2f} ms  × {ratio['median']:.3f} "
            f"[{ratio['q1']:.3f}, {ratio['q3']:.3f}]"
        )
    document = {
        "claim": "before and after",
        "bar": BAR,
        "base": checkout.git(ROOT, "rev-parse", options.base),
        "tree": checkout.named(ROOT),
        "rounds": options.rounds,
        "results": results,
    }
    write(options.out, document)


if __name__ == "__main__":
    main()
