"""Links over the point-to-point operations of torch.distributed: gloo, and NCCL for tensors that stay on their device.

Experimental. It stands behind ZeroMQ (:mod:`syngrad.links.zeromq`) in all but one thing, that device tensors need not
pass through the CPU; and that path has never run on a GPU: the tests let a second gloo group stand in for NCCL.

What a process group cannot do: it has no encryption; it trusts what reaches its port; and a message that is longer than
announced ends the process. A receive that times out closes the connection, and one that has been posted cannot be asked
whether it is done, so that a thread of its own waits for frames. Every frame begins with a block of fixed size, which
says how long the rest is; all that follows is received into memory of exactly that size.

Nor has it a heartbeat: another thread sends a block that says nothing every few seconds, and gives the peer up when
nothing has begun to come for longer. A frame that has begun may take as long as it takes.
"""

from __future__ import annotations

import functools
import math
import struct
import threading
import time
from collections import deque
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore

from syngrad.errors import ConfigError, LinkError, first_line
from syngrad.links.link import Frame, Kind, LinkRequest, Links
from syngrad.links.message import decode, encode, part_sizes, refuse, session
from syngrad.links.wire import HEARTBEAT_MS, LIMIT_BYTES, SILENCE_MS
from syngrad.links.world import port_range
from syngrad.tree import map_tensors, tensors

#: seconds that a link which closes waits for the other end to do so too
LINGER_S = 3.0
#: bytes a second that any link carries: a frame that leaves more slowly does not leave at all
SLOWEST_BYTES_S = 100_000
_BLOCK_BYTES = 1 << 13
_PREFIX = struct.Struct("<4sIQ")
_MAGIC, _HEARTBEAT = b"SGPG", b"SGHB"
#: gloo closes a connection on which nothing came for so long; a stage may wait for hours in the debugger
_FOREVER = timedelta(days=365)


