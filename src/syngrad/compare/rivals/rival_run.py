"""One run of a rival: what its workers are told on their command line, and how it is started."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from syngrad.checks import check_whole
from syngrad.compare.rivals.rival_row import Rival, parse_rival
from syngrad.errors import ConfigError, LinkError, SyngradError, TrainingError
from syngrad.experiments import registry
from syngrad.experiments.experiment import Experiment
from syngrad.launch.emulated_link import EmulatedHost
from syngrad.launch.hosts import launched_result
from syngrad.launch.worker_processes import LaunchTimeoutError
from syngrad.pipeline.failures import UNEXPECTED, Failure, WorkersFailedError

#: exit code of a worker that failed for what the user can mend, and for the rest
USER_ERROR, OTHER_ERROR = 2, 1


def check_workers(rival: Rival, workers: int) -> None:
    """Refuse a number of workers that the row cannot run in."""
    if rival.kind == "plain" and workers != 1:
        raise ConfigError(f"row 'plain' is one process, got workers={workers}; give workers=1")
    if rival.kind != "plain" and workers < 2:
        raise ConfigError(f"row {str(rival)!r} needs at least 2 workers, got {workers}; give --workers 2")


@dataclass(frozen=True)
class RivalRun:
    """One run of one row.

    Args:
        row: A row of `RIVALS`.
        experiment: A built-in name, or path/to/file.py:function.
        seed: Of the weights and of the order of the data.
        threads: PyTorch's, of each worker.
        epochs, batch_size, optimizer, stages, cuts: Instead of the experiment's own.
        place: Where the workers of a pipeline part, W − 1 names; balanced by measured cost where None.
        microbatches: Of a pipeline; where None some numbers are tried, and the fastest taken.
        minibatches: How many to time for the throughput, after `warm_up` others; None: train for the epochs.
        validations: How often an epoch it is validated.
        target: The metric's value at which training ends.
        most_s: Seconds of training after which it ends; the run is then what it was until there.
        state: A file for the trained weights (safetensors).
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
        """The experiment, once it is sure that the row can train it in so many workers.

        Raises:
            ConfigError: It cannot.
        """
        rival = self.rival
        check_workers(rival, workers)
        check_whole("threads", self.threads, 1)
        check_whole("validations", self.validations, 1)
        for name, least in (("minibatches", 1), ("microbatches", 1), ("warm_up", 0)):
            if getattr(self, name) is not None:
                check_whole(name, getattr(self, name), least)
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


def read(argv: Sequence[str]) -> tuple[RivalRun, str]:
    """The run that a command line asks for, and the file for its row."""
    parser = argparse.ArgumentParser("python -m syngrad.compare.rivals", description="Train one row's processes.")
    parser.add_argument("--out", required=True)
    kinds = {"int": int, "float": float, "str": str, "Sequence[str]": lambda text: text.split(",")}
    for field in dataclasses.fields(RivalRun):
        kind: Any = kinds[str(field.type).removesuffix(" | None")]
        flags = dict.fromkeys((f"--{field.name}", f"--{field.name.replace('_', '-')}"))
        required = field.default is dataclasses.MISSING
        parser.add_argument(*flags, type=kind, required=required, default=argparse.SUPPRESS)
    given = vars(parser.parse_args(argv))
    out = given.pop("out")
    return RivalRun(**given), out


def run_rival(
    run: RivalRun, workers: int, hosts: Sequence[EmulatedHost] | None = None, *, timeout_s: float = 3600.0
) -> dict[str, Any]:
    """Train a rival in so many workers, which are gone afterwards, also when this process is killed.

    Args:
        run: What they train.
        workers: How many; one for `plain`.
        hosts: Where they run, consecutive ranks on each; this machine's loopback where None.
        timeout_s: Seconds after which they are ended.

    Returns:
        The row, as the results file has it.

    Raises:
        ConfigError: What cannot run so.
        TrainingError: A worker failed, or the time is over; one line.
    """
    run.check(workers)
    hosts = hosts or None
    said = f"row {run.row!r} over {workers} workers" if workers > 1 else f"row {run.row!r}"
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    with tempfile.TemporaryDirectory(prefix="syngrad-") as logs:
        try:
            row: dict[str, Any] = launched_result(
                [sys.executable, "-m", "syngrad.compare.rivals", *run.arguments(), "--out"],
                workers if hosts is None else _each(workers, len(hosts)),
                hosts,
                restarts=0,
                threads=run.threads,
                # both hosts call the device that leads to the other the same
                environment={"GLOO_SOCKET_IFNAME": hosts[0].interface if hosts else loopback},
                logs=Path(logs),
                grace_s=0.0,  # nothing is lost with a rival that is interrupted
                limit_s=timeout_s,
            )
        except LaunchTimeoutError:
            raise TrainingError(
                f"{said} did not end within {timeout_s:g} s; give it longer, or fewer minibatches"
            ) from None
        except SyngradError as error:
            if not isinstance(error.__cause__, WorkersFailedError) or not error.__cause__.failures:
                raise TrainingError(f"{said}: {error}") from error
            raise _error(said, error.__cause__.failures, Path(logs)) from error
    return row


def _each(workers: int, hosts: int) -> list[int]:
    """How many workers each host has."""
    return [sum(rank * hosts // workers == host for rank in range(workers)) for host in range(hosts)]


def _error(said: str, failures: Sequence[Failure], logs: Path) -> SyngradError:
    """The failure that has caused the others, as an error."""
    failures = sorted(failures, key=lambda failure: failure.rank)
    # a user's mistake is every worker's
    known = next((failure for failure in failures if failure.exit_code == USER_ERROR), None)
    if known is not None:
        why = _last_words(known, logs)
        return ConfigError(why) if why.startswith("row ") else TrainingError(f"{said}: {why}")
    # what a worker says of its lost peers is never the cause
    first = min(failures, key=lambda failure: (failure.told_to, failure.kind == LinkError.__name__))
    return TrainingError(f"{said}: process {first.rank} failed: {_last_words(first, logs):.300}")


def _last_words(failure: Failure, logs: Path) -> str:
    if failure.line:
        return failure.line.removeprefix(UNEXPECTED)
    if failure.exit_code is not None and failure.exit_code < 0:
        return f"it was ended by signal {-failure.exit_code}"
    printed = [file.read_text("utf-8", "replace") for file in logs.rglob(f"rank_{failure.rank}/stderr.log")]
    lines = [line.strip() for text in printed for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else f"exit code {failure.exit_code}"
