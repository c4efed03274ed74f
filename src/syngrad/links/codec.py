"""The form in which activations and gradients travel: as they are, in bfloat16, or in 8 bits with a scale a row.

A row is everything but the last dimension: a sample of (n, f), a token of (n, t, f); of an image (n, c, y, x) it is a
line of pixels. In 8 bits a value is round(x / s) with s = max|x| / 127 over its row, so it is off by s/2 at most. A row
that holds a NaN or an infinity gets the scale NaN, so that nothing that is not finite comes out finite.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def pack(tensors: list[Tensor], how: str) -> list[Any]:
    """The tensors as "float32" (every dtype as it is), "bfloat16" or "int8"; those without floats stay as they are."""
    return [_packed(tensor, how) for tensor in tensors]


def unpack(packed: list[Any], how: str, dtypes: list[torch.dtype]) -> list[Tensor]:
    """What :func:`pack` was given, in these dtypes."""
    return [_unpacked(each, how, dtype) for each, dtype in zip(packed, dtypes, strict=True)]


def _packed(tensor: Tensor, how: str) -> Any:
    if how == "float32" or not tensor.is_floating_point():
        return tensor
    if how == "bfloat16":
        return tensor.to(torch.bfloat16)
    rows = tensor.float() if tensor.dim() else tensor.float().reshape(1)
    if rows.numel() == 0:
        return [torch.zeros(rows.shape, dtype=torch.int8), torch.ones(())]
    scale = rows.abs().amax(-1, keepdim=True) / 127
    scale = torch.where(scale.isfinite(), scale, torch.nan)
    steps = (rows / torch.where(scale > 0, scale, 1.0)).round_().nan_to_num_(0.0).clamp_(-127, 127)
    return [steps.to(torch.int8), scale]


def _unpacked(packed: Any, how: str, dtype: torch.dtype) -> Tensor:
    if isinstance(packed, Tensor):
        return packed if packed.dtype == dtype else packed.to(dtype)
    steps, scale = packed
    values: Tensor = steps * scale
    return values.to(dtype)
