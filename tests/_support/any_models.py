"""Models of the shapes that people bring: control flow, caches, several outputs, tied weights, no batch in front."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.checkpoint import checkpoint

VOCABULARY, WIDTH, CLASSES, N, LENGTH = 23, 16, 3, 6, 7


@dataclass
class Scores:
    """An output that is an object, with a cache beside what the loss reads."""

    logits: Tensor
    cache: Any = None
    hidden: tuple[Tensor, ...] = ()


class Cache:
    """Keys and values of earlier layers, in a list that grows while the forward runs."""

    def __init__(self) -> None:
        self.kept: list[tuple[Tensor, Tensor]] = []

    def update(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keep one layer's."""
        self.kept.append((key, value))
        return key, value


class Block(nn.Module):
    """Attention over the sequence and a feed-forward part, residual and with norms before."""

    def __init__(
        self, dropout: float = 0.0, checkpointed: bool = False, reentrant: bool = False, causal: bool = False
    ) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.mix, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.feed = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))
        self.drop = nn.Dropout(dropout)
        self.checkpointed, self.reentrant, self.causal = checkpointed, reentrant, causal

    def forward(self, h: Tensor, cache: Cache | None = None) -> Tensor:
        """(n, t, f) → (n, t, f)."""
        if self.checkpointed and self.training:
            return checkpoint(self.inner, h, cache, use_reentrant=self.reentrant)  # type: ignore[no-any-return]
        return self.inner(h, cache)

    def inner(self, h: Tensor, cache: Cache | None) -> Tensor:
        """The block itself."""
        query, key, value = self.mix(self.first(h)).chunk(3, -1)
        if cache is not None:
            key, value = cache.update(key, value)
        h = h + self.drop(self.out(self.attended(query, key, value)))
        return h + self.feed(self.second(h))  # type: ignore[no-any-return]

    def attended(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """What each token takes of the others; as in libraries, a causal one masks them itself where it is recorded."""
        if not self.causal:
            return (query @ key.transpose(1, 2) / WIDTH**0.5).softmax(-1) @ value
        if not torch.compiler.is_exporting():
            return F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None], is_causal=True)[:, 0]
        later = torch.ones(query.shape[1], query.shape[1], dtype=torch.bool).triu(1)
        return (query @ key.transpose(1, 2) / WIDTH**0.5).masked_fill(later, -1e30).softmax(-1) @ value


class LanguageModel(nn.Module):
    """A small GPT as libraries write it: control flow, a cache, an output object, tied weights."""

    def __init__(self, layers: int = 3, tied: bool = True, cache: bool = True, **block: Any) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(Block(**block) for _ in range(layers))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.cached = cache
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Scores:
        """Token ids to scores."""
        if ids.shape[1] > 1000:
            raise ValueError("too long")
        h, cache, hidden = self.embed(ids), Cache() if self.cached else None, []
        for block in self.blocks:
            hidden.append(h)
            h = block(h, cache)
        return Scores(self.head(self.norm(h)), cache, tuple(hidden))


class TwoHeads(nn.Module):
    """Two tasks on one trunk, whose outputs are a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Sequential(nn.Linear(WIDTH, 32), nn.Tanh())
        self.middle = nn.Linear(32, 32)
        self.kind, self.amount = nn.Linear(32, CLASSES), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Features to both outputs, and one that nobody reads."""
        h = self.middle(self.trunk(x)).relu()
        return {"kind": self.kind(h), "unread": h * 2, "amount": self.amount(h)}


class AutoEncoder(nn.Module):
    """A variational one: what the loss reads is made before the cut and after it."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.mean, self.spread = nn.Linear(WIDTH, 32), nn.Linear(32, 4), nn.Linear(32, 4)
        self.decode, self.out = nn.Linear(4, 32), nn.Linear(32, WIDTH)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features to their reconstruction, mean and logarithm of the variance."""
        h = torch.tanh(self.encode(x))
        mean, spread = self.mean(h), self.spread(h)
        z = mean + torch.randn_like(mean) * torch.exp(spread / 2)
        return self.out(torch.tanh(self.decode(z))), mean, spread


