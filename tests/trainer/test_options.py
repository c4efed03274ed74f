"""The Trainer's options: written down once, and what follows from that."""

from __future__ import annotations

import dataclasses
import inspect
import json
from typing import Any

import numpy as np
import pytest
import torch
from tests._support.training import one_line
from torch import nn
from torch.nn import functional as F

import syngrad
from syngrad import Distributed, Feedback, Replicas, Trainer
from syngrad.errors import ConfigError
from syngrad.runtime.option_fields import flat_options, moved, override
from syngrad.trainer.fit_arguments import FitArguments
from syngrad.trainer.options import MOVED, RESUMED, Options

#: the keys and, of a Trainer that is told nothing but its loss, the values that checkpoints and results files have
CONFIGURATION = {
    "method": "synthetic",
    "estimator": "default",
    "loss": "cross_entropy",
    "metric": None,
    "optimizer": "default_optimizer",
    "optimizer_scope": "model",
    "estimator_lr": 1.0,
    "groups": {},
    "freeze": [],
    "scheduler": None,
    "scheduler_every": "epoch",
    "clip_norm": None,
    "clip_scope": "stage",
    "guard": 100.0,
    "feedback": "bootstrapped",
    "feedback_every": None,
    "feedback_delay": 0,
    "inputs": None,
    "update_probability": 1.0,
    "warmup": 0,
    "seed": 0,
    "device": None,
    "autocast": None,
    "quality_every": 50,
    "true_every": 200,
}


def network() -> Any:
    return syngrad.decouple(nn.Sequential(nn.Linear(6, 4), nn.Linear(4, 3)), cuts=["1"])


def test_the_signature_is_the_fields() -> None:
    parameters = list(inspect.signature(Trainer).parameters.values())
    assert parameters[0].name == "net"
    keywords = parameters[1:]
    assert [each.name for each in keywords] == [each.name for each in dataclasses.fields(Options)]
    assert {each.kind for each in keywords} == {inspect.Parameter.KEYWORD_ONLY}
    for parameter, field in zip(keywords, dataclasses.fields(Options), strict=True):
        missing = parameter.default is inspect.Parameter.empty
        assert (field.default is dataclasses.MISSING) if missing else (parameter.default == field.default)
        assert parameter.annotation == field.type


def test_the_docstring_explains_every_option_once() -> None:
    lines = (Trainer.__doc__ or "").splitlines()
    told = [line.strip().partition(":")[0] for line in lines if line.startswith(" " * 8) and line[8] != " "]
    for name in ("net", *(each.name for each in dataclasses.fields(Options))):
        assert told.count(name) == 1, name


@pytest.mark.parametrize("kind", [Feedback, Distributed, Replicas])
def test_so_do_those_of_its_parts(kind: Any) -> None:
    told = [line.strip().partition(":")[0] for line in (kind.__doc__ or "").splitlines()]
    assert [told.count(each.name) for each in dataclasses.fields(kind)] == [1] * len(dataclasses.fields(kind))


def test_a_trainer_keeps_its_options() -> None:
    trainer = Trainer(network(), loss=F.cross_entropy, seed=3, feedback=Feedback(every=2), guard=None)
    assert trainer.options == Options(loss=F.cross_entropy, seed=3, feedback=Feedback(every=2), guard=None)
    with pytest.raises(dataclasses.FrozenInstanceError):
        trainer.options.seed = 4  # type: ignore[misc]


def test_what_is_missing_or_by_position_is_a_type_error_as_ever() -> None:
    call: Any = Trainer
    with pytest.raises(TypeError, match=r"missing a required .*'loss'"):
        call(network())
    with pytest.raises(TypeError, match="positional"):
        call(network(), F.cross_entropy)


# Where a keyword of before has gone.


