"""Small models and data that tests share. Every one of them runs in float64.

No parameter has a gradient that is zero but for rounding (a bias in front of batch norm, a key's bias in attention):
Adam would turn that rounding into whole steps, and two exact runs could not be compared.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 4
TOKENS = 7
IGNORED = -100


def mlp(width: int = 12, depth: int = 4, inputs: int = 6) -> nn.Sequential:
    """Linear, Tanh, …: modules 0, 2, 4 … are linear; the last one classifies."""
    sizes = [inputs] + [width] * (depth - 1)
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes):
        layers += [nn.Linear(a, b), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(width, CLASSES)).double()


def dropout_mlp() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(6, 16),
        nn.Tanh(),
        nn.Dropout(0.4),
        nn.Linear(16, 16),
        nn.Tanh(),
        nn.Dropout(0.4),
        nn.Linear(16, CLASSES),
    ).double()


def regression() -> nn.Sequential:
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 2)).double()


def cnn() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.Conv2d(4, 4, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(4 * 9, CLASSES),
    ).double()


class ResidualBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(torch.tanh(self.inner(x)))


class Residual(nn.Module):
    """A forward of its own, with skips inside the blocks and one from the stem over all of them."""

    def __init__(self, width: int = 10) -> None:
        super().__init__()
        self.stem = nn.Linear(6, width)
        self.first, self.second, self.third = (ResidualBlock(width) for _ in range(3))
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        stem = torch.tanh(self.stem(x))
        x = self.second(self.first(stem))
        return self.head(torch.tanh(self.third(x)) + stem)


class Block(nn.Module):
    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).chunk(3, -1)
        scores = (q @ k.transpose(1, 2)) * (q.shape[-1] ** -0.5)
        x = x + self.dropout(self.out(scores.masked_fill(mask, float("-inf")).softmax(-1) @ v))
        return x + self.dropout(self.down(F.gelu(self.up(self.norm2(x)))))


class GPT(nn.Module):
    """ModuleList, dropout, a mask buffer, one output a token."""

    def __init__(self, dropout: float = 0.2, width: int = 8, blocks: int = 3, length: int = 5) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(TOKENS, width), nn.Embedding(length, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, dropout) for _ in range(blocks))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, TOKENS)
        self.register_buffer("mask", torch.ones(length, length).triu(1).bool())
        self.register_buffer("places", torch.arange(length), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.dropout(self.token(tokens) + self.place(self.places))
        for block in self.blocks:
            x = block(x, self.mask)
        return self.head(self.norm(x))


class TwoInputs(nn.Module):
    """Takes two tensors, and sends a nested message: a dictionary with a tuple, a mask of integers among it."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.middle = Encode(), Middle()
        self.head = Read()

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.head(self.middle(self.encode(x, mask)))


class Encode(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 8), nn.Linear(6, 5)

    def forward(self, x: Tensor, mask: Tensor) -> dict[str, Any]:
        return {"pair": (torch.tanh(self.left(x)), torch.tanh(self.right(x))), "mask": mask}


