"""What a head is made of: small networks from a message to the model's output, sized from the binding alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from syngrad.errors import ConfigError
from syngrad.estimators.base import Binding, zero_
from syngrad.estimators.closed_form import EPSILON


def layers(sizes: list[int], make: Callable[[int, int], nn.Module] = nn.Linear) -> nn.Sequential:
    """Layer, ReLU, …, layer; the last one starts at zero."""
    parts = [part for a, b in pairwise(sizes[:-1]) for part in (make(a, b), nn.ReLU())]
    return nn.Sequential(*parts, zero_(make(sizes[-2], sizes[-1])))


class Reshaped(nn.Module):
    """Rows in, rows out, given back in the shape of the model's output."""

    def __init__(self, body: nn.Module, output: torch.Size, flatten_from: int) -> None:
        super().__init__()
        self.body, self.output, self.flatten_from = body, output, flatten_from

    def forward(self, h: Tensor) -> Tensor:
        """(n, …) → (n, *output)."""
        return self.body(h.flatten(self.flatten_from)).view(h.shape[0], *self.output)  # type: ignore[no-any-return]


class Column(nn.Module):
    """(n,) → (n, 1): a message of one number a sample."""

    def forward(self, h: Tensor) -> Tensor:
        """(n,) → (n, 1)."""
        return h.unsqueeze(-1)


class MeanOverTime(nn.Module):
    """(n, t, f) → (n, f): one output for a whole sequence."""

    def forward(self, h: Tensor) -> Tensor:
        """The mean over t."""
        return h.mean(1)


class ImageStem(nn.Module):
    """Brings a picture to at most `size`×`size` before the linear layers, by halving it as often as that takes.

    Each time by a 3×3 convolution of stride 2 and a ReLU, the last of them `width` channels wide, each before half as
    wide: what a network itself does further on, so that a stage is asked for what its successors can use. Without a
    width by averaging alone, which throws the detail away and is far behind. Weights are laid out with the channels
    last, which makes convolutions on a CPU about twice as fast.
    """

    def __init__(self, shape: torch.Size, width: int, size: int) -> None:
        super().__init__()
        channels, height, across = shape
        halvings: list[nn.Module] = []
        times = halvings_to(size, height, across) if width else 0
        for left in reversed(range(times)):
            out = max(1, width >> left)
            halvings += [nn.Conv2d(channels, out, 3, stride=2, padding=1), nn.ReLU()]
            channels, height, across = out, (height + 1) // 2, (across + 1) // 2
        self.reduce = nn.Sequential(*halvings).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.pool: nn.Module = nn.Identity()
        if max(height, across) > size:
            height, across = min(size, height), min(size, across)
            self.pool = nn.AdaptiveAvgPool2d((height, across))
        self.features = channels * height * across

    def forward(self, h: Tensor) -> Tensor:
        """(n, c, y, x) → (n, features)."""
        return self.pool(self.reduce(h)).flatten(1)  # type: ignore[no-any-return]


def halvings_to(size: int, height: int, across: int) -> int:
    """How often a picture must be halved, rounding up, until both sides are at most `size`."""
    times = 0
    while max(height, across) > size:
        height, across, times = (height + 1) // 2, (across + 1) // 2, times + 1
    return times


class Dense(nn.Module):
    """A picture for a picture: 1×1 convolutions, each of whose places becomes r×r of the output's where that is larger.

    Where the output is not larger by a whole factor, it is interpolated to: that alone would ask a stage for a picture
    as coarse as its own.
    """

    def __init__(self, shape: torch.Size, hidden: list[int], output: torch.Size) -> None:
        super().__init__()
        channels, height, across = shape
        self.finer = output[1] // height
        if self.finer < 1 or output[1:] != (height * self.finer, across * self.finer):
            self.finer = 1
        self.body = layers([channels, *hidden, output[0] * self.finer**2], partial(nn.Conv2d, kernel_size=1))
        self.size = tuple(output[1:])

    def forward(self, h: Tensor) -> Tensor:
        """(n, c, y, x) → (n, *output)."""
        scores = self.body(h)
        if self.finer > 1:
            scores = nn.functional.pixel_shuffle(scores, self.finer)
        if scores.shape[2:] != self.size:
            scores = nn.functional.interpolate(scores, self.size, mode="bilinear", align_corners=False)
        return scores  # type: ignore[no-any-return]


def bodies(binding: Binding, hidden: int, width: int, channels: int, pool: int, norm: bool) -> nn.Module:
    """A head's network for this message: of one output, or of several."""
    if not binding.outputs:
        return body(binding, hidden, width, channels, pool, norm)
    return Several(body(each, hidden, width, channels, pool, norm) for each in one_by_one(binding))


def one_by_one(binding: Binding) -> list[Binding]:
    """The binding of each output."""
    return [replace(binding, output=output, outputs=()) for output in binding.outputs] or [binding]


