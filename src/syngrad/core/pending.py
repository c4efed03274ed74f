"""What came back for a minibatch at an interface, and waits for its turn to be fitted to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor


class Kept(list[Any]):
    """What an interface keeps of its estimates until feedback comes; a class so that the meter of memory sees it go."""


@dataclass
class Pending:
    """What came back for one minibatch at one interface, waiting for its turn (`feedback_delay`).

    kept: what the interface remembers of its estimate, where it is fitted to within the minibatch itself.
    """

    step: int
    leaves: list[Tensor]
    context: Any
    received: list[Tensor]
    scale: float
    kept: list[Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint, between two minibatches: then nothing is kept of estimates."""
        return {name: value for name, value in vars(self).items() if name != "kept"}


@dataclass
class Staleness:
    """The minibatches between a message and the use of what came back for it."""

    total: int = 0
    count: int = 0
    most: int = 0

    def add(self, late: int) -> None:
        """One more."""
        self.total += late
        self.count += 1
        self.most = max(self.most, late)

    @property
    def mean(self) -> float | None:
        """None where nothing has come back yet."""
        return self.total / self.count if self.count else None


@dataclass
class Record:
    """What was applied when, one dictionary an interface (minibatch it was of → minibatch with whose update it went);
    where stages run on predictions of their inputs, then one an interface for what those were fitted to.

    A run that applies what comes back as it comes can be taken again from it, step by step, in one process.
    """

    applied: list[dict[int, int]] = field(default_factory=list)

    def add(self, interface: int, step: int, applied: int) -> None:
        """What came back for `step` goes with the update of minibatch `applied`."""
        self.applied[interface][step] = applied


def gradient_of(leaf: Tensor) -> Tensor:
    """A message's received gradient; zero where the next stage did not use it."""
    return leaf.grad if leaf.grad is not None else torch.zeros_like(leaf)
