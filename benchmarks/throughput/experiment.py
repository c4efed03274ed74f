"""What is timed: balanced nets, whose stages cost about the same."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from syngrad import Experiment
from syngrad.experiments import fashion_mlp

DEPTH = 6


def net(width: int) -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(28 * 28, width), nn.ReLU()]
    for _ in range(DEPTH - 1):
        layers += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def made(width: int, batch_size: int, epochs: int) -> Experiment:
    # the fourth hidden layer starts the second stage: with no gradient of its input it costs as much as the first
    return Experiment(
        name=f"mlp-{width}",
        dataset="Fashion-MNIST, first 10,000 + 2,000",
        model=lambda: net(width),
        data=fashion_mlp.data,
        loss=F.cross_entropy,
        cuts=["7"],
        optimizer=lambda groups: torch.optim.Adam(groups, 1e-3, fused=True),
        batch_size=batch_size,
        epochs=epochs,
    )


def wide(epochs: int = 4, batch_size: int = 128) -> Experiment:
    return made(1024, batch_size, epochs)


def narrow(epochs: int = 4, batch_size: int = 128) -> Experiment:
    return made(256, batch_size, epochs)


CASES: dict[str, Any] = {"wide": wide, "narrow": narrow}
