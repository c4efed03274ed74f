"""Replicas as threads of one process: what they send each other, they put where the others find it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class ThreadGroup:
    """One of several ends; see :class:`syngrad.replicas.exchange.Group`."""

    def __init__(self, rank: int, size: int, barrier: threading.Barrier, room: dict[Any, Any]) -> None:
        self.rank, self.size = rank, size
        self._barrier, self._room = barrier, room

    def all_to_all(self, parts: list[Tensor]) -> list[Tensor]:
        found = self._all([part.clone() for part in parts])
        return [sent[self.rank] for sent in found]

    def all_gather(self, part: Tensor) -> list[Tensor]:
        found: list[Tensor] = self._all(part.clone())
        return found

    def _all(self, mine: Any) -> list[Any]:
        self._room[self.rank] = mine
        self._barrier.wait(20)
        found = [self._room[rank] for rank in range(self.size)]
        self._barrier.wait(20)
        return found


def replicas(size: int, run: Callable[[ThreadGroup], T]) -> list[T]:
    """What each of so many replicas returns, which run at the same time."""
    barrier, room = threading.Barrier(size), dict[Any, Any]()
    with ThreadPoolExecutor(size) as pool:
        made = [pool.submit(run, ThreadGroup(rank, size, barrier, room)) for rank in range(size)]
        return [each.result(30) for each in made]


def vectors(size: int, count: int, dtype: torch.dtype = torch.float32, scale: float = 1.0) -> list[Tensor]:
    """One of normal numbers for each replica."""
    generator = torch.Generator().manual_seed(size * 1000 + count)
    return [scale * torch.randn(count, generator=generator, dtype=torch.float64).to(dtype) for _ in range(size)]
