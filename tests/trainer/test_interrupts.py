"""A run that is asked to end saves, wherever it is, and goes on as if nobody had asked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests._support.models import assert_same, tensors_of
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import syngrad
from syngrad.callbacks import Callback
from syngrad.runtime import checkpoint
from syngrad.startup import SIGNALS
from syngrad.trainer import interrupts
from syngrad.trainer.history import History

pytestmark = pytest.mark.usefixtures("forked_programs")

X = torch.randn(60, 6, generator=torch.Generator().manual_seed(1))
Y = X[:, :3].argmax(1)


class Samples(Dataset[Any]):
    """What happens at one of its samples, once: `act`."""

    def __init__(self, at: int = -1, act: Any = None, flag: Path | None = None) -> None:
        self.at, self.act, self.flag = at, act, flag

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        if self.flag is not None and self.flag.exists() and self.at in (index, -1):
            self.flag.unlink()
            self.act()
        return X[index], Y[index]


class Asks(Callback):
    """Sends signals to this process after a minibatch."""

    def __init__(self, at: int, *numbers: int, pause_s: float = 0.0) -> None:
        self.at, self.numbers, self.pause_s = at, numbers, pause_s

    def on_step(self, trainer: syngrad.Trainer, loss: Tensor) -> None:
        if trainer.minibatches == self.at:
            for number in self.numbers:
                os.kill(os.getpid(), number)
                time.sleep(self.pause_s)


def trainer() -> syngrad.Trainer:
    torch.manual_seed(0)
    net = syngrad.decouple(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.1), nn.Linear(8, 3)), cuts=["2"])
    return syngrad.Trainer(net, loss=F.cross_entropy, metric="accuracy", progress=False)


def loader(data: Dataset[Any], workers: int = 0) -> DataLoader[Any]:
    """Six minibatches, in an order that a generator of the loader's own decides."""
    return DataLoader(data, 10, shuffle=True, num_workers=workers, generator=torch.Generator().manual_seed(5))


def fit(data: Any, folder: Path | None, validate: Any = None, **more: Any) -> tuple[syngrad.Trainer, History]:
    made = trainer()
    options = {"save": folder, "resume": "auto"} if folder is not None else {}
    return made, made.fit(data, epochs=3, validate=validate, **options, **more)


def same(one: tuple[syngrad.Trainer, History], other: tuple[syngrad.Trainer, History]) -> None:
    assert_same(tensors_of(one[0].model), tensors_of(other[0].model))
    assert [(e.epoch, e.train_loss, e.samples, e.metrics) for e in one[1].epochs] == [
        (e.epoch, e.train_loss, e.samples, e.metrics) for e in other[1].epochs
    ]
    assert [(at, metrics) for at, _, metrics in one[1].points] == [(at, metrics) for at, _, metrics in other[1].points]


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_every_signal_that_announces_the_end_saves_and_counts_once(number: signal.Signals, tmp_path: Path) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    with pytest.raises(KeyboardInterrupt, match="interrupted after minibatch 8; all of it is saved"):
        fit(loader(Samples()), tmp_path, callbacks=[Asks(8, number, number, number)])
    assert [signal.getsignal(each) for each in SIGNALS] == before
    assert checkpoint.load(tmp_path)[1]["stages"]["count"] == 8
    same(fit(loader(Samples()), tmp_path), fit(loader(Samples()), None))


def test_a_scheduler_that_insists_does_not_tear_a_minibatch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "TOGETHER_S", 0.0)
    numbers = [signal.SIGTERM, signal.SIGTERM, signal.SIGHUP, signal.SIGTERM]
    with pytest.raises(KeyboardInterrupt, match="after minibatch 2; all of it is saved"):
        fit(loader(Samples()), tmp_path, callbacks=[Asks(2, *numbers, pause_s=0.01)])


def test_a_second_ctrl_c_interrupts_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interrupts, "TOGETHER_S", 0.0)
    with pytest.raises(KeyboardInterrupt) as caught:
        fit(loader(Samples()), tmp_path, callbacks=[Asks(2, signal.SIGINT, signal.SIGINT, pause_s=0.01)])
    assert not caught.value.args
    assert checkpoint.found(tmp_path) == []


