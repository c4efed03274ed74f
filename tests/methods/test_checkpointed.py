"""Gradients that come late through a stage that checkpoints its activations."""

from __future__ import annotations

import pytest
import torch
from tests._support.any_models import FAMILIES, LanguageModel

import syngrad


@pytest.mark.parametrize("frozen", ["", "blocks.0.out.weight"], ids=["", "trained again"])
@pytest.mark.parametrize("method", ["delayed(2)", "corrected(2, every=1)"])
def test_what_was_checkpointed_meets_the_weights_that_it_went_forward_with(method: str, frozen: str) -> None:
    """Computed anew when the gradient comes, minibatches later, it gives what it would have kept."""
    ends = []
    family = FAMILIES["checkpointed"]
    for checkpointed in (False, True):
        torch.manual_seed(0)
        model = LanguageModel(2, checkpointed=checkpointed).double()
        net = syngrad.decouple(model, cuts=["blocks.1"])
        trainer = syngrad.Trainer(net, loss=family.loss, method=method, progress=False)
        trainer.bind(family.batch())
        for step in range(6):
            if frozen:  # stands still for a while, and is trained again when minibatches without it are in flight
                model.get_parameter(frozen).requires_grad_(step > 2)
            trainer.step(family.batch())
        trainer.flush()
        ends.append([p.detach().clone() for p in model.parameters()])
    for one, other in zip(*ends, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-12)
