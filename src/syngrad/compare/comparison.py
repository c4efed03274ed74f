"""The comparison itself: what is measured, in which order, and what becomes of a row that fails."""

from __future__ import annotations

import inspect
import itertools
import statistics
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from syngrad import metrics
from syngrad.compare.contenders import ROWS, Contender, Observer, Silent, contenders, readable
from syngrad.compare.measure import RowError, period, saved_bytes, size, turns, windows
from syngrad.errors import ConfigError, CutError, SyngradError, TrainingError, first_line
from syngrad.experiment import Experiment, check_count
from syngrad.history import Epoch
from syngrad.network import DecoupledNetwork, decouple
from syngrad.results import BACKPROP, Row
from syngrad.trainer import Trainer

BATCHES = 8
#: more than any machine has use for; beyond, PyTorch fails in ways of its own, and NumPy takes no larger seed
THREADS, SEEDS, SEED = 4096, 10_000, 2**31
#: minibatches that a loader without a length is read for, to learn how long a delay may be
COUNTED = 1000
#: options of the Trainer that a comparison decides itself
OWN = {"self", "net", "loss", "optimizer", "method", "metric", "scheduler", "seed", "progress"}


class Comparison:
    """An experiment's rows, measured by :meth:`run`; `rows` holds what is finished, also after an interrupt.

    rows: `method[:estimator]`; estimator: of those that do not name one. seed, seeds: the first seed and how many from
    there; each row is run with every one. threads: PyTorch's, during the run. timing_s: about how long step times are
    taken, all rows together; 0 for not at all.

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
        observer: Observer | None = None,
    ) -> None:
        self.experiment = experiment
        self.options = _options(experiment)
        own = self.options.pop("estimator", "default")
        self.contenders = contenders(rows, own if estimator is None else estimator)
        check_count("seed", seed, 0, SEED)
        self.seeds = range(seed, seed + check_count("seeds", seeds, 1, SEEDS))
        self.threads = check_count("threads", threads, 1, THREADS)
        self.timing_s, self.observer = timing_s, observer or Silent()
        self.metric = metrics.resolve(experiment.metric)
        self.metric_name = readable(self.metric[0]) if self.metric else "loss"
        self.rows: list[Row] = []
        self.description: dict[str, Any] = {}
        self._cuts: list[str] | None = list(experiment.cuts) if experiment.cuts is not None else None
        self._stages = experiment.stages
        self._failures: list[SyngradError] = []

    def run(self) -> list[Row]:
        """Measure everything; the rows in the order asked for, one a seed."""
        with _threads(self.threads):
            self.observer.begin(len(self.contenders) * (1 + len(self.seeds) * self.experiment.epochs))
            templates = self._side_by_side()
            for contender in self.contenders:
                for seed in self.seeds:
                    row = self._new_row(contender, seed)
                    template = templates[contender]
                    row.status, row.step_s, row.step_ratio = template.status, template.step_s, template.step_ratio
                    row.saved_activation_bytes = template.saved_activation_bytes
                    if row.ok:
                        self._train(contender, row)
                    self.rows.append(row)
        if not any(row.ok for row in self.rows):
            raise self._failures[0]
        return self.rows

    # The measurement beforehand: step times and what is kept.

    def _side_by_side(self) -> dict[Contender, Row]:
        """A row a contender with its step time, its ratio to backprop's, and its saved bytes."""
        self.observer.note("the data")
        batches = self._batches()
        self._describe(batches)
        rows = {contender: self._new_row(contender, self.seeds[0]) for contender in self.contenders}
        trainers: dict[Contender, Trainer] = {}
        for contender, row in rows.items():
            self.observer.note(f"{contender.label}: memory")
            try:
                trainer = self._trainer(contender, self.seeds[0], quality_every=0, scheduler=None)
                trainer.model.train()
                trainer.bind(batches[0])
                row.saved_activation_bytes = saved_bytes(trainer, batches)
                trainers[contender] = trainer
            except CutError:
                raise
            except Exception as error:
                self._failed(row, error)
            self.observer.advance()
        if not trainers:
            raise self._failures[0]
        if self.timing_s > 0:
            self.observer.note("step times, side by side")
            self._time(trainers, rows, batches)
        return rows

    def _time(self, trainers: dict[Contender, Trainer], rows: dict[Contender, Row], batches: list[Any]) -> None:
        running = dict(trainers)
        while True:
            labels = list(running)
            try:
                times = turns([running[c] for c in labels], batches, self.timing_s)
                break
            except RowError as failure:
                self._failed(rows[labels[failure.index]], failure.error)
                del running[labels[failure.index]]
                if not running:
                    raise self._failures[0] from failure
        window = max(period(trainer) for trainer in running.values())
        means = {c: windows(each, window) for c, each in zip(labels, times, strict=True)}
        base = next((means[c] for c in labels if c.method.name == BACKPROP), None)
        for contender in labels:
            row = rows[contender]
            row.step_s = statistics.median(means[contender])
            if base is not None:
                row.step_ratio = statistics.median(a / b for a, b in zip(means[contender], base, strict=True))

    # Training.

    def _train(self, contender: Contender, row: Row) -> None:
        many = f", seed {row.seed}" if len(self.seeds) > 1 else ""
        epochs = self.experiment.epochs

        def told(record: Epoch) -> None:
            self.observer.advance()
            value = record.metrics[self.metric[0] if self.metric else "loss"]
            said = f"{self.metric_name} {value:.4f}"
            self.observer.note(f"{contender.label}{many}: epoch {record.epoch}/{epochs}, {said}")

        self.observer.note(f"{contender.label}{many}: epoch 0/{epochs}")
        try:
            trainer = self._trainer(contender, row.seed)
            train, test = self._data(row.seed)
            history = trainer.fit(train, epochs, validate=test, on_epoch=told)
        except Exception as error:
            self._failed(row, error)
            return
        row.history = history.values()
        row.samples_per_s, row.train_s, row.interfaces = history.samples_per_s, history.train_s, history.interfaces
        if epochs:
            row.optimizer = type(trainer.optimizers[0]).__name__
            self.description["samples"] = history.epochs[0].samples

    # What both are made of.

    def _trainer(self, contender: Contender, seed: int, **more: Any) -> Trainer:
        experiment = self.experiment
        torch.manual_seed(seed)
        options = {"scheduler": experiment.scheduler, **self.options, **more}
        if contender.method.estimates:
            options["estimator"] = contender.spec
        return Trainer(
            self._network(),
            loss=experiment.loss,
            optimizer=experiment.optimizer,
            method=contender.method,
            metric=experiment.metric,
            seed=seed,
            progress=False,
            **options,
        )

    def _network(self) -> DecoupledNetwork:
        """A fresh model, cut as all others are: where the stages are only counted, the first cuts hold for all."""
        try:
            model = self.experiment.model()
        except SyngradError:
            raise
        except (Exception, SystemExit) as error:
            raise ExperimentError(f"experiment {self.experiment.name!r}: model() raised {first_line(error)}") from error
        if not isinstance(model, nn.Module):
            got = type(model).__name__
            raise ExperimentError(f"experiment {self.experiment.name!r}: model() must return an nn.Module, got {got}")
        return decouple(model, self._cuts, stages=None if self._cuts else self._stages)

    def _data(self, seed: int) -> tuple[Any, Any]:
        name = self.experiment.name
        try:
            loaders = self.experiment.data(self.experiment.batch_size, seed)
        except SyngradError:
            raise
        except (Exception, SystemExit) as error:
            raise ExperimentError(f"experiment {name!r}: data() raised {first_line(error)}") from error
        if not isinstance(loaders, tuple) or len(loaders) != 2:
            raise ExperimentError(f"experiment {name!r}: data() must return (training loader, test loader)")
        return loaders

    def _batches(self) -> list[Any]:
        """The first few minibatches of an epoch, as far as they are as large as the first."""
        loader, _ = self._data(self.seeds[0])
        try:
            iterator = iter(loader)
            batches = list(itertools.islice(iterator, BATCHES))
            self._check_delays(loader, iterator, len(batches))
        except SyngradError:
            raise
        except (Exception, SystemExit) as error:
            raise ExperimentError(
                f"experiment {self.experiment.name!r}: the loader raised {first_line(error)}"
            ) from error
        if not batches:
            raise TrainingError(f"experiment {self.experiment.name!r}: the training loader yields no batch")
        return [batch for batch in batches if size(batch) == size(batches[0])]

    def _check_delays(self, loader: Iterable[Any], rest: Iterator[Any], taken: int) -> None:
        """Refuse a delay longer than an epoch: nothing would come of it but a run up to its first update."""
        delays = [(f"row {c.label!r}", c.method.delay) for c in self.contenders]
        late = self.options.get("feedback_delay", 0)
        if isinstance(late, int):
            delays.append(("option feedback_delay", late))
        longest = max(delay for _, delay in delays)
        if not taken or longest <= taken:
            return
        try:
            epoch = len(loader)  # type: ignore[arg-type]
        except TypeError:
            epoch = taken + sum(1 for _ in itertools.islice(rest, min(longest, COUNTED)))
        for what, delay in delays:
            if delay > epoch:
                raise ConfigError(
                    f"{what}: a delay of {delay:.12g} minibatches is longer than an epoch, which has {epoch}; "
                    f"write at most {epoch}"
                )

    def _describe(self, batches: list[Any]) -> None:
        """Fill in what the file says of the experiment, and settle the cuts."""
        torch.manual_seed(self.seeds[0])
        net = self._network()
        if self._stages is not None and self._stages > 1:
            estimating = next((c for c in self.contenders if c.method.estimates), self.contenders[0])
            balanced = self._trainer(estimating, self.seeds[0])
            balanced.bind(batches[0])
            self._cuts = balanced.net.cuts
        self.description = {
            "name": self.experiment.name,
            "model": type(net.model).__name__,
            "parameters": sum(p.numel() for p in net.model.parameters()),
            "dataset": self.experiment.dataset,
            "samples": None,
            "batch_size": self.experiment.batch_size,
            "epochs": self.experiment.epochs,
            "stages": len(self._cuts) + 1 if self._cuts else 1,
            "cuts": self._cuts or [],
            "seed": self.seeds[0],
            "seeds": len(self.seeds),
        }

    def _new_row(self, contender: Contender, seed: int) -> Row:
        name = self.metric_name
        better = metrics.HIGHER_IS_BETTER.get(name)
        return Row(
            str(contender.method), contender.estimator, seed, threads=self.threads, metric=name, higher_is_better=better
        )

    def _failed(self, row: Row, error: Exception) -> None:
        """Keep the failure with its row, whatever it is: what the user's own loader or schedule raises as well."""
        if isinstance(error, ExperimentError):
            raise error
        known = error if isinstance(error, SyngradError) else TrainingError(first_line(error))
        row.status = f"failed: {known}"
        self._failures.append(known)


class ExperimentError(SyngradError):
    """What lies in the experiment itself, and so would fail every row."""


def _options(experiment: Experiment) -> dict[str, Any]:
    """The experiment's options, checked to be the Trainer's."""
    valid = sorted(set(inspect.signature(Trainer.__init__).parameters) - OWN)
    for name in experiment.options:
        if name not in valid:
            raise ConfigError(
                f"experiment {experiment.name!r}: the Trainer takes no option {name!r} here; valid: {', '.join(valid)}"
            )
    return dict(experiment.options)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
