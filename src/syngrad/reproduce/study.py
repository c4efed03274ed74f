"""What a published experiment is here: its setting, what is published of it, and the runs that it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from syngrad.errors import ConfigError
from syngrad.experiments.experiment import Experiment
from syngrad.recurrent import RecurrentExperiment

#: grade → what a published figure rests on
GRADES = {
    "P": "the paper's own text",
    "I": "what the paper says, as others report it",
    "L": "read in a third party's log or table, one run",
}
#: the row that the others are held against, seed by seed
BASE = "back-propagation"


@dataclass(frozen=True)
class Metric:
    """What a study measures, made from what its runs give.

    Args:
        name: with its unit, as tables and figures have it.
        higher_is_better: whether more of it is better.
        made: the run's own metric → this one.
        form: how a value is written.
    """

    name: str
    higher_is_better: bool
    made: Callable[[float], float]
    form: str = ".2f"


ERROR = Metric("test error, %", False, lambda accuracy: 100 * (1 - accuracy))
ACCURACY = Metric("test accuracy, %", True, lambda accuracy: 100 * accuracy)
LENGTH = Metric("longest output solved", True, lambda length: length, ".1f")
BITS = Metric("bits per character", False, lambda bits: bits, ".3f")
WRONG = Metric("wrong counts, %", False, lambda share: 100 * share)


@dataclass(frozen=True)
class PublishedFigure:
    """A figure, or a claim, that others have published of a row.

    Args:
        row: the row of the study that it is about.
        x: its place on the study's axis; None where the study has none.
        value: in the study's metric; None for a claim without a figure.
        source: where it was read.
        grade: of :data:`GRADES`.
        said: the claim, for one without a figure; else what else has to be known of the figure.

    Raises:
        ConfigError: without a source, with an unknown grade, or with neither a value nor a claim.
    """

    row: str
    x: float | None
    value: float | None
    source: str
    grade: str
    said: str = ""

    def __post_init__(self) -> None:
        if not self.source or self.grade not in GRADES:
            raise ConfigError(f"the published figure of {self.row!r} needs a source and a grade of {', '.join(GRADES)}")
        if self.value is None and not self.said:
            raise ConfigError(f"what is published of {self.row!r} is neither a figure nor a claim; give one")

    @property
    def note(self) -> str:
        """Where it is from, and what has to be known of it."""
        said = f"; {self.said}" if self.said and self.value is not None else ""
        return f"{self.source} ({self.grade}: {GRADES[self.grade]}){said}"


class Recipe(Protocol):
    """How a net is made and trained but for the method; a frozen dataclass of plain values, which files keep."""

    @property
    def dataset(self) -> str:
        """The data in words."""

    def experiment(self) -> Experiment | RecurrentExperiment:
        """Model, data, optimiser and length of training."""

    def read(self) -> None:
        """Have the data in memory; a ConfigError where they are not there says how to fetch them."""

    def seconds(self) -> float:
        """About how long a run takes on one core, by back-propagation."""


@dataclass(frozen=True)
class Case:
    """One training of a study.

    Args:
        row: what it is called in tables; cases of one row are drawn as one line.
        recipe: the net and its training.
        method: as `syngrad train --method` has it; of a recurrent net, as a row of `syngrad compare`.
        x: its place on the study's axis.
        estimator: None where the method has none, or for the experiment's own.
        options: of the Trainer, by their flat names.
        dearer: about how many times as long as by back-propagation it takes.
    """

    row: str
    recipe: Recipe
    method: str
    x: float | None = None
    estimator: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    dearer: float = 1.3

    def settings(self) -> dict[str, Any]:
        """All that decides what comes out, but for the seed, as plain data."""
        values: Any = self.recipe
        recipe = {"kind": type(self.recipe).__name__, **asdict(values), "dataset": self.recipe.dataset}
        return {
            "method": self.method, "estimator": self.estimator, "options": dict(self.options), "recipe": recipe
        }  # fmt: skip

    def seconds(self) -> float:
        """About how long it takes on one core."""
        return self.recipe.seconds() * self.dearer


@dataclass(frozen=True)
class Scale:
    """How much of a published experiment is run.

    Args:
        steps, batch: updates of a fully connected net, and samples a minibatch.
        rate: Adam's, of feed-forward nets.
        conv_steps, conv_batch: updates of a convolutional net, and samples a minibatch.
        samples, tested: of the training and the test set, the first so many; None for all.
        windows: updates of a recurrent net.
        evaluations: how often such a net is examined; the last one counts.
        seeds: that each case is run with unless told otherwise.
        whole: whether every place on an axis is run, or the first and the last alone.
    """

    name: str
    steps: int
    rate: float
    batch: int
    conv_steps: int
    conv_batch: int
    samples: int | None
    tested: int | None
    windows: int
    seeds: int
    evaluations: int = 1
    whole: bool = True

    def some(self, places: tuple[Any, ...]) -> tuple[Any, ...]:
        """The places on an axis that are run."""
        return places if self.whole or len(places) < 3 else (places[0], places[-1])


@dataclass(frozen=True)
class Study:
    """A published experiment.

    Args:
        name: as it is typed.
        title: what it shows, in a line.
        setting: net, data and training, as published.
        differs: what is otherwise here, at any scale; the scale's own numbers are told beside it.
        axis: what x is; "" where a study has no axis, "time" where x is a case's training time as a multiple of
            back-propagation's.
        metric: what is measured.
        published: what can be quoted; empty where no figure of it could be checked.
        cases: scale → the runs.
        base: the row that gaps are taken to; "" where there is none.
    """

    name: str
    title: str
    setting: str
    differs: str
    axis: str
    metric: Metric
    published: tuple[PublishedFigure, ...]
    cases: Callable[[Scale], list[Case]]
    base: str = BASE

    def about_s(self, scale: Scale, seeds: int | None = None) -> float:
        """About how long all of its runs take on one core."""
        return sum(case.seconds() for case in self.cases(scale)) * (scale.seeds if seeds is None else seeds)
