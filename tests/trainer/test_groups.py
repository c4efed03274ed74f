"""Groups of parameters by name, and parameters that are frozen by name."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests._support.models import (
    CASES,
    CLASSES,
    Case,
    Chained,
    Encode,
    Middle,
    Read,
    adam,
    adamw,
    assert_same,
    pairs,
    sgd,
    tensors_of,
)
from tests._support.training import case_trainer, momentum_trainer, one_line, trainer_of
from torch import Tensor, nn
from torch.optim import lr_scheduler

import syngrad
from syngrad.errors import ConfigError, CutError
from syngrad.optim.groups import matches

CASE = CASES["mlp"]


# --- patterns


def test_a_pattern_is_a_name_a_module_or_a_glob() -> None:
    for pattern, name in [
        ("0.weight", "0.weight"),
        ("0", "0.weight"),
        ("blocks.1", "blocks.1.norm1.bias"),
        ("*.bias", "blocks.1.norm1.bias"),
        ("blocks.*.norm?.*", "blocks.1.norm1.bias"),
        ("*", "0.weight"),
        ("blocks.[01].*", "blocks.1.norm1.bias"),
    ]:
        assert matches(name, pattern)
    for pattern, name in [
        ("0", "01.weight"),
        ("0.w", "0.weight"),
        ("*.BIAS", "0.bias"),
        ("blocks.1", "blocks.12.bias"),
    ]:
        assert not matches(name, pattern)


@given(st.lists(st.sampled_from(["a", "b", "w", "10", "1"]), min_size=1, max_size=4), st.data())
def test_every_module_on_the_way_to_a_parameter_matches_it(path: list[str], data: st.DataObject) -> None:
    name = ".".join(path)
    upto = data.draw(st.integers(1, len(path)))
    assert matches(name, ".".join(path[:upto]))
    assert not matches(name, ".".join(path[:upto]) + "x")


# --- groups


def grouped(trainer: syngrad.Trainer) -> dict[str, tuple[str, dict[str, Any]]]:
    """Each weight's group and options by its name."""
    names = {id(p): n for n, p in trainer.model.named_parameters()}
    return {
        names[id(p)]: (g["name"], {k: v for k, v in g.items() if k in ("lr", "weight_decay", "momentum")})
        for o in trainer.optimizers
        for g in o.param_groups
        for p in g["params"]
        if id(p) in names
    }


@pytest.mark.parametrize("scope", ["model", "stage"])
def test_the_first_pattern_that_matches_decides_and_its_options_reach_the_optimiser(scope: str) -> None:
    groups = {"2.bias": {"lr": 0.5}, "*.bias": {"weight_decay": 0.0}, "2": {"lr": 0.25}, "6": {"momentum": 0.1}}
    factory = lambda params: torch.optim.SGD(params, 0.01, momentum=0.9, weight_decay=0.2)  # noqa: E731
    trainer = trainer_of(optimizer=factory, groups=groups, optimizer_scope=scope)
    trainer.bind(CASE.batches(1)[0])
    usual = {"lr": 0.01, "weight_decay": 0.2, "momentum": 0.9}
    no_decay = ("weights *.bias", {**usual, "weight_decay": 0.0})
    assert grouped(trainer) == {
        "0.weight": ("weights", usual),
        "0.bias": no_decay,
        "2.weight": ("weights 2", {**usual, "lr": 0.25}),
        "2.bias": ("weights 2.bias", {**usual, "lr": 0.5}),
        "4.weight": ("weights", usual),
        "4.bias": no_decay,
        "6.weight": ("weights 6", {**usual, "momentum": 0.1}),
        "6.bias": no_decay,
    }
    rates = {g["name"]: g["lr"] for o in trainer.optimizers for g in o.param_groups if "estimator" in g["name"]}
    assert rates
    assert set(rates.values()) == {0.01 * float(name.rpartition("×")[2]) for name in rates}


