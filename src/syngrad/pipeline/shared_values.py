"""What crosses one link of parameters that stages at both of its sides use: their values forward, gradients backward.

Both go in full precision, whatever form messages and gradients travel in: a copy is to be the very tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from syngrad.core.sharing import SharedParameter
from syngrad.errors import LinkError


class SharedValues:
    """The parameters that cross one link.

    Args:
        shared: they.
        sent: minibatch → whether their values go with its message.
    """

    def __init__(
        self, shared: Sequence[SharedParameter] = (), sent: Callable[[int], bool] = lambda step: False
    ) -> None:
        self.shared, self._sent = shared, sent
        # one that stands still from now on has still moved since it went last
        self._moved = [True for _ in shared]

    def __bool__(self) -> bool:
        return bool(self.shared)

    def values(self, step: int) -> list[list[Tensor | None]]:
        """What joins the body of minibatch `step`'s message: nothing, or a value each, None where it stands."""
        if not self.shared or not self._sent(step):
            return []
        moving = [each.parameter.requires_grad for each in self.shared]
        # copies: a link may send them later, when the optimiser has stepped
        values = [
            each.parameter.detach().clone() if now or before else None
            for each, now, before in zip(self.shared, moving, self._moved, strict=True)
        ]
        self._moved = moving
        return [values]

    def put(self, bodies: Sequence[Any], peer: str) -> None:
        """Take over what has come with a message."""
        for values in bodies:
            for each, value in self._paired(values, peer):
                with torch.no_grad():
                    each.parameter.copy_(value)

    def gradients(self, bodies: Sequence[Any], peer: str) -> list[Tensor | None]:
        """What has come with a feedback, in memory of one's own: more is added to it."""
        made: list[Tensor | None] = [None] * len(self.shared)
        for values in bodies:
            for each, value in self._paired(values, peer):
                made[self.shared.index(each)] = value.to(each.parameter.device, copy=True)
        return made

    def _paired(self, values: Any, peer: str) -> list[tuple[SharedParameter, Tensor]]:
        if not isinstance(values, list) or len(values) != len(self.shared):
            raise LinkError(f"{peer} sent other shared parameters than these stages have; run one version everywhere")
        pairs = [(each, value) for each, value in zip(self.shared, values, strict=True) if value is not None]
        for each, value in pairs:
            own = each.parameter
            if not isinstance(value, Tensor) or value.shape != own.shape or value.dtype != own.dtype:
                raise LinkError(f"{peer} sent the shared parameter {each.name!r} in another shape or dtype")
        return pairs
