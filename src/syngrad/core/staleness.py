"""When what came back for a minibatch was used: how late, and, where it is recorded, exactly when."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Staleness:
    """The minibatches between a message and the use of what came back for it."""

    total: int = 0
    count: int = 0
    most: int = 0

    def add(self, late: int) -> None:
        """One more, `late` minibatches late."""
        self.total += late
        self.count += 1
        self.most = max(self.most, late)

    @property
    def mean(self) -> float | None:
        """None where nothing has come back yet."""
        return self.total / self.count if self.count else None


@dataclass
class Record:
    """What was applied when, one dictionary an interface: minibatch that it was of → minibatch whose update it joined.

    Where stages run on predictions of their inputs, one an interface for what those were fitted to stands after all
    others. A run that applies what comes back as it comes can be taken again from it, step by step, in one process.
    """

    applied: list[dict[int, int]] = field(default_factory=list)

    def add(self, interface: int, step: int, applied: int) -> None:
        """Note that what came back for `step` joins the update of minibatch `applied`."""
        self.applied[interface][step] = applied
