"""The cross-entropy that recurrent nets have unless another is given, and what it averages over."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn.functional import cross_entropy

from syngrad.errors import ConfigError


def token_cross_entropy(outputs: Any, targets: Any, count: float | None = None) -> Tensor:
    """Mean cross-entropy of (…, classes) scores against (…) labels, of which −100 do not count; 0 where none does.

    count: how many there are, where that is known already.
    """
    if not isinstance(outputs, Tensor) or not isinstance(targets, Tensor) or outputs.shape[:-1] != targets.shape:
        got = " and ".join(
            str(tuple(each.shape)) if isinstance(each, Tensor) else type(each).__name__ for each in (outputs, targets)
        )
        raise ConfigError(
            f"without loss= the outputs are scores (n, t, classes) and the targets labels (n, t), got {got}; give "
            "loss= a function of (outputs, targets), or readout= what makes scores of outputs"
        )
    if targets.is_floating_point():
        raise ConfigError("without loss= the targets are labels, got floating numbers; give loss=, as F.mse_loss")
    some = (count_targets(targets) if count is None else count) > 0
    reduction = "mean" if some else "sum"  # the mean of none is NaN
    return cross_entropy(outputs.reshape(-1, outputs.shape[-1]), targets.reshape(-1), reduction=reduction)


def count_targets(targets: Any) -> float:
    """The labels that count. What is no tensor the loss itself refuses."""
    return float(int((targets != -100).count_nonzero())) if isinstance(targets, Tensor) else 1.0
