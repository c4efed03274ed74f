"""A complete run of a recurrent net in one object: what `syngrad compare` takes beside an Experiment."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from syngrad.errors import ConfigError, SyngradError, TrainingError, first_line
from syngrad.optim.groups import OptimizerFactory
from syngrad.recurrent.bptt import TruncatedBPTT
from syngrad.recurrent.checks import check_factor, check_least
from syngrad.recurrent.course import Course
from syngrad.recurrent.learner import Learner
from syngrad.recurrent.online import OnlineBPLambda
from syngrad.recurrent.student import CoreStudent, Student
from syngrad.recurrent.ways import Way, parse, ways
from syngrad.trainer import default_optimizer

ROWS = ("bptt", "synthetic", "auxiliary", "zero")
#: options of the trainers that a comparison decides itself
OWN = {"self", "core", "estimator", "window", "readout", "loss", "loss_count", "lam", "auxiliary", "optimizer",
       "scheduler", "seed", "update"}  # fmt: skip


@dataclass
class RecurrentExperiment:
    """Core, course, loss, metric, window, optimiser, batch size, and how long it learns.

    model: makes (core, readout), or the core alone; its weights are drawn from the seed set just before. course:
    (batch size, seed) → a :class:`Course`, made anew for every run. loss, loss_count: as for :class:`TruncatedBPTT`.
    metric: what the course's examination gives, and higher_is_better whether more of it is better, None if nobody says.
    window: T where a row does not say. estimator, online, lam, auxiliary: the estimator of a boundary, that of online
    BP(λ), its λ, and the auxiliary task's weight, where a row does not say. rows: what is compared unless it is asked
    for otherwise; the baseline is the first row of `bptt`.
    An *epoch* is so many `steps` of time, of `batch_size` sequences side by side, and ends with the piece that reaches
    them; `epochs` of them are learnt from. patience: epochs without a better metric after which learning stops, and the
    best weights are put back; None for never.
    options: further keyword arguments of TruncatedBPTT and OnlineBPLambda, as inject or clip_norm; each is given those
    that it knows. name, dataset: for tables and files.

    Raises ConfigError for what is missing or cannot be used.
    """

    model: Callable[[], Any]
    course: Callable[[int, int], Course]
    loss: Callable[[Any, Any], Tensor] | None = None
    loss_count: Callable[[Any], float] | None = None
    metric: str = "loss"
    higher_is_better: bool | None = None
    window: int = 8
    estimator: Any = "linear"
    online: Any = "low_rank(rank=16)"
    lam: float = 0.9
    auxiliary: float = 0.1
    rows: Sequence[str] = ROWS
    optimizer: OptimizerFactory = default_optimizer
    scheduler: Callable[[torch.optim.Optimizer], Any] | None = None
    batch_size: int = 32
    steps: int = 10_000
    epochs: int = 5
    patience: int | None = None
    name: str = "recurrent experiment"
    dataset: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for part in ("model", "course", "optimizer"):
            if not callable(getattr(self, part)):
                raise ConfigError(
                    f"RecurrentExperiment.{part} must be a function, got {type(getattr(self, part)).__name__}"
                )
        for name in ("name", "metric", "dataset"):
            if not isinstance(getattr(self, name), str):
                raise ConfigError(f"RecurrentExperiment.{name} must be a text, got {getattr(self, name)!r:.40}")
        if self.higher_is_better is not None and not isinstance(self.higher_is_better, bool):
            raise ConfigError(f"higher_is_better must be True, False or None, got {self.higher_is_better!r:.40}")
        if not isinstance(self.options, dict):
            raise ConfigError(f"options must be a dict of keyword arguments, got {type(self.options).__name__}")
        for name, least in (("window", 1), ("batch_size", 1), ("steps", 1), ("epochs", 0)):
            setattr(self, name, check_least(name, getattr(self, name), least))
        if self.patience is not None:
            self.patience = check_least("patience", self.patience, 1)
            if self.higher_is_better is None:
                raise ConfigError(
                    f"experiment {self.name!r}: with patience={self.patience} it must be known whether more or less of "
                    f"{self.metric!r} is better; give higher_is_better=True or False"
                )
        self.auxiliary = check_factor("auxiliary", self.auxiliary)
        for name in self.options:
            valid = sorted((_options(TruncatedBPTT) | _options(OnlineBPLambda)) - OWN)
            if name not in valid:
                raise ConfigError(
                    f"experiment {self.name!r}: the recurrent trainers take no option {name!r} here; valid: "
                    f"{', '.join(valid)}"
                )
        self.ways(self.rows)

    def ways(self, rows: Sequence[str], estimator: Any = None) -> list[Way]:
        """Rows as they are asked for, checked. estimator: of those that name none, instead of the experiment's."""
        if isinstance(rows, str):
            raise ConfigError(f"rows must be a list of texts, got the text {rows!r:.40}")
        if not isinstance(rows, Sequence) or not all(isinstance(row, str) for row in rows):
            raise ConfigError(f"rows must be a list of texts, as ['bptt(8)', 'synthetic(8)'], got {rows!r:.40}")
        online = self.online if estimator is None else estimator
        boundary = self.estimator if estimator is None else estimator
        return ways(rows, window=self.window, estimator=boundary, online=online, lam=self.lam)

    def baseline(self, rows: Sequence[Way]) -> Way:
        """What the others are held against: the first that is truncated back-propagation, else of this window."""
        return next((way for way in rows if way.kind == "bptt"), parse("bptt", window=self.window, estimator="",
                                                                       online=""))  # fmt: skip

    def student(self, way: Way, seed: int, **more: Any) -> Student:
        """A fresh net that learns in this way. more: options instead of the experiment's."""
        torch.manual_seed(seed)
        try:
            made = self.model()
        except SyngradError:
            raise
        except (Exception, SystemExit) as error:
            raise TrainingError(f"experiment {self.name!r}: model() raised {first_line(error)}") from error
        core, readout = parts(made, self.name)
        kind: type[Learner] = OnlineBPLambda if way.kind == "online" else TruncatedBPTT
        options = {name: value for name, value in {**self.options, **more}.items() if name in _options(kind)}
        common = {
            "readout": readout,
            "loss": self.loss,
            "loss_count": self.loss_count,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "seed": seed,
            **options,
        }
        if kind is OnlineBPLambda:
            return CoreStudent(OnlineBPLambda(core, way.estimator, lam=way.lam, **common), way.estimates)
        weight = self.auxiliary if way.kind == "auxiliary" else 0.0
        learner = TruncatedBPTT(core, way.estimator or "zero", way.window, auxiliary=weight, **common)
        return CoreStudent(learner, way.estimates)


def parts(made: Any, name: str) -> tuple[nn.Module, nn.Module | None]:
    """(core, readout) of what `model` returns."""
    core, readout = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(core, nn.Module) or not isinstance(readout, nn.Module | None):
        raise ConfigError(
            f"experiment {name!r}: model() must return a core, or (core, readout), all modules; got "
            f"{type(made).__name__}"
        )
    return core, readout


def _options(kind: type[Learner]) -> set[str]:
    return set(inspect.signature(kind.__init__).parameters)
