"""What is drawn: models of four kinds, each named by its sizes and its cut, as in `mlp_512_6_cut4`, on made-up data."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from syngrad import Experiment
from syngrad.data import TensorBatches

#: one way, and in each direction; none: two processes of one host
LINKS = (None, None, "1ms,1gbit", "5ms,200mbit", "20ms,100mbit", "50ms,50mbit", "100ms,10mbit")
SAMPLES, CLASSES, TOKENS, LENGTH = 2048, 10, 64, 64


class Residual(nn.Module):
    """x + two layers of a normalised x."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(x)


class Pooled(nn.Module):
    """The mean over an image, or over a sequence."""

    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self.dims)


def mlp(width: int, depth: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Sequential(nn.Flatten(), nn.Linear(784, width), nn.ReLU())]
    layers += [nn.Sequential(nn.Linear(width, width), nn.ReLU()) for _ in range(depth - 1)]
    return nn.Sequential(*layers, nn.Linear(width, CLASSES))


def residual(width: int, depth: int) -> nn.Sequential:
    first = nn.Sequential(nn.Flatten(), nn.Linear(784, width))
    return nn.Sequential(first, *(Residual(width) for _ in range(depth - 1)), nn.Linear(width, CLASSES))


def cnn(width: int, depth: int) -> nn.Sequential:
    def block(inputs: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())

    blocks = [block(1), *(block(width) for _ in range(depth - 1))]
    blocks[0].append(nn.MaxPool2d(2))  # type: ignore[operator]
    return nn.Sequential(*blocks, nn.Sequential(Pooled(2, 3), nn.Linear(width, CLASSES)))


def transformer(width: int, depth: int) -> nn.Sequential:
    def block() -> nn.Module:
        return nn.TransformerEncoderLayer(width, 4, 4 * width, dropout=0.0, batch_first=True, norm_first=True)

    blocks = (block() for _ in range(depth - 1))
    return nn.Sequential(nn.Embedding(TOKENS, width), *blocks, nn.Sequential(Pooled(1), nn.Linear(width, CLASSES)))


#: kind → (what makes it, widths, depths, batch sizes)
KINDS: dict[str, tuple[Callable[[int, int], nn.Sequential], tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    "mlp": (mlp, (256, 512, 1024), (4, 6, 8), (32, 64, 128, 256)),
    "residual": (residual, (256, 512), (4, 6), (32, 64, 128)),
    "cnn": (cnn, (16, 32, 64), (4, 6), (16, 32, 64)),
    "transformer": (transformer, (64, 128), (4, 6), (8, 16, 32)),
}


def configurations(seed: int, count: int) -> list[dict[str, Any]]:
    """So many, each kind in its turn; everything else is drawn."""
    generator = random.Random(seed)
    made = []
    for k in range(count):
        kind = list(KINDS)[k % len(KINDS)]
        _, widths, depths, sizes = KINDS[kind]
        width, depth = generator.choice(widths), generator.choice(depths)
        middle = (depth + 1) // 2
        cut = generator.choice((middle, middle, middle + 1, max(middle - 1, 1)))
        link, batch_size = generator.choice(LINKS), generator.choice(sizes)
        experiment = f"{kind}_{width}_{depth}_cut{cut}"
        name = f"{experiment}, batch {batch_size}, {link or 'one host'}"
        made.append({"name": name, "experiment": experiment, "batch_size": batch_size, "link": link})
    return made


def data(kind: str) -> Callable[[int, int], tuple[TensorBatches, TensorBatches]]:
    def loaders(batch_size: int, seed: int) -> tuple[TensorBatches, TensorBatches]:
        generator = torch.Generator().manual_seed(seed)
        targets = torch.randint(CLASSES, (SAMPLES,), generator=generator)
        if kind == "transformer":
            inputs = torch.randint(TOKENS, (SAMPLES, LENGTH), generator=generator)
        else:
            inputs = torch.rand(SAMPLES, 1, 28, 28, generator=generator)
        batches = TensorBatches(inputs, targets, batch_size=batch_size, drop_last=True)
        return batches, batches

    return loaders


def __getattr__(name: str) -> Callable[[], Experiment]:
    found = re.fullmatch(r"([a-z]+)_(\d+)_(\d+)_cut(\d+(?:_\d+)*)", name)
    if found is None or found[1] not in KINDS:
        raise AttributeError(name)
    make, width, depth = KINDS[found[1]][0], int(found[2]), int(found[3])
    return lambda: Experiment(
        model=lambda: make(width, depth),
        data=data(found[1]),
        loss=F.cross_entropy,
        cuts=found[4].split("_"),
        optimizer=lambda groups: torch.optim.Adam(groups, 1e-3, fused=True),
        batch_size=32,
        epochs=1,
        name=name,
        dataset="made up",
    )
