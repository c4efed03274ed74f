"""The optimisers, and the steps they take: the only place where a weight changes.

A step is guarded and clipped by the norms of the stages' gradients, which one fused pass over all of them gives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from syngrad.core.stage import Stage
from syngrad.errors import ConfigError, warn
from syngrad.optim import sparse_gradients
from syngrad.optim.groups import (
    GroupOptions,
    OptimizerFactory,
    check_options,
    make_optimizer,
    make_scheduler,
    parameter_groups,
    scale_rates,
)
from syngrad.optim.guard import Guard
from syngrad.optim.late_gradients import LateGradients
from syngrad.optim.moments import Moments
from syngrad.optim.standing import StandingStages

SCOPES = ("model", "stage")


@dataclass
class Part:
    """What is guarded and clipped together: a stage's weights, or its estimators' parameters, which are not clipped."""

    name: str
    parameters: list[nn.Parameter]
    weights: bool


@dataclass(frozen=True)
class Clipping:
    """The largest norm a gradient is let through with: of each stage's weights, or of the whole model's."""

    norm: float
    scope: str = "stage"


def part_norms(parts: list[list[Tensor]]) -> list[float]:
    """The 2-norm of each part's gradients taken together, in one wait for the device."""
    flat = [g.coalesce().values() if g.is_sparse else g for part in parts for g in part]
    if not flat:
        return []
    norms = list(torch._foreach_norm(flat))
    first = norms[0]
    if any(n.dtype != first.dtype or n.device != first.device for n in norms):
        norms = [n.to(first.device, torch.float64) for n in norms]
    values = iter(torch.stack(norms).tolist())
    return [math.hypot(*(next(values) for _ in part)) for part in parts]


def clip(parts: list[tuple[list[Tensor], float]], clipping: Clipping) -> None:
    """Multiply the gradients that are longer than allowed, as `torch.nn.utils.clip_grad_norm_` does, in place.

    Args:
        parts: of each stage its gradients, and their norm together.
        clipping: how long they may be.
    """
    if clipping.scope == "model":
        parts = [([g for gradients, _ in parts for g in gradients], math.hypot(*(norm for _, norm in parts)))]
    for gradients, norm in parts:
        factor = clipping.norm / (norm + 1e-6)
        if gradients and factor < 1:
            for gradient in gradients:
                gradient.mul_(factor)


