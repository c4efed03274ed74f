"""A core's state taken apart: where its samples are, and all its numbers as one vector a sample, for the estimator.

An `nn.LSTM` keeps its state as (layers, n, f), a cell as (n, f), a user's core as it likes. In which dimension a leaf's
samples are is found by running the core with two samples and with three; a leaf that does not change then, a counter
for instance, belongs to the whole batch and is only carried on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from syngrad.errors import MessageError
from syngrad.preserve_state import preserve_state
from syngrad.recurrent.core import Core
from syngrad.tree import map_tensors, structure, tensors


class Layout:
    """How the state of one core is put together: `moved` are its floating leaves that have samples, by index.

    Args:
        state: one such state, of any structure.
        rows: of each leaf the dimension of its samples, None for a leaf of the whole batch.

    Raises:
        MessageError: for a state in which no floating tensor has a dimension for the samples.
    """

    def __init__(self, state: Any, rows: list[int | None]) -> None:
        leaves, self.spec = pytree.tree_flatten(state)
        #: how many tensors the state is a plain tuple of, two for an LSTM's; 0 where it has to be walked through
        self._tuple = len(leaves) if _plain(state) else 0
        self.rows, self.form = rows, structure(state)
        self.shapes = [
            tuple(leaf.shape[:row] + leaf.shape[row + 1 :]) if isinstance(leaf, Tensor) and row is not None else None
            for leaf, row in zip(leaves, rows, strict=True)
        ]
        self.moved = [i for i, leaf in enumerate(leaves) if rows[i] is not None and leaf.is_floating_point()]
        if not self.moved:
            raise MessageError(
                f"the core's state {self.form} has no floating tensor with a dimension for the samples, so there is "
                "nothing that a gradient could reach; a core returns (outputs, state), as nn.LSTM does"
            )
        #: whether samples lie in memory one after the other in each of them, as in an LSTM of one layer
        self._simple = [torch.Size((self.shapes[i] or ())[: rows[i] or 0]).numel() == 1 for i in self.moved]
        self.sizes = [torch.Size(self.shapes[i] or ()).numel() for i in self.moved]

    @property
    def features(self) -> int:
        """Numbers of one sample's state."""
        return sum(self.sizes)

    def leaves(self, state: Any, n: int | None = None) -> list[Tensor]:
        """The leaves that a gradient goes through, in order, of a state of `n` samples.

        Raises:
            MessageError: for a state of another form than it was at first, naming both.
        """
        flat = self._flat(state)
        if flat is None:
            raise MessageError(
                f"the core's state changed: it was {self.form} at first and is {structure(state)} now; a state must "
                "keep its structure"
            )
        for leaf, row, shape in zip(flat, self.rows, self.shapes, strict=True):
            if row is not None and leaf.shape[:row] + leaf.shape[row + 1 :] != shape:
                raise MessageError(
                    f"the core's state changed: one sample's part was {shape} at first, and a leaf of shape "
                    f"{tuple(leaf.shape)} has come now; a state must keep its shapes"
                )
            if row is not None and n is not None and leaf.shape[row] != n:
                raise MessageError(
                    f"the core's state is of {leaf.shape[row]} samples, in a leaf of shape {tuple(leaf.shape)}, and "
                    f"the inputs are of {n}; a state keeps a part for each of them"
                )
        return [flat[i] for i in self.moved]

    def vector(self, leaves: list[Tensor]) -> Tensor:
        """(n, features) from tensors in the layout of those leaves."""
        rows = []
        for i, leaf, simple in zip(self.moved, leaves, self._simple, strict=True):
            row = self.rows[i] or 0
            rows.append((leaf if simple else leaf.movedim(row, 0)).reshape(leaf.shape[row], -1))
        return rows[0] if len(rows) == 1 else torch.cat(rows, 1)

    def apart(self, vector: Tensor, like: list[Tensor]) -> list[Tensor]:
        """What :meth:`vector` put together: (n, features) as tensors in the layout, and dtype, of `like`."""
        found = []
        for i, part, leaf, simple in zip(self.moved, vector.split(self.sizes, 1), like, self._simple, strict=True):
            if simple:
                made = part.reshape(leaf.shape)
            else:
                made = part.reshape(part.shape[0], *(self.shapes[i] or ())).movedim(0, self.rows[i] or 0)
            found.append(made if made.dtype == leaf.dtype else made.to(leaf.dtype))
        return found

    def cut(self, state: Any, wanted: bool) -> tuple[Any, list[Tensor]]:
        """The state cut from its graph, and those leaves of it, which require a gradient where one is wanted."""
        found = self._flat(state)
        flat = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in found or pytree.tree_leaves(state)]
        leaves = [flat[i] for i in self.moved]
        if wanted:
            for leaf in leaves:
                leaf.requires_grad_()
        return tuple(flat) if self._tuple else pytree.tree_unflatten(flat, self.spec), leaves

    def put(self, state: Any, leaves: list[Tensor]) -> Any:
        """The state with other tensors in the place of those leaves."""
        flat = pytree.tree_leaves(state)
        for i, leaf in zip(self.moved, leaves, strict=True):
            flat[i] = leaf
        return pytree.tree_unflatten(flat, self.spec)

    def where(self, which: Tensor, chosen: Any, other: Any) -> Any:
        """Sample by sample the one state or the other; leaves of the whole batch are the other's. which: (n,) bool."""
        first, second = pytree.tree_leaves(chosen), pytree.tree_leaves(other)
        mixed = []
        for a, b, row in zip(first, second, self.rows, strict=True):
            if row is None:
                mixed.append(b)
            else:
                mixed.append(torch.where(which.view([-1 if k == row else 1 for k in range(b.dim())]), a, b))
        return pytree.tree_unflatten(mixed, self.spec)

    def samples(self, state: Any) -> int:
        """How many samples a state is of."""
        first = self.moved[0]
        leaf: Tensor = (self._flat(state) or pytree.tree_leaves(state))[first]
        return leaf.shape[self.rows[first] or 0]

    def _flat(self, state: Any) -> list[Any] | None:
        """All leaves of a state of this form; None for one of another."""
        if self._tuple and _plain(state) and len(state) == self._tuple:
            return list(state)
        flat, spec = pytree.tree_flatten(state)
        return flat if spec == self.spec else None


def find_layout(core: Core, inputs: Any) -> Layout:
    """The layout of the state that this core returns for such inputs, found without leaving a trace on it.

    Raises:
        MessageError: for a state in which no tensor has a dimension for the samples.
    """
    two, three = (_state(core, inputs, count) for count in (2, 3))
    a, b = pytree.tree_leaves(two), pytree.tree_leaves(three)
    if len(a) != len(b):
        raise MessageError("the core's state has another structure for two samples than for three; it must keep one")
    return Layout(three, [_row(x, y) for x, y in zip(a, b, strict=True)])


def _plain(state: Any) -> bool:
    return type(state) is tuple and all(isinstance(leaf, Tensor) for leaf in state)


def _state(core: Core, inputs: Any, count: int) -> Any:
    index = torch.zeros(count, dtype=torch.int64, device=tensors(inputs)[0].device)
    one = map_tensors(lambda leaf: leaf.narrow(core.time, 0, 1).index_select(core.batch, index), inputs)
    with preserve_state(core.module), torch.no_grad():
        return core.run(one, None)[1]


def _row(two: Any, three: Any) -> int | None:
    if not isinstance(two, Tensor) or two.dim() != three.dim():
        return None
    different = [k for k, (a, b) in enumerate(zip(two.shape, three.shape, strict=True)) if a != b]
    return different[0] if len(different) == 1 else None