def body(binding: Binding, hidden: int, width: int, channels: int, pool: int, norm: bool) -> nn.Sequential:
    """A head's network for this message and one output.

    Args:
        binding: the message, the model's output and the loss.
        hidden: layers before the last.
        width: units of each of those.
        channels: of an image's stem.
        pool: the side to which the stem brings an image.
        norm: normalise each sample (in a sequence each token) first, without weights.
    """
    first: list[nn.Module] = [Column()] if not binding.shape else []
    rest = list(unnormalised(binding, hidden, width, channels, pool))
    if rest and isinstance(rest[0], ImageStem):
        first.append(rest.pop(0))  # a picture is normalised when it has become small: that costs a sixth
    over = normalised(binding, first[-1] if first else None)
    if norm and over.numel() > 1:  # one number alone would keep no more than its sign
        first.append(nn.RMSNorm(over, eps=EPSILON, elementwise_affine=False))
    return nn.Sequential(*first, *rest)


def normalised(binding: Binding, stem: nn.Module | None) -> torch.Size:
    """What is brought to a root mean square of 1 together.

    A vector's or a token's features, what the stem has made of a picture, or all of a message of any other kind.
    """
    if isinstance(stem, ImageStem):
        return torch.Size([stem.features])
    return torch.Size([binding.width]) if binding.kind in ("vector", "sequence") else binding.shape


def flat(module: nn.Module) -> bool:
    """Whether a head begins by taking a picture as it is for a vector: there is nothing in its stem."""
    return isinstance(module, ImageStem) and not list(module.reduce) and isinstance(module.pool, nn.Identity)


def token_wise(binding: Binding) -> bool:
    """Whether the model has an output for every token of the message, or of a target of its own length."""
    output = binding.output
    if binding.kind != "sequence" or output is None or len(output) != 2:
        return False
    return output[0] == binding.shape[0] or (binding.context.kind == "tokens" and binding.context.size in output)


def classes_first(binding: Binding) -> bool:
    """Whether a token-wise output is (classes, t), as cross-entropy has it, and not (t, classes)."""
    output = binding.output
    return output is not None and output[0] != binding.shape[0] and output[1] != binding.context.size


class Turned(nn.Module):
    """(n, t, classes) → (n, classes, t)."""

    def forward(self, scores: Tensor) -> Tensor:
        """The last two dimensions in the other order."""
        return scores.transpose(1, 2)


class Several(nn.ModuleList):
    """A body for each of the output's tensors that the loss reads."""

    def forward(self, h: Tensor) -> tuple[Tensor, ...]:
        """The tensors, in the order of the output's leaves."""
        return tuple(body(h) for body in self)


def time_dimension(binding: Binding) -> int | None:
    """The dimension of a token-wise head's output that is to be as long as the target; None for as it comes."""
    follows = token_wise(binding) and binding.context.kind == "tokens"
    return (2 if classes_first(binding) else 1) if follows else None


def aligned(scores: Tensor, context: Any, time: int | None) -> Tensor:
    """A token-wise output for as many tokens as the target (n, t) has: where it has others than the message, the mean
    over the message's stands for each of them.
    """
    if time is None or not isinstance(context, Tensor) or context.dim() < 2 or context.shape[1] == scores.shape[time]:
        return scores
    sizes = list(scores.shape)
    sizes[time] = context.shape[1]
    return scores.mean(time, keepdim=True).expand(sizes)


def unnormalised(binding: Binding, hidden: int, width: int, channels: int, pool: int) -> nn.Sequential:
    """The layers behind the normalisation."""
    if binding.output is None or binding.loss is None:
        why = f": {binding.why}" if binding.why else ""
        raise ConfigError(
            "a head (default, local, sobolev) predicts what the loss reads of the model's output, tensors with the "
            f"batch as their first dimension{why}; have the loss read such ones, use estimator='linear' or 'mlp', or "
            "give a lone Interface loss= and output="
        )
    output, units = binding.output, [width] * hidden
    last = output.numel()
    if token_wise(binding):
        first = classes_first(binding)
        by_token = layers([binding.width, *units, output[0 if first else 1]])
        return nn.Sequential(by_token, Turned()) if first else by_token
    if binding.kind == "sequence" and len(output) <= 1:
        return nn.Sequential(MeanOverTime(), *_shaped(layers([binding.width, *units, last]), output, 1))
    if binding.kind == "image" and len(output) == 3:
        return nn.Sequential(Dense(binding.shape, units, output))
    if binding.kind == "image":
        stem = ImageStem(binding.shape, channels, pool)
        return nn.Sequential(stem, *_shaped(layers([stem.features, *units, last]), output, 1))
    flat = layers([binding.features, *units, last])
    return flat if binding.kind == "vector" and len(output) == 1 else nn.Sequential(Reshaped(flat, output, 1))


def _shaped(rows: nn.Module, output: torch.Size, flatten_from: int) -> list[nn.Module]:
    return [rows] if len(output) == 1 else [Reshaped(rows, output, flatten_from)]
