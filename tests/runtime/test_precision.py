"""Autocast, and the factor of float16."""

from __future__ import annotations

import functools
import json
import math
from typing import Any

import pytest
import torch
from tests._support.models import CASES, Case, adam, assert_same, momentum, sgd, tensors_of
from tests._support.training import case_trainer, one_line, trainer_of
from torch import Tensor

import syngrad
from syngrad.errors import ConfigError
from syngrad.runtime.precision import LARGEST, PATIENCE, START, Precision

CASE = CASES["mlp"]
LOW = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def single(batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(t.float() if t.is_floating_point() else t for t in batch)


def low_trainer(case: Case, **options: Any) -> syngrad.Trainer:
    return case_trainer(case, case.model().float(), **{"optimizer": adam, "estimator": "linear", **options})


RUNS: dict[str, dict[str, Any]] = {
    "backprop": {"method": "backprop"},
    "linear": {},
    "default": {"estimator": "default"},
    "mlp": {"estimator": "mlp"},
    "local": {"estimator": "local(hidden=2)"},
    "sobolev": {"estimator": "sobolev", "feedback_every": 2},
    "true": {"feedback": "true"},
    "mixed": {"method": "mixed(0.5)"},
    "warmup": {"warmup": 4},
    "zero": {"method": "zero"},
    "sporadic": {"update_probability": 0.7},
}


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("name", ["mlp", "cnn", "gpt", "regression"])
@pytest.mark.parametrize("kind", LOW)
def test_every_method_trains(kind: str, name: str, run: str) -> None:
    case = CASES[name]
    trainer = low_trainer(case, autocast=kind, quality_every=2, true_every=3, **RUNS[run])
    batches = [single(batch) for batch in case.batches(8)]
    start = tensors_of(trainer.model)
    seen: list[torch.dtype] = []
    trainer.bind(batches[0])
    hooks = [
        module.register_forward_hook(lambda module, args, out: seen.append(out.dtype))
        for module in trainer.model.modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d)
    ]
    for batch in batches:
        assert trainer.step(batch).isfinite()
    for hook in hooks:
        hook.remove()
    assert set(seen) == {LOW[kind]}
    assert all(t.dtype in (torch.float32, torch.int64, torch.bool) for t in tensors_of(trainer.model).values())
    end = tensors_of(trainer.model)
    assert all(bool(t.isfinite().all()) for t in end.values())
    moved = [n for n in dict(trainer.model.named_parameters()) if not torch.equal(start[n], end[n])]
    assert moved
    if run != "zero":
        assert len(moved) == len(list(trainer.model.named_parameters()))
    if kind == "bfloat16":
        assert trainer.guarded == {}
    else:  # the factor's start is meant to be too large for some: it comes down by a few halves, and stays
        assert trainer.precision.factor >= START / 2**6
    metrics = trainer.evaluate(batches[-2:])
    assert math.isfinite(metrics["loss"])


@functools.cache
def reached(run: str, autocast: str | None) -> float:
    """The loss after some steps."""
    batch = single(CASE.batches(1, last=64)[0])
    trainer = low_trainer(CASE, autocast=autocast, **RUNS[run])
    for _ in range(60):
        loss = trainer.step(batch)
    return loss.item()


@pytest.mark.parametrize("kind", LOW)
@pytest.mark.parametrize("run", ["backprop", "linear", "default", "mixed"])
def test_it_learns_about_as_well(run: str, kind: str) -> None:
    assert reached(run, kind) == pytest.approx(reached(run, None), rel=0.05)


@functools.cache
def with_factor(run: str, optimizer: Any, factor: float) -> tuple[dict[str, Any], dict[str, Any], list[Any]]:
    """The model, the estimators and the samples of a run in float64 whose factor stands."""
    case = CASES["gpt" if run in ("local", "warmup") else "mlp"]
    options = {"estimator": "linear", "optimizer": optimizer, **RUNS[run]}
    trainer = case_trainer(case, case.model(), **options, clip_norm=0.5, quality_every=2, true_every=2)
    trainer.precision.dtype, trainer.precision.factor = torch.float16, factor
    trainer.precision.autocast = Precision(None).autocast  # type: ignore[method-assign]
    for batch in case.batches(12):
        trainer.step(batch)
    assert trainer.precision.factor == factor
    samples = [s for q in trainer.quality for s in [*q.history, *q.true]]
    return tensors_of(trainer.model), tensors_of(trainer.net.estimators), samples


@pytest.mark.parametrize("optimizer", [sgd, momentum], ids=["sgd", "momentum"])
@pytest.mark.parametrize("factor", [2.0**10, 2.0**16, 3.0])
@pytest.mark.parametrize("run", [run for run in RUNS if run != "zero"])
def test_the_factor_is_taken_out_again(run: str, factor: float, optimizer: Any) -> None:
    """In float64, where it rounds nothing that matters: by SGD, which a factor that was left in would mislead."""
    without, found = with_factor(run, optimizer, 1.0), with_factor(run, optimizer, factor)
    for a, b in zip(without[:2], found[:2], strict=True):
        assert_same(a, b, rtol=1e-9)
    assert len(without[2]) == len(found[2])
    for one, other in zip(without[2], found[2], strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-9, nan_ok=True)


