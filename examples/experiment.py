"""An experiment for the command line.

syngrad compare examples/experiment.py:experiment --epochs 3
syngrad train examples/experiment.py:experiment --save runs/mine
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import syngrad
from syngrad.data import TensorBatches


def model() -> nn.Module:
    """Made anew for every row, right after the seed was set: every row starts from the same weights."""
    return nn.Sequential(nn.Linear(2, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))


def rings(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points of the plane, and which of three rings they lie in."""
    points = torch.randn(samples, 2, generator=torch.Generator().manual_seed(seed))
    radius = points.norm(dim=1)
    return points, (radius > 0.8).long() + (radius > 1.5).long()


def data(batch_size: int, seed: int) -> tuple[TensorBatches, TensorBatches]:
    """Called anew for every row: (training loader, test loader). The seed decides the order alone."""
    train = TensorBatches(*rings(4000, seed=1), batch_size=batch_size, shuffle=True, seed=seed)
    return train, TensorBatches(*rings(1000, seed=2), batch_size=1000)


def experiment(epochs: int = 10, batch_size: int = 100) -> syngrad.Experiment:
    """What follows from the number of epochs, the schedule here, follows `--epochs` too."""
    return syngrad.Experiment(
        name="rings",
        dataset="made up, 4,000 + 1,000 points",
        model=model,
        data=data,
        loss=F.cross_entropy,
        metric="accuracy",
        cuts=["2", "4"],
        optimizer=lambda groups: torch.optim.Adam(groups, 3e-3),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(epochs, 1)),
        batch_size=batch_size,
        epochs=epochs,
        options={"clip_norm": 5.0},
    )
