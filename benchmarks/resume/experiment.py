"""Fashion-MNIST with dropout and shuffled minibatches: everything that a resumed run has to draw again."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

from syngrad import Experiment
from syngrad.experiments.image_data import fashion_batches


def model() -> nn.Module:
    """784-256×3-10 with batch norm and dropout."""
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs in (784, 256, 256):
        layers += [nn.Linear(inputs, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Dropout(0.2)]
    return nn.Sequential(*layers, nn.Linear(256, 10))


def dropped(epochs: int = 12) -> Experiment:
    return Experiment(
        name="dropout",
        dataset="Fashion-MNIST, first 10,000 + 2,000",
        model=model,
        data=fashion_batches,
        loss=F.cross_entropy,
        cuts=["5", "9"],
        optimizer=lambda groups: torch.optim.Adam(groups, 1e-3, fused=True),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=40 * epochs),
        batch_size=256,
        epochs=epochs,
        options={"scheduler_every": "step"},
    )
