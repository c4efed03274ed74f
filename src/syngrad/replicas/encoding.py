"""The form in which numbers cross from replica to replica: as they are, in bfloat16, or in 8 bits with a scale a block.

int8: of every block of 256 numbers the scale s = max |x| / 127 is sent beside round(x / s), so that no number is
off by more than s / 2
"""

from __future__ import annotations

import torch
from torch import Tensor

#: as `Distributed(message_dtype=…)` calls them; "float32" leaves every dtype as it is
DTYPES = ("float32", "bfloat16", "int8")
#: numbers that share a scale
BLOCK = 256
_LARGEST = 127


def encoded_bytes(count: int, dtype: str, own: torch.dtype) -> int:
    """How many bytes so many numbers take, whatever they are; `own` is their dtype before.

    Args:
        count: a multiple of BLOCK.
        dtype: one of DTYPES.
        own: their dtype before and after.
    """
    if dtype == "int8":
        return count + 4 * (count // BLOCK)
    return count * (2 if dtype == "bfloat16" else own.itemsize)


def encode(values: Tensor, dtype: str) -> Tensor:
    """A vector, whose length is a multiple of BLOCK, as bytes."""
    if dtype == "bfloat16":
        return values.bfloat16().view(torch.uint8)
    if dtype != "int8":
        return values.contiguous().view(torch.uint8)
    blocks = values.view(-1, BLOCK).float()
    scales = blocks.abs().amax(1, keepdim=True) / _LARGEST
    # a block of zeros has a scale of zero, and so has one whose scale is too small for a number
    steps = torch.where(scales > 0, blocks / scales, 0.0).round_().clamp_(-_LARGEST, _LARGEST).to(torch.int8)
    return torch.cat([scales.view(-1).view(torch.uint8), steps.view(-1).view(torch.uint8)])


def decode(data: Tensor, dtype: str, own: torch.dtype) -> Tensor:
    """The vector that :func:`encode` made these bytes of, as nearly as they tell, in its own dtype."""
    if dtype == "bfloat16":
        return data.view(torch.bfloat16).to(own)
    if dtype != "int8":
        return data.view(own)
    count = data.numel() // (BLOCK + 4)
    scales = data[: 4 * count].clone().view(torch.float32)
    steps = data[4 * count :].view(torch.int8).view(count, BLOCK)
    return (steps.float() * scales[:, None]).view(-1).to(own)
