"""From the bytes of an image set to the tensors that a model is trained on."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from syngrad.checks import whole
from syngrad.data.image_folder import Pair
from syngrad.errors import ConfigError


def first(pair: Pair, limit: int | None, *, train: bool, more: str = "") -> Pair:
    """The first `limit` images and labels, or all.

    Raises:
        ConfigError: `limit` is not a number from 1 up, or more than there are; `more` says where more are to be had.
    """
    images, labels = pair
    if limit is None:
        return pair
    count = whole(limit)
    if count is None or count < 1:
        raise ConfigError(f"limit={limit!r}: give the number of images to take, 1 or more, or None for all")
    if count > len(labels):
        part = "training" if train else "test"
        raise ConfigError(f"limit={count}, but the {part} set here holds {len(labels)}{more}")
    return images[:count], labels[:count]


def normalised(pair: Pair, mean: Sequence[float], deviation: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Images `(n, c, h, w)`, float32, less the mean and divided by the deviation of each channel, and int64 labels.

    Mean and deviation are fractions of the brightest value, 255. The arithmetic is in place: CIFAR-10's training images
    are 614 MB as floats, and one copy is enough.
    """
    images, labels = pair
    pixels = torch.from_numpy(images.astype(np.float32))
    if pixels.dim() == 3:
        pixels = pixels.unsqueeze(1)
    of_channel = (1, len(mean), 1, 1)
    pixels.div_(255.0).sub_(torch.tensor(mean).reshape(of_channel)).div_(torch.tensor(deviation).reshape(of_channel))
    return pixels, torch.from_numpy(labels.astype(np.int64))
