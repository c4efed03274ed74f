"""How far a mean over a few seeds may lie from the true one: Student's t, and the interval that follows from it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

#: 97.5 % quantiles for 1 to 10 degrees of freedom
QUANTILES = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281)
#: the normal distribution's
Z = 1.959964


def student_t(freedom: int) -> float:
    """The 97.5 % quantile of Student's t, from a table to 10 degrees of freedom.

    Beyond, by the expansion in 1/freedom around the normal quantile, right to four digits.

    Args:
        freedom: degrees of freedom, at least 1.
    """
    if freedom <= len(QUANTILES):
        return QUANTILES[freedom - 1]
    first = (Z**3 + Z) / 4
    second = (5 * Z**5 + 16 * Z**3 + 3 * Z) / 96
    third = (3 * Z**7 + 19 * Z**5 + 17 * Z**3 - 15 * Z) / 384
    return Z + first / freedom + second / freedom**2 + third / freedom**3


def interval(differences: Sequence[float]) -> list[float] | None:
    """The 95 % interval [low, high] of the mean of paired differences: mean ± t·s/√n; None for fewer than two."""
    n = len(differences)
    if n < 2:
        return None
    mean = statistics.fmean(differences)
    half = student_t(n - 1) * statistics.stdev(differences) / math.sqrt(n)
    return [mean - half, mean + half]
