"""Where it pays: the best of Syngrad's rows against the best rival, cell by cell. Needs root. See README.md."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from contextlib import nullcontext
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import torch  # noqa: E402
from pays_grid import COARSE, NO_LINK, Cell, cells  # noqa: E402
from quick import parsed  # noqa: E402
from rows import PIPELINES, WORKERS, Row, timed  # noqa: E402
from summary import summary  # noqa: E402
from turns import QUIET, busy, entries, put  # noqa: E402

from syngrad.errors import SyngradError  # noqa: E402
from syngrad.experiments import registry  # noqa: E402
from syngrad.launch.emulated_link import emulated, parse_link  # noqa: E402
from syngrad.planner import Cluster, Layout, Link, Machine, Prediction, Profile, predict  # noqa: E402
from syngrad.planner.choices import chosen, with_depth  # noqa: E402
from syngrad.planner.cost import Costs  # noqa: E402
from syngrad.planner.machine import measure_machine, with_base  # noqa: E402
from syngrad.planner.profile import profile as measure_profile  # noqa: E402
from syngrad.results import environment  # noqa: E402

CLAIM = "where_it_pays"
DRAWN = HERE.parent / "planner" / "drawn.py"
#: seconds of measuring for the plan, of a row's timing and its warm-up, and the most of a row's timing
PLANNED_S, TIMED_S, WARM_UP_S, MOST_S = 8.0, 2.0, 0.6, 15.0
LEAST, LEAST_BEFORE = 4, 2
OURS = ("synthetic", "synthetic:local", "delayed")
#: minibatches between averagings; the second where so many would take too long
AVERAGED = (64, 16)
#: a row that is planned to give less than this share of the best of its side is not run
HOPELESS = 0.4
FORMS = {"float32": "", "bfloat16": ":bf16", "int8": ":int8"}


def rivals(cell: Cell) -> list[str]:
    """Of any kind, with messages and gradients as wide as Syngrad's where they can have them."""
    form = FORMS[cell.dtype]
    pipelines = [f"gpipe{form}", f"1f1b{form}", f"zb1p{form}"]
    data = ["ddp:bf16" if cell.dtype == "bfloat16" else "ddp", "ddp:periodic", "diloco"]
    # one host has two cores for one process; of two hosts each has one
    return ["alone", *(["alone(threads)"] if cell.link == NO_LINK else []), *pipelines, *data]


_measured: dict[tuple[str, int], tuple[Profile, Machine]] = {}


def measured(cell: Cell) -> tuple[Profile, Machine]:
    """What a cell's plan is computed from; cells that differ by their link have the same."""
    key = (cell.experiment, cell.batch_size)
    if key not in _measured:
        name = f"{DRAWN}:{cell.experiment}"
        experiment = registry.load(name, batch_size=cell.batch_size)
        model = measure_profile(experiment, 0.6 * PLANNED_S, [cell.place])
        machine, peak = measure_machine(name, {"batch_size": cell.batch_size}, 0.4 * PLANNED_S)
        _measured[key] = with_base(model, peak), machine
    return _measured[key]


def planned(cell: Cell) -> dict[str, dict[str, Any]]:
    """Every row of a cell: the run that it is, and what is expected of it."""
    model, machine = measured(cell)
    link = None
    if cell.link != NO_LINK:
        given = parse_link(cell.link)
        link = Link(given.delay_s, given.bits_per_s / 8)
    cluster = Cluster(machine, 2, 2 if link else 1, link or Link(), emulated=True)
    made = {}
    for kind in (*OURS, *rivals(cell)):
        try:
            # a plan knows no zero bubble, and takes it for 1f1b
            found = chosen(model, cluster, kind.replace("zb1p", "1f1b"), (1,))
        except SyngradError as error:
            made[kind] = {"left_out": str(error)}
            continue
        layout = found.layout
        if layout.family == "stages":
            named = kind.partition(":")[2]
            costs = Costs(model, cluster, named if named in model.estimates else None)
            found = predict(model, cluster, with_depth(costs, replace(layout, message_dtype=cell.dtype)))
        elif kind == "diloco":
            often = AVERAGED[0] if found.seconds * AVERAGED[0] <= MOST_S else AVERAGED[1]
            found = predict(model, cluster, replace(layout, every=often))
        said = {"samples_per_s": found.samples_per_s, "seconds": found.seconds, "peak_bytes": found.peak_bytes}
        run = row(found, cell)
        if kind.startswith("zb1p"):
            run["kind"] = kind
        made[kind] = {"planned": said, "row": run, "parts": found.layout.microbatches}
    for side in (OURS, rivals(cell)):
        rates = {kind: made[kind]["planned"]["samples_per_s"] for kind in side if "planned" in made[kind]}
        for kind, rate in rates.items():
            if rate < HOPELESS * max(rates.values()):
                made[kind]["left_out"] = f"planned to give {rate / max(rates.values()):.0%} of the best of its side"
    return made


