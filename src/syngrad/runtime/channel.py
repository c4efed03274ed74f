"""The channel between two stages of one process: a message goes at once, and so does what comes back for it."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from syngrad.core.message import AwaitedInput, InFlight, Inlet, Message, Outlet


class LocalChannel:
    """Both ends of a channel without a link; see :class:`syngrad.core.message.Outlet` and `Inlet`.

    The runner takes each message as soon as it is sent, so there is never more than one in it.
    """

    local = True
    depth = 1

    def __init__(self) -> None:
        self.message: Message | None = None
        self.outstanding: deque[InFlight] = deque()
        self.truths: deque[InFlight] = deque()
        self.arrived: deque[InFlight] = deque()

    def send(self, flight: InFlight, h: Any, context: Any, where: list[int]) -> None:
        """h goes with its graph: whether it is cut there is the method's business. The context is at hand anyway."""
        self.message = Message((h,), {}, flight.wanted)
        self.outstanding.append(flight)

    def take(self) -> Message:
        """The message that has just been sent."""
        message, self.message = self.message, None
        assert message is not None
        return message

    def answer(self, step: int, gradients: list[Tensor] | None = None, shared: Sequence[Tensor | None] = ()) -> None:
        """Minibatch `step` is done with; what the sender kept of it goes, unless it has got its gradient."""
        flight = self.outstanding.popleft()
        assert flight.step == step, "feedback comes back in the order in which messages went"
        if gradients is not None:
            flight.received, flight.shared = gradients, shared
            self.arrived.append(flight)

    def tell(self, step: int, truth: list[Tensor]) -> None:
        """The truth of minibatch `step`, which its sender has kept something for."""
        flight = self.truths.popleft()
        assert flight.step == step, "truths come back in the order in which messages went"
        flight.received = truth
        self.arrived.append(flight)

    def room(self) -> None:
        """The runner has taken the last message already."""

    def poll(self) -> None:
        """All that there is has arrived already."""

    def until(self, step: int, truth: bool = False) -> None:
        """All that there is has arrived already."""

    def forget(self, step: int) -> None:
        """Leave nothing behind of a minibatch that failed."""
        self.message = None
        for queue in (self.outstanding, self.truths, self.arrived):
            while queue and queue[-1].step == step:
                queue.pop()


class RemoteInlet(Inlet, Protocol):
    """The channel from the previous worker."""

    def take_inputs(
        self,
        awaited: deque[AwaitedInput],
        oldest: int | None,
        where: list[int],
        device: torch.device | None,
        *,
        poll: bool,
    ) -> None:
        """Give every minibatch that ran on a prediction of its input what has come of it.

        Args:
            awaited: those minibatches, oldest first.
            oldest: the minibatch whose input, and those of all before it, are waited for; None to wait for none.
            where: the positions of the differentiable leaves in the flattened message.
            poll: whether what stands at the link is to be looked for first.
        """


@dataclass
class Neighbours:
    """What lies before and after the stages `lo` to `hi` − 1, which a worker runs; None where nothing does.

    Args:
        free: whether feedback from the next worker is used as it comes, and not after a fixed number of minibatches.
        run_ahead: minibatches that the worker may be ahead of the previous one, on predictions of its inputs.
    """

    lo: int
    hi: int
    previous: RemoteInlet | None = None
    next: Outlet | None = None
    free: bool = False
    run_ahead: int = 0
