"""Evaluation by the Trainer: metrics, and that it changes nothing."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from tests._support.models import CASES, assert_same, tensors_of, token_count, token_loss
from tests._support.training import one_line, trainer_of
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, TensorDataset

from syngrad.errors import ConfigError, TrainingError

CASE = CASES["mlp"]


def test_metrics_by_name_and_by_function() -> None:
    batches = CASE.batches(3, last=2)

    def share_of_zeros(output: Tensor, target: Tensor) -> float:
        return float((output.argmax(1) == 0).double().mean())

    model = CASE.model()
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    named = trainer_of(model, metric="accuracy").evaluate(batches)
    assert named["accuracy"] == pytest.approx(float((model(x).argmax(1) == y).double().mean()))
    assert named["loss"] == pytest.approx(F.cross_entropy(model(x), y).item())
    own = trainer_of(model, metric=share_of_zeros).evaluate(batches)
    assert own["share_of_zeros"] == pytest.approx(share_of_zeros(model(x), y))
    assert trainer_of(model).evaluate(batches).keys() == {"loss"}
    with pytest.raises(ConfigError, match="did you mean 'accuracy'"):
        trainer_of(metric="acuracy")


def test_the_evaluated_loss_of_tokens_is_their_mean_whatever_the_padding() -> None:
    case = CASES["gpt"]
    model = case.model().eval()
    batches = case.batches(4)
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    trainer = trainer_of(model, ["blocks.1"], loss=token_loss, loss_count=token_count, metric="accuracy")
    found = trainer.evaluate(batches)
    assert found["loss"] == pytest.approx(token_loss(model(x), y).item(), rel=1e-9)


@pytest.mark.parametrize("name", ["cnn", "gpt"])
def test_evaluation_changes_nothing(name: str) -> None:
    case = CASES[name]
    model = case.model()
    trainer = trainer_of(model, case.cuts, loss=case.loss, loss_count=case.count)
    batches = case.batches(3)
    for batch in batches:
        trainer.step(batch)
    next(m for m in model.modules() if isinstance(m, nn.BatchNorm2d | nn.LayerNorm)).eval()  # the user's own choice
    before, modes, state = tensors_of(model), [m.training for m in model.modules()], torch.get_rng_state()
    count = trainer.runner.count
    first = trainer.evaluate(batches)
    assert trainer.evaluate(batches) == first
    assert_same(tensors_of(model), before)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())
    assert trainer.runner.count == count
    assert [m.training for m in model.modules()] == modes


def test_an_evaluation_that_fails_leaves_every_mode_and_the_generator_as_they_were() -> None:
    def broken(output: Tensor, target: Tensor) -> float:
        torch.rand(3)
        return 1 / 0

    trainer = trainer_of(metric=broken)
    trainer.model[1].eval()
    modes, state = [m.training for m in trainer.model.modules()], torch.get_rng_state()
    with pytest.raises(TrainingError, match="evaluation failed: ZeroDivisionError") as caught:
        trainer.evaluate(CASE.batches(1))
    one_line(caught)
    assert trainer.model.training
    assert [m.training for m in trainer.model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(TrainingError, match="no batch"):
        trainer.evaluate([])


DRAWS = {
    "torch": lambda: float(torch.rand(())),
    "numpy": lambda: float(np.random.rand()),
    "random": random.random,
}


class Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Every sample moved by a number that is drawn, as image libraries do."""

    def __init__(self, draw: Callable[[], float]) -> None:
        self.draw = draw
        self.x, self.y = CASE.batches(1, last=40)[0]

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.x[i] + self.draw(), self.y[i]


@pytest.mark.parametrize("name", DRAWS)
def test_what_validation_draws_training_does_not_miss(name: str) -> None:
    def run(validate: bool) -> dict[str, Tensor]:
        model = CASE.model()
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)
        data = Augmented(DRAWS[name])
        trainer_of(model).fit(DataLoader(data, 8, shuffle=True), 3, validate=DataLoader(data, 8) if validate else None)
        return tensors_of(model)

    assert_same(run(True), run(False))


@pytest.mark.parametrize("method", ["backprop", "synthetic"])
def test_validating_does_not_change_what_is_learnt(method: str) -> None:
    """A loader draws its seed from the global generator: were that seen, the next epoch's order would change."""
    x, y = CASE.batches(1, last=40)[0]
    data = TensorDataset(x, y)

    def run(validate: bool) -> dict[str, Tensor]:
        model = CASE.model()
        torch.manual_seed(11)
        trainer = trainer_of(model, method=method)
        trainer.fit(DataLoader(data, 8, shuffle=True), 3, validate=DataLoader(data, 8) if validate else None)
        return tensors_of(model)

    assert_same(run(True), run(False))
