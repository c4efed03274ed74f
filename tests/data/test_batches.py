from __future__ import annotations

import io
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, TensorDataset

from syngrad.data import TensorBatches
from syngrad.errors import ConfigError


def order(loader: TensorBatches) -> list[list[int]]:
    """One epoch of a loader over `arange(n)`: the samples of each minibatch."""
    return [batch[0].tolist() for batch in loader]


def flat(batches: list[list[int]]) -> list[int]:
    return list(itertools.chain(*batches))


@given(n=st.integers(1, 40), batch_size=st.integers(1, 45), shuffle=st.booleans(), drop_last=st.booleans())
def test_an_epoch_hands_out_each_sample_once(n: int, batch_size: int, shuffle: bool, drop_last: bool) -> None:
    if drop_last and batch_size > n:
        return
    loader = TensorBatches(torch.arange(n), batch_size=batch_size, shuffle=shuffle, drop_last=drop_last)
    for _ in range(2):
        batches = order(loader)
        assert len(batches) == len(loader)
        assert len(flat(batches)) == loader.samples == len(set(flat(batches)))
        assert all(len(batch) == batch_size for batch in batches[: None if drop_last else -1])
        if not drop_last:
            assert sorted(flat(batches)) == list(range(n))
        if not shuffle:
            assert flat(batches) == list(range(loader.samples))


@pytest.mark.parametrize("drop_last", [False, True])
def test_in_order_it_is_what_a_dataloader_hands_out(drop_last: bool) -> None:
    x, y = torch.randn(23, 3), torch.arange(23)
    ours = list(TensorBatches(x, y, batch_size=5, drop_last=drop_last))
    theirs = list(DataLoader(TensorDataset(x, y), batch_size=5, drop_last=drop_last))
    assert len(ours) == len(theirs)
    for own, other in zip(ours, theirs, strict=True):
        assert isinstance(own, tuple)
        assert all(torch.equal(a, b) for a, b in zip(own, other, strict=True))


def test_tensors_stay_together() -> None:
    x = torch.arange(50)
    for a, b, c in TensorBatches(x, x.double() * 2, x[:, None].expand(50, 3), batch_size=7, shuffle=True):
        assert torch.equal(b, a.double() * 2)
        assert torch.equal(c, a[:, None].expand(-1, 3))


def test_each_epoch_has_another_order_and_each_seed_its_own() -> None:
    def epochs(**given) -> list[list[int]]:
        loader = TensorBatches(torch.arange(100), batch_size=10, shuffle=True, **given)
        return [flat(order(loader)) for _ in range(3)]

    first = epochs(seed=1)
    assert len({tuple(epoch) for epoch in first}) == 3
    assert epochs(seed=1) == first
    assert epochs(generator=torch.Generator().manual_seed(1)) == first
    assert epochs(seed=2) != first
    assert epochs() == epochs(seed=0)


def test_the_order_and_the_global_generator_do_not_move_each_other() -> None:
    loader = TensorBatches(torch.arange(100), batch_size=10, shuffle=True)
    before = torch.get_rng_state()
    first = order(loader)
    assert torch.equal(torch.get_rng_state(), before)
    torch.randn(10)
    assert order(TensorBatches(torch.arange(100), batch_size=10, shuffle=True)) == first


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_batch_changed_in_place_leaves_the_set_as_it_was(shuffle: bool) -> None:
    x = torch.ones(10)
    for (batch,) in TensorBatches(x, batch_size=4, shuffle=shuffle):
        batch.zero_()
    assert torch.equal(x, torch.ones(10))


def loader_of(n: int = 20, batch_size: int = 3, seed: int = 5, shuffle: bool = True) -> TensorBatches:
    return TensorBatches(torch.arange(n), batch_size=batch_size, shuffle=shuffle, seed=seed)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("stop", range(15))
def test_it_goes_on_exactly_where_it_was_saved(stop: int, shuffle: bool) -> None:
    """Through a file, after any number of minibatches in two epochs of seven, for this epoch's rest and two more."""
    loader = loader_of(shuffle=shuffle)
    epochs, taken = stop // 7, stop % 7
    for _ in range(epochs):
        order(loader)
    under_way = iter(loader) if taken else None
    for _ in range(taken):
        next(under_way)
    file = io.BytesIO()
    torch.save(loader.state_dict(), file)
    expected = [[batch[0].tolist() for batch in under_way]] if under_way else []
    expected += [order(loader), order(loader)]

    file.seek(0)
    other = loader_of(seed=99, shuffle=shuffle)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert [order(other) for _ in expected] == expected


