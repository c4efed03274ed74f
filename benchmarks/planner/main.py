"""What a plan says beside what is measured: configurations that no figure of the planner was made from. See README.md.

They are drawn by SEED; another one is asked for by --seed, and goes into a file of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

import torch  # noqa: E402
from drawn import configurations  # noqa: E402
from plan_times import plan_times  # noqa: E402
from quick import parsed  # noqa: E402
from rows import Row, timed  # noqa: E402
from turns import busy, entries, put  # noqa: E402

from syngrad.errors import SyngradError  # noqa: E402
from syngrad.experiments import registry  # noqa: E402
from syngrad.launch.emulated_link import emulated, parse_link  # noqa: E402
from syngrad.planner.layouts import Cluster  # noqa: E402
from syngrad.planner.machine import measure_machine, with_base  # noqa: E402
from syngrad.planner.prediction import Prediction  # noqa: E402
from syngrad.planner.profile import profile as measure_profile  # noqa: E402
from syngrad.planner.quantities import Link  # noqa: E402
from syngrad.planner.ranking import ranking  # noqa: E402
from syngrad.results import environment  # noqa: E402

#: stated before anything was measured; a file each
SEED, COUNT = 20261130, 24
#: seconds that a row is timed, and its warm-up; a row that takes longer a minibatch is planned and not run
TIMED_S, WARM_UP_S, SLOWEST_S = 3.0, 1.0, 4.0
MEASURED = 12.0
#: what plans say beside what is measured; how long plans and simulations take
PARTS = ("rows", "time")
#: the least minibatches that are timed, and before
LEAST, LEAST_BEFORE = 4, 2


def planned(configuration: dict[str, Any]) -> tuple[list[Prediction], dict[str, Any]]:
    """Every row's prediction, at the cut that is drawn, and what they were made from."""
    name, size, link = f"{HERE / 'drawn.py'}:{configuration['experiment']}", configuration["batch_size"], None
    experiment = registry.load(name, batch_size=size)
    assert experiment.cuts is not None
    model = measure_profile(experiment, 0.6 * MEASURED, list(experiment.cuts))
    machine, peak = measure_machine(name, {"batch_size": size}, 0.4 * MEASURED)
    model = with_base(model, peak)
    if configuration["link"] is not None:
        given = parse_link(configuration["link"])
        link = Link(given.delay_s, given.bits_per_s / 8)
    cluster = Cluster(machine, 2, 2 if link else 1, link or Link(), emulated=True)
    found = ranking(model, cluster, None, (1,))
    made = [*found.ranked, *found.rare]
    return made, {"profile": dataclasses.asdict(model), "machine": dataclasses.asdict(machine)}


def row(prediction: Prediction) -> Row:
    """The run that the prediction is of."""
    layout = prediction.layout
    count = max(round(TIMED_S / prediction.seconds), LEAST)
    before = max(round(WARM_UP_S / prediction.seconds), LEAST_BEFORE)
    if layout.family == "alone":
        return Row("plain", 2 if layout.kind == "alone(threads)" else 1, {}, count, before)
    if layout.family != "stages":
        return Row(layout.row, 1, {}, count, before)
    method, _, estimator = layout.kind.partition(":")
    options: dict[str, Any] = {"method": method, "queue_depth": layout.queue_depth}
    options["message_dtype"] = layout.message_dtype
    if estimator:
        options["estimator"] = estimator
    # the clock stops when the last has come back: a full queue is to be little of it
    return Row("syngrad", 1, options, max(count, 12 * layout.queue_depth), max(before, 2 * layout.queue_depth))


