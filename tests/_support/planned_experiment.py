"""A small experiment as a user's file would have it, for plans that measure."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from syngrad import Experiment
from syngrad.data import TensorBatches


def experiment(model: Callable[[], nn.Module], name: str = "small", **given: object) -> Experiment:
    def data(batch_size: int, seed: int) -> tuple[TensorBatches, TensorBatches]:
        inputs = torch.randn(256, 20, generator=torch.Generator().manual_seed(seed))
        batches = TensorBatches(inputs, inputs.argmax(1) % 3, batch_size=batch_size)
        return batches, batches

    usual: dict[str, object] = {"stages": 1, "batch_size": 32, "epochs": 1}
    return Experiment(model, data, nn.functional.cross_entropy, name=name, **{**usual, **given})  # type: ignore[arg-type]


def net() -> nn.Module:
    return nn.Sequential(
        nn.Linear(20, 64), nn.ReLU(inplace=True), nn.Linear(64, 48), nn.BatchNorm1d(48), nn.Tanh(), nn.Linear(48, 3)
    )


def small() -> Experiment:
    return experiment(net, cuts=["2"], stages=None)


def whole() -> Experiment:
    """A model with no place for a cut."""
    return experiment(lambda: nn.Sequential(nn.Linear(20, 3)), "whole")
