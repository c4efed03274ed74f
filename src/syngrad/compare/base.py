"""What comparisons in one process have in common: every row with every seed, step times side by side, and failures."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Generic, TypeVar

from syngrad.compare.contenders import Observer, Silent
from syngrad.compare.measure import THREADS, RowError, threads, turns
from syngrad.errors import SyngradError, TrainingError, first_line
from syngrad.experiments.experiment import check_count
from syngrad.results import Row

#: more than anybody has time for; NumPy takes no larger seed
SEEDS, SEED = 10_000, 2**31

Key = TypeVar("Key", bound=Hashable)


class Base(ABC, Generic[Key]):
    """Rows by key, in the order asked for. A subclass measures them beforehand, side by side, and trains each.

    labels: as they were asked for. epochs: of each run. The rest is as :class:`syngrad.compare.Comparison` explains it.
    """

    def __init__(
        self,
        keys: Sequence[Key],
        labels: Sequence[str],
        epochs: int,
        *,
        seed: int,
        seeds: int,
        threads: int,
        timing_s: float,
        observer: Observer | None,
    ) -> None:
        self.keys, self.labels, self.epochs = list(keys), list(labels), epochs
        check_count("seed", seed, 0, SEED)
        self.seeds = range(seed, seed + check_count("seeds", seeds, 1, SEEDS))
        self.threads = check_count("threads", threads, 1, THREADS)
        self.timing_s, self.observer = timing_s, observer or Silent()
        self.rows: list[Row] = []
        self.description: dict[str, Any] = {}
        self.failures: list[SyngradError] = []

    def run(self) -> list[Row]:
        """Measure everything; the rows in the order asked for, one a seed."""
        with threads(self.threads):
            self.observer.begin(len(self.keys) * (1 + len(self.seeds) * self.epochs))
            templates = self.side_by_side()
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

    @abstractmethod
    def side_by_side(self) -> dict[Key, Row]:
        """A row a key with its step time, its ratio to the baseline's, and its saved bytes."""

    @abstractmethod
    def train(self, key: Key, row: Row) -> None:
        """Fill in what one run gives."""

    @abstractmethod
    def new_row(self, key: Key, seed: int) -> Row:
        """With its names, and nothing measured."""

    def taking_turns(
        self, steps: dict[Key, Callable[[Any], Any]], rows: dict[Key, Row], batches: Sequence[Any]
    ) -> dict[Key, list[float]]:
        """Seconds of every step of those rows that can take them; a row that fails is out, and all begin anew."""
        running = dict(steps)
        while running:
            keys = list(running)
            try:
                times = turns([running[key] for key in keys], batches, self.timing_s)
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
