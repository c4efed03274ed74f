"""The mean over all replicas of a vector that each has, by two rounds of messages, and the bytes that they take.

    1  every replica sends the r-th part of its vector to replica r, which averages the parts that it gets, by weight
    2  it sends its part of the mean to all others

So each sends about twice the vector, (R − 1)/R of it in either round, however many there are. All end with the same
numbers to the last bit: each part is averaged in one place, and what its owner takes is what it has sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from syngrad.replicas.encoding import BLOCK, decode, encode, encoded_bytes


class Group(Protocol):
    """The replicas that average together, as one of them sees it.

    Attributes:
        rank: this one's place among them.
        size: how many they are.
    """

    rank: int
    size: int

    def all_to_all(self, parts: list[Tensor]) -> list[Tensor]:
        """The i-th part of equal size goes to replica i; from each the one that is for this replica."""

    def all_gather(self, part: Tensor) -> list[Tensor]:
        """Every replica's, of equal size."""


def mean(group: Group, values: Tensor, weights: Sequence[float], dtype: str = "float32") -> tuple[Tensor, int]:
    """(Σ_r w_r x_r / Σ_r w_r, the bytes that this replica has sent).

    Args:
        group: the replicas.
        values: this one's vector x, on the CPU; as long, and of the same dtype, in every other.
        weights: w, one a replica, not all of them zero; what a replica of weight zero sends is not looked at.
        dtype: the form in which the numbers travel.
    """
    size, own = group.size, values.dtype
    length = -(-values.numel() // (size * BLOCK)) * BLOCK
    padded = torch.zeros(size * length, dtype=own)
    padded[: values.numel()] = values
    came = group.all_to_all([encode(part, dtype) for part in padded.view(size, length)])
    total = torch.zeros(length, dtype=own)
    for weight, part in zip(weights, came, strict=True):
        if weight:
            total.add_(decode(part, dtype, own), alpha=weight)
    total /= sum(weights)
    found = [decode(part, dtype, own) for part in group.all_gather(encode(total, dtype))]
    sent = 2 * (size - 1) * encoded_bytes(length, dtype, own)
    return torch.cat(found)[: values.numel()], sent
