"""What comparisons have in common: rows with every seed, step times side by side, failures, and who is told of it."""

from __future__ import annotations

import math
import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Generic, Protocol, TypedDict, TypeVar

from torch import nn

from syngrad import metrics
from syngrad.checks import check_whole
from syngrad.compare.step_costs import THREADS, RowError, step_seconds, threads
from syngrad.errors import ConfigError, SyngradError, TrainingError, first_line
from syngrad.experiments.experiment import Experiment
from syngrad.recurrent import RecurrentExperiment
from syngrad.results import Row

#: more than anybody has time for; NumPy takes no larger seed
SEEDS, SEED = 10_000, 2**31
#: what to set where nobody says whether more of a feed-forward experiment's metric is better
WHICH_IS_BETTER = "higher_is_better = True or False on the metric's function"

Key = TypeVar("Key", bound=Hashable)


class Observer(Protocol):
    """Who is told how far a comparison is."""

    def begin(self, total: int) -> None:
        """There will be so many calls of `advance`."""

    def note(self, text: str) -> None:
        """What is being done."""

    def advance(self) -> None:
        """One part of it is done."""


class Silent:
    """The observer where nobody wants to be told."""

    def begin(self, total: int) -> None:
        """Tell nobody."""

    def note(self, text: str) -> None:
        """Tell nobody."""

    def advance(self) -> None:
        """Tell nobody."""


class Measuring(TypedDict, total=False):
    """How a comparison in one process measures.

    Args:
        seed, seeds: The first seed, and how many from there; each row is run with every one. 0 and 1 unless given.
        threads: PyTorch's, during the run; 1 unless given.
        timing_s: Seconds, about, for which step times are taken, all rows together; 0 for not at all, 4 unless given.
        observer: Told how far it is.
    """

    seed: int
    seeds: int
    threads: int
    timing_s: float
    observer: Observer | None


class Base(ABC, Generic[Key]):
    """Rows by key, in the order asked for. A subclass makes what each trains, to be measured beforehand and trained.

    Args:
        keys: What the rows are known by here.
        labels: As they were asked for.
        epochs: Of each run.
        seed, seeds, threads, timing_s, observer: See :class:`Measuring`.
    """

    #: errors beforehand that are every row's, and so are raised
    of_every_row: tuple[type[Exception], ...] = ()

    def __init__(
        self,
        keys: Sequence[Key],
        labels: Sequence[str],
        epochs: int,
        *,
        seed: int = 0,
        seeds: int = 1,
        threads: int = 1,
        timing_s: float = 4.0,
        observer: Observer | None = None,
    ) -> None:
        self.keys, self.labels, self.epochs = list(keys), list(labels), epochs
        check_whole("seed", seed, 0, SEED)
        self.seeds = range(seed, seed + check_whole("seeds", seeds, 1, SEEDS))
        self.threads = check_whole("threads", threads, 1, THREADS)
        self.timing_s, self.observer = timing_s, observer or Silent()
        self.rows: list[Row] = []
        self.description: dict[str, Any] = {}
        self.failures: list[SyngradError] = []

    def run(self) -> list[Row]:
        """Measure everything; the rows in the order asked for, one a seed."""
        with threads(self.threads):
            self.observer.begin(len(self.keys) * (1 + len(self.seeds) * self.epochs))
            templates = self._side_by_side()
            for key in self.keys:
                for seed in self.seeds:
                    row = self.new_row(key, seed)
                    template = templates[key]
                    row.status, row.step_s, row.step_ratio = template.status, template.step_s, template.step_ratio
                    row.saved_activation_bytes = template.saved_activation_bytes
                    row.step_split = template.step_split
                    if row.ok:
                        self.train(key, row)
                    self.rows.append(row)
        if not any(row.ok for row in self.rows):
            raise self.failures[0]
        return self.rows

    def _side_by_side(self) -> dict[Key, Row]:
        """A row a key with its step time, its ratio to the baseline's, and its saved bytes."""
        self.observer.note("the data")
        self.read_data()
        rows = {key: self.new_row(key, self.seeds[0]) for key in self.keys}
        ready: dict[Key, Any] = {}
        for key, row in rows.items():
            self.observer.note(f"{self.label(key)}: memory")
            try:
                ready[key] = self.throw_away(key, row)
            except self.of_every_row:
                raise
            except Exception as error:
                self.failed(row, error)
            self.observer.advance()
        if not ready:
            raise self.failures[0]
        if self.timing_s > 0:
            self.observer.note("step times, side by side")
            self.time_steps(ready, rows)
        return rows

    @abstractmethod
    def label(self, key: Key) -> str:
        """What the observer calls a row."""

    @abstractmethod
    def new_row(self, key: Key, seed: int) -> Row:
        """With its names, and nothing measured."""

    @abstractmethod
    def read_data(self) -> None:
        """Read the minibatches that steps are measured on."""

    @abstractmethod
    def throw_away(self, key: Key, row: Row) -> Any:
        """What takes a row's steps while they are measured, and no longer; the row gets its saved bytes."""

    @abstractmethod
    def time_steps(self, ready: dict[Key, Any], rows: dict[Key, Row]) -> None:
        """Fill in the step times of those that are ready."""

    @abstractmethod
    def train(self, key: Key, row: Row) -> None:
        """Fill in what one run gives."""

    def taking_turns(
        self, steps: Mapping[Key, Callable[[Any], Any]], rows: dict[Key, Row], batches: Sequence[Any]
    ) -> dict[Key, list[float]]:
        """Seconds of every step of those rows that can take them; a row that fails is out, and all begin anew."""
        running = dict(steps)
        while running:
            keys = list(running)
            try:
                times = step_seconds([running[key] for key in keys], batches, self.timing_s)
                return dict(zip(keys, times, strict=True))
            except RowError as failure:
                self.failed(rows[keys[failure.index]], failure.error)
                del running[keys[failure.index]]
        raise self.failures[0]

    def failed(self, row: Row, error: Exception) -> None:
        """Keep the failure with its row, whatever it is: what the user's own loader or schedule raises as well."""
        known = error if isinstance(error, SyngradError) else TrainingError(first_line(error))
        row.status = f"failed: {known}"
        self.failures.append(known)


