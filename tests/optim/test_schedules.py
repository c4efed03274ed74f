"""Schedulers that look at a number get the one that they wait for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests._support.models import CASES, adam
from tests._support.training import one_line, trainer_of
from torch import nn
from torch.optim import lr_scheduler

from syngrad.errors import ConfigError, TrainingError

CASE = CASES["mlp"]


def plateau(mode: str) -> Any:
    return lambda optimizer: lr_scheduler.ReduceLROnPlateau(optimizer, mode=mode, patience=0, factor=0.5)


def rates(measured: list[float], **options: Any) -> list[float]:
    """The rate after every epoch, where the metric is what is given."""
    left = iter(measured)
    trainer = trainer_of(metric=lambda output, target: next(left), **options)
    found: list[float] = []
    trainer.fit(
        CASE.batches(1), len(measured), validate=CASE.batches(1),
        on_epoch=lambda _: found.append(trainer.optimizers[0].param_groups[0]["lr"]),
    )  # fmt: skip
    return [rate / found[0] for rate in found]


def test_one_that_waits_for_growth_is_shown_the_metric() -> None:
    assert rates([0.1, 0.2, 0.3, 0.3, 0.4], scheduler=plateau("max")) == [1, 1, 1, 0.5, 0.5]


def test_one_that_waits_for_a_fall_is_shown_the_loss() -> None:
    assert rates([0.5, 0.4, 0.3, 0.2], scheduler=plateau("min")) == [1, 1, 1, 1]


@pytest.mark.parametrize("options", [{}, {"metric": "accuracy"}, {"validate": True}])
def test_without_a_metric_it_is_refused_before_anything_is_trained(options: dict[str, Any]) -> None:
    validate = CASE.batches(1) if options.pop("validate", False) else None
    trainer = trainer_of(scheduler=plateau("max"), **options)
    with pytest.raises(ConfigError, match=r"mode='max'.*give metric= and validate=, or use mode='min'") as said:
        trainer.fit(CASE.batches(2), 1, validate=validate)
    one_line(said)
    assert trainer.minibatches == 0


SCHEDULERS: dict[str, Any] = {
    "step": lambda o: lr_scheduler.StepLR(o, 1, 0.5),
    "multi-step": lambda o: lr_scheduler.MultiStepLR(o, [1], 0.5),
    "exponential": lambda o: lr_scheduler.ExponentialLR(o, 0.5),
    "linear": lambda o: lr_scheduler.LinearLR(o, total_iters=3),
    "constant": lambda o: lr_scheduler.ConstantLR(o, total_iters=1),
    "polynomial": lambda o: lr_scheduler.PolynomialLR(o, total_iters=3),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, 3),
    "restarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3),
    "cyclic": lambda o: lr_scheduler.CyclicLR(o, 1e-4, 1e-2, step_size_up=2, cycle_momentum=False),
    "one cycle": lambda o: lr_scheduler.OneCycleLR(o, 1e-2, total_steps=6),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda t: 0.5**t),
    "multiplicative": lambda o: lr_scheduler.MultiplicativeLR(o, lambda t: 0.5),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.ConstantLR(o, 0.5), lr_scheduler.ExponentialLR(o, 0.5)], [2]
    ),
    "chained": lambda o: lr_scheduler.ChainedScheduler([lr_scheduler.ExponentialLR(o, 0.5), lr_scheduler.StepLR(o, 2)]),
}


@pytest.mark.parametrize("every", ["epoch", "step"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_moves_as_it_does_without_syngrad(name: str, every: str) -> None:
    trainer = trainer_of(scheduler=SCHEDULERS[name], scheduler_every=every, quality_every=0, true_every=0)
    optimizer = adam([nn.Parameter(torch.zeros(1))])
    twin = SCHEDULERS[name](optimizer)
    for _ in range(4):
        trainer.fit(CASE.batches(1), 1)
        optimizer.step()
        twin.step()
        assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(optimizer.param_groups[0]["lr"])


def test_what_a_scheduler_raises_is_one_line() -> None:
    trainer = trainer_of(scheduler=lambda o: lr_scheduler.OneCycleLR(o, 1e-2, total_steps=2), scheduler_every="step")
    with pytest.raises(TrainingError, match="the scheduler raised ValueError") as said:
        trainer.fit(CASE.batches(5), 1)
    one_line(said)
