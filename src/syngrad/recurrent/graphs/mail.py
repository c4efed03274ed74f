"""Messages between the modules of a graph: when one is delivered, who hears it how often, what comes back for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from syngrad.core.interface import Interface
from syngrad.core.staleness import Staleness
from syngrad.estimators import Zero
from syngrad.runtime.quality import Quality


def heard(sent: int, every: int, listens_every: int, until: int | None = None) -> int:
    """At how many of its ticks a module that ticks every `listens_every` steps hears the message that a module that
    ticks every `every` steps made at step `sent`: those in [sent + every, sent + 2·every), before step `until`.
    """
    start, stop = sent + every, sent + 2 * every
    if until is not None:
        stop = max(min(stop, until), start)
    return -(-stop // listens_every) - -(-start // listens_every)


def silent(interface: Interface) -> bool:
    """Whether all that it ever foretells is zero."""
    return all(isinstance(head, Zero) for head in interface.heads)


def number(sent: int, every: int, listens_every: int) -> int:
    """Which one it is, from 0 on, of the messages that the listener hears at all: of several made between two ticks of
    its own it hears the last.
    """
    return sent // every if every > listens_every else -(-(sent + every) // listens_every) - 1


def feedback_every(interface: Interface) -> int:
    """From how many to the next what comes back is looked at: as its estimator wishes."""
    return interface.heads[0].feedback_every


@dataclass(eq=False)
class Sent:
    """One message. value: (n, …), detached. step: at which it was made. stamp: updates that the sender had made by
    then. ticks: of each module that hears it, at how many. used, received: how many of these have been learnt from, and
    the sum of what came back, of one sample's losses. estimate: what was injected instead, where quality is sampled.
    """

    value: Tensor
    step: int
    stamp: int
    context: Any = None
    ticks: dict[str, int] = field(default_factory=dict)
    used: dict[str, int] = field(default_factory=dict)
    received: dict[str, Tensor] = field(default_factory=dict)
    estimate: dict[str, Tensor] = field(default_factory=dict)


class Edge:
    """One module listening to another. Its estimator, which is the sender's, foretells what comes back for a message:

        ĝ(m) ≈ Σ over the ticks at which m is heard of ∂(losses of the receiver, and its own estimates)/∂m.

    inject: factor of the estimate where it enters the sender. staleness: the sender's updates between making a message
    and learning what came back for it. late: the same in steps of the clock.
    """

    def __init__(self, sender: str, receiver: str, interface: Interface, inject: float = 1.0) -> None:
        self.sender, self.receiver, self.interface, self.inject = sender, receiver, interface, inject
        self.name = interface.name
        #: nothing is foretold here, so nothing goes back from here
        self.silent = silent(interface)
        self.quality = Quality.of_stream(self.name)
        self.staleness, self.late = Staleness(), Staleness()
        #: messages learnt from
        self.count = 0

    def wants(self, message: int) -> bool:
        """Whether what comes back for the message of this number is looked at."""
        return self.interface.wants_feedback and message % feedback_every(self.interface) == 0

    def feed(self, sent: Sent, ticks: int, received: Tensor, step: int, updates: int) -> None:
        """Take what has come back for so many of the ticks at which it was heard, per sample; with the last of them the
        estimator is fitted to the sum. step, updates: the clock, and how many updates the sender has made by now.
        """
        me = self.receiver
        sent.used[me] = sent.used.get(me, 0) + ticks
        sent.received[me] = sent.received[me] + received if me in sent.received else received
        if sent.used[me] < sent.ticks[me]:
            return
        total = sent.received.pop(me)
        scale = 1.0 / max(len(total), 1)
        self.interface.fit([sent.value], sent.context, [total * scale], scale)
        if me in sent.estimate:
            self.quality.add(self.count, sent.estimate.pop(me) * scale, total * scale, scale)
        self.staleness.add(updates - sent.stamp)
        self.late.add(step - sent.step)
        self.count += 1
