"""One row of Syngrad's own: trains an experiment and writes samples/s (first epoch left out) and where time went."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

import syngrad
from syngrad.execution.reporting import report_failure
from syngrad.execution.world import die_with_parent
from syngrad.experiments import registry


def main(spec: dict[str, Any], out: str) -> None:
    torch.set_num_threads(spec["threads"])
    experiment = registry.load(spec["experiment"], epochs=spec["epochs"], batch_size=spec["batch_size"])
    torch.manual_seed(0)
    net = syngrad.decouple(experiment.model(), cuts=spec.get("cuts") or experiment.cuts)
    trainer = syngrad.Trainer(
        net,
        loss=experiment.loss,
        optimizer=experiment.optimizer,
        metric=None,
        progress=False,
        **{**experiment.options, **spec["options"]},
    )
    train, _ = experiment.data(experiment.batch_size, 0)
    history = trainer.fit(train, experiment.epochs)
    if os.environ.get("RANK", "0") != "0":
        return
    first, last = history.epochs[0], history.epochs[-1]
    samples = sum(epoch.samples for epoch in history.epochs[1:])
    processes = [{k: v for k, v in each.items() if k != "spans"} for each in history.processes]
    result = {
        "samples_per_s": samples / (last.train_s - first.train_s),
        "train_s": history.train_s,
        "loss": last.train_loss,
        "staleness": [each["staleness"] for each in history.interfaces],
        "processes": processes,
        "spans": [each["spans"] for each in history.processes],
    }
    Path(out).write_text(json.dumps(result))


if __name__ == "__main__":
    die_with_parent()
    try:
        main(json.loads(sys.argv[1]), sys.argv[2])
    except BaseException as error:
        report_failure(error)
        raise
