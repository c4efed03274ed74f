"""Fashion-MNIST, 784-256×4-10, interfaces after three of its four hidden layers: the smallest run that says something.

The papers' fully connected nets are of this kind, on MNIST, with batch norm and half a million steps. This one takes
seconds, so that the question "does it pay?" has a first answer before anybody has lost patience.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import nn

from syngrad.experiments.experiment import Experiment, Published, adam, cosine
from syngrad.experiments.image_data import fashion_batches

WIDTH = 256
HIDDEN = 4

PUBLISHED = (
    Published(
        "MNIST",
        "3×256 + output, batch norm, linear cDNI, p = 0.2, 500k steps",
        "test accuracy %",
        {"backprop": 97.64, "synthetic:linear": 96.95},
        "nitarshan's reproduction, one run, read in its log",
    ),
    Published(
        "MNIST",
        "2×256 + output",
        "test error %",
        {"backprop": 2.0, "synthetic:linear": 2.0, "synthetic:mlp(hidden=2,width=1024,context=False)": 2.7},
        "kbullaughey's reproduction, one run, read in its table",
    ),
)
"""The nearest published figures; other data and a much longer training."""


def model() -> nn.Module:
    """Flatten, four hidden layers of 256 with ReLU, ten scores."""
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(28 * 28, WIDTH), nn.ReLU()]
    for _ in range(HIDDEN - 1):
        layers += [nn.Linear(WIDTH, WIDTH), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 10))


def fashion_mlp(epochs: int = 10, batch_size: int = 256) -> Experiment:
    """The whole recipe: Adam 1e-3, its rate on a cosine over the epochs."""
    return Experiment(
        name="fashion-mlp",
        dataset="Fashion-MNIST, first 10,000 + 2,000",
        model=model,
        data=fashion_batches,
        loss=F.cross_entropy,
        metric="accuracy",
        cuts=["3", "5", "7"],
        optimizer=adam(1e-3),
        scheduler=cosine(epochs),
        batch_size=batch_size,
        epochs=epochs,
    )
