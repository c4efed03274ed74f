"""`Trainer.fit`: history, seconds, going on, and runs that a seed repeats."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tests._support.models import CASES, assert_same, momentum, tensors_of
from tests._support.training import one_line, trainer_of
from torch import Tensor, nn
from torch.nn import functional as F

from syngrad.errors import ConfigError, TrainingError
from syngrad.trainer.history import History

CASE = CASES["mlp"]


# --- fit


class Clock:
    """Seconds that pass only where the test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


def test_the_seconds_of_the_history_are_those_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("syngrad.trainer.loop.time", clock)
    batches = CASE.batches(4, last=3)

    class Slow:
        def __init__(self, seconds: float) -> None:
            self.seconds = seconds

        def __iter__(self) -> Iterator[Any]:
            for batch in batches:
                clock.now += self.seconds
                yield batch

    def after(record: Any) -> None:
        clock.now += 10_000.0

    trainer = trainer_of(metric="accuracy")
    history = trainer.fit(Slow(1.0), 3, validate=Slow(500.0), on_epoch=after)
    assert [e.train_s for e in history.epochs] == [4.0, 8.0, 12.0]
    assert history.train_s == 12.0
    assert history.samples_per_s == pytest.approx(3 * 27 / 12)
    more = trainer.fit(Slow(1.0), 2)
    assert [e.train_s for e in more.epochs] == [16.0, 20.0]
    assert [e.epoch for e in more.epochs] == [4, 5]


def test_the_rate_of_a_second_fit_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr("syngrad.trainer.loop.time", clock)

    class Slow:
        def __iter__(self) -> Iterator[Any]:
            for batch in CASE.batches(4, last=8):
                clock.now += 1.0
                yield batch

    trainer = trainer_of()
    first, second = trainer.fit(Slow(), 2), trainer.fit(Slow(), 2)
    assert first.samples_per_s == pytest.approx(8.0)
    assert second.samples_per_s == pytest.approx(8.0)


def test_the_history_says_what_happened() -> None:
    records: list[Any] = []
    batches = CASE.batches(4, last=3)
    model = CASE.model()
    trainer = trainer_of(model, metric="accuracy", estimator="linear", quality_every=1)
    history = trainer.fit(batches, 2, validate=batches, on_epoch=records.append)
    assert records == history.epochs
    assert [e.epoch for e in history.epochs] == [1, 2]
    assert [e.samples for e in history.epochs] == [27, 27]
    assert [e.learning_rate for e in history.epochs] == [3e-3, 3e-3]
    assert history.epochs[-1].metrics == trainer.evaluate(batches)
    assert history.value == history.epochs[-1].metrics["accuracy"]
    assert [row["cut"] for row in history.interfaces] == CASE.cuts
    figures = {"cosine", "norm_ratio", "explained_variance"}
    keys = {"cut", "estimator_loss", "staleness", "in_flight", "guarded", "history", "true_history", *figures}
    assert all(row.keys() == keys | {f"true_{figure}" for figure in figures} for row in history.interfaces)
    assert all(-1 <= float(str(row["cosine"])) <= 1 for row in history.interfaces)
    assert json.loads(json.dumps(history.to_dict()))["epochs"][1]["samples"] == 27
    assert [round(v, 9) for _, _, v in history.values()] == [round(e.metrics["accuracy"], 9) for e in history.epochs]


def test_the_training_loss_is_the_mean_over_samples() -> None:
    batches = CASE.batches(4, last=3)
    model, reference = CASE.model(), CASE.model()
    history = trainer_of(model, optimizer=lambda p: torch.optim.SGD(p, 0.0), method="backprop").fit(batches)
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert history.epochs[0].train_loss == pytest.approx(F.cross_entropy(reference(x), y).item())


def test_the_training_loss_of_tokens_is_their_mean_whatever_the_padding() -> None:
    case = CASES["gpt"]
    model = case.model()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    batches = case.batches(4)
    options = {"loss": case.loss, "loss_count": case.count, "optimizer": lambda p: torch.optim.SGD(p, 0.0)}
    history = trainer_of(model, case.cuts, estimator="linear", **options).fit(batches)
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert history.epochs[0].train_loss == pytest.approx(case.loss(model(x), y).item())


