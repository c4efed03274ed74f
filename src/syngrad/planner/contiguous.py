"""Where the workers part: contiguous cuts so that the slowest worker, or the slowest link, is as fast as possible.

Exact, by dynamic programming over the last cut, for any cost of a part and of a cut: those of a part may depend on
which worker it falls to. (Linear partitioning; as in PipeDream's optimiser, Narayanan et al. 2019, without its
replication.)
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from itertools import pairwise

from syngrad.errors import ConfigError

#: (first unit, last + 1, worker) → seconds
PartCost = Callable[[int, int, int], float]
#: (unit before which it is cut, worker before it) → seconds; infinite where it cannot be cut
CutCost = Callable[[int, int], float]


def bottleneck(cuts: tuple[int, ...], units: int, part: PartCost, cut: CutCost) -> float:
    """The largest of all parts' and all cuts' seconds."""
    edges = list(pairwise([0, *cuts, units]))
    return max([part(i, j, k) for k, (i, j) in enumerate(edges)] + [cut(c, k) for k, c in enumerate(cuts)])


def best_cuts(units: int, workers: int, part: PartCost, cut: CutCost) -> tuple[int, ...]:
    """The cuts with the least bottleneck; of those that are as good, the most even ones. O(workers · units²).

    Where a link decides, any parts that take no longer are as good for now. Most even is the least sum of squares.

    best_k(j) = min over i of max(best_{k−1}(i), cut(i), part(i, j)): the least bottleneck of the first j units over k
    workers, the last of which begins with unit i.

    Args:
        units: how many there are.
        workers: into how many parts.
        part: seconds of a part.
        cut: seconds of what crosses a cut.

    Raises:
        ConfigError: where the model does not go into so many parts.
    """
    if workers > units:
        raise ConfigError(
            f"{workers} workers need as many parts, and this model can be cut into {units} at most; give --workers "
            f"{units} or fewer"
        )
    least, _ = _cheapest(units, workers, part, cut, max)
    if math.isinf(least):
        raise ConfigError(f"this model has no {workers - 1} cuts that {workers} workers could part at; give fewer")

    def squared(i: int, j: int, k: int) -> float:
        seconds = part(i, j, k)
        return seconds**2 if seconds <= least else math.inf

    def allowed(at: int, k: int) -> float:
        return 0.0 if cut(at, k) <= least else math.inf

    return _cheapest(units, workers, squared, allowed, operator.add)[1]


def _cheapest(
    units: int, workers: int, part: PartCost, cut: CutCost, join: Callable[[float, float], float]
) -> tuple[float, tuple[int, ...]]:
    """The least cost of all parts and cuts, joined, and the cuts that have it; none where it is infinite."""
    best = [math.inf] + [part(0, j, 0) for j in range(1, units + 1)]
    begins: list[list[int]] = []
    for k in range(1, workers):
        fresh, begin = [math.inf] * (units + 1), [-1] * (units + 1)
        crossing = [math.inf if i < k else join(best[i], cut(i, k - 1)) for i in range(units)]
        for j in range(k + 1, units + 1):
            for i in range(k, j):
                if crossing[i] >= fresh[j]:
                    continue
                cost = join(crossing[i], part(i, j, k))
                if cost < fresh[j]:
                    fresh[j], begin[j] = cost, i
        best = fresh
        begins.append(begin)
    if math.isinf(best[units]):
        return math.inf, ()
    chosen, j = [], units
    for begin in reversed(begins):
        j = begin[j]
        chosen.append(j)
    return best[units], tuple(reversed(chosen))
