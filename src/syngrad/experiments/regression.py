"""Regression: where is the hand of a planar arm of five unit links, given its joints' angles?

    x = Σ_k cos(θ_1 + … + θ_k),   y = Σ_k sin(θ_1 + … + θ_k)

Generated, so it needs no data; smooth, but with products of all angles in it. A head predicts the position from the
activation and differentiates the mean squared error, by the same code as it does for classification.
"""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from syngrad.data import TensorBatches
from syngrad.experiments.experiment import Experiment, adam, cosine

JOINTS, WIDTH = 5, 128
TRAINING, TEST = 20_000, 2_000

PUBLISHED = ()
"""The papers have no regression task."""


def hand(angles: Tensor) -> Tensor:
    """(n, joints) of angles in radians, each against the link before → (n, 2), the hand's place."""
    along = angles.cumsum(1)
    return torch.stack([along.cos().sum(1), along.sin().sum(1)], dim=1)


@cache
def samples() -> tuple[Tensor, Tensor]:
    """Training and test samples in one: angles normal with a deviation of 0.5, and where the hand is."""
    angles = 0.5 * torch.randn(TRAINING + TEST, JOINTS, generator=torch.Generator().manual_seed(0))
    return angles, hand(angles)


def data(batch_size: int, seed: int) -> tuple[TensorBatches, TensorBatches]:
    """Training minibatches in an order that the seed decides, and the test set."""
    angles, places = samples()
    train = TensorBatches(angles[:TRAINING], places[:TRAINING], batch_size=batch_size, shuffle=True, seed=seed)
    return train, TensorBatches(angles[TRAINING:], places[TRAINING:], batch_size=1000)


def model() -> nn.Module:
    """5-128×4-2 with ReLU."""
    layers: list[nn.Module] = [nn.Linear(JOINTS, WIDTH), nn.ReLU()]
    for _ in range(3):
        layers += [nn.Linear(WIDTH, WIDTH), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 2))


def regression(epochs: int = 20, batch_size: int = 256) -> Experiment:
    """The whole recipe: Adam 1e-3, its rate on a cosine over the epochs; the error is in squared lengths of a link."""
    return Experiment(
        name="regression",
        dataset="places of a planar arm's hand, generated",
        model=model,
        data=data,
        loss=F.mse_loss,
        metric="mse",
        cuts=["2", "4", "6"],
        optimizer=adam(1e-3),
        scheduler=cosine(epochs),
        batch_size=batch_size,
        epochs=epochs,
    )
