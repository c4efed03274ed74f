"""A complete run of a recurrent net in one object, for `syngrad compare`, and the rows that it compares, by name:

    bptt(T)        truncated back-propagation over windows of T; of the experiment's own length where none is given
    synthetic(T)   bptt(T) with an estimate of what the truncation cuts off
    auxiliary(T)   synthetic(T) with the auxiliary task beside it
    online(λ)      a step at a time, by online BP(λ)
    zero           a step at a time, and nothing comes back through time: the floor

Where an estimate is made a row may name the estimator: `synthetic(8):mlp(batch_norm=False)`.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from syngrad.checks import check_not_negative, check_whole
from syngrad.core.interface import check_spec
from syngrad.errors import ConfigError, SyngradError, TrainingError, first_line, unknown
from syngrad.optim.factory import default_optimizer
from syngrad.optim.groups import OptimizerFactory
from syngrad.recurrent.bptt import TruncatedBPTT
from syngrad.recurrent.curriculum import CoreAdapter, Curriculum, LearnerAdapter
from syngrad.recurrent.learner import Learner
from syngrad.recurrent.online import OnlineBPLambda
from syngrad.recurrent.traceable import template
from syngrad.targets import check_lambda

KINDS = ("bptt", "synthetic", "auxiliary", "online", "zero")
WINDOWED = ("bptt", "synthetic", "auxiliary")
ROWS = ("bptt", "synthetic", "auxiliary", "zero")
#: options of the trainers that a comparison decides itself
OWN = {"self", "core", "estimator", "window", "readout", "loss", "loss_count", "lam", "auxiliary", "optimizer",
       "scheduler", "seed", "update"}  # fmt: skip


@dataclass(frozen=True)
class RecurrentMethod:
    """How a row trains."""

    kind: str  # of KINDS
    window: int = 1  # T, 1 for those that have none
    lam: float = 0.0  # λ of `online`
    estimator: Any = ""  # as it was asked for; "" where none is made

    def __hash__(self) -> int:  # an estimator may be a mapping
        return hash((self.kind, self.window, self.lam))

    @property
    def method(self) -> str:
        """As a row of the results names it: `synthetic(8)`, `online(0.9)`, `zero`."""
        if self.kind in WINDOWED:
            return f"{self.kind}({self.window})"
        return f"online({self.lam:g})" if self.kind == "online" else self.kind

    @property
    def estimates(self) -> bool:
        """Whether gradients are estimated."""
        return self.kind not in ("bptt", "zero")


def parse_method(text: str, *, window: int, estimator: Any, online: Any, lam: float = 0.9) -> RecurrentMethod:
    """The method that a row names.

    Args:
        text: as it is asked for, `kind(number):estimator`.
        window: T where it does not say.
        estimator: of a boundary, where it does not say.
        online: of `online`, where it does not say.
        lam: λ where it does not say.

    Raises:
        ConfigError: for an unknown kind (the valid ones listed), a number that does not do, or an estimator that is not
            known, or has no place.
    """
    name, colon, named = text.partition(":")
    match = re.fullmatch(r"\s*([\w-]+)\s*(?:\(\s*([^()]*?)\s*\))?\s*", name)
    kind = match[1] if match else name.strip()
    if match is None or kind not in KINDS:
        raise unknown("method of a recurrent experiment", kind, KINDS)
    number, named = match[2], named.strip()
    if colon and kind in ("bptt", "zero"):
        raise ConfigError(f"row {text!r}: {kind} has no estimator; write {name.strip()}")
    if colon and not named:
        raise ConfigError(f"row {text!r} names no estimator; write {name.strip()}:linear")
    if kind == "online":
        spec = named or online
        template(spec)
        return RecurrentMethod(kind, 1, lam if number is None else _lam(text, number), spec)
    if kind == "zero":
        if number is not None:
            raise ConfigError(f"row {text!r}: zero takes no number; write bptt({number}) for a window of {number}")
        return RecurrentMethod(kind)
    steps = window if number is None else _whole(text, number)
    spec = (named or estimator) if kind != "bptt" else ""
    if kind != "bptt":
        check_spec(spec)
    return RecurrentMethod(kind, steps, 0.0, spec)


def parse_methods(rows: Sequence[str], **otherwise: Any) -> list[RecurrentMethod]:
    """Several rows, see :func:`parse_method`. Raises ConfigError where one is there twice, or none is."""
    made = [parse_method(text, **otherwise) for text in rows]
    for k, method in enumerate(made):
        if method in made[:k]:
            raise ConfigError(f"row {rows[k]!r} is there twice; name each row once")
    if not made:
        raise ConfigError("there are no rows to compare; name some, as in bptt(8),synthetic(8)")
    return made


def _whole(text: str, number: str) -> int:
    if not number.isdecimal() or (steps := int(number)) < 1:
        raise ConfigError(f"row {text!r}: the window {number!r} must be a whole number of steps, at least 1")
    return steps


def _lam(text: str, number: str) -> float:
    try:
        return check_lambda(float(number))
    except ValueError:
        raise ConfigError(f"row {text!r}: {number!r} is not a number; write λ from 0 to 1") from None


@dataclass
class RecurrentExperiment:
    """Core, course, loss, metric, window, optimiser, batch size, and how long it learns.

    An *epoch* is so many `steps` of time, of `batch_size` sequences side by side, and ends with the batch that reaches
    them. What is not named here (loss, loss_count, optimizer, scheduler) is as for :class:`TruncatedBPTT`.

    Attributes:
        model: makes (core, readout), or the core alone; its weights are drawn from the seed set just before.
        course: (batch size, seed) → a :class:`Curriculum`, made anew for every run.
        metric: what the curriculum's examination gives.
        higher_is_better: whether more of it is better; None if nobody says.
        window: T where a row does not say.
        estimator: of a boundary, where a row does not say.
        online: the estimator of online BP(λ), where a row does not say.
        lam: λ of online BP(λ), where a row does not say.
        auxiliary: weight of the auxiliary task.
        rows: what is compared unless it is asked for otherwise; the baseline is the first row of `bptt`.
        batch_size: sequences side by side.
        steps: of time, an epoch.
        epochs: that are learnt from.
        patience: epochs without a better metric after which learning stops, and the best weights are put back; None for
            never.
        name: for tables and files.
        dataset: for tables and files.
        options: further keyword arguments of TruncatedBPTT and OnlineBPLambda, as inject or clip_norm; each is given
            those that it knows.

    Raises:
        ConfigError: for what is missing or cannot be used.
    """

    model: Callable[[], Any]
    course: Callable[[int, int], Curriculum]
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
            setattr(self, name, check_whole(name, getattr(self, name), least))
        if self.patience is not None:
            self.patience = check_whole("patience", self.patience, 1)
            if self.higher_is_better is None:
                raise ConfigError(
                    f"experiment {self.name!r}: with patience={self.patience} it must be known whether more or less of "
                    f"{self.metric!r} is better; give higher_is_better=True or False"
                )
        self.auxiliary = check_not_negative("auxiliary", self.auxiliary)
        for name in self.options:
            valid = sorted((_options(TruncatedBPTT) | _options(OnlineBPLambda)) - OWN)
            if name not in valid:
                raise ConfigError(
                    f"experiment {self.name!r}: the recurrent trainers take no option {name!r} here; valid: "
                    f"{', '.join(valid)}"
                )
        self.ways(self.rows)

    def ways(self, rows: Sequence[str], estimator: Any = None) -> list[RecurrentMethod]:
        """Rows as they are asked for, checked; `estimator` is of those that name none, instead of the experiment's."""
        if isinstance(rows, str):
            raise ConfigError(f"rows must be a list of texts, got the text {rows!r:.40}")
        if not isinstance(rows, Sequence) or not all(isinstance(row, str) for row in rows):
            raise ConfigError(f"rows must be a list of texts, as ['bptt(8)', 'synthetic(8)'], got {rows!r:.40}")
        online = self.online if estimator is None else estimator
        boundary = self.estimator if estimator is None else estimator
        return parse_methods(rows, window=self.window, estimator=boundary, online=online, lam=self.lam)

    def baseline(self, rows: Sequence[RecurrentMethod]) -> RecurrentMethod:
        """What the others are held against: the first that is truncated back-propagation, else of this window."""
        otherwise = parse_method("bptt", window=self.window, estimator="", online="")
        return next((method for method in rows if method.kind == "bptt"), otherwise)

    def student(self, method: RecurrentMethod, seed: int, **more: Any) -> LearnerAdapter:
        """A fresh net that learns by this method; `more` are options instead of the experiment's."""
        torch.manual_seed(seed)
        try:
            made = self.model()
        except SyngradError:
            raise
        except (Exception, SystemExit) as error:
            raise TrainingError(f"experiment {self.name!r}: model() raised {first_line(error)}") from error
        core, readout = _parts(made, self.name)
        kind: type[Learner] = OnlineBPLambda if method.kind == "online" else TruncatedBPTT
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
            return CoreAdapter(OnlineBPLambda(core, method.estimator, lam=method.lam, **common), method.estimates)
        weight = self.auxiliary if method.kind == "auxiliary" else 0.0
        learner = TruncatedBPTT(core, method.estimator or "zero", method.window, auxiliary=weight, **common)
        return CoreAdapter(learner, method.estimates)


def _parts(made: Any, name: str) -> tuple[nn.Module, nn.Module | None]:
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