def test_an_epoch_whose_last_batch_was_handed_out_goes_on_with_none() -> None:
    loader = loader_of()
    under_way = iter(loader)
    for _ in range(len(loader)):
        next(under_way)
    other = loader_of(seed=99)
    other.load_state_dict(loader.state_dict())
    assert order(other) == []
    with pytest.raises(StopIteration):
        next(under_way)
    assert order(other) == order(loader)


def test_saving_moves_nothing_and_a_loaded_state_can_be_saved_again() -> None:
    loader, twin = loader_of(), loader_of()
    next(iter(loader))
    next(iter(twin))
    state = loader.state_dict()
    loader.load_state_dict(state)
    again = loader.state_dict()
    assert torch.equal(again.pop("generator"), state["generator"])
    assert again == {"index": 1, "length": 20, "batch_size": 3, "shuffle": True}
    # What was saved is no view of the loader's own state.
    state["generator"].zero_()
    assert len(order(loader)) == len(twin) - 1
    assert len(order(twin)) == len(twin)


def test_peeking_can_be_taken_back() -> None:
    loader, twin = loader_of(), loader_of()
    state = loader.state_dict()
    next(iter(loader))
    loader.load_state_dict(state)
    assert order(loader) == order(twin)


def test_an_abandoned_iterator_moves_nothing() -> None:
    loader = loader_of()
    abandoned = iter(loader)
    next(abandoned)
    current = iter(loader)
    next(current)
    list(abandoned)
    assert loader.state_dict()["index"] == 1


@pytest.mark.parametrize(
    ("tensors", "given", "message"),
    [
        ((), {}, "given no tensors"),
        (([1, 2],), {}, "argument 0 is a list: use torch.as_tensor"),
        ((torch.ones(3), torch.ones(())), {}, "argument 1 is a scalar tensor"),
        ((torch.ones(3), torch.ones(4)), {}, "first dimensions 3, 4; they must be equal"),
        ((torch.ones(0, 2),), {}, "the tensors are empty"),
        ((torch.ones(3), torch.ones(3, device="meta")), {}, "on cpu and meta; move them to one device"),
        ((torch.ones(3),), {"batch_size": 0}, "batch_size=0"),
        ((torch.ones(3),), {"batch_size": -1}, "batch_size=-1"),
        ((torch.ones(3),), {"batch_size": 2.0}, "batch_size=2.0"),
        ((torch.ones(3),), {"batch_size": True}, "batch_size=True"),
        ((torch.ones(3),), {"batch_size": 4, "drop_last": True}, "batch_size=4 with drop_last=True .* of 3 samples"),
        ((torch.ones(3),), {"seed": 1, "generator": torch.Generator()}, "both seed=1 and a generator"),
    ],
)
def test_what_cannot_be_is_refused_at_once(tensors, given: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        TensorBatches(*tensors, **({"batch_size": 2} | given))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"length": 21}, "has length=21, this loader 20"),
        ({"batch_size": 4}, "has batch_size=4, this loader 3"),
        ({"shuffle": False}, "has shuffle=False, this loader True"),
        ({"index": 8}, "after minibatch 8, but an epoch has 7"),
        ({"index": -1}, "after minibatch -1"),
        ({"generator": torch.zeros(3, dtype=torch.uint8)}, "no CPU generator's state"),
        ({"generator": 7}, "no CPU generator's state"),
    ],
)
def test_the_state_of_another_loader_is_refused(changed: dict, message: str) -> None:
    loader = loader_of()
    with pytest.raises(ConfigError, match=message):
        loader.load_state_dict(loader.state_dict() | changed)
    with pytest.raises(ConfigError, match="not the state of a TensorBatches: it has no index"):
        loader.load_state_dict({"generator": torch.zeros(1)} | {"length": 20, "batch_size": 3, "shuffle": True})
    assert order(loader) == order(loader_of())


def test_a_given_seed_of_none_is_zero_and_zero_is_kept() -> None:
    assert order(loader_of(seed=0)) == order(TensorBatches(torch.arange(20), batch_size=3, shuffle=True, seed=None))
