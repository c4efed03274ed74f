"""How far a run has come: the losses that are known, the time it took, the epochs that are over."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class KnownLoss:
    """A minibatch whose loss is known.

    Args:
        count: minibatches with it.
        loss: detached.
        weight: what the loss averages over.
        samples: its samples.
    """

    count: int
    loss: Tensor
    weight: float
    samples: int


@dataclass
class Progress:
    """How far a run is: seconds of training, and epochs that are over."""

    train_s: float = 0.0
    epochs: int = 0
