"""Fashion-MNIST with a small convolutional net and batch norm, an interface after each of its three blocks.

Images are where estimating a gradient is hardest: what comes back has a value for every channel of every pixel. The
papers' net of this kind has three 5×5 convolutions of 128 channels, far beyond what a few minutes on a CPU allow.
"""

from __future__ import annotations

from collections import OrderedDict

import torch.nn.functional as F
from torch import nn

from syngrad.experiments.cifar_cnn import PUBLISHED as PAPERS_NET
from syngrad.experiments.cifar_cnn import block
from syngrad.experiments.experiment import Experiment, adam, cosine
from syngrad.experiments.image_data import fashion_batches

CHANNELS = (1, 16, 32, 64)

PUBLISHED = PAPERS_NET
"""The nearest published figures; other data, a wider net and a much longer training."""


def model() -> nn.Module:
    """Three blocks, 28×28 → 14×14 → 7×7 → 3×3, and a linear head."""
    c0, c1, c2, c3 = CHANNELS
    return nn.Sequential(
        OrderedDict(
            block1=block(c0, c1, 3, nn.MaxPool2d(2)),
            block2=block(c1, c2, 3, nn.MaxPool2d(2)),
            block3=block(c2, c3, 3, nn.AvgPool2d(2)),
            head=nn.Sequential(nn.Flatten(), nn.Linear(c3 * 3 * 3, 10)),
        )
    )


def fashion_cnn(epochs: int = 3, batch_size: int = 256) -> Experiment:
    """The whole recipe: Adam 1e-3, its rate on a cosine over the epochs."""
    return Experiment(
        name="fashion-cnn",
        dataset="Fashion-MNIST, first 10,000 + 2,000",
        model=model,
        data=fashion_batches,
        loss=F.cross_entropy,
        metric="accuracy",
        cuts=["block2", "block3", "head"],
        optimizer=adam(1e-3),
        scheduler=cosine(epochs),
        batch_size=batch_size,
        epochs=epochs,
    )
