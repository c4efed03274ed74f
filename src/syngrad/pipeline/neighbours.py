"""The workers before and after this one, and the count of what is under way between them.

    worker p − 1   ── MESSAGE t ──▶   worker p   ── MESSAGE t ──▶   worker p + 1
                   ◀─── DONE t ───               ◀─── DONE t ───

Every minibatch goes forward once and comes back once, in order; a DONE carries the gradient if it was asked for. At
most `depth` minibatches are under way to the next worker: with one more a worker waits until one has come back. So
memory is bounded, however unequal the stages are. Losses are known to the last worker alone and come back with the
DONEs.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from syngrad.core.message import AwaitedInput, InFlight
from syngrad.errors import ConfigError, LinkError, clean
from syngrad.links.link import Frame, Kind, Link
from syngrad.links.message_dtype import pack, unpack
from syngrad.pipeline.shared_values import SharedValues
from syngrad.runtime.timeline import Timeline
from syngrad.tree import map_tensors, to_device

#: seconds between two looks at the other link while a worker waits at one
LOOK_S = 1.0
#: what waits are called in a trace
WAIT_NEXT, WAIT_PREVIOUS = "wait for next", "wait for previous"


class RemoteError(LinkError):
    """Another worker has failed: the kind of its error, and its text."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind, self.text = kind, text


class Neighbour:
    """A link to a neighbouring worker, and a wait that notices when any other link of this worker is lost.

    Args:
        link: to the other worker.
        dtypes: the forms in which messages and gradients travel.
        trace: where time spent waiting and sending is noted.
        timeout_s: the longest wait for a worker that lives, in seconds.
    """

    local = False

    def __init__(self, link: Link, dtypes: tuple[str, str], trace: Timeline, timeout_s: float) -> None:
        self.link, self.trace, self.timeout_s = link, trace, timeout_s
        self.forward_dtype, self.backward_dtype = dtypes
        self.others: list[Neighbour] = []
        #: parameters that stages at both sides use
        self.shared = SharedValues()
        #: takes a sum of their copies, where every worker has one of its own (pipeline/shared_copies.py)
        self.took: Callable[[Frame], None] | None = None
        self.ahead: deque[Frame] = deque()
        #: bytes that training itself has sent: neither what is evaluated, nor orders, nor whole models
        self.sent_bytes = 0
        #: why the last word of this worker could not be sent
        self.gone: LinkError | None = None

    def _receive(self, what: str, wait: bool) -> Frame | None:
        """The next frame. Raises LinkError where a link is lost, RemoteError where another worker fails."""
        if self.ahead:
            return self.ahead.popleft()
        frame = self._next(0)
        if frame is None and wait:
            with self.trace.span(what) as span:
                frame = self._wait()
                span.name = _waited_for(frame, what)
        return frame

    def _next(self, timeout_s: float) -> Frame | None:
        frame = self.link.receive(timeout_s)
        if frame is None:
            return None
        if type(frame.body) is not list or not self._whole(frame.kind, len(frame.body)):
            raise LinkError(f"{self.link.peer} sent a {frame.kind.name} that is none; run one version everywhere")
        if frame.kind == Kind.FAILED:
            kind, text = frame.body
            raise RemoteError(clean(str(kind), 80), clean(str(text)))
        return frame

    def _whole(self, kind: Kind, length: int) -> bool:
        """Whether a body of so many parts is one; what is shared travels with messages and with what comes back."""
        if kind in (Kind.REPLY, Kind.SHARED):
            return kind == Kind.REPLY or (self.took is not None and length == 1)
        return length == 2 or (length == 3 and bool(self.shared) and kind in (Kind.MESSAGE, Kind.DONE))

    def share(self, step: int, sums: dict[str, Tensor]) -> None:
        """Hand on a sum of copies, of the round of minibatch `step`."""
        with self.trace.span("send"):
            self._send(Frame(Kind.SHARED, step, body=[sums]), counted=True)

    def _taken(self, frame: Frame) -> bool:
        """Whether a frame was such a sum, which is taken then."""
        if frame.kind == Kind.SHARED and self.took is not None:
            self.took(frame)
        return frame.kind == Kind.SHARED

    def _send(self, frame: Frame, counted: bool = False) -> None:
        """Send, `counted` where the frame is training's own; a lost link is a RemoteError if the other end said why."""
        before = self.link.sent_bytes
        try:
            self.link.send(frame)
            self.sent_bytes += self.link.sent_bytes - before if counted else 0
        except LinkError as lost:
            try:
                while self._next(0) is not None:
                    continue
            except RemoteError:
                raise
            except LinkError:
                raise lost from None
            raise

    def look(self) -> None:
        """Take in what has come, for later, so that a failure that is told here is heard while one waits elsewhere."""
        while (frame := self._next(0)) is not None:
            self.ahead.append(frame)

    def _wait(self) -> Frame:
        deadline = time.monotonic() + self.timeout_s
        while (frame := self._next(LOOK_S)) is None:
            for other in self.others:
                other.look()
            if time.monotonic() > deadline:
                raise LinkError(
                    f"{self.link.peer} lives, but has sent nothing for {self.timeout_s:g} s; look what it does, or "
                    "give it more time with timeout_s="
                )
        return frame


