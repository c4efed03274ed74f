"""Messages of PyTorch's pipelines in bfloat16 or 8 bits, as Syngrad's own can travel, so that like is set against like.

PyTorch's stages send what a stage's forward returns, and gradients in the dtype and shape of what was sent. So each
message is turned, inside the stage's own graph, into the tensor that crosses; backward it is the other way round:

    forward:  h ─▶ packed ═══▶ packed ─▶ h       backward:  g ◀─ packed ◀═══ packed ◀─ g

In 8 bits what crosses is called float32, with the bits of four steps, or of a row's scale, in each number; nobody
computes with it on its way.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from syngrad.links.message_dtype import pack, unpack

#: by a row's variant, as messages call it
FORMS = {"": "float32", "bf16": "bfloat16", "int8": "int8"}
_WORD = 4


class Narrow:
    """One leaf of a message, as it travels.

    Args:
        leaf: like those that will be sent.
        form: "float32" for as it is, "bfloat16" or "int8".
    """

    def __init__(self, leaf: Tensor, form: str) -> None:
        self.dtype = leaf.dtype
        self.form = form if leaf.is_floating_point() and leaf.dim() > 1 else "float32"
        self.width = leaf.shape[-1] if leaf.dim() else 1

    def bytes(self, leaf: Tensor) -> int:
        """That one such leaf has on its way."""
        if self.form == "int8":
            return leaf.numel() // max(self.width, 1) * _WORD * (-(-self.width // _WORD) + 1)
        return leaf.numel() * (2 if self.form == "bfloat16" else leaf.element_size())

    def packed(self, h: Tensor) -> Tensor:
        """What crosses for h."""
        return h if self.form == "float32" else _Pack.apply(h, self)  # type: ignore[no-untyped-call]

    def unpacked(self, came: Tensor) -> Tensor:
        """h, as near as its form allows."""
        return came if self.form == "float32" else _Unpack.apply(came, self)  # type: ignore[no-untyped-call]

    def there(self, h: Tensor) -> Tensor:
        """The tensor that crosses."""
        (packed,) = pack([h], self.form)
        if self.form == "bfloat16":
            return packed  # type: ignore[no-any-return]
        steps, scale = packed
        words = torch.nn.functional.pad(steps, (0, -self.width % _WORD)).contiguous().view(torch.float32)
        return torch.cat([words, scale], dim=-1)

    def back(self, came: Tensor) -> Tensor:
        """From what has crossed."""
        if self.form == "bfloat16":
            return came.to(self.dtype)
        steps = came[..., :-1].contiguous().view(torch.int8)[..., : self.width]
        return unpack([[steps, came[..., -1:]]], self.form, [self.dtype])[0]


class _Pack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, narrow: Narrow) -> Tensor:
        ctx.narrow = narrow
        return narrow.there(h)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return ctx.narrow.back(gradient), None


class _Unpack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, came: Tensor, narrow: Narrow) -> Tensor:
        ctx.narrow = narrow
        return narrow.back(came)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return ctx.narrow.there(gradient), None
