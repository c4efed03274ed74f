"""One run with a hundred kills, and twenty with one each: what is left of them in the end. See README.md."""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from common import spread, write  # noqa: E402
from killer import Kill, Killer, planned  # noqa: E402

from syngrad.launch.fork_server import put_aside  # noqa: E402
from syngrad.launch.launcher import launch  # noqa: E402
from syngrad.results import interval, mean_spread  # noqa: E402

PROCESSES = 2
#: training samples of the bundled set
SAMPLES = 10_000


def run(seed: int, kills: list[Kill], args: argparse.Namespace, draw: random.Random) -> dict[str, Any]:
    """One run, disturbed as planned. Raises SyngradError where it does not finish."""
    names = ("epochs", "batch_size", "save_every")
    spec = {"seed": seed, **{name: getattr(args, name) for name in names}}
    restarted: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        killer = Killer(folder, kills, PROCESSES, draw)
        killer.start()
        command = [sys.executable, "-m", "worker", json.dumps(spec), scratch]
        path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
        try:
            launch(
                command,
                PROCESSES,
                restarts=3 * len(kills),
                environment={"PYTHONPATH": path},
                logs=folder / "logs",
                say=restarted.append,
            )
        finally:
            killer.over.set()
            killer.join()
        out = json.loads((folder / "out.json").read_text())
        events = [line.split() for line in (folder / "log").read_text().splitlines()]
    return {**out, "seed": seed, **account(kills, restarted, events)}


def account(kills: list[Kill], restarted: list[str], events: list[list[str]]) -> dict[str, Any]:
    """What the kills did: lost checkpoints, the time until training went on, restarts that nobody has killed for."""
    done = [kill for kill in kills if kill.at]
    newest = lost = saved = 0
    for name, minibatch, *_ in events:
        if name == "saved":
            newest, saved = int(minibatch), saved + 1
        elif name == "begun":
            lost += int(minibatch) < newest
    going = {int(attempt): float(at) for name, _, attempt, at in events if name == "going"}
    again = []
    for index, kill in enumerate(done):
        until = done[index + 1].at if index + 1 < len(done) else float("inf")
        on = min((at for attempt, at in going.items() if attempt > kill.attempt), default=until)
        if on < until:
            again.append(on - kill.at)
    return {
        "kills": len(done),
        "of_process": [sum(kill.rank == rank for kill in done) for rank in range(PROCESSES)],
        "while_starting": sum(kill.attempt not in going or going[kill.attempt] > kill.at for kill in done),
        "during_a_save": sum(kill.during_save for kill in done),
        "restarts": len(restarted),
        "restarts_of_all": sum("alone" not in line for line in restarted),
        "others_kept": sum(kill.kept for kill in done),
        "checkpoints": saved,
        "lost_checkpoints": lost,
        "restart_s": again,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100, help="in one run")
    parser.add_argument("--runs", type=int, default=20, help="with one kill each, and as many without")
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--save-every", type=int, default=10)
    parser.add_argument("--starting", type=float, default=0.15, help="share of the kills that fall into a start")
    parser.add_argument("--out", default=str(HERE / "results" / "faults.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    began, draw = time.perf_counter(), random.Random(0)
    minibatches = args.epochs * -(-SAMPLES // args.batch_size)

    undisturbed, single = [], []
    for seed in range(args.runs):
        undisturbed.append(run(seed, [], args, draw))
        single.append(run(seed, planned(1, minibatches, PROCESSES, 0.0, draw), args, draw))
        print(f"seed {seed}: {undisturbed[-1]['value']:.4f}, killed once: {single[-1]['value']:.4f}", flush=True)
    many = run(0, planned(args.kills, minibatches, PROCESSES, args.starting, draw), args, draw)
    print(f"{many['kills']} kills: {many['value']:.4f}", flush=True)
    summary = summarised(undisturbed, single, many)
    print(json.dumps(summary, indent=1))
    write(
        args.out,
        {
            "claim": "faults",
            **{name: getattr(args, name) for name in ("epochs", "batch_size", "save_every", "starting")},
            "minibatches": minibatches,
            "seconds": time.perf_counter() - began,
            "results": {"summary": summary, "many": many, "single": single, "undisturbed": undisturbed},
        },
    )
    wrong = [
        "a checkpoint was lost" if summary["lost_checkpoints"] else "",
        "a run ended before all its kills" if many["kills"] < args.kills or summary["single_kills"] < args.runs else "",
        "a run is shorter" if any(r["minibatches"] != minibatches for r in (many, *single, *undisturbed)) else "",
    ]
    if any(wrong):
        raise SystemExit("; ".join(filter(None, wrong)))


def summarised(undisturbed: list[dict[str, Any]], single: list[dict[str, Any]], many: dict[str, Any]) -> dict[str, Any]:
    """The figures of the table."""
    whole, killed = ([run["value"] for run in runs] for runs in (undisturbed, single))
    again = [s for run in (many, *single) for s in run["restart_s"]]
    once = [s for run in single for s in run["restart_s"]]
    differences = [b - a for a, b in zip(whole, killed, strict=True)]
    return {
        "undisturbed": mean_spread(whole),
        "killed_once": mean_spread(killed),
        "difference": statistics.fmean(differences) if differences else None,
        "difference_95": interval(differences),
        "killed_often": many["value"],
        "single_kills": sum(run["kills"] for run in single),
        "restart_s": spread(again) if len(again) > 1 else None,
        "restart_once_s": spread(once) if len(once) > 1 else None,
        "others_kept_once": sum(run["others_kept"] for run in single),
        "checkpoints": sum(run["checkpoints"] for run in (many, *single)),
        "lost_checkpoints": sum(run["lost_checkpoints"] for run in (many, *single)),
    }


if __name__ == "__main__":
    with put_aside():  # as the launcher of `syngrad train --workers` has it
        main()
