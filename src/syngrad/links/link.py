"""The link: a two-way, ordered connection between the processes of neighbouring stages, as everything above sees it.

A link delivers every frame once and in the order in which it was sent, or says that it cannot any more: the other end
is gone, silent, or speaks another language. It does not know what training is. Flow control is not its business either:
whoever sends counts what is under way (pipeline/neighbours.py), so no link has to hold more than that.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, Protocol


class Kind(enum.IntEnum):
    """What a frame is."""

    #: down: a minibatch's activation and context, to be trained on
    MESSAGE = 1
    #: up: a minibatch is done with; its gradient if it was asked for, and losses that have come from above
    DONE = 2
    #: down: a minibatch to be evaluated, which nothing learns from
    EVALUATE = 3
    #: down: what every process does at this very place in the stream (end of an epoch, state, stop)
    ORDER = 4
    #: up: the answer to an order, once all above have given theirs
    REPLY = 5
    #: either way: this end fails, and why; the run is over
    FAILED = 6
    #: either way: this end closes its link on purpose
    BYE = 7


@dataclass
class Frame:
    """One thing that crosses a link.

    minibatch: its number, −1 where there is none. scale: ∂loss/∂(sum of sample losses). wanted: whether feedback is
    asked for. body: nested tensors and plain data (numbers, texts, None, lists, tuples, dictionaries).
    """

    kind: Kind
    minibatch: int = -1
    scale: float = 1.0
    wanted: bool = False
    body: Any = None


class Link(Protocol):
    """One end. It belongs to one thread.

    peer: who is at the other end, for errors, as in "stage '4' (rank 1 on host b)". sent_bytes, received_bytes: what
    has crossed it, headers included.
    """

    peer: str
    sent_bytes: int
    received_bytes: int

    def send(self, frame: Frame) -> None:
        """Hand a frame over and return; the tensors in it must not be written to afterwards.

        Raises LinkError, naming the peer, where it is lost.
        """

    def receive(self, timeout_s: float | None = None) -> Frame | None:
        """The next frame, or None when `timeout_s` seconds have passed without one (0: look and return; None: wait).

        A process that waits is woken by the loss of its peer too. Tensors are received without a copy where the
        transport allows it. Raises LinkError, naming the peer, where it is lost.
        """

    def check(self) -> None:
        """Raises LinkError where the peer is lost; does not wait."""

    def close(self) -> None:
        """Say good-bye, let what was sent leave, and give everything back; twice is once."""
