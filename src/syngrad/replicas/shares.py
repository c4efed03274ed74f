"""The part of the training data that is one replica's: of every R minibatches, in the order of the loader, one.

All replicas go through the same order, which the first hands to the others, so that no minibatch is trained on twice an
epoch while nobody dies. The last few of an epoch, fewer than there are replicas, are left out: all make equally many.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from typing import Any

from torch.utils.data import DataLoader, IterableDataset


class Share:
    """Every `count`-th minibatch of a loader, from the one at `index` on.

    Args:
        loader: any; of a `DataLoader` over a data set with a length only what is this replica's is loaded, any other is
            read whole.
        index: this replica's number, from 0.
        count: of replicas.
    """

    def __init__(self, loader: Iterable[Any], index: int, count: int) -> None:
        self.index, self.count = index, count
        self._loader, self._picks = loader, False
        if count > 1 and isinstance(loader, DataLoader) and not hasattr(loader, "state_dict"):
            sampler: Any = loader.batch_sampler
            if sampler is not None and not isinstance(loader.dataset, IterableDataset):
                # a copy: it draws from the same sampler, which the run's place in the data is told by
                picking = copy.copy(loader)
                vars(picking)["batch_sampler"] = _Picked(sampler, index, count)
                self._loader, self._picks = picking, True

    def __iter__(self) -> Iterator[Any]:
        made = iter(self._loader)
        return made if self._picks or self.count == 1 else _picked(made, self.index, self.count)


class _Picked:
    """A batch sampler of every n-th of another one's."""

    def __init__(self, sampler: Any, index: int, count: int) -> None:
        self.sampler, self.index, self.count = sampler, index, count

    def __iter__(self) -> Iterator[Any]:
        return _picked(iter(self.sampler), self.index, self.count)

    def __len__(self) -> int:
        return len(self.sampler) // self.count


def _picked(things: Iterator[Any], index: int, count: int) -> Iterator[Any]:
    """One of every `count`, as long as there are so many."""
    for place, each in enumerate(things):
        if place % count == index:
            own = each
        if place % count == count - 1:
            yield own
