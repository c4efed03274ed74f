"""The form in which activations and gradients travel: as they are, in bfloat16, or in 8 bits with a scale a row.

A row is everything along the last dimension: a sample of (n, f), a token of (n, t, f), a line of pixels of an image
(n, c, y, x). In 8 bits a value is round(x / s) with s = max|x| / 127 over its row, so that it is off by s/2 at most. A
row that holds a NaN or an infinity gets the scale NaN: nothing that is not finite comes out finite.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from syngrad.errors import LinkError

_STEPS = 127
_SMALLEST = torch.finfo(torch.float32).tiny
#: the largest scale of which so many steps are still finite
_LARGEST = torch.nextafter(torch.tensor(torch.finfo(torch.float32).max / _STEPS), torch.zeros(())).item()


def pack(tensors: list[Tensor], how: str) -> list[Any]:
    """The tensors as "float32" (every dtype as it is), "bfloat16" or "int8"; those without floats stay as they are."""
    return [_packed(tensor, how) for tensor in tensors]


def unpack(packed: list[Any], how: str, dtypes: list[torch.dtype]) -> list[Tensor]:
    """What :func:`pack` was given, in these dtypes.

    Raises:
        LinkError: for what it cannot have made.
    """
    if not isinstance(packed, list) or len(packed) != len(dtypes):
        raise LinkError(f"what came is not {len(dtypes)} tensors packed as {how}")
    return [_unpacked(each, how, dtype) for each, dtype in zip(packed, dtypes, strict=True)]


def _packed(tensor: Tensor, how: str) -> Any:
    if how == "float32" or not tensor.is_floating_point():
        return tensor
    if how == "bfloat16":
        return tensor.to(torch.bfloat16)
    rows = tensor.float()
    if rows.numel() == 0:
        return [rows.to(torch.int8), rows.new_ones((*rows.shape[:-1], 1))]
    if rows.dim() == 0:
        rows = rows.view(1)
    # NaN and infinity win every maximum, and x·0 is NaN for both, and 0 for any other
    largest = rows.abs().amax(-1, keepdim=True)
    scale = (largest / _STEPS).clamp_(_SMALLEST, _LARGEST).add_(largest * 0)
    steps = (rows / scale).round_().nan_to_num_(0.0).clamp_(-_STEPS, _STEPS).to(torch.int8)
    return [steps.view(tensor.shape), scale]


def _unpacked(packed: Any, how: str, dtype: torch.dtype) -> Tensor:
    if isinstance(packed, Tensor) and (how != "int8" or not dtype.is_floating_point):
        return packed if packed.dtype == dtype else packed.to(dtype)
    steps, scale = packed if isinstance(packed, list | tuple) and len(packed) == 2 else (None, None)
    if not isinstance(steps, Tensor) or not isinstance(scale, Tensor) or steps.dtype != torch.int8:
        raise LinkError(f"what came is not packed as {how}")
    if scale.shape != (*steps.shape[:-1], 1):
        raise LinkError(f"what came is not packed as {how}: its scales are of another shape")
    values: Tensor = steps * scale
    return values.view(steps.shape).to(dtype)
