"""Replicas that are killed sixty times, and what is left of their work. See README.md."""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

from account import counted, longest_silence, recovered, span  # noqa: E402
from common import spread  # noqa: E402
from killer import LIGHTHOUSE, Kill, Killer, planned  # noqa: E402
from turns import busy, entries, put  # noqa: E402

from syngrad.errors import SyngradError  # noqa: E402
from syngrad.launch.fork_server import put_aside  # noqa: E402
from syngrad.launch.replica_launcher import launch_replicas  # noqa: E402
from syngrad.results import environment  # noqa: E402

CLAIM = "replicas that are killed"
REPLICAS, SEEDS, KILLS = 3, 3, 60
#: seconds of the run for each kill: a start, and the time that the others need to notice
EACH_S = 14.0
#: seconds at the run's end in which nobody is killed any more
CALM_S = 2.0
#: seconds that a minibatch takes at least, so that three replicas need less than two cores, as on three hosts
PACE_S = 0.04
BATCH_SIZE, EVERY, EPOCHS = 32, 50, 16
#: the bars: the share of the undisturbed samples, and seconds in which nobody trains
GOODPUT, SILENCE_S = 0.8, 6.0
#: seconds of the undisturbed run at the same pace
REFERENCE_S = 60.0


def run(spec: dict[str, Any], workers: int, kills: list[Kill], last: int, draw: random.Random) -> dict[str, Any]:
    """One run, disturbed as planned, and what its replicas have noted."""
    said: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        killer = Killer(folder, kills, last, REPLICAS, workers, draw)
        killer.start()
        command = [sys.executable, str(HERE / "worker.py"), json.dumps(spec), scratch]
        failed = ""
        try:
            launch_replicas(command, REPLICAS, workers, restarts=3 * len(kills), say=said.append)
        except SyngradError as error:
            failed = str(error)
        finally:
            killer.over.set()
            killer.join()
        logs = [(folder / f"log.{index}").read_text().splitlines() for index in range(REPLICAS)]
        out = json.loads((folder / "out.json").read_text()) if not failed else {"value": None}
    events = [[_event(line) for line in log if len(line.split()) == 4] for log in logs]
    begin, end = span(events)
    done = [kill for kill in kills if kill.at]
    found = {
        **out,
        "failed": failed,
        "seconds": end - begin,
        "counted": counted(events) * BATCH_SIZE,
        "trained": sum(name == "trained" for log in events for name, *_ in log) * BATCH_SIZE,
        "silence_s": longest_silence(events),
        "kills": len(done),
        "of_replica": [sum(kill.victim == index for kill in done) for index in range(REPLICAS)],
        "of_lighthouse": sum(kill.victim == LIGHTHOUSE for kill in done),
        "of_rank": [sum(kill.rank == rank and kill.victim != LIGHTHOUSE for kill in done) for rank in range(workers)],
        "in_a_start": sum(kill.minibatch is None for kill in done),
        "recovered_s": [
            seconds
            for kill in done
            if kill.victim != LIGHTHOUSE and (seconds := recovered(events[kill.victim], kill.at)) is not None
        ],
        "said": said,
    }
    print(f"{found['kills']} kills, {found['seconds']:.0f} s: {out['value']} {failed}", flush=True)
    return found


def _event(line: str) -> tuple[str, float, int, int]:
    name, at, attempt, number = line.split()
    return name, float(at), int(attempt), int(number)


def summarised(entry: dict[str, Any]) -> dict[str, Any]:
    """The figures of the table."""
    killed, paced = entry["killed"], entry["paced"]
    values = [each["value"] for each in entry["undisturbed"].values()]
    rate = paced["counted"] / paced["seconds"]
    again = killed["recovered_s"]
    return {
        "ended": not killed["failed"],
        "goodput": killed["counted"] / killed["seconds"] / rate,
        "undisturbed_per_s": rate,
        "paced_silence_s": paced["silence_s"],
        "silence_s": killed["silence_s"],
        "recovered_s": spread(again) if len(again) > 1 else None,
        "value": killed["value"],
        "mean": statistics.mean(values) if values else None,
        "stdev": statistics.stdev(values) if len(values) > 1 else None,
    }


