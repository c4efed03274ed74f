"""Steps and a two-process pipeline on one accelerator, and what a plan says of them. See README.md."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent), str(HERE)]

from common import every_layer, fused_adam, interleaved, mlp, paired, spread, write  # noqa: E402
from deep import DEVICE, LAYERS, WIDTH, made_up  # noqa: E402
from quick import parsed  # noqa: E402
from rows import Row, timed  # noqa: E402

import syngrad  # noqa: E402
from syngrad.compare.step_costs import synchronise  # noqa: E402
from syngrad.errors import SyngradError  # noqa: E402
from syngrad.experiments import registry  # noqa: E402
from syngrad.planner.layouts import Cluster  # noqa: E402
from syngrad.planner.machine import measure_machine, with_base  # noqa: E402
from syngrad.planner.profile import profile  # noqa: E402
from syngrad.planner.quantities import Link  # noqa: E402
from syngrad.planner.ranking import ranking  # noqa: E402
from syngrad.runtime.option_fields import check_device  # noqa: E402

#: (width, batch size)
SIZES = [(1024, 256), (1024, 2048), (4096, 256), (4096, 2048), (8192, 2048)]
QUICK = [(32, 16)]
ONE_PROCESS: dict[str, dict[str, Any]] = {
    "backprop": {"method": "backprop"},
    "synthetic": {},
    "synthetic:local": {"estimator": "local"},
}
TWO_PROCESSES: dict[str, dict[str, Any]] = {
    "synthetic": {"method": "synthetic"},
    "synthetic:local": {"method": "synthetic", "estimator": "local"},
    "corrected": {"method": "corrected"},
    "delayed": {"method": "delayed"},
}


def hand_written(width: int, device: str, x: torch.Tensor, y: torch.Tensor) -> Callable[[], None]:
    """The loop a person would write, until the device has done all of a step."""
    net = mlp(LAYERS, width).to(device)
    optimizer = fused_adam(net.parameters())

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(x), y).backward()
        optimizer.step()
        synchronise()

    return step


def own(width: int, device: str, x: torch.Tensor, y: torch.Tensor, options: dict[str, Any]) -> Callable[[], None]:
    """Syngrad's step with an interface after every hidden layer."""
    net = syngrad.decouple(mlp(LAYERS, width), cuts=every_layer(LAYERS))
    trainer = syngrad.Trainer(net, loss=F.cross_entropy, optimizer=fused_adam, device=device, **options)

    def step() -> None:
        trainer.step((x, y))
        synchronise()

    return step


def steps(width: int, batch_size: int, device: str, rounds: int) -> dict[str, Any]:
    """Milliseconds of a step of every row, taking turns, and the ratio to the hand-written loop."""
    x, y = (each.to(device) for each in made_up(batch_size))
    rows: dict[str, Callable[[], object]] = {"hand-written": hand_written(width, device, x, y)}
    rows |= {name: own(width, device, x, y, options) for name, options in ONE_PROCESS.items()}
    # four steps a turn: estimators are fitted every 4th minibatch
    return paired(interleaved(rows, rounds, warmup=4, repeats=4), "hand-written")


def pipeline(
    width: int,
    batch_size: int,
    device: str,
    rounds: int,
    minibatches: int,
    rows: Mapping[str, dict[str, Any]],
    plan_s: float,
) -> dict[str, Any]:
    """Samples a second in one process and in two that share the device, round by round, and what a plan says."""
    os.environ |= {DEVICE: device, WIDTH: str(width)}
    name = f"{HERE / 'deep.py'}:deep"
    x, y = (each.to(device) for each in made_up(batch_size))
    found: dict[str, list[float]] = {"hand-written, one process": [], **{row: [] for row in rows}}
    for _ in range(rounds):
        step, begin = hand_written(width, device, x, y), 0.0
        for k in range(minibatches + 3):
            if k == 3:
                begin = time.perf_counter()
            step()
        found["hand-written, one process"].append(minibatches * batch_size / (time.perf_counter() - begin))
        for row, options in rows.items():
            run = timed(Row("syngrad", 1, options, minibatches, max(minibatches // 5, 2)), name, batch_size)
            found[row].append(run["samples_per_s"])
    return {
        "samples_per_s": {row: spread(rates) for row, rates in found.items()},
        "planned": planned(name, batch_size, plan_s),
    }


def planned(name: str, batch_size: int, seconds: float) -> dict[str, float]:
    """Samples a second that a plan of so many seconds expects of every row in two processes on this machine."""
    experiment = registry.load(name, batch_size=batch_size)
    model = profile(experiment, 0.6 * seconds, list(experiment.cuts or ()))
    machine, peak = measure_machine(name, {"batch_size": batch_size}, 0.4 * seconds)
    made = ranking(with_base(model, peak), Cluster(machine, 2, 1, Link()), None, (1,))
    return {each.layout.kind: each.samples_per_s for each in (*made.ranked, *made.rare)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda", help="as PyTorch calls it")
    parser.add_argument("--rounds", type=int, default=20, help="of steps; a fifth as many of pipelines")
    options = parsed(parser)
    try:
        check_device(options.device)
    except SyngradError as error:
        parser.error(str(error))
    path = options.out or HERE / "results" / "gpu.json"
    torch.manual_seed(0)
    document: dict[str, Any] = {"claim": "one accelerator", "device": options.device, "steps": {}, "pipeline": {}}
    for width, batch_size in QUICK if options.quick else SIZES:
        label = f"width {width}, batch {batch_size}"
        document["steps"][label] = steps(width, batch_size, options.device, 2 if options.quick else options.rounds)
        write(path, document)
        print(label, {row: round(each["ratio"]["median"], 2) for row, each in document["steps"][label].items()})
    for width, batch_size in QUICK if options.quick else SIZES[-2:]:
        label = f"width {width}, batch {batch_size}"
        rounds, count, rows, plan_s = max(options.rounds // 5, 1), 60, TWO_PROCESSES, 10.0
        if options.quick:
            rounds, count, rows, plan_s = 1, 4, {"synthetic": TWO_PROCESSES["synthetic"]}, 0.5
        document["pipeline"][label] = pipeline(width, batch_size, options.device, rounds, count, rows, plan_s)
        write(path, document)
        print(label, {row: round(each["median"]) for row, each in document["pipeline"][label]["samples_per_s"].items()})
        print("  planned", {row: round(each) for row, each in document["pipeline"][label]["planned"].items()})


if __name__ == "__main__":
    main()