@pytest.mark.parametrize(
    ("given", "written"),
    [
        ({"feedback_every": 4}, "feedback_every is now an option of feedback=: write feedback=Feedback(every=4)"),
        ({"feedback_delay": 1}, "feedback_delay is now an option of feedback=: write feedback=Feedback(delay=1)"),
        ({"warmup": 10}, "warmup is now an option of feedback=: write feedback=Feedback(warmup=10)"),
        ({"quality_every": 0}, "quality_every is now an option of feedback=: write feedback=Feedback(quality_every=0)"),
        ({"true_every": 9}, "true_every is now an option of feedback=: write feedback=Feedback(true_every=9)"),
        (
            {"queue_depth": 4},
            "queue_depth is now an option of distributed=: write distributed=Distributed(queue_depth=4)",
        ),
        (
            {"message_dtype": "int8"},
            "message_dtype is now an option of distributed=: write distributed=Distributed(message_dtype='int8')",
        ),
        ({"place": [2, 1]}, "place is now an option of distributed=: write distributed=Distributed(place=[2, 1])"),
        ({"link": "zeromq"}, "link is now an option of distributed=: write distributed=Distributed(link='zeromq')"),
        ({"link_key": "k"}, "link_key is now an option of distributed=: write distributed=Distributed(link_key='k')"),
        ({"timeout_s": 5}, "timeout_s is now an option of distributed=: write distributed=Distributed(timeout_s=5)"),
        ({"trace": True}, "trace is now an option of distributed=: write distributed=Distributed(trace=True)"),
        ({"record": True}, "record is now an option of distributed=: write distributed=Distributed(record=True)"),
        ({"replay": object()}, "replay is now an option of distributed=: write distributed=Distributed(replay=…)"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_keyword_that_has_moved_says_where(given: dict[str, Any], written: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Trainer(network(), loss=F.cross_entropy, **given)
    assert one_line(caught) == written


def test_every_option_of_a_part_is_among_them() -> None:
    parts = {each.name for kind in (Feedback, Distributed, Replicas) for each in flat_options(kind)}
    assert set(MOVED) == parts - {"feedback"}


def test_an_unknown_keyword_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown option 'estimater'; did you mean 'estimator'"):
        Trainer(network(), loss=F.cross_entropy, estimater="linear")  # type: ignore[call-arg]


# What is derived.


def test_the_configuration_has_the_keys_and_values_that_files_have() -> None:
    assert Trainer(network(), loss=F.cross_entropy).configuration() == CONFIGURATION


def test_every_value_of_the_configuration_is_the_options() -> None:
    given: dict[str, Any] = {
        **{"method": "mixed(0.5)", "estimator": {"1": "linear"}, "metric": "accuracy", "optimizer": torch.optim.SGD},
        **{"optimizer_scope": "stage", "estimator_lr": 0.5, "groups": {"*.bias": {"lr": 0.0}}, "freeze": ("0",)},
        **{"scheduler_every": "step", "clip_norm": 2, "clip_scope": "model", "guard": 5, "update_probability": 0.5},
        **{"seed": 4, "device": torch.device("cpu"), "autocast": torch.bfloat16},
        "feedback": Feedback("true", every=3, delay=2, warmup=5, quality_every=0, true_every=7),
    }
    made = Trainer(network(), loss=F.cross_entropy, **given).configuration()
    assert made == CONFIGURATION | {
        **{"method": "mixed(0.5)", "estimator": {"1": "linear"}, "metric": "accuracy", "optimizer": "SGD"},
        **{"optimizer_scope": "stage", "estimator_lr": 0.5, "groups": {"*.bias": {"lr": 0.0}}, "freeze": ["0"]},
        **{"scheduler_every": "step", "clip_norm": 2.0, "clip_scope": "model", "guard": 5.0, "update_probability": 0.5},
        **{"seed": 4, "device": "cpu", "autocast": "bfloat16"},
        **{"feedback": "true", "feedback_every": 3, "feedback_delay": 2, "warmup": 5, "quality_every": 0},
        "true_every": 7,
    }
    assert json.loads(json.dumps(made)) == made


def test_a_method_that_estimates_nothing_has_no_estimator_in_it() -> None:
    assert Options(loss=F.cross_entropy, method="delayed(2)").configuration()["estimator"] is None


def test_a_scope_is_that_of_clipping_alone() -> None:
    assert Options(loss=F.cross_entropy, clip_scope="model").configuration()["clip_scope"] == "stage"


def test_what_a_resumed_run_has_the_same() -> None:
    assert set(RESUMED) == CONFIGURATION.keys() - {"metric", "optimizer", "device", "quality_every", "true_every"}


def test_what_all_workers_have_the_same() -> None:
    options = Options(
        loss=F.cross_entropy, method="delayed", distributed=Distributed(message_dtype=("int8", "float32"))
    )
    configuration = options.configuration()
    del configuration["device"]
    laid = {"queue_depth": 2, "link": "zeromq", "message_dtype": ["int8", "float32"], "share_every": 16}
    assert options.shared() == configuration | laid | {"feedback_delay": None}  # as it comes
    fixed = Options(loss=F.cross_entropy, feedback=Feedback(delay=0))
    assert (fixed.shared()["feedback_delay"], fixed.shared()["queue_depth"]) == (0, 8)
    assert Options(loss=F.cross_entropy, method="delayed(1)").shared()["feedback_delay"] == 0


def test_what_fit_was_asked_for_is_frozen_and_in_pythons_own_kind() -> None:
    asked = FitArguments([], np.int64(3), keep=np.int64(1))
    assert (type(asked.epochs), type(asked.keep)) == (int, int)
    with pytest.raises(dataclasses.FrozenInstanceError):
        asked.epochs = 4  # type: ignore[misc]
    with pytest.raises(ConfigError, match="epochs must be a whole number of at least 0, got -1"):
        FitArguments([], -1)


# The parts.


@pytest.mark.parametrize("given", [None, "bootstrapped", Feedback(), Feedback("bootstrapped")])
def test_feedback_is_given_as_itself_or_as_its_kind(given: Any) -> None:
    assert Options(loss=F.cross_entropy, feedback=given).feedback == Feedback()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"kind": "tru"}, "unknown feedback 'tru'; did you mean 'true'? valid: bootstrapped, true"),
        ({"every": 0}, "feedback_every must be a whole number of at least 1, got 0"),
        ({"every": 1.5}, "feedback_every must be a whole number of at least 1, got 1.5"),
        ({"delay": -1}, "feedback_delay must be a whole number of at least 0, got -1"),
        ({"delay": 10_001}, "feedback_delay: a delay of 10001 minibatches is too long; give at most 10000"),
        ({"warmup": True}, "warmup must be a whole number of at least 0, got True"),
        ({"warmup": None}, "warmup must be a whole number of at least 0, got None"),
        ({"quality_every": -1}, "quality_every must be a whole number of at least 0, got -1"),
        ({"true_every": "2"}, "true_every must be a whole number of at least 0, got '2'"),
    ],
    ids=str,
)
def test_feedback_refuses_what_it_cannot_do(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Feedback(**given)
    assert one_line(caught) == said


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"queue_depth": 0}, "queue_depth must be a whole number from 1 to 10000, got 0"),
        ({"queue_depth": 10_001}, "queue_depth must be a whole number from 1 to 10000, got 10001"),
        ({"message_dtype": "int4"}, "unknown message_dtype 'int4'; did you mean 'int8'?"),
        ({"message_dtype": ("int8",)}, "a name or a pair (forward, backward) of names, got ('int8',)"),
        ({"place": [2, 0]}, "place must be a list of how many stages each process runs, as in [2, 1], got [2, 0]"),
        ({"link": "tcp"}, "unknown link 'tcp'"),
        ({"link": "process_group", "link_key": "k"}, "link_key is 'k', and link='process_group' cannot encrypt"),
        ({"share_every": 0}, "share_every must be a whole number of at least 1, got 0"),
        ({"share_every": 2.5}, "share_every must be a whole number of at least 1, got 2.5"),
        ({"timeout_s": 0}, "timeout_s must be a number of seconds above 0, got 0"),
    ],
    ids=str,
)
def test_distributed_refuses_what_it_cannot_do(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Distributed(**given)
    assert said in one_line(caught)


def test_a_mapping_is_no_part() -> None:
    for name in ("feedback", "distributed"):
        with pytest.raises(ConfigError, match=name):
            Trainer(network(), loss=F.cross_entropy, **{name: {"every": 4}})


def test_flat_names_replace_options_within_their_parts() -> None:
    own = {"seed": 1, "feedback": Feedback("true", every=4)}
    made = override(Options, own, {"warmup": 10, "queue_depth": 3, "seed": 2})
    assert made == {
        "seed": 2,
        "feedback": Feedback("true", every=4, warmup=10),
        "distributed": Distributed(queue_depth=3),
    }
    assert override(Options, own, {"feedback": "bootstrapped"})["feedback"] == Feedback(every=4)
    assert override(Options, own, {"feedback": Feedback(delay=1)})["feedback"] == Feedback(delay=1)
    assert own == {"seed": 1, "feedback": Feedback("true", every=4)}


def test_a_part_of_a_class_of_ones_own_is_spelled_flat() -> None:
    assert [(each.name, each.field) for each in flat_options(Feedback)][:2] == [
        ("feedback", "kind"),
        ("feedback_every", "every"),
    ]
    assert moved(Feedback) == {}
