"""Dropout and the generators while training."""

from __future__ import annotations

import pytest
import torch
from tests._support.models import CASES, CLASSES, assert_same, sgd, tensors_of
from tests._support.training import momentum_trainer
from torch import Tensor, nn

CASE = CASES["mlp"]


@pytest.mark.parametrize("estimator", ["default", "linear", "mlp", "local", "sobolev", "low_rank"])
@pytest.mark.parametrize("method", ["synthetic", "mixed(0.5)", "backprop", "delayed(1)", "zero"])
def test_training_leaves_the_global_generator_alone_and_does_not_depend_on_it(method: str, estimator: str) -> None:
    case = CASES["dropout"]

    def run(disturbed: bool) -> dict[str, Tensor]:
        model = case.model()
        trainer = momentum_trainer(model, case.cuts, method=method, estimator=estimator, seed=3)
        for i, batch in enumerate(case.batches(6)):
            if disturbed:
                torch.rand(i + 1)
            state = torch.get_rng_state()
            trainer.step(batch)
            assert torch.equal(torch.get_rng_state(), state)
        return tensors_of(model)

    quiet = run(False)
    assert_same(run(True), quiet)


def test_a_stages_dropout_does_not_depend_on_what_other_stages_draw() -> None:
    """The last stage of two models draws the same, though the first stage of one has no dropout at all."""

    def masks(p: float) -> list[Tensor]:
        torch.manual_seed(0)
        dropout = nn.Dropout(0.5)
        model = nn.Sequential(
            nn.Linear(6, 12), nn.Dropout(p), nn.Linear(12, 12), dropout, nn.Linear(12, CLASSES)
        ).double()
        seen: list[Tensor] = []
        hook = dropout.register_forward_hook(lambda module, args, out: seen.append((out == 0).clone()))
        trainer = momentum_trainer(model, ["2"], method="synthetic", seed=4, optimizer=sgd)
        trainer.bind(CASE.batches()[0])
        seen.clear()
        for batch in CASE.batches(4):
            trainer.step(batch)
        hook.remove()
        return seen

    with_dropout, without = masks(0.5), masks(0.0)
    assert len(with_dropout) == 4
    assert all(torch.equal(a, b) for a, b in zip(with_dropout, without, strict=True))
    assert not torch.equal(with_dropout[0], with_dropout[1])
