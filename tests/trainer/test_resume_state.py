"""What a resumed run takes back besides the weights: callbacks, generators, layouts, buffers, streams."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests._support.models import CASES, assert_same, tensors_of
from tests._support.resuming import Crash, StopError
from tests._support.training import one_line
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import syngrad
from syngrad.callbacks import EarlyStopping
from syngrad.errors import CheckpointError, TrainingWarning


def test_callbacks_go_on_where_they_were(tmp_path: Path) -> None:
    case = CASES["mlp"]

    def fit(patience: int, **more: Any) -> EarlyStopping:
        early = EarlyStopping(patience, least=10.0)  # nothing is ever that much better
        trainer = syngrad.Trainer(syngrad.decouple(case.model(), cuts=case.cuts), loss=case.loss, progress=False)
        more["callbacks"] = [early, *more.pop("others", [])]
        try:
            history = trainer.fit(case.batches(2), 10, validate=case.batches(1), save=tmp_path, **more)
            assert len(history.epochs) == 4
        except StopError:
            assert early.waited == 1
        return early

    fit(3, others=[Crash(5)])
    assert fit(3, resume=True).waited == 3


def test_two_callbacks_of_one_class_take_each_their_own(tmp_path: Path) -> None:
    case = CASES["mlp"]

    def fit(epochs: int, **more: Any) -> list[EarlyStopping]:
        both = [EarlyStopping(50), EarlyStopping(50, higher_is_better=True)]
        trainer = syngrad.Trainer(syngrad.decouple(case.model(), cuts=case.cuts), loss=case.loss, progress=False)
        trainer.fit(case.batches(2), epochs, validate=case.batches(1), save=tmp_path, callbacks=both, **more)
        return both

    first = fit(3)
    assert first[0].state_dict() != first[1].state_dict()
    again = fit(3, resume=True)
    assert [each.state_dict() for each in again] == [each.state_dict() for each in first]


class Stream(IterableDataset[Any]):
    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def test_a_stream_is_read_again_and_that_is_said(tmp_path: Path) -> None:
    case = CASES["mlp"]
    batches = case.batches(5)

    def fit(**more: Any) -> nn.Module:
        model = case.model()
        trainer = syngrad.Trainer(syngrad.decouple(model, cuts=case.cuts), loss=case.loss, progress=False)
        with contextlib.suppress(StopError):
            trainer.fit(DataLoader(Stream(batches), batch_size=None), 1, **more)
        return model

    want = fit()
    fit(save=tmp_path, save_every=1, callbacks=[Crash(3)])
    with pytest.warns(TrainingWarning, match="first 2 minibatches are read again") as said:
        got = fit(save=tmp_path, resume=True)
    assert "\n" not in str(said[0].message)
    assert_same(tensors_of(got), tensors_of(want))


def test_a_schedule_made_for_fewer_epochs_is_warned_of(tmp_path: Path) -> None:
    case = CASES["mlp"]

    def fit(epochs: int, **more: Any) -> None:
        net = syngrad.decouple(case.model(), cuts=case.cuts)
        options = {"scheduler": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 1), "progress": False}
        syngrad.Trainer(net, loss=case.loss, **options).fit(case.batches(2), epochs, save=tmp_path, **more)

    fit(1)
    fit(1, resume=True)
    with pytest.warns(TrainingWarning, match="begun for 1 epochs and is now to have 3; its schedule"):
        fit(3, resume=True)


def test_a_model_with_its_channels_last_goes_on_bit_for_bit(tmp_path: Path) -> None:
    """A fused optimiser walks over memory: its moments have to lie there as the weights do."""

    def trainer() -> syngrad.Trainer:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.LazyLinear(3))
        model(torch.zeros(1, 3, 8, 8))
        model.to(memory_format=torch.channels_last)
        return syngrad.Trainer(syngrad.decouple(model, cuts=["2"]), loss=F.cross_entropy, progress=False)

    batch = torch.randn(4, 3, 8, 8), torch.randint(3, (4,))
    first, second = trainer(), trainer()
    for _ in range(5):
        first.step(batch)
    second.load(first.save(tmp_path))
    for each in (first, second):
        for _ in range(3):
            each.step(batch)
    assert_same(tensors_of(second.model), tensors_of(first.model))


class Counting(nn.Module):
    """A running mean that is no part of the state dict, and decides what comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(12, dtype=torch.float64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.mean.mul_(0.9).add_(x.detach().mean(0), alpha=0.1)
        return x - self.mean


@pytest.mark.parametrize("optimizer", ["NAdam", "Adam", "RAdam", "Adamax"])
def test_what_pytorchs_own_loading_changes_is_put_back(optimizer: str, tmp_path: Path) -> None:
    case = CASES["mlp"]

    def trainer() -> syngrad.Trainer:
        model = nn.Sequential(*list(case.model())[:4], Counting(), *list(case.model())[4:])
        made = getattr(torch.optim, optimizer)
        net = syngrad.decouple(model, cuts=["2"])
        return syngrad.Trainer(net, loss=case.loss, optimizer=lambda p: made(p, 1e-2), progress=False)

    batches = case.batches(8)
    first, second = trainer(), trainer()
    for batch in batches[:4]:
        first.step(batch)
    second.load(first.save(tmp_path))
    for each in (first, second):
        for batch in batches[4:]:
            each.step(batch)
    assert_same(tensors_of(second.model), tensors_of(first.model))


class Drawing(Dataset[Any]):
    """Draws from generators of its own."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y
        self.numpy, self.python = np.random.default_rng(5), random.Random(6)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.x[index] * (1 + 0.1 * self.numpy.random() + 0.1 * self.python.random()), self.y[index]


def test_generators_of_numpy_and_python_in_the_data_are_put_back(tmp_path: Path) -> None:
    case = CASES["mlp"]
    x, y = (torch.cat(parts) for parts in zip(*case.batches(5), strict=True))

    def fit(**more: Any) -> dict[str, Tensor]:
        model = case.model()
        trainer = syngrad.Trainer(syngrad.decouple(model, cuts=case.cuts), loss=case.loss, progress=False)
        with contextlib.suppress(StopError):
            trainer.fit(DataLoader(Drawing(x, y), 7), 2, **more)
        return tensors_of(model)

    want = fit()
    fit(save=tmp_path, save_every=2, callbacks=[Crash(9)])
    assert_same(fit(save=tmp_path, resume=True), want)


def test_processes_that_live_on_are_said_to_be_approximate(tmp_path: Path) -> None:
    case = CASES["mlp"]
    x, y = (torch.cat(parts) for parts in zip(*case.batches(5), strict=True))

    def fit(epochs: int, **more: Any) -> None:
        loader = DataLoader(TensorDataset(x, y), 7, num_workers=1, persistent_workers=True)
        trainer = syngrad.Trainer(syngrad.decouple(case.model(), cuts=case.cuts), loss=case.loss, progress=False)
        trainer.fit(loader, epochs, save=tmp_path, **more)
        loader._iterator = None

    fit(1)
    with pytest.warns(TrainingWarning, match="persistent_workers=False is exact"):
        fit(2, resume=True)


def test_a_stopped_run_is_over_for_a_script_that_starts_again(tmp_path: Path) -> None:
    case = CASES["mlp"]

    def fit(resume: Any) -> int:
        trainer = syngrad.Trainer(syngrad.decouple(case.model(), cuts=case.cuts), loss=case.loss, progress=False)
        early = EarlyStopping(2, least=10.0)
        history = trainer.fit(
            case.batches(2), 9, validate=case.batches(1), save=tmp_path, resume=resume, callbacks=[early]
        )
        return len(history.epochs)

    assert [fit("auto"), fit("auto"), fit("auto")] == [3, 3, 3]
    assert fit(True) == 5, "asked for, it goes on with its patience anew"


def test_a_run_that_can_never_be_saved_says_so_at_its_first_save(tmp_path: Path) -> None:
    case = CASES["mlp"]

    class Holding(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            self.state[self.param_groups[0]["params"][0]]["held"] = object()
            return super().step(closure)

    net = syngrad.decouple(case.model(), cuts=case.cuts)
    trainer = syngrad.Trainer(net, loss=case.loss, optimizer=lambda p: Holding(p, 0.1), progress=False)
    with pytest.raises(CheckpointError, match=r"cannot be saved: optimizers\.0\.state\.0\.held is a object") as caught:
        trainer.fit(case.batches(2), 3, save=tmp_path)
    one_line(caught)
    assert trainer.epochs_done == 1
