"""What a method is: what a stage does with a message that comes, and with the feedback that comes back.

To add one, write a class in a file of its own and name it in :mod:`syngrad.methods.registry`. The runner calls

    on_message(stage, message)      first stage to last;            run · pass on · update · answer the previous stage
    on_feedback(stage, flight)      whenever an answer has come;    fit the estimator, or go back with the gradient
    settle(stages)                  at the minibatch's end;         use what has waited for its turn

and then the optimisers take what has gathered in `.grad`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from syngrad.core.message import InFlight, Message, Minibatch
from syngrad.methods.actor import Actor


class UpdateRule(ABC):
    """What every stage of a run does. It keeps nothing itself: what is in flight belongs to the actors.

    Attributes:
        takes: the number that is written behind the name: "λ", "minibatches" (a delay), or "" for none.
        estimates: whether it needs the interfaces' estimators.
        waits: whether a stage waits for its gradient before it updates.
        options: what may be written behind the number, as in `every=4`, with what it is where it is not.
        two_answers: whether a truth comes for a minibatch that has been answered already.
        sums: whether a stage's gradient is the true one, if a late one. What several stages share is then updated by
            the sum of all their gradients, wherever they run; otherwise workers update copies, which are averaged.
        carries: whether of what stages share the gradient comes back cut by cut, as that of the messages, even within
            one process.
    """

    takes: ClassVar[str] = ""
    estimates: ClassVar[bool] = False
    waits: ClassVar[bool] = False
    options: ClassVar[Mapping[str, float]] = {}
    two_answers: ClassVar[bool] = False
    sums: ClassVar[bool] = False
    carries: ClassVar[bool] = False

    @abstractmethod
    def on_message(self, actor: Actor, message: Message, now: Minibatch) -> Tensor | None:
        """Run the stage on the message; the loss, detached, if it is the last one."""

    def on_feedback(self, actor: Actor, flight: InFlight, now: Minibatch) -> None:
        """Take in `flight.received`; by default the estimators are fitted to it."""
        actor.training.measure(actor.index, flight)
        if actor.training.policy.wants_feedback(flight.step):
            actor.learn(flight, now)

    def await_feedback(self, actor: Actor, now: Minibatch) -> None:
        """Have what is due from the next worker come in: all there is, or, with a fixed delay, what is waited for."""
        if actor.training.free:
            actor.sends.poll()
        else:
            actor.sends.until(now.step - actor.training.policy.feedback_delay)

    def settle(self, actors: Sequence[Actor], now: Minibatch) -> None:
        """Use what has waited for its turn, before the optimisers step."""
        for actor in actors:
            actor.use_waiting(now.step)
