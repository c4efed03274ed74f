"""This machine, measured by two processes that train a user's model here; under torchrun, by the workers there are."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from syngrad.experiments.experiment import Experiment
from syngrad.launch.hosts import launched_result
from syngrad.planner.machine_worker import REDUCED, SIZES, measured
from syngrad.planner.quantities import Linear, Link, Machine, Profile


def measure_machine(experiment: str, instead: Mapping[str, Any], seconds: float) -> tuple[Machine, int | None]:
    """What two processes here cost each other, and what they send takes; the most that one of them has held.

    Args:
        experiment: a built-in name, or path/to/file.py:function.
        instead: what stands instead of its own.
        seconds: about how long it may take, its start left out.

    Raises:
        SyngradError: where the processes cannot run, or not reach each other.
    """
    spec = json.dumps({"experiment": experiment, "instead": dict(instead), "seconds": seconds})
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    found = launched_result(
        [sys.executable, "-m", "syngrad.planner", spec], 2, restarts=0, threads=1,
        environment={"GLOO_SOCKET_IFNAME": loopback},
    )  # fmt: skip
    return machine_from(found), found["peak_bytes"]


def measure_workers(experiment: Experiment, seconds: float) -> tuple[Machine, int | None]:
    """Likewise among the workers that torchrun has started, by the first of them."""
    found = measured(experiment, seconds)
    return machine_from(found), found["peak_bytes"]


def taken_apart(machine: Machine) -> tuple[Machine, Link]:
    """Figures of workers on several hosts as a link, which is in all of them, and a machine without it."""
    byte_s = machine.message.byte_s
    link = Link(machine.message.fixed_s, 1 / byte_s if byte_s > 0 else float("inf"))
    nothing = Linear()
    return replace(machine, busy=1.0, message=nothing, exchange=nothing, all_reduce=nothing), link


def machine_from(found: Mapping[str, Any]) -> Machine:
    """The figures as :func:`.machine_worker.measured` has them, two sizes of each, as lines."""
    cores = os.cpu_count() or 1
    # what two processes of one core cost each other is counted by the number of cores; beyond twice it is others' doing
    busy = min(max(found["busy"] / max(2 / cores, 1.0), 1.0), 2.0)
    return Machine(
        cores,
        busy,
        message=line(SIZES, found["message"]),
        exchange=line(SIZES, found["exchange"]),
        all_reduce=line(REDUCED, found["all_reduce"]),
        copy=line(SIZES, found["copy"]),
        # two of four passes follow a message
        action_s=max(found["action"] - found["exchange"][0] / 2, 0.0),
        pack={how: line(SIZES, times) for how, times in found["pack"].items()},
    )


def line(sizes: Sequence[int], times: Sequence[float]) -> Linear:
    """Through two points; neither part is below 0."""
    byte_s = max((times[1] - times[0]) / (sizes[1] - sizes[0]), 0.0)
    return Linear(max(times[0] - byte_s * sizes[0], 0.0), byte_s)


def used_by_others(seconds: float = 0.3) -> float:
    """The share of this machine's cores that is in use while this process sleeps; 0 where the system does not tell."""

    def ticks() -> tuple[int, int]:
        values = [int(word) for word in Path("/proc/stat").read_text(encoding="ascii").splitlines()[0].split()[1:9]]
        return sum(values), values[3] + values[4]

    if not sys.platform.startswith("linux"):
        return 0.0
    before = ticks()
    time.sleep(seconds)
    total, idle = (after - earlier for earlier, after in zip(before, ticks(), strict=True))
    return 1 - idle / total if total else 0.0


def with_base(profile: Profile, peak_bytes: int | None) -> Profile:
    """The profile with what a process holds beside weights, gradients, the optimiser's state and activations."""
    if peak_bytes is None:
        return profile
    counted = sum(2 * unit.parameter_bytes + unit.optimizer_bytes + unit.activation_bytes for unit in profile.units)
    return replace(profile, base_bytes=max(peak_bytes - counted, 0))
