"""What the benchmarks over processes train: nets whose two halves cost about the same, each cut once, in its middle."""

from __future__ import annotations

import dataclasses
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from syngrad import Experiment
from syngrad.data import TensorBatches, fashion_mnist
from syngrad.experiments import char_gpt, image_data

DEPTH = 6
#: with which half of the net takes some 10 ms at batch 128, on one core of the machine that the figures are from
TEN_MS = 560
#: of `shortened`: windows of 64 characters, half of char-gpt's
SHORT = 20_480


def net(width: int, depth: int = DEPTH) -> nn.Module:
    """784-width×depth-10 with ReLU."""
    layers: list[nn.Module] = [nn.Flatten(), nn.Linear(28 * 28, width), nn.ReLU()]
    for _ in range(depth - 1):
        layers += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10))


def wide(epochs: int = 4, batch_size: int = 128) -> Experiment:
    """784-1024×6-10 on the bundled part: for figures that are times alone."""
    # the fourth hidden layer starts the second stage: with no gradient of its input it costs as much as the first
    return Experiment(
        name="mlp-1024",
        dataset="Fashion-MNIST, first 10,000 + 2,000",
        model=lambda: net(1024),
        data=image_data.fashion_batches,
        loss=F.cross_entropy,
        cuts=["7"],
        optimizer=lambda groups: torch.optim.Adam(groups, 1e-3, fused=True),
        batch_size=batch_size,
        epochs=epochs,
    )


def narrow(epochs: int = 4, batch_size: int = 128) -> Experiment:
    """784-256×6-10. The first layer weighs as much as three others, so that four are above the cut."""
    return dataclasses.replace(wide(epochs, batch_size), name="mlp-256", model=lambda: net(256), cuts=["5"])


def balanced(epochs: int = 4, batch_size: int = 128) -> Experiment:
    """784-560×6-10, cut as the wide one."""
    return dataclasses.replace(wide(epochs, batch_size), name="mlp-560", model=lambda: net(TEN_MS))


def unbalanced(epochs: int = 4, batch_size: int = 128) -> Experiment:
    """The same with one hidden layer below the cut and five above."""
    return dataclasses.replace(balanced(epochs, batch_size), cuts=["3"])


def top_heavy(epochs: int = 4, batch_size: int = 128) -> Experiment:
    """784-560×7-10, three layers below the cut: those above take a little longer, and need not wait."""
    return dataclasses.replace(balanced(epochs, batch_size), model=lambda: net(TEN_MS, 7))


def gpt(epochs: int = 1, batch_size: int = 16) -> Experiment:
    """char-gpt with one cut, between its second and third block."""
    return dataclasses.replace(char_gpt.char_gpt(epochs, batch_size), cuts=["block3"])


@cache
def images(train: bool) -> tuple[Tensor, Tensor]:
    """All of Fashion-MNIST, as `syngrad data fetch fashion-mnist` has put it into the cache folder."""
    return fashion_mnist(train=train, full=True)


def full_data(batch_size: int, seed: int) -> tuple[TensorBatches, TensorBatches]:
    """Minibatches in an order that the seed decides, and the 10,000 test images."""
    train = TensorBatches(*images(True), batch_size=batch_size, shuffle=True, seed=seed)
    return train, TensorBatches(*images(False), batch_size=1000)


def full(epochs: int = 5, batch_size: int = 128) -> Experiment:
    """784-1024×6-10 on all of Fashion-MNIST, Adam 1e-3, at a constant rate."""
    return dataclasses.replace(wide(epochs, batch_size), dataset="Fashion-MNIST", data=full_data, metric="accuracy")


def full_cosine(epochs: int = 5, batch_size: int = 128) -> Experiment:
    """The same with a rate on half a cosine, so that where a run ends does not hang on its last few minibatches."""
    steps = max(1, epochs * -(-60_000 // batch_size))
    return dataclasses.replace(
        full(epochs, batch_size),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps),
        options={"scheduler_every": "step"},
    )


def short_data(batch_size: int, seed: int) -> tuple[TensorBatches, TensorBatches]:
    """The first half of char-gpt's windows, which were drawn in no order, and its test set."""
    (inputs, targets), test = char_gpt.windows()
    train = TensorBatches(
        inputs[:SHORT], targets[:SHORT], batch_size=batch_size, shuffle=True, seed=seed, drop_last=True
    )
    return train, TensorBatches(*test, batch_size=200)


def shortened(epochs: int = 1, batch_size: int = 16) -> Experiment:
    """`gpt` on half the characters, its schedule of the learning rate as much shorter."""
    steps = max(1, epochs * (SHORT // batch_size))
    return dataclasses.replace(
        gpt(epochs, batch_size),
        dataset="books from Project Gutenberg, 1.3 million characters",
        data=short_data,
        scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: char_gpt.share(s, steps)),
    )
