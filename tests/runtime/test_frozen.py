"""Parameters that do not train."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests._support.models import CASES, adam, tensors_of
from tests._support.training import momentum_trainer, one_line

import syngrad

CASE = CASES["mlp"]


@pytest.mark.parametrize("scope", ["model", "stage"])
@pytest.mark.parametrize("frozen", ["0.weight", "2.weight", "4.bias", "6.weight"])
@pytest.mark.parametrize(
    "options",
    [
        {"estimator": "linear"},
        {"estimator": "default"},
        {"estimator": "linear", "feedback": "true"},
        {"method": "mixed(0.5)"},
        {"method": "backprop"},
        {"method": "delayed(1)"},
    ],
    ids=lambda o: "-".join(o.values()),
)
def test_frozen_parameters_stand_still_and_the_others_learn(options: dict[str, Any], frozen: str, scope: str) -> None:
    model = CASE.model()
    dict(model.named_parameters())[frozen].requires_grad_(False)
    before = tensors_of(model)
    trainer = momentum_trainer(model, optimizer=adam, optimizer_scope=scope, **options)
    trainer.fit(CASE.batches(8))
    after = tensors_of(model)
    assert {n for n in before if torch.equal(before[n], after[n])} == {frozen}


def test_a_stage_with_nothing_to_train_is_refused_when_it_is_cut() -> None:
    model = CASE.model()
    model[4].requires_grad_(False)
    for broken, cuts in ((model, ["2", "4", "6"]), (CASE.model(), ["1", "2"])):
        with pytest.raises(syngrad.errors.CutError, match="no trainable parameter") as caught:
            momentum_trainer(broken, cuts).bind(CASE.batches(1)[0])
        one_line(caught)
