"""What replicas that average together send each other, over torchft's process group on gloo, which can be made anew.

Tensors alone cross it: of numbers to be averaged, and of the state that a joiner heals from, in the wire format of the
links (links/frame_format.py). It has no encryption, and trusts what reaches its port: for a network of one's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

from syngrad.links.frame_format import decode, encode
from syngrad.links.link import Frame, Kind
from syngrad.replicas.native_library import python_module
from syngrad.replicas.quorum import Quorum

#: bytes of a healing replica's largest tensor
LIMIT_BYTES = 1 << 40
_TOKEN = bytes(8)
#: of which not every name that is used here is exported
_c10d: Any = distributed_c10d
_store: Any = vars(dist)["TCPStore"]


def open_store(address: str) -> tuple[Any, str]:
    """A store that others reach at this address, and its host and port."""
    store: Any = _store(address, 0, None, True, wait_for_workers=False)
    return store, f"{address}:{store.port}"


class ReplicaGroup:
    """The group of one worker with the same worker of all other replicas; see :class:`.exchange.Group`.

    Args:
        address: this host's, as others reach it.
        timeout_s: the longest wait for another replica within it.
        worker: this worker's number in its replica.
    """

    def __init__(self, address: str, timeout_s: float, worker: int = 0) -> None:
        self.address, self.worker, self._timeout = address, worker, timedelta(seconds=timeout_s)
        self.rank, self.size = 0, 1
        #: the quorum that it is of
        self.key = ""
        self._group = _made(address, self._timeout)

    def enter(self, quorum: Quorum) -> None:
        """Be the group of this quorum: as it is, where it holds already; otherwise all make it anew.

        Raises:
            RuntimeError: where another one of it does not come in time; so does whatever follows.
        """
        if self.key == quorum.own_key:  # it is already
            return
        self.rank, self.size = quorum.rank, len(quorum.participants)
        if not (quorum.kept and self.key):
            self.key = ""
            store = f"{quorum.participants[quorum.source].store}/syngrad/{quorum.key}/{self.worker}"
            if self.size > 1:
                self._group.configure(store, quorum.participants[quorum.rank].name, self.rank, self.size)
        self.key = quorum.own_key

    def leave(self) -> None:
        """Whatever is under way in it ends in an error, here and in the others."""
        self.key = ""
        self._group.abort(errored=False)

    def all_to_all(self, parts: list[Tensor]) -> list[Tensor]:
        """The i-th part of equal size goes to replica i; from each the one that is for this replica."""
        if self.size == 1:
            return parts
        out = torch.cat(parts)
        came = torch.empty_like(out)
        self._wait(self._group.alltoall_base(came, out, [], [], _c10d.AllToAllOptions()))
        return list(came.view(self.size, -1))

    def all_gather(self, part: Tensor) -> list[Tensor]:
        """Every replica's, of equal size; to all at once, as gloo's own hands them on in turn, a round trip each."""
        return self.all_to_all([part] * self.size)

    def send_state(self, state: Any, to: Sequence[int]) -> int:
        """Send plain data and tensors to some of the others; the bytes that this has taken."""
        parts = [torch.frombuffer(bytearray(part), dtype=torch.uint8) for part in encode(_frame(state), 0, _TOKEN)]
        sizes = torch.tensor([len(parts), *(part.numel() for part in parts)])
        for place in to:
            for tensor in (sizes[:1], sizes[1:], *parts):
                self._wait(self._group.send([tensor.contiguous()], place, 0))
        return len(to) * sum(part.numel() for part in parts)

    def receive_state(self, source: int, name: str) -> Any:
        """What the other one sends by :meth:`send_state`.

        Raises:
            LinkError: for what is no state.
        """
        count = self._received(source, torch.empty(1, dtype=torch.int64))
        sizes = self._received(source, torch.empty(max(min(int(count), 1 << 17), 1), dtype=torch.int64))
        parts = [
            self._received(source, torch.empty(min(max(int(size), 0), LIMIT_BYTES), dtype=torch.uint8))
            for size in sizes
        ]
        return decode([part.numpy().data for part in parts], 0, _TOKEN, name).body

    def _received(self, source: int, room: Tensor) -> Tensor:
        self._wait(self._group.recv([room], source, 0))
        return room

    def _wait(self, work: Any) -> None:
        work.wait(self._timeout)

    def close(self) -> None:
        """Give the group back."""
        self._group.abort(errored=False)


def _frame(state: Any) -> Frame:
    return Frame(Kind.ORDER, body=state)


def _made(address: str, timeout: timedelta) -> Any:
    """torchft's process group on gloo, listening at this address alone."""
    base: Any = python_module("process_group").ProcessGroupGloo
    gloo: Any = dist.ProcessGroupGloo

    class OneAddress(base):  # type: ignore[misc]
        def _create_pg(self, store: Any, rank: int, world_size: int) -> Any:
            options = gloo._Options()
            options._timeout = timeout
            options._devices = [gloo.create_device(hostname=address)]
            group = dist.ProcessGroup(store, rank, world_size)
            group._set_default_backend(dist.ProcessGroup.BackendType.GLOO)
            backend = gloo(store, rank, world_size, options)
            backend._set_sequence_number_for_group()
            group._register_backend(torch.device("cpu"), dist.ProcessGroup.BackendType.GLOO, backend)
            return group

    return OneAddress(timeout=timeout)
