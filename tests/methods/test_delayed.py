"""Delayed training against whole copies of the model."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from tests._support.models import CASES, adam, assert_same, tensors_of
from tests._support.training import Descent, momentum_trainer
from torch import Tensor, nn
from torch.nn import functional as F

CASE = CASES["mlp"]


class Copies:
    """`delayed(d)` with a whole copy of the model kept for every minibatch that is on its way."""

    def __init__(self, model: nn.Sequential, starts: list[int], delay: int) -> None:
        bounds = [0, *starts, len(model)]
        self.model, self.spans, self.delay = model, list(itertools.pairwise(bounds)), delay
        self.kept: dict[int, Any] = {}
        self.descent = Descent()
        self.t = 0

    def step(self, batch: tuple[Tensor, Tensor] | None) -> None:
        if batch is not None:
            self.kept[self.t] = (copy.deepcopy(self.model), *batch)
        K = len(self.spans)
        for k, (a, b) in enumerate(self.spans):
            old = self.kept.get(self.t - self.delay * (K - 1 - k))
            if old is not None:
                stashed, x, y = old
                gradients = torch.autograd.grad(F.cross_entropy(stashed(x), y), list(stashed[a:b].parameters()))
                self.descent.step(list(self.model[a:b].parameters()), list(gradients))
        self.t += 1

    def flush(self) -> None:
        for _ in range(self.delay * (len(self.spans) - 1)):
            self.step(None)


@pytest.mark.parametrize("scope", ["model", "stage"])
@pytest.mark.parametrize("delay", [1, 2])
@pytest.mark.parametrize("starts", [[2, 4], [2, 4, 6]], ids=["3 stages", "4 stages"])
def test_delayed_is_what_whole_copies_of_the_model_give(starts: list[int], delay: int, scope: str) -> None:
    model, twin = CASE.model(), CASE.model()
    naive = Copies(twin, starts, delay)
    trainer = momentum_trainer(model, list(map(str, starts)), method=f"delayed({delay})", optimizer_scope=scope)
    batches = CASE.batches(20, last=3)
    for batch in batches:
        trainer.step(batch)
        naive.step(batch)
        assert_same(tensors_of(model), tensors_of(twin), rtol=1e-10)
    before = tensors_of(model)
    trainer.runner.flush()
    naive.flush()
    assert not torch.equal(before["0.weight"], model[0].weight)
    assert_same(tensors_of(model), tensors_of(twin), rtol=1e-10)
    after = tensors_of(model)
    trainer.runner.flush()
    assert_same(tensors_of(model), after)
    # and it goes on from there
    naive.kept.clear()
    for batch in batches[:6]:
        trainer.step(batch)
        naive.step(batch)
    assert_same(tensors_of(model), tensors_of(twin), rtol=1e-10)


def test_fit_lets_delayed_minibatches_end() -> None:
    model, twin = CASE.model(), CASE.model()
    batches = CASE.batches(6)
    momentum_trainer(model, method="delayed(1)").fit(batches, epochs=2)
    naive = Copies(twin, [2, 4, 6], 1)
    for batch in [*batches, *batches]:
        naive.step(batch)
    naive.flush()
    assert_same(tensors_of(model), tensors_of(twin), rtol=1e-10)


@pytest.mark.parametrize("name", ["residual", "gpt", "cnn"])
def test_delayed_trains_other_models_too(name: str) -> None:
    case = CASES[name]
    model = case.model()
    before = tensors_of(model)
    options = {"loss": case.loss, "loss_count": case.count, "optimizer": adam}
    trainer = momentum_trainer(model, case.cuts, method="delayed(2)", **options)
    trainer.fit(case.batches(12))
    moved = tensors_of(model)
    assert all(not torch.equal(before[n], moved[n]) for n, _ in model.named_parameters())
    assert trainer.runner.in_flight == 0


def test_a_flush_goes_from_one_arrival_to_the_next_however_long_the_delay() -> None:
    trainer = momentum_trainer(CASE.model(), method="delayed(10000)")
    before = tensors_of(trainer.model)
    for batch in CASE.batches(3):
        trainer.step(batch)
    rule, ticks = trainer.runner.rule, []
    settled = rule.settle
    rule.settle = lambda actors, now: ticks.append(settled(actors, now))
    trainer.flush()
    assert trainer.runner.in_flight == 0
    assert len(ticks) == 3 * 3  # minibatches in flight in each of the stages before the last
    moved = tensors_of(trainer.model)
    assert all(not torch.equal(before[n], moved[n]) for n in before)
