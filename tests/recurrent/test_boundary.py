"""What is injected at a boundary and what the estimator is fitted to, against a twin written by hand and an oracle."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests._support.small_recurrent import (
    CLASSES,
    HIDDEN,
    IN,
    STEPS,
    Own,
    Recorder,
    alike,
    data,
    lstm,
    one,
    sgd,
    total,
    weights,
)
from torch import Tensor, nn
from torch.nn import functional as F

import syngrad
from syngrad.estimators.base import Binding, GradientEstimator
from syngrad.estimators.regressors import Linear

F_ = 2 * HIDDEN
LATE = 0.7


def twin(window: int, inject: float, discount: float, rounds: int) -> tuple[list[Tensor], list[Tensor]]:
    """Weights of core and readout, and of a linear estimator, as the equations of boundary.py have it, step by step."""
    core, readout = lstm()
    own = [*core.parameters(), *readout.parameters()]
    w, b = torch.zeros(F_, F_, dtype=torch.float64), torch.zeros(F_, dtype=torch.float64)
    inputs, targets = data()
    n = len(inputs)
    for _ in range(rounds):
        state: Any = None
        before: Tensor | None = None
        for x, y in zip(inputs.split(window, 1), targets.split(window, 1), strict=True):
            start = None
            if state is not None:
                start = [s.detach().requires_grad_() for s in state]
            out, end = core(x, None if start is None else tuple(start))
            loss = F.cross_entropy(readout(out).reshape(-1, CLASSES), y.reshape(-1))
            scale = 1 / (n * x.shape[1])
            vector = torch.cat([end[0][0], end[1][0]], 1).detach()
            last = x is inputs.split(window, 1)[-1] or torch.equal(x, inputs[:, STEPS - x.shape[1] :])
            estimate = torch.zeros_like(vector) if last else (vector @ w.t() + b) * scale

            def through(factor: float, estimate: Tensor = estimate, end: Any = end) -> Tensor:
                h, c = (estimate * factor).split(HIDDEN, 1)
                return (h * end[0][0]).sum() + (c * end[1][0]).sum()

            gradients = torch.autograd.grad(loss + through(inject), own, retain_graph=True)
            w_grad, b_grad = torch.zeros_like(w), torch.zeros_like(b)
            if start is not None and before is not None:
                back = torch.autograd.grad(loss + through(discount), start)
                received = torch.cat([back[0][0], back[1][0]], 1)
                residual = 2 * ((before @ w.t() + b) * scale - received)
                w_grad, b_grad = w_grad + residual.t() @ before, b_grad + residual.sum(0)
            if last:
                residual = 2 * (vector @ w.t() + b) * scale
                w_grad, b_grad = w_grad + residual.t() @ vector, b_grad + residual.sum(0)
            with torch.no_grad():
                for p, g in zip(own, gradients, strict=True):
                    p.sub_(g, alpha=0.1)
                w.sub_(w_grad, alpha=0.1)
                b.sub_(b_grad, alpha=0.1)
            state, before = [s.detach() for s in end], vector
    return [p.detach() for p in own], [w, b]


@pytest.mark.parametrize(("inject", "discount"), [(1.0, None), (0.1, None), (0.1, 1.0), (0.0, 0.9)])
@pytest.mark.parametrize("window", [3, 5])
def test_it_equals_a_twin_by_hand(window: int, inject: float, discount: float | None) -> None:
    expected, fitted = twin(window, inject, inject if discount is None else discount, rounds=4)
    core, readout = lstm()
    bptt = syngrad.TruncatedBPTT(
        core, "linear", window, readout=readout, optimizer=sgd, guard=None, inject=inject, discount=discount
    )
    for _ in range(4):
        bptt.run(*data())
    alike(weights(core, readout), expected)
    assert isinstance(bptt.estimator, Linear)
    alike([bptt.estimator.map.weight.detach(), bptt.estimator.map.bias.detach()], fitted)
    assert float(fitted[0].abs().max()) > 1e-4


class Oracle(GradientEstimator):
    """Gives what it was told, boundary by boundary."""

    def __init__(self, told: list[Tensor]) -> None:
        super().__init__()
        self.told, self.place = told, 0
        self.received: list[Tensor] = []

    def build(self, binding: Binding) -> None:
        pass

    def estimate(self, h: Tensor, context: Any, scale: float, keep: bool) -> tuple[Tensor, Any]:
        self.place += 1
        return self.told[self.place - 1] * scale, None

    def fit(self, h: Tensor, context: Any, received: Tensor, scale: float, kept: Any = None) -> None:
        self.received.append(received / scale)


def boundaries(window: int) -> tuple[list[Tensor], list[Tensor]]:
    """(gradient of every weight by full back-propagation, the true gradient at every boundary and 0 at the end)."""
    core, readout = lstm()
    inputs, targets = data()
    state: Any = None
    seen, outputs = [], []
    for x in inputs.split(window, 1):
        out, state = core(x, state)
        vector = torch.cat([state[0][0], state[1][0]], 1)
        vector.retain_grad()
        seen.append(vector)
        state = tuple(part[None].contiguous() for part in vector.split(HIDDEN, 1))
        outputs.append(out)
    total(readout(torch.cat(outputs, 1)), targets).backward()
    true = [v.grad if v.grad is not None else torch.zeros_like(v) for v in seen]
    return [p.grad for p in (*core.parameters(), *readout.parameters()) if p.grad is not None], true


@pytest.mark.parametrize("window", [1, 4, 5])
def test_with_an_oracle_it_is_full_back_propagation(window: int) -> None:
    expected, true = boundaries(window)
    core, readout = lstm()
    oracle = Oracle(true)
    bptt = syngrad.TruncatedBPTT(
        core, lambda: oracle, window, readout=readout, optimizer=Recorder, loss=total, loss_count=one, guard=None
    )
    bptt.run(*data())
    recorder = bptt.optimizers[0]
    assert isinstance(recorder, Recorder)
    alike([recorder.sum_of(p) for p in (*core.parameters(), *readout.parameters())], expected)
    # what came back at a boundary is the truth, where what was injected at the next one is
    alike(oracle.received[:-1], true[:-1])
    assert float(oracle.received[-1].abs().max()) == 0.0


def naive_targets(window: int, lam: float, guess: Tensor) -> list[Tensor]:
    """G_{k−1} = ∂L_k/∂s_{k−1} + [(1−λ)·Ĝ + λ·G_k]·∂s_k/∂s_{k−1}, backwards, with a constant Ĝ behind the last one."""
    core, readout = lstm()
    inputs, targets = data()
    pieces = list(zip(inputs.split(window, 1), targets.split(window, 1), strict=True))
    state: Any = None
    starts, ends, losses = [], [], []
    for x, y in pieces:
        start = None if state is None else tuple(s.detach().requires_grad_() for s in state)
        out, state = core(x, start)
        starts.append(start)
        ends.append(state)
        losses.append(total(readout(out), y))
    found: list[Tensor] = []
    behind = guess
    for start, end, loss in zip(reversed(starts), reversed(ends), reversed(losses), strict=True):
        if start is None:
            break
        h, c = behind.split(HIDDEN, 1)
        back = torch.autograd.grad(loss + (h * end[0][0]).sum() + (c * end[1][0]).sum(), start)
        found.insert(0, torch.cat([back[0][0], back[1][0]], 1))
        behind = torch.lerp(guess, found[0], lam)
    return found


@pytest.mark.parametrize("lam", [0.0, 0.6])
def test_the_targets_of_a_span_are_lambda_returns(lam: float) -> None:
    guess = torch.full((3, F_), 0.3, dtype=torch.float64)
    expected = naive_targets(4, lam, guess)
    core, readout = lstm()
    oracle = Oracle([guess] * 9)
    bptt = syngrad.TruncatedBPTT(
        core,
        lambda: oracle,
        4,
        readout=readout,
        optimizer=Recorder,
        loss=total,
        loss_count=one,
        guard=None,
        horizon=3,
        lam=lam,
    )
    bptt.step(*data())
    alike(oracle.received[::-1], expected)


def test_a_span_with_lambda_one_is_one_long_window() -> None:
    results = []
    for window, horizon, lam in ((4, 3, 1.0), (12, 1, 0.0)):
        core, readout = lstm()
        bptt = syngrad.TruncatedBPTT(
            core, "zero", window, readout=readout, optimizer=sgd, guard=None, horizon=horizon, lam=lam
        )
        bptt.run(*data())
        results.append(weights(core, readout))
    alike(*results)


def test_the_factor_may_follow_a_schedule() -> None:
    core, readout = lstm()
    seen = []

    def schedule(count: int) -> float:
        seen.append(count)
        return 0.1 * count

    bptt = syngrad.TruncatedBPTT(core, "linear", 4, readout=readout, optimizer=sgd, inject=schedule)
    bptt.run(*data())
    assert set(seen) == {0, 1, 2}
    assert bptt.inject == pytest.approx(0.3)


def test_an_estimator_sees_the_context() -> None:
    core, readout = lstm()
    given = []

    class Looks(nn.Module):
        def forward(self, h: Tensor, context: Tensor) -> Tensor:
            given.append(context.clone())
            return torch.zeros_like(h)

    inputs, targets = data()
    togo = torch.arange(STEPS - 1, -1, -1, dtype=torch.float64).expand(3, -1).unsqueeze(2)
    bptt = syngrad.TruncatedBPTT(core, Looks, 5, readout=readout, optimizer=sgd)
    bptt.run(inputs, targets, context=togo)
    assert [float(each[0, 0]) for each in given if len(each) == 3][:1] == [7.0]
    assert {float(each[0, 0]) for each in given} == {7.0, 2.0, 0.0}


def test_what_crosses_boundaries_teaches_what_no_window_sees() -> None:
    """The first step's input decides the last step's label, and noise lies between."""
    found, n, steps = {}, 32, 10
    for estimator in ("zero", "linear"):
        torch.manual_seed(5)
        core, readout = nn.GRU(3, 12, batch_first=True), nn.Linear(12, 2)
        bptt = syngrad.TruncatedBPTT(
            core,
            estimator,
            2,
            readout=readout,
            optimizer=lambda params: torch.optim.Adam(params, 1e-2),
            inject=0.1,
            discount=1.0,
            classes=2,
        )
        generator = torch.Generator().manual_seed(2)
        losses = []
        for step in range(250):
            labels = torch.randint(2, (n,), generator=generator)
            inputs = torch.zeros(n, steps, 3)
            inputs[:, 0, :2] = F.one_hot(labels, 2).float()
            inputs[:, 1:, 2] = 2 * torch.randn(n, steps - 1, generator=generator)
            targets = torch.full((n, steps), -100)
            targets[:, -1] = labels
            bptt.run(inputs, targets, context=labels[:, None].expand(-1, steps))
            if step >= 230:
                losses.append(bptt.evaluate(inputs, targets).item())
        found[estimator] = sum(losses) / 20
    assert found["linear"] < 0.1 < 0.6 < found["zero"]


def test_any_core_can_be_given_an_estimator() -> None:
    core = Own().double()
    bptt = syngrad.TruncatedBPTT(core, "mlp(batch_norm=False)", 4, readout=nn.Linear(HIDDEN, CLASSES).double())
    losses = [bptt.run(*data()).item() for _ in range(40)]
    assert losses[-1] < losses[0] - 0.1
    assert bptt.estimator is not None
    assert bptt.estimator.binding is not None
    assert bptt.estimator.binding.features == 2 * HIDDEN
    assert IN == 4
