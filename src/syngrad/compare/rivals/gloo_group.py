"""The process group of a rival's run, as each of its workers sees the others."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class GlooGroup:
    """This worker, of `rank` 0 … `size` − 1, among the others. One alone needs no others and starts nothing."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size

    @property
    def first(self) -> bool:
        """Whether this is the worker that measures and writes."""
        return self.rank == 0

    @classmethod
    def join(cls, timeout_s: float = 600.0) -> GlooGroup:
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