def asks_all(number: signal.Signals) -> Any:
    """What a terminal or a scheduler does: the signal goes to the main process, and to the loader's as well."""

    def act() -> None:
        os.kill(os.getppid(), number)
        time.sleep(0.2)
        os._exit(1) if number == signal.SIGINT else os.kill(os.getpid(), signal.SIGKILL)

    return act


def test_an_epochs_first_minibatch_is_still_being_fetched(tmp_path: Path) -> None:
    """The order that was drawn for the epoch is the one it has in the end."""
    flag, folder = tmp_path / "flag", tmp_path / "run"

    def told(record: Any) -> None:
        if record.epoch == 1:
            flag.touch()

    undisturbed = fit(loader(Samples(), 2), None)
    with pytest.raises(KeyboardInterrupt, match="after minibatch 6; all of it is saved"):
        fit(loader(Samples(-1, asks_all(signal.SIGINT), flag), 2), folder, on_epoch=told)
    same(fit(loader(Samples(), 2), folder), undisturbed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_epoch_is_validated_from_a_loader_with_processes(number: signal.Signals, tmp_path: Path) -> None:
    flag, folder = tmp_path / "flag", tmp_path / "run"
    flag.touch()
    undisturbed = fit(loader(Samples()), None, DataLoader(Samples(), 20))
    validate = DataLoader(Samples(45, asks_all(number), flag), 20, num_workers=1)
    with pytest.raises(KeyboardInterrupt, match="interrupted after minibatch 6; all of it is saved"):
        fit(loader(Samples()), folder, validate)
    same(fit(loader(Samples()), folder, DataLoader(Samples(), 20)), undisturbed)


class Long:
    """An evaluation in the midst of which somebody asks: what comes after the minibatch `at` is never asked for."""

    def __init__(self, at: int, times: int = 1) -> None:
        self.at, self.times, self.begun = at, times, 0

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.begun += 1
        yield X[:30], Y[:30]
        if self.at <= self.begun < self.at + self.times:
            os.kill(os.getpid(), signal.SIGTERM)
            yield X[:1], Y[:1]
            raise AssertionError("the evaluation goes on")
        yield X[30:], Y[30:]


@pytest.mark.parametrize("every", [None, 4])
@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_long_evaluation_is_broken_off_and_taken_again(at: int, every: int | None, tmp_path: Path) -> None:
    """Within an epoch as after it, and twice at the same place."""
    undisturbed = fit(loader(Samples()), None, Long(99), validate_every=every)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt, match="all of it is saved"):
            fit(loader(Samples()), tmp_path, Long(at), validate_every=every)
        at = 1
    same(fit(loader(Samples()), tmp_path, Long(99), validate_every=every), undisturbed)


KILLED = """
import os, signal
import torch.nn.functional as F
from torch.utils.data import DataLoader
from tests.trainer import test_interrupts as here

class Killed(here.Samples):
    def __getitem__(self, index):
        if index == 59:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)

here.fit(DataLoader(Killed(), 10, num_workers=1), None)
"""


def test_a_loaders_process_that_is_killed_is_one_line() -> None:
    """In a process of its own: PyTorch raises for it wherever the program is."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", KILLED], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    said = done.stderr.splitlines()[-1]
    assert said.startswith("syngrad.errors.TrainingError: the loader has lost one of its worker processes: "), (
        done.stderr
    )


def test_without_a_folder_to_save_to_nothing_is_taken_over() -> None:
    seen: list[Any] = []

    class Looks(Callback):
        def on_step(self, trainer: syngrad.Trainer, loss: Tensor) -> None:
            seen.extend(signal.getsignal(number) for number in SIGNALS)

    before = [signal.getsignal(number) for number in SIGNALS]
    fit([(X, Y)], None, callbacks=[Looks()])
    assert seen[: len(before)] == before
