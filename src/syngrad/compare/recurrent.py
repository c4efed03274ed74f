"""Recurrent nets trained in several ways on the same course: windows of several lengths, with estimates and without.

As in the other comparison step times come first, the rows taking turns on the same piece; then each row learns, a fresh
net from the same seed. A step is a piece of the course: as much time for all, in however many windows.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from typing import Any, Unpack

from syngrad.compare.base import Base, Measuring, check_target, described, enter_step_times, estimator_name
from syngrad.compare.step_costs import synchronise
from syngrad.compare.user_experiment import CheckedCourse, named
from syngrad.core.memory import SavedBytes
from syngrad.errors import ConfigError, TrainingError
from syngrad.recurrent import RecurrentExperiment
from syngrad.recurrent.curriculum import Curriculum, LearnerAdapter, SequenceBatch
from syngrad.recurrent.recurrent_experiment import RecurrentMethod
from syngrad.results import Row, thinned, time_to_target
from syngrad.tree import tensors

#: how often the true gradient is looked at in a run
PROBES = 8


class RecurrentComparison(Base[RecurrentMethod]):
    """A recurrent experiment's rows, measured by :meth:`run`; `rows` holds what is finished, also after an interrupt.

    A row that fails while it runs is kept as "failed: …".

    Args:
        experiment: What all rows learn.
        rows: See recurrent/recurrent_experiment.py; the experiment's own where None.
        estimator: Of the rows that estimate and do not name one.
        target: The metric's value whose first crossing is timed.
        measuring: See :class:`syngrad.compare.base.Measuring`.

    Raises:
        ConfigError: At construction, what cannot be used.
    """

    def __init__(
        self,
        experiment: RecurrentExperiment,
        rows: Sequence[str] | None = None,
        *,
        estimator: Any = None,
        target: float | None = None,
        **measuring: Unpack[Measuring],
    ) -> None:
        self.experiment = experiment
        labels = list(experiment.rows if rows is None else rows)
        self.methods = experiment.ways(labels, estimator)
        self.baseline = experiment.baseline(self.methods)
        super().__init__(self.methods, labels, experiment.epochs, **measuring)
        better, remedy = experiment.higher_is_better, "higher_is_better= of the experiment"
        self.target = check_target(target, experiment.metric, better, remedy)

    # Beforehand: step times and what is kept, on a piece of typical length, learnt from again and again.

    def label(self, method: RecurrentMethod) -> str:
        """As it was typed."""
        return method.method

    def read_data(self) -> None:
        """Take the piece."""
        self._piece = self._course(self.seeds[0]).sample()

    def throw_away(self, method: RecurrentMethod, row: Row) -> LearnerAdapter:
        """A student that has learnt from the piece."""
        student = self.experiment.student(method, self.seeds[0], quality_every=0)
        student.learn(self._piece)
        row.saved_activation_bytes = _saved(student, self._piece)
        self._describe(student)
        return student

    def time_steps(self, ready: dict[RecurrentMethod, LearnerAdapter], rows: dict[RecurrentMethod, Row]) -> None:
        """Fill in the step times."""
        steps = {method: student.learn for method, student in ready.items()}
        enter_step_times(rows, self.taking_turns(steps, rows, [self._piece]), self.baseline)

    # Learning.

    def train(self, method: RecurrentMethod, row: Row) -> None:
        """One run of one row."""
        experiment = self.experiment
        label = method.method + (f", seed {row.seed}" if len(self.seeds) > 1 else "")
        self.observer.note(f"{label}: epoch 0/{experiment.epochs}")
        advanced = 0
        try:
            student = experiment.student(method, row.seed)
            course = self._course(row.seed)
            run = _Run(student, course, experiment)
            for epoch in range(1, experiment.epochs + 1):
                value = run.epoch(epoch)
                self.observer.advance()
                advanced += 1
                self.observer.note(f"{label}: epoch {epoch}/{experiment.epochs}, {experiment.metric} {value:.4g}")
                if run.finished:
                    break
            run.close()
        except Exception as error:
            self.failed(row, error)
            return
        finally:
            for _ in range(experiment.epochs - advanced):
                self.observer.advance()
        row.history, row.train_loss = run.history, run.losses
        row.train_s = run.seconds
        row.samples_per_s = run.steps * experiment.batch_size / run.seconds if run.seconds else None
        row.optimizer = student.optimizer
        row.guarded = dict(student.guarded)
        row.interfaces = [
            {key: thinned(value) if isinstance(value, list) else value for key, value in each.items()}
            for each in student.interfaces()
        ]
        if self.target is not None and experiment.higher_is_better is not None:
            row.time_to_target_s = time_to_target(row.history, self.target, experiment.higher_is_better)

    # What both are made of.

    def _course(self, seed: int) -> Curriculum:
        said = f"experiment {self.experiment.name!r}"
        with named(f"{said}: course()", TrainingError):
            course = self.experiment.course(self.experiment.batch_size, seed)
        if not isinstance(course, Curriculum):
            raise ConfigError(f"{said}: course() must return a Course, got {type(course).__name__}")
        return CheckedCourse(course, said)

    def _describe(self, student: LearnerAdapter) -> None:
        if self.description:
            return
        experiment, steps = self.experiment, self.experiment.steps
        samples, first, many = steps * experiment.batch_size, self.seeds[0], len(self.seeds)
        modules = student.modules()
        made = described(experiment, modules, [], first, many, samples=samples, target=self.target, steps=steps)
        self.description = {**made, "baseline": self.baseline.method}

    def new_row(self, method: RecurrentMethod, seed: int) -> Row:
        """With its names, and nothing measured."""
        shown = "several" if isinstance(method.estimator, Mapping) else estimator_name(method.estimator)
        experiment = self.experiment
        return Row(
            method.method,
            shown,
            seed,
            threads=self.threads,
            metric=experiment.metric,
            higher_is_better=experiment.higher_is_better,
        )


class _Run:
    """One student on its course: `seconds` of learning alone, `steps` of time."""

    def __init__(self, student: LearnerAdapter, course: Curriculum, experiment: RecurrentExperiment) -> None:
        self.student, self.course, self.experiment = student, course, experiment
        self.seconds, self.steps = 0.0, 0
        self.history: list[tuple[float, float, float]] = []
        self.losses: list[tuple[float, float, float]] = []
        self.best: tuple[float, Any] | None = None
        self.waited = 0
        self._probe_every = max(1, -(-experiment.epochs // PROBES))

    @property
    def finished(self) -> bool:
        """Whether patience has run out."""
        return self.experiment.patience is not None and self.waited >= self.experiment.patience

    def epoch(self, epoch: int) -> float:
        """Learn for an epoch, and examine."""
        until = epoch * self.experiment.steps
        total, count = 0.0, 0
        while self.steps < until:
            piece = self.course.take()
            steps = self.student.steps(piece)
            before = time.perf_counter()
            loss = self.student.learn(piece)
            synchronise()
            self.seconds += time.perf_counter() - before
            self.course.heard(loss, piece)
            self.steps += steps
            total, count = total + loss * steps, count + steps
        if epoch % self._probe_every == 0 and (probed := self.course.probe()) is not None:
            self.student.probe(probed)
        value = self.course.examine(self.student)
        self.history.append((float(epoch), self.seconds, value))
        self.losses.append((float(epoch), self.seconds, total / max(count, 1)))
        self._remember(value)
        return value

    def close(self) -> None:
        """Put the best weights back where learning may stop early."""
        if self.best is not None and self.history and self.best[0] != self.history[-1][2]:
            for module, state in zip(self.student.modules(), self.best[1], strict=True):
                module.load_state_dict(state)
            self.history.append((*self.history[-1][:2], self.best[0]))

    def _remember(self, value: float) -> None:
        better = self.experiment.higher_is_better
        if self.experiment.patience is None:
            return
        if self.best is None or (value > self.best[0] if better else value < self.best[0]):
            states = [copy.deepcopy(module.state_dict()) for module in self.student.modules()]
            self.best, self.waited = (value, states), 0
        else:
            self.waited += 1


def _saved(student: LearnerAdapter, piece: SequenceBatch) -> int:
    """The most that is kept for backward passes at any moment of a piece, the piece itself left out."""
    given = tensors([piece.inputs, piece.targets, piece.context])
    with SavedBytes(*student.modules(), *student.estimators(), but=given) as meter:
        student.learn(piece)
    return meter.peak_bytes + student.held_bytes()
