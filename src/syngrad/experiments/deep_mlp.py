"""Fashion-MNIST, a fully connected net of any depth with an interface after every hidden layer.

Depth is where estimates of estimates go wrong: an error at one interface is learnt by the one before it. With as many
layers as one likes this shows where a method gives out. Weights are drawn after Kaiming, with which back-propagation
itself trains 16 layers; with PyTorch's own initialisation it does not, and the comparison would flatter the others.
"""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import nn

from syngrad.checks import check_whole
from syngrad.experiments.experiment import Experiment, Published, adam, cosine
from syngrad.experiments.fashion_mlp import WIDTH
from syngrad.experiments.image_data import fashion_batches

LAYERS = 8

PUBLISHED = (
    Published(
        "MNIST, 5,000 samples",
        "4 layers",
        "test accuracy %",
        {"backprop": 97.5, "synthetic": 95.5},
        "jacobdineen's reproduction, one run, read in its table",
    ),
    Published(
        "MNIST, 5,000 samples",
        "8 layers",
        "test accuracy %",
        {"backprop": 98.0, "synthetic": 92.0},
        "jacobdineen's reproduction, one run, read in its table",
    ),
)
"""The nearest published figures, with an estimator of their own; other data. The papers say that 21 layers train."""


def model(layers: int = LAYERS) -> nn.Sequential:
    """784-256×(layers−1)-10 with ReLU, Kaiming-normal weights and zero biases."""
    sizes = [28 * 28] + [WIDTH] * (layers - 1)
    parts: list[nn.Module] = [nn.Flatten()]
    for a, b in pairwise(sizes):
        parts += [nn.Linear(a, b), nn.ReLU()]
    net = nn.Sequential(*parts, nn.Linear(sizes[-1], 10))
    for layer in net:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)
    return net


def cuts(layers: int = LAYERS) -> list[str]:
    """The names of the linear layers behind the first: Flatten is "0", and a layer and its ReLU are two modules."""
    return [str(2 * k + 1) for k in range(1, layers)]


def deep_mlp(layers: int = LAYERS, epochs: int = 10, batch_size: int = 256) -> Experiment:
    """The whole recipe: Adam 1e-3, its rate on a cosine over the epochs. layers: at least 2, the last one included."""
    check_whole("layers", layers, 2)
    return Experiment(
        name="deep-mlp",
        dataset="Fashion-MNIST, first 10,000 + 2,000",
        model=lambda: model(layers),
        data=fashion_batches,
        loss=F.cross_entropy,
        metric="accuracy",
        cuts=cuts(layers),
        optimizer=adam(1e-3),
        scheduler=cosine(epochs),
        batch_size=batch_size,
        epochs=epochs,
    )
