"""The processes of one run, as each of them sees the others."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

_PR_SET_PDEATHSIG = 1
#: says to a worker who started it, so that it notices that this one died before it could ask to be told
PARENT = "SYNGRAD_PARENT"


class World:
    """rank: this one's number; size: how many there are. One process alone needs no others and starts nothing."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def first(self) -> bool:
        """Whether this is the one that measures and writes."""
        return self.rank == 0

    @classmethod
    def join(cls, timeout_s: float = 600.0) -> World:
        """Meet the others as torchrun's environment says; over gloo, whose interface GLOO_SOCKET_IFNAME names."""
        size = int(os.environ.get("WORLD_SIZE", "1"))
        if size == 1:
            return cls()
        dist.init_process_group("gloo", timeout=timedelta(seconds=timeout_s))
        return cls(dist.get_rank(), size)

    def leave(self) -> None:
        """End the process group."""
        if self.size > 1:
            dist.destroy_process_group()

    def barrier(self) -> None:
        """Wait until all are here."""
        if self.size > 1:
            dist.barrier()

    def agree(self, value: Any) -> Any:
        """What the first one says, plain data."""
        if self.size == 1:
            return value
        said = [value]
        dist.broadcast_object_list(said, src=0)
        return said[0]

    def all(self, value: Any) -> list[Any]:
        """What each one says, in their order, on every rank."""
        if self.size == 1:
            return [value]
        said: list[Any] = [None] * self.size
        dist.all_gather_object(said, value)
        return said

    def bring(self, owned: Sequence[tuple[int, Tensor]]) -> None:
        """Bring tensors to the first one: (who has it, the tensor), the same list on every rank."""
        with torch.no_grad():
            for owner, tensor in owned:
                if owner == 0 or self.rank not in (0, owner):
                    continue
                whole = tensor.detach().contiguous()
                if self.rank == owner:
                    dist.send(whole, 0)
                else:
                    dist.recv(whole, owner)
                    if whole.data_ptr() != tensor.data_ptr():
                        tensor.copy_(whole)

    def mean(self, tensors: Sequence[Tensor]) -> None:
        """Set each tensor to its mean over all."""
        if self.size > 1:
            for tensor in tensors:
                dist.all_reduce(tensor)
                tensor.div_(self.size)


def die_with_parent() -> None:
    """End this process when the one that started it ends, whatever ends that; Linux only, elsewhere nothing."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = os.environ.get(PARENT)
    if parent is not None and os.getppid() != int(parent):
        sys.exit("the process that started this one is gone")
