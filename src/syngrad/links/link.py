"""The link: a two-way, ordered connection between the workers of neighbouring stages, as whoever uses one sees it.

A link delivers every frame once and in the order in which it was sent, or says that it cannot any more: the other end
is gone, silent, or speaks another language. It does not know what training is. Flow control is not its business either:
whoever sends counts what is under way (pipeline/neighbours.py), so no link has to hold more than that.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from syngrad.links.rendezvous import Rendezvous


class Kind(enum.IntEnum):
    """What a frame is."""

    #: forward: a minibatch's activation and context, to be trained on
    MESSAGE = 1
    #: backward: a minibatch is done with; its gradient if it was asked for, and losses that have come from later stages
    DONE = 2
    #: forward: a minibatch to be evaluated, which nothing learns from
    EVALUATE = 3
    #: forward: what every worker does at this very place in the stream (end of an epoch, state, stop)
    ORDER = 4
    #: backward: the answer to an order, once all later workers have given theirs
    REPLY = 5
    #: either way: this end fails, and why; the run is over
    FAILED = 6
    #: either way: this end closes its link on purpose
    BYE = 7
    #: backward: the true gradient of a minibatch that is done with already
    TRUTH = 8
    #: either way: the sum over the workers on that side of what several of them have copies of
    SHARED = 9


@dataclass(slots=True)
class Frame:
    """One thing that crosses a link.

    Attributes:
        kind: what it is.
        minibatch: its number, −1 where there is none.
        scale: ∂loss/∂(sum of sample losses).
        wanted: whether feedback is asked for.
        body: nested tensors and plain data (numbers, texts, None, lists, tuples, dictionaries).
    """

    kind: Kind
    minibatch: int = -1
    scale: float = 1.0
    wanted: bool = False
    body: Any = None


class Link(Protocol):
    """One end. It belongs to one thread.

    Attributes:
        peer: who is at the other end, for errors, as in "stage '4' (rank 1 on host b)".
        sent_bytes: what has crossed it one way, headers included.
        received_bytes: and the other way.
    """

    peer: str
    sent_bytes: int
    received_bytes: int

    def send(self, frame: Frame) -> None:
        """Hand a frame over and return; the tensors in it must not be written to afterwards.

        Raises:
            LinkError: naming the peer, where it is lost.
        """

    def receive(self, timeout_s: float | None = None) -> Frame | None:
        """The next frame, or None when `timeout_s` seconds have passed without one (0: look and return; None: wait).

        A process that waits is woken by the loss of its peer too. Tensors are received without a copy where the
        transport allows it.

        Raises:
            LinkError: naming the peer, where it is lost.
        """

    def check(self) -> None:
        """Ask, without waiting, whether the peer is there.

        Raises:
            LinkError: where it is lost.
        """

    def close(self) -> None:
        """Say good-bye, let what was sent leave, and give everything back; twice is once."""


#: (to the previous worker, to the next one); None where there is none
Links = tuple[Link | None, Link | None]


@dataclass(frozen=True)
class LinkRequest:
    """All that a kind of link may need to make one worker's links, of which it uses what it does.

    Attributes:
        rendezvous: where this worker posts how it is reached, and waits for what its neighbours post.
        peer: rank → who it is, as errors call it; waits until that rank has said so.
        timeout_s: the longest wait for another worker.
        report: tells the worker at the other end of a link why this one ends, where making the other link failed: it
            looks at this link alone by then, and would only see that it ends.
        key_file: a file with a secret that all workers share, for traffic that is encrypted; None: it is not.
        exact: whether what is received is to lie in memory as PyTorch would put it, as it does in one process: where
            the run promises the same last bits. Otherwise it may be used where it stands.
        device: where this worker trains; None: where nobody has said.
    """

    rendezvous: Rendezvous
    peer: Callable[[int], str]
    timeout_s: float
    report: Callable[[Link, BaseException], None]
    key_file: str | None = None
    exact: bool = True
    device: torch.device | None = None

    @property
    def rank(self) -> int:
        """This worker's place, 0 … workers − 1, from the input to the loss."""
        return self.rendezvous.world.rank

    @property
    def previous(self) -> int | None:
        """The rank of the worker whose messages come to this one."""
        return self.rank - 1 if self.rank > 0 else None

    @property
    def next(self) -> int | None:
        """The rank of the worker to which this one's messages go."""
        return self.rank + 1 if self.rank + 1 < self.rendezvous.world.size else None

    @property
    def token(self) -> bytes:
        """What only the workers of this attempt know."""
        return bytes.fromhex(self.rendezvous.session.rpartition(".")[2])[:8]
