"""One process of a row of Syngrad's own: `python -m syngrad.processes.row SPEC OUT`, started by a launcher.

SPEC is JSON: experiment and what stands instead of its own, method, estimator, seed, threads, options of the Trainer,
validations an epoch. Process 0 writes the row to OUT, with the spans of every process for a timeline.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from syngrad.compare.measure import threads
from syngrad.compare.source import Source
from syngrad.compare.training import Training
from syngrad.core.memory import peak_memory_bytes
from syngrad.experiments import registry
from syngrad.launch.parent_death import die_with_parent
from syngrad.pipeline.failures import report_failure


def run(spec: dict[str, Any]) -> dict[str, Any]:
    """The row, as the results file has it, and the processes' own accounts."""
    experiment = registry.load(spec["experiment"], **spec["instead"])
    validations = spec["validations"]
    every = max(Source(experiment).epoch_length(spec["seed"]) // validations, 1) if validations else None
    training = Training(
        experiment,
        spec["method"],
        spec["estimator"],
        spec["seed"],
        spec["threads"],
        {"quality_every": 50, "true_every": 0, **spec["options"]},
        {"validate_every": every},
        progress=False,
    )
    with threads(spec["threads"]):
        row = training.run()
    return {"row": row.to_dict(), "processes": training.processes, "samples": training.samples}


def main(spec: str, out: str) -> None:
    """Train, and let process 0 write."""
    made = run(json.loads(spec))
    if os.environ.get("RANK", "0") == "0":
        if made["row"]["peak_memory_bytes"] is None:  # one process alone is asked by nobody else
            made["row"]["peak_memory_bytes"] = peak_memory_bytes()
        Path(out).write_text(json.dumps(made), encoding="utf-8")


if __name__ == "__main__":
    die_with_parent()
    try:
        main(*sys.argv[1:])
    except BaseException as error:
        report_failure(error)
        sys.exit(2)
