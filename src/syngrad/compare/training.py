"""One experiment trained by one method: what `syngrad train` does, and what each worker of a comparison's row does.

    python -m syngrad.compare.training SPEC OUT

is such a worker, started by a launcher. SPEC is JSON: experiment and what stands instead of its own, method, estimator,
seed, threads, options of the Trainer, validations an epoch. Worker 0 writes the row to OUT, with every worker's account
of its time.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from syngrad.callbacks import Callback
from syngrad.checks import check_whole
from syngrad.compare.base import described, estimator_name, metric_named
from syngrad.compare.step_costs import THREADS, threads
from syngrad.compare.user_experiment import UserExperiment
from syngrad.core.memory import peak_memory_bytes
from syngrad.errors import ConfigError
from syngrad.experiments import registry
from syngrad.experiments.experiment import Experiment
from syngrad.launch.parent_death import die_with_parent
from syngrad.methods.registry import parse as parse_method
from syngrad.pipeline.failures import report_failure
from syngrad.results import Row
from syngrad.trainer.history import Epoch, History


@dataclass
class Training:
    """An experiment, a method, and how to run it.

    Args:
        experiment, method, seed: What is trained, how, and from which seed.
        estimator: None for the experiment's own.
        threads: PyTorch's.
        options: Of the Trainer, over the experiment's own, by their flat names (`feedback_every`, not `feedback`).
        fit, callbacks: Further arguments of `fit`.
        progress: As the Trainer has it.

    Raises:
        ConfigError: What cannot be used, before anything runs.
    """

    experiment: Experiment
    method: str = "synthetic"
    estimator: str | None = None
    seed: int = 0
    threads: int = 1
    options: dict[str, Any] = field(default_factory=dict)
    fit: dict[str, Any] = field(default_factory=dict)
    callbacks: list[Callback] = field(default_factory=list)
    progress: bool | None = None

    def __post_init__(self) -> None:
        check_whole("threads", self.threads, 1, THREADS)
        check_whole("seed", self.seed, 0, 2**31 - 1)
        self.source = UserExperiment(self.experiment)
        #: of an epoch, known after one
        self.samples: int | None = None
        #: what every process of a run over several says of itself
        self.processes: list[dict[str, Any]] = []
        own = self.source.options()
        parsed = parse_method(self.method)
        if self.estimator is not None and not parsed.estimates:
            raise ConfigError(f"method {self.method!r} has no estimator, got {self.estimator!r}; leave it out")
        if self.estimator is not None:
            own["estimator"] = self.estimator
        self.trainer = self.source.trainer(parsed, self.seed, own, self.options, self.progress)

    def run(self, on_epoch: Callable[[Epoch], None] | None = None) -> Row:
        """Train, and say what came of it as a row of the results file."""
        with threads(self.threads):
            train, test = self.source.loaders(self.seed)
            history = self.trainer.fit(
                train, self.experiment.epochs, validate=test, on_epoch=on_epoch, callbacks=self.callbacks, **self.fit
            )
        self.processes = history.processes
        self.samples = history.epochs[0].samples if history.epochs else None
        return self._row(history)

    def _row(self, history: History) -> Row:
        trainer = self.trainer
        name, better = metric_named(self.experiment)
        row = Row(
            str(trainer.method),
            estimator_name(trainer.estimator) if trainer.method.estimates else "",
            self.seed,
            threads=self.threads,
            metric=name,
            higher_is_better=better,
            optimizer=type(trainer.optimizers[0]).__name__ if trainer.runner is not None else None,
            trainer=trainer.configuration(),
        )
        row.record(history)
        if self.processes:
            settings = trainer.settings
            row.processes = len(self.processes)
            row.placement = ",".join(str(each["stages"][1] - each["stages"][0]) for each in self.processes)
            row.bytes_sent = sum(each["bytes_sent"] for each in self.processes)
            row.peak_memory_bytes = max(each["peak_memory_bytes"] or 0 for each in self.processes) or None
            row.queue_depth, row.message_dtype = trainer.options.queue_depth, "/".join(dict.fromkeys(settings.dtypes))
        return row

    def description(self) -> dict[str, Any]:
        """What the results file says of the experiment."""
        cuts = self.trainer.net.cuts if self.trainer.runner is not None else self.source.cuts or []
        return described(self.experiment, [self.trainer.model], cuts, self.seed, 1, samples=self.samples)


def train_row(spec: dict[str, Any]) -> dict[str, Any]:
    """The row, as the results file has it, and the workers' own accounts."""
    experiment = registry.load(spec["experiment"], **spec["instead"])
    validations = spec["validations"]
    every = max(UserExperiment(experiment).epoch_length(spec["seed"]) // validations, 1) if validations else None
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
    """Train, and let worker 0 write."""
    made = train_row(json.loads(spec))
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
