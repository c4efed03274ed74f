"""What trainers of recurrent cores and graphs are told, checked once; what each means stands at the public classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import torch
from torch import Tensor, nn

from syngrad.checks import (
    check_callable,
    check_choice,
    check_not_negative,
    check_positive,
    check_seed,
    check_whole,
)
from syngrad.core.interface import check_spec
from syngrad.errors import ConfigError
from syngrad.estimators.registry import EstimatorSpec
from syngrad.optim.groups import GroupOptions, OptimizerFactory, check_groups
from syngrad.optim.guard import check_bound
from syngrad.runtime.options import check_device
from syngrad.runtime.precision import parse_dtype
from syngrad.targets import check_lambda

#: a factor, or a function of what was trained so far
Schedule = float | Callable[[int], float]


@dataclass(frozen=True, kw_only=True)
class UpdateOptions:
    """How whatever is recurrent updates: trainers of a core, and graphs.

    Raises:
        ConfigError: for a value that cannot be used; it names the option.
    """

    optimizer: OptimizerFactory
    estimator_lr: float
    scheduler: Callable[[Any], Any] | None
    clip_norm: float | None
    guard: float | None
    seed: int
    device: torch.device | None
    quality_every: int

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """The fields out of a constructor's arguments, its `locals()`, where each is a keyword of the same name."""
        return cls(**{field.name: given[field.name] for field in fields(cls) if field.name in given})

    def __post_init__(self) -> None:
        check_callable("optimizer", self.optimizer, "(output, target)")
        self._keep(
            estimator_lr=check_positive("estimator_lr", self.estimator_lr),
            clip_norm=None if self.clip_norm is None else check_positive("clip_norm", self.clip_norm),
            guard=check_bound(self.guard),
            seed=check_seed(self.seed),
            device=check_device(self.device),
            quality_every=check_whole("quality_every", self.quality_every, 0),
        )

    def _keep(self, **checked: Any) -> None:
        """Put what a check returned in the place of what was given."""
        for name, value in checked.items():
            object.__setattr__(self, name, value)


@dataclass(frozen=True, kw_only=True)
class RecurrentOptions(UpdateOptions):
    """What both trainers take. `auxiliary` and `autocast` need a window: the trainer step by step leaves them off."""

    readout: nn.Module | None
    batch_first: bool | None
    loss: Callable[[Any, Any], Tensor] | None
    loss_count: Callable[[Any], float] | None
    inject: Schedule
    lam: float
    classes: int | None
    groups: GroupOptions | None
    auxiliary: float = 0.0
    autocast: torch.dtype | None = None

    def __post_init__(self) -> None:
        if self.readout is not None and not isinstance(self.readout, nn.Module):
            raise ConfigError(f"readout must be a module, got {type(self.readout).__name__}")
        for name in ("loss", "loss_count"):
            if getattr(self, name) is not None:
                check_callable(name, getattr(self, name), "(output, target)")
        check_groups(self.groups or {})
        self._keep(inject=self.inject if callable(self.inject) else check_not_negative("inject", self.inject))
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class WindowOptions(RecurrentOptions):
    """What :class:`syngrad.TruncatedBPTT` takes beside them."""

    window: int
    horizon: int
    discount: float | None

    def __post_init__(self) -> None:
        super().__post_init__()
        self._keep(
            window=check_whole("window", self.window, 1),
            horizon=check_whole("horizon", self.horizon, 1),
            lam=check_lambda(self.lam),
            discount=None if self.discount is None else check_not_negative("discount", self.discount),
            autocast=parse_dtype(self.autocast),
            auxiliary=check_not_negative("auxiliary", self.auxiliary),
        )


@dataclass(frozen=True, kw_only=True)
class OnlineOptions(RecurrentOptions):
    """What :class:`syngrad.recurrent.OnlineBPLambda` takes beside them."""

    gamma: float
    update: str
    trace_limit: int

    def __post_init__(self) -> None:
        super().__post_init__()
        gamma = check_not_negative("gamma", self.gamma)
        if gamma > 1:
            raise ConfigError(
                f"gamma must lie in [0, 1], got {self.gamma!r:.40}: the discount of what is a step further away"
            )
        check_choice("update", self.update, ("step", "call"))
        trace_limit = check_whole("trace_limit", self.trace_limit, 0)
        self._keep(lam=check_lambda(self.lam), gamma=gamma, trace_limit=trace_limit)


@dataclass(frozen=True, kw_only=True)
class GraphOptions(UpdateOptions):
    """What :class:`syngrad.recurrent.Graph` takes beside how it updates; `inject` is for all places, or by name."""

    estimator: EstimatorSpec
    inject: float | Mapping[str, float]

    def __post_init__(self) -> None:
        check_spec(self.estimator)
        super().__post_init__()
        if isinstance(self.inject, Mapping):
            self._keep(inject={name: check_not_negative(f"inject of {name!r}", c) for name, c in self.inject.items()})
        else:
            self._keep(inject=check_not_negative("inject", self.inject))
