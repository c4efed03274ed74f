"""A run over several workers whose metric raises once: `python -m tests._support.late_failures FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from tests._support.worker_runs import batches, trainer

import syngrad
from syngrad.launch.parent_death import die_with_launcher
from syngrad.trainer.history import History


def run(folder: Path, fails: bool) -> tuple[syngrad.Trainer, History]:
    """Two epochs in a folder, going on if something is there."""

    def metric(output: Any, target: Any) -> float:
        if fails:
            raise ConnectionError("no answer")
        return float(output.mean())

    made = trainer(feedback_delay=1, metric=metric)
    return made, made.fit(batches(), 2, validate=batches(2), save=folder, resume="auto")


if __name__ == "__main__":
    die_with_launcher()
    run(Path(sys.argv[1]), True)
