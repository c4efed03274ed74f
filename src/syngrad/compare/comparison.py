"""The comparison itself: what is measured, in which order, and what becomes of a row that fails."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any

import torch

from syngrad import metrics
from syngrad.compare.base import Base
from syngrad.compare.contenders import ROWS, Contender, Observer, contenders, readable
from syngrad.compare.measure import PERIOD, RowError, period, saved_bytes, windows
from syngrad.compare.source import ExperimentError, Source
from syngrad.compare.split import split
from syngrad.errors import ConfigError, CutError
from syngrad.experiments.experiment import Experiment
from syngrad.results import BACKPROP, Row, time_to_target
from syngrad.results.record import record
from syngrad.runtime.feedback import Feedback
from syngrad.runtime.options import override
from syngrad.trainer import Trainer
from syngrad.trainer.history import Epoch
from syngrad.trainer.options import Options

#: how often an epoch the metric is taken, at least, where the time to a target is asked for
VALIDATIONS = 4


class Comparison(Base[Contender]):
    """An experiment's rows, measured by :meth:`run`; `rows` holds what is finished, also after an interrupt.

    rows: `method[:estimator]`; estimator: of those that do not name one. seed, seeds: the first seed and how many from
    there; each row is run with every one. threads: PyTorch's, during the run. timing_s: about how long step times are
    taken, all rows together; 0 for not at all. target: the metric's value whose first crossing is timed; the metric is
    then taken at least four times an epoch.

    Raises ConfigError at construction for what cannot be used. A row that fails while it runs is kept as "failed: …";
    what goes wrong for every row, or lies in the experiment itself, is raised.
    """

    def __init__(
        self,
        experiment: Experiment,
        rows: Sequence[str] = ROWS,
        *,
        estimator: Any = None,
        seed: int = 0,
        seeds: int = 1,
        threads: int = 1,
        timing_s: float = 4.0,
        target: float | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.experiment = experiment
        self.source = Source(experiment)
        self.options = self.source.options()
        own = self.options.pop("estimator", "default")
        self.contenders = contenders(rows, own if estimator is None else estimator)
        super().__init__(
            self.contenders,
            [contender.label for contender in self.contenders],
            experiment.epochs,
            seed=seed,
            seeds=seeds,
            threads=threads,
            timing_s=timing_s,
            observer=observer,
        )
        self.metric = metrics.resolve(experiment.metric)
        self.metric_name = readable(self.metric[0]) if self.metric else "loss"
        self.higher_is_better = metrics.higher_is_better(self.metric)
        self.target = self._checked(target)
        self._validate_every: int | None = None

    def _checked(self, target: float | None) -> float | None:
        if target is None:
            return None
        if not math.isfinite(target):
            raise ConfigError(f"target {target:g} must be a finite number, a value of {self.metric_name!r}")
        if self.higher_is_better is None:
            raise ConfigError(
                f"target {target:g}: nobody says whether more or less of {self.metric_name!r} is better; set "
                "higher_is_better = True or False on the metric's function"
            )
        if self.metric_name == "accuracy" and not 0 < target <= 1:
            raise ConfigError(f"target {target:g}: an accuracy lies between 0 and 1; write 0.88 for 88 %")
        return float(target)

    # The measurement beforehand: step times and what is kept.

    def side_by_side(self) -> dict[Contender, Row]:
        """A row a contender with its step time, its ratio to backprop's, and its saved bytes."""
        self.observer.note("the data")
        batches = self.source.batches(self.seeds[0], self.contenders, Feedback.of(self.options.get("feedback")).delay)
        self._describe(batches)
        rows = {contender: self.new_row(contender, self.seeds[0]) for contender in self.contenders}
        trainers: dict[Contender, Trainer] = {}
        for contender, row in rows.items():
            self.observer.note(f"{contender.label}: memory")
            try:
                trainer = self._trainer(contender, self.seeds[0], quality_every=0, true_every=0, scheduler=None)
                trainer.model.train()
                trainer.bind(batches[0])
                row.saved_activation_bytes = saved_bytes(trainer, batches)
                trainers[contender] = trainer
            except CutError:
                raise
            except Exception as error:
                self.failed(row, error)
            self.observer.advance()
        if not trainers:
            raise self.failures[0]
        if self.timing_s > 0:
            self.observer.note("step times, side by side")
            self._time(trainers, rows, batches)
        return rows

    def _time(self, trainers: dict[Contender, Trainer], rows: dict[Contender, Row], batches: list[Any]) -> None:
        times = self.taking_turns({c: trainer.step for c, trainer in trainers.items()}, rows, batches)
        labels = list(times)
        window = max(period(trainers[c]) for c in labels)
        means = {c: windows(each, window) for c, each in times.items()}
        base = next((means[c] for c in labels if c.method.name == BACKPROP), None)
        for contender in labels:
            row = rows[contender]
            row.step_s = statistics.median(means[contender])
            if base is not None:
                row.step_ratio = statistics.median(a / b for a, b in zip(means[contender], base, strict=True))
        self.observer.note("where a step's time goes")
        try:
            parts = split([trainers[c] for c in labels], batches, min(window, PERIOD))
        except RowError as failure:  # its step time stands; where it went stays open, for all
            self.failed(rows[labels[failure.index]], failure.error)
            return
        for contender, spent in zip(labels, parts, strict=True):
            rows[contender].step_split = spent

    # Training.

    def train(self, contender: Contender, row: Row) -> None:
        """One run of one row."""
        many = f", seed {row.seed}" if len(self.seeds) > 1 else ""
        epochs = self.experiment.epochs

        def told(epoch: Epoch) -> None:
            self.observer.advance()
            value = epoch.metrics[self.metric[0] if self.metric else "loss"]
            said = f"{self.metric_name} {value:.4f}"
            self.observer.note(f"{contender.label}{many}: epoch {epoch.epoch}/{epochs}, {said}")

        self.observer.note(f"{contender.label}{many}: epoch 0/{epochs}")
        try:
            trainer = self._trainer(contender, row.seed)
            train, test = self.source.loaders(row.seed)
            cuda = _forget_peak()
            history = trainer.fit(train, epochs, validate=test, on_epoch=told, validate_every=self._validate_every)
        except Exception as error:
            self.failed(row, error)
            return
        row.peak_memory_bytes = torch.cuda.max_memory_allocated() if cuda else None
        record(row, history)
        if self.target is not None and self.higher_is_better is not None:
            row.time_to_target_s = time_to_target(row.history, self.target, self.higher_is_better)
        if epochs:
            row.optimizer = type(trainer.optimizers[0]).__name__
            self.description["samples"] = history.epochs[0].samples
        row.trainer = trainer.configuration()

    # What both are made of.

    def _trainer(self, contender: Contender, seed: int, **more: Any) -> Trainer:
        experiment = self.experiment
        torch.manual_seed(seed)
        options = override(Options, {"scheduler": experiment.scheduler, **self.options}, more)
        if contender.method.estimates:
            options["estimator"] = contender.spec
        return Trainer(
            self.source.network(),
            loss=experiment.loss,
            optimizer=experiment.optimizer,
            method=contender.method,
            metric=experiment.metric,
            seed=seed,
            progress=False,
            **options,
        )

    def _describe(self, batches: list[Any]) -> None:
        """Fill in what the file says of the experiment, and settle the cuts."""
        torch.manual_seed(self.seeds[0])
        net = self.source.network()
        if self.experiment.stages is not None and self.experiment.stages > 1:
            estimating = next((c for c in self.contenders if c.method.estimates), self.contenders[0])
            balanced = self._trainer(estimating, self.seeds[0])
            balanced.bind(batches[0])
            self.source.cuts = balanced.net.cuts
        if self.target is not None:
            self._validate_every = max(self.source.epoch_length(self.seeds[0]) // VALIDATIONS, 1)
        cuts = self.source.cuts or []
        described = self.source.description(net.model, cuts, self.seeds[0], len(self.seeds))
        self.description = {**described, "target": self.target}

    def new_row(self, contender: Contender, seed: int) -> Row:
        """With its names, and nothing measured."""
        return Row(
            str(contender.method),
            contender.estimator,
            seed,
            threads=self.threads,
            metric=self.metric_name,
            higher_is_better=self.higher_is_better,
        )

    def failed(self, row: Row, error: Exception) -> None:
        """What lies in the experiment itself is raised: it would fail every row."""
        if isinstance(error, ExperimentError):
            raise error
        super().failed(row, error)


def _forget_peak() -> bool:
    """Begin a new peak of CUDA's memory; whether there is one to read. On a CPU one process runs all rows."""
    if not (torch.cuda.is_available() and torch.cuda.is_initialized()):
        return False
    torch.cuda.reset_peak_memory_stats()
    return True