class Next(Neighbour):
    """The next worker, with `depth` minibatches under way to it at most."""

    def __init__(self, link: Link, depth: int, dtypes: tuple[str, str], trace: Timeline, timeout_s: float) -> None:
        super().__init__(link, dtypes, trace, timeout_s)
        self.depth = depth
        #: how many minibatches the next worker may be done with before they are sent; 0 where it runs on what is sent
        self.ahead_by = 0
        self.outstanding: deque[InFlight] = deque()
        #: those whose true gradient is to come, whatever they were answered
        self.truths: deque[InFlight] = deque()
        #: the same of those that are only evaluated; their numbers are negative
        self.evaluating: deque[InFlight] = deque()
        #: done, and not yet looked at
        self.arrived: deque[InFlight] = deque()
        #: (minibatch, loss) as they have come
        self.losses: list[list[float]] = []
        #: done by the next worker before they were sent from here: it ran ahead, on predictions of its input
        self.early: deque[Frame] = deque()

    def room(self, kind: Kind = Kind.MESSAGE) -> None:
        """Wait until one more minibatch may go."""
        queue = self.evaluating if kind == Kind.EVALUATE else self.outstanding
        while len(queue) >= self.depth:
            self.take(wait=True)

    def send(self, flight: InFlight, h: Any, context: Any, where: list[int], kind: Kind = Kind.MESSAGE) -> None:
        """Pass a message on, with its context; `where` the differentiable leaves stand in the flattened h."""
        training = kind != Kind.EVALUATE
        with self.trace.span("send" if training else "evaluate"):
            # what is evaluated goes as it is, so that the metric is that of the model
            body = [
                _packed(h, where, self.forward_dtype if training else "float32"),
                map_tensors(torch.Tensor.detach, context),
                *(self.shared.values(flight.step) if training else ()),
            ]
            self._send(Frame(kind, flight.step, flight.scale, flight.wanted, body), training)
        (self.outstanding if training else self.evaluating).append(flight)
        if self.early and training:
            self._done(self.early.popleft())

    def poll(self) -> None:
        """Take in what has come, without waiting."""
        while (self.outstanding or self.truths) and self.take(wait=False):
            continue

    def until(self, step: int, truth: bool = False) -> None:
        """Wait until minibatch `step`, and all before it, have come back, or the truths of those that have any."""
        queue = self.truths if truth else self.outstanding
        while queue and queue[0].step <= step:
            self.take(wait=True)

    def order(self, name: str, data: Any) -> list[Any]:
        """Have all workers after this one do something at this place in the stream; the nearest one's answer first."""
        self._send(Frame(Kind.ORDER, body=[name, data]))
        while (frame := self.take(wait=True)) is None or frame.kind != Kind.REPLY:
            continue
        parts: list[Any] = frame.body
        return parts

    def tell(self, name: str, data: Any = None) -> None:
        """An order that nobody answers."""
        self._send(Frame(Kind.ORDER, body=[name, data]))

    def take(self, wait: bool) -> Frame | None:
        """Take in the next frame; None where there is none yet."""
        frame = self._receive(WAIT_NEXT, wait)
        if frame is None:
            return None
        if frame.kind == Kind.DONE:
            self._done(frame)
        elif frame.kind == Kind.TRUTH:
            self._come(self._due(self.truths, frame, "knows the truth of"), frame.body[0])
        elif not self._taken(frame) and frame.kind != Kind.REPLY:
            raise LinkError(
                f"{self.link.peer} sent a {frame.kind.name} backward, which it may not; run one version of it"
            )
        return frame

    def _done(self, frame: Frame) -> None:
        gradients, losses, *shared = frame.body
        if not isinstance(losses, list) or not all(map(_is_loss, losses)):
            raise LinkError(f"{self.link.peer} sent losses that are none; run one version everywhere")
        self.losses.extend(losses)
        queue = self.evaluating if frame.minibatch < 0 else self.outstanding
        if self.ahead_by and not queue and frame.minibatch >= 0:
            if len(self.early) > self.ahead_by:
                raise LinkError(f"{self.link.peer} is further ahead than it may be, at minibatch {frame.minibatch}")
            self.early.append(Frame(Kind.DONE, frame.minibatch, body=[gradients, []]))
            return
        flight = self._due(queue, frame, "is done with")
        if gradients is not None:
            flight.shared = self.shared.gradients(shared, self.link.peer) if shared else ()
            self._come(flight, gradients)

    def _due(self, queue: deque[InFlight], frame: Frame, what: str) -> InFlight:
        """Whose turn it is, which has to be the frame's."""
        flight = queue.popleft() if queue else InFlight(0)
        if frame.minibatch != flight.step:
            raise LinkError(f"{self.link.peer} {what} minibatch {frame.minibatch}, and {flight.step} was due")
        return flight

    def _come(self, flight: InFlight, gradients: Any) -> None:
        made = unpack(gradients, self.backward_dtype, [h.dtype for h in flight.leaves])
        if [g.shape for g in made] != [h.shape for h in flight.leaves]:
            hint = "; with inputs= every process has to read the same data" if self.ahead_by else ""
            raise LinkError(f"{self.link.peer} sent gradients of another shape for minibatch {flight.step}{hint}")
        flight.received = [g.to(h.device) for g, h in zip(made, flight.leaves, strict=True)]
        self.arrived.append(flight)