@pytest.mark.parametrize("scope", ["model", "stage"])
@pytest.mark.parametrize("name", ["mlp", "cnn", "gpt", "residual"])
def test_it_trains_as_the_same_groups_made_by_hand(name: str, scope: str) -> None:
    case = CASES[name]
    groups = {"*bias": {"weight_decay": 0.0, "lr": 0.02}, "*norm*": {"weight_decay": 0.0}}
    model, hand = case.model(), case.model()
    for module in [*model.modules(), *hand.modules()]:
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    trainer = case_trainer(case, model, method="mixed(1)", optimizer=adamw, groups=groups, optimizer_scope=scope)
    parts: list[list[Any]] = [[], [], []]
    for key, p in hand.named_parameters():
        parts[0 if key.endswith("bias") else 1 if "norm" in key else 2].append(p)
    optimizer = (
        adamw([{"params": p, **o} for p, o in zip(parts, [groups["*bias"], groups["*norm*"], {}], strict=True) if p])
        if parts[1]
        else adamw([{"params": parts[0], **groups["*bias"]}, {"params": parts[2]}])
    )
    if not parts[1]:
        trainer = case_trainer(
            case, model, method="mixed(1)", optimizer=adamw, groups={"*bias": groups["*bias"]}, optimizer_scope=scope
        )
    for *inputs, target in case.batches(6):
        trainer.step((*inputs, target))
        optimizer.zero_grad()
        case.loss(hand(*inputs), target).backward()
        optimizer.step()
    assert_same(tensors_of(model), tensors_of(hand), rtol=1e-9)


