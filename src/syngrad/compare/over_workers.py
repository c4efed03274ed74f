"""The comparison over several workers: every way to use them, on this host or between two emulated ones.

Each row is a run of its own, started in so many processes: Syngrad's methods, PyTorch's exact ones (rivals), and one
process alone, with one thread and with all. All train the same experiment from the same seed; what is compared is the
metric, the samples a second, the time to a target, and what crossed the link.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch

from syngrad.checks import check_positive, check_whole
from syngrad.compare.base import (
    WHICH_IS_BETTER,
    Observer,
    Silent,
    check_rows,
    check_target,
    described,
    metric_named,
)
from syngrad.compare.rivals import RIVALS, RivalRun, parse_rival, run_rival
from syngrad.compare.user_experiment import UserExperiment
from syngrad.errors import ConfigError, SyngradError
from syngrad.estimators.registry import parse as parse_estimator
from syngrad.experiments import registry
from syngrad.launch.emulated_link import EmulatedHost, emulated, parse_link
from syngrad.launch.hosts import launched_result
from syngrad.methods.registry import split_row
from syngrad.pipeline.options import Distributed
from syngrad.results import TOO_LARGE, Row, time_to_target

#: what is compared where nobody says; "alone" is back-propagation in one process
ROWS = ("alone", "alone(threads)", "ddp", "ddp:bf16", "ddp:periodic", "gpipe", "1f1b", "delayed", "synthetic:local",
        "synthetic")  # fmt: skip
MOST = 64
MIB = 1 << 20
KINDS = {name.partition(":")[0] for name in RIVALS}


class WorkersComparison:
    """Rows over several workers; `rows` holds what is finished, also after an interrupt.

    A row that fails is kept as "failed: …", one that needs more memory than there may be as "does not fit: …".

    Args:
        experiment: A built-in name or path/to/file.py:function.
        workers: How many; each is a process of `threads` threads.
        rows: `alone`, `alone(threads)`, a rival's row, or `method[:estimator]`.
        estimator: Of the rows that estimate and do not name one.
        instead: What stands instead of the experiment's own.
        options: Of the Trainer, for a run over several workers.
        seed, seeds: The first seed, and how many from there.
        threads: PyTorch's, of each worker.
        target: The metric's value whose first crossing is timed.
        link: Two hosts with so much delay and rate between them, as in "20ms,100mbit" (needs root); None for this host
            alone.
        memory: MiB that a worker may have at most, Python and PyTorch among them; None for any.
        observer: Told how far it is.

    Raises:
        ConfigError: At construction, what cannot be used.
    """

    def __init__(
        self,
        experiment: str,
        workers: int,
        rows: Sequence[str] | None = None,
        *,
        estimator: str | None = None,
        instead: dict[str, Any] | None = None,
        options: dict[str, Any] | None = None,
        seed: int = 0,
        seeds: int = 1,
        threads: int = 1,
        target: float | None = None,
        link: str | None = None,
        memory: float | None = None,
        observer: Observer | None = None,
    ) -> None:
        self.workers = check_whole("workers", workers, 2, MOST)
        self.name, self.instead, self.options = experiment, dict(instead or {}), dict(options or {})
        self.experiment = registry.load(experiment, **self.instead)
        self.labels = _labels(rows, estimator)
        Distributed(**self.options)
        self.seeds = range(seed, seed + check_whole("seeds", seeds, 1))
        self.threads, self.observer = threads, observer or Silent()
        self.target = check_target(target, *metric_named(self.experiment), WHICH_IS_BETTER)
        self.link = parse_link(link) if link is not None else None
        self.memory = None if memory is None else check_positive("memory", memory)
        self.rows: list[Row] = []
        #: of every row of Syngrad's own, by label and seed: the processes' accounts of their time
        self.accounts: dict[tuple[str, int], list[dict[str, Any]]] = {}
        self.description: dict[str, Any] = {}

    def run(self) -> list[Row]:
        """Train every row; in the order asked for, one a seed."""
        torch.manual_seed(self.seeds[0])
        model = UserExperiment(self.experiment).network().model
        cuts, seeds = list(self.experiment.cuts or []), len(self.seeds)
        self.description = described(self.experiment, [model], cuts, self.seeds[0], seeds, target=self.target)
        if not cuts:
            self.description["stages"] = int(self.experiment.stages or 1)
        self.observer.begin(len(self.labels) * len(self.seeds))
        failures: list[SyngradError] = []
        with emulated(self.link) if self.link is not None else nullcontext(None) as hosts:
            for label in self.labels:
                for seed in self.seeds:
                    self.observer.note(f"{label}, seed {seed}")
                    try:
                        row = self._row(label, seed, hosts)
                        self._weigh(row)
                    except SyngradError as error:
                        failures.append(error)
                        row = self._failed(label, seed, error)
                    self.rows.append(row)
                    self.observer.advance()
        if not any(row.ok for row in self.rows):
            raise failures[0] if failures else self._none_fits()
        return self.rows

    def _weigh(self, row: Row) -> None:
        """Mark a row whose largest worker has had more memory than there may be; its figures stay with it."""
        peak = row.peak_memory_bytes
        if self.memory is not None and peak is not None and peak > self.memory * MIB:
            row.status = f"{TOO_LARGE}: its largest process had {peak / MIB:,.0f} MiB"

    def _none_fits(self) -> ConfigError:
        least = min(row.peak_memory_bytes or 0 for row in self.rows) / MIB
        return ConfigError(f"no row fits memory={self.memory:g} MiB: the least has {least:,.0f} MiB; give that or more")

    def _failed(self, label: str, seed: int, error: SyngradError) -> Row:
        name, better = metric_named(self.experiment)
        return Row(*_named(label), seed, status=f"failed: {error}", metric=name, higher_is_better=better)

    def _row(self, label: str, seed: int, hosts: Sequence[EmulatedHost] | None) -> Row:
        made = self._rival(label, seed, hosts) if _kind(label) in KINDS else self._ours(label, seed, hosts)
        metric = made.pop("metric")
        plain = {name: value for name, value in made.items() if name in Row.__dataclass_fields__}
        row = Row(**{**plain, "metric": metric["name"], "higher_is_better": metric["higher_is_better"]})
        row.history = [(a, b, c) for a, b, c in metric["history"]]
        row.method, row.estimator = _named(label)
        if self.target is not None and row.higher_is_better is not None:
            row.time_to_target_s = time_to_target(row.history, self.target, row.higher_is_better)
        return row

    def _rival(self, label: str, seed: int, hosts: Sequence[EmulatedHost] | None) -> dict[str, Any]:
        # a pipeline's workers part where Syngrad's would, if it is said where
        cuts, place = self.experiment.cuts, None
        if cuts and len(cuts) + 1 == self.workers:
            place = list(cuts)
        instead = {name: value for name, value in self.instead.items() if value is not None}
        run = RivalRun(label, self.name, seed=seed, threads=self.threads, place=place, **instead)
        return run_rival(run, self.workers, hosts=hosts)

    def _ours(self, label: str, seed: int, hosts: Sequence[EmulatedHost] | None) -> dict[str, Any]:
        alone = label.startswith("alone")
        threads = (os.cpu_count() or 1) if label == "alone(threads)" else self.threads
        method, _, estimator = ("backprop", "", "") if alone else label.partition(":")
        spec = {
            "experiment": self.name,
            "instead": self.instead,
            "method": method,
            "estimator": estimator or None,
            "seed": seed,
            "threads": threads,
            "options": {} if alone else self.options,
            "validations": 4,
        }
        command = [sys.executable, "-m", "syngrad.compare.training", json.dumps(spec)]
        workers: int | list[int] = 1 if alone else self.workers
        if hosts is not None and not alone:
            workers = [self.workers * (k + 1) // len(hosts) - self.workers * k // len(hosts) for k in range(len(hosts))]
        made: dict[str, Any] = launched_result(command, workers, None if alone else hosts, restarts=0, threads=threads)
        if made["processes"]:
            self.accounts[label, seed] = made["processes"]
        self.description["samples"] = made["samples"]
        row: dict[str, Any] = made["row"]
        return row


def _labels(rows: Sequence[str] | None, estimator: str | None) -> list[str]:
    """The rows, checked before anything runs, each with its estimator's name where one was given."""
    if estimator is not None:
        parse_estimator(estimator)
    labels = [_checked(label.strip(), estimator) for label in (ROWS if rows is None else rows)]
    if rows is None:  # the estimator may have made two of them the same
        return list(dict.fromkeys(labels))
    check_rows(labels, labels, ROWS)
    return labels


def _checked(label: str, estimator: str | None) -> str:
    """Refuse a row that is neither Syngrad's nor a rival's."""
    if label in ("alone", "alone(threads)"):
        return label
    if _kind(label) in KINDS:
        parse_rival(label)
        return label
    method, named = split_row(label)
    if method.name == "backprop":
        raise ConfigError("row 'backprop': over several processes it waits for itself; write alone for one process")
    if method.estimates:
        parse_estimator(named)
    return f"{label}:{estimator}" if estimator is not None and method.estimates and ":" not in label else label


def _named(label: str) -> tuple[str, str]:
    """A row's method and estimator in the results file: back-propagation alone is what all are held against."""
    if label == "alone":
        return "backprop", ""
    method, _, rest = label.partition(":")
    return method, rest


def _kind(label: str) -> str:
    return label.partition(":")[0].partition("(")[0]
