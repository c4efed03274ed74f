"""Mistakes in validation, metric and callbacks: told before anything is trained, or after its work is saved."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tests._support.models import CASES, assert_same, tensors_of
from tests._support.training import one_line, trainer_of

import syngrad
from syngrad.callbacks import Callback, EarlyStopping
from syngrad.errors import CheckpointError, ConfigError, SyngradError, TrainingError
from syngrad.runtime import checkpoint
from syngrad.trainer.history import Epoch

CASE = CASES["mlp"]


class Unkept(Callback):
    def state_dict(self) -> dict[str, Any]:
        return {"f": open}


def nothing(output: Any, target: Any) -> float:
    return 0.0


def some(batches: list[Any]) -> Iterator[Any]:
    yield from batches


EARLY: dict[str, tuple[dict[str, Any], type[SyngradError], str]] = {
    "nothing to validate on": (
        {"callbacks": [EarlyStopping(3)], "validate": None},
        ConfigError,
        r"looks at 'loss', which was not measured \(nothing was validated\); give validate=",
    ),
    "a metric that is not there": (
        {"callbacks": [EarlyStopping(3, metric="f1")]},
        ConfigError,
        r"looks at 'f1', which was not measured \(loss\)",
    ),
    "a metric of which nobody says which way": (
        {"metric": nothing, "callbacks": [EarlyStopping(3)]},
        ConfigError,
        r"say EarlyStopping\(higher_is_better=…\) for the metric 'nothing'",
    ),
    "an iterator": (
        {"validate": iter(CASE.batches(2))},
        ConfigError,
        "validate= is a list_iterator, which can be read",
    ),
    "a generator": ({"validate": some(CASE.batches(2))}, ConfigError, "validate= is a generator, which can be read"),
    "an empty loader": ({"validate": []}, TrainingError, "the loader to evaluate on yielded no batch"),
    "a callback's state": (
        {"callbacks": [Unkept()]},
        CheckpointError,
        r"cannot be saved: fit\.callbacks\.0\.1\.f is a",
    ),
    "a folder that is a file": ({"save": __file__}, CheckpointError, "no checkpoint could be written to"),
    "a folder nobody can make": (
        {"save": "/proc/run"},
        CheckpointError,
        "no checkpoint could be written to '/proc/run'",
    ),
}


@pytest.mark.parametrize("name", EARLY)
def test_what_can_be_known_at_the_start_is_told_then(name: str, tmp_path: Path) -> None:
    given, kind, said = EARLY[name]
    made = trainer_of(metric=given.get("metric"))
    fit = {"validate": CASE.batches(1), "save": tmp_path / "run", **given}
    fit.pop("metric", None)
    with pytest.raises(kind, match=said) as caught:
        made.fit(CASE.batches(2), 2, **fit)
    one_line(caught)
    assert made.minibatches == 0


def test_an_iterator_that_is_read_once_is_enough_for_one_epoch() -> None:
    made = trainer_of()
    assert len(made.fit(CASE.batches(2), 1, validate=iter(CASE.batches(1))).epochs) == 1


class Measures(Callback):
    def on_epoch(self, trainer: syngrad.Trainer, record: Epoch) -> None:
        record.metrics["f1"] = 1.0 / record.epoch


def test_a_metric_that_a_callback_may_add_is_waited_for() -> None:
    stopping = EarlyStopping(1, metric="f1", higher_is_better=True)
    history = trainer_of().fit(CASE.batches(2), 5, validate=CASE.batches(1), callbacks=[Measures(), stopping])
    assert len(history.epochs) == 2


class NotYet(Callback):
    """Has nothing to keep before its first epoch."""

    def on_epoch(self, trainer: syngrad.Trainer, record: Epoch) -> None:
        self.seen = record.epoch

    def state_dict(self) -> dict[str, Any]:
        return {"seen": self.seen}


def test_a_state_that_is_not_there_yet_is_no_mistake(tmp_path: Path) -> None:
    trainer_of().fit(CASE.batches(2), 1, save=tmp_path, callbacks=[NotYet()])
    assert checkpoint.load(tmp_path)[1]["fit"]["callbacks"][0][1] == {"seen": 1}


# --- what shows only after an epoch


class Once:
    """Does something, once."""

    def __init__(self, what: Any) -> None:
        self.what, self.done = what, False

    def __call__(self) -> None:
        if not self.done:
            self.done = True
            self.what()


def fail() -> None:
    raise ConnectionError("the logging server does not answer")


class Logs(Callback):
    def __init__(self, once: Once) -> None:
        self.once = once

    def on_epoch(self, trainer: syngrad.Trainer, record: Epoch) -> None:
        self.once()


class Validated(Logs):
    def on_epoch(self, trainer: syngrad.Trainer, record: Epoch) -> None:
        pass

    def on_validate(self, trainer: syngrad.Trainer, epoch: float, metrics: dict[str, float]) -> None:
        self.once()


class Loader:
    def __init__(self, once: Once) -> None:
        self.once = once

    def __iter__(self) -> Iterator[Any]:
        yield CASE.batches(2)[0]
        self.once()
        yield CASE.batches(2)[1]


def fitted(place: str, once: Once, save: Path | None, epochs: int = 2, **more: Any) -> tuple[Any, Any]:
    def metric(output: Any, target: Any) -> float:
        if place == "metric":
            once()
        return float(output.mean())

    made = trainer_of(metric=metric, scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 1, 0.5))
    callbacks = {"on_epoch": [Logs(once)], "on_validate": [Validated(once)]}.get(place, [Callback()])
    validate = Loader(once) if place == "loader" else CASE.batches(2)
    called = (lambda record: once()) if place == "function" else None
    history = made.fit(CASE.batches(3), epochs, validate, called, save=save, callbacks=callbacks, **more)
    return tensors_of(made.model), history


PLACES = ["metric", "loader", "on_validate", "on_epoch", "function"]


@pytest.mark.parametrize("place", PLACES)
def test_an_epochs_work_is_saved_before_what_follows_it_fails(place: str, tmp_path: Path) -> None:
    """And the run goes on as if nothing had been: no minibatch is trained on twice, none is left out."""
    whole, wanted = fitted(place, Once(lambda: None), None)
    once = Once(fail)
    with pytest.raises((ConnectionError, TrainingError), match="server does not answer"):
        fitted(place, once, tmp_path)
    state = checkpoint.load(tmp_path)[1]
    assert state["stages"]["count"] == 3
    got, history = fitted(place, once, tmp_path, resume=True)
    assert_same(got, whole)
    assert [epoch.metrics for epoch in history.epochs] == [epoch.metrics for epoch in wanted.epochs]
    assert [epoch for epoch, _, _ in history.points] == [1.0, 2.0]


def test_within_an_epoch_too(tmp_path: Path) -> None:
    whole, _ = fitted("metric", Once(lambda: None), None, validate_every=2)
    once = Once(fail)
    with pytest.raises(TrainingError, match="server does not answer"):
        fitted("metric", once, tmp_path, validate_every=2)
    assert checkpoint.load(tmp_path)[1]["stages"]["count"] == 2
    assert_same(fitted("metric", once, tmp_path, validate_every=2, resume=True)[0], whole)


def test_what_cannot_be_saved_then_is_told_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: Any) -> Path:
        raise CheckpointError("no room")

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(ConnectionError) as caught:
        fitted("on_epoch", Once(fail), tmp_path)
    assert caught.value.__notes__ == ["it could not be saved before: no room"]


def test_without_a_folder_nothing_is_written() -> None:
    with pytest.raises(ConnectionError):
        fitted("on_epoch", Once(fail), None)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_breaks_the_validation_saves(number: signal.Signals, tmp_path: Path) -> None:
    """It reaches a loader's worker processes as well, which then fail."""

    def struck() -> None:
        signal.raise_signal(number)
        raise RuntimeError("DataLoader worker exited unexpectedly")

    whole, _ = fitted("loader", Once(lambda: None), None)
    once = Once(struck)
    with pytest.raises(KeyboardInterrupt, match="interrupted after minibatch 3; all of it is saved in"):
        fitted("loader", once, tmp_path)
    assert_same(fitted("loader", once, tmp_path, resume=True)[0], whole)
