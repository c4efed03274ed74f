"""Autocast, and the factor that keeps small gradients from vanishing in float16.

The factor multiplies the loss and every message's scale, so estimates and received gradients carry it alike, and is
taken out of what has gathered before an update. It halves when a gradient is not finite (the guard has skipped that
update) and doubles after a long run without. A forward pass that overflows is lived with likewise: its minibatch is
skipped as a whole. bfloat16 has float32's range and needs none of this.
Source: Micikevicius et al. 2018 (arXiv 1710.03740), section 3.2; the numbers are `torch.amp.GradScaler`'s.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from syngrad.core.batch import Batch, first_nonfinite
from syngrad.errors import ConfigError, SyngradError, TrainingError, first_line
from syngrad.optim import sparse_gradients
from syngrad.optim.updates import Updates
from syngrad.targets import scalar

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
START, LARGEST, PATIENCE = 2.0**16, 2.0**24, 2000
#: forward passes that overflow one after the other before the run is given up
MOST_LOST = 50


class ForwardOverflowError(Exception):
    """A minibatch whose loss is not finite though its data is: float16 could not hold something on the way to it."""

    def __init__(self, loss: Tensor) -> None:
        super().__init__()
        self.loss = loss


class Precision:
    """The dtype of autocast (None: off) and, for float16, the factor as it stands."""

    def __init__(self, dtype: torch.dtype | None) -> None:
        self.dtype = dtype
        self.factor = START if dtype == torch.float16 else 1.0
        self.good = 0
        #: minibatches skipped in a row, as their forward pass overflowed
        self.lost = 0

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

    def check_forward(self, loss: Any, batch: Batch) -> None:
        """Refuse a loss that float16 has made of finite data.

        Raises:
            ForwardOverflowError: for it; the minibatch is to be skipped then.
        """
        if self.dtype == torch.float16:
            value = scalar(loss).detach()
            if not bool(value.isfinite()) and first_nonfinite(batch) is None:
                raise ForwardOverflowError(value)

    def lose(self, loss: Tensor, updates: Updates) -> None:
        """Count a minibatch as skipped, in every stage, whose forward pass has overflowed.

        Raises:
            TrainingError: where so many have in a row that the run will not recover.
        """
        self.lost += 1
        if updates.guard is not None:
            updates.guard.skip(updates.stage_names)
        self.adapt(True)
        if self.lost == MOST_LOST:
            raise TrainingError(
                f"the loss is {loss.item()} for the {MOST_LOST}th minibatch in a row though their data is finite: the "
                "forward pass leaves what float16 can hold (65504); use autocast='bfloat16', or none"
            )

    def apply(self, updates: Updates) -> None:
        """Apply what has gathered, without the factor that it carries; the factor then follows what was seen.

        Raises:
            TrainingError: for what the optimiser raises.
        """
        scaled = self.dtype == torch.float16
        if scaled:
            self.unscale(updates.gathered())
        try:
            updates.step_all()
        except (SyngradError, Warning):  # a warning, where somebody has made errors of them
            raise
        except Exception as error:
            kinds = ", ".join(sorted({type(optimizer).__name__ for optimizer in updates.optimizers}))
            remedy = "change its options, or use another, as adam or sgd"
            if "support sparse grad" in str(error):
                sparse = sparse_gradients.of_gradients(updates.parameters)
                found = [p for p in updates.parameters if id(p) in sparse]
                remedy = (
                    f"{sparse_gradients.named(found, updates.names)} has sparse gradients: {sparse_gradients.REMEDY}"
                )
            raise TrainingError(f"the optimizer {kinds} raised {first_line(error)}; {remedy}") from error
        if scaled:
            self.lost = 0
            self.adapt(updates.overflowed)

    def state_dict(self) -> dict[str, float]:
        """Plain data."""
        return {"factor": self.factor, "good": self.good, "lost": self.lost}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.factor, self.good, self.lost = float(state["factor"]), int(state["good"]), int(state["lost"])


def parse_dtype(autocast: Any) -> torch.dtype | None:
    """None, "bfloat16", "float16", or the torch dtype; otherwise a ConfigError that names what was given."""
    if autocast is None or autocast in DTYPES.values():
        return autocast  # type: ignore[no-any-return]
    if isinstance(autocast, str) and autocast in DTYPES:
        return DTYPES[autocast]
    raise ConfigError(f"autocast must be 'bfloat16', 'float16' or None, got {autocast!r}")
