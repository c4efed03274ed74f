"""What every gradient estimator keeps to when it learns: which loss it descends, and that batches and factors fit."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from tests._support.estimator_cases import (
    SOBOLEV,
    N,
    assert_same,
    every,
    gradients,
    in_turn,
    learn,
    made,
    problem,
    sample_by_sample,
)

from syngrad.estimators import Head, Zero


@every
def test_fitting_lowers_its_error_and_moves_every_parameter(name: str, kind: str, context: str) -> None:
    p = problem(kind, context)
    estimator = made(name, p, random=False)
    if isinstance(estimator, Zero):
        assert not list(estimator.parameters())
        assert not estimator.wants_feedback
        return
    start = {n: q.detach().clone() for n, q in estimator.named_parameters()}
    assert all(q.requires_grad for q in estimator.parameters())
    optimizer = torch.optim.Adam(estimator.parameters(), 0.02)

    def error() -> float:
        if isinstance(estimator, Head) and estimator.derivative == 0:
            with torch.no_grad():
                return estimator.value(p.h, p.context).item()
        predicted = estimator(p.h, p.context).detach()
        rest = (p.scale * predicted - p.received).square().sum().item()
        if not isinstance(estimator, Head):
            return rest
        # what a head minimises: its loss, and the rest relative to what came back
        relative = estimator.derivative * rest / p.received.square().sum().item()
        return estimator.value(p.h, p.context).item() + relative

    first = error()
    for _ in range(60):
        optimizer.zero_grad()
        learn(estimator, p)
        optimizer.step()
    assert error() < 0.97 * first
    unused = {"module.shift"} if context == "none" else set()
    still = [n for n, q in estimator.named_parameters() if torch.equal(q, start[n]) and n not in unused]
    assert not still, f"never trained: {still}"


@sample_by_sample
def test_its_gradient_does_not_move_with_the_batch_size(name: str, kind: str, context: str) -> None:
    p = problem(kind, context)
    once, twice = made(name, p), made(name, p)
    learn(once, p)
    learn(twice, p.twice())
    assert_same(gradients(once), gradients(twice))


@sample_by_sample
def test_parts_of_a_batch_accumulate_to_the_whole(name: str, kind: str, context: str) -> None:
    p = problem(kind, context)
    whole, parts = made(name, p), made(name, p)
    rows_of = [slice(0, 2), slice(2, N)]
    if isinstance(whole, Head) and whole.derivative:  # its running mean of ‖δ‖² takes in every part: let them be alike
        p, rows_of = p.twice(), [slice(0, N), slice(N, 2 * N)]
    learn(whole, p)
    for rows in rows_of:
        learn(parts, p.part(rows))
    assert_same(gradients(whole), gradients(parts))


@in_turn
def test_a_loss_factor_is_carried_exactly(name: str, kind: str, context: str) -> None:
    """A GradScaler's factor in `scale` multiplies the estimate and every .grad, bit for bit for a power of two."""
    p = problem(kind, context)
    plain, scaled = made(name, p), made(name, p)
    estimate = learn(plain, p)
    assert torch.equal(learn(scaled, p.times(1024.0)), estimate * 1024)
    expected = gradients(plain)
    assert expected.keys() == gradients(scaled).keys()
    for key, grad in gradients(scaled).items():
        assert torch.equal(grad, expected[key] * 1024), key


@in_turn
def test_what_is_kept_is_what_would_be_made_again(name: str, kind: str, context: str) -> None:
    p = problem(kind, context)
    kept, again = made(name, p), made(name, p)
    a, b = learn(kept, p, keep=True), learn(again, p, keep=False)
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert_same(gradients(kept), gradients(again))


@every
def test_the_gradient_is_that_of_its_documented_loss(name: str, kind: str, context: str) -> None:
    """scale·Σ‖δ̂ − δ‖² for a regressor; for a head its loss, and the same times derivative/ρ, at first ρ = mean ‖δ‖²."""
    p = problem(kind, context)
    estimator, twin = made(name, p), made(name, p)
    learn(estimator, p)
    if name == "zero":
        return
    total = p.h.new_zeros(())
    if isinstance(twin, Head):
        per_sample = p.binding.count(p.context) if p.binding.count else float(N)
        total = total + twin.value(p.h, p.context) * per_sample * p.scale
    rho = (p.received / p.scale).square().sum() / N
    weight = twin.derivative / rho if isinstance(twin, Head) else 1.0
    if weight:
        total = total + weight * p.scale * (twin(p.h, p.context) - p.received / p.scale).square().sum()
    expected = torch.autograd.grad(total, list(twin.parameters()), allow_unused=True)
    for (key, q), grad in zip(estimator.named_parameters(), expected, strict=True):
        want = torch.zeros_like(q) if grad is None else grad
        got = torch.zeros_like(q) if q.grad is None else q.grad
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11, msg=lambda m, k=key: f"{k}: {m}")