class ProcessGroupLink:
    """One end; see :class:`syngrad.links.link.Link`, and :func:`join` for how it is made."""

    def __init__(
        self,
        group: Any,
        later: bool,
        token: bytes,
        peer: str,
        device: torch.device | None,
        directions: tuple[Any, Any],
        every_s: float,
        silence_s: float,
    ) -> None:
        self.peer = peer
        self.sent_bytes = self.received_bytes = 0
        self._group, self._other = group, 0 if later else 1
        self._token, self._sequence, self._due = session(token), 0, 0
        self._device = device
        self._out, self._in = directions
        self._frames: deque[Frame] = deque()
        self._changed, self._sending = threading.Condition(), threading.Lock()
        self._lost: str | None = None
        self._closed = False
        self._every_s, self._silence_s = every_s, silence_s
        #: when the peer was last heard; None while one of its frames is coming
        self._heard: float | None = time.monotonic()
        self._ended = threading.Event()
        self._threads = [
            threading.Thread(target=target, name=f"link to {peer}", daemon=True)
            for target in (self._listen, self._send_heartbeats)
        ]
        for thread in self._threads:
            thread.start()

    def send(self, frame: Frame) -> None:
        """See :class:`syngrad.links.link.Link`. It returns once the frame has left."""
        self.check()
        with self._sending:
            try:
                self._send(frame)
            except RuntimeError as error:
                self._gone(error)
                self.check()

    def receive(self, timeout_s: float | None = None) -> Frame | None:
        """See :class:`syngrad.links.link.Link`."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            while self._closed or not self._frames:
                self.check()
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return None
                self._changed.wait(left)
            return self._frames.popleft()

    def check(self) -> None:
        """See :class:`syngrad.links.link.Link`."""
        if self._closed:
            raise LinkError(f"the link to {self.peer} is closed")
        if self._lost is not None:
            raise LinkError(f"{self.peer} {self._lost}")

    def close(self) -> None:
        """See :class:`syngrad.links.link.Link`. It waits for the other end's good-bye, LINGER_S at most."""
        if self._closed:
            return
        if self._lost is None:
            try:
                self.send(Frame(Kind.BYE))
            except LinkError as error:
                self._lose(str(error))
        self._closed = True
        self._threads[0].join(LINGER_S)
        self._ended.set()
        with self._sending:  # it would wait for a send that waits, which a receive does not mind
            for group in (self._out, self._in, self._group):
                if group is not None:
                    group.abort()
        for thread in self._threads:
            thread.join(LINGER_S)
        self._group = self._out = self._in = None

    def _send(self, frame: Frame) -> None:
        direct: list[Tensor] = []
        if self._device is not None:
            frame = Frame(frame.kind, frame.minibatch, frame.scale, frame.wanted, self._without(frame.body, direct))
        head, *parts = encode(frame, self._sequence, self._token)
        self._sequence += 1
        block = bytearray(_BLOCK_BYTES)
        _PREFIX.pack_into(block, 0, _MAGIC, len(parts), len(head))
        inside = len(head) <= _BLOCK_BYTES - _PREFIX.size
        if inside:
            block[_PREFIX.size : _PREFIX.size + len(head)] = head
        blocks = [block, *([] if inside else [bytearray(head)]), *parts]
        # All at once: waiting for each before the next would cost a round trip each.
        works = [self._group.send([torch.frombuffer(each, dtype=torch.uint8)], self._other, 0) for each in blocks]
        works += [self._out.send([tensor], self._other, 0) for tensor in direct]
        size = sum(map(len, blocks)) + sum(tensor.nbytes for tensor in direct)
        for work in works:
            work.wait(timedelta(seconds=self._silence_s + size / SLOWEST_BYTES_S))
        self.sent_bytes += size

    def _listen(self) -> None:
        """The thread that waits for frames, until the other end has said good-bye or is lost."""
        while self._lost is None:
            try:
                frame = self._next()
            except Exception as error:  # whatever it sent, no other thread may wait for more of it
                self._gone(error)
                return
            if frame.kind == Kind.BYE:
                self._answer()
                self._lose("has ended its link")
                return
            with self._changed:
                self._frames.append(frame)
                self._changed.notify_all()

    def _send_heartbeats(self) -> None:
        """The thread that shows this end's life and watches the other's."""
        block = torch.frombuffer(bytearray(_HEARTBEAT.ljust(_BLOCK_BYTES, b"\0")), dtype=torch.uint8)
        while not self._ended.wait(self._every_s) and self._lost is None:
            try:
                if self._silent():
                    raise TimeoutError
                if self._sending.acquire(blocking=False):  # else a frame is under way, which shows as much
                    try:
                        work = self._group.send([block], self._other, 0)
                        work.wait(timedelta(seconds=self._silence_s))
                    finally:
                        self._sending.release()
            except (RuntimeError, TimeoutError) as error:
                self._gone(error)

    def _answer(self) -> None:
        """Good-bye to who has said it, so that it need not wait; no matter whether it arrives."""
        with self._sending:
            if not self._closed and self._lost is None:
                try:
                    self._send(Frame(Kind.BYE))
                except RuntimeError as error:
                    self._gone(error)

    def _next(self) -> Frame:
        block = self._block()
        magic, count, length = _PREFIX.unpack_from(block)
        if magic != _MAGIC or length > LIMIT_BYTES:
            refuse(self.peer, "its first block is not Syngrad's")
        inside = length <= _BLOCK_BYTES - _PREFIX.size
        head = block[_PREFIX.size : _PREFIX.size + length] if inside else self._read(length)
        sizes = part_sizes(head, self.peer)
        if len(sizes) != count or sum(sizes) > LIMIT_BYTES:
            refuse(self.peer, f"it claims {count} parts and {sum(sizes)} bytes")
        frame = decode([head, *map(self._read, sizes)], self._due, self._token, self.peer)
        self._due += 1
        if self._device is not None:
            frame.body = self._with(frame.body)
        self._heard = time.monotonic()
        return frame

    def _block(self) -> memoryview:
        """The one that the next frame begins with."""
        while (block := self._read(_BLOCK_BYTES))[: len(_HEARTBEAT)] == _HEARTBEAT:
            self._heard = time.monotonic()
            self.received_bytes -= _BLOCK_BYTES  # no more than ZeroMQ counts its own
        self._heard = None
        return block

    def _read(self, size: int) -> memoryview:
        room = torch.empty(size, dtype=torch.uint8)
        self._group.recv([room], self._other, 0).wait(_FOREVER)
        self.received_bytes += size
        values: memoryview = room.numpy().data
        return values

    def _without(self, body: Any, direct: list[Tensor]) -> list[Any]:
        """[the body without the tensors that go from device to device, what and where they are]."""
        found: list[list[Any]] = []
        places = iter(range(len(tensors(body))))

        def leave(tensor: Tensor) -> Tensor:
            place = next(places)
            there = self._device is not None and tensor.device.type == self._device.type
            if not there or tensor.numel() == 0 or not tensor.is_contiguous() or tensor.is_conj() or tensor.is_neg():
                return tensor
            direct.append(tensor.detach().view(-1).view(torch.uint8))
            found.append([place, tensor.dtype, list(tensor.shape)])
            return torch.empty(0)

        return [map_tensors(leave, body), found]

    def _with(self, packed: Any) -> Any:
        """The body with them."""
        body, found = packed
        received: dict[int, Tensor] = {}
        for place, dtype, shape in found:
            size = math.prod(shape) * dtype.itemsize
            if size > LIMIT_BYTES:
                refuse(self.peer, f"a tensor of {size} bytes is too large")
            room = torch.empty(size, dtype=torch.uint8, device=self._device)
            self._in.recv([room], self._other, 0).wait(_FOREVER)
            self.received_bytes += size
            received[place] = room.view(dtype).view(shape)
        places = iter(range(len(tensors(body))))
        return map_tensors(lambda tensor: received.get(next(places), tensor), body)

    def _silent(self) -> bool:
        heard = self._heard
        return heard is not None and time.monotonic() - heard > self._silence_s

    def _gone(self, error: Exception) -> None:
        why = f"it was silent for {self._silence_s:g} s" if self._silent() else f"{first_line(error):.100}"
        self._lose(f"is gone ({why})")

    def _lose(self, why: str) -> None:
        with self._changed:
            self._lost = self._lost or why
            self._changed.notify_all()


