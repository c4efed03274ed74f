"""Callbacks: what they hear of and when, early stopping, and validation within an epoch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests._support.models import CASES, assert_same, momentum, tensors_of
from tests._support.training import momentum_trainer, one_line, trainer_of
from torch import Tensor

import syngrad
from syngrad.callbacks import Callback, EarlyStopping
from syngrad.errors import ConfigError, TrainingError
from syngrad.trainer.history import Epoch

CASE = CASES["mlp"]


class Recorder(Callback):
    """Writes down what it hears; does something when it hears a certain thing."""

    def __init__(self, name: str = "", heard: list[Any] | None = None, **do: Any) -> None:
        self.name, self.heard, self.do = name, [] if heard is None else heard, do

    def hear(self, what: str, trainer: syngrad.Trainer, *more: Any) -> None:
        self.heard.append((self.name + what, trainer.minibatches, *more))
        if what in self.do:
            self.do[what](trainer)

    def on_start(self, trainer: syngrad.Trainer) -> None:
        self.hear("start", trainer)

    def on_step(self, trainer: syngrad.Trainer, loss: Tensor) -> None:
        assert loss.dim() == 0
        assert not loss.requires_grad
        self.hear("step", trainer)

    def on_validate(self, trainer: syngrad.Trainer, epoch: float, metrics: dict[str, float]) -> None:
        assert metrics.keys() == {"loss"}
        self.hear("validate", trainer, epoch)

    def on_epoch(self, trainer: syngrad.Trainer, record: Epoch) -> None:
        self.hear("epoch", trainer, record.epoch)

    def on_end(self, trainer: syngrad.Trainer) -> None:
        self.hear("end", trainer)


def test_the_order_in_which_they_hear() -> None:
    heard: list[Any] = []
    batches = CASE.batches(2)
    epochs: list[int] = []
    callbacks = [Recorder("", heard), Recorder("second ", heard)]
    trainer_of().fit(
        batches, 2, validate=batches, callbacks=callbacks, validate_every=1, on_epoch=lambda r: epochs.append(r.epoch)
    )
    expected: list[tuple[Any, ...]] = [
        ("start", 0),
        ("step", 1),
        ("validate", 1, 0.5),
        ("step", 2),
        ("validate", 2, 1.0),
        ("epoch", 2, 1),
        ("step", 3),
        ("validate", 3, 1.5),
        ("step", 4),
        ("validate", 4, 2.0),
        ("epoch", 4, 2),
        ("end", 4),
    ]
    assert heard == [each for what, *more in expected for each in ((what, *more), (f"second {what}", *more))]
    assert epochs == [1, 2]


@pytest.mark.parametrize("when", ["step", "validate", "epoch"])
def test_stop_ends_the_run_after_the_epoch(when: str) -> None:
    batches = CASE.batches(4)
    recorder = Recorder(**{when: lambda trainer: trainer.stop()})
    trainer = trainer_of()
    history = trainer.fit(batches, 5, validate=batches, validate_every=1, callbacks=[recorder])
    assert [e.epoch for e in history.epochs] == [1]
    assert trainer.minibatches == 4
    assert recorder.heard[-1] == ("end", 4)
    again = trainer.fit(batches, 2)
    assert [e.epoch for e in again.epochs] == [2, 3], "a run that was stopped can be gone on with"


def test_stop_at_the_start_trains_nothing() -> None:
    trainer = trainer_of()
    history = trainer.fit(CASE.batches(2), 3, callbacks=[Recorder(start=lambda trainer: trainer.stop())])
    assert history.epochs == []
    assert trainer.minibatches == 0


@pytest.mark.parametrize("when", ["step", "epoch"])
def test_minibatches_in_flight_end_with_a_run_that_is_stopped(when: str) -> None:
    stopped = momentum_trainer(method="delayed(2)")
    batches = CASE.batches(6)
    stopped.fit(batches, 5, callbacks=[Recorder(**{when: lambda trainer: trainer.stop()})])
    plain = momentum_trainer(method="delayed(2)")
    plain.fit(batches, 1)
    assert stopped.runner is not None
    assert stopped.runner.in_flight == 0
    assert_same(tensors_of(stopped.model), tensors_of(plain.model))


@pytest.mark.parametrize("when", ["start", "step", "validate", "epoch", "end"])
def test_every_callback_ends_whatever_another_one_raises(when: str) -> None:
    def fail(trainer: syngrad.Trainer) -> None:
        raise RuntimeError("no more")

    heard: list[Any] = []
    callbacks = [Recorder("first ", heard), Recorder("bad ", heard, **{when: fail}), Recorder("last ", heard)]
    batches = CASE.batches(2)
    with pytest.raises(RuntimeError, match="no more"):
        trainer_of().fit(batches, 1, validate=batches, callbacks=callbacks)
    ended = [what for what, *_ in heard if what.endswith(" end")]
    # one that has not started has nothing to end
    assert ended == (["first end"] if when == "start" else ["first end", "bad end", "last end"])


def test_they_end_after_an_error_of_the_run_and_the_error_is_what_is_raised() -> None:
    recorder = Recorder()
    x, y = CASE.batches(1)[0]
    with pytest.raises(TrainingError, match="NaN"):
        trainer_of().fit([(x, y), (x * math.nan, y)], callbacks=[recorder])
    assert recorder.heard == [("start", 0), ("step", 1), ("end", 1)]


@pytest.mark.parametrize("wrong", [print, Callback, "progress", None])
def test_what_is_no_callback_is_refused(wrong: Any) -> None:
    trainer = trainer_of()
    with pytest.raises(ConfigError, match=r"a callback must derive from syngrad\.callbacks\.Callback") as caught:
        trainer.fit(CASE.batches(1), callbacks=[Recorder(), wrong])
    one_line(caught)
    with pytest.raises(ConfigError, match="callback") as caught:
        trainer.fit(CASE.batches(1), callbacks=wrong)
    one_line(caught)
    with pytest.raises(ConfigError, match=r"callbacks must be a list, got EarlyStopping; write callbacks=\[") as caught:
        trainer.fit(CASE.batches(1), callbacks=EarlyStopping())  # type: ignore[arg-type]
    one_line(caught)
    assert trainer.minibatches == 0


def test_a_run_that_is_listened_to_is_the_run_that_is_not() -> None:
    ends = []
    for callbacks in ([], [Callback(), Recorder(), EarlyStopping(100)]):
        trainer = momentum_trainer(estimator="linear")
        trainer.fit(CASE.batches(4), 3, validate=CASE.batches(2), callbacks=callbacks)
        ends.append(tensors_of(trainer.model))
    assert_same(*ends)


# --- early stopping


class Scripted(Callback):
    """Puts values in the place of what was measured."""

    def __init__(self, name: str, values: list[float]) -> None:
        self.name, self.values = name, values

    def on_epoch(self, trainer: syngrad.Trainer, record: Epoch) -> None:
        record.metrics[self.name] = self.values[record.epoch - 1]


def epochs_until(values: list[float], measured: str = "loss", trainer_metric: Any = None, **options: Any) -> int:
    """After how many epochs a run with these measurements is over."""
    trainer = trainer_of(metric=trainer_metric, optimizer=momentum)
    batches = CASE.batches(1)
    stopping = EarlyStopping(**options)
    history = trainer.fit(batches, len(values), validate=batches, callbacks=[Scripted(measured, values), stopping])
    return len(history.epochs)


@pytest.mark.parametrize(
    ("values", "options", "epochs"),
    [
        ([5, 4, 3, 2, 1], {"patience": 1}, 5),
        ([5, 4, 4, 3, 3], {"patience": 1}, 3),
        ([5, 4, 4, 3, 3, 3, 3], {"patience": 2}, 6),
        ([5, 6, 7, 8, 9], {"patience": 3}, 4),
        ([5, 6, 4, 6, 6, 6], {"patience": 3}, 6),
        ([5.0, 4.9, 4.8, 4.7, 3.0], {"patience": 3, "least": 0.5}, 4),
        ([5.0, 4.9, 4.4, 4.3, 4.2, 4.1], {"patience": 2, "least": 0.5}, 5),
        ([math.nan, 5, 4, 3, 2], {"patience": 2}, 5),
        ([5, math.nan, math.nan, 1], {"patience": 2}, 3),
        ([1, 2, 3, 4], {"patience": 1, "higher_is_better": True}, 4),
        ([1, 1, 3, 4], {"patience": 1, "higher_is_better": True}, 2),
    ],
)
def test_early_stopping(values: list[float], options: dict[str, Any], epochs: int) -> None:
    assert epochs_until(values, **options) == epochs


def test_which_way_is_better_follows_from_the_metric() -> None:
    assert epochs_until([0.1, 0.2, 0.3, 0.3, 0.9], "accuracy", "accuracy", patience=1) == 4
    assert epochs_until([0.1, 0.2, 0.3, 0.3, 0.9], "loss", "accuracy", patience=1, metric="loss") == 2
    own = lambda output, y: 0.0  # noqa: E731
    named = trainer_of(metric=own).metric[0]
    assert epochs_until([3, 2, 1, 1], named, own, patience=1, higher_is_better=False) == 4


@pytest.mark.parametrize(
    ("options", "trainer_metric", "validates", "says"),
    [
        ({"metric": "acuracy"}, "accuracy", True, "'acuracy', which was not measured (loss, accuracy)"),
        ({}, "accuracy", False, "'accuracy', which was not measured (nothing was validated); give validate="),
    ],
)
def test_a_metric_that_is_not_there_is_one_line(
    options: dict[str, Any], trainer_metric: Any, validates: bool, says: str
) -> None:
    trainer = trainer_of(metric=trainer_metric)
    recorder = Recorder()
    batches = CASE.batches(2)
    trainer_loader = batches if validates else None
    recorder.on_validate = lambda *_: None  # type: ignore[method-assign]
    with pytest.raises(ConfigError) as caught:
        trainer.fit(batches, 3, validate=trainer_loader, callbacks=[EarlyStopping(**options), recorder])
    assert says in one_line(caught)
    assert recorder.heard[-1][0] == "end"


@pytest.mark.parametrize("patience", [0, -1, 1.5, True, "3", None])
def test_a_patience_that_is_no_count_is_refused(patience: Any) -> None:
    with pytest.raises(ConfigError, match="patience must be a whole number of at least 1") as caught:
        EarlyStopping(patience)
    assert repr(patience) in one_line(caught)


def test_a_run_that_it_has_ended_is_gone_on_with_in_new_patience() -> None:
    trainer = trainer_of(optimizer=lambda params: torch.optim.SGD(params, 0.0))
    stopping, batches = EarlyStopping(2), CASE.batches(1)
    assert len(trainer.fit(batches, 9, validate=batches, callbacks=[stopping]).epochs) == 3
    assert len(trainer.fit(batches, 9, validate=batches, callbacks=[stopping]).epochs) == 2


def test_its_state_is_taken_back() -> None:
    stopping, again = EarlyStopping(3), EarlyStopping(3)
    stopping.best, stopping.waited = -0.25, 2
    again.load_state_dict(json.loads(json.dumps(stopping.state_dict())))
    assert vars(again) == vars(stopping)


# --- validation within an epoch


@pytest.mark.parametrize("every", [1, 2, 3, 5, 7])
def test_validating_more_often_changes_nothing_of_the_training(every: int) -> None:
    case = CASES["cnn"]
    batches, test = case.batches(5), case.batches(2, seed=8)
    options = {"loss": case.loss, "metric": "accuracy", "estimator": "linear"}
    often, plain = trainer_of(case.model(), case.cuts, **options), trainer_of(case.model(), case.cuts, **options)
    history = often.fit(batches, 2, validate=test, validate_every=every)
    once = plain.fit(batches, 2, validate=test)
    assert_same(tensors_of(often.model), tensors_of(plain.model))
    assert_same(tensors_of(often.net.estimators), tensors_of(plain.net.estimators))
    within = [k / 5 for k in range(every, 5, every)]
    assert [epoch for epoch, _, _ in history.values()] == pytest.approx([*within, 1.0, *(1 + f for f in within), 2.0])
    assert [e.metrics for e in history.epochs] == [e.metrics for e in once.epochs]
    assert history.value == once.value
    assert [e.train_loss for e in history.epochs] == [e.train_loss for e in once.epochs]


def test_its_seconds_are_not_those_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        now = 100.0

        def perf_counter(self) -> float:
            return self.now

    clock = Clock()
    monkeypatch.setattr("syngrad.trainer.loop.time", clock)

    class Slow:
        def __init__(self, seconds: float) -> None:
            self.seconds = seconds

        def __len__(self) -> int:
            return 4

        def __iter__(self) -> Iterator[Any]:
            for batch in CASE.batches(4):
                clock.now += self.seconds
                yield batch

    class Slower(Callback):
        def on_validate(self, trainer: syngrad.Trainer, epoch: float, metrics: dict[str, float]) -> None:
            clock.now += 10_000.0

    history = trainer_of().fit(Slow(1.0), 2, validate=Slow(500.0), validate_every=1, callbacks=[Slower()])
    assert [(epoch, seconds) for epoch, seconds, _ in history.values()] == [(k / 4, float(k)) for k in range(1, 9)]
    assert [e.train_s for e in history.epochs] == [4.0, 8.0]


@pytest.mark.parametrize("options", [{"validate_every": 0}, {"validate_every": 1.5}, {"validate_every": True}])
def test_what_is_no_count_of_minibatches_is_refused(options: dict[str, Any]) -> None:
    batches = CASE.batches(1)
    with pytest.raises(ConfigError, match="validate_every must be a whole number of at least 1") as caught:
        trainer_of().fit(batches, validate=batches, **options)
    one_line(caught)
    with pytest.raises(ConfigError, match="validate_every=3 needs validate=") as caught:
        trainer_of().fit(batches, validate_every=3)
    one_line(caught)


def test_a_metric_that_says_which_way_is_better_need_not_be_told_again() -> None:
    def nothing(output: Any, target: Any) -> float:
        return 0.0

    batches = CASE.batches(2)
    with pytest.raises(ConfigError, match="higher_is_better"):
        trainer_of(metric=nothing).fit(batches, 2, validate=batches, callbacks=[EarlyStopping(1)])
    vars(nothing)["higher_is_better"] = True
    assert len(trainer_of(metric=nothing).fit(batches, 5, validate=batches, callbacks=[EarlyStopping(1)]).epochs) == 2
