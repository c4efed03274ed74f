"""What the benchmark on an accelerator trains: a dense net large enough to keep one busy, on numbers made up."""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from common import every_layer, fused_adam, mlp

from syngrad import Experiment
from syngrad.data import TensorBatches

LAYERS = 8
#: told by the environment, as processes that are started get no more than the name of an experiment
DEVICE, WIDTH = "BENCHMARK_DEVICE", "BENCHMARK_WIDTH"


@cache
def made_up(samples: int) -> tuple[Tensor, Tensor]:
    """Inputs and labels; nothing can be learnt from them, and no figure here is an accuracy."""
    generator = torch.Generator().manual_seed(0)
    return torch.randn(samples, 784, generator=generator), torch.randint(10, (samples,), generator=generator)


def deep(batch_size: int = 2048) -> Experiment:
    """784-width×7-10, cut in its middle."""
    width = int(os.environ.get(WIDTH, "4096"))
    return Experiment(
        name=f"mlp-{width}",
        dataset="none: random numbers",
        model=lambda: mlp(LAYERS, width),
        data=lambda size, seed: (
            TensorBatches(*made_up(4 * size), batch_size=size),
            TensorBatches(*made_up(4 * size), batch_size=size),
        ),
        loss=F.cross_entropy,
        cuts=[every_layer(LAYERS)[LAYERS // 2 - 1]],
        optimizer=fused_adam,
        batch_size=batch_size,
        epochs=1,
        options={"device": os.environ.get(DEVICE, "cpu")},
    )
