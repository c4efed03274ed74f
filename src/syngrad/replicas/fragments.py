"""What is averaged at which time: a replica's tensors, divided into fragments of like size that take turns.

Streaming DiLoCo (arXiv 2501.18512): with P fragments each one is averaged every H minibatches, and some fragment every
H/P; so what crosses at a time is a P-th.
"""

from __future__ import annotations

from collections.abc import Sequence


def fragments(sizes: Sequence[int], count: int) -> list[list[int]]:
    """The tensors' places, in order, in `count` neighbouring runs of like size; one may be empty.

    Args:
        sizes: of the tensors.
        count: of fragments.
    """
    total, done = sum(sizes), 0
    made: list[list[int]] = [[] for _ in range(count)]
    for index, size in enumerate(sizes):
        middle = done + size / 2
        made[min(int(middle * count / total), count - 1) if total else 0].append(index)
        done += size
    return made


def due(minibatches: int, every: int, count: int) -> bool:
    """Whether a fragment's turn has come after so many minibatches."""
    return minibatches % (every // count) == 0
