"""Numbers of NumPy's kinds are numbers, and become Python's own where they are kept."""

from __future__ import annotations

import json
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from tests._support.models import CASES, CLASSES
from tests._support.small import experiment
from tests._support.training import trainer_of
from torch import nn

import syngrad
from syngrad.callbacks import EarlyStopping
from syngrad.checks import real, whole
from syngrad.data import TensorBatches
from syngrad.errors import ConfigError
from syngrad.estimators import MLP
from syngrad.methods.policy import Method, Policy

CASE = CASES["mlp"]


@pytest.mark.parametrize(
    ("value", "count", "number"),
    [
        (3, 3, 3),
        (np.int64(3), 3, 3),
        (np.uint8(3), 3, 3),
        (0.5, None, 0.5),
        (np.float32(0.5), None, 0.5),
        (np.float64(2), None, 2.0),
        (Fraction(1, 2), None, 0.5),
        (True, None, None),
        (np.True_, None, None),
        ("3", None, None),
        (None, None, None),
        (1j, None, None),
        (Decimal(1), None, None),
        (np.array(3), None, None),
        (torch.tensor(3), None, None),
    ],
)
def test_what_is_a_number(value: Any, count: int | None, number: float | None) -> None:
    assert (whole(value), real(value)) == (count, number)
    assert type(whole(value)) in (int, type(None))
    assert type(real(value)) in (int, float, type(None))


OPTIONS: dict[str, Any] = {
    "seed": np.int64(3),
    "clip_norm": np.float32(1),
    "estimator_lr": np.float64(0.5),
    "feedback_every": np.int32(2),
    "feedback_delay": np.int64(1),
    "update_probability": np.float32(0.5),
    "warmup": np.int64(1),
    "quality_every": np.int64(4),
    "true_every": np.int64(4),
}


def test_options_of_a_trainer_may_be_numpys() -> None:
    trainer = trainer_of(**OPTIONS)
    for batch in CASE.batches(3):
        trainer.step(batch)
    kept = json.loads(json.dumps(trainer.configuration()))
    assert {name: kept[name] for name in OPTIONS} == {name: value.item() for name, value in OPTIONS.items()}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("value", [np.True_, True, "1", -1, np.float64("nan")])
def test_what_is_none_is_still_refused(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        trainer_of(**{name: value})


def test_so_may_those_of_everything_else() -> None:
    two = np.int64(2)
    assert str(syngrad.Trainer(syngrad.decouple(CASE.model(), stages=two), loss=CASE.loss).net).count("2 stages")
    assert Policy(Method("synthetic"), warmup=two) == Policy(Method("synthetic"), warmup=2)
    interface = syngrad.Interface(MLP(hidden=two, width=two), lam=np.float32(0.5), scale=np.float32(0.25), classes=two)
    assert interface.lam == 0.5
    assert EarlyStopping(two).patience == 2
    assert [len(x) for (x,) in TensorBatches(torch.zeros(3, 1), batch_size=two, seed=two)] == [2, 1]
    made = experiment(batch_size=two, epochs=two)
    assert (type(made.batch_size), type(made.epochs)) == (int, int)
    head = syngrad.Trainer(
        syngrad.decouple(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, CLASSES)).double(), cuts=["1"]),
        loss=CASE.loss,
        groups={"0": {"lr": np.float32(0.1)}},
        progress=False,
    )
    head.step(CASE.batches(1)[0])