class Middle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(8, 8), nn.Linear(5, 5)

    def forward(self, message: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
        left, right = message["pair"]
        return torch.tanh(self.left(left)), torch.tanh(self.right(right)), message["mask"]


class Read(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(13, CLASSES)

    def forward(self, message: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        left, right, mask = message
        return self.out(torch.cat([left, right], 1) * mask.unsqueeze(1))


class Chained(nn.Sequential):
    """A chain whose first module takes two tensors."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        message = self[0](x, mask)
        for module in self[1:]:
            message = module(message)
        return message


@dataclass
class Case:
    """A model, where to cut it, its minibatches, its loss and how many sample losses that averages over."""

    make: Callable[[], nn.Module]
    cuts: list[str]
    batch: Callable[[int, torch.Generator], tuple[Tensor, ...]]
    loss: Callable[[Any, Any], Tensor] = F.cross_entropy
    count: Callable[[Any], float] | None = None

    def model(self, seed: int = 1) -> nn.Module:
        torch.manual_seed(seed)
        return self.make().train()

    def batches(self, n: int = 20, size: int = 8, last: int = 5, seed: int = 3) -> list[tuple[Tensor, ...]]:
        """n minibatches, the last one odd."""
        generator = torch.Generator().manual_seed(seed)
        return [self.batch(size if i < n - 1 else last, generator) for i in range(n)]


def vectors(n: int, g: torch.Generator) -> tuple[Tensor, ...]:
    return torch.randn(n, 6, generator=g, dtype=torch.float64), torch.randint(CLASSES, (n,), generator=g)


def pictures(n: int, g: torch.Generator) -> tuple[Tensor, ...]:
    return torch.randn(n, 2, 6, 6, generator=g, dtype=torch.float64), torch.randint(CLASSES, (n,), generator=g)


def values(n: int, g: torch.Generator) -> tuple[Tensor, ...]:
    x = torch.randn(n, 6, generator=g, dtype=torch.float64)
    return x, torch.stack([x[:, 0] * x[:, 1], x.sum(1)], 1)


def sentences(n: int, g: torch.Generator) -> tuple[Tensor, ...]:
    """Tokens and their targets, a few of which do not count; every minibatch has another number of them."""
    tokens = torch.randint(TOKENS, (n, 5), generator=g)
    targets = torch.randint(TOKENS, (n, 5), generator=g)
    return tokens, torch.where(torch.rand(n, 5, generator=g) < 0.3, IGNORED, targets)


def pairs(n: int, g: torch.Generator) -> tuple[Tensor, ...]:
    x, y = vectors(n, g)
    return x, torch.randint(1, 3, (n,), generator=g), y


def token_loss(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output.flatten(0, 1), target.flatten())


def token_count(target: Tensor) -> float:
    return float((target != IGNORED).sum())


CASES = {
    "mlp": Case(mlp, ["2", "4", "6"], vectors),
    "cnn": Case(cnn, ["3", "6"], pictures),
    "residual": Case(lambda: Residual().double(), ["second", "third"], vectors),
    "gpt": Case(lambda: GPT().double(), ["blocks.1", "blocks.2"], sentences, token_loss, token_count),
    "regression": Case(regression, ["2", "4"], values, F.mse_loss),
    "dropout": Case(dropout_mlp, ["3", "6"], vectors),
}


def sgd(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, 0.05)


def momentum(params: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(params, 0.02, momentum=0.9)


def adam(params: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(params, 3e-3)


def adamw(params: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, 3e-3, weight_decay=0.1)


OPTIMIZERS = {"adam": adam, "momentum": momentum, "adamw": adamw}


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """Copies of every parameter and buffer by name."""
    return {name: value.detach().clone() for name, value in [*module.named_parameters(), *module.named_buffers()]}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor], rtol: float = 0.0) -> None:
    """Every tensor by its name: bit for bit, or within rtol (and a hundredth of it, absolutely)."""
    assert a.keys() == b.keys()
    off = [n for n in a if not torch.allclose(a[n].double(), b[n].double(), rtol=rtol, atol=rtol / 100, equal_nan=True)]
    assert not off, {n: (a[n].double() - b[n].double()).abs().max().item() for n in off}


def assert_moved(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    """Every tensor changed."""
    assert a.keys() == b.keys()
    assert a, "there is nothing to compare"
    still = [name for name in a if torch.equal(a[name], b[name])]
    assert not still, still


@contextmanager
def drawing_from(state: Tensor) -> Iterator[list[Tensor]]:
    """The default generator holds `state` inside; the list's one element is the state afterwards."""
    outside = torch.get_rng_state()
    torch.set_rng_state(state)
    after: list[Tensor] = []
    try:
        yield after
    finally:
        after.append(torch.get_rng_state())
        torch.set_rng_state(outside)
