"""The image sets of the experiments as minibatches, read once a process: as they are, or cropped and flipped."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor

from syngrad.data import TensorBatches, cifar10, fashion_mnist, mnist
from syngrad.errors import ConfigError

PADDING = 4


@cache
def fashion_images(train: bool) -> tuple[Tensor, Tensor]:
    """The bundled 10,000 training or 2,000 test images of Fashion-MNIST."""
    return fashion_mnist(train=train)


@cache
def cifar_images(train: bool) -> tuple[Tensor, Tensor]:
    """CIFAR-10's 50,000 training or 10,000 test images."""
    return cifar10(train=train)


@cache
def digits(train: bool) -> tuple[Tensor, Tensor, str]:
    """Images, labels, and the set's name: MNIST's digits where they have been fetched, else Fashion-MNIST's bundled
    part.
    """
    try:
        return (*mnist(train=train), "MNIST")
    except ConfigError:
        return (*fashion_mnist(train=train), "Fashion-MNIST")


def fashion_batches(batch_size: int, seed: int) -> tuple[TensorBatches, TensorBatches]:
    """Training minibatches in an order that the seed decides, and the test set."""
    train = TensorBatches(*fashion_images(True), batch_size=batch_size, shuffle=True, seed=seed)
    return train, TensorBatches(*fashion_images(False), batch_size=1000)


def cifar_batches(batch_size: int, seed: int) -> tuple[TensorBatches, TensorBatches]:
    """Training minibatches in an order that the seed decides, and the test set."""
    train = TensorBatches(*cifar_images(True), batch_size=batch_size, shuffle=True, seed=seed)
    return train, TensorBatches(*cifar_images(False), batch_size=1000)


def cropped_cifar_batches(batch_size: int, seed: int) -> tuple[TensorBatches, TensorBatches]:
    """As :func:`cifar_batches`, every training image shifted by up to four pixels and flipped or not, anew each time it
    comes.
    """
    train = CropAndFlip(*cifar_images(True), batch_size=batch_size, shuffle=True, seed=seed)
    return train, TensorBatches(*cifar_images(False), batch_size=1000)


class CropAndFlip(TensorBatches):
    """Minibatches (images, …) whose images are cropped from a padded copy and mirrored with probability ½.

    What is drawn for a minibatch follows from the loader's generator as the epoch began and from the minibatch's place
    in the epoch, so a saved place in the data is complete without a word about it.
    """

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """One epoch, or what is left of the one that was loaded."""
        place = self.state_dict()
        return self._changed(super().__iter__(), place)

    def _changed(self, batches: Iterator[tuple[Tensor, ...]], place: dict[str, Any]) -> Iterator[tuple[Tensor, ...]]:
        draws = torch.Generator()
        draws.set_state(place["generator"])
        base = int(torch.randint(2**31, (), generator=draws))
        for index, (images, *rest) in enumerate(batches, place["index"]):
            yield crop_and_flip(images, draws.manual_seed(base + index)), *rest


def crop_and_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """(n, c, y, x) both: each image shifted by −4 to 4 pixels both ways, zeros coming in, and flipped or not."""
    n, _, height, width = images.shape
    padded = torch.nn.functional.pad(images, (PADDING,) * 4)
    top, left = torch.randint(2 * PADDING + 1, (2, n, 1), generator=generator)
    flip = torch.rand(n, 1, generator=generator) < 0.5
    rows = top + torch.arange(height)
    columns = torch.arange(width).expand(n, width)
    columns = left + torch.where(flip, width - 1 - columns, columns)
    sample = torch.arange(n)
    # (n, y, x, c): indices on both sides of a slice bring their own dimensions to the front
    picked = padded[sample[:, None, None], :, rows[:, :, None], columns[:, None, :]]
    return picked.permute(0, 3, 1, 2).contiguous()