@in_turn
def test_estimate_and_fit_work_whether_gradients_are_on_or_off(name: str, kind: str, context: str) -> None:
    """An estimator that silently never trains because the graph was off is a fault of other libraries."""
    p = problem(kind, context)
    on, off = made(name, p), made(name, p)
    a = learn(on, p)
    with torch.no_grad():
        b = learn(off, p)
        assert not torch.is_grad_enabled()
    assert torch.equal(a, b)
    assert_same(gradients(on), gradients(off))
    assert name == "zero" or gradients(on)


@in_turn
def test_a_frozen_estimator_gathers_no_gradient(name: str, kind: str, context: str) -> None:
    p = problem(kind, context)
    estimator = made(name, p).requires_grad_(False)
    learn(estimator, p)
    learn(estimator, p, keep=False)
    assert not gradients(estimator)


@pytest.mark.parametrize("name", SOBOLEV)
def test_nothing_coming_back_is_no_catastrophe(name: str) -> None:
    """Below `zero`, or an estimator that has not begun, the received gradient is exactly zero."""
    p = problem("vector", "labels")
    p = replace(p, received=torch.zeros_like(p.h))
    estimator, value_only = made(name, p), made(name, p)
    for keep in (True, False):
        learn(estimator, p, keep)
        value_only.estimate(p.h, p.context, p.scale, False)
    assert estimator.power == 0
    for key, grad in gradients(estimator).items():
        assert torch.isfinite(grad).all()
        assert torch.equal(grad, gradients(value_only)[key]), f"{key}: something was fitted to nothing"


@pytest.mark.parametrize("name", SOBOLEV)
def test_the_derivative_fit_is_weighted_by_a_running_power(name: str) -> None:
    """2·derivative/(scale·ρ); ρ <- max(ρ + 0.1·(power − ρ), power), power = Σ‖δ‖²/n: it grows at once, falls slowly."""
    p = problem("vector", "labels")
    estimator = made(name, p)
    rho = 0.0
    for factor in (0.0, 1.0, 0.1, 0.01, 3.0, 0.0, 2.0):
        now = replace(p, received=p.received * factor)
        fitted, value_only, twin = copy.deepcopy(estimator), copy.deepcopy(estimator), copy.deepcopy(estimator)
        delta = now.received / p.scale
        power = delta.square().sum().item() / N
        rho = max(0.9 * rho + 0.1 * power, power)
        learn(estimator, now)
        assert estimator.power.item() == pytest.approx(rho, rel=1e-12)

        learn(fitted, now)
        value_only.estimate(p.h, p.context, p.scale, False)
        miss = p.scale * (twin(p.h, p.context) - delta).square().sum() * (estimator.derivative / rho if rho else 0.0)
        expected = torch.autograd.grad(miss, list(twin.parameters()), allow_unused=True)
        for (key, q), grad in zip(fitted.named_parameters(), expected, strict=True):
            value = value_only.get_parameter(key).grad
            want = torch.zeros_like(q) if grad is None else grad
            torch.testing.assert_close(q.grad - value, want, rtol=1e-10, atol=1e-12, msg=lambda m, k=key: f"{k}: {m}")
        estimator.zero_grad()


@pytest.mark.parametrize("name", SOBOLEV)
def test_the_running_power_goes_with_the_state(name: str) -> None:
    p = problem("vector", "labels")
    estimator, loaded = made(name, p), made(name, p)
    learn(estimator, p)
    assert estimator.power > 0
    loaded.load_state_dict(estimator.state_dict())
    estimator.zero_grad()
    less = replace(p, received=p.received * 0.1)  # below the running power, so that this is what weighs
    learn(estimator, less)
    learn(loaded, less)
    assert_same(gradients(loaded), gradients(estimator))


@pytest.mark.parametrize("name", SOBOLEV)
def test_half_precision_feedback_of_any_size_is_taken(name: str) -> None:
    """A GradScaler's factor of 2¹⁶ and a gradient in float16: its square lies outside float16."""
    p = problem("vector", "labels", torch.float32)
    half = replace(p.binding, dtype=torch.float16)
    a, b = made(name, replace(p, binding=half)), made(name, replace(p, binding=half))
    learn(a, replace(p, h=p.h.half(), received=p.received.half()))
    big = p.times(2.0**14)
    learn(b, replace(big, h=p.h.half(), received=big.received.half()))
    for key, grad in gradients(a).items():
        torch.testing.assert_close(
            gradients(b)[key] / 2**14, grad, rtol=0.05, atol=0.02, msg=lambda m, k=key: f"{k}: {m}"
        )
