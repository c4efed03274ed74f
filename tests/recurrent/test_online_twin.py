"""Weights that move at every step: a naive twin, a window of one step, and no estimate at all."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests._support.plain_online import CLASSES, CORES, RATE, N, data, made, samples, sgd
from torch import Tensor
from torch.nn import functional as F

import syngrad
from syngrad.recurrent import OnlineBPLambda


def adam(params: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(params, 0.01)


def naive(name: str, lam: float, gamma: float, inject: float, rounds: int, steps: int) -> list[Tensor]:
    """As the paper writes it, with the trace (F, F, F + 1) of every sample in full and Jacobians by definition."""
    core, readout, first = made(name)
    parameters = [*core.parameters(), *readout.parameters()]
    inputs, targets = data(first, steps=steps)
    each = samples(core, readout, first, inputs, targets)
    with torch.no_grad():
        size = each[0].step(0, None)[1].numel()
    weight = torch.zeros(size, size + 1, dtype=torch.float64)

    def phi(state: Tensor) -> Tensor:
        return torch.cat([state, state.new_ones(1)])

    for _ in range(rounds):
        vectors: list[Any] = [None] * N
        traces = [torch.zeros(size, size, size + 1, dtype=torch.float64) for _ in each]
        for t in range(steps):
            bootstrap = 1.0 if t < steps - 1 else 0.0
            total, moved, new = torch.zeros((), dtype=torch.float64), torch.zeros_like(weight), []
            for i, sample in enumerate(each):
                loss, after = sample.step(t, vectors[i])
                guess = bootstrap * gamma * (weight @ phi(after.detach()))
                total = total + (loss + inject * guess @ after) / N
                if vectors[i] is not None:
                    of = torch.autograd.functional.jacobian(lambda v, s=sample: s.step(t, v), vectors[i])  # noqa: B023
                    delta = of[0] + guess @ of[1] - weight @ phi(vectors[i])
                    moved += torch.einsum("i,iaj->aj", delta, traces[i])
                    traces[i] = gamma * lam * torch.einsum("ik,kaj->iaj", of[1], traces[i])
                new.append(after.detach())
                traces[i] += torch.einsum("ia,j->iaj", torch.eye(size, dtype=torch.float64), phi(new[i]))
            for p, g in zip(parameters, torch.autograd.grad(total, parameters), strict=True):
                p.data -= RATE * g
            weight += RATE * 2 / N * moved
            vectors = new
    return [*(p.detach() for p in parameters), weight]


@pytest.mark.parametrize(("lam", "gamma", "inject"), [(0.9, 0.9, 1.0), (0.5, 1.0, 0.3), (0.0, 0.8, 1.0)])
@pytest.mark.parametrize("name", CORES)
def test_it_is_what_one_writes_by_hand(name: str, lam: float, gamma: float, inject: float) -> None:
    wished = naive(name, lam, gamma, inject, rounds=2, steps=4)
    core, readout, first = made(name)
    online = OnlineBPLambda(
        core, lam=lam, gamma=gamma, inject=inject, readout=readout, optimizer=sgd, guard=None, quality_every=0
    )
    inputs, targets = data(first, steps=4)
    for _ in range(2):
        online.run(inputs, targets)
    found = [*core.parameters(), *readout.parameters(), online.estimator.weight]
    for p, q in zip(found, wished, strict=True):
        torch.testing.assert_close(p.detach(), q, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("gamma", "inject"), [(1.0, 1.0), (0.8, 1.0), (0.8, 0.25), (1.0, 0.0)])
@pytest.mark.parametrize("name", ["lstm", "gru", "own"])
def test_with_lambda_zero_it_is_a_window_of_one_step(name: str, gamma: float, inject: float) -> None:
    """γ and the factor are then the window's discount and injected factor; with Adam, over many steps of a stream."""
    found = []
    for windows in (True, False):
        core, readout, first = made(name)
        shared: Any = {"readout": readout, "optimizer": adam, "clip_norm": 0.5, "estimator_lr": 2.0}
        trainer: Any = (
            syngrad.TruncatedBPTT(core, "linear", 1, inject=inject * gamma, discount=gamma, **shared)
            if windows
            else OnlineBPLambda(core, "linear", lam=0.0, gamma=gamma, inject=inject, **shared)
        )
        time = int(first)
        losses = []
        inputs, targets = data(first, steps=12)
        targets[(slice(None),) * time + (slice(3, 9),)] = -100  # asked for nothing, an optimiser's memory goes on
        for x, y in zip(inputs.split(1, time), targets.split(1, time), strict=True):
            losses.append(trainer.step(x, y))
        estimator = dict(trainer.estimator.named_parameters())
        parts = (
            [estimator["map.weight"], estimator["map.bias"]]
            if windows
            else estimator["weight"].split([estimator["weight"].shape[0], 1], 1)
        )
        found.append([*losses, *core.parameters(), *readout.parameters(), parts[0], parts[1].reshape(-1)])
    assert found[0][-1].abs().max() > 0
    for p, q in zip(*found, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=0, atol=1e-12)


