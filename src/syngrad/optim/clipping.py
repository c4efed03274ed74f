"""Gradient clipping: the norms of the stages' gradients in one pass over all of them, and the shortening."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


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
