"""One experiment trained by one method, with all that a long run needs: what `syngrad train` does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from syngrad import metrics
from syngrad.callbacks import Callback
from syngrad.compare.contenders import readable
from syngrad.compare.measure import THREADS, threads
from syngrad.compare.source import Source
from syngrad.errors import ConfigError
from syngrad.experiments.experiment import Experiment, check_count
from syngrad.methods.registry import parse as parse_method
from syngrad.results import Row
from syngrad.results.record import record
from syngrad.runtime.options import override
from syngrad.trainer import Trainer
from syngrad.trainer.history import Epoch, History
from syngrad.trainer.options import Options


@dataclass
class Training:
    """An experiment, a method, and how to run it.

    estimator: None for the experiment's own. options: of the Trainer, over the experiment's own, by their flat names
    (`feedback_every`, not `feedback`). fit: further arguments
    of `fit`. progress: as the Trainer has it.

    Raises ConfigError for what cannot be used, before anything runs.
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
        check_count("threads", self.threads, 1, THREADS)
        check_count("seed", self.seed, 0, 2**31 - 1)
        self.source = Source(self.experiment)
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
        torch.manual_seed(self.seed)
        self.trainer = Trainer(
            self.source.network(),
            loss=self.experiment.loss,
            optimizer=self.experiment.optimizer,
            scheduler=self.experiment.scheduler,
            method=parsed,
            metric=self.experiment.metric,
            seed=self.seed,
            progress=self.progress,
            **override(Options, own, self.options),
        )

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
        resolved = metrics.resolve(self.experiment.metric)
        name = readable(resolved[0]) if resolved else "loss"
        spec = trainer.estimator
        estimator = (spec if isinstance(spec, str) else readable(getattr(spec, "__name__", type(spec).__name__))) or ""
        row = Row(
            str(trainer.method),
            estimator if trainer.method.estimates else "",
            self.seed,
            threads=self.threads,
            metric=name,
            higher_is_better=metrics.higher_is_better(resolved),
            optimizer=type(trainer.optimizers[0]).__name__ if trainer.runner is not None else None,
            trainer=trainer.configuration(),
        )
        record(row, history)
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
        return {**self.source.description(self.trainer.model, cuts, self.seed), "samples": self.samples}
