"""What others measured, to stand beside an experiment; never quoted from memory."""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """One published figure. values: method → figure, in `metric`'s unit. source: where it was read."""

    task: str
    model: str
    metric: str
    values: dict[str, float]
    source: str