class Translation(nn.Module):
    """Encoder and decoder: every layer of the decoder looks at what the encoder has made."""

    def __init__(self, layers: int = 2) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.bias = nn.Embedding(1, LENGTH * LENGTH)
        self.encoder = nn.ModuleList(BiasedBlock() for _ in range(layers))
        self.decoder = nn.ModuleList(Attend() for _ in range(layers))
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        """Two sequences of ids, of lengths of their own, to scores for the second."""
        bias = self.bias.weight.view(1, LENGTH, LENGTH)[:, : source.shape[1], : source.shape[1]] * 1.0
        memory = self.embed(source)
        for block in self.encoder:
            memory = block(memory, bias)
        h = self.embed(target)
        for layer in self.decoder:
            if h.shape[0] > 0:
                h = layer(h, memory)
        return self.head(h)  # type: ignore[no-any-return]


class BiasedBlock(nn.Module):
    """Attention with a bias by position, (1, t, t), which all blocks share."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(WIDTH, 2 * WIDTH)

    def forward(self, h: Tensor, bias: Tensor) -> Tensor:
        """(n, t, f) → (n, t, f)."""
        query, value = self.mix(h).chunk(2, -1)
        return h + (query @ h.transpose(1, 2) + bias).softmax(-1) @ value  # type: ignore[no-any-return]


class Attend(nn.Module):
    """A layer of a decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, h: Tensor, memory: Tensor) -> Tensor:
        """(n, t, f) and (n, s, f) → (n, t, f)."""
        return h + self.out((self.query(h) @ memory.transpose(1, 2)).softmax(-1) @ memory)  # type: ignore[no-any-return]


class Packed(nn.Module):
    """An LSTM over packed sequences, and layers behind its last state."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.recurrent = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.middle, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Ids and lengths to scores."""
        packed = pack_padded_sequence(self.embed(ids), lengths.cpu(), batch_first=True, enforce_sorted=False)
        _, (h, _) = self.recurrent(packed)
        return self.head(self.middle(h[-1]).relu())  # type: ignore[no-any-return]


class States(nn.Module):
    """Two LSTMs, the second of which begins at the state where the first has ended."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.first = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.second = nn.LSTM(WIDTH, WIDTH, batch_first=True)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, ids: Tensor) -> Tensor:
        """Ids to scores."""
        h, state = self.first(self.embed(ids))
        return self.head(self.second(h, state)[0][:, -1])  # type: ignore[no-any-return]


class Dropped(nn.Module):
    """Layers of which each is left out by chance, which no recording can keep."""

    def __init__(self, chance: float = 0.3) -> None:
        super().__init__()
        self.into = nn.Linear(WIDTH, WIDTH)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.head = nn.Linear(WIDTH, CLASSES)
        self.chance = chance

    def forward(self, x: Tensor) -> Tensor:
        """Features to scores."""
        h = self.into(x)
        for layer in self.layers:
            if not (self.training and torch.rand(()).item() < self.chance):
                h = h + torch.tanh(layer(h))
        return self.head(h)  # type: ignore[no-any-return]


class Around(nn.Module):
    """A residual path around the very module at which it is cut."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.inner, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Features to scores."""
        h = torch.relu(self.into(x))
        if x.shape[0] > 0:
            h = h + torch.relu(self.inner(h))
        return self.head(h)  # type: ignore[no-any-return]


class Beside(nn.Module):
    """A value beside the one that crosses, which nothing but a dead end uses."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.dead = nn.Linear(WIDTH, 32), nn.Linear(WIDTH, 32)
        self.b, self.c = nn.Linear(32, 32), nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Features to scores."""
        h, dead = self.a(x), self.dead(x)
        z = self.b(h).relu()
        dead = dead * 2
        return self.c(z)  # type: ignore[no-any-return]


class Ignores(nn.Module):
    """A module that is given more than it looks at, or looks only at its numbers, without a gradient."""

    def __init__(self, looks: bool = False) -> None:
        super().__init__()
        self.a, self.dead, self.b, self.c = (
            nn.Linear(WIDTH, 32), nn.Linear(WIDTH, 32), IgnoresSome(looks), IgnoresSome(False)
        )  # fmt: skip
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Features to scores."""
        h, dead = self.a(x), self.dead(x)
        return self.head(self.c(self.b(h, dead), dead))  # type: ignore[no-any-return]


class IgnoresSome(nn.Module):
    """A layer that takes an argument beside."""

    def __init__(self, looks: bool) -> None:
        super().__init__()
        self.f, self.looks = nn.Linear(32, 32), looks

    def forward(self, h: Tensor, extra: Tensor) -> Tensor:
        """(n, f) → (n, f)."""
        h = self.f(h).relu()
        return h + extra.detach() if self.looks else h


class Turned(nn.Module):
    """A layer that is given a tensor with its last dimensions changed places, which does not lie row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.mix, self.head = nn.Linear(WIDTH, 32), nn.Linear(LENGTH, 64), nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(n, t, f) to scores."""
        return self.head(self.mix(self.into(x).transpose(1, 2)).relu().mean(1))  # type: ignore[no-any-return]


class Writes(nn.Module):
    """A block that begins by writing into what it is given."""

    def __init__(self, view: bool = False) -> None:
        super().__init__()
        self.into, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.inner, self.view = WritesFirst(), view

    def forward(self, x: Tensor) -> Tensor:
        """Features to scores."""
        h = self.into(x)
        if x.shape[0] > 0:
            h = self.inner(h.view(-1, WIDTH) if self.view else h)
        return self.head(h)  # type: ignore[no-any-return]


class WritesFirst(nn.Module):
    """Adds a parameter in place."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.ones(WIDTH))

    def forward(self, h: Tensor) -> Tensor:
        """(n, f) → (n, f)."""
        h += self.shift
        return torch.tanh(h)