def enter_step_times(rows: Mapping[Key, Row], times: Mapping[Key, Sequence[float]], baseline: Key | None) -> None:
    """Fill in medians, and the medians of the ratios to the baseline's, taken at one time each."""
    base = None if baseline is None else times.get(baseline)
    for key, each in times.items():
        rows[key].step_s = statistics.median(each)
        if base is not None:
            rows[key].step_ratio = statistics.median(a / b for a, b in zip(each, base, strict=True))


def check_target(target: float | None, metric: str, higher_is_better: bool | None, remedy: str) -> float | None:
    """Refuse a target that is no number, that no accuracy can be, or of which nobody can say when it is reached.

    Args:
        target: a value of the metric, or None for none.
        metric: its name.
        higher_is_better: whether more of it is better, where anybody says.
        remedy: what to set where nobody does.
    """
    if target is None:
        return None
    if not math.isfinite(target):
        raise ConfigError(f"target {target:g} must be a finite number, a value of {metric!r}")
    if higher_is_better is None:
        raise ConfigError(f"target {target:g}: nobody says whether more or less of {metric!r} is better; set {remedy}")
    if metric == "accuracy" and not 0 < target <= 1:
        raise ConfigError(f"target {target:g}: an accuracy lies between 0 and 1; write 0.88 for 88 %")
    return float(target)


def check_rows(labels: Sequence[str], rows: Sequence[Any], standing: Sequence[str]) -> None:
    """Refuse two rows that are the same, and none at all; standing: the rows where nobody names any."""
    twice = next((label for k, label in enumerate(labels) if rows[k] in rows[:k]), None)
    if twice is not None:
        raise ConfigError(f"row {twice!r} is there twice; name each row once")
    if not labels:
        raise ConfigError(f"there are no rows to compare; name some, as in {','.join(standing)}")


def readable(name: str) -> str:
    """A function's name for tables and files; "custom" for one that has none of its own (a lambda, a partial)."""
    return "custom" if name.startswith("<") or name == "partial" else name


def estimator_name(spec: Any) -> str:
    """What tables call an estimator: the text that was given, or the name of a function or class."""
    return spec if isinstance(spec, str) else readable(getattr(spec, "__name__", type(spec).__name__))


def metric_named(experiment: Experiment) -> tuple[str, bool | None]:
    """What tables call an experiment's metric, and whether a larger value is better, where anybody says."""
    resolved = metrics.resolve(experiment.metric)
    return readable(resolved[0]) if resolved else "loss", metrics.higher_is_better(resolved)


def described(
    experiment: Experiment | RecurrentExperiment,
    modules: Sequence[nn.Module],
    cuts: Sequence[str],
    seed: int,
    seeds: int,
    *,
    samples: int | None = None,
    target: float | None = None,
    **more: Any,
) -> dict[str, Any]:
    """What the results file says of an experiment.

    Args:
        experiment: The experiment.
        modules: What is trained, the model first.
        cuts: Names of the modules that begin a stage.
        seed: The first.
        seeds: How many from there.
        samples: Of an epoch; a loader's are known after one.
        target: The metric's value that is timed.
        more: What only a recurrent experiment has.
    """
    return {
        "name": experiment.name,
        "model": type(modules[0]).__name__,
        "parameters": sum(p.numel() for module in modules for p in module.parameters()),
        "dataset": experiment.dataset,
        "samples": samples,
        "batch_size": experiment.batch_size,
        "epochs": experiment.epochs,
        **more,
        "stages": len(cuts) + 1,
        "cuts": list(cuts),
        "seed": seed,
        "seeds": seeds,
        "target": target,
    }
