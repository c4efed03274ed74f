"""The auxiliary task in closed form, against autograd on the loss as its module writes it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests._support.small_recurrent import CLASSES, HIDDEN, Recorder, alike, data, lstm
from torch import Tensor, nn
from torch.nn import functional as F

import syngrad
from syngrad.estimators.base import Binding, GradientEstimator
from syngrad.recurrent.auxiliary import Auxiliary

F_ = 2 * HIDDEN


class Fixed(GradientEstimator):
    """An estimate that is not zero and learns nothing: tanh of the state."""

    wants_feedback = False

    def build(self, binding: Binding) -> None:
        pass

    def forward(self, h: Tensor, context: Any = None) -> Tensor:
        return torch.tanh(h)


@pytest.mark.parametrize("factor", [1.0, 8.0])
def test_the_gradients_are_those_of_the_task(factor: float) -> None:
    torch.manual_seed(0)
    task, weight = Auxiliary(0.3), 0.3
    power = None
    for _ in range(3):
        output = torch.randn(4, HIDDEN, dtype=torch.float64, requires_grad=True)
        estimate = torch.randn(4, F_, dtype=torch.float64)
        if task.head is None:
            task.build(output, F_)
            assert task.head is not None
            nn.init.normal_(task.head.weight)
        head = task.head
        head.weight.grad = head.bias.grad = None
        root, gradient = task.fit(output, estimate, factor)
        assert root is output
        now = estimate.square().sum(1).mean()
        power = now if power is None else power.lerp(now, 0.1)
        loss = factor * weight * (head(output) - estimate).square().sum(1).mean() / power
        expected = torch.autograd.grad(loss, [head.weight, head.bias, output])
        found = [head.weight.grad, head.bias.grad, gradient]
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-9)  # the running mean is kept in float32


def test_it_trains_the_core_together_with_the_windows_loss() -> None:
    core, readout = lstm()
    inputs, targets = data(steps=4)
    bptt = syngrad.TruncatedBPTT(core, Fixed, 4, readout=readout, optimizer=Recorder, guard=None, auxiliary=0.5)
    bptt.bind(inputs)
    head = bptt.auxiliary.head
    assert head is not None
    nn.init.normal_(head.weight)
    bptt.step(inputs, targets)
    parameters = [*core.parameters(), *readout.parameters(), *head.parameters()]
    outputs, (h, c) = core(inputs)
    loss = F.cross_entropy(readout(outputs).reshape(-1, CLASSES), targets.reshape(-1))
    estimate = torch.tanh(torch.cat([h[0], c[0]], 1)).detach()
    error = (head(outputs[:, 0]) - estimate).square().sum(1).mean()
    whole = loss + 0.5 * error / estimate.square().sum(1).mean()
    whole = whole + (estimate * torch.cat([h[0], c[0]], 1)).sum() / targets.numel()
    expected = torch.autograd.grad(whole, parameters)
    alike([bptt.optimizers[0].sum_of(p) for p in parameters], list(expected), atol=1e-6)
