"""Samples a second of every way to use two cores, in turn, several times; on this host or between two emulated ones."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from common import spread, write  # noqa: E402

from syngrad.compare.network import emulated, parse_link  # noqa: E402
from syngrad.compare.rivals import Plan, run_rival  # noqa: E402
from syngrad.errors import SyngradError  # noqa: E402
from syngrad.execution.hosts import launch_on  # noqa: E402
from syngrad.execution.launch import launch  # noqa: E402

OURS: dict[str, dict[str, Any]] = {
    "synthetic": {"method": "synthetic"},
    "synthetic, bfloat16": {"method": "synthetic", "message_dtype": "bfloat16"},
    "synthetic, int8": {"method": "synthetic", "message_dtype": "int8"},
    "local": {"method": "synthetic", "estimator": "local"},
    "delayed": {"method": "delayed", "queue_depth": 4},
    "backprop, one process": {"method": "backprop"},
}
#: those that need one process, with their threads
SINGLE = {"backprop, one process": 1, "plain, 1 thread": 1, "plain, 2 threads": 2}
ROWS = ("plain, 1 thread", "plain, 2 threads", "synthetic", "delayed", "ddp", "gpipe", "1f1b")


def ours(row: str, args: argparse.Namespace, hosts: Any) -> dict[str, Any]:
    options = {"quality_every": 0, "true_every": 0, **OURS[row]}
    if hosts:
        options["queue_depth"] = max(options.get("queue_depth", 0), args.depth)
    spec = {
        "experiment": args.experiment,
        "epochs": args.epochs,
        "batch_size": args.batch_size,
        "threads": 1,
        "cuts": args.cuts.split(",") if args.cuts else None,
        "options": options,
    }
    with tempfile.TemporaryDirectory() as folder:
        out = f"{folder}/out.json"
        command = [sys.executable, str(HERE / "worker.py"), json.dumps(spec), out]
        if row in SINGLE:
            launch(command, 1, restarts=0)
        elif hosts:
            launch_on(hosts, command, 1)
        else:
            launch(command, 2, restarts=0)
        found: dict[str, Any] = json.loads(Path(out).read_text())
    return found


def rival(row: str, args: argparse.Namespace, hosts: Any) -> dict[str, Any]:
    name, threads, workers = row, 1, 2
    if row in SINGLE:
        name, threads, workers = "plain", SINGLE[row], 1
    place = [args.place] if args.place and row in ("gpipe", "1f1b") else None
    cuts = args.cuts.split(",") if args.cuts else None
    plan = Plan(
        name,
        args.experiment,
        threads=threads,
        batch_size=args.batch_size,
        minibatches=args.minibatches,
        place=place,
        cuts=cuts,
        most_s=args.most_s,
    )
    return run_rival(plan, workers, hosts=None if row in SINGLE else hosts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experiment", default=f"{HERE / 'experiment.py'}:wide")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--minibatches", type=int, default=140)
    parser.add_argument("--most-s", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--rows", default=";".join(ROWS))
    parser.add_argument("--cuts", default=None)
    parser.add_argument("--place", default=None)
    parser.add_argument("--link", default=None)
    parser.add_argument("--depth", type=int, default=16)
    parser.add_argument("--json", required=True)
    args = parser.parse_args()
    rows = args.rows.split(";")
    found: dict[str, list[dict[str, Any]]] = {row: [] for row in rows}
    with emulated(parse_link(args.link)) if args.link else nullcontext(None) as hosts:
        for turn in range(args.rounds):
            for row in rows:
                try:
                    result = (ours if row in OURS else rival)(row, args, hosts)
                except SyngradError as error:
                    print(f"{row}: {error}", flush=True)
                    continue
                result.pop("spans", None)
                found[row].append(result)
                print(turn, row, round(result["samples_per_s"]), flush=True)
            document(args, found)


def document(args: argparse.Namespace, found: dict[str, list[dict[str, Any]]]) -> None:
    rates = {row: [each["samples_per_s"] for each in runs] for row, runs in found.items()}
    reference = rates.get("synthetic", [])
    summary = {}
    for row, values in rates.items():
        if len(values) < 2:
            continue
        pairs = [a / b for a, b in zip(reference, values, strict=False)]
        summary[row] = {"samples_per_s": spread(values)}
        if len(pairs) > 1:
            summary[row]["synthetic_over_it"] = spread(pairs)
    write(
        args.json,
        {
            "arguments": {k: v for k, v in vars(args).items() if k != "experiment"},
            "experiment": Path(args.experiment.partition(":")[0]).name + ":" + args.experiment.partition(":")[2],
            "summary": summary,
            "runs": found,
        },
    )


if __name__ == "__main__":
    main()
