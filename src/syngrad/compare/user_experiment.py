"""What a user's experiment supplies: networks, loaders, minibatches, a course; its faults are named as its own."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import nn

from syngrad.compare.step_costs import size
from syngrad.core.decouple import DecoupledNetwork, decouple
from syngrad.errors import ConfigError, SyngradError, TrainingError, first_line
from syngrad.experiments.experiment import Experiment
from syngrad.methods.policy import Method
from syngrad.recurrent import Curriculum, SequenceBatch
from syngrad.recurrent.curriculum import LearnerAdapter
from syngrad.runtime.options import override
from syngrad.trainer import Trainer
from syngrad.trainer.loaders import length
from syngrad.trainer.options import MOVED, Options

BATCHES = 8
#: minibatches that a loader without a length is read for, to learn how long a delay may be
COUNTED = 1000
#: arguments of the Trainer that a comparison decides itself
OWN = {"loss", "optimizer", "method", "metric", "scheduler", "seed", "progress"}


class ExperimentError(SyngradError):
    """What lies in the experiment itself, and so would fail every row."""


@contextmanager
def named(
    what: str, kind: type[SyngradError] = ExperimentError, passing: type[Exception] = SyngradError
) -> Iterator[None]:
    """Give what a user's own code raises the name of that code, in one line; errors that say it themselves pass."""
    try:
        yield
    except (SyngradError, passing):
        raise
    except (Exception, SystemExit) as error:
        raise kind(f"{what} raised {first_line(error)}") from error


class UserExperiment:
    """A feed-forward experiment's parts, made anew for every row, with its faults named as the experiment's own.

    Where the experiment has `stages` alone, the first network that was balanced settles `cuts` for all.
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
        with named(f"{self._said}: model()"):
            model = self.experiment.model()
        if not isinstance(model, nn.Module):
            raise ExperimentError(f"{self._said}: model() must return an nn.Module, got {type(model).__name__}")
        return decouple(model, self.cuts, stages=None if self.cuts else self.experiment.stages)

    def trainer(
        self, method: Method, seed: int, own: dict[str, Any], over: dict[str, Any], progress: bool | None = False
    ) -> Trainer:
        """A trainer of a fresh network.

        Args:
            method, seed, progress: As the Trainer has them.
            own: The experiment's own options.
            over: Options that stand over those, by their flat names.
        """
        torch.manual_seed(seed)
        experiment = self.experiment
        return Trainer(
            self.network(),
            loss=experiment.loss,
            optimizer=experiment.optimizer,
            method=method,
            metric=experiment.metric,
            seed=seed,
            progress=progress,
            **override(Options, {"scheduler": experiment.scheduler, **own}, over),
        )

    def loaders(self, seed: int) -> tuple[Any, Any]:
        """The training and the test loader."""
        with named(f"{self._said}: data()"):
            loaders = self.experiment.data(self.experiment.batch_size, seed)
        if not isinstance(loaders, tuple) or len(loaders) != 2:
            raise ExperimentError(f"{self._said}: data() must return (training loader, test loader)")
        return loaders

    def batches(self, seed: int, delays: Sequence[tuple[str, int]]) -> list[Any]:
        """The first few minibatches of an epoch, as far as they are as large as the first.

        Args:
            seed: Of the order of the data.
            delays: What has a delay of how many minibatches; one longer than an epoch is refused.
        """
        loader, _ = self.loaders(seed)
        with named(f"{self._said}: the loader"):
            iterator = iter(loader)
            batches = list(itertools.islice(iterator, BATCHES))
            _check_delays(delays, loader, iterator, len(batches))
        if not batches:
            raise TrainingError(f"{self._said}: the training loader yields no batch")
        return [batch for batch in batches if size(batch) == size(batches[0])]

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


def _check_delays(delays: Sequence[tuple[str, int]], loader: Iterable[Any], rest: Iterator[Any], taken: int) -> None:
    """Refuse a delay longer than an epoch: nothing would come of it but a run up to its first update."""
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


class CheckedCourse(Curriculum):
    """What another course says, checked; `said` begins each message.

    Raises:
        TrainingError: Whatever the course raises itself, what is no batch, and an examination that gives no finite
            number.
    """

    def __init__(self, course: Curriculum, said: str) -> None:
        self.course, self.said = course, said

    def take(self) -> SequenceBatch:
        """What is learnt next."""
        return self._piece("take", self.course.take)

    def sample(self) -> SequenceBatch:
        """Of a typical length."""
        own = type(self.course).sample is not Curriculum.sample
        return self._piece("sample" if own else "take", self.course.sample)

    def probe(self) -> SequenceBatch | None:
        """Where estimates are held against the true gradient."""
        made = self._called("probe", self.course.probe)
        if made is None or isinstance(made, SequenceBatch):
            return made
        self._no_piece("probe", "a Piece or None", made)

    def heard(self, loss: float, piece: SequenceBatch) -> None:
        """The loss of the piece just learnt."""
        self._called("heard", self.course.heard, loss, piece)

    def examine(self, student: LearnerAdapter) -> float:
        """The metric, as a plain number."""
        made = self._called("examine", self.course.examine, student)
        try:
            value = float("" if isinstance(made, str) else made)
        except (TypeError, ValueError, RuntimeError) as error:
            shape = f" of shape {tuple(made.shape)}" if hasattr(made, "shape") else ""
            raise TrainingError(
                f"{self.said}: examine() must return a number, got {type(made).__name__}{shape}"
            ) from error
        if not math.isfinite(value):
            raise TrainingError(
                f"{self.said}: examine() gave {value}, which nothing can be held against; lower the learning rate, or "
                "check the metric"
            )
        return value

    def _piece(self, name: str, function: Callable[[], Any]) -> SequenceBatch:
        made = self._called(name, function)
        return made if isinstance(made, SequenceBatch) else self._no_piece(name, "a Piece", made)

    def _no_piece(self, name: str, wished: str, made: Any) -> NoReturn:
        raise TrainingError(
            f"{self.said}: {name}() must return {wished}, as in Piece(inputs, targets), got {type(made).__name__}"
        )

    def _called(self, name: str, function: Callable[..., Any], *given: Any) -> Any:
        with named(f"{self.said}: {name}()", TrainingError, passing=Warning):
            return function(*given)
