"""How long a plan takes, and where that goes; and how long simulations of thousands of workers take. See README.md."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from turns import busy, put

from syngrad.experiments import registry
from syngrad.planner.layouts import Cluster
from syngrad.planner.machine import measure_machine, with_base
from syngrad.planner.profile import profile as measure_profile
from syngrad.planner.ranking import changes, ranking
from syngrad.planner.recursion import Variation, run_chain
from syngrad.planner.timing import Chain
from syngrad.planner.worker_failures import Failures, run_with_failures
from syngrad.results import environment

HERE = Path(__file__).resolve().parent
#: what is planned → the most seconds that it may take; the second has 100 MiB of weights
PLANNED = {"fashion-mlp": 30.0, f"{HERE / 'drawn.py'}:mlp_2048_7_cut3": 60.0}
#: seconds of measuring that a plan is asked for where nobody says
MEASURING = 12.0
SIMULATED_S = 60.0
#: a worker of 10 ms, as each of thousands is
WORK_S, SEED = 0.010, 0


def plan_times(path: Path) -> None:
    """Every row, written down when it is done."""
    for name, bar in PLANNED.items():
        _row(path, name.rpartition(":")[2], bar, lambda name=name: _planned(name))  # type: ignore[misc]
    _row(path, "1,000 workers, 10,000 minibatches", SIMULATED_S, lambda: _simulated(1000, 10_000, None))
    # a worker fails about once in 30 hours, one of all of them every half minute
    failures = Failures(mean_s=4096 * 30.0, restart_s=10.0, saved_every=100)
    _row(path, "4,096 workers, 1,000 minibatches, failures", SIMULATED_S, lambda: _simulated(4096, 1000, failures))


def _row(path: Path, name: str, bar: float, run: Callable[[], dict[str, float]]) -> None:
    used = busy()
    taken = run()
    entry = {"settings": {"bar_s": bar}, "busy": used, "environment": environment(1), "runs": taken}
    put(path, "plan_times", name, entry)
    parts = ", ".join(f"{part} {seconds:.1f}" for part, seconds in taken.items() if part != "all")
    print(f"{name}: {taken['all']:.1f} s of {bar:g}" + (f" ({parts})" if parts else ""), flush=True)


def _planned(name: str) -> dict[str, float]:
    """Seconds of the whole command, and of the steps that it takes, each by itself in this process."""
    taken = {"all": _seconds(lambda: subprocess.run([sys.executable, "-m", "syngrad", "plan", name], check=True,
                                                    stdout=subprocess.DEVNULL))[0]}  # fmt: skip
    experiment = registry.load(name)
    taken["profile"], model = _seconds(lambda: measure_profile(experiment, 0.6 * MEASURING))
    taken["machine"], (machine, peak) = _seconds(lambda: measure_machine(name, {}, 0.4 * MEASURING))
    model = with_base(model, peak)
    taken["ranking"], found = _seconds(lambda: ranking(model, Cluster(machine, 2)))
    taken["links"], _ = _seconds(lambda: changes(found))
    return taken


def _simulated(workers: int, minibatches: int, failures: Failures | None) -> dict[str, float]:
    """Workers that vary by a tenth, the link after every eighth of them one between two hosts."""
    links = range(workers - 1)
    chain = Chain(
        (WORK_S,) * workers,
        (0.5 * WORK_S,) * workers,
        (0.9 * WORK_S,) * workers,
        tuple(1e-3 if k % 8 == 7 else 1e-4 for k in links),
        tuple(1e-3 if k % 8 == 7 else 1e-4 for k in links),
        tuple(1e-3 if k % 8 == 7 else 0.0 for k in links),
        depth=8,
    )
    varied = Variation(jitter=0.1, seed=SEED)
    if failures is None:
        return {"all": _seconds(lambda: run_chain(chain, minibatches, varied))[0]}
    return {"all": _seconds(lambda: run_with_failures(chain, minibatches, failures, varied))[0]}


def _seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    made = call()
    return time.perf_counter() - begin, made
