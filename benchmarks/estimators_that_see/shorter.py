"""`char-gpt` with trials at its interfaces, whole or over half of its training pieces."""

from __future__ import annotations

from dataclasses import replace

import torch
from trials import remembered

from syngrad.data import TensorBatches
from syngrad.experiments.char_gpt import TEST, TRAINING, char_gpt, share, windows
from syngrad.experiments.experiment import Experiment

PIECES = TRAINING // 2


def whole(epochs: int = 1, batch_size: int = 16) -> Experiment:
    """As the experiment is."""
    return replace(char_gpt(epochs, batch_size), model=remembered)


def half(epochs: int = 1, batch_size: int = 16) -> Experiment:
    """Its first 1.3 million characters, and the same learning rate over half as many steps."""
    steps = epochs * (PIECES // batch_size)

    def data(batch_size: int, seed: int) -> tuple[TensorBatches, TensorBatches]:
        (inputs, targets), test = windows()
        return (
            TensorBatches(
                inputs[:PIECES], targets[:PIECES], batch_size=batch_size, shuffle=True, seed=seed, drop_last=True
            ),
            TensorBatches(*test, batch_size=TEST // 10),
        )

    return replace(
        whole(epochs, batch_size),
        name="char-gpt, half",
        data=data,
        scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: share(step, steps)),
    )
