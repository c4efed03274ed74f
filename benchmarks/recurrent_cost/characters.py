"""The net and the rows that are compared: characters, embedded to 64, an LSTM of 256, a readout to 85 scores."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import syngrad

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from common import fused_adam

CHARACTERS, EMBEDDED, HIDDEN, BATCH, WINDOW = 85, 64, 256, 32, 8

#: row → options of TruncatedBPTT
ROWS: dict[str, dict[str, Any]] = {
    "plain": {"estimator": "zero"},
    "plain, no guard, no samples": {"estimator": "zero", "guard": None, "quality_every": 0},
    "synthetic": {"estimator": "linear"},
    "synthetic + auxiliary": {"estimator": "linear", "auxiliary": 1.0},
    "synthetic, low rank 16": {"estimator": "low_rank(rank=16)"},
}


class Characters(nn.Module):
    """(n, t) characters and a state → the LSTM's outputs (n, t, 256) and its state."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(CHARACTERS, EMBEDDED)
        self.lstm = nn.LSTM(EMBEDDED, HIDDEN, batch_first=True)

    def forward(self, inputs: Tensor, state: Any = None) -> Any:
        return self.lstm(self.embedding(inputs), state)


def net() -> tuple[Characters, nn.Linear]:
    """Core and readout, with one set of weights at every call."""
    torch.manual_seed(0)
    return Characters(), nn.Linear(HIDDEN, CHARACTERS)


def trainer(options: dict[str, Any]) -> syngrad.TruncatedBPTT:
    core, readout = net()
    return syngrad.TruncatedBPTT(core, window=WINDOW, readout=readout, optimizer=fused_adam, **options)


def random_windows() -> Iterator[tuple[Tensor, Tensor]]:
    """A stream without an end, window by window: (inputs, targets), (32, 8) each; targets are one step ahead."""
    generator = torch.Generator().manual_seed(0)
    while True:
        made = torch.randint(CHARACTERS, (BATCH, WINDOW + 1), generator=generator)
        yield made[:, :-1], made[:, 1:]


def fed(options: dict[str, Any]) -> Callable[[], object]:
    """One window of a row of Syngrad's own."""
    bptt, stream = trainer(options), random_windows()
    return lambda: bptt.step(*next(stream))


def hand_written(fused: bool = True) -> Callable[[], object]:
    """One window of the loop that a person would write, with fused or with PyTorch's default Adam."""
    core, readout = net()
    parameters = [*core.parameters(), *readout.parameters()]
    optimizer = fused_adam(parameters) if fused else torch.optim.Adam(parameters, 1e-3)
    stream, state = random_windows(), None

    def step() -> float:
        nonlocal state
        inputs, targets = next(stream)
        optimizer.zero_grad()
        outputs, (h, c) = core(inputs, state)
        loss = F.cross_entropy(readout(outputs).flatten(0, 1), targets.flatten())
        loss.backward()
        optimizer.step()
        state = h.detach(), c.detach()
        return loss.item()

    return step


def rows() -> dict[str, Callable[[], Callable[[], object]]]:
    """What makes each row; a call of what is made is one window."""
    made = {"hand-written": hand_written, "hand-written, default Adam": partial(hand_written, fused=False)}
    return made | {name: partial(fed, options) for name, options in ROWS.items()}
