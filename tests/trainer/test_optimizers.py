"""The Trainer's optimisers and schedulers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests._support.models import CASES, adam, assert_same, sgd, tensors_of
from tests._support.training import one_line, trainer_of
from torch import nn
from torch.nn import functional as F
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR

import syngrad
from syngrad.errors import ConfigError, SyngradError
from syngrad.optim.factory import parse_optimizer

CASE = CASES["mlp"]


@pytest.mark.parametrize("scope", ["model", "stage"])
@pytest.mark.parametrize(
    "kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad]
)
def test_any_torch_optimiser(kind: Any, scope: str) -> None:
    model, reference = CASE.model(), CASE.model()
    trainer = trainer_of(model, optimizer=lambda p: kind(p, 0.01), optimizer_scope=scope, method="mixed(1)")
    hand = kind(reference.parameters(), 0.01)
    for x, y in CASE.batches(6):
        trainer.step((x, y))
        hand.zero_grad()
        F.cross_entropy(reference(x), y).backward()
        hand.step()
    assert_same(tensors_of(model), tensors_of(reference), rtol=1e-10)


@pytest.mark.parametrize("method", ["synthetic", "backprop", "zero", "delayed(1)"])
def test_an_optimiser_that_needs_a_closure_is_refused_in_one_line(method: str) -> None:
    trainer = trainer_of(optimizer=lambda p: torch.optim.LBFGS(p), method=method)
    with pytest.raises(SyngradError) as caught:
        trainer.step(CASE.batches(1)[0])
    one_line(caught)


@pytest.mark.parametrize(
    "factory",
    [
        torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1),
        "adam",
        lambda params: None,
        lambda params: torch.optim.Adam(params, lr=-1),
        lambda params: torch.optim.Adam(params, no_such_option=1),
    ],
    ids=["optimizer", "name", "returns nothing", "negative rate", "unknown option"],
)
def test_an_optimiser_that_is_none_is_refused(factory: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        trainer_of(optimizer=factory).step(CASE.batches(1)[0])
    assert "optimizer" in one_line(caught)


def test_a_factory_that_leaves_out_the_estimators_is_refused() -> None:
    """Otherwise they never train, silently, and their gradients gather for ever."""
    model = CASE.model()
    trainer = trainer_of(model, optimizer=lambda params: torch.optim.Adam(model.parameters(), 1e-3))
    with pytest.raises(ConfigError, match=r"parameter|optimizer") as caught:
        trainer.step(CASE.batches(1)[0])
    one_line(caught)


def rates(trainer: syngrad.Trainer) -> dict[str, float]:
    return {str(g["name"]): float(g["lr"]) for o in trainer.optimizers for g in o.param_groups}


SCHEDULERS: dict[str, tuple[Any, str]] = {
    "step": (lambda o: lr_scheduler.StepLR(o, 2, 0.1), "epoch"),
    "lambda": (lambda o: lr_scheduler.LambdaLR(o, lambda n: 1 / (n + 1)), "step"),
    "exponential": (lambda o: lr_scheduler.ExponentialLR(o, 0.5), "step"),
    "cosine": (lambda o: lr_scheduler.CosineAnnealingLR(o, 50), "step"),
    "one cycle": (lambda o: lr_scheduler.OneCycleLR(o, 0.05, total_steps=40), "step"),
    "warm-up then cosine": (
        lambda o: lr_scheduler.SequentialLR(
            o, [lr_scheduler.LinearLR(o, 0.1, total_iters=4), lr_scheduler.CosineAnnealingLR(o, 50)], [4]
        ),
        "step",
    ),
    "stochastic weight averaging": (lambda o: SWALR(o, 0.01, anneal_epochs=4), "step"),
    "a sequence in a chain": (
        lambda o: lr_scheduler.ChainedScheduler(
            [lr_scheduler.SequentialLR(o, [lr_scheduler.LinearLR(o, 0.1, 1.0, 4), lr_scheduler.StepLR(o, 2)], [4])]
        ),
        "step",
    ),
    "cyclic": (lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.02, 3, cycle_momentum=False), "step"),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_schedulers_do_what_they_do_in_a_loop_of_ones_own(name: str) -> None:
    make, every = SCHEDULERS[name]
    trainer = trainer_of(scheduler=make, scheduler_every=every, method="backprop", optimizer=sgd)
    hand = sgd(CASE.model().parameters())
    theirs = make(hand)
    seen: list[float] = []
    batches = CASE.batches(3)
    history = trainer.fit(batches, 3, on_epoch=lambda record: seen.append(rates(trainer)["weights"]))
    expected = []
    for _ in range(3):
        for _ in batches if every == "step" else [0]:
            hand.step()
            theirs.step()
        expected.append(hand.param_groups[0]["lr"])
    assert seen == pytest.approx(expected)
    assert [e.epoch for e in history.epochs] == [1, 2, 3]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_estimators_rate_stays_a_multiple_of_the_weights_under_a_scheduler(name: str) -> None:
    make, _ = SCHEDULERS[name]
    trainer = trainer_of(
        scheduler=make, scheduler_every="step", optimizer=sgd, estimator_lr=3.0, estimator="local(learning_rate=0.5)"
    )
    batches = CASE.batches(8)
    trainer.bind(batches[0])
    for batch in batches:
        by_name = rates(trainer)
        assert len(by_name) == 2
        weights = by_name.pop("weights")
        (estimators,) = by_name.values()
        assert estimators == pytest.approx(1.5 * weights, rel=1e-6)
        trainer.step(batch)


@pytest.mark.parametrize(
    "make",
    [
        lambda o: lr_scheduler.CosineAnnealingLR(o, 6, eta_min=1e-3),
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 6, eta_min=1e-3),
    ],
)
def test_a_floor_that_is_one_number_is_the_estimators_too(make: Any) -> None:
    """As `scale_rates` says: they start at their multiple, and fall to the floor with the weights."""
    trainer = trainer_of(scheduler=make, scheduler_every="step", optimizer=sgd, estimator_lr=3.0, estimator="linear")
    batches = CASE.batches(6)
    trainer.bind(batches[0])
    gaps: list[float] = []
    for batch in batches:
        weights, estimators = rates(trainer).values()
        gaps.append((estimators - 1e-3) / (weights - 1e-3))
        trainer.step(batch)
    assert gaps == pytest.approx([(0.15 - 1e-3) / (0.05 - 1e-3)] * 6)


def test_every_estimator_has_the_rate_it_asks_for() -> None:
    kinds = {"2": "local(learning_rate=0.1)", "4": "local(learning_rate=2.0)", "6": "linear"}
    trainer = trainer_of(estimator=kinds, optimizer=sgd, estimator_lr=2.0)
    trainer.bind(CASE.batches(1)[0])
    assert sorted(rates(trainer).values()) == pytest.approx([0.05 * 0.2, 0.05, 0.05 * 2.0, 0.05 * 4.0])
    for value in (0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match="estimator_lr"):
            trainer_of(estimator_lr=value)


def test_reduce_on_plateau_hears_of_the_validated_loss() -> None:
    case_batches = CASE.batches(2)
    frozen = lambda p: torch.optim.SGD(p, 1e-12)  # noqa: E731
    trainer = trainer_of(
        optimizer=frozen, scheduler=lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=0, factor=0.5, eps=0)
    )
    trainer.fit(case_batches, 4, validate=case_batches)
    assert rates(trainer)["weights"] == pytest.approx(1e-12 / 8)
    assert trainer.schedulers[0].best == pytest.approx(trainer.evaluate(case_batches)["loss"], rel=1e-6)


def test_one_scheduler_an_optimiser() -> None:
    trainer = trainer_of(optimizer_scope="stage", scheduler=lambda o: lr_scheduler.ExponentialLR(o, 0.5))
    trainer.fit(CASE.batches(2), 2)
    assert len(trainer.schedulers) == len(trainer.optimizers) == 4
    assert {round(g["lr"], 12) for o in trainer.optimizers for g in o.param_groups} == {round(3e-3 / 4, 12)}


def test_the_optimisers_are_there_once_a_batch_was_seen() -> None:
    trainer = trainer_of()
    with pytest.raises(ConfigError, match=r"trainer\.bind\(batch\)"):
        _ = trainer.optimizers
    before = tensors_of(trainer.model)
    trainer.bind(CASE.batches(1)[0])
    first = trainer.optimizers
    trainer.bind(CASE.batches(1)[0])
    assert trainer.optimizers is first
    assert_same(tensors_of(trainer.model), before)


@pytest.mark.parametrize("name", ["cnn", "gpt", "residual"])
def test_binding_changes_nothing_of_the_model(name: str) -> None:
    case = CASES[name]
    model = case.model()
    before, state = tensors_of(model), torch.get_rng_state()
    modes = [m.training for m in model.modules()]
    trainer_of(model, case.cuts, loss=case.loss, loss_count=case.count).bind(case.batches(1)[0])
    assert_same(tensors_of(model), before)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("scope", ["model", "stage"])
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("muon", r"Muon only supports 2D parameters.*; it is given all parameters, .*as adam or sgd"),
        ("sparseadam", r"the optimizer SparseAdam raised .*dense gradients.*use another, as adam or sgd"),
    ],
)
def test_an_optimiser_that_does_not_go_with_the_parameters_is_named_with_a_remedy(
    name: str, says: str, scope: str
) -> None:
    trainer = trainer_of(optimizer=parse_optimizer(name), optimizer_scope=scope)
    before = tensors_of(trainer.model)
    with pytest.raises(SyngradError, match=says) as caught:
        trainer.step(CASE.batches(1)[0])
    one_line(caught)
    assert_same(tensors_of(trainer.model), before)


def test_a_factory_that_raises_is_told_how_it_is_called() -> None:
    with pytest.raises(ConfigError, match=r"it is called as in lambda params: torch\.optim\.Adam") as caught:
        trainer_of(optimizer=lambda: adam([])).bind(CASE.batches(1)[0])
    one_line(caught)
