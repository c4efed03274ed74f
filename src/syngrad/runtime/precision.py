"""Autocast, and the factor that keeps small gradients from vanishing in float16.

The factor multiplies the loss and every message's scale, so estimates and received gradients carry it alike, and is
taken out of what has gathered before an update. It halves when a gradient is not finite (the guard has skipped that
update) and doubles after a long run without. bfloat16 has float32's range and needs none.
Source: Micikevicius et al. 2018 (arXiv 1710.03740), section 3.2; the numbers are `torch.amp.GradScaler`'s.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from syngrad.errors import ConfigError

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
START, LARGEST, PATIENCE = 2.0**16, 2.0**24, 2000


class Precision:
    """The dtype of autocast (None: off) and, for float16, the factor as it stands."""

    def __init__(self, dtype: torch.dtype | None) -> None:
        self.dtype = dtype
        self.factor = START if dtype == torch.float16 else 1.0
        self.good = 0

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        """Inside it the forwards run in the lower precision."""
        return nullcontext() if self.dtype is None else torch.autocast(device.type, self.dtype)

    def unscale(self, gradients: list[Tensor]) -> None:
        """Take the factor out of what has gathered, in place."""
        if self.factor != 1.0 and gradients:
            torch._foreach_mul_(gradients, 1.0 / self.factor)

    def adapt(self, overflowed: bool) -> None:
        """The factor for the next minibatch."""
        if self.dtype != torch.float16:
            return
        self.good = 0 if overflowed else self.good + 1
        if overflowed:
            self.factor = max(self.factor / 2, 1.0)
        elif self.good >= PATIENCE:
            self.good, self.factor = 0, min(self.factor * 2, LARGEST)

    def state_dict(self) -> dict[str, float]:
        """Plain data."""
        return {"factor": self.factor, "good": self.good}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.factor, self.good = float(state["factor"]), int(state["good"])


def parse_dtype(autocast: Any) -> torch.dtype | None:
    """None, "bfloat16", "float16", or the torch dtype; otherwise a ConfigError that names what was given."""
    if autocast is None or autocast in DTYPES.values():
        return autocast  # type: ignore[no-any-return]
    if isinstance(autocast, str) and autocast in DTYPES:
        return DTYPES[autocast]
    raise ConfigError(f"autocast must be 'bfloat16', 'float16' or None, got {autocast!r}")
