"""CIFAR-10 with a small residual net, one interface in its middle.

A residual net is what most people have, and it is deep: seven convolutions one behind the other here. Between two
residual stages only one tensor crosses, so that is where it can be cut.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from syngrad.experiments.experiment import Experiment, Published, adam, cosine
from syngrad.experiments.image_data import cifar_batches

CHANNELS = (16, 32, 64)

PUBLISHED = (
    Published(
        "CIFAR-10",
        "ResNet-56 in 4 stages",
        "test error %",
        {"backprop": 6.19, "synthetic:local": 9.65},
        "README of fully decoupled gradients; it has delayed gradients 6.61, features replay 6.48, its own 6.14 too",
    ),
)
"""The nearest published figures; a much deeper net, and hundreds of epochs with augmentation."""


class Residual(nn.Module):
    """relu(x + f(x)), f two 3×3 convolutions with batch norm; a 1×1 convolution on x where the shape changes."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.convolution1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.convolution2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or channels_in != channels_out:
            convolution = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(channels_out))

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, y, x) → (n, channels_out, y/stride, x/stride)."""
        inner = F.relu(self.norm1(self.convolution1(x)))
        return F.relu(self.shortcut(x) + self.norm2(self.convolution2(inner)))


def model() -> nn.Module:
    """A stem that halves the picture, three residual blocks, 16×16 → 16×16 → 8×8 → 4×4, a mean, and a linear layer."""
    a, b, c = CHANNELS
    stem = nn.Sequential(nn.Conv2d(3, a, 3, padding=1, bias=False), nn.BatchNorm2d(a), nn.ReLU(), nn.MaxPool2d(2))
    net = nn.Sequential(
        OrderedDict(
            stem=stem,
            block1=Residual(a, a, 1),
            block2=Residual(a, b, 2),
            block3=Residual(b, c, 2),
            head=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, 10)),
        )
    )
    return net.to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def resnet(epochs: int = 8, batch_size: int = 128) -> Experiment:
    """The whole recipe: Adam 1e-3, its rate on a cosine over the epochs; images as they are."""
    return Experiment(
        name="resnet",
        dataset="CIFAR-10",
        model=model,
        data=cifar_batches,
        loss=F.cross_entropy,
        metric="accuracy",
        cuts=["block2"],
        optimizer=adam(1e-3),
        scheduler=cosine(epochs),
        batch_size=batch_size,
        epochs=epochs,
    )