class Tied(nn.Module):
    """One weight under two names, both in one stage."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.back, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, CLASSES)
        self.back.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.back(torch.tanh(self.first(x)))))


def test_a_tied_parameter_is_found_by_any_of_its_names() -> None:
    for name in ("first.weight", "back.weight", "back"):
        trainer = trainer_of(Tied().double(), ["head"], groups={name: {"lr": 0.5}})
        trainer.bind(CASE.batches(1)[0])
        assert grouped(trainer)["first.weight"] == (f"weights {name}", {"lr": 0.5, "weight_decay": 0})
        model = Tied().double()
        start = tensors_of(model)
        frozen = trainer_of(model, ["head"], freeze=[name])
        frozen.step(CASE.batches(1)[0])
        assert torch.equal(model.back.weight, start["first.weight"])
        assert not torch.equal(model.head.weight, start["head.weight"])


@pytest.mark.parametrize("option", ["groups", "freeze"])
def test_a_pattern_that_matches_nothing_is_refused_with_the_nearest_name(option: str) -> None:
    for pattern, hint in (("0.wieght", "did you mean '0.weight'?"), ("encoder.*", "its names are 0.weight, 0.bias, ")):
        model = CASE.model()
        before = tensors_of(model)
        given = {pattern: {"lr": 1.0}} if option == "groups" else ["2", pattern]
        with pytest.raises(ConfigError, match=option) as caught:
            trainer_of(model, **{option: given}).bind(CASE.batches(1)[0])
        text = one_line(caught)
        assert repr(pattern) in text
        assert hint in text
        assert all(p.requires_grad for p in model.parameters()), "nothing is frozen by a list that is refused"
        assert_same(tensors_of(model), before)


@pytest.mark.parametrize("groups", [["*.bias"], "*.bias", {"*.bias": 0.0}, {0: {}}, {"": {}}, 3])
def test_what_is_no_mapping_of_patterns_is_refused(groups: Any) -> None:
    with pytest.raises(ConfigError, match="groups must map patterns") as caught:
        trainer_of(groups=groups)
    one_line(caught)


@pytest.mark.parametrize("freeze", ["0", 3, [0], [None]])
def test_what_is_no_list_of_names_is_refused(freeze: Any) -> None:
    with pytest.raises(ConfigError, match="freeze must be a list of names") as caught:
        trainer_of(freeze=freeze)
    one_line(caught)


GROUPS = {"*.bias": {"lr": 0.02, "weight_decay": 0.0}}
SCHEDULERS: dict[str, tuple[Any, str]] = {
    "exponential": (lambda o: lr_scheduler.ExponentialLR(o, 0.5), "step"),
    "cosine": (lambda o: lr_scheduler.CosineAnnealingLR(o, 50), "step"),
    "one cycle": (lambda o: lr_scheduler.OneCycleLR(o, 0.05, total_steps=40), "step"),
    "plateau": (lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, factor=0.5, eps=0), "epoch"),
}


@pytest.mark.parametrize("scope", ["model", "stage"])
@pytest.mark.parametrize("kind", SCHEDULERS)
def test_schedulers_do_to_groups_what_they_do_in_a_loop_of_ones_own(kind: str, scope: str) -> None:
    make, every = SCHEDULERS[kind]
    batches = CASE.batches(3)
    trainer = trainer_of(
        optimizer=sgd, groups=GROUPS, scheduler=make, scheduler_every=every, estimator_lr=3.0, estimator="linear",
        optimizer_scope=scope,
    )  # fmt: skip
    seen: list[float] = []
    trainer.fit(batches, 4, validate=batches, on_epoch=lambda record: seen.append(record.metrics["loss"]))
    layers = nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])
    hand = sgd([{"params": [layers[0].weight]}, {"params": [layers[0].bias], **GROUPS["*.bias"]}])
    theirs = make(hand)
    for loss in seen:
        for _ in batches if every == "step" else [0]:
            hand.step()
            theirs.step(*([loss] if every == "epoch" else []))
    weights, biases = (g["lr"] for g in hand.param_groups)
    for optimizer in trainer.optimizers:
        for group in optimizer.param_groups:
            expected = {"weights": weights, "weights *.bias": biases}.get(group["name"], 3.0 * weights)
            assert group["lr"] == pytest.approx(expected, rel=1e-9)


# --- freeze

METHODS: dict[str, dict[str, Any]] = {
    "synthetic": {"estimator": "linear"},
    "default": {"estimator": "default"},
    "true": {"estimator": "linear", "feedback": "true"},
    "late": {"estimator": "linear", "feedback_delay": 2},
    "mixed": {"method": "mixed(0.5)", "estimator": "linear"},
    "warmup": {"estimator": "linear", "warmup": 5},
    "delayed": {"method": "delayed(1)"},
    "backprop": {"method": "backprop"},
    "sporadic": {"estimator": "linear", "update_probability": 0.8},
}


@pytest.mark.parametrize("scope", ["model", "stage"])
@pytest.mark.parametrize("freeze", [["0"], ["2"], ["6"], ["0", "2"], ["*.bias"], ["4.weight", "0.bias"]], ids=str)
@pytest.mark.parametrize("method", METHODS)
def test_what_is_frozen_stands_still_and_the_rest_learns(method: str, freeze: list[str], scope: str) -> None:
    """Whole stages too: the first, one in the middle, the last."""
    model = CASE.model()
    before = tensors_of(model)
    options = {"optimizer": adamw, "optimizer_scope": scope, "quality_every": 2, "true_every": 2, **METHODS[method]}
    trainer = momentum_trainer(model, freeze=freeze, **options)
    trainer.fit(CASE.batches(12))
    after = tensors_of(model)
    still = {n for n in before if torch.equal(before[n], after[n])}
    assert still == {n for n in before if any(matches(n, pattern) for pattern in freeze)}
    assert trainer.guarded == {}


@pytest.mark.parametrize("method", ["synthetic", "mixed", "true", "backprop", "warmup"])
@pytest.mark.parametrize("freeze", [["0"], ["2"], ["6"]], ids=str)
def test_the_others_learn_as_if_only_the_update_was_left_out(method: str, freeze: list[str]) -> None:
    """The twin's frozen stage gets gradients, and a learning rate of zero."""
    frozen = momentum_trainer(freeze=freeze, **METHODS[method])
    rate = momentum_trainer(groups={freeze[0]: {"lr": 0.0}}, **METHODS[method])
    for batch in CASE.batches(12):
        frozen.step(batch)
        rate.step(batch)
    assert_same(tensors_of(frozen.model), tensors_of(rate.model), rtol=1e-12)
    assert_same(tensors_of(frozen.net.estimators), tensors_of(rate.net.estimators), rtol=1e-12)


