"""The Jacobian of one step of a core, J_t = ∂s_t/∂s_{t−1}, of its whole state as one vector a sample.

Its rows are pulled back through the step's own graph, as many at once as autograd can batch, so that any core does: the
fused layers of PyTorch, its cells, modules of the user's own. Where a core's backward cannot be batched (an
`autograd.Function` without a rule for `vmap`), the rows are pulled back one by one, which is slower and no less exact.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from syngrad.recurrent.state import Layout

#: rows that go back at once; bounds the memory of a step's backward at so many times a plain one
ROWS = 64


@contextmanager
def unfused() -> Iterator[None]:
    """Inside it, on a CPU, `nn.LSTM` runs as operations whose backward can be batched.

    oneDNN's fused backward takes one row at a time, which costs many times as much; forwards, over one step, the two
    cost about the same.
    """
    backend = torch.backends.mkldnn
    was = backend.enabled
    backend.enabled = False  # type: ignore[assignment]
    try:
        yield
    finally:
        backend.enabled = was


class Jacobian:
    """Makes J_t of shape (n, F, F), [sample, component of s_t, component of s_{t−1}], for states of one layout."""

    def __init__(self, layout: Layout, device: torch.device) -> None:
        self.layout = layout
        #: whether autograd batches this core's backward; found by trying
        self.batched = True
        self._ones: list[Tensor] = []
        offset = 0
        for i, size in zip(layout.moved, layout.sizes, strict=True):
            one = torch.zeros(layout.features, size, device=device)
            one[offset : offset + size] = torch.eye(size, device=device)
            offset += size
            self._ones.append(one.view(layout.features, *(layout.shapes[i] or ())))

    def __call__(self, after: list[Tensor], before: list[Tensor]) -> Tensor:
        """after: the leaves of s_t with their graph. before: those of s_{t−1} that it was made from.

        The graph is kept. What does not depend on s_{t−1}, as the state of samples that start anew, has rows of zeros.
        """
        n = self.layout.vector([leaf.detach() for leaf in before]).shape[0]
        reached = [k for k, leaf in enumerate(after) if leaf.requires_grad]
        total = self.layout.features
        if not reached:
            return before[0].new_zeros(n, total, total)
        parts = []
        for start in range(0, total, ROWS):
            stop = min(start + ROWS, total)
            wanted = [self._cotangent(k, after[k], start, stop, n) for k in reached]
            parts.append(self._rows([after[k] for k in reached], before, wanted, stop - start))
        return torch.cat(parts).transpose(0, 1)

    def _cotangent(self, k: int, leaf: Tensor, start: int, stop: int, n: int) -> Tensor:
        """One-hot rows in the layout of a leaf, the same for every sample, without memory for the samples."""
        row = (self.layout.rows[self.layout.moved[k]] or 0) + 1
        one = self._ones[k][start:stop].to(leaf.dtype).unsqueeze(row)
        return one.expand(*one.shape[:row], n, *one.shape[row + 1 :])

    def _rows(self, after: list[Tensor], before: list[Tensor], wanted: list[Tensor], count: int) -> Tensor:
        """(rows, n, F)."""
        if self.batched:
            try:
                found = torch.autograd.grad(
                    after, before, wanted, retain_graph=True, allow_unused=True, is_grads_batched=True
                )
                return self._vectors(found, before, count)
            except RuntimeError:
                self.batched = False
        rows = []
        for i in range(count):
            found = torch.autograd.grad(after, before, [w[i] for w in wanted], retain_graph=True, allow_unused=True)
            rows.append(self._vectors([None if g is None else g.unsqueeze(0) for g in found], before, 1))
        return torch.cat(rows)

    def _vectors(
        self, found: tuple[Tensor | None, ...] | list[Tensor | None], before: list[Tensor], count: int
    ) -> Tensor:
        parts = []
        for i, g, leaf in zip(self.layout.moved, found, before, strict=True):
            made = leaf.new_zeros(count, *leaf.shape) if g is None else g
            made = made.movedim((self.layout.rows[i] or 0) + 1, 1)
            parts.append(made.reshape(count, made.shape[1], -1))
        return parts[0] if len(parts) == 1 else torch.cat(parts, 2)
