"""English, character by character, with a small GPT: four blocks, an interface after each of the first three.

The metric is bits per character, the mean cross-entropy in bits. Every position has a loss of its own, so the heads at
the interfaces are token-wise: each predicts the next character from the one vector at its place. The output layer has
weights of its own.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from syngrad.data import TensorBatches, gutenberg
from syngrad.experiments.experiment import Experiment, adam

WIDTH, HEADS, BLOCKS, LENGTH = 96, 4, 4, 64
RATE, WARM_UP = 3e-3, 0.1
#: windows of LENGTH characters in an epoch, and in the test set
TRAINING, TEST = 40_960, 2_000
#: every 20th piece of so many windows is held out
PIECE, EVERY = 512, 20

PUBLISHED = ()
"""The papers trained recurrent nets on Penn Treebank's characters; of a transformer they have no figure."""


class Attention(nn.Module):
    """Causal attention of several heads; queries and keys are turned by their position (RoPE, arXiv 2104.09864)."""

    cosine: Tensor
    sine: Tensor

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.into = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        pairs = width // heads // 2
        angle = torch.arange(LENGTH)[:, None] * 1000.0 ** (-torch.arange(pairs) / pairs)
        self.register_buffer("cosine", angle.cos(), persistent=False)
        self.register_buffer("sine", angle.sin(), persistent=False)

    def turned(self, x: Tensor) -> Tensor:
        """(n, heads, t, f) both: pairs of features turned by their position times an angle of their own."""
        a, b = x.chunk(2, dim=-1)
        cosine, sine = self.cosine[: x.shape[2]], self.sine[: x.shape[2]]
        return torch.cat([a * cosine - b * sine, a * sine + b * cosine], dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        """(n, t, f) → (n, t, f)."""
        n, t, width = x.shape
        q, k, v = self.into(x).view(n, t, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(self.turned(q), self.turned(k), v, is_causal=True)
        return self.out(seen.transpose(1, 2).reshape(n, t, width))  # type: ignore[no-any-return]


class Block(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); what is added starts small, the smaller the more blocks."""

    def __init__(self, width: int, heads: int, blocks: int) -> None:
        super().__init__()
        self.norm1, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.ReLU(), nn.Linear(4 * width, width))
        with torch.no_grad():
            for last in (self.attention.out, self.mlp[2]):
                last.weight.mul_((2 * blocks) ** -0.5)  # type: ignore[operator]

    def forward(self, x: Tensor) -> Tensor:
        """(n, t, f) → (n, t, f)."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))  # type: ignore[no-any-return]


def network(vocabulary: int, width: int = WIDTH, heads: int = HEADS, blocks: int = BLOCKS) -> nn.Module:
    """(n, t) of characters' numbers → (n, t, vocabulary) scores for the next one."""
    embedding = nn.Embedding(vocabulary, width)
    nn.init.normal_(embedding.weight, std=0.2)
    parts: OrderedDict[str, nn.Module] = OrderedDict(embedding=embedding)
    for k in range(1, blocks + 1):
        parts[f"block{k}"] = Block(width, heads, blocks)
    parts["head"] = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, vocabulary))
    return nn.Sequential(parts)


@cache
def text() -> tuple[Tensor, int]:
    """The books as numbers of characters, in the order of their code points, and how many different ones there are."""
    codes = torch.tensor([ord(character) for character in gutenberg()])
    characters, numbers = codes.unique(return_inverse=True)
    return numbers, len(characters)


@cache
def windows(training: int = TRAINING) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training and test windows (k, LENGTH), each with its copy shifted by one character, drawn once for all seeds.

    The first drawn are the same however many there are to be.
    """
    numbers, _ = text()
    count = (len(numbers) - 1) // LENGTH
    inputs, targets = (numbers[shift : count * LENGTH + shift].view(count, LENGTH) for shift in (0, 1))
    held_out = torch.arange(count) // PIECE % EVERY == EVERY - 1
    generator = torch.Generator().manual_seed(0)

    def drawn(mask: Tensor, most: int) -> tuple[Tensor, Tensor]:
        found = mask.nonzero().squeeze(1)
        chosen = found[torch.randperm(len(found), generator=generator)[:most]]
        return inputs[chosen], targets[chosen]

    return drawn(~held_out, training), drawn(held_out, TEST)


def data(batch_size: int, seed: int) -> tuple[TensorBatches, TensorBatches]:
    """Training minibatches in an order that the seed decides, and pieces of the text that none of them comes from."""
    train, test = windows()
    return (
        TensorBatches(*train, batch_size=batch_size, shuffle=True, seed=seed, drop_last=True),
        TensorBatches(*test, batch_size=200),
    )


def loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy over all positions, in nats; (n, t, vocabulary) and (n, t)."""
    return F.cross_entropy(scores.flatten(0, 1), targets.flatten())


def positions(target: Tensor) -> float:
    """How many losses `loss` averages over."""
    return float(target.numel())


def share(step: int, steps: int) -> float:
    """The learning rate as a share of its peak: a line over the first tenth, then half a cosine to 0."""
    rising = max(1, round(WARM_UP * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - rising) / max(1, steps - rising))))


def char_gpt(epochs: int = 1, batch_size: int = 16) -> Experiment:
    """The whole recipe: one epoch of 2.6 million characters, Adam 3e-3 with a warm-up and half a cosine."""
    steps = max(1, epochs * (TRAINING // batch_size))
    return Experiment(
        name="char-gpt",
        dataset="books from Project Gutenberg, 2.6 million characters",
        model=lambda: network(text()[1]),
        data=data,
        loss=loss,
        metric="bits per character",
        cuts=["block2", "block3", "block4"],
        optimizer=adam(RATE),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: share(step, steps)),
        batch_size=batch_size,
        epochs=epochs,
        options={"loss_count": positions, "scheduler_every": "step"},
    )
