"""The auxiliary task: a state is to foretell the estimate at the boundary to come.

A linear head on the window's first output o_1 predicts Ĝ(s_T), the estimate at its last; with ρ the running mean of
‖Ĝ‖², weight·Σ‖A(o_1) − Ĝ‖²/(n·ρ) joins the window's loss and trains core and head. So what matters T − 1 steps later is
drawn to the front of the window, and the window before it hears of it through its own boundary.

Source: Jaderberg et al. 2016 (arXiv 1608.05343), section 2.1 and App. C.2: "an extra head predicts the next window's
synthetic gradient". Deviations: the prediction is made by the first output of the window itself, since the graph of the
window before is gone by then; the error is divided by ρ, so that one weight serves all tasks.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from syngrad.errors import ConfigError
from syngrad.estimators.base import add_grad, exact, zero_
from syngrad.estimators.closed_form import linear_regressor_grads
from syngrad.tree import tensors


class Auxiliary(nn.Module):
    """The task's head, and ρ. `weight` is that of the task in the window's loss; where it is 0 there is no task."""

    power: Tensor

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = weight
        self.head: nn.Linear | None = None
        self.register_buffer("power", torch.zeros(()))

    def build(self, output: Tensor, features: int) -> None:
        """Make the head for outputs like this one, of one step, and a state of so many features."""
        if self.weight:
            width = output[0].numel()
            dtype = torch.float64 if output.dtype == torch.float64 else torch.float32  # not autocast's
            self.head = zero_(nn.Linear(width, features)).to(output.device, dtype)

    @torch.no_grad()
    def fit(self, output: Tensor, estimate: Tensor, factor: float) -> tuple[Tensor, Tensor]:
        """Add the gradient of the task's loss to the head's `.grad`; (the output, the gradient that it is to receive).

        With r = A(o_1) − Ĝ and f = 2·factor·weight/(n·ρ) that is f·rᵀo_1 for A's matrix, f·Σr for its bias, f·r·A for
        o_1: in closed form, without a graph.

        Args:
            output: (n, …), the window's first.
            estimate: (n, features), Ĝ at its end, in the units of one sample.
            factor: what the whole loss is multiplied by.
        """
        head = self.head
        assert head is not None
        n = len(estimate)
        # how large estimates are changes by orders of magnitude as they grow from zero: ρ follows within ten windows,
        # and takes the first that is not zero as it is
        power = torch.linalg.vector_norm(estimate).square_().div_(n).to(self.power.dtype)
        self.power.copy_(torch.where(self.power > 0, self.power.lerp(power, 0.1), power))
        rows = output.detach().flatten(1).to(head.weight.dtype)
        with exact(rows):
            residual = head(rows).sub_(estimate)
            residual.mul_(2 * factor * self.weight / n).div_(self.power.clamp_min(torch.finfo(torch.float32).tiny))
            for parameter, grad in zip(head.parameters(), linear_regressor_grads(rows, residual), strict=True):
                add_grad(parameter, grad)
            return output, (residual @ head.weight).view(output.shape).to(output.dtype)

    def first(self, outputs: Any, time: int) -> Tensor:
        """The first step's output, (n, …)."""
        found = next((leaf for leaf in tensors(outputs) if leaf.is_floating_point()), None)
        if found is None:
            raise ConfigError("the auxiliary task needs floating outputs of the core; use auxiliary=0")
        return found.select(time, 0)
