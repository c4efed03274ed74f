"""One process of a row of Syngrad's own that trains to its end: `trained.py SPEC OUT`, started by rows.py.

SPEC is JSON: experiment (a function of nets.py) and epochs, method, estimator, seed, threads, options of the Trainer,
validations an epoch, and the target at which to end, or null. Process 0 writes the history and what else it knows.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from launched_worker import work

from syngrad.callbacks import Callback
from syngrad.compare.training import Training
from syngrad.compare.user_experiment import UserExperiment
from syngrad.experiments import registry
from syngrad.metrics import higher_is_better

NETS = Path(__file__).resolve().parent / "nets.py"


class Reached(Callback):
    """Ends the run with the epoch in which the metric has reached the target."""

    whole = False

    def __init__(self, target: float) -> None:
        self.target = target

    def on_validate(self, trainer: Any, epoch: float, metrics: dict[str, float]) -> None:
        value = metrics[trainer.metric[0]]
        if value >= self.target if higher_is_better(trainer.metric) else value <= self.target:
            trainer.stop()


def main(spec: dict[str, Any], out: str) -> None:
    experiment = registry.load(f"{NETS}:{spec['experiment']}", epochs=spec["epochs"])
    length = UserExperiment(experiment).epoch_length(spec["seed"])
    training = Training(
        experiment,
        spec["method"],
        spec["estimator"],
        spec["seed"],
        spec["threads"],
        {"true_every": 0, **spec["options"]},
        # at an epoch's end it is validated anyhow
        {"validate_every": max(length // spec["validations"], 1) if spec["validations"] > 1 else None},
        callbacks=[Reached(spec["target"])] if spec["target"] is not None else [],
        progress=False,
    )
    row = training.run().to_dict()
    if os.environ.get("RANK", "0") != "0":
        return
    waits = ("wait for next", "wait for previous")
    result = {
        "history": row["metric"]["history"],
        "train_s": row["train_s"],
        "samples_per_s": row["samples_per_s"],
        "bytes_sent": row["bytes_sent"],
        "peak_memory_bytes": [each["peak_memory_bytes"] for each in training.processes],
        "waited_s": [sum(each["seconds"].get(name, 0.0) for name in waits) for each in training.processes],
        "interfaces": [
            {key: each.get(key) for key in ("cut", "cosine", "norm_ratio", "staleness")} for each in row["interfaces"]
        ],
    }
    Path(out).write_text(json.dumps(result))


if __name__ == "__main__":
    work(main)
