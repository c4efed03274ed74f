"""The outer step: what is done with the mean of how far the replicas have come since they last began alike.

    Δ = θ_start − mean_r θ_r          the outer gradient (DiLoCo, arXiv 2311.08105)
    v ← μ·v + Δ
    θ_start ← θ_start − α·(Δ + μ·v)   Nesterov's; SGD: θ_start ← θ_start − α·Δ; none: θ_start ← mean_r θ_r

All replicas go on from the new θ_start. Where the mean comes late, what a replica has done since it sent its own is
added to it: nothing of that is lost.
"""

from __future__ import annotations

import ast
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from syngrad.checks import real
from syngrad.errors import ConfigError

EVERYTHING = slice(None)
#: what `outer` may be, for errors
VALID = "'nesterov(0.7, 0.9)', 'sgd(1.0)' or 'none'"


@dataclass(frozen=True)
class OuterRule:
    """How θ_start follows from Δ.

    Args:
        rate: α; 1 without a rule, where the mean itself is taken.
        momentum: μ.
    """

    rate: float = 1.0
    momentum: float = 0.0

    @classmethod
    def parse(cls, text: Any) -> OuterRule:
        """Read "nesterov(rate, momentum)", "sgd(rate)", or "none" and None.

        Raises:
            ConfigError: for anything else, naming it.
        """
        if text is None or text == "none":
            return cls()
        name, numbers = _call(text)
        rate, momentum = (*numbers, 0.0, 0.0)[:2]
        if len(numbers) != {"nesterov": 2, "sgd": 1}.get(name):
            raise ConfigError(f"outer must be {VALID}, got {text!r:.60}")
        if not 0 < rate < math.inf or not 0 <= momentum < 1:
            raise ConfigError(
                f"outer must have a rate above 0 and a momentum of at least 0 and below 1, got {text!r:.60}"
            )
        return cls(rate, momentum)


def _call(text: Any) -> tuple[str, list[float]]:
    """The name and the numbers of "name(number, …)"; an empty name for anything else."""
    try:
        node = ast.parse(str(text).strip(), mode="eval").body
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.keywords:
            found = [real(ast.literal_eval(each)) for each in node.args]
            if all(each is not None for each in found):
                return node.func.id, [float(each) for each in found if each is not None]
    except (SyntaxError, ValueError, TypeError, MemoryError, RecursionError):
        return "", []
    return "", []


class OuterStep:
    """θ_start and the outer momentum of some tensors, and the step that moves them.

    Args:
        rule: which step.
        values: the tensors as all replicas have them at the beginning; copied.
    """

    def __init__(self, rule: OuterRule, values: Sequence[Tensor]) -> None:
        self.rule = rule
        self.start = [value.detach().clone() for value in values]
        self.velocity = [torch.zeros_like(value) for value in self.start] if rule.momentum else []

    @torch.no_grad()
    def deltas(self, which: Sequence[int], values: Sequence[Tensor]) -> list[Tensor]:
        """This replica's θ_start − θ of some of them, of which the values are given."""
        return [self.start[index] - value for index, value in zip(which, values, strict=True)]

    @torch.no_grad()
    def step(self, which: Sequence[int], means: Sequence[Tensor]) -> None:
        """Move θ_start of some of them by Δ, the mean over the replicas."""
        rate, momentum = self.rule.rate, self.rule.momentum
        for index, delta in zip(which, means, strict=True):
            if momentum:
                velocity = self.velocity[index]
                velocity.mul_(momentum).add_(delta)
                delta = delta + momentum * velocity
            self.start[index].sub_(delta, alpha=rate)

    def state(self, which: slice = EVERYTHING) -> dict[str, Any]:
        """What all replicas have alike of some of them, as tensors that are not copied."""
        return {"start": self.start[which], "velocity": self.velocity[which]}

    @torch.no_grad()
    def load(self, state: dict[str, Any], which: slice = EVERYTHING) -> None:
        """Take it over from another replica, or from a checkpoint.

        Raises:
            ValueError: for a state of other tensors; nothing has been moved then.
        """
        found = [(name, own[which], state[name]) for name, own in (("start", self.start), ("velocity", self.velocity))]
        for name, mine, its in found:
            if [(t.shape, t.dtype) for t in mine] != [(t.shape, t.dtype) for t in its]:
                raise ValueError(f"its outer {name} is of other tensors than there are")
        for _, mine, its in found:
            for own, given in zip(mine, its, strict=True):
                own.copy_(given)
