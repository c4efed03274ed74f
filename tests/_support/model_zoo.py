"""Models of the kinds people bring, each with a way to make a batch, cuts, and the route that should be taken."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Call = tuple[tuple[Any, ...], dict[str, Any]]


def mlp() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 8), nn.Dropout(0.3), nn.ReLU(inplace=True), nn.Linear(8, 3)
    )


def nested() -> nn.Module:
    def block(n: int) -> nn.Sequential:
        return nn.Sequential(OrderedDict(fc=nn.Linear(n, n), norm=nn.LayerNorm(n), act=nn.GELU()))

    return nn.Sequential(
        OrderedDict(stem=nn.Linear(6, 8), body=nn.Sequential(block(8), block(8)), head=nn.Linear(8, 3))
    )


def cnn() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten()),
        nn.Linear(6 * 4 * 4, 3),
    )


class ConvBlock(nn.Module):
    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(n_in, n_out, 3, padding=1)
        self.norm = nn.BatchNorm2d(n_out)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.conv(x)), inplace=True)


class SkipCNN(nn.Module):
    """The skip goes round block2, across a cut at it and one at block3; sizes are taken from the input."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvBlock(3, 4)
        self.block1, self.block2, self.block3 = ConvBlock(4, 4), ConvBlock(4, 4), ConvBlock(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        n = x.size(0)
        x = self.stem(x)
        x = x + self.block1(x)
        skip = x * 2
        x = self.block2(x)
        x = self.block3(x)
        skip *= 0.5  # in place on what crossed two cuts
        x = x + skip
        return self.head(F.dropout(x.mean((2, 3)).view(n, 4), 0.2, training=self.training))


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2, self.bottom = ConvBlock(3, 4), ConvBlock(4, 6), ConvBlock(6, 6)
        self.up2, self.up1 = ConvBlock(12, 4), ConvBlock(8, 4)
        self.out = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        shape = x.shape
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        c = F.interpolate(self.bottom(F.max_pool2d(b, 2)), size=b.shape[-2:])
        d = F.interpolate(self.up2(torch.cat([b, c], 1)), size=shape[-2:])
        return self.out(self.up1(torch.cat([a, d], 1)))


class Attention(nn.Module):
    def __init__(self, width: int, block: int) -> None:
        super().__init__()
        self.norm, self.qkv = nn.LayerNorm(width), nn.Linear(width, 3 * width)
        self.mlp = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Dropout(0.1))
        self.register_buffer("mask", torch.tril(torch.ones(block, block)))

    def forward(self, x: Tensor) -> Tensor:
        _, t, _ = x.size()
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        weight = (q @ k.transpose(-2, -1)).masked_fill(self.mask[:t, :t] == 0, float("-inf")).softmax(-1)
        x = x + weight @ v
        return x + self.mlp(x)


class GPT(nn.Module):
    """With ``checks`` the forward asserts over a size, which torch.fx cannot follow."""

    def __init__(self, *, checks: bool, tied: bool = False, blocks: int = 3) -> None:
        super().__init__()
        self.block_size, self.checks = 8, checks
        self.wte = nn.Embedding(11, 8)
        self.pos_emb = nn.Parameter(torch.randn(8, 8) * 0.1)
        self.drop = nn.Dropout(0.1)
        self.blocks = nn.ModuleList(Attention(8, 8) for _ in range(blocks))
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 11, bias=False)
        if tied:
            self.head.weight = self.wte.weight

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Tensor:
        _, t = idx.size()
        if self.checks:
            assert t <= self.block_size, "too long"
        x = self.drop(self.wte(idx) + self.pos_emb[torch.arange(t, device=idx.device)])
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        if targets is None:
            return logits
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


class CheckedCNN(nn.Module):
    """Batch norm and a branch on the mode in a forward that only torch.export follows."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = ConvBlock(3, 4), ConvBlock(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4:
            raise ValueError("images please")
        x = self.b(self.a(x)).mean((2, 3))
        if self.training:
            x = F.dropout(x, 0.5)
        return self.head(x)


class ByName(nn.Module):
    """A dict in, keyword arguments, a dict out."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 8), nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, batch: dict[str, Any], *, scale: Tensor, bias: float = 0.0) -> dict[str, Any]:
        x = self.a(batch["x"])
        if batch.get("extra") is not None:
            x = x + self.b(batch["extra"])
        return {"logits": self.head(torch.tanh(x * scale) + bias), "hidden": (x, None)}


class TwoInputs(nn.Module):
    """Two branches side by side; the second input crosses the first cut unused."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Linear(6, 8), nn.Linear(4, 8), nn.Linear(16, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        left = self.left(x).relu_()
        return self.head(torch.cat([left, self.right(y).relu()], 1))


class TupleOut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.GRU(6, 8, batch_first=True), nn.Linear(8, 3)
        self.aux = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        states, last = self.encoder(x)
        return self.decoder(states), [self.aux(last[0]), last]


@dataclass(frozen=True)
class Case:
    make: Callable[[], nn.Module]
    batch: Callable[[int], Call]
    cuts: tuple[str, ...]
    route: str


def _rows(n: int) -> Call:
    return (torch.randn(n, 6),), {}


def _images(n: int) -> Call:
    return (torch.randn(n, 3, 8, 8),), {}


def _tokens(n: int) -> Call:
    return (torch.randint(0, 11, (n, 7 if n % 2 else 6)),), {}


def _named(n: int) -> Call:
    return ({"x": torch.randn(n, 6), "extra": torch.randn(n, 4)},), {"scale": torch.randn(n, 1)}


ZOO: dict[str, Case] = {
    "mlp": Case(mlp, _rows, ("5", "2"), "chain"),
    "mlp at an in-place activation": Case(mlp, _rows, ("1",), "chain"),
    "nested": Case(nested, _rows, ("body.1", "body.0.norm", "head"), "chain"),
    "cnn": Case(cnn, _images, ("4", "8"), "chain"),
    "skip cnn": Case(SkipCNN, _images, ("block2", "block3", "head"), "torch.fx"),
    "inside a block": Case(SkipCNN, _images, ("block2.norm", "block1"), "torch.fx"),
    "u-net": Case(UNet, _images, ("down2", "bottom", "up2", "out"), "torch.fx"),
    "gpt": Case(lambda: GPT(checks=False), _tokens, ("blocks.1", "head"), "torch.fx"),
    "gpt inside its blocks": Case(lambda: GPT(checks=False), _tokens, ("blocks.1.mlp", "norm"), "torch.fx"),
    # two blocks, as exporting takes its time by the block
    "gpt with asserts": Case(
        lambda: GPT(checks=True, blocks=2), _tokens, ("blocks.0", "blocks.1", "head"), "torch.export"
    ),
    "checked cnn": Case(CheckedCNN, _images, ("b", "head"), "torch.export"),
    "dict and keywords": Case(ByName, _named, ("b", "head"), "torch.fx"),
    "two inputs": Case(
        TwoInputs, lambda n: ((torch.randn(n, 6), torch.randn(n, 4)), {}), ("right", "head"), "torch.fx"
    ),
    "tied gpt": Case(lambda: GPT(checks=False, tied=True), _tokens, ("blocks.0", "head"), "torch.fx"),
    "tied gpt with asserts": Case(
        lambda: GPT(checks=True, tied=True, blocks=2), _tokens, ("blocks.1", "head"), "torch.export"
    ),
    "tuple out": Case(TupleOut, lambda n: ((torch.randn(n, 5, 6),), {}), ("decoder",), "torch.fx"),
}