def measure(path: Path, workers: int, args: argparse.Namespace) -> list[str]:
    """What is missing of an entry; which bars it does not reach."""
    name = f"{workers} worker{'s' if workers > 1 else ''} a replica"
    epochs = args.epochs
    length = max(round(args.kills * args.each / PACE_S), 50 * epochs)
    common = {"batch_size": BATCH_SIZE, "every": EVERY}
    settings = {**common, "epochs": epochs, "minibatches": length, "pace_s": PACE_S, "kills": args.kills}
    known = entries(path).get(name)
    entry: dict[str, Any] = {"undisturbed": {}} if known is None or known["settings"] != settings else known
    if args.again:
        entry = {"undisturbed": {}}
    entry |= {"settings": settings, "environment": environment(threads=1)}
    spec = {**common, "epochs": epochs, "minibatches": REPLICAS * (length // epochs), "seed": 0, "pace_s": PACE_S}
    draw = random.Random(workers)

    def keep(key: str, value: Any) -> None:
        entry[key] = value
        if entry.keys() >= {"paced", "killed"}:
            entry["summary"] = summarised(entry)
        put(path, CLAIM, name, entry)

    if "paced" not in entry:
        keep("busy", busy())
        short = REPLICAS * round(args.reference / PACE_S)
        keep("paced", run({**spec, "epochs": 1, "minibatches": short}, workers, [], 0, draw))
    if "killed" not in entry:
        last = length - round(CALM_S / PACE_S)
        keep("killed", run(spec, workers, planned(args.kills, last, REPLICAS, workers, draw), last, draw))
    for seed in range(args.seeds):
        if str(seed) not in entry["undisturbed"]:
            found = run({**spec, "seed": seed, "pace_s": 0.0}, workers, [], 0, draw)
            keep("undisturbed", {**entry["undisturbed"], str(seed): {"value": found["value"]}})
    print(json.dumps(entry["summary"], indent=1), flush=True)
    return missed(name, entry)


def missed(name: str, entry: dict[str, Any]) -> list[str]:
    """The bars that are not reached, in words."""
    found, killed = entry["summary"], entry["killed"]
    low = None if found["stdev"] is None else found["mean"] - 2 * found["stdev"]
    wrong = [
        f"the run failed: {killed['failed']}" if killed["failed"] else "",
        f"only {killed['kills']} of its kills" if killed["kills"] < entry["settings"]["kills"] else "",
        f"goodput {found['goodput']:.2f}" if found["goodput"] < GOODPUT else "",
        f"nobody trained for {found['silence_s']:.1f} s" if found["silence_s"] > SILENCE_S else "",
        f"metric {found['value']}" if low is not None and (found["value"] or 0.0) < low else "",
    ]
    return [f"{name}: {each}" for each in wrong if each]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="+", default=[1], help="of each replica, an entry each")
    parser.add_argument("--kills", type=int, default=KILLS)
    parser.add_argument("--seeds", type=int, default=SEEDS, help="undisturbed runs, as fast as the machine allows")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--each", type=float, default=EACH_S, help="seconds of the run for each kill")
    parser.add_argument("--reference", type=float, default=REFERENCE_S, help="seconds of the undisturbed run")
    parser.add_argument("--again", action="store_true", help="make these figures anew")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "survival.json")
    args = parser.parse_args()
    began, wrong = time.perf_counter(), []
    for workers in args.workers:
        wrong += measure(args.out, workers, args)
    print(f"{time.perf_counter() - began:.0f} s", flush=True)
    if wrong:
        raise SystemExit("; ".join(wrong))


if __name__ == "__main__":
    with put_aside():  # as the launcher of `syngrad train --replicas` has it
        main()
