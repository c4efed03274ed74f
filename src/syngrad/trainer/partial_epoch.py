"""The epoch under way, as far as it has come; a checkpoint within it holds this."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


@dataclass
class Partial:
    """The epoch under way: sums over its minibatches so far."""

    minibatches: int = 0
    loss: float = 0.0
    weight: float = 0.0
    samples: int = 0

    @classmethod
    def read(cls, plain: dict[str, Any]) -> Partial:
        """From a checkpoint."""
        sums = float(plain["loss"]), float(plain["weight"])
        return cls(int(plain["minibatches"]), *sums, int(plain["samples"]))

    def add(self, loss: float, weight: float, size: int) -> None:
        """One minibatch more; one that was skipped as its loss was not finite (float16) has no part in the mean."""
        self.minibatches += 1
        self.samples += size
        if math.isfinite(loss):
            self.loss += loss * weight
            self.weight += weight

    def lose(self, samples: int) -> int:
        """So many more were trained on whose loss is lost, and has no part in the mean; how many there are then."""
        self.samples += samples
        return self.samples

    @property
    def mean(self) -> float:
        """The loss so far, NaN where there is none."""
        return self.loss / self.weight if self.weight else math.nan