def measure(configuration: dict[str, Any], path: Path, until: float, quick: bool) -> None:
    """One configuration's rows, each written down when it is done."""
    name, claim = configuration["name"], "planner"
    entry: dict[str, Any] = entries(path).get(name, {})
    used = busy()
    predictions, computed_from = planned(configuration)
    # measured anew with every slice, as the machine is then; a row's prediction stands beside its run
    entry = {"settings": configuration, "runs": entry.get("runs", {}), **computed_from}
    entry |= {"busy": max(used, entry.get("busy", 0.0)), "environment": environment(torch.get_num_threads())}
    link = configuration["link"]
    with emulated(parse_link(link)) if link is not None else nullcontext(None) as hosts:
        for prediction in predictions:
            label = prediction.layout.kind
            if label in entry["runs"] or time.monotonic() > until:
                continue
            said = {"layout": str(prediction.layout), "samples_per_s": prediction.samples_per_s}
            said |= {"seconds": prediction.seconds, "peak_bytes": prediction.peak_bytes}
            if prediction.seconds > SLOWEST_S:
                entry["runs"][label] = {"predicted": said, "measured": None}
                continue
            given = row(prediction)
            if quick:
                given = dataclasses.replace(given, minibatches=LEAST, warm_up=LEAST_BEFORE)
            parts = prediction.layout.microbatches if prediction.layout.family == "microbatches" else None
            experiment = f"{HERE / 'drawn.py'}:{configuration['experiment']}"
            try:
                run = timed(given, experiment, configuration["batch_size"], hosts, parts)
            except SyngradError as error:
                print(f"{name}, {label}: failed: {error}", flush=True)
                continue
            entry["runs"][label] = {"predicted": said, "measured": run}
            ratio = prediction.samples_per_s / run["samples_per_s"]
            print(f"{name}, {label:16s} {run['samples_per_s']:8.0f} samples/s, planned {ratio:.2f} of it", flush=True)
            put(path, claim, name, {**entry, "summary": summary(entry["runs"])})
    put(path, claim, name, {**entry, "summary": summary(entry["runs"])})


def summary(runs: dict[str, Any]) -> dict[str, Any]:
    """How far the plan is off, and what its first choice gives of the best that was measured."""
    known = {label: run for label, run in runs.items() if run["measured"] is not None}
    if not known:
        return {}
    errors = {
        label: run["predicted"]["samples_per_s"] / run["measured"]["samples_per_s"] - 1 for label, run in known.items()
    }
    memory = {
        label: run["predicted"]["peak_bytes"] / max(run["measured"]["peak_memory_bytes"]) - 1
        for label, run in known.items()
        if all(run["measured"].get("peak_memory_bytes") or [None])
    }
    # those that average rarely are no answer to the same question
    asked = {label: run for label, run in known.items() if label != "ddp:periodic"}
    first = max(asked, key=lambda label: asked[label]["predicted"]["samples_per_s"])
    best = max(asked, key=lambda label: asked[label]["measured"]["samples_per_s"])
    reached = asked[first]["measured"]["samples_per_s"] / asked[best]["measured"]["samples_per_s"]
    return {
        "errors": errors,
        "median": statistics.median(map(abs, errors.values())),
        "worst": max(map(abs, errors.values())),
        "memory": memory,
        "chosen": first,
        "fastest": best,
        "chosen_over_fastest": reached,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=list(PARTS))
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--only", nargs="+", type=int, help="numbers of configurations, from 0")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start nothing after so many")
    parser.add_argument("--list", action="store_true", help="what is drawn, and nothing else")
    options = parsed(parser)
    if "time" in options.parts and not options.list:
        plan_times(HERE / "results" / "plan_times.json" if options.out is None else options.out)
    if "rows" not in options.parts:
        return
    until = time.monotonic() + options.seconds
    name = "planner.json" if options.seed == SEED else f"planner-{options.seed}.json"
    path = options.out or HERE / "results" / name
    for k, configuration in enumerate(configurations(options.seed, options.count)):
        if options.list:
            print(f"{k:3d}  {configuration['name']}")
        elif (options.only is None or k in options.only) and time.monotonic() < until:
            measure(configuration, path, until, options.quick)


if __name__ == "__main__":
    main()