@pytest.mark.parametrize(
    "freeze", [["0.left"], ["0.right"], ["0.left", "0.right"], ["0.left", "1.left"], ["1.right"]], ids=str
)
@pytest.mark.parametrize("method", METHODS)
def test_a_message_of_which_one_leaf_is_frozen(method: str, freeze: list[str]) -> None:
    torch.manual_seed(1)
    model = Chained(Encode(), Middle(), Read()).double()
    before = tensors_of(model)
    trainer = momentum_trainer(model, ["1", "2"], freeze=freeze, **{**METHODS[method], "true_every": 1})
    for batch in Case(lambda: model, ["1", "2"], pairs).batches(10):
        trainer.step(batch)
    trainer.flush()
    still = {n.rpartition(".")[0] for n, t in tensors_of(model).items() if torch.equal(t, before[n])}
    assert still == set(freeze)
    assert len(trainer.net.interfaces[0].heads) == 2


def test_everything_frozen_is_refused() -> None:
    with pytest.raises(ConfigError, match="nothing to train") as caught:
        trainer_of(freeze=["*"]).bind(CASE.batches(1)[0])
    one_line(caught)


def test_a_stage_that_was_frozen_before_the_model_is_cut_is_refused_and_freeze_is_the_remedy() -> None:
    model = CASE.model()
    model[0].requires_grad_(False)
    with pytest.raises(CutError, match="no trainable parameter") as caught:
        trainer_of(model).bind(CASE.batches(1)[0])
    one_line(caught)


def test_a_frozen_stage_may_be_trained_later() -> None:
    model = CASE.model()
    trainer = momentum_trainer(model, freeze=["2"], estimator="linear")
    batches = CASE.batches(6)
    for batch in batches[:3]:
        trainer.step(batch)
    held = tensors_of(model)
    model[2].requires_grad_(True)
    for batch in batches[3:]:
        trainer.step(batch)
    assert all(not torch.equal(held[n], t) for n, t in tensors_of(model).items())


# --- the configuration


def test_the_configuration_is_plain_data() -> None:
    trainer = trainer_of(
        optimizer=adam, groups={"*.bias": {"weight_decay": 0.0, "betas": (0.9, 0.99)}}, freeze=("0",), clip_norm=1,
        clip_scope="model", guard=50, autocast=torch.bfloat16, device=torch.device("cpu"), loss=nn.CrossEntropyLoss(),
        estimator={"2": "linear", "default": syngrad.estimators.Linear}, metric=lambda out, y: 0.0,
        scheduler=lambda o: lr_scheduler.ExponentialLR(o, 0.5), feedback_every=3, warmup=2,
    )  # fmt: skip
    plain = json.loads(json.dumps(trainer.configuration()))
    chosen = {
        "groups": {"*.bias": {"weight_decay": 0.0, "betas": [0.9, 0.99]}},
        "freeze": ["0"],
        "clip_norm": 1.0,
        "clip_scope": "model",
        "guard": 50.0,
        "autocast": "bfloat16",
        "device": "cpu",
        "loss": "CrossEntropyLoss",
        "optimizer": "adam",
        "estimator": {"2": "linear", "default": "Linear"},
        "feedback_every": 3,
        "warmup": 2,
    }
    assert {key: plain[key] for key in chosen} == chosen
    before = json.dumps(trainer.configuration())
    trainer.bind(CASE.batches(1)[0])
    assert json.dumps(trainer.configuration()) == before
