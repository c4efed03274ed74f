"""Feed-forward nets by several methods: rows `method[:estimator]`, which rows cost what, and how well each learns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import torch

from syngrad import metrics
from syngrad.compare.base import (
    WHICH_IS_BETTER,
    Base,
    Measuring,
    check_rows,
    check_target,
    described,
    enter_step_times,
    estimator_name,
    metric_named,
)
from syngrad.compare.step_costs import PERIOD, RowError, period, saved_bytes, split_seconds, windows
from syngrad.compare.user_experiment import ExperimentError, UserExperiment
from syngrad.errors import CutError
from syngrad.estimators.registry import parse as parse_estimator
from syngrad.experiments.experiment import Experiment
from syngrad.methods.policy import Method
from syngrad.methods.registry import split_row
from syngrad.results import BACKPROP, Row, time_to_target
from syngrad.runtime.feedback_options import Feedback
from syngrad.trainer import Trainer
from syngrad.trainer.history import Epoch

#: what is compared where nobody says
ROWS = ("backprop", "synthetic", "synthetic:linear", "synthetic:local", "zero")
#: how often an epoch the metric is taken, at least, where the time to a target is asked for
VALIDATIONS = 4


@dataclass(frozen=True, eq=False)
class Contender:
    """One row as it was asked for: `spec` is what the Trainer is given as estimator, `estimator` its name in tables."""

    label: str
    method: Method
    spec: Any
    estimator: str


def contenders(rows: Sequence[str], estimator: Any = "default") -> list[Contender]:
    """The rows of a comparison, checked before anything runs; estimator: of those that estimate and name none.

    Raises:
        ConfigError: An unknown method or estimator, a row named twice, or none.
    """
    made: list[Contender] = []
    for text in rows:
        method, name = split_row(text)
        spec = estimator if method.estimates and ":" not in text else name
        if isinstance(spec, str) and method.estimates:
            parse_estimator(spec)
        made.append(Contender(text.strip(), method, spec, estimator_name(spec)))
    check_rows([contender.label for contender in made], [(c.method, c.spec) for c in made], ROWS)
    return made


class Comparison(Base[Contender]):
    """An experiment's rows, measured by :meth:`run`; `rows` holds what is finished, also after an interrupt.

    A row that fails while it runs is kept as "failed: …"; what goes wrong for every row, or lies in the experiment
    itself, is raised.

    Args:
        experiment: What all rows train.
        rows: Each `method[:estimator]`.
        estimator: Of those that estimate and do not name one; the experiment's own where None.
        target: The metric's value whose first crossing is timed; the metric is then taken at least four times an epoch.
        measuring: See :class:`syngrad.compare.base.Measuring`.

    Raises:
        ConfigError: At construction, what cannot be used.
    """

    of_every_row = (CutError,)

    def __init__(
        self,
        experiment: Experiment,
        rows: Sequence[str] = ROWS,
        *,
        estimator: Any = None,
        target: float | None = None,
        **measuring: Unpack[Measuring],
    ) -> None:
        self.experiment = experiment
        self.source = UserExperiment(experiment)
        self.options = self.source.options()
        own = self.options.pop("estimator", "default")
        self.contenders = contenders(rows, own if estimator is None else estimator)
        labels = [contender.label for contender in self.contenders]
        super().__init__(self.contenders, labels, experiment.epochs, **measuring)
        self.metric_name, self.higher_is_better = metric_named(experiment)
        self.target = check_target(target, self.metric_name, self.higher_is_better, WHICH_IS_BETTER)
        self._validate_every: int | None = None

    # The measurement beforehand: step times and what is kept.

    def label(self, contender: Contender) -> str:
        """As it was typed."""
        return contender.label

    def read_data(self) -> None:
        """Read the first few minibatches, and with them settle the cuts."""
        delays = [(f"row {c.label!r}", c.method.delay) for c in self.contenders]
        if isinstance(late := Feedback.of(self.options.get("feedback")).delay, int):
            delays.append(("option feedback_delay", late))
        self._batches = self.source.batches(self.seeds[0], delays)
        torch.manual_seed(self.seeds[0])
        model = self.source.network().model
        if self.experiment.stages is not None and self.experiment.stages > 1:
            estimating = next((c for c in self.contenders if c.method.estimates), self.contenders[0])
            balanced = self._trainer(estimating, self.seeds[0])
            balanced.bind(self._batches[0])
            self.source.cuts = balanced.net.cuts
        if self.target is not None:
            self._validate_every = max(self.source.epoch_length(self.seeds[0]) // VALIDATIONS, 1)
        cuts, seeds = self.source.cuts or [], len(self.seeds)
        self.description = described(self.experiment, [model], cuts, self.seeds[0], seeds, target=self.target)

    def throw_away(self, contender: Contender, row: Row) -> Trainer:
        """A trainer that is bound, and has kept what its steps keep."""
        trainer = self._trainer(contender, self.seeds[0], quality_every=0, true_every=0, scheduler=None)
        trainer.model.train()
        trainer.bind(self._batches[0])
        row.saved_activation_bytes = saved_bytes(trainer, self._batches)
        return trainer

    def time_steps(self, ready: dict[Contender, Trainer], rows: dict[Contender, Row]) -> None:
        """Fill in the step times, and where they go."""
        steps = {contender: trainer.step for contender, trainer in ready.items()}
        times = self.taking_turns(steps, rows, self._batches)
        labels = list(times)
        window = max(period(ready[c]) for c in labels)
        means = {c: windows(each, window) for c, each in times.items()}
        enter_step_times(rows, means, next((c for c in labels if c.method.name == BACKPROP), None))
        self.observer.note("where a step's time goes")
        try:
            parts = split_seconds([ready[c] for c in labels], self._batches, min(window, PERIOD))
        except RowError as failure:  # its step time stands; where it went stays open, for all
            self.failed(rows[labels[failure.index]], failure.error)
            return
        for contender, spent in zip(labels, parts, strict=True):
            rows[contender].step_split = spent

    # Training.

    def train(self, contender: Contender, row: Row) -> None:
        """One run of one row."""
        many = f", seed {row.seed}" if len(self.seeds) > 1 else ""
        epochs, resolved = self.experiment.epochs, metrics.resolve(self.experiment.metric)

        def told(epoch: Epoch) -> None:
            self.observer.advance()
            value = epoch.metrics[resolved[0] if resolved else "loss"]
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
        row.record(history)
        if self.target is not None and self.higher_is_better is not None:
            row.time_to_target_s = time_to_target(row.history, self.target, self.higher_is_better)
        if epochs:
            row.optimizer = type(trainer.optimizers[0]).__name__
            self.description["samples"] = history.epochs[0].samples
        row.trainer = trainer.configuration()

    # What is measured beforehand and trained is made the same way.

    def _trainer(self, contender: Contender, seed: int, **more: Any) -> Trainer:
        own = {**self.options, "estimator": contender.spec} if contender.method.estimates else self.options
        return self.source.trainer(contender.method, seed, own, more)

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