class Previous(Neighbour):
    """The previous worker."""

    def __init__(self, link: Link, dtypes: tuple[str, str], trace: Timeline, timeout_s: float) -> None:
        super().__init__(link, dtypes, trace, timeout_s)
        #: those that have come since the last one was sent; each is given once
        self.losses: Callable[[], list[list[float]]] = list
        #: what has come for those, and what else, in order, while they were waited for
        self.sent: deque[Frame] = deque()
        self.control: deque[Frame] = deque()

    def receive(self) -> Frame:
        """What comes next, waiting for it."""
        while True:
            frame = self._receive(WAIT_PREVIOUS, wait=True)
            assert frame is not None
            if not self._taken(frame):
                return frame

    def poll(self) -> None:
        """Take in what has come for predictions of the input, without waiting."""
        while (frame := self._receive(WAIT_PREVIOUS, wait=False)) is not None:
            self._sort(frame)

    def until_next(self) -> None:
        """Wait for one more frame."""
        frame = self._receive(WAIT_PREVIOUS, wait=True)
        assert frame is not None
        self._sort(frame)

    def next(self, wait: bool) -> Frame | None:
        """The next frame that is no message, which :attr:`sent` keeps; None where there is none yet."""
        self.poll()
        while wait and not self.control:
            self.until_next()
        return self.control.popleft() if self.control else None

    def _sort(self, frame: Frame) -> None:
        if not self._taken(frame):
            (self.sent if frame.kind == Kind.MESSAGE else self.control).append(frame)

    def take_inputs(
        self,
        awaited: deque[AwaitedInput],
        oldest: int | None,
        where: list[int],
        device: torch.device | None,
        *,
        poll: bool,
    ) -> None:
        """Give minibatches that ran on predictions what came of them; see :class:`syngrad.runtime.channel.RemoteInlet`.

        Raises:
            ConfigError: where the previous worker has read other data.
            LinkError: where messages do not come in order.
        """
        if poll:
            self.poll()
        if oldest is not None:
            missing = sum(each.h is None for each in awaited)
            first = awaited[-1].step - missing + 1 if awaited else 0  # of those that have not come
            while len(self.sent) < min(oldest - first + 1, missing):
                self.until_next()
        for each in awaited:
            if not self.sent:
                return
            if each.h is None:
                each.h, each.mark = self._input(each.step, where, each.mark, device), None

    def _input(self, step: int, where: list[int], of: Tensor | None, device: torch.device | None) -> Tensor:
        """What came first of that which has not been asked for: the message of minibatch `step`."""
        frame = self.sent.popleft()
        if frame.minibatch != step:
            raise LinkError(f"{self.link.peer} sent minibatch {frame.minibatch}, and {step} was due")
        message, mark = self.message(frame, where, device)
        if of is None or not isinstance(mark, Tensor) or not torch.equal(mark.cpu(), of):
            raise ConfigError(
                f"minibatch {step} holds other data here than in {self.link.peer}; with inputs= every process reads "
                "the data itself: let it be shuffled with a generator that is seeded alike everywhere"
            )
        made: Tensor = message
        return made

    def message(self, frame: Frame, where: list[int], device: torch.device | None) -> tuple[Any, Any]:
        """(the message, its context) of a frame, on this worker's device."""
        packed, context, *shared = frame.body
        self.shared.put(shared, self.link.peer)
        made = _unpacked(packed, where, "float32" if frame.kind == Kind.EVALUATE else self.forward_dtype)
        return (made, context) if device is None else (to_device(made, device), to_device(context, device))

    def answer(self, step: int, gradients: list[Tensor] | None = None, shared: Sequence[Tensor | None] = ()) -> None:
        """Minibatch `step` is done with, negative where it was only evaluated; ∂L/∂h where that was wanted."""
        training = step >= 0
        with self.trace.span("send" if training else "evaluate"):
            packed = None if gradients is None else pack(gradients, self.backward_dtype)
            body = [packed, self.losses(), *([list(shared)] if shared else ())]
            self._send(Frame(Kind.DONE, step, body=body), training)

    def tell(self, step: int, truth: list[Tensor]) -> None:
        """The true ∂L/∂h of minibatch `step`."""
        with self.trace.span("send"):
            self._send(Frame(Kind.TRUTH, step, body=[pack(truth, self.backward_dtype), []]), counted=True)

    def reply(self, parts: list[Any]) -> None:
        """The answer to an order: this worker's, and those of all after it."""
        self._send(Frame(Kind.REPLY, body=parts))


