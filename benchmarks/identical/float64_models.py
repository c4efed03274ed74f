"""Four small models of four stages each, in float64, with their data: what the feed-forward scenarios train."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES, TOKENS, IGNORED = 4, 7, -100


class Block(nn.Module):
    """Causal attention and a feed-forward part, each with its residual."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(0.2)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).chunk(3, -1)
        scores = (q @ k.transpose(1, 2)) * (q.shape[-1] ** -0.5)
        x = x + self.dropout(self.out(scores.masked_fill(mask, float("-inf")).softmax(-1) @ v))
        return x + self.dropout(self.narrow(F.gelu(self.wide(self.norm2(x)))))


class GPT(nn.Module):
    """Blocks in a list, a mask and positions as buffers (one of them not in the state dict), an output a token."""

    def __init__(self, width: int = 8, blocks: int = 3, length: int = 5) -> None:
        super().__init__()
        self.token, self.position = nn.Embedding(TOKENS, width), nn.Embedding(length, width)
        self.dropout = nn.Dropout(0.2)
        self.blocks = nn.ModuleList(Block(width) for _ in range(blocks))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, TOKENS)
        self.register_buffer("mask", torch.ones(length, length).triu(1).bool())
        self.register_buffer("positions", torch.arange(length), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.dropout(self.token(tokens) + self.position(self.positions))
        for block in self.blocks:
            x = block(x, self.mask)
        return self.head(self.norm(x))


class Pair(nn.Module):
    """Two inputs by name, and a pair of tensors across every cut."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.first = Both(4, 3, width)
        self.second, self.third = Both(width, width, width), Both(width, width, width)
        self.head = Joined(2 * width)

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return self.head(self.third(self.second(self.first((left, right)))))


class Both(nn.Module):
    def __init__(self, left: int, right: int, width: int) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(left, width), nn.Linear(right, width)

    def forward(self, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        return torch.tanh(self.left(pair[0])), torch.tanh(self.right(pair[1]))


class Joined(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.out = nn.Linear(width, CLASSES)

    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        return self.out(torch.cat(pair, 1))


def mlp() -> nn.Module:
    layers: list[nn.Module] = []
    for i in range(4):
        layers += [nn.Linear(12 if i else 6, 12), nn.Dropout(0.2), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(12, CLASSES))


def cnn() -> nn.Module:
    def part(channels: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(channels, 4, 3, stride, 1, bias=False), nn.BatchNorm2d(4), nn.Tanh()]

    return nn.Sequential(*part(2, 1), *part(4, 2), *part(4, 1), nn.Flatten(), nn.Linear(36, CLASSES))


def vectors(n: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 6, generator=g, dtype=torch.float64), torch.randint(CLASSES, (n,), generator=g)


def pictures(n: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    return torch.randn(n, 2, 6, 6, generator=g, dtype=torch.float64), torch.randint(CLASSES, (n,), generator=g)


def sentences(n: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Some targets do not count, another number of them in every minibatch."""
    tokens, targets = (torch.randint(TOKENS, (n, 5), generator=g) for _ in range(2))
    return tokens, torch.where(torch.rand(n, 5, generator=g) < 0.3, IGNORED, targets)


def mappings(n: int, g: torch.Generator) -> dict[str, Tensor]:
    left, right = (torch.randn(n, wide, generator=g, dtype=torch.float64) for wide in (4, 3))
    return {"left": left, "right": right, "label": torch.randint(CLASSES, (n,), generator=g)}


def token_loss(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output.flatten(0, 1), target.flatten())


def token_count(target: Tensor) -> float:
    return float((target != IGNORED).sum())


def adam(params: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(params, 1e-2)


def adamw(params: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, 3e-3, weight_decay=0.1)


def momentum(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, 0.02, momentum=0.9)


@dataclass(frozen=True)
class Specimen:
    """A model, where its stages start, a minibatch of n samples, and how it is trained.

    one_input: whether its input is a single floating tensor, as predicted inputs need.
    """

    make: Callable[[], nn.Module]
    cuts: list[str]
    batch: Callable[[int, torch.Generator], tuple[Tensor, ...] | Mapping[str, Tensor]]
    optimizer: Callable[[Any], torch.optim.Optimizer]
    options: Mapping[str, Any] = field(default_factory=dict)
    one_input: bool = True

    def model(self) -> nn.Module:
        torch.manual_seed(1)
        return self.make().double()

    def batches(self, count: int, size: int = 8, last: int = 5, seed: int = 3) -> list[Any]:
        """The last minibatch is odd."""
        generator = torch.Generator().manual_seed(seed)
        return [self.batch(size if i < count - 1 else last, generator) for i in range(count)]


SPECIMENS = {
    "mlp": Specimen(mlp, ["3", "6", "9"], vectors, adam, {"loss": F.cross_entropy, "metric": "accuracy"}),
    "cnn": Specimen(cnn, ["3", "6", "9"], pictures, momentum, {"loss": F.cross_entropy, "estimator": "conv"}),
    "gpt": Specimen(
        GPT,
        ["blocks.1", "blocks.2", "norm"],
        sentences,
        adamw,
        {"loss": token_loss, "loss_count": token_count, "estimator": "linear"},
        one_input=False,
    ),
    "mapping": Specimen(
        Pair,
        ["second", "third", "head"],
        mappings,
        adam,
        {"loss": F.cross_entropy, "estimator": "mlp(hidden=1,width=8)", "optimizer_scope": "stage"},
        one_input=False,
    ),
}
