"""What a rival's processes are told to do, and how it is written on their command line."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from syngrad.compare.rivals.names import Rival, check_workers, parse_rival
from syngrad.errors import ConfigError
from syngrad.experiments import registry
from syngrad.experiments.experiment import Experiment, check_count


@dataclass(frozen=True)
class Plan:
    """One run of one row.

    experiment: a built-in name, or path/to/file.py:function; epochs, batch_size, optimizer, stages, cuts: instead of
    its own. place: where the processes of a pipeline part, W−1 names; balanced by measured cost where none is given.
    microbatches: of a pipeline; None: tried, and the fastest taken. minibatches: how many to time, after `warm_up`
    others, for the throughput; None: train for the experiment's epochs, validating `validations` times an epoch, until
    the metric has reached `target` where one is given. most_s: no longer than so many seconds of training; a run is
    then what it was until there. state: a file for the trained weights (safetensors).
    """

    row: str
    experiment: str
    seed: int = 0
    threads: int = 1
    epochs: int | None = None
    batch_size: int | None = None
    optimizer: str | None = None
    stages: int | None = None
    cuts: Sequence[str] | None = None
    place: Sequence[str] | None = None
    microbatches: int | None = None
    minibatches: int | None = None
    warm_up: int = 5
    validations: int = 4
    target: float | None = None
    most_s: float | None = None
    state: str | None = None

    @property
    def rival(self) -> Rival:
        """The row, taken apart."""
        return parse_rival(self.row)

    def load(self) -> Experiment:
        """The experiment with what stands instead of its own."""
        return registry.load(
            self.experiment,
            epochs=self.epochs,
            batch_size=self.batch_size,
            optimizer=self.optimizer,
            stages=self.stages,
            cuts=self.cuts,
        )

    def check(self, workers: int) -> Experiment:
        """The experiment; raises ConfigError for what cannot run in so many processes."""
        rival = self.rival
        check_workers(rival, workers)
        check_count("threads", self.threads, 1)
        check_count("validations", self.validations, 1)
        for name, least in (("minibatches", 1), ("microbatches", 1), ("warm_up", 0)):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), least)
        experiment = self.load()
        if rival.kind == "ddp" and experiment.batch_size % workers:
            raise ConfigError(
                f"row {self.row!r}: a batch of {experiment.batch_size} does not divide over {workers} workers; give "
                f"--batch-size {max(experiment.batch_size // workers, 1) * workers}, or other workers"
            )
        if rival.pipelined:
            if experiment.cuts is not None and len(experiment.cuts) + 1 < workers:
                raise ConfigError(
                    f"row {self.row!r} over {workers} workers needs as many stages, and experiment "
                    f"{experiment.name!r} has {len(experiment.cuts) + 1}; give fewer workers, or more --cuts"
                )
            parts = self.microbatches
            if parts is not None and experiment.batch_size % parts:
                raise ConfigError(
                    f"row {self.row!r}: a batch of {experiment.batch_size} does not divide into {parts} microbatches; "
                    "give a number that divides it"
                )
            if parts is not None and rival.kind == "1f1b" and parts < workers:
                raise ConfigError(f"row {self.row!r} over {workers} workers needs as many microbatches, got {parts}")
            if self.place is not None and len(self.place) != workers - 1:
                raise ConfigError(
                    f"row {self.row!r}: {len(self.place)} places part the model into {len(self.place) + 1}, and there "
                    f"are {workers} workers; name {workers - 1}"
                )
        return experiment

    def arguments(self) -> list[str]:
        """As :func:`read` takes them."""
        words: list[str] = []
        for field in dataclasses.fields(self):
            value: Any = getattr(self, field.name)
            if value is not None:
                words += [f"--{field.name}", ",".join(value) if isinstance(value, list | tuple) else str(value)]
        return words


def read(argv: Sequence[str]) -> tuple[Plan, str]:
    """The plan of a command line, and the file for its row."""
    parser = argparse.ArgumentParser("python -m syngrad.compare.rivals", description="Train one row's processes.")
    for name in ("row", "experiment", "out"):
        parser.add_argument(f"--{name}", required=True)
    counts = ("seed", "threads", "epochs", "batch_size", "stages", "microbatches", "minibatches", "warm_up")
    for name in (*counts, "validations"):
        parser.add_argument(f"--{name}", f"--{name.replace('_', '-')}", type=int, default=argparse.SUPPRESS)
    for name in ("cuts", "place"):
        parser.add_argument(f"--{name}", type=lambda text: text.split(","), default=argparse.SUPPRESS)
    for name in ("optimizer", "state"):
        parser.add_argument(f"--{name}", default=argparse.SUPPRESS)
    for name in ("most_s", "target"):
        parser.add_argument(f"--{name}", f"--{name.replace('_', '-')}", type=float, default=argparse.SUPPRESS)
    given = vars(parser.parse_args(argv))
    out = given.pop("out")
    return Plan(**given), out
