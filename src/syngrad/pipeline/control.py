"""Control in band: what a worker does with what comes from the previous one.

The first worker has no loop of its own: the Trainer's `fit` drives it minibatch by minibatch, as it drives a run in one
process. All others follow what comes over their link:

    MESSAGE    train on it: forward, send on, update at once by δ̂, send the gradient back, fit to what has come back
    EVALUATE   forward and send on; the last worker adds to the loss and the metric
    ORDER      what every worker does at this place in the stream: pass it on first, wait for those after to have done
               it, do it, answer. An order without an answer is only passed on and done.

So orders see every worker at the same minibatch, and no operation spans all workers while minibatches run.

Where stages run on predictions of their inputs, every worker reads the data itself and may run ahead of those before:
as far as the first has said (the order `go`), which is never past a minibatch after which another order may come.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from syngrad import errors
from syngrad.errors import LinkError, SyngradError, first_line
from syngrad.links.link import Frame, Kind
from syngrad.pipeline.failures import lasting
from syngrad.pipeline.neighbours import Next, Previous, RemoteError

#: an order's name → what a worker does; it is given the order's data and returns its part of the answer
Orders = dict[str, Callable[[Any], Any]]
#: the order that lets all train up to a minibatch, and those that end the loop
GO, LAST = "go", ("finish", "interrupt")
#: orders that nobody waits for the answer of
SILENT = ("evaluating", "average", "conclude")


class ControlChannel:
    """A worker's links to its neighbours, from the side of control.

    Args:
        previous, next: the neighbours; None where there is none.
        name: how errors call this worker, as in "rank 1 on host b".
    """

    def __init__(self, previous: Previous | None, next: Next | None, name: str) -> None:
        self.previous, self.next, self.name = previous, next, name
        if previous is not None and next is not None:
            previous.others, next.others = [next], [previous]

    @property
    def neighbours(self) -> list[Previous | Next]:
        """Those that there are."""
        return [each for each in (self.previous, self.next) if each is not None]

    def order(self, name: str, data: Any = None) -> list[Any]:
        """Have all workers after this one do it; the nearest one's answer first. All under way has come back then."""
        return self.next.order(name, data) if self.next is not None else []

    def tell(self, name: str, data: Any = None) -> None:
        """Have them do it without an answer."""
        if self.next is not None:
            self.next.tell(name, data)

    def follow(self, train: Callable[[Frame], None], evaluate: Callable[[Frame], None], orders: Orders) -> str:
        """Do what comes until one of the orders `finish` or `interrupt` has been done; which of them."""
        previous = self.previous
        assert previous is not None
        while True:
            frame = previous.receive()
            if frame.kind == Kind.MESSAGE:
                train(frame)
            elif (last := self._do(frame, evaluate, orders)) in LAST:
                return last

    def run_ahead(
        self, train: Callable[[], None], count: Callable[[], int], evaluate: Callable[[Frame], None], orders: Orders
    ) -> str:
        """Follow where this worker reads the data itself: `train` on the next minibatch, `count` those done."""
        previous = self.previous
        assert previous is not None
        allowed = 0
        while True:
            frame = previous.next(wait=count() >= allowed)
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
            peer = self.previous.link.peer if self.previous is not None else "nobody"
            raise LinkError(f"{peer} sent a {frame.kind.name} forward, which it may not")
        name = str(frame.body[0])
        self._obey(name, frame.body[1], orders)
        return name

    def _obey(self, name: str, data: Any, orders: Orders) -> None:
        if name not in orders:
            raise LinkError(f"an order {name!r:.40} came that this version does not know; run one version everywhere")
        assert self.previous is not None
        if name in SILENT:
            self.tell(name, data)
            orders[name](data)
            return
        # "load" brings one part a worker, its own first
        own, rest = (data[0], data[1:]) if name == "load" else (data, data)
        parts = self.order(name, rest)
        self.previous.reply([orders[name](own), *parts])

    def fail(self, error: BaseException) -> None:
        """Tell both neighbours why this worker ends; whoever is gone already is not told."""
        text = str(error) if isinstance(error, SyngradError) else first_line(error)
        kind = type(error).__name__
        if isinstance(error, RemoteError):
            kind, text = error.kind, error.text
        elif self.name not in text:
            text = f"{self.name}: {text}"
        for neighbour in self.neighbours:
            try:
                neighbour.link.send(Frame(Kind.FAILED, body=[kind, text]))
            except LinkError as gone:
                neighbour.gone = gone

    def close(self) -> None:
        """Close both links."""
        with ExitStack() as ends:
            for neighbour in self.neighbours:
                ends.callback(neighbour.link.close)


def raised(failure: RemoteError) -> SyngradError:
    """Another worker's failure as the kind of error that it was there."""
    found = getattr(errors, failure.kind, None)
    kind = found if isinstance(found, type) and issubclass(found, SyngradError) else errors.TrainingError
    return kind(failure.text)


def lasts(failure: RemoteError) -> bool:
    """Whether another worker's failure would come again after a restart; see :func:`.failures.lasting`."""
    return type(made := raised(failure)).__name__ == failure.kind and lasting(made)
