"""A process's loop: take what comes from below, do it, hand it on.

Process 0 has no loop of its own: the Trainer's `fit` drives it minibatch by minibatch, as it drives a run in one
process. All others follow what comes down their link:

    MESSAGE    train on it: forward, send on, update at once by δ̂, send the gradient back, fit to what has come back
    EVALUATE   forward and send on; at the top, add to the loss and the metric
    ORDER      what every process does at this place in the stream: hand it up first, wait for those above to have
               done it, do it, answer. An order without an answer is only handed on and done.

So orders see every process at the same minibatch, and no operation spans all processes while minibatches run.

Where stages run on predictions of their inputs, every process reads the data itself and may run ahead of those below:
as far as process 0 has said (the order `go`), which is never past a minibatch after which another order may come.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from syngrad import errors
from syngrad.errors import LinkError, SyngradError, first_line
from syngrad.links.link import Frame, Kind
from syngrad.pipeline.failures import lasting
from syngrad.pipeline.neighbours import Ends, RemoteError

#: an order's name → what a process does; it is given the order's data and returns its part of the answer
Orders = dict[str, Callable[[Any], Any]]
#: the order that lets all train up to a minibatch, and those that end the loop
GO, LAST = "go", ("finish", "interrupt")
#: orders that nobody waits for the answer of
SILENT = ("evaluating",)


class Process:
    """This process among the others. name: how errors call it, as in "rank 1 on host b"."""

    def __init__(self, ends: Ends, name: str) -> None:
        self.ends, self.name = ends, name
        if ends.below is not None and ends.above is not None:
            ends.below.others, ends.above.others = [ends.above], [ends.below]

    def order(self, name: str, data: Any = None) -> list[Any]:
        """Have all above do it; their answers, the nearest one's first. Everything under way has come back then."""
        return self.ends.above.order(name, data) if self.ends.above is not None else []

    def tell(self, name: str, data: Any = None) -> None:
        """The same where nobody answers."""
        if self.ends.above is not None:
            self.ends.above.tell(name, data)

    def follow(self, train: Callable[[Frame], None], evaluate: Callable[[Frame], None], orders: Orders) -> str:
        """Do what comes from below until one of the orders `finish` or `interrupt` has been done; which of them."""
        below = self.ends.below
        assert below is not None
        while True:
            frame = below.receive()
            if frame.kind == Kind.MESSAGE:
                train(frame)
            elif (last := self._do(frame, evaluate, orders)) in LAST:
                return last

    def run_ahead(
        self, train: Callable[[], None], count: Callable[[], int], evaluate: Callable[[Frame], None], orders: Orders
    ) -> str:
        """The same where this process reads the data itself. train: on the next minibatch; count: of those done."""
        below = self.ends.below
        assert below is not None
        allowed = 0
        while True:
            frame = below.next(wait=count() >= allowed)
            if frame is None:
                train()
            elif frame.kind == Kind.ORDER and frame.body[0] == GO:
                allowed = int(frame.body[1])
                self.tell(GO, allowed)
            else:
                while count() < allowed:
                    train()
                if (last := self._do(frame, evaluate, orders)) in LAST:
                    return last

    def _do(self, frame: Frame, evaluate: Callable[[Frame], None], orders: Orders) -> str:
        """What came that is no message; the name of the order, if it is one."""
        if frame.kind == Kind.EVALUATE:
            evaluate(frame)
            return ""
        if frame.kind != Kind.ORDER:
            peer = self.ends.below.link.peer if self.ends.below is not None else "nobody"
            raise LinkError(f"{peer} sent a {frame.kind.name} downwards, which it may not")
        name = str(frame.body[0])
        self._obey(name, frame.body[1], orders)
        return name

    def _obey(self, name: str, data: Any, orders: Orders) -> None:
        if name not in orders:
            raise LinkError(f"an order {name!r:.40} came that this version does not know; run one version everywhere")
        below = self.ends.below
        assert below is not None
        if name in SILENT:
            self.tell(name, data)
            orders[name](data)
            return
        # "load" brings one part a process, its own first
        own, rest = (data[0], data[1:]) if name == "load" else (data, data)
        parts = self.order(name, rest)
        below.reply([orders[name](own), *parts])

    def fail(self, error: BaseException) -> None:
        """Tell both neighbours why this process ends; whoever is gone already is not told."""
        text = str(error) if isinstance(error, SyngradError) else first_line(error)
        kind = type(error).__name__
        if isinstance(error, RemoteError):
            kind, text = error.kind, error.text
        elif self.name not in text:
            text = f"{self.name}: {text}"
        for end in (self.ends.below, self.ends.above):
            if end is not None:
                try:
                    end.link.send(Frame(Kind.FAILED, body=[kind, text]))
                except LinkError as gone:
                    end.gone = gone

    def close(self) -> None:
        """Close both links."""
        with ExitStack() as ends:
            for end in (self.ends.below, self.ends.above):
                if end is not None:
                    ends.callback(end.link.close)


def raised(failure: RemoteError) -> SyngradError:
    """Another process's failure as the kind of error that it was there."""
    found = getattr(errors, failure.kind, None)
    kind = found if isinstance(found, type) and issubclass(found, SyngradError) else errors.TrainingError
    return kind(failure.text)


def lasts(failure: RemoteError) -> bool:
    """Whether another process's failure would come again after a restart; see :func:`reporting.lasting`."""
    return type(made := raised(failure)).__name__ == failure.kind and lasting(made)
