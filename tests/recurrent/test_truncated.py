"""Windows whose boundary carries nothing are truncated back-propagation; one window is the full one; and an estimate
that is right is as good as a longer window.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tests._support.small_recurrent import CLASSES, HIDDEN, IN, STEPS, Own, alike, data, sgd, weights
from torch import Tensor, nn
from torch.nn import functional as F

import syngrad
from syngrad.tree import map_tensors

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


def batch(first: bool) -> tuple[Tensor, Tensor]:
    inputs, targets = data()
    return (inputs, targets) if first else (inputs.transpose(0, 1).contiguous(), targets.t().contiguous())


def naive(core: nn.Module, readout: nn.Module, first: bool, window: int, rounds: int) -> list[Tensor]:
    """What one writes by hand."""
    parameters = [*core.parameters(), *readout.parameters()]
    optimizer = sgd(parameters)
    inputs, targets = batch(first)
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
            state = map_tensors(Tensor.detach, state)
    return weights(core, readout)


@pytest.mark.parametrize("window", [1, 4, 5, STEPS])
@pytest.mark.parametrize("name", CORES)
def test_without_an_estimate_it_is_truncated_back_propagation(name: str, window: int) -> None:
    core, readout, first = made(name)
    expected = naive(core, readout, first, window, rounds=3)
    core, readout, first = made(name)
    bptt = syngrad.TruncatedBPTT(core, "zero", window, readout=readout, optimizer=sgd, guard=None)
    inputs, targets = batch(first)
    for _ in range(3):
        bptt.run(inputs, targets)
    alike(weights(core, readout), expected)
