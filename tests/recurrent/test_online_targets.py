"""What the traces gather, step by step, is what the λ-targets say from the end backwards, to the last digit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests._support.plain_online import CORES, HIDDEN, RATE, STEPS, N, data, made, offline, samples, sgd
from torch import Tensor

from syngrad.recurrent import OnlineBPLambda

ESTIMATORS = ["linear", "low_rank(rank=2)", "low_rank(rank=2, outputs=2)", "features(width=4)"]
HORIZONS = [(0.0, 1.0), (0.0, 0.7), (0.6, 1.0), (1.0, 1.0), (0.9, 0.8), (1.0, 0.5), (0.5, 0.0)]


def online(name: str, estimator: str, **options: Any) -> tuple[OnlineBPLambda, Tensor, Tensor, bool]:
    """A trainer whose estimator is somewhere already."""
    core, readout, first = made(name)
    trainer = OnlineBPLambda(
        core, estimator, readout=readout, optimizer=sgd, guard=None, update="call", quality_every=0, **options
    )
    inputs, targets = data(first)
    trainer.bind(inputs)
    with torch.no_grad():
        for p in trainer.estimator.parameters():
            if p.requires_grad:
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(3), dtype=p.dtype))
    return trainer, inputs, targets, first


def one(estimator: Any, state: Tensor) -> Tensor:
    with torch.no_grad():
        return estimator(state.unsqueeze(0))[0]


def expected_estimator(trainer: OnlineBPLambda, inputs: Tensor, targets: Tensor, first: bool) -> Tensor:
    """Σ_t (G^λ_t − ĝ(s_t))·∂ĝ(s_t)/∂W, the last of these by autograd, over all samples."""
    estimator = trainer.estimator
    total = torch.zeros_like(estimator.weight)
    for sample in samples(trainer.core.module, trainer.readout, first, inputs, targets):
        found = offline(sample, STEPS, lambda s: one(estimator, s), trainer.lam, trainer.gamma)
        for state, target, estimate in found:
            made = estimator(state.unsqueeze(0))[0]
            (moved,) = torch.autograd.grad(made, estimator.weight, target - estimate)
            total += moved
    return total


def check_estimator(name: str, estimator: str, lam: float, gamma: float, **options: Any) -> None:
    trainer, inputs, targets, first = online(name, estimator, lam=lam, gamma=gamma, **options)
    before = trainer.estimator.weight.detach().clone()
    wished = expected_estimator(trainer, inputs, targets, first)
    assert wished.abs().max() > 1e-3
    trainer.run(inputs, targets)
    # one step of SGD along the gradient of the squared error, the mean over samples and steps
    moved = (trainer.estimator.weight - before) / (2 * RATE / (N * STEPS))
    torch.testing.assert_close(moved.detach(), wished, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(("lam", "gamma"), HORIZONS)
@pytest.mark.parametrize("name", CORES)
def test_the_estimator_follows_the_lambda_targets(name: str, lam: float, gamma: float) -> None:
    check_estimator(name, "linear", lam, gamma)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("inject", [0.0, 0.1, 2.0])
def test_whatever_the_features_and_the_factor_in_the_core(estimator: str, inject: float) -> None:
    check_estimator("lstm cell", estimator, 0.8, 0.9, inject=inject)
    check_estimator("gru", estimator, 0.0, 0.9, inject=inject)


@pytest.mark.parametrize("inject", [1.0, 0.3])
@pytest.mark.parametrize("gamma", [1.0, 0.7])
@pytest.mark.parametrize("name", CORES)
def test_the_core_follows_its_loss_and_the_estimate(name: str, gamma: float, inject: float) -> None:
    """∂L_t/∂θ + c·γ·ĝ(s_t)·∂s_t/∂θ from s_{t−1} cut off, nothing injected at the end."""
    trainer, inputs, targets, first = online(name, "linear", gamma=gamma, inject=inject)
    core, readout, estimator = trainer.core.module, trainer.readout, trainer.estimator
    parameters = [*core.parameters(), *readout.parameters()]
    total = torch.zeros((), dtype=torch.float64)
    for sample in samples(core, readout, first, inputs, targets):
        vector = None
        for t in range(STEPS):
            loss, after = sample.step(t, vector)
            total = total + loss
            vector = after.detach()
            if t < STEPS - 1:
                total = total + inject * gamma * (one(estimator, vector) @ after)
    wished = [
        p - RATE * g for p, g in zip(parameters, torch.autograd.grad(total / (N * STEPS), parameters), strict=True)
    ]
    trainer.run(inputs, targets)
    for p, q in zip(parameters, wished, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", CORES)
def test_with_lambda_one_the_targets_are_those_of_full_back_propagation(name: str) -> None:
    """And with γ = 1, whatever the estimates in between, which cancel."""
    trainer, inputs, targets, first = online(name, "linear", lam=1.0)
    estimator = trainer.estimator
    before = estimator.weight.detach().clone()
    total = torch.zeros_like(before)
    for sample in samples(trainer.core.module, trainer.readout, first, inputs, targets):
        states, losses, vector = [], [], None
        for t in range(STEPS):
            loss, vector = sample.step(t, vector)
            losses.append(loss)
            states.append(vector)
        for t in range(STEPS - 1):
            (true,) = torch.autograd.grad(torch.stack(losses[t + 1 :]).sum(), states[t], retain_graph=True)
            state = states[t].detach()
            total += torch.outer(true - one(estimator, state), estimator.features(state.unsqueeze(0), None)[0])
    trainer.run(inputs, targets)
    moved = (estimator.weight.detach() - before) / (2 * RATE / (N * STEPS))
    torch.testing.assert_close(moved, total, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("cut", [1, 2])
def test_steps_given_piece_by_piece_are_the_same(cut: int) -> None:
    found = []
    for size in (STEPS, cut):
        core, readout, first = made("gru")
        trainer = OnlineBPLambda(core, "linear", readout=readout, optimizer=sgd, lam=0.7)
        inputs, targets = data(first)
        ends = torch.ones(N, dtype=torch.bool)
        for start in range(0, STEPS, size):
            stop = min(start + size, STEPS)
            trainer.step(inputs[:, start:stop], targets[:, start:stop], ends=ends if stop == STEPS else None)
        found.append([*core.parameters(), *readout.parameters(), trainer.estimator.weight])
    core, readout, _ = made("gru")
    trainer = OnlineBPLambda(core, "linear", readout=readout, optimizer=sgd, lam=0.7)
    trainer.run(inputs, targets)
    found.append([*core.parameters(), *readout.parameters(), trainer.estimator.weight])
    for other in found[1:]:
        for p, q in zip(found[0], other, strict=True):
            assert torch.equal(p, q)
    assert found[0][-1].shape == (HIDDEN, HIDDEN + 1)