def row(prediction: Prediction, cell: Cell) -> dict[str, Any]:
    """The run that a prediction is of, as plain data, so that a cell goes on with the very same."""
    layout: Layout = prediction.layout
    # the clock stops when the last has come back: the round trip is to be little of it
    count = max(round(TIMED_S / prediction.seconds), LEAST, round(10 * max(prediction.staleness, default=0)))
    count = min(count, max(round(MOST_S / prediction.seconds), LEAST))
    before = max(round(WARM_UP_S / prediction.seconds), LEAST_BEFORE)
    made = Row(layout.row, 1, {}, count, before)
    if layout.family == "alone":
        made = Row("plain", 2 if layout.kind == "alone(threads)" else 1, {}, count, before)
    elif layout.kind == "diloco":
        more = f", dtype={cell.dtype}" if cell.dtype != "float32" else ""
        whole = max(count // layout.every, 1) * layout.every * WORKERS  # a rival's are counted over all workers
        made = Row(f"diloco(every={layout.every}{more})", 1, {}, whole, 0)
    elif layout.family == "stages":
        method, _, estimator = layout.kind.partition(":")
        options: dict[str, Any] = {"method": method, "queue_depth": layout.queue_depth}
        options |= {"message_dtype": layout.message_dtype, **({"estimator": estimator} if estimator else {})}
        options |= {"place": [cell.stages // 2] * 2} if cell.stages != 2 else {}
        made = Row("syngrad", 1, options, count, before)
    return made.plain()


def measure(cell: Cell, path: Path, rounds: int, until: float, quick: bool) -> None:
    """A cell's rows, taking turns, each written down when it is done; what is there already stays."""
    entry: dict[str, Any] = entries(path).get(cell.name, {})
    if entry.get("done", 0) >= rounds or time.monotonic() > until:
        return
    used = busy()
    if used > QUIET:
        print(f"warning: {used:.0%} of this machine is in use by others; these figures will say little", flush=True)
    if not entry:
        entry = {"settings": cell.plain(), "rows": planned(cell), "runs": {}, "failed": {}, "done": 0}
    entry |= {"busy": max(used, entry.get("busy", 0.0)), "environment": environment(torch.get_num_threads())}
    names = [kind for kind, each in entry["rows"].items() if "left_out" not in each]
    mine, theirs = ([kind for kind in names if (kind in OURS) == ours] for ours in (True, False))
    # one of ours and one of theirs in turns, so that both meet the machine's moods; each round begins with another
    names = [kind for pair in zip_longest(mine, theirs) for kind in pair if kind is not None]
    with emulated(parse_link(cell.link)) if cell.link != NO_LINK else nullcontext(None) as hosts:
        for turn in range(rounds):
            for kind in [*names[turn % len(names) :], *names[: turn % len(names)]]:
                runs, failed = entry["runs"].setdefault(kind, []), entry["failed"]
                if len(runs) > turn or (failed.get(kind) and not runs):
                    continue
                if time.monotonic() > until:
                    return
                given, parts = Row(**entry["rows"][kind]["row"]), entry["rows"][kind]["parts"]
                if quick:
                    given = dataclasses.replace(given, minibatches=min(given.minibatches, 16), warm_up=LEAST_BEFORE)
                begin = time.perf_counter()
                try:
                    run = timed(
                        given, f"{DRAWN}:{cell.experiment}", cell.batch_size, hosts,
                        parts if given.kind in PIPELINES else None, [cell.place],
                    )  # fmt: skip
                except SyngradError as error:
                    print(f"{cell.name}, {kind}: failed: {error}", flush=True)
                    failed[kind] = str(error)[:200]
                    put(path, CLAIM, cell.name, {**entry, "summary": summary(entry, OURS)})
                    continue
                run["took_s"] = time.perf_counter() - begin
                runs.append(run)
                put(path, CLAIM, cell.name, {**entry, "summary": summary(entry, OURS)})
                ratio = entry["rows"][kind]["planned"]["samples_per_s"] / run["samples_per_s"]
                print(
                    f"{cell.name}, {kind:16s} {run['samples_per_s']:8.0f} samples/s, planned {ratio:.2f} of it, took "
                    f"{run['took_s']:.1f} s",
                    flush=True,
                )
            entry["done"] = max(entry["done"], turn + 1)
            put(path, CLAIM, cell.name, {**entry, "summary": summary(entry, OURS)})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", nargs="+", type=int, help="numbers of cells, from 0; --list says which")
    parser.add_argument("--coarse", action="store_true", help="the coarse grid alone")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start nothing after so many")
    parser.add_argument("--list", action="store_true", help="the cells in their order, and nothing else")
    options = parsed(parser)
    path = options.out or HERE / "results" / f"{CLAIM}.json"
    until = time.monotonic() + options.seconds
    found = list(COARSE) if options.coarse else cells()
    for k, cell in enumerate(found):
        if options.list:
            print(f"{k:3d}  {cell.name}")
        elif options.only is None or k in options.only:
            measure(cell, path, options.rounds, until, options.quick)


if __name__ == "__main__":
    main()
