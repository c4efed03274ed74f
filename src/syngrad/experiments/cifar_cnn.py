"""CIFAR-10 with the convolutional net of the paper (App. C.1), and with a small one that a CPU trains in minutes.

Both are three blocks of convolution, batch norm, ReLU and pool, max first and average at the end, with an interface
after each. Weights are laid out with the channels last, which makes convolutions on a CPU about twice as fast.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from syngrad.experiments.experiment import Experiment, Published, adam, cosine
from syngrad.experiments.image_data import cifar_batches, cropped_cifar_batches

SMALL = (24, 48, 96)

PUBLISHED = (
    Published(
        "CIFAR-10",
        "the paper's net (cifar-cnn), 3 interfaces, Adam 3e-5, crop and flip, about 2000 epochs",
        "best test accuracy %",
        {"backprop": 85.72, "synthetic:local": 85.64, "synthetic:conv": 84.15, "synthetic:conv(context=False)": 65.16},
        "logs of the decoupled greedy learning repository, one run each",
    ),
    Published(
        "CIFAR-10",
        "the same, about epoch 100",
        "test accuracy %",
        {"backprop": 76.4, "synthetic:local": 77.1, "synthetic:conv": 72.5, "synthetic:conv(context=False)": 46.0},
        "logs of the decoupled greedy learning repository, one run each",
    ),
)


def block(channels_in: int, channels_out: int, kernel: int, pool: nn.Module) -> nn.Module:
    """Convolution, batch norm, ReLU, and a pool that halves the image."""
    convolution = nn.Conv2d(channels_in, channels_out, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels_out), nn.ReLU(), pool)


def network(channels: tuple[int, int, int], kernel: int, maximum: nn.Module, mean: list[nn.Module]) -> nn.Module:
    """Three blocks, 32×32 → 16×16 → 8×8 → 4×4, and a linear head."""
    a, b, c = channels
    blocks = OrderedDict(
        block1=block(3, a, kernel, maximum),
        block2=block(a, b, kernel, mean[0]),
        block3=block(b, c, kernel, mean[1]),
        head=nn.Sequential(nn.Flatten(), nn.Linear(c * 4 * 4, 10)),
    )
    return nn.Sequential(blocks).to(memory_format=torch.channels_last)  # type: ignore[call-overload, no-any-return]


def model() -> nn.Module:
    """The paper's: convolutions 5×5 of 128 channels, 3×3 pools, max first and average after."""
    maximum, means = nn.MaxPool2d(3, 2, padding=1), [nn.AvgPool2d(3, 2, padding=1) for _ in range(2)]
    return network((128, 128, 128), 5, maximum, [*means])


def small_model() -> nn.Module:
    """Convolutions 3×3 of 24, 48 and 96 channels, 2×2 pools, max twice and average once: 68,000 parameters."""
    return network(SMALL, 3, nn.MaxPool2d(2), [nn.MaxPool2d(2), nn.AvgPool2d(2)])


def cifar_cnn(epochs: int = 2560, batch_size: int = 256) -> Experiment:
    """The paper's recipe: Adam 3e-5, divided by 10 after 300,000 and 400,000 of 500,000 steps. For a GPU, and days."""
    return Experiment(
        name="cifar-cnn",
        dataset="CIFAR-10, crop and flip",
        model=model,
        data=cropped_cifar_batches,
        loss=F.cross_entropy,
        metric="accuracy",
        cuts=["block2", "block3", "head"],
        optimizer=adam(3e-5),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.MultiStepLR(
            optimizer, [round(0.6 * epochs), round(0.8 * epochs)]
        ),
        batch_size=batch_size,
        epochs=epochs,
    )


def cifar_cnn_small(epochs: int = 10, batch_size: int = 128) -> Experiment:
    """The whole recipe: Adam 1e-3, its rate on a cosine over the epochs; images as they are."""
    return Experiment(
        name="cifar-cnn-small",
        dataset="CIFAR-10",
        model=small_model,
        data=cifar_batches,
        loss=F.cross_entropy,
        metric="accuracy",
        cuts=["block2", "block3", "head"],
        optimizer=adam(1e-3),
        scheduler=cosine(epochs),
        batch_size=batch_size,
        epochs=epochs,
    )
