"""Epochs longer than the data: for runs whose epochs are to have few ends, at which replicas average and validate."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice, repeat
from typing import Any

from syngrad.data import TensorBatches
from syngrad.experiments import image_data


class Long:
    """So many minibatches as one epoch, however often the data has to be gone through."""

    def __init__(self, loader: TensorBatches, minibatches: int) -> None:
        self._loader, self._minibatches = loader, minibatches

    def __len__(self) -> int:
        return self._minibatches

    def __iter__(self) -> Iterator[Any]:
        return islice(chain.from_iterable(repeat(self._loader)), self._minibatches)


def images(minibatches: int, batch_size: int, seed: int) -> tuple[Long, TensorBatches]:
    """The bundled images as epochs of so many full minibatches, and the test set."""
    shown = image_data.fashion_images(True)
    train = TensorBatches(*shown, batch_size=batch_size, shuffle=True, seed=seed, drop_last=True)
    return Long(train, minibatches), image_data.fashion_batches(batch_size, seed)[1]
