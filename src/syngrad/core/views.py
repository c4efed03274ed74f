"""Where the samples of a message's leaf stand, and what its estimator sees of it and of the labels.

as it is     (n, …), and (k·n, …) where every row is a sample of its own: a token that the model has flattened, or
             one of a pair
turned       (t, n, …), its samples in front
folded       (n, t, …) to n·t rows, for a head, where the output has so many
carried      anything else: it has no samples, and no estimate of it is made
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class View:
    """How an estimator sees one leaf.

    Args:
        turned: its samples stand in the second dimension.
        folded: its first two dimensions are seen as one.
        carried: it gets no estimate.
        rows: whether its rows are no samples of the minibatch, but parts of them.
        leading: of leaves seen as rows, the leading dimensions of the target that have an element for every row; 0 for
            none: then it is not seen.
    """

    turned: bool = False
    folded: bool = False
    carried: bool = False
    rows: bool = False
    leading: int = 0

    @property
    def plain(self) -> bool:
        """Whether leaf and labels are seen as they are."""
        return not (self.turned or self.folded or self.rows or self.carried)

    @property
    def samples(self) -> bool:
        """Whether it has the minibatch's samples, one after the other."""
        return not (self.rows or self.carried)

    def of(self, h: Tensor) -> Tensor:
        """The leaf, or a gradient of it, as its estimator sees it."""
        if self.turned:
            return h.transpose(0, 1)
        return h.flatten(0, 1) if self.folded else h

    def back(self, made: Tensor, h: Tensor) -> Tensor:
        """What an estimator has made of a leaf, in the shape of that."""
        if self.turned:
            return made.transpose(0, 1)
        return made.view(h.shape) if self.folded else made

    def labels(self, context: Any) -> Any:
        """The context, row by row; what differentiates the user's own loss is given it as it comes."""
        if not self.rows:
            return context
        if not self.leading or not isinstance(context, Tensor):
            return None
        return context.flatten(0, self.leading - 1)


def sample_dimension(shape: torch.Size, batch: int) -> int | None:
    """0 or 1, where the samples of a leaf stand; None where it has none."""
    return next((dim for dim in (0, 1) if len(shape) > dim and shape[dim] == batch), None)


def common_rows(parts: list[Tensor], batch: int) -> int:
    """The rows of all parts of an output that have no sample each, but as many as the others; 0 where they differ."""
    if any(part.dim() == 0 or sample_dimension(part.shape, batch) is not None for part in parts):
        return 0
    counts = {part.shape[0] for part in parts}
    return counts.pop() if len(counts) == 1 else 0


def leading_dimensions(target: Any, rows: int) -> int:
    """How many of the target's first dimensions have an element for every row together; 0 where none have."""
    if isinstance(target, Tensor):
        for dims in range(1, target.dim() + 1):
            if target.shape[:dims].numel() == rows:
                return dims
    return 0
