"""An optimiser for gradients that come late: its momentum, its rate and the point they are taken at, by staleness.

With τ_k the minibatches that stage k's gradients are late, as measured, P stages, and t the stage's updates so far:

    momentum   β₁,ₖ = 0.99, or β₁ + τ_k (0.99 − β₁)/P        a long memory sees little of a few minibatches' delay
    rate       η / τ_k^(1 − min(t/T, 1))                     small while the weights move fast, as ever after T updates
    predict    forward at w + τ_k (w_t − w_{t−1})            where the weights will be when the gradient is used

A stage with τ_k = 0 is left alone, to the last bit; estimators, which are fitted at once, always are.
Sources: momentum, Ajanthan et al. 2025 (arXiv 2505.01099), with NAdam; rate, PipeMare (Yang et al. 2021,
arXiv 1910.05124), equation 13; predict, SpecTrain (Chen et al. 2018, arXiv 1809.02839). Deviations: τ_k is what has
been measured so far, not P − 1 − k; the prediction goes by the last step itself, whatever optimiser has made it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from syngrad.checks import check_whole, real
from syngrad.errors import ConfigError
from syngrad.optim.factory import default_optimizer, parse_optimizer

#: the long momentum of a late stage
LONG = 0.99
BY_STALENESS = "by staleness"
#: the last step of a parameter, among what its optimiser keeps
MOVED = "moved"


@dataclass(frozen=True)
class LateGradients:
    """A factory like any other that a Trainer is given as `optimizer=`.

        optimizer=LateGradients("nadam(lr=1e-3)", momentum=0.99)

    Args:
        optimizer: a name with options, or a function of parameters.
        momentum: of late stages, β₁ of optimisers that have one and `momentum` of SGD: a number, "by staleness", or
            None for the optimiser's own.
        rate_updates: T, the updates over which a late stage's rate rises to what it is; None for no such thing.
        predict: whether a late stage runs at predicted weights; heeded by the method `delayed`. It keeps one more copy
            of the weights.

    Raises:
        ConfigError: for what cannot be used; when the optimiser is made, for a momentum that it does not have.
    """

    optimizer: str | Callable[[Any], torch.optim.Optimizer] = default_optimizer
    momentum: float | str | None = None
    rate_updates: int | None = None
    predict: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.optimizer, str):
            object.__setattr__(self, "optimizer", parse_optimizer(self.optimizer))
        if self.momentum is not None and self.momentum != BY_STALENESS:
            number = real(self.momentum)
            if number is None or not 0 <= number < 1:
                raise ConfigError(
                    f"momentum must be a number in [0, 1), {BY_STALENESS!r} or None, got {self.momentum!r:.40}"
                )
        if self.rate_updates is not None:
            object.__setattr__(self, "rate_updates", check_whole("rate_updates", self.rate_updates, 1))

    def __call__(self, groups: Any) -> torch.optim.Optimizer:
        """The optimiser of some parameters."""
        made: Any = self.optimizer
        optimizer: torch.optim.Optimizer = made(groups)
        if self.momentum is not None and not _momentum_key(optimizer.defaults):
            raise ConfigError(
                f"momentum={self.momentum!r}: {type(optimizer).__name__} has none; use nadam, adam or sgd, or leave it "
                "out"
            )
        return optimizer

    def step(self, optimizer: torch.optim.Optimizer, staleness: float, stages: int, updates: int) -> None:
        """One step of one stage's optimiser.

        Args:
            optimizer: whose gradients have gathered.
            staleness: τ, in minibatches.
            stages: P.
            updates: t.
        """
        late = [group for group in optimizer.param_groups if "estimator_scale" not in group] if staleness > 0 else []
        own = [dict(group) for group in late]
        moving = self._moving(late) if self.predict else []
        before = torch._foreach_add([p.detach() for p in moving], 0.0) if moving else []
        for group in late:
            self._adapt(group, staleness, stages, updates)
        try:
            optimizer.step()
        finally:
            for group, options in zip(late, own, strict=True):
                group.update({name: options[name] for name in ("lr", "betas", "momentum") if name in options})
        for parameter, was in zip(moving, before, strict=True):
            optimizer.state[parameter][MOVED] = parameter.detach() - was

    @staticmethod
    def ahead(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, staleness: float) -> Tensor | None:
        """How far the parameter will have moved when a gradient so late is used; None where that is not known."""
        moved = optimizer.state.get(parameter, {}).get(MOVED)
        return None if moved is None or staleness == 0 else staleness * moved

    def _adapt(self, group: dict[str, Any], staleness: float, stages: int, updates: int) -> None:
        if self.rate_updates is not None:
            group["lr"] = group["lr"] / max(staleness, 1.0) ** (1.0 - min(updates / self.rate_updates, 1.0))
        key = _momentum_key(group)
        if self.momentum is None or key is None:
            return
        own = group[key][0] if key == "betas" else group[key]
        made = self.momentum if not isinstance(self.momentum, str) else own + staleness * (LONG - own) / stages
        made = min(float(made), LONG) if isinstance(self.momentum, str) else float(made)
        group[key] = (made, *group[key][1:]) if key == "betas" else made

    @staticmethod
    def _moving(groups: list[dict[str, Any]]) -> list[nn.Parameter]:
        return [p for group in groups for p in group["params"] if p.grad is not None]


def _momentum_key(options: Any) -> str | None:
    """Where an optimiser has its momentum."""
    return next((name for name in ("betas", "momentum") if name in options), None)
