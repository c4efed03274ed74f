"""Starting one row, in one process, in two here, or in one on each of two hosts: Syngrad's own, or a rival's."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from syngrad.compare.rivals import RIVALS, RivalRun, parse_rival, run_rival
from syngrad.experiments import registry
from syngrad.launch.emulated_link import EmulatedHost
from syngrad.launch.hosts import launched_result

HERE = Path(__file__).resolve().parent
WORKERS = 2
#: the rivals that divide every minibatch, whatever form their messages have
PIPELINES = tuple(name for name in RIVALS if parse_rival(name).pipelined)
#: runs in which they try into how many parts
TRIED = 2


@dataclass(frozen=True)
class Row:
    """kind: a rival's name, or "syngrad". options: of the Trainer. minibatches: timed, after `warm_up` others.

    seconds: about how long it takes, its start among them, on the machine that the figures are from.
    """

    kind: str
    threads: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    minibatches: int = 70
    warm_up: int = 20
    seconds: float = 10.0

    def plain(self) -> dict[str, Any]:
        """What decides its figures."""
        return {name: value for name, value in asdict(self).items() if name != "seconds"}


def timed(
    row: Row,
    experiment: str,
    batch_size: int,
    hosts: Sequence[EmulatedHost] | None = None,
    microbatches: int | None = None,
    place: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Samples a second of a row, and what else it tells.

    experiment: the name of a function in nets.py, or path/to/file.py:function. place: where a rival's workers part, if
    there are more cuts than that.
    """
    name = experiment if ":" in experiment else f"{HERE / 'nets.py'}:{experiment}"
    if row.kind == "syngrad":
        spec = {
            "experiment": name,
            "batch_size": batch_size,
            "threads": row.threads,
            "options": row.options,
            "warm_up": row.warm_up,
            "minibatches": row.minibatches,
        }
        return started(HERE / "worker.py", spec, hosts)
    assert parse_rival(row.kind)
    run = RivalRun(
        row.kind,
        name,
        threads=row.threads,
        batch_size=batch_size,
        # the very cut that Syngrad has
        place=(place or registry.load(name).cuts) if row.kind in PIPELINES else None,
        minibatches=row.minibatches,
        warm_up=row.warm_up,
        microbatches=microbatches,
    )
    alone = row.kind == "plain"
    found = run_rival(run, 1 if alone else WORKERS, hosts=None if alone else hosts, timeout_s=900)
    # its own figure is a median over parts of the run; Syngrad's is of the whole run, and so is this
    count = windows(row) * -(-row.minibatches // windows(row))
    return {
        "samples_per_s": count * batch_size / found["train_s"],
        "train_s": found["train_s"],
        "minibatches": count,
        "bytes_a_minibatch": found["bytes_sent"] / count,
        "microbatches": found["microbatches"],
        "peak_memory_bytes": [found["peak_memory_bytes"]],
    }


def parts(row: Row, earlier: Sequence[dict[str, Any]]) -> int | None:
    """Into how many microbatches a pipeline's minibatch is divided: found by trying in two runs, then the faster's."""
    if row.kind not in PIPELINES or len(earlier) < TRIED:
        return None
    number: int = max(earlier[:TRIED], key=lambda run: run["samples_per_s"])["microbatches"]
    return number


def windows(row: Row) -> int:
    """The minibatches of one part of a rival's run; it always times whole parts."""
    rival = parse_rival(row.kind)
    every = rival.period * (WORKERS if rival.kind == "diloco" else 1)
    return max(row.minibatches // 7 // every, 1) * every


def started(
    worker: Path, spec: dict[str, Any], hosts: Sequence[EmulatedHost] | None = None, workers: int = WORKERS
) -> dict[str, Any]:
    """What process 0 of `worker SPEC OUT` has written, once all have ended."""
    command = [sys.executable, str(worker), json.dumps(spec)]
    each = workers if hosts is None else [1] * len(hosts)
    found: dict[str, Any] = launched_result(command, each, hosts, restarts=0, threads=spec["threads"])
    return found