def _waited_for(frame: Frame, what: str) -> str:
    """What a wait is called that this frame has ended: only those for minibatches to train on are waits in training."""
    if frame.kind == Kind.EVALUATE or (frame.kind == Kind.DONE and frame.minibatch < 0):
        return "evaluate"
    return what if frame.kind in (Kind.MESSAGE, Kind.DONE, Kind.TRUTH, Kind.SHARED) else "orders"


def _is_loss(pair: Any) -> bool:
    """Whether it is (minibatch, loss)."""
    return isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(each, int | float) for each in pair)


def _packed(message: Any, where: list[int], how: str) -> Any:
    """The message for the wire: differentiable leaves in the form that was asked for, everything else as it is."""
    if how == "float32" or not where:
        return map_tensors(torch.Tensor.detach, message)
    flat, spec = pytree.tree_flatten(message)
    leaves = [flat[i].detach() for i in where]
    for i in where:
        flat[i] = None
    rest = map_tensors(torch.Tensor.detach, pytree.tree_unflatten(flat, spec))
    return {"leaves": pack(leaves, how), "dtypes": [h.dtype for h in leaves], "rest": rest}


def _unpacked(packed: Any, where: list[int], how: str) -> Any:
    if how == "float32" or not where:
        return packed
    leaves = unpack(packed["leaves"], how, packed["dtypes"])
    flat, spec = pytree.tree_flatten(packed["rest"])
    for i, leaf in zip(where, leaves, strict=True):
        flat[i] = leaf
    return pytree.tree_unflatten(flat, spec)
