"""A worker that goes on with another in the place of one that is lost, and keeps what it has learnt.

a link is lost        this worker, or one before it, notices, and leaves its other link too: so do all, in turn
the launcher's word   somebody was started again alone (restarts.py); without it the loss is an error, as ever
a new session         all meet at the run's store, as they did when the run began, and make their links anew
"go on"               the first worker says at which minibatch; what was under way is dropped
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeVar

from syngrad.errors import LinkError
from syngrad.links.world import World
from syngrad.pipeline import restarts
from syngrad.pipeline.neighbours import RemoteError
from syngrad.pipeline.peer import Peer
from syngrad.pipeline.work import Work
from syngrad.runtime import state

T = TypeVar("T")

#: seconds within which a launcher says that it starts a lost worker again alone, and those between two looks
HEARD_S, LOOK_S = 3.0, 0.01


class Survivor(Peer):
    """What the first worker and all others have of it in common."""

    def __init__(self, work: Work, place: World) -> None:
        super().__init__(work, place)
        #: seconds of the training under way that were no training, since somebody has asked
        self._stood_s = 0.0

    def enter(self) -> None:
        """Be linked with all others, and where they are, once all have met: in a new run, or anew."""
        raise NotImplementedError

    def rejoin(self, lost: LinkError) -> None:
        """Be linked with all others anew, with another in the place of one that is lost.

        Args:
            lost: how this worker knows.

        Raises:
            LinkError: that one, where nobody takes its place or this worker cannot go on with him.
        """
        while True:
            self._outlive(lost)
            self.rendezvous = self._met()
            try:
                self.enter()
            except RemoteError:
                raise
            except LinkError as again:
                lost = again
            else:
                return

    def _outlive(self, lost: LinkError) -> None:
        """Leave the links, once the launcher has started somebody again alone."""
        if not self.outlives or self.apart:
            raise lost
        deadline = time.monotonic() + HEARD_S
        while not self.rendezvous.over:
            if not restarts.expected() or time.monotonic() > deadline:
                raise lost
            time.sleep(LOOK_S)
        self.part()

    def part(self) -> None:
        """Give up the links, the meeting point, and what is under way."""
        with ExitStack() as ends:
            ends.callback(self.rendezvous.close)
            if self.linked is not None:
                ends.callback(self.linked.close)
                self.sent_before += sum(each.sent_bytes for each in self.linked.neighbours)
        self.linked = None
        if self.bound is not None:
            state.abandon(self.bound)

    def ready(self) -> None:
        """Tell the launcher that any other worker may be started again alone, where that is so."""
        if self.outlives and not self.apart:
            restarts.ready()

    def stood(self) -> float:
        """Seconds since the last such question for which training stood still, until a worker had been replaced."""
        stood_s, self._stood_s = self._stood_s, 0.0
        return stood_s

    def outliving(self, call: Callable[[], T], training: bool = False) -> T:
        """What a call gives that can be made again: it is, where a worker was lost, with another in its place."""
        while True:
            try:
                return call()
            except RemoteError:
                raise
            except LinkError as lost:
                began = time.perf_counter()
                self.rejoin(lost)
                self._stood_s += time.perf_counter() - began if training else 0.0

    def once(self, call: Callable[[], Any]) -> None:
        """Make a call that need not be made again where a worker is lost: all are then brought to where this one is."""
        try:
            call()
        except RemoteError:
            raise
        except LinkError as lost:
            self.rejoin(lost)
