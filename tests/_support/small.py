"""A tiny experiment for tests: 64 samples of 6 features in 3 classes, three linear layers, an epoch in milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from syngrad import Experiment
from syngrad.data import TensorBatches


def model() -> nn.Module:
    layers = [nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)]
    return nn.Sequential(*layers)


def samples(n: int = 64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(n, 6, generator=generator)
    return x, x[:, :3].argmax(1)


def data(batch_size: int, seed: int) -> tuple[TensorBatches, TensorBatches]:
    x, y = samples()
    return TensorBatches(x, y, batch_size=batch_size, shuffle=True, seed=seed), TensorBatches(x, y, batch_size=64)


def experiment(**changes: Any) -> Experiment:
    given: dict[str, Any] = {
        "model": model,
        "data": data,
        "loss": F.cross_entropy,
        "cuts": ["2", "4"],
        "batch_size": 16,
        "epochs": 1,
        "name": "small",
        "dataset": "made up",
    }
    return Experiment(**{**given, **changes})


def loader_of(x: Tensor, y: Tensor) -> Callable[[int, int], tuple[Any, Any]]:
    """A `data` function over these two tensors, for training and test alike."""
    return lambda batch_size, seed: (TensorBatches(x, y, batch_size=batch_size), TensorBatches(x, y, batch_size=64))