def by_token(output: Any, target: Tensor) -> Tensor:
    """Cross-entropy of every token."""
    scores = output.logits if isinstance(output, Scores) else output
    return F.cross_entropy(scores.transpose(1, 2), target)


def of_both(output: dict[str, Tensor], target: tuple[Tensor, Tensor]) -> Tensor:
    """The sum of two tasks' losses."""
    return F.cross_entropy(output["kind"], target[0]) + F.mse_loss(output["amount"].squeeze(1), target[1])


def evidence(output: tuple[Tensor, Tensor, Tensor], target: Tensor) -> Tensor:
    """Of a variational autoencoder."""
    out, mean, spread = output
    return F.mse_loss(out, target) + 0.1 * (mean.square() + spread.exp() - spread - 1).mean()


@dataclass
class Family:
    """A model, how it is called, and where it is cut."""

    model: Callable[[], nn.Module]
    batch: Callable[[], Any]
    loss: Callable[[Any, Any], Tensor]
    cuts: list[str]
    options: dict[str, Any] = field(default_factory=dict)


def features() -> Tensor:
    """Of N samples."""
    return torch.randn(N, WIDTH, dtype=torch.float64)


def sequences() -> Tensor:
    """Of N samples, their features at every step."""
    return torch.randn(N, LENGTH, WIDTH, dtype=torch.float64)


def ids(length: int = LENGTH) -> Tensor:
    """Of N sequences."""
    return torch.randint(VOCABULARY, (N, length))


def labels() -> Tensor:
    """Of N samples."""
    return torch.randint(CLASSES, (N,))


FAMILIES: OrderedDict[str, Family] = OrderedDict(
    language_model=Family(LanguageModel, lambda: (ids(), ids()), by_token, ["blocks.1", "blocks.2"]),
    dropout=Family(lambda: LanguageModel(2, dropout=0.2), lambda: (ids(), ids()), by_token, ["blocks.1"]),
    causal=Family(lambda: LanguageModel(2, tied=False, causal=True), lambda: (ids(), ids()), by_token, ["blocks.1"]),
    tied_last=Family(lambda: LanguageModel(2), lambda: (ids(), ids()), by_token, ["blocks.1", "head"]),
    checkpointed=Family(lambda: LanguageModel(2, checkpointed=True), lambda: (ids(), ids()), by_token, ["blocks.1"]),
    two_heads=Family(TwoHeads, lambda: (features(), (labels(), torch.randn(N).double())), of_both, ["middle"]),
    autoencoder=Family(AutoEncoder, lambda: (x := features(), x), evidence, ["decode"]),
    translation=Family(
        Translation, lambda: (ids(5), ids(6), ids(6)), by_token, ["encoder.1", "decoder.0", "decoder.1"]
    ),
    packed=Family(Packed, lambda: (ids(), torch.randint(1, LENGTH + 1, (N,)), labels()), F.cross_entropy, ["middle"]),
    states=Family(States, lambda: (ids(), labels()), F.cross_entropy, ["second"]),
    around=Family(Around, lambda: (features(), labels()), F.cross_entropy, ["inner", "head"]),
    writes=Family(Writes, lambda: (features(), labels()), F.cross_entropy, ["inner"]),
    writes_view=Family(lambda: Writes(True), lambda: (features(), labels()), F.cross_entropy, ["inner"]),
    beside=Family(Beside, lambda: (features(), labels()), F.cross_entropy, ["b"]),
    turned=Family(Turned, lambda: (sequences(), labels()), F.cross_entropy, ["mix"]),
    ignores=Family(Ignores, lambda: (features(), labels()), F.cross_entropy, ["b", "c"]),
)
