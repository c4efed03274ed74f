"""MNIST's digits where they have been fetched, and the bundled part of Fashion-MNIST where not."""

from __future__ import annotations

from functools import cache

from torch import Tensor

from syngrad.data import fashion_mnist, mnist
from syngrad.errors import ConfigError


@cache
def images(train: bool) -> tuple[Tensor, Tensor, str]:
    """Images, labels, and the name of the set they are of; read once a process."""
    try:
        return (*mnist(train=train), "MNIST")
    except ConfigError:
        return (*fashion_mnist(train=train), "Fashion-MNIST")
