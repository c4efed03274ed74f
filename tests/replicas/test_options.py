"""The options for replicas: what is refused, and what files and flags say of them."""

from __future__ import annotations

from typing import Any

import pytest
from tests._support.training import one_line
from torch import nn
from torch.nn import functional as F

import syngrad
from syngrad import Replicas
from syngrad.errors import ConfigError
from syngrad.runtime.option_fields import override
from syngrad.trainer.options import Options


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"every": 0}, "replicas_every must be a whole number of at least 1, got 0"),
        ({"fragments": 2.5}, "replicas_fragments must be a whole number of at least 1, got 2.5"),
        ({"delay": -1}, "replicas_delay must be a whole number of at least 0, got -1"),
        ({"dtype": "float16"}, "replicas_dtype must be one of 'float32', 'bfloat16', 'int8', got 'float16'"),
        ({"outer": "adam"}, "outer must be 'nesterov"),
        ({"estimators": 1}, "replicas_estimators must be True or False, got 1"),
        ({"every": 10, "fragments": 3}, "replicas_every=10 minibatches cannot be divided among replicas_fragments=3"),
        ({"every": 8, "fragments": 4, "delay": 2}, "replicas_delay=2 is as long as the 2 minibatches"),
        ({"wait_s": -1}, "replicas_wait_s must be a finite number of at least 0"),
        ({"start_wait_s": None}, "replicas_start_wait_s must be a finite number of at least 0, got None"),
        ({"timeout_s": 0}, "replicas_timeout_s must be above 0"),
    ],
)
def test_what_cannot_be_used_is_named(given: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Replicas(**given)
    assert one_line(caught).startswith(named)


def trainer(**options: Any) -> syngrad.Trainer:
    net = syngrad.decouple(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)), cuts=["1"])
    return syngrad.Trainer(net, loss=F.cross_entropy, **options)


def test_without_them_nothing_is_said_of_them() -> None:
    assert not [name for name in trainer().configuration() if name.startswith("replicas")]
    assert trainer().options.replicas is None


def test_the_configuration_says_how_replicas_average() -> None:
    found = trainer(replicas=Replicas(every=20, outer="none", dtype="int8")).configuration()
    assert {name: value for name, value in found.items() if name.startswith("replicas")} == {
        "replicas_every": 20,
        "replicas_outer": None,
        "replicas_fragments": 1,
        "replicas_delay": 0,
        "replicas_dtype": "int8",
        "replicas_estimators": True,
    }


def test_flat_names_make_them_or_change_them() -> None:
    assert override(Options, {}, {"replicas_every": 7}) == {"replicas": Replicas(every=7)}
    given = {"replicas": Replicas(dtype="int8")}
    assert override(Options, given, {"replicas_every": 7}) == {"replicas": Replicas(every=7, dtype="int8")}


def test_anything_else_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"replicas must be syngrad.Replicas\(…\), got int"):
        trainer(replicas=3)
    with pytest.raises(ConfigError, match=r"write replicas=Replicas\(every=3\)"):
        trainer(replicas_every=3)
