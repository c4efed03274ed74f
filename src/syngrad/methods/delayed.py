"""`delayed(d)`: true gradients, late. Every stage hands a gradient back d minibatches after the next one has made it.

    on message t:    h = stage_k(m; θ_t), passed on; θ_t is stashed
    on feedback t:   in its turn, h.backward(received) through θ_t; what it says is added to the gradient of θ as it is
                     now; answer ∂/∂m

Stage k of K then updates from minibatch t − d·(K−1−k). A parameter that several stages use counts as a part of every
message: all of them go forward with the value that its owner, the first of them, has at minibatch t, and what they say
of it comes back to the owner with the gradients of minibatch t. So the owner updates by the sum of one minibatch.

The stash is needed because a backward through weights that changed since would mix two models. d = 0 is
back-propagation.
Source: DDG (Huo et al. 2018, arXiv 1804.10574), weight stashing as in PipeDream (Narayanan et al. 2019).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from syngrad.core.message import InFlight, Message, Minibatch, StashedFlight, gradient_of
from syngrad.methods import late
from syngrad.methods.actor import Actor
from syngrad.methods.base import UpdateRule
from syngrad.tree import leaves_at


class Delayed(UpdateRule):
    """The pipeline of minibatches in flight: `actor.flights` wait for a gradient, of which those `actor.due` have it.

    Where feedback from the next worker is free, gradients are used as they come, and the stages of one worker go back
    together.
    """

    takes = "minibatches"
    sums = carries = True

    def on_message(self, actor: Actor, message: Message, now: Minibatch) -> Tensor | None:
        """Go forward with the weights as they are, which are stashed where they may move before the way back."""
        batch = now.batch
        h, flight = late.forward(actor, message, now, self._stash(actor))
        if actor.last:
            loss = actor.training.loss(h, batch)
            loss.backward()  # no factor of the precision: float16, which has one, is refused with late gradients
            late.gather(actor, flight)
            actor.answer(now.step, [gradient_of(leaf) for leaf in flight.inputs])
            return loss.detach()
        flight.sent = leaves_at(h, actor.leaving)
        flight.leaves = [] if actor.sends.local else [leaf.detach() for leaf in flight.sent]
        actor.flights.append(flight)
        actor.sends.send(flight, h, batch.target, actor.leaving)
        return None

    def on_feedback(self, actor: Actor, flight: InFlight, now: Minibatch) -> None:
        """A gradient stands in line for its turn."""
        assert isinstance(flight, StashedFlight)
        # where they come at any time: one a minibatch, so that each is an update of its own
        late.stand_in_line(actor, flight, now, free=actor.due[-1].due + 1 if actor.due else 0)

    def await_feedback(self, actor: Actor, now: Minibatch) -> None:
        """What is due. Free feedback is waited for only when as many minibatches are in flight as may be."""
        channel, training = actor.sends, actor.training
        if not training.free:
            channel.until(now.step - late.reach(actor))
            return
        channel.poll()
        if not channel.arrived and not actor.due and len(actor.flights) >= channel.depth:
            channel.until(channel.outstanding[0].step)

    def settle(self, actors: Sequence[Actor], now: Minibatch) -> None:
        """Go back, from the last stage to the first, with the gradients whose turn it is."""
        for actor, flight in late.in_turn(self, actors, now):
            late.back(actor, flight, flight.received or [])
            late.gather(actor, flight)
            actor.add_shared(flight, owned=flight.updates)
            actor.answer(flight.step, [gradient_of(leaf) for leaf in flight.inputs])

    def _stash(self, actor: Actor) -> dict[str, Tensor]:
        """The weights as they are, where the gradient comes when they may have moved on."""
        training = actor.training
        moves = late.delay(actor) > 0 or training.replay is not None or (training.free and not training.ends_here)
        return {} if actor.last or not moves else late.stash(actor, predicted=True)
