"""The division of the data: every minibatch is one replica's, whatever the loader, and none is another's too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from syngrad.data import TensorBatches
from syngrad.replicas.shares import Share
from syngrad.trainer.loaders import LoaderPosition

COUNT, SIZE = 26, 4  # seven minibatches, the last one odd


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.arange(COUNT))


class Noting(Dataset[Tensor]):
    """Remembers what was asked of it."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> Tensor:
        self.asked.append(index)
        return torch.tensor(index)


def _dataset() -> TensorDataset:
    return TensorDataset(torch.arange(COUNT))


LOADERS: dict[str, Callable[[], Any]] = {
    "list": lambda: [(each,) for each in torch.arange(COUNT).split(SIZE)],
    "in order": lambda: DataLoader(_dataset(), batch_size=SIZE),
    "shuffled": lambda: DataLoader(_dataset(), SIZE, shuffle=True, generator=torch.Generator().manual_seed(3)),
    "by the global generator": lambda: DataLoader(_dataset(), SIZE, shuffle=True),
    "tensors": lambda: TensorBatches(torch.arange(COUNT), batch_size=SIZE, shuffle=True),
    "stream": lambda: DataLoader(Stream(), SIZE),
}


def seen(batches: Iterator[Any]) -> list[list[int]]:
    return [(each[0] if isinstance(each, tuple | list) else each).tolist() for each in batches]


@pytest.mark.parametrize("replicas", [1, 2, 3])
@pytest.mark.parametrize("name", LOADERS)
def test_no_sample_is_seen_twice_and_all_see_equally_many(name: str, replicas: int) -> None:
    positions = []
    for index in range(replicas):
        torch.manual_seed(5)
        loader = LOADERS[name]()
        positions.append((LoaderPosition(loader, Share(loader, index, replicas)), torch.get_rng_state()))
    orders = []
    for _ in range(2):
        parts = []
        for at, (position, state) in enumerate(positions):
            torch.set_rng_state(state)
            parts.append(seen(position.epoch()))
            positions[at] = (position, torch.get_rng_state())
        assert {len(part) for part in parts} == {7 // replicas}
        assert positions[0][0].length in (None, 7 // replicas)
        flat = [sample for part in parts for batch in part for sample in batch]
        assert len(flat) == len(set(flat)) >= SIZE * (7 // replicas * replicas - 1)
        orders.append(flat)
    shuffled = name in ("shuffled", "by the global generator", "tensors")
    assert (orders[0] != orders[1]) is shuffled


def test_of_a_dataloader_only_the_share_is_loaded() -> None:
    data = Noting()
    share = Share(DataLoader(data, SIZE), 1, 3)
    assert seen(iter(share)) == [[4, 5, 6, 7], [16, 17, 18, 19]]
    assert data.asked == [4, 5, 6, 7, 16, 17, 18, 19]


@pytest.mark.parametrize("name", [name for name in LOADERS if name != "stream"])
def test_a_look_at_the_first_minibatch_is_no_step(name: str) -> None:
    torch.manual_seed(5)
    loader = LOADERS[name]()
    position = LoaderPosition(loader, Share(loader, 1, 2))
    first = seen(iter([position.peek()]))[0]
    assert seen(position.epoch())[0] == first


@pytest.mark.parametrize("name", ["list", "shuffled", "by the global generator", "tensors"])
def test_another_replica_goes_on_from_its_place(name: str) -> None:
    """What one has of the data's order tells another, with its own share, where to go on."""
    torch.manual_seed(5)
    loader = LOADERS[name]()
    one = LoaderPosition(loader, Share(loader, 0, 2))
    epoch = one.epoch()
    begun = [next(epoch), next(epoch)]
    state = {**one.state_dict(), "mark": ""}
    rest = seen(epoch)
    torch.manual_seed(77)
    another = LOADERS[name]()
    two = LoaderPosition(another, Share(another, 1, 2))
    two.load(state)
    found = seen(two.epoch())
    assert len(found) == len(rest) == 1
    flat = [sample for batch in [*seen(iter(begun)), *rest, *found] for sample in batch]
    assert len(set(flat)) == len(flat)


def test_another_number_of_replicas_goes_on_after_what_all_have_seen() -> None:
    loader = LOADERS["in order"]()
    one = LoaderPosition(loader, Share(loader, 0, 2))
    epoch = one.epoch()
    next(epoch)
    next(epoch)  # both of them have seen two: four minibatches
    state = one.state_dict()
    epoch.close()  # type: ignore[attr-defined]
    alone = LoaderPosition(loader)
    alone.load(state)
    assert seen(alone.epoch()) == [[16, 17, 18, 19], [20, 21, 22, 23], [24, 25]]
