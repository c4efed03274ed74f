"""A link within one process, between two threads: the simplest one there is, and all that a new kind of link takes."""

from __future__ import annotations

import threading
import time
from collections import deque

from torch import Tensor

from syngrad.errors import LinkError
from syngrad.links.link import Frame, Kind, LinkRequest, Links
from syngrad.tree import map_tensors, tensors


class LocalLink:
    """One end of a pair; see :func:`pair`. Frames are handed over as they are, tensors cut from their graphs."""

    def __init__(self, peer: str, changed: threading.Condition, own: deque[Frame], other: deque[Frame]) -> None:
        self.peer = peer
        self.sent_bytes = self.received_bytes = 0
        self._changed, self._own, self._other = changed, own, other
        self._closed = self._ended = False

    def send(self, frame: Frame) -> None:
        """See :class:`syngrad.links.link.Link`."""
        body = map_tensors(Tensor.detach, frame.body)
        with self._changed:
            self._check()
            self._other.append(Frame(frame.kind, frame.minibatch, frame.scale, frame.wanted, body))
            self._changed.notify_all()
        self.sent_bytes += sum(t.nbytes for t in tensors(body))

    def receive(self, timeout_s: float | None = None) -> Frame | None:
        """See :class:`syngrad.links.link.Link`."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            while not self._own:
                self._check()
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return None
                self._changed.wait(left)
            frame = self._own.popleft()
            if frame.kind == Kind.BYE:
                self._ended = True
                self._check()
        self.received_bytes += sum(t.nbytes for t in tensors(frame.body))
        return frame

    def check(self) -> None:
        """See :class:`syngrad.links.link.Link`."""
        with self._changed:
            self._check()

    def close(self) -> None:
        """See :class:`syngrad.links.link.Link`."""
        with self._changed:
            if not self._closed:
                self._closed = True
                self._other.append(Frame(Kind.BYE))
                self._changed.notify_all()

    def _check(self) -> None:
        if self._closed:
            raise LinkError(f"the link to {self.peer} is closed")
        if self._ended:
            raise LinkError(f"{self.peer} has ended its link")


def pair(a: str = "the other end", b: str = "the other end") -> tuple[LocalLink, LocalLink]:
    """Two ends of one link; `a` and `b` are who is at them, as the other end's errors call it."""
    changed, at_a, at_b = threading.Condition(), deque[Frame](), deque[Frame]()
    return LocalLink(b, changed, at_a, at_b), LocalLink(a, changed, at_b, at_a)


_WAITING: dict[str, LocalLink] = {}


def link_neighbours(request: LinkRequest) -> Links:
    """For workers that are threads of one process. The earlier of two opens the pair and posts the other end's name."""
    to_previous: LocalLink | None = None
    to_next: LocalLink | None = None
    if request.next is not None:
        name = f"{request.rendezvous.session}/{request.rank}"
        to_next, _WAITING[name] = pair(str(request.rank), request.peer(request.next))
        request.rendezvous.post(f"local/{request.next}", name)
    if request.previous is not None:
        peer = request.peer(request.previous)
        to_previous = _WAITING.pop(request.rendezvous.wait(f"local/{request.rank}", request.timeout_s, peer))
        to_previous.peer = peer
    return to_previous, to_next
