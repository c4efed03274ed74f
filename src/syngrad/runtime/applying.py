"""The update at the end of a minibatch, under float16 without the factor that its gradients carry."""

from __future__ import annotations

import torch

from syngrad.errors import SyngradError, TrainingError, first_line
from syngrad.optim.updates import Updates
from syngrad.runtime.precision import Precision


def apply(updates: Updates, precision: Precision) -> None:
    """Apply what has gathered; the factor then follows what was seen.

    Raises TrainingError for what the optimiser raises.
    """
    scaled = precision.dtype == torch.float16
    if scaled:
        precision.unscale(updates.gathered())
    try:
        updates.step_all()
    except (SyngradError, Warning):  # a warning, where somebody has made errors of them
        raise
    except Exception as error:
        kinds = ", ".join(sorted({type(optimizer).__name__ for optimizer in updates.optimizers}))
        raise TrainingError(
            f"the optimizer {kinds} raised {first_line(error)}; change its options, or use another, as adam or sgd"
        ) from error
    if scaled:
        precision.adapt(updates.overflowed)
