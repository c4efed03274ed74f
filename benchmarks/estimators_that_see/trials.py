"""Heads on trial: what gained stands in the library, what did not stands here, as small as it can be.

A stage of Syngrad never sees the weights of another. Heads that follow the next stage have to, and as long as they are
on trial they find it in the model that was made last, in one process.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from syngrad.estimators import Binding, Head, zero_
from syngrad.estimators.saddle import Start
from syngrad.experiments.char_gpt import network, text

MADE: list[nn.Module] = []
#: a head's output layer learns so many times as fast as what stands before it, and that as fast as its stage
GAIN = 10.0


def remembered() -> nn.Module:
    """The network, which :data:`MADE` holds until the next one is made."""
    MADE[:] = [network(text()[1])]
    return MADE[0]


class Output(nn.Linear):
    """A linear layer that learns at GAIN times the rate it is given, by Adam at least."""

    def forward(self, x: Tensor) -> Tensor:
        """GAIN·(W·x + b)."""
        return F.linear(x, GAIN * self.weight, GAIN * self.bias)


class Attention(nn.Module):
    """h + causal attention of normalised h: `heads` of a few features each, which see the near more than the far.

    Positions are biases −|distance|·2^(−8k/heads) of the scores (ALiBi, arXiv 2108.12409), without weights.
    """

    def __init__(self, width: int, inner: int, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.into, self.out = nn.Linear(width, 3 * inner, bias=False), nn.Linear(inner, width, bias=False)

    def forward(self, h: Tensor) -> Tensor:
        """(n, t, f) → (n, t, f)."""
        n, t, f = h.shape
        q, k, v = self.into(F.rms_norm(h, (f,))).view(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        place = torch.arange(t, device=h.device)
        distance = (place[:, None] - place).to(h.dtype)
        slope = 2.0 ** (-8.0 * torch.arange(1, self.heads + 1, device=h.device) / self.heads)
        bias = (-slope[:, None, None] * distance).masked_fill(distance < 0, -math.inf)
        weights = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1]) + bias).softmax(-1)
        return h + self.out((weights @ v).transpose(1, 2).reshape(n, t, -1))


class Deep(Head):
    """A head that is a module and an output layer on top of it; it learns at its stage's rate, its output faster."""

    def __init__(self, make: Callable[[Binding], nn.Module], **options: Any) -> None:
        super().__init__(**{"norm": False, "learning_rate": 1.0, **options})
        self.make = make

    def build(self, binding: Binding) -> None:
        """The body of the usual head is the output layer's size."""
        super().build(binding)
        usual = next(m for m in self.body.modules() if isinstance(m, nn.Linear))
        self.body = nn.Sequential(self.make(binding), zero_(Output(usual.in_features, usual.out_features)))
        self.start = Start([self.body])


def attention(binding: Binding, inner: int, **options: Any) -> Deep:
    """(a): one causal attention layer before the output."""
    return Deep(lambda binding: Attention(binding.width, inner), **options)


class Following(Deep):
    """(b), (c): a copy of a part of the next stage, trained along, and every n minibatches drawn towards it."""

    def __init__(self, part: Callable[[], nn.Module], pull: float, every: int, **options: Any) -> None:
        super().__init__(lambda binding: copy.deepcopy(part()), **options)
        self.part, self.pull, self.every, self.count = part, pull, every, 0

    def estimate(self, h: Tensor, context: Any, scale: float, keep: bool) -> tuple[Tensor, Any]:
        """As the head's."""
        self.count += 1
        if self.pull and self.count % self.every == 0:
            with torch.no_grad():
                for own, followed in zip(self.body[0].parameters(), self.part().parameters(), strict=True):
                    own.lerp_(followed, self.pull)
        return super().estimate(h, context, scale, keep)


class OnlyAttention(nn.Module):
    """x + attention(norm(x)): the first half of a block."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm1, self.attention = block.norm1, block.attention

    def forward(self, x: Tensor) -> Tensor:
        """(n, t, f) → (n, t, f)."""
        return x + self.attention(self.norm1(x))  # type: ignore[no-any-return]


CUTS = ("block2", "block3", "block4")


def part(cut: str, half: bool) -> nn.Module:
    """The block that follows a cut, or its attention alone."""
    block = MADE[0].get_submodule(cut)
    return OnlyAttention(block) if half else block


def follow(binding: Binding, cut: str, pull: float, every: int, half: bool, options: dict[str, Any]) -> Following:
    """The head of one cut."""
    return Following(partial(part, cut, half), pull, every, **options)


def following(pull: float, every: int = 50, half: bool = False, **options: Any) -> Any:
    """The next block, or its attention alone, at every cut."""
    given = {"pull": pull, "every": every, "half": half, "options": options}
    return {cut: partial(follow, cut=cut, **given) for cut in CUTS}


class Mixture(Head):
    """(e): δ̂ + c·r̄, r̄ a running mean of what δ̂ missed and c its cosine to that, followed likewise.

    Args:
        by_label: one r̄ for every label of a token, and not one for all.
        rate: of the running means.
    """

    def __init__(self, by_label: bool, rate: float = 0.02, **options: Any) -> None:
        super().__init__(**{"norm": None, "learning_rate": None, "feedback_every": 4, **options})
        self.by_label, self.rate, self.wants_feedback = by_label, rate, True

    def build(self, binding: Binding) -> None:
        """A row a label, or one."""
        super().build(binding)
        self.register_buffer("missed", torch.zeros(binding.context.size if self.by_label else 1, binding.width))
        self.register_buffer("cosine", torch.zeros(()))

    def at(self, h: Tensor, context: Tensor) -> Tensor:
        """r̄ for every token of a message."""
        return self.missed[context if self.by_label else torch.zeros_like(context)]

    def estimate(self, h: Tensor, context: Any, scale: float, keep: bool) -> tuple[Tensor, Any]:
        """scale·(δ̂ + c·r̄), and scale·δ̂ for the fit."""
        estimate, _ = super().estimate(h, context, scale, False)
        return estimate + self.cosine * scale * self.at(h, context), estimate

    def fit(self, h: Tensor, context: Any, received: Tensor, scale: float, kept: Any = None) -> None:
        """Move the running means; where δ̂ was not kept it is made again, without the labels' fit."""
        with torch.no_grad():
            if kept is None:
                kept = self(h, context).detach() * scale
            residual = (received - kept) / scale
            mean = self.at(h, context)
            if self.missed.any():
                self.cosine.lerp_(F.cosine_similarity(residual.flatten(), mean.flatten(), 0).clamp_min(0), self.rate)
            rows = (context if self.by_label else torch.zeros_like(context)).flatten()
            found = torch.zeros_like(self.missed).index_add_(0, rows, residual.flatten(0, 1))
            count = rows.bincount(minlength=len(self.missed))[:, None]
            moved = self.missed.lerp(found / count.clamp_min(1), self.rate)
            self.missed.copy_(torch.where(count > 0, moved, self.missed))


def mixture(binding: Binding, by_label: bool, **options: Any) -> Mixture:
    """One for a cut."""
    return Mixture(by_label, **options)