class Updates:
    """All optimisers of a network.

    Args:
        stages: whose weights and estimators they update.
        factory: parameter groups → optimiser.
        scope: "stage" makes one optimiser a stage, "model" one for all, which is faster and numerically the same for
            every optimiser that acts parameter by parameter.
        estimator_lr: the estimators' learning rate as a multiple of the weights'.
        scheduler: optimiser → scheduler, one an optimiser.
        names: as for :func:`parameter_groups`.
        groups: likewise.
        guard: decides which updates are made; None: all are.
        clipping: how long gradients may be; None: as long as they are.
        tell: whether a stage's first skipped update is warned of; under float16 they belong to it.
    """

    def __init__(
        self,
        stages: list[Stage],
        factory: OptimizerFactory,
        scope: str,
        estimator_lr: float,
        scheduler: Callable[[Any], Any] | None = None,
        *,
        names: Mapping[int, Sequence[str]] | None = None,
        groups: GroupOptions | None = None,
        guard: Guard | None = None,
        clipping: Clipping | None = None,
        tell: bool = True,
    ) -> None:
        #: the optimisers' kind where it minds how late gradients are; then each stage has its own
        self.late = factory if isinstance(factory, LateGradients) else None
        divided = [[stage] for stage in stages] if scope == "stage" or self.late else [stages]
        found = [(k, parameter_groups(part, names, groups)) for k, part in enumerate(divided)]
        made = [part for _, part in found if part]
        self._stage_of = [k for k, part in found if part]
        #: minibatches that each stage's gradients are late, where somebody measures it
        self.staleness = [0.0] * len(stages)
        #: minibatches so far, which a rate that rises goes by
        self.count = 0
        if not any(p.requires_grad for stage in stages for p in stage.parameters):
            raise ConfigError("there is nothing to train: no parameter of the model requires a gradient")
        self.optimizers = [make_optimizer(factory, found) for found in made]
        for optimizer in self.optimizers:
            check_options(groups or {}, optimizer)
        self.names = names or {}
        modules = [module for stage in stages for module in stage.segment.modules()]
        sparse_gradients.leave_unfused(self.optimizers, sparse_gradients.of_modules(modules), self.names)
        #: whether no gradient has been seen yet
        self._fresh = True
        #: every group's options as they were made, before a schedule moves them
        self.options = [
            [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
            for optimizer in self.optimizers
        ]
        self.schedulers = [make_scheduler(scheduler, optimizer) for optimizer in self.optimizers] if scheduler else []
        for index, optimizer in enumerate(self.optimizers):
            scale_rates(optimizer, self.schedulers[index] if self.schedulers else None, estimator_lr)
        self.guard, self.clipping, self.tell = guard, clipping, tell
        self.moments = Moments()
        parts = [Part(stage.name, stage.parameters, True) for stage in stages]
        parts += [Part(f"{stage.name} (estimator)", stage.estimator_parameters, False) for stage in stages]
        #: whether the last update met a norm that is not finite
        self.overflowed = False
        self.stage_names = [stage.name for stage in stages if any(p.requires_grad for p in stage.parameters)]
        #: stages that have not moved yet, where somebody has them watched
        self.standing = StandingStages()
        # those without parameters too: a stage's may be given to another one, and back
        self._parts = parts
        #: all that they hold
        self.parameters = [p for optimizer in self.optimizers for g in optimizer.param_groups for p in g["params"]]

    def step_all(self) -> None:
        """Apply what has gathered in `.grad`, guarded and clipped, and clear it: this is where weights change."""
        if self.guard is not None or self.clipping is not None or self.standing:
            self._admit()
        if self._fresh:  # a function may make sparse ones too, which no module tells of
            sparse = sparse_gradients.of_gradients(self.parameters)
            sparse_gradients.leave_unfused(self.optimizers, sparse, self.names)
            self._fresh = False
        if self.late is None:
            for optimizer in self.optimizers:
                optimizer.step()
        else:
            for optimizer, k in zip(self.optimizers, self._stage_of, strict=True):
                self.late.step(optimizer, self.staleness[k], len(self.staleness), self.count)
        self.clear_all()
        torch.clear_autocast_cache()  # it holds casts of the weights as they were

    def note_staleness(self, staleness: list[float], count: int, warmup: int) -> None:
        """How late each stage's gradients are at minibatch `count`; in the warm-up none is."""
        self.staleness = staleness if count >= warmup else [0.0] * len(staleness)
        self.count = count

    def ahead(self, stage: int, parameter: nn.Parameter, staleness: float) -> Tensor | None:
        """How far a stage's parameter will have moved after so many minibatches; None where that is not asked for."""
        if self.late is None or not self.late.predict or stage not in self._stage_of:
            return None
        return self.late.ahead(self.optimizers[self._stage_of.index(stage)], parameter, staleness)

    def clear_all(self) -> None:
        """Forget all gathered gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def gathered(self) -> list[Tensor]:
        """All gradients there are."""
        return [p.grad for p in self.parameters if p.grad is not None]

    def _admit(self) -> None:
        """Drop the gradients of parts that the guard does not admit, and shorten those that are too long."""
        gathered = [(part, [p.grad for p in part.parameters if p.grad is not None]) for part in self._parts]
        gathered = [(part, gradients) for part, gradients in gathered if gradients]
        norms = part_norms([gradients for _, gradients in gathered])
        self.overflowed = not all(map(math.isfinite, norms))
        admitted: list[tuple[list[Tensor], float]] = []
        for (part, gradients), norm in zip(gathered, norms, strict=True):
            admitted_now = self.guard is None or self.guard.admits(part.name, norm)
            if self.standing and part.weights:
                self.standing.note(part.name, norm, admitted_now)
            if self.guard is not None and not admitted_now:
                if self.tell and self.guard.counts[part.name] == 1:
                    warn(
                        f"an update of stage {part.name} was skipped: its gradient has the norm {norm:.3g}, which is "
                        f"{'not finite' if not math.isfinite(norm) else 'far beyond what it was'}; see `guarded` for "
                        "how many there are (guard=None lets them pass)"
                    )
                for parameter in part.parameters:
                    parameter.grad = None
            elif part.weights:
                admitted.append((gradients, norm))
        if self.standing:
            self.standing.end_update()
        if self.clipping is not None:
            clip(admitted, self.clipping)
