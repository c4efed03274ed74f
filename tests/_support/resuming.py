"""What tests of resuming share: a run, a crash in it, and the same run gone on with."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tests._support.models import Case, adam, assert_same, tensors_of
from tests._support.options import keywords
from tests._support.training import trainer_of
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import syngrad
from syngrad.callbacks import Callback
from syngrad.data import TensorBatches
from syngrad.trainer.history import History

EPOCHS = 3


class StopError(Exception):
    """A crash between two minibatches."""


class Crash(Callback):
    """Crashes after so many minibatches."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_step(self, trainer: syngrad.Trainer, loss: Tensor) -> None:
        if trainer.minibatches == self.at:
            raise StopError


def loader_of(case: Case, kind: str = "batches") -> Any:
    parts = list(zip(*case.batches(5), strict=True))
    tensors = [torch.cat(part) for part in parts]
    if kind == "batches":
        return TensorBatches(*tensors, batch_size=7, shuffle=True, seed=3)
    if kind == "generator":
        return DataLoader(TensorDataset(*tensors), 7, shuffle=True, generator=torch.Generator().manual_seed(4))
    if kind == "global":
        return DataLoader(Noisy(*tensors), 7, shuffle=True)
    return case.batches(5)


class Noisy(Dataset[Any]):
    """Draws from the global generators for every sample, as augmentation does."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        noise = torch.rand(()).item() + np.random.rand() + random.random()
        return self.x[index] * (1 + 0.1 * noise), self.y[index]


def run(case: Case, options: dict[str, Any], kind: str, **fit: Any) -> tuple[dict[str, Tensor], History, Any]:
    """A whole run, or what a crash leaves of it."""
    torch.manual_seed(11)
    np.random.seed(11)
    random.seed(11)
    model = case.model()
    net = syngrad.decouple(model, cuts=case.cuts)
    given = {"loss": case.loss, "loss_count": case.count, "optimizer": adam, "quality_every": 3, "true_every": 4}
    trainer = syngrad.Trainer(net, progress=False, **keywords(**{**given, **options}))
    history = History()
    with contextlib.suppress(StopError):
        history = trainer.fit(loader_of(case, kind), EPOCHS, validate=case.batches(2), **fit)
    estimators = {f"estimators.{k}": v for k, v in tensors_of(trainer.net.estimators).items()}
    return tensors_of(model) | estimators, history, trainer


#: runs that nothing breaks off, with what they are known by: the case and the options are kept, so that no other has
#: their numbers
_WHOLE: dict[tuple[int, str, str], tuple[Case, dict[str, Any], dict[str, Tensor], History]] = {}


def whole_run(case: Case, options: dict[str, Any], kind: str) -> tuple[dict[str, Tensor], History]:
    """A run that nothing breaks off: once, wherever the others crash."""
    key = (id(case), repr(options), kind)
    if key not in _WHOLE:
        tensors, history, _ = run(case, options, kind)
        _WHOLE[key] = case, options, tensors, history
    return _WHOLE[key][2:]


def compare(case: Case, options: dict[str, Any], kind: str, tmp_path: Path, at: int, every: int | None = 2) -> None:
    want, history = whole_run(case, options, kind)
    run(case, options, kind, save=tmp_path, save_every=every, callbacks=[Crash(at)])
    torch.manual_seed(999)  # another process: nothing of the first is left
    np.random.seed(999)
    random.seed(999)
    got, resumed, _ = run_resumed(case, options, kind, tmp_path)
    assert_same(got, want)
    assert [e.metrics for e in resumed.epochs] == [e.metrics for e in history.epochs]
    assert [e.train_loss for e in resumed.epochs] == [e.train_loss for e in history.epochs]
    assert [e.samples for e in resumed.epochs] == [e.samples for e in history.epochs]
    assert json.dumps(resumed.interfaces) == json.dumps(history.interfaces)


def taken_over(batches: list[Any], folder: Path, model: Callable[[], nn.Module] | None = None, **options: Any) -> Any:
    """A trainer that takes over from another one after these minibatches, those in flight with them."""
    first, second = (trainer_of(None if model is None else model(), **options) for _ in range(2))
    for batch in batches:
        first.step(batch)
    second.load(first.save(folder))
    return second


def run_resumed(case: Case, options: dict[str, Any], kind: str, tmp_path: Path) -> Any:
    model = case.model()
    with torch.no_grad():
        for parameter in model.parameters():  # whatever it starts from, the checkpoint decides
            parameter.add_(1)
    net = syngrad.decouple(model, cuts=case.cuts)
    given = {"loss": case.loss, "loss_count": case.count, "optimizer": adam, "quality_every": 3, "true_every": 4}
    trainer = syngrad.Trainer(net, progress=False, **keywords(**{**given, **options}))
    history = trainer.fit(
        loader_of(case, kind), EPOCHS, validate=case.batches(2), save=tmp_path, save_every=2, resume=True
    )
    estimators = {f"estimators.{k}": v for k, v in tensors_of(trainer.net.estimators).items()}
    return tensors_of(model) | estimators, history, trainer
