"""States that are no numbers any more: noticed with the window that makes them, and told with the first loss that
hears of them.

A sample whose targets do not count may be given a NaN without a loss that shows it. Its state is one all the same from
then on, and would spoil what the estimator learns, and what the others are told. So such samples take no part in
either until they start anew.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from syngrad.recurrent.state import Layout

#: samples that a message names
NAMED = 8


def unfit(layout: Layout, leaves: list[Tensor]) -> Tensor | None:
    """(n,) of bool, samples whose state holds NaN or infinity; None where none does, which one sum a leaf tells."""
    if all(math.isfinite(leaf.detach().sum().item()) for leaf in leaves):
        return None
    found = ~torch.isfinite(layout.vector([leaf.detach() for leaf in leaves])).all(1)
    return found if bool(found.any()) else None


def since(before: Tensor | None, found: Tensor | None, gone: Tensor | None, count: int) -> Tensor | None:
    """(n,), the window since which a sample's state has been so, −1 where it is not; None where all are well.

    before: the same as of the window before. found: whose state is so after window `count`. gone: whose sequence has
    ended, and who is not asked any more.
    """
    if found is None:
        return None
    kept = torch.full(found.shape, -1, device=found.device) if before is None else before
    kept = torch.where(found, torch.where(kept >= 0, kept, count), -1)
    return kept if gone is None else kept.masked_fill(gone, -1)


def carried(kept: Tensor | None, reset: Tensor | None, what: str, weights: Iterable[Tensor]) -> str | None:
    """Why a loss is not finite, where the state that its window went on from was not; None where it was.

    reset: samples that started anew with it, (n,) or (n, t). what: "window" or "step". weights: of core and readout.
    """
    if kept is None:
        return None
    fresh = None if reset is None else reset if reset.dim() == 1 else reset[:, 0]
    bad = (kept >= 0) if fresh is None else (kept >= 0) & ~fresh
    rows: list[int] = bad.nonzero().flatten().tolist()
    if not rows:
        return None
    first = int(kept[bad].min())
    named = ", ".join(map(str, rows[:NAMED])) + (f" and {len(rows) - NAMED} more" if len(rows) > NAMED else "")
    said = f"the state carried on is not finite, of sample{'s' if len(rows) > 1 else ''} {named}, since {what} {first}"
    if not all(bool(torch.isfinite(p).all()) for p in weights):
        return f"{said}, nor are the weights any more; look at the data there, begin from a checkpoint, and keep guard="
    return f"{said}; look at the data there, and begin anew: reset= for such samples, or restart() for all"
