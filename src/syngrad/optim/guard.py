"""The guard: an update that would poison a stage is not made, and is counted.

Before the optimisers step, the norm of what has gathered in every stage's `.grad` is known (one fused pass over all
gradients). A stage's update is skipped

- when its norm is not finite: a NaN or an infinity anywhere in it, or an overflow;
- when it runs away: more than `bound` times the largest norm of late, after the first updates, in which estimates grow
  from zero by as many orders of magnitude as it takes.

"Of late" is a reference that a larger norm raises at once and that decays by a ten-thousandth an update, so slowly
that the gradient of a rare sample is no runaway after thousands of small ones. It doubles with each skipped update, so
that a stage whose gradients have really grown is held up for some minibatches, not for ever.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from syngrad.checks import real
from syngrad.errors import ConfigError

#: updates of a stage before its norms can run away
SETTLING = 20
DECAY = 0.9999


class Guard:
    """Decides stage by stage from the norms; `counts` holds the updates that were skipped, by the stage's name.

    Args:
        bound: a norm so many times the largest of late has run away; infinity lets only non-finite numbers be caught.
    """

    def __init__(self, bound: float) -> None:
        self.bound = bound
        self.counts: dict[str, int] = {}
        self.references: dict[str, float] = {}
        self.updates: dict[str, int] = {}

    def admits(self, name: str, norm: float) -> bool:
        """Whether part `name` may be updated by a gradient of this norm; if not, that is counted."""
        reference, seen = self.references.get(name, 0.0), self.updates.get(name, 0)
        finite = math.isfinite(norm)
        if finite and (seen < SETTLING or reference == 0.0 or norm <= self.bound * reference):
            self.references[name] = max(norm, DECAY * reference)
            self.updates[name] = seen + 1
            return True
        if finite:
            self.references[name] = 2 * reference
        self.skip([name])
        return False

    def skip(self, names: Iterable[str]) -> None:
        """Count an update of each of these parts as skipped."""
        for name in names:
            self.counts[name] = self.counts.get(name, 0) + 1

    def state_dict(self) -> dict[str, Any]:
        """Plain data."""
        return {"counts": self.counts, "references": self.references, "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.counts, self.references = dict(state["counts"]), dict(state["references"])
        self.updates = dict(state["updates"])


def check_bound(bound: Any) -> float | None:
    """`bound` when it is None (no guard) or a number above 1; otherwise a ConfigError that names it."""
    if bound is None:
        return None
    number = real(bound)
    if number is None or not number > 1:
        raise ConfigError(
            f"guard must be a number above 1 (how many times its usual norm a gradient may have) or None, got {bound!r}"
        )
    return float(number)
