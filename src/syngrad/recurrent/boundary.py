"""The boundary between two windows: what is injected there, and what the estimator is fitted to.

Window k runs from state s_{k−1} to s_k, with loss L_k. What is cut off behind s_k is G_k = Σ_{j>k} ∂L_j/∂s_k, and the
estimator's Ĝ(s_k) stands for it:

    injected at s_k     c·Ĝ(s_k)                                  c: `inject`
    target for s_{k−1}  ∂L_k/∂s_{k−1} + γ·Ĝ(s_k)·∂s_k/∂s_{k−1}    γ: `discount`

The target is what comes back at s_{k−1} in the very backward pass that trains the core: where γ = c nothing is run for
it. Otherwise (γ − c)·Ĝ(s_k) goes back to s_{k−1} once more, past the weights. At the end of a sequence Ĝ is replaced by
0, and the estimator is fitted to 0 there.

Source: Jaderberg et al. 2016 (arXiv 1608.05343), section 2.1. Deviations: the bootstrap spans a whole window, where the
paper makes one step of the next; units are those of one sample (the gradient of the sum of all losses to come), so that
nothing depends on the batch or on the length of a window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from syngrad.core.interface import Interface
from syngrad.targets import mixed
from syngrad.tree import map_tensors


@dataclass
class Pending:
    """A boundary that waits for what comes back with the next window."""

    vector: Tensor  # (n, features), the state there
    context: Any  # what the estimator looked at beside it
    rows: Tensor | None = None  # (n,) of bool, the samples that take part; None for all
    #: (n, features), what was injected, in the units of one sample, where its quality is measured
    estimate: Tensor | None = None

    def fit(self, interface: Interface, received: Tensor, scale: float, kept: list[Tensor] | None = None) -> None:
        """Fit the estimator to what came back.

        Args:
            interface: where the estimator of the state stands.
            received: (n, features), multiplied by `scale` as it came back.
            scale: ∂(what went backward)/∂(sum of sample losses).
            kept: what was estimated here with the weights that the estimator has now, where all samples take part.
        """
        if self.rows is None:
            interface.fit([self.vector], self.context, [received], scale, kept)
        elif bool(self.rows.any()):
            rows = self.rows.nonzero().squeeze(1)
            # an estimator that normalises over the batch cannot learn from one sample: it has no spread
            if len(rows) == 1 and any(isinstance(part, _BatchNorm) for part in interface.modules()):
                return
            context = map_tensors(lambda leaf: leaf.index_select(0, rows), self.context)
            interface.fit([self.vector[rows]], context, [received[rows]], scale)

    def state_dict(self) -> dict[str, Any]:
        """Plain data and tensors."""
        return dict(vars(self))


class InnerBoundary(torch.autograd.Function):
    """A boundary inside a span of windows that are trained together: forward the state, and backward

        λ·received + (1 − λ)·c·Ĝ

    while the estimator is fitted to what was received. So the targets of a span are the λ-returns
    G_{k−1} = ∂L_k/∂s_{k−1} + [(1−λ)·c·Ĝ(s_k) + λ·G_k]·∂s_k/∂s_{k−1}. Source: Pemberton & Costa 2024 (arXiv 2401.07044).
    """

    @staticmethod
    def forward(
        ctx: Any,
        vector: Tensor,
        pending: Pending,
        interface: Interface,
        given: tuple[float, ...],
        gone: Tensor | None,
    ) -> Tensor:
        """The state itself; `given` are λ, c and the scale, `gone` samples that have ended, to whom nothing comes."""
        ctx.kept = (pending, interface, given, gone)
        return vector.view_as(vector)

    @staticmethod
    def backward(ctx: Any, received: Tensor) -> Any:
        """The mixture for the window before; the estimator is fitted on the way."""
        pending, interface, (lam, inject, scale), gone = ctx.kept
        estimate = interface.estimate([pending.vector], pending.context, scale, keep=False)[0][0] * inject
        if gone is not None:
            received, estimate = (each.masked_fill(gone.unsqueeze(1), 0.0) for each in (received, estimate))
        pending.fit(interface, received, scale)
        return mixed(received, estimate, lam), None, None, None, None
