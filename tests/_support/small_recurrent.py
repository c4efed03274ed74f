"""A small recurrent net and data for the tests of this folder, in float64."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

N, STEPS, IN, HIDDEN, CLASSES = 3, 12, 4, 5, 6


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, 0.1)


class Own(nn.Module):
    """A core with a nested state, and in it a counter that belongs to the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.over = nn.Linear(IN, HIDDEN), nn.Linear(HIDDEN, HIDDEN, bias=False)

    def forward(self, inputs: Tensor, state: Any) -> Any:
        if state is None:
            zero = inputs.new_zeros(len(inputs), HIDDEN)
            state = {"h": zero, "more": [zero, torch.zeros((), dtype=torch.int64)]}
        h, (slow, count) = state["h"], state["more"]
        outputs = []
        for x in inputs.unbind(1):
            h = torch.tanh(self.into(x) + self.over(h) + 0.5 * slow)
            slow = 0.9 * slow + 0.1 * h
            outputs.append(h)
            count = count + 1
        return torch.stack(outputs, 1), {"h": h, "more": [slow, count]}


def lstm() -> tuple[nn.LSTM, nn.Linear]:
    """An LSTM and its readout, with equal weights at every call."""
    torch.manual_seed(0)
    return nn.LSTM(IN, HIDDEN, batch_first=True).double(), nn.Linear(HIDDEN, CLASSES).double()


def data(n: int = N, steps: int = STEPS, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(n, steps, IN, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(CLASSES, (n, steps), generator=generator)


def total(outputs: Tensor, targets: Tensor) -> Tensor:
    """The sum over samples and time: a loss of which the parts of several windows simply add up."""
    return F.cross_entropy(outputs.reshape(-1, CLASSES), targets.reshape(-1), reduction="sum")


def one(_: Any) -> float:
    """The number of losses that `total` averages over."""
    return 1.0


class Recorder(torch.optim.Optimizer):
    """Adds up the gradients that it is given, and moves nothing."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 1.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    kept = self.state[p]
                    kept["sum"] = kept.get("sum", torch.zeros_like(p)) + p.grad

    def sum_of(self, p: Tensor) -> Tensor:
        return self.state[p].get("sum", torch.zeros_like(p))  # type: ignore[no-any-return]


def weights(*modules: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for module in modules for p in module.parameters()]


def alike(found: list[Tensor], expected: list[Tensor], atol: float = 1e-12) -> None:
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=atol)