def test_the_factor_halves_when_a_gradient_overflows_and_that_update_is_not_made() -> None:
    trainer = low_trainer(CASE, autocast="float16", method="backprop")
    batches = [single(batch) for batch in CASE.batches(6)]
    trainer.bind(batches[0])
    assert trainer.precision.factor == START == 2.0**16
    trainer.step(batches[0])
    assert trainer.precision.factor == START
    hook = trainer.model[2].weight.register_hook(lambda g: g * torch.inf)
    for i, batch in enumerate(batches[1:4]):
        before = tensors_of(trainer.model)
        trainer.step(batch)
        assert trainer.precision.factor == START / 2 ** (i + 1)
        assert torch.equal(trainer.model[2].weight, before["2.weight"])
        assert not torch.equal(trainer.model[4].weight, before["4.weight"]), "what is whole is applied"
    hook.remove()
    trainer.step(batches[4])
    assert trainer.precision.factor == START / 8
    assert trainer.guarded == {"2": 3}


def test_a_factor_that_is_far_too_large_comes_down_and_the_run_goes_on() -> None:
    trainer = low_trainer(CASE, autocast="float16", method="backprop")
    batch = single(CASE.batches(1, last=64)[0])
    trainer.bind(batch)
    trainer.precision.factor = 2.0**24
    losses = [trainer.step(batch).item() for _ in range(60)]
    assert trainer.precision.factor < 2.0**24
    assert 0 < sum(trainer.guarded.values()) < 4 * 30
    assert losses[-1] < losses[0]


def test_small_gradients_that_float16_cannot_hold_survive_by_the_factor() -> None:
    loss = lambda out, y: torch.nn.functional.cross_entropy(out.float(), y) * 1e-6  # noqa: E731
    x, y = single(CASE.batches(1)[0])

    def gradient(factor: float) -> Tensor:
        trainer = trainer_of(CASE.model().float(), loss=loss, method="backprop", autocast="float16", optimizer=sgd)
        trainer.bind((x, y))
        trainer.precision.factor = factor
        start = trainer.model[6].bias.detach().clone()
        trainer.optimizers[0].param_groups[0]["lr"] = 1e6
        trainer.step((x, y))
        return trainer.model[6].bias.detach() - start

    exact = gradient(START)
    assert bool(exact.all())
    lost = gradient(1.0)
    assert (lost - exact).abs().max() > 0.02 * exact.abs().max()
    model = CASE.model().float()
    torch.nn.functional.cross_entropy(model(x), y).backward()
    torch.testing.assert_close(exact, -model[6].bias.grad, rtol=0.02, atol=1e-3)


def test_the_factors_rule() -> None:
    precision = Precision(torch.float16)
    for _ in range(PATIENCE - 1):
        precision.adapt(False)
    assert precision.factor == START
    precision.adapt(False)
    assert precision.factor == 2 * START
    for _ in range(PATIENCE - 1):
        precision.adapt(False)
    again = Precision(torch.float16)
    again.load_state_dict(json.loads(json.dumps(precision.state_dict())))
    again.adapt(True)
    assert (again.factor, again.good) == (START, 0)
    for _ in range(20 * PATIENCE):
        precision.adapt(False)
    assert precision.factor == LARGEST
    for _ in range(60):
        precision.adapt(True)
    assert precision.factor == 1.0
    other = Precision(torch.bfloat16)
    for overflowed in (True, False) * PATIENCE:
        other.adapt(overflowed)
    assert other.factor == Precision(None).factor == 1.0


@pytest.mark.parametrize("guard", [100.0, math.inf])
@pytest.mark.parametrize("options", [{}, {"clip_norm": 0.1}, {"optimizer_scope": "stage"}])
def test_the_factor_follows_whatever_else_is_asked_for(options: dict[str, Any], guard: float) -> None:
    trainer = low_trainer(CASE, autocast="float16", method="backprop", guard=guard, **options)
    batch = single(CASE.batches(1)[0])
    trainer.bind(batch)
    trainer.model[0].weight.register_hook(lambda g: g * torch.nan)
    trainer.step(batch)
    assert trainer.precision.factor == START / 2
    assert all(bool(t.isfinite().all()) for t in tensors_of(trainer.model).values())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"feedback_delay": 1}, "does not go with late gradients; use autocast='bfloat16'"),
        ({"method": "delayed(2)"}, "does not go with late gradients"),
        ({"method": "delayed(0)"}, "does not go with late gradients"),
        ({"guard": None}, "needs the guard"),
    ],
)
def test_what_does_not_go_with_float16_is_refused(options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match="autocast='float16'") as caught:
        trainer_of(autocast="float16", **options)
    assert says in one_line(caught)


@pytest.mark.parametrize("options", [{"feedback_delay": 2}, {"method": "delayed(1)"}, {"guard": None}], ids=str)
def test_all_of_that_goes_with_bfloat16(options: dict[str, Any]) -> None:
    trainer = low_trainer(CASE, autocast="bfloat16", **options)
    history = trainer.fit([single(batch) for batch in CASE.batches(8)])
    assert math.isfinite(history.epochs[0].train_loss)
    assert trainer.guarded == {}


@pytest.mark.parametrize("value", ["float8", "fp16", torch.float32, 16, True])
def test_a_dtype_that_is_none_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="autocast must be 'bfloat16', 'float16' or None") as caught:
        trainer_of(autocast=value)
    assert repr(value) in one_line(caught)


def test_autocast_is_off_again_after_every_step_and_evaluation() -> None:
    trainer = low_trainer(CASE, autocast="bfloat16")
    batch = single(CASE.batches(1)[0])
    trainer.step(batch)
    trainer.evaluate([batch])
    assert not torch.is_autocast_enabled("cpu")
    with pytest.raises(syngrad.SyngradError):
        trainer.step((batch[0][:, :3], batch[1]))
    assert not torch.is_autocast_enabled("cpu")
    assert trainer.configuration()["autocast"] == "bfloat16"
