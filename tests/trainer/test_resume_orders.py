"""Orders of the data that hang on the number of the epoch, or build on the last one: the same after going on."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests._support.models import CASES, assert_same, tensors_of
from tests._support.resuming import Crash, StopError
from tests._support.training import trainer_of
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import syngrad
from syngrad.callbacks import Callback
from syngrad.errors import TrainingWarning
from syngrad.trainer.history import Epoch

X, Y = (torch.cat(parts) for parts in zip(*CASES["mlp"].batches(5), strict=True))
SIZE = 7


class Own:
    """A loader of somebody's own: `order` says what comes, epoch by epoch."""

    def __len__(self) -> int:
        return len(X) // SIZE

    def order(self) -> list[int]:
        raise NotImplementedError

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = self.order()
        for at in range(0, len(self) * SIZE, SIZE):
            yield X[order[at : at + SIZE]], Y[order[at : at + SIZE]]


class Cumulative(Own):
    """Shuffles its own list once more every epoch."""

    def __init__(self, kind: Any = list) -> None:
        self.kept, self.random = kind(range(len(X))), random.Random(5)

    def order(self) -> list[int]:
        drawn = list(range(len(self.kept)))
        self.random.shuffle(drawn)
        self.kept[:] = [int(self.kept[index]) for index in drawn]
        return [int(index) for index in self.kept]


class CumulativeArray(Cumulative):
    def __init__(self) -> None:
        super().__init__(lambda numbers: np.array(list(numbers)))


class CumulativeTensor(Cumulative):
    def __init__(self) -> None:
        super().__init__(lambda numbers: torch.tensor(list(numbers)))

    def order(self) -> list[int]:
        drawn = list(range(len(self.kept)))
        self.random.shuffle(drawn)
        self.kept.copy_(self.kept[drawn])
        return self.kept.tolist()


class Counting(Own):
    """Counts its epochs and shuffles by their number."""

    def __init__(self) -> None:
        self.times = 0

    def order(self) -> list[int]:
        self.times += 1
        return torch.randperm(len(X), generator=torch.Generator().manual_seed(self.times)).tolist()


class Hidden(Own):
    """What decides its order is in nothing that can be looked at."""

    def __init__(self) -> None:
        self.draw = iter(torch.randperm(len(X), generator=torch.Generator().manual_seed(k)) for k in range(99))

    def order(self) -> list[int]:
        return next(self.draw).tolist()


class SetEpoch(Callback):
    def __init__(self, sampler: Any) -> None:
        self.sampler = sampler

    def on_epoch(self, trainer: syngrad.Trainer, record: Epoch) -> None:
        self.sampler.set_epoch(record.epoch)


def run(kind: Any, at: int | None = None, **more: Any) -> dict[str, Tensor]:
    """The model after three epochs of five minibatches, or after a crash."""
    callbacks: list[Callback] = [Crash(at)] if at else []
    loader = kind()
    if isinstance(loader, DataLoader):
        callbacks.append(SetEpoch(loader.sampler))
    made = trainer_of()
    try:
        made.fit(loader, 3, callbacks=callbacks, **more)
    except StopError:
        assert at is not None
    return tensors_of(made.model)


def distributed() -> Any:
    data = TensorDataset(X, Y)
    return DataLoader(data, SIZE, sampler=DistributedSampler(data, 1, 0, seed=1))


@pytest.mark.parametrize("at", [3, 6, 9, 13])
@pytest.mark.parametrize("kind", [distributed, Cumulative, CumulativeArray, CumulativeTensor, Counting])
def test_the_order_is_the_same_after_going_on(kind: Any, at: int, tmp_path: Path) -> None:
    every = {"save": tmp_path, "save_every": 2}
    whole = run(kind)
    run(kind, at, **every)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert_same(run(kind, **every, resume=True), whole)


def test_it_is_after_going_on_twice(tmp_path: Path) -> None:
    every = {"save": tmp_path, "save_every": 2}
    whole = run(Cumulative)
    run(Cumulative, 7, **every)
    run(Cumulative, 12, **every, resume=True)
    assert_same(run(Cumulative, **every, resume=True), whole)


def test_an_order_that_cannot_be_put_back_is_warned_of(tmp_path: Path) -> None:
    every = {"save": tmp_path, "save_every": 2}
    run(Hidden, 9, **every)
    with pytest.warns(
        TrainingWarning, match="the data comes in another order than before: minibatch 3 of the epoch"
    ) as said:
        run(Hidden, **every, resume=True)
    assert "\n" not in str(said[0].message)


class Silent(DistributedSampler[Any]):
    """Does not tell which epoch it is at."""

    __slots__ = ("told",)

    def set_epoch(self, epoch: int) -> None:
        self.told = {"epoch": epoch}

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(X)))


def test_a_sampler_that_does_not_tell_its_epoch_is_warned_of(tmp_path: Path) -> None:
    def silent() -> Any:
        data = TensorDataset(X, Y)
        sampler = Silent(data, 1, 0)
        del sampler.epoch
        return DataLoader(data, SIZE, sampler=sampler)

    run(silent, 8, save=tmp_path)
    with pytest.warns(TrainingWarning, match="order of the loader's sampler hangs on set_epoch, and it does not tell"):
        run(silent, save=tmp_path, resume=True)
