"""Where a head that predicts zero cannot learn, and how it leaves.

A head starts with its last layer at zero, so that an untrained estimate moves no weight. For losses that are bilinear
in the output (InfoNCE on dot products or cosines, matching of embeddings) zero is a saddle: the head's own gradient is
exactly zero there, and it would stay for ever. For those that divide by the output's norm or spread it is not finite,
or huge. There the last layer starts at PyTorch's usual small random values instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from syngrad.tree import tensors

#: a gradient so many times as large as the loss and the message is none that a loss is meant to have
ABSURD = 1e6
#: the label that does not count
IGNORED = -100


class Start:
    """Watches a head's first estimates, until its last layer is known to learn or has left zero.

    Args:
        bodies: the head's networks, one an output.
    """

    def __init__(self, bodies: Iterable[nn.Module]) -> None:
        self._last = [[m for m in body.modules() if isinstance(m, nn.Linear | nn.Conv2d)][-1] for body in bodies]
        #: whether nothing is known yet
        self.open = True

    @torch.no_grad()
    def leaves(
        self, loss: Tensor, h: Tensor, context: Any, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]
    ) -> bool:
        """Whether the last layer has just been given random values, so that the estimate has to be made again.

        Args:
            loss: of the head.
            h: the message.
            context: what travels with it.
            parameters: of the head.
            gradients: of the loss with respect to these.
        """
        last = [parameter for layer in self._last for parameter in layer.parameters()]
        own = set(map(id, last))
        found = [g for p, g in zip(parameters, gradients, strict=True) if id(p) in own and g is not None]
        if not found or any(bool(parameter.any()) for parameter in last):
            self.open = False
            return False
        value, norm = float(loss), float(torch.stack([g.double().norm() for g in found]).norm())
        if value == 0.0 and norm == 0.0:  # nothing is lost at zero, or no sample counts
            return False
        if not torch.isfinite(loss) and not all(map(_counts, tensors((h, context)))):
            return False  # that is the data's fault, and is said elsewhere
        self.open = False
        usual = max(1.0, abs(value)) * max(1.0, float(h.abs().max()))
        if 0.0 < norm <= ABSURD * usual:
            return False
        for layer in self._last:
            layer.reset_parameters()
        return True


def _counts(data: Tensor) -> bool:
    """Whether a loss has anything to go by: numbers that are finite, labels of which one counts at least."""
    if data.is_floating_point():
        return bool(data.isfinite().all())
    return bool((data != IGNORED).any())
