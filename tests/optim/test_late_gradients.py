"""Optimisers for gradients that come late, held against the same by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests._support.models import CASES, adam, assert_same, momentum, tensors_of
from tests._support.training import case_trainer, one_line, trainer_of

from syngrad.errors import ConfigError
from syngrad.optim.late_gradients import LateGradients

CASE = CASES["mlp"]
EVERYTHING = {"momentum": 0.99, "rate_updates": 5, "predict": True}


def nadam(params: Any) -> torch.optim.Optimizer:
    return torch.optim.NAdam(params, 3e-3)


@pytest.mark.parametrize("optimizer", [adam, momentum, nadam])
@pytest.mark.parametrize("method", ["backprop", "synthetic", "mixed(0.5)", "delayed(0)"])
def test_without_staleness_nothing_is_changed(method: str, optimizer: Any) -> None:
    model, reference = CASE.model(), CASE.model()
    late = case_trainer(CASE, model, method=method, optimizer=LateGradients(optimizer, **EVERYTHING))
    plain = case_trainer(CASE, reference, method=method, optimizer=optimizer)
    for batch in CASE.batches(8):
        late.step(batch)
        plain.step(batch)
    assert_same(tensors_of(model), tensors_of(reference), rtol=0.0)
    assert_same(tensors_of(late.net.estimators), tensors_of(plain.net.estimators), rtol=0.0)


@pytest.mark.parametrize(
    "options",
    [{"method": "synthetic", "feedback_delay": 3}, {"method": "delayed(2)", "warmup": 8}],
    ids=["fit", "warm-up"],
)
def test_what_only_estimators_wait_for_is_no_staleness_of_the_weights(options: dict[str, Any]) -> None:
    model, reference = CASE.model(), CASE.model()
    late = case_trainer(CASE, model, optimizer=LateGradients(adam, **EVERYTHING), **options)
    plain = case_trainer(CASE, reference, optimizer=adam, **options)
    for batch in CASE.batches(8):
        late.step(batch)
        plain.step(batch)
    assert_same(tensors_of(model), tensors_of(reference), rtol=0.0)


@pytest.mark.parametrize(
    ("options", "momenta", "rates"),
    [
        ({"momentum": 0.99}, [0.99, 0.99, 0.99, 0.9], [1.0, 1.0, 1.0, 1.0]),
        # β₁ + τ (0.99 − β₁)/P, with τ = 6, 4, 2, 0 of four stages; never beyond 0.99
        ({"momentum": "by staleness"}, [0.99, 0.99, 0.945, 0.9], [1.0, 1.0, 1.0, 1.0]),
        ({"rate_updates": 4}, [0.9] * 4, [6.0**-0.5, 4.0**-0.5, 2.0**-0.5, 1.0]),
    ],
)
def test_each_stage_steps_by_its_own_staleness(
    options: dict[str, Any], momenta: list[float], rates: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As seen by the optimiser in its step, and put back after it, so that schedules see their own numbers."""
    made = trainer_of(method="delayed(2)", optimizer=LateGradients(adam, **options))
    batches = CASE.batches(3)
    made.bind(batches[0])
    seen: list[tuple[float, float]] = []
    for optimizer in made.optimizers:
        step = optimizer.step

        def note(optimizer: Any = optimizer, step: Any = step) -> None:
            group = optimizer.param_groups[0]
            seen.append((group["betas"][0], group["lr"] / 3e-3))
            step()

        monkeypatch.setattr(optimizer, "step", note)
    for batch in batches:
        seen.clear()
        made.step(batch)
    assert [beta for beta, _ in seen] == pytest.approx(momenta)
    assert [rate for _, rate in seen] == pytest.approx(rates)
    for optimizer in made.optimizers:
        assert optimizer.param_groups[0]["betas"][0] == 0.9
        assert optimizer.param_groups[0]["lr"] == 3e-3


def test_predicted_weights_are_those_a_few_steps_on() -> None:
    """One cut, plain descent by hand: run at w + d·(w − w₋), update w by that gradient d minibatches later."""
    model, twin = CASE.model(), CASE.model()
    delay, rate = 2, 0.02
    sgd = LateGradients(lambda params: torch.optim.SGD(params, rate), predict=True)
    options = {"optimizer": sgd, "estimator": "zero", "quality_every": 0, "true_every": 0}
    made = trainer_of(model, ["4"], method=f"delayed({delay})", **options)
    early, late_part = list(twin[:4].parameters()), list(twin[4:].parameters())
    moved = [torch.zeros_like(p) for p in early]
    flights: list[tuple[Any, ...]] = []
    for t, (x, y) in enumerate(CASE.batches(10)):
        made.step((x, y))
        shifted = [(p.detach() + delay * m).requires_grad_() for p, m in zip(early, moved, strict=True)]
        names = [name for name, _ in twin[:4].named_parameters()]
        h = torch.func.functional_call(twin[:4], dict(zip(names, shifted, strict=True)), (x,))
        m = h.detach().requires_grad_()
        gradients = torch.autograd.grad(CASE.loss(twin[4:](m), y), [m, *late_part])
        flights.append((h, shifted, gradients[0]))
        with torch.no_grad():
            for p, g in zip(late_part, gradients[1:], strict=True):
                p -= rate * g
        if t >= delay:
            h, shifted, g = flights[t - delay]
            found = torch.autograd.grad(h, shifted, g)
            with torch.no_grad():
                for k, (p, each) in enumerate(zip(early, found, strict=True)):
                    p -= rate * each
                    moved[k] = -rate * each
        assert_same(tensors_of(model), tensors_of(twin), rtol=1e-10)


def test_what_is_kept_for_predictions_survives_a_resume(tmp_path: Path) -> None:
    def made() -> Any:
        return trainer_of(CASE.model(), method="delayed(2)", optimizer=LateGradients(adam, **EVERYTHING))

    whole, first, second = made(), made(), made()
    batches = CASE.batches(12)
    for batch in batches:
        whole.step(batch)
    for batch in batches[:6]:
        first.step(batch)
    second.load(first.save(tmp_path))
    for batch in batches[6:]:
        second.step(batch)
    assert_same(tensors_of(whole.model), tensors_of(second.model), rtol=0.0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"momentum": 1.0}, "momentum must be a number in [0, 1), 'by staleness' or None, got 1.0"),
        ({"momentum": "long"}, "got 'long'"),
        ({"rate_updates": 0}, "rate_updates must be"),
        ({"optimizer": "nadamm"}, "nadam"),
    ],
)
def test_what_cannot_be_used_is_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        LateGradients(**options)
    assert said in one_line(error)


def test_a_momentum_that_the_optimizer_does_not_have_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        trainer_of(optimizer=LateGradients("adagrad(lr=0.1)", momentum=0.99)).step(CASE.batches(1)[0])
    assert "momentum=0.99: Adagrad has none" in one_line(error)
