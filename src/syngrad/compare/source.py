"""What an experiment supplies to a comparison: networks, loaders, a few minibatches; and what goes wrong in it."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import nn

from syngrad.compare.contenders import Contender
from syngrad.compare.measure import size
from syngrad.core.decouple import DecoupledNetwork, decouple
from syngrad.errors import ConfigError, SyngradError, TrainingError, first_line
from syngrad.experiments.experiment import Experiment
from syngrad.trainer.loaders import length
from syngrad.trainer.options import MOVED, Options

BATCHES = 8
#: minibatches that a loader without a length is read for, to learn how long a delay may be
COUNTED = 1000
#: options of the Trainer that a comparison decides itself
OWN = {"loss", "optimizer", "method", "metric", "scheduler", "seed", "progress"}


class ExperimentError(SyngradError):
    """What lies in the experiment itself, and so would fail every row."""


class Source:
    """An experiment's parts, made anew for every row, with its faults named as the experiment's own.

    cuts: where every network is cut; from `stages` alone until the first network that was balanced has settled them.
    """

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.cuts: list[str] | None = list(experiment.cuts) if experiment.cuts is not None else None
        self._said = f"experiment {experiment.name!r}"

    def options(self) -> dict[str, Any]:
        """The experiment's options, checked to be the Trainer's."""
        valid = sorted(set(inspect.signature(Options).parameters) - OWN)
        for name, value in self.experiment.options.items():
            if name in MOVED:
                raise ConfigError(f"{self._said}: {MOVED[name].moved(value)}")
            if name not in valid:
                raise ConfigError(f"{self._said}: the Trainer takes no option {name!r} here; valid: {', '.join(valid)}")
        return dict(self.experiment.options)

    def network(self) -> DecoupledNetwork:
        """A fresh model, cut as all others are: where the stages are only counted, the first cuts hold for all."""
        try:
            model = self.experiment.model()
        except SyngradError:
            raise
        except (Exception, SystemExit) as error:
            raise ExperimentError(f"{self._said}: model() raised {first_line(error)}") from error
        if not isinstance(model, nn.Module):
            raise ExperimentError(f"{self._said}: model() must return an nn.Module, got {type(model).__name__}")
        return decouple(model, self.cuts, stages=None if self.cuts else self.experiment.stages)

    def loaders(self, seed: int) -> tuple[Any, Any]:
        """The training and the test loader."""
        try:
            loaders = self.experiment.data(self.experiment.batch_size, seed)
        except SyngradError:
            raise
        except (Exception, SystemExit) as error:
            raise ExperimentError(f"{self._said}: data() raised {first_line(error)}") from error
        if not isinstance(loaders, tuple) or len(loaders) != 2:
            raise ExperimentError(f"{self._said}: data() must return (training loader, test loader)")
        return loaders

    def batches(self, seed: int, contenders: Sequence[Contender], delay: object) -> list[Any]:
        """The first few minibatches of an epoch, as far as they are as large as the first.

        Refused is a delay longer than an epoch, of a row or (`delay`) of the feedback.
        """
        loader, _ = self.loaders(seed)
        try:
            iterator = iter(loader)
            batches = list(itertools.islice(iterator, BATCHES))
            _check_delays(contenders, delay, loader, iterator, len(batches))
        except SyngradError:
            raise
        except (Exception, SystemExit) as error:
            raise ExperimentError(f"{self._said}: the loader raised {first_line(error)}") from error
        if not batches:
            raise TrainingError(f"{self._said}: the training loader yields no batch")
        return [batch for batch in batches if size(batch) == size(batches[0])]

    def description(self, model: nn.Module, cuts: Sequence[str], seed: int, seeds: int = 1) -> dict[str, Any]:
        """What the results file says of the experiment; how many samples an epoch has is known after one."""
        return {
            "name": self.experiment.name,
            "model": type(model).__name__,
            "parameters": sum(p.numel() for p in model.parameters()),
            "dataset": self.experiment.dataset,
            "samples": None,
            "batch_size": self.experiment.batch_size,
            "epochs": self.experiment.epochs,
            "stages": len(cuts) + 1,
            "cuts": list(cuts),
            "seed": seed,
            "seeds": seeds,
            "target": None,
        }

    def epoch_length(self, seed: int) -> int:
        """The minibatches of an epoch; a loader that does not tell is run through once."""
        loader, _ = self.loaders(seed)
        known = length(loader)
        if known is not None:
            return known
        try:
            return sum(1 for _ in loader)
        except Exception as error:
            raise ExperimentError(f"{self._said}: the loader raised {first_line(error)}") from error


def _check_delays(
    contenders: Sequence[Contender], late: object, loader: Iterable[Any], rest: Iterator[Any], taken: int
) -> None:
    """Refuse a delay longer than an epoch: nothing would come of it but a run up to its first update."""
    delays = [(f"row {c.label!r}", c.method.delay) for c in contenders]
    if isinstance(late, int):
        delays.append(("option feedback_delay", late))
    longest = max(delay for _, delay in delays)
    if not taken or longest <= taken:
        return
    epoch = length(loader)
    if epoch is None:
        epoch = taken + sum(1 for _ in itertools.islice(rest, min(longest, COUNTED)))
    for what, delay in delays:
        if delay > epoch:
            raise ConfigError(
                f"{what}: a delay of {delay:.12g} minibatches is longer than an epoch, which has {epoch}; "
                f"write at most {epoch}"
            )