def test_without_an_estimate_it_is_truncated_after_one_step() -> None:
    found = []
    for windows in (True, False):
        core, readout, first = made("lstm")
        shared: Any = {"readout": readout, "optimizer": adam}
        trainer: Any = (
            syngrad.TruncatedBPTT(core, "zero", 1, **shared) if windows else OnlineBPLambda(core, "zero", **shared)
        )
        inputs, targets = data(first)
        for _ in range(2):
            trainer.run(inputs, targets)
        found.append([*core.parameters(), *readout.parameters()])
    assert trainer.traces is None
    for p, q in zip(*found, strict=True):
        torch.testing.assert_close(p.detach(), q.detach(), rtol=0, atol=1e-12)


def test_an_estimate_of_zero_injects_nothing() -> None:
    """The estimator starts at zero: the first call's core update is that of losses cut off after one step."""
    found = []
    for estimator in ("zero", "linear"):
        core, readout, first = made("gru")
        online = OnlineBPLambda(core, estimator, readout=readout, optimizer=sgd, update="call")
        online.run(*data(first))
        found.append([*core.parameters(), *readout.parameters()])
    for p, q in zip(*found, strict=True):
        assert torch.equal(p, q)


def test_it_learns_what_one_step_cannot() -> None:
    """The label is the first input's sign, asked for after some of noise: only what reaches back helps."""

    def accuracy(estimator: str) -> float:
        torch.manual_seed(0)
        core, readout = torch.nn.GRU(2, 6, batch_first=True), torch.nn.Linear(6, 2)
        online = OnlineBPLambda(
            core, estimator, lam=0.9, readout=readout, optimizer=lambda p: torch.optim.Adam(p, 0.02), quality_every=0
        )
        generator = torch.Generator().manual_seed(0)
        for _ in range(120):
            online.run(*signs(16, generator))
        inputs, targets = signs(500, generator)
        with torch.no_grad():
            scores = readout(core(inputs)[0])[:, -1]
        return (scores.argmax(1) == targets[:, -1]).double().mean().item()

    def signs(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(n, 4, 2, generator=generator)
        inputs[:, :, 1] = torch.tensor([1.0, 0.0, 0.0, 0.0])
        inputs[:, 0, 0] = inputs[:, 0, 0].sign()
        targets = torch.full((n, 4), -100)
        targets[:, -1] = (inputs[:, 0, 0] > 0).long()
        return inputs, targets

    assert accuracy("linear") > 0.95
    assert accuracy("zero") < 0.75


def test_the_loss_is_the_mean_over_all_steps() -> None:
    core, readout, first = made("gru")
    online = OnlineBPLambda(core, readout=readout, optimizer=lambda p: torch.optim.SGD(p, 0.0))
    inputs, targets = data(first)
    targets[0, 2:] = -100
    with torch.no_grad():
        wished = F.cross_entropy(readout(core(inputs)[0]).reshape(-1, CLASSES), targets.reshape(-1))
    torch.testing.assert_close(online.run(inputs, targets).double(), wished, rtol=1e-6, atol=0)
    torch.testing.assert_close(online.evaluate(inputs, targets), wished)
