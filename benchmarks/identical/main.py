"""Runs scenarios under two commits on one machine, and says whether all is the same to the last bit. See README.md."""

from __future__ import annotations

import argparse
import fnmatch
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2] / "src"))
import checkout
import differences
import dispatch
import matrix
from common import write
from expected import Expected
from reuse import Reuse

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
#: lines that are printed of one scenario, and differing items that the results file keeps
LINES, KEPT = 6, 500


def chosen(options: argparse.Namespace) -> list[dict[str, Any]]:
    """The scenarios, the patterns given matched against any part of their names."""
    found = [each for each in matrix.everything() if not options.quick or matrix.quick(each)]
    if options.only:
        found = [e for e in found if any(fnmatch.fnmatch(e["name"], f"*{p}*") or p in e["name"] for p in options.only)]
    return found


def run(options: argparse.Namespace, base: Path, tree: Path, scenarios: list[dict[str, Any]]) -> dict[str, Any]:
    reuse = Reuse(options.reuse, checkout.git(base, "rev-parse", "HEAD"))
    expected = Expected.read()
    counts: Counter[str] = Counter()
    work = 0.0
    differing: list[list[str]] = []
    seconds: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="syngrad-identical-") as scratch:
        folder = Path(options.keep).resolve() if options.keep else Path(scratch)
        with dispatch.servers(base, tree, folder, reuse) as pair, ThreadPoolExecutor(2) as pool:
            for number, scenario in enumerate(scenarios, 1):
                began = time.perf_counter()
                answers = dispatch.both(pair, scenario, pool)
                made = differences.compared([pair[name].out(scenario) for name in ("base", "tree")], scenario, expected)
                took, used = time.perf_counter() - began, sum(each["cpu_s"] for each in answers.values())
                work += used
                seconds[scenario["kind"] + f", {scenario['workers']}"] += took
                counts.update(scenarios=1, items=made["items"], expected=made["expected"])
                counts["failing alike"] += bool(made["alike"])
                if made["alike"]:
                    print(f"fails under both  {scenario['name']}: {made['alike']}", flush=True)
                counts["differing scenarios"] += bool(made["differing"])
                for path, off in made["differing"][:LINES]:
                    print(f"DIFFERS  {scenario['name']}: {path}: {off}", flush=True)
                if len(made["differing"]) > LINES:
                    print(f"DIFFERS  {scenario['name']}: and {len(made['differing']) - LINES} items more", flush=True)
                differing += [[scenario["name"], path, off] for path, off in made["differing"]]
                if options.verbose:
                    done = f"[{number}/{len(scenarios)}] {scenario['name']}"
                    print(f"{done}: {made['items']} items, {took:.1f} s, {used:.1f} s of work", flush=True)
    unused = [rule.old for rule in expected.rules if not rule.used]
    return {
        "scenarios": counts["scenarios"],
        "items": counts["items"],
        "differing_scenarios": counts["differing scenarios"],
        "failing_alike": counts["failing alike"],
        "expected_differences": counts["expected"],
        "rules_not_used": unused,
        "differing_items": len(differing),
        "differing": differing[:KEPT],
        "seconds_of_work": round(work, 1),
        "seconds_by_kind": {name: round(value, 1) for name, value in seconds.items()},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base", required=True, help="the commit that the tree is held against")
    parser.add_argument("--tree", default=str(ROOT), help="the tree, with its src/; this one unless given")
    parser.add_argument("--quick", action="store_true", help="a part, within two minutes")
    parser.add_argument("--only", action="append", help="scenarios whose name has this in it, or matches it; repeat it")
    parser.add_argument("--list", action="store_true", help="name the scenarios and run none")
    parser.add_argument("--keep", help="a new folder in which everything that the scenarios leave is kept")
    parser.add_argument(
        "--reuse", help="a folder: what the base leaves is kept there, and taken from there the next time"
    )
    parser.add_argument("--out", help="the results file; results/identical.json for the whole, none for a part")
    parser.add_argument("--verbose", action="store_true", help="a line a scenario")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the worktree is removed
    scenarios = chosen(options)
    if options.list or not scenarios:
        print("\n".join(each["name"] for each in scenarios) or "no scenario has such a name")
        return 0 if scenarios else 2
    began, tree = time.perf_counter(), Path(options.tree).resolve()
    with checkout.base(ROOT, options.base) as base:
        found = run(options, base, tree, scenarios)
    took = time.perf_counter() - began
    document = {
        "claim": "identical",
        "base": checkout.git(ROOT, "rev-parse", options.base),
        "tree": checkout.named(tree) if (tree / ".git").exists() else {"commit": None, "dirty": True},
        "seconds": round(took, 1),
        "results": found,
    }
    part = options.quick or options.only
    out = options.out or (None if part else str(HERE / "results" / "identical.json"))
    if out:
        torch.set_num_threads(1)
        write(out, document)
    print(
        f"{found['scenarios']} scenarios, {found['items']} items: {found['differing_items']} differ in "
        f"{found['differing_scenarios']} scenarios, {found['expected_differences']} differ as expected, "
        f"{found['failing_alike']} scenarios fail under both alike ({took:.0f} s)"
    )
    return 1 if found["differing_items"] else 0


if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"
    sys.exit(main())
