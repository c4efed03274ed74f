"""Stages whose weights have not moved since training began: noticed here, from what the guard measures anyway.

As soon as a stage has moved it is no longer looked at, so that this costs nothing after the first updates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass
class Standing:
    """What has come of a stage's updates so far.

    Args:
        name: of the stage.
        updates: of the network.
        zero: those of them with a gradient of exactly zero.
        nonfinite: those that were skipped as their gradient was not finite.
        skipped: those that were skipped as their gradient was too long.
    """

    name: str
    updates: int = 0
    zero: int = 0
    nonfinite: int = 0
    skipped: int = 0


class StandingStages:
    """Those that have not moved yet.

    Attributes:
        found: those that have not in as many updates as they were given, for somebody to tell.
    """

    def __init__(self) -> None:
        self.found: list[Standing] = []
        self._open: dict[str, Standing] = {}
        self._patience = 0

    def __bool__(self) -> bool:
        return bool(self._open)

    def watch(self, names: Iterable[str], patience: int) -> None:
        """Look at these from now on, and at no others; who has not moved after `patience` updates is found."""
        self._open = {name: Standing(name) for name in names}
        self._patience = patience

    def note(self, name: str, norm: float, admitted: bool) -> None:
        """An update of this stage, by a gradient of this norm, was made or was not admitted."""
        each = self._open.get(name)
        if each is None:
            return
        if norm == 0.0:
            each.zero += 1
        elif admitted:
            del self._open[name]
        elif math.isfinite(norm):
            each.skipped += 1
        else:
            each.nonfinite += 1

    def end_update(self) -> None:
        """All stages' updates of a minibatch are made."""
        for name, each in list(self._open.items()):
            each.updates += 1
            if each.updates == self._patience:
                self.found.append(self._open.pop(name))
