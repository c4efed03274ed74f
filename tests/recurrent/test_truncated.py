"""Windows whose boundary carries nothing are truncated back-propagation; one window is the full one; and an estimate
that is right is as good as a longer window.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import syngrad

N, STEPS, IN, HIDDEN, CLASSES = 3, 12, 4, 5, 6


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, 0.1)


class Own(nn.Module):
    """A core with a nested state and a counter that belongs to the whole batch."""

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


CORES: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: nn.LSTM(IN, HIDDEN),
    "two layers": lambda: nn.LSTM(IN, HIDDEN, 2, batch_first=True),
    "projected": lambda: nn.LSTM(IN, HIDDEN + 2, proj_size=HIDDEN),
    "gru": lambda: nn.GRU(IN, HIDDEN, batch_first=True),
    "rnn": lambda: nn.RNN(IN, HIDDEN),
    "lstm cell": lambda: nn.LSTMCell(IN, HIDDEN),
    "gru cell": lambda: nn.GRUCell(IN, HIDDEN),
    "own": Own,
}


def made(name: str) -> tuple[nn.Module, nn.Module, bool]:
    torch.manual_seed(0)
    core, readout = CORES[name]().double(), nn.Linear(HIDDEN, CLASSES).double()
    first = bool(getattr(core, "batch_first", True))
    return core, readout, first


def data(first: bool, n: int = N, steps: int = STEPS) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(n, steps, IN, generator=generator, dtype=torch.float64)
    targets = torch.randint(CLASSES, (n, steps), generator=generator)
    return (inputs, targets) if first else (inputs.transpose(0, 1).contiguous(), targets.t().contiguous())


def naive(core: nn.Module, readout: nn.Module, first: bool, window: int, rounds: int) -> list[Tensor]:
    """What one writes by hand."""
    parameters = [*core.parameters(), *readout.parameters()]
    optimizer = sgd(parameters)
    inputs, targets = data(first)
    time = int(first)
    for _ in range(rounds):
        state: Any = None
        for x, y in zip(inputs.split(window, time), targets.split(window, time), strict=True):
            if isinstance(core, nn.RNNCellBase):
                outputs = []
                for each in x.unbind(time):
                    state = core(each, state)
                    outputs.append(state[0] if isinstance(state, tuple) else state)
                out = torch.stack(outputs, time)
            else:
                out, state = core(x, state)
            loss = F.cross_entropy(readout(out).reshape(-1, CLASSES), y.reshape(-1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            state = syngrad.tree.map_tensors(Tensor.detach, state)
    return [p.detach().clone() for p in parameters]


@pytest.mark.parametrize("window", [1, 4, 5, STEPS])
@pytest.mark.parametrize("name", CORES)
def test_without_an_estimate_it_is_truncated_back_propagation(name: str, window: int) -> None:
    core, readout, first = made(name)
    expected = naive(core, readout, first, window, rounds=3)
    core, readout, first = made(name)
    bptt = syngrad.TruncatedBPTT(core, "zero", window, readout=readout, optimizer=sgd, guard=None)
    inputs, targets = data(first)
    for _ in range(3):
        bptt.run(inputs, targets)
    for p, q in zip([*core.parameters(), *readout.parameters()], expected, strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-12)