@pytest.mark.parametrize("validate", [False, True])
def test_fit_leaves_in_evaluation_mode_what_the_user_has_put_there(validate: bool) -> None:
    case = CASES["cnn"]
    model = case.model()
    frozen = model[1].eval()
    before, batches = tensors_of(model), case.batches(3)
    trainer_of(model, case.cuts).fit(batches, 2, validate=batches if validate else None)
    assert [name for name, m in model.named_modules() if not m.training] == ["1"]
    assert torch.equal(frozen.running_mean, before["1.running_mean"])
    assert not torch.equal(model[4].running_mean, before["4.running_mean"])
    model.eval()  # the model as a whole, however, is there to be trained
    trainer_of(model, case.cuts).fit(batches)
    assert all(m.training for m in model.modules())
    assert not torch.equal(frozen.running_mean, before["1.running_mean"])


@pytest.mark.parametrize("options", [{}, {"estimator": "linear", "feedback_delay": 2}, {"method": "mixed(0.5)"}])
def test_fitting_twice_goes_on(options: dict[str, Any]) -> None:
    batches = CASE.batches(5)
    once, twice = CASE.model(), CASE.model()
    trainer_of(once, **options).fit(batches, 3)
    trainer = trainer_of(twice, **options)
    trainer.fit(batches, 1)
    trainer.fit(batches, 2)
    assert_same(tensors_of(twice), tensors_of(once))


def test_no_epochs_train_nothing() -> None:
    model = CASE.model()
    before = tensors_of(model)
    history = trainer_of(model).fit(CASE.batches(2), 0)
    assert history.epochs == []
    assert history.value is None
    assert history.samples_per_s is None
    assert_same(tensors_of(model), before)


@pytest.mark.parametrize("epochs", [-1, 1.0, 2.5, True, "3", None])
def test_epochs_must_be_a_count(epochs: Any) -> None:
    with pytest.raises(ConfigError, match="epochs must be a whole number") as caught:
        trainer_of().fit(CASE.batches(1), epochs)
    one_line(caught)


def test_a_loader_that_can_be_used_once_only_says_so_in_its_second_epoch() -> None:
    trainer = trainer_of()
    with pytest.raises(TrainingError, match=r"no batch in epoch 2.*once only") as caught:
        trainer.fit(iter(CASE.batches(3)), 2)
    one_line(caught)
    assert trainer.fit(iter(CASE.batches(3)), 1).epochs[0].epoch == 2


def test_an_empty_loader_says_so() -> None:
    with pytest.raises(TrainingError, match="no batch in epoch 1"):
        trainer_of().fit([])


def test_a_step_before_fit_and_the_other_way_round() -> None:
    batches = CASE.batches(4)
    a, b = CASE.model(), CASE.model()
    first = trainer_of(a)
    loss = first.step(batches[0])
    assert loss.dim() == 0
    assert not loss.requires_grad
    first.fit(batches[1:])
    second = trainer_of(b)
    second.fit(batches[:3])
    second.step(batches[3])
    assert_same(tensors_of(b), tensors_of(a))


# --- seeds


@pytest.mark.parametrize("estimator", ["default", "mlp", "low_rank"])
@pytest.mark.parametrize("name", ["dropout", "gpt"])
def test_a_seed_gives_the_same_run_bit_for_bit_and_another_seed_another(name: str, estimator: str) -> None:
    case = CASES[name]

    def run(seed: int, noise: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        model = case.model()
        torch.manual_seed(noise)
        trainer = trainer_of(
            model, case.cuts, loss=case.loss, loss_count=case.count, seed=seed, estimator=estimator, optimizer=momentum
        )
        trainer.fit(case.batches(5))
        return tensors_of(model), tensors_of(trainer.net.estimators)

    first, again, other = run(1, 1), run(1, 2), run(2, 1)
    assert_same(again[0], first[0])
    assert_same(again[1], first[1])
    assert any(not torch.equal(other[0][n], first[0][n]) for n in first[0])


def test_a_history_is_plain_data_and_a_metric_that_is_no_number_stays_one() -> None:
    history = trainer_of().fit(CASE.batches(2), 2, validate=CASE.batches(1))
    history.epochs[-1].metrics["loss"] = float("nan")
    for plain in (history.to_dict(), json.loads(json.dumps(history.to_dict()))):
        again = History.from_dict(plain)
        assert math.isnan(again.epochs[-1].metrics["loss"])
        assert again.epochs[0] == history.epochs[0]
        assert again.points[0] == history.points[0]
        assert math.isnan(again.values()[-1][2])
    with pytest.raises(ValueError, match="not JSON compliant"):
        json.dumps(history.to_dict(), allow_nan=False)
