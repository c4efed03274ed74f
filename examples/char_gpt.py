"""A small GPT on characters, cut in two: one target a character, and padding that does not count."""

import math
import random

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import syngrad
from syngrad.data import TensorBatches

LENGTH, IGNORED = 32, -100


def sentences(count: int, seed: int) -> list[str]:
    """Made-up English."""
    draw = random.Random(seed)
    who, what, how = ["cat", "dog", "old man", "child"], ["sees", "likes", "finds"], ["red", "small", "lost"]
    return [
        f"the {draw.choice(who)} {draw.choice(what)} a {draw.choice(how)} {draw.choice(who)}." for _ in range(count)
    ]


def encoded(texts: list[str]) -> tuple[Tensor, Tensor]:
    """Characters, and for each of them the one that follows; after the end there is nothing to predict."""
    tokens = torch.zeros(len(texts), LENGTH, dtype=torch.long)
    targets = torch.full_like(tokens, IGNORED)
    for row, text in enumerate(texts):
        codes = torch.tensor(list(text[:LENGTH].encode("ascii")))
        tokens[row, : len(codes)] = codes
        targets[row, : len(codes) - 1] = codes[1:]
    return tokens, targets


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.norm1(x)).chunk(3, -1)
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


class GPT(nn.Module):
    def __init__(self, characters: int = 128, width: int = 48, heads: int = 4, blocks: int = 2) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(characters, width), nn.Parameter(torch.zeros(LENGTH, width))
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(blocks))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, characters)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.token(tokens) + self.place
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))  # type: ignore[no-any-return]


def loss(scores: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(scores.transpose(1, 2), targets, ignore_index=IGNORED)


def bits_per_character(scores: Tensor, targets: Tensor) -> float:
    return loss(scores, targets).item() / math.log(2)


def main(epochs: int = 4, samples: int | None = None) -> float:
    torch.manual_seed(0)
    train = TensorBatches(*encoded(sentences(samples or 2000, seed=0)), batch_size=64, shuffle=True, seed=0)
    test = TensorBatches(*encoded(sentences(256, seed=1)), batch_size=256)
    trainer = syngrad.Trainer(
        syngrad.decouple(GPT(), cuts=["blocks.1"]),
        loss=loss,
        loss_count=lambda targets: (targets != IGNORED).sum(),  # what the loss is averaged over
        optimizer=lambda groups: torch.optim.AdamW(groups, 3e-3),
        groups={"*.bias": {"weight_decay": 0.0}, "norm*": {"weight_decay": 0.0}},
        clip_norm=1.0,
        metric=bits_per_character,
    )
    history = trainer.fit(train, epochs=epochs, validate=test)
    bits = history.epochs[-1].metrics["bits_per_character"]
    print(f"bits per character {bits:.3f}")
    return bits


if __name__ == "__main__":
    main()