def link_neighbours(request: LinkRequest) -> Links:
    """This worker's links, each a process group of two. Tensors of two different GPUs go from one to the other.

    Raises:
        ConfigError: where the environment asks for certain ports, which gloo cannot keep to.
    """
    if port_range() is not None:
        raise ConfigError(
            "SYNGRAD_PORTS is set, and link='process_group' listens on any free port; unset it, or use link='zeromq'"
        )
    rendezvous, device = request.rendezvous, request.device
    own = f"{rendezvous.world.host} {device}" if device is not None and device.type == "cuda" else ""
    rendezvous.post(f"device/{request.rank}", own)
    made: dict[int, ProcessGroupLink] = {}
    try:
        for other in (request.next, request.previous):  # the next one first: the last worker, which has none, begins
            if other is None:
                continue
            name = request.peer(other)
            its = rendezvous.wait(f"device/{other}", request.timeout_s, name)
            open_group = functools.partial(
                join,
                later=other < request.rank,
                token=request.token,
                peer=name,
                timeout_s=request.timeout_s,
                address=rendezvous.own_address(),
                device=device if own and its and own != its else None,
            )
            made[other] = rendezvous.at_store(f"{min(request.rank, other)}", open_group, request.timeout_s)
    except BaseException:
        for link in made.values():
            link.close()
        raise
    return made.get(request.rank - 1), made.get(request.rank + 1)


def join(
    store: Any,
    later: bool,
    token: bytes,
    peer: str,
    timeout_s: float,
    *,
    address: str | None = None,
    device: torch.device | None = None,
    backend: str = "nccl",
    heartbeat_ms: int = HEARTBEAT_MS,
    silence_ms: int = SILENCE_MS,
) -> ProcessGroupLink:
    """The link between the two processes that call this with the same store (a prefix of its own) and token.

    Args:
        store: of torch.distributed's kind.
        later: whether this is the end that is nearer to the loss.
        token: what only the processes of this attempt know.
        peer: who is at the other end, for errors.
        timeout_s: how long it may take to come.
        address: this host's, for gloo; None: what its name resolves to.
        device: tensors on this kind of device go by a group of `backend` each way, without passing through the CPU;
            None: all pass through it.
        backend: "nccl", or "gloo" where a test has no GPU.
        heartbeat_ms: between two signs of life.
        silence_ms: until silence counts as loss.

    Raises:
        LinkError: where the other end does not come in time.
    """
    rank = 1 if later else 0
    try:
        group = _gloo(PrefixStore("frames", store), rank, timeout_s, address)
        forward = backward = None
        if device is not None:
            forward = _group(backend, PrefixStore("forward", store), rank, timeout_s, address)
            backward = _group(backend, PrefixStore("backward", store), rank, timeout_s, address)
    except (RuntimeError, ValueError) as error:  # torch.distributed's own errors are RuntimeErrors
        raise LinkError(f"{peer} has not come within {timeout_s:g} s ({first_line(error):.120})") from error
    directions = (backward, forward) if later else (forward, backward)
    return ProcessGroupLink(group, later, token, peer, device, directions, heartbeat_ms / 1000, silence_ms / 1000)


def _group(backend: str, store: Any, rank: int, timeout_s: float, address: str | None) -> Any:
    if backend == "gloo":
        return _gloo(store, rank, timeout_s, address)
    made: Any = dist.ProcessGroupNCCL
    options = made.Options()
    options._timeout = timedelta(seconds=timeout_s)
    return made(store, rank, 2, options)


def _gloo(store: Any, rank: int, timeout_s: float, address: str | None) -> Any:
    made: Any = dist.ProcessGroupGloo
    options = made._Options()
    options._timeout = timedelta(seconds=timeout_s)
    options._devices = [made.create_default_device() if address is None else made.create_device(hostname=address)]
    return made(store, rank, 2, options)
