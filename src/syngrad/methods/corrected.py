"""`corrected(d, every=n)`: every stage updates at once by its estimate, and later by what the estimate missed.

    on message t:    h = stage_k(m; θ_t), passed on;  gradient of θ  +=  J_tᵀ δ̂_t                    as in `synthetic`
    on truth t:      g = ∂L/∂h has come; in its turn  gradient of θ  +=  w · J_tᵀ (g − δ̂_t)          J_t at θ_t, stashed
                     the previous stage's truth is  ∂/∂m by both parts, J_tᵀ g
                     estimator_k is fitted to g, of the minibatches whose feedback it wants

A truth comes for every n-th minibatch; the others are `synthetic`'s alone, and cost what they cost there. What is added
late joins the step of the minibatch that is under way: the optimiser sees one gradient, the sum, and steps once. With
Adam that is not the same as two steps, nor as one with the gradient g at θ_t.

Stage k of K uses the truth of minibatch t − d·(K−1−k), or, over several workers and with no d given, whatever has come.
d = 0 is back-propagation on the minibatches that have a truth; with δ̂ = 0 and n = 1 it is `delayed(d)`; with w = 0 it
is `synthetic`. Where g has come within the minibatch itself δ̂ is left out, not taken back: both give J_tᵀ g, but the
latter not to the last bit, and w is nothing there.

Weights: w = 1, though the mean of what is added is that of g − δ̂ only for w = n: a late residual n times as long is
n times as noisy, and the estimates' bias that w = 1 leaves in did not hurt much (benchmarks/corrected). In flight at
once: of d·(K−1−k)/n + 1 minibatches the stash, δ̂ and what the stage's backward needs; in a free run as many as may be
under way to the last worker, over n.

Source: ours. Kin: control variates for predicted gradients (arXiv 2511.05187), in one process and without delay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from torch import Tensor

from syngrad.core.memory import hold
from syngrad.core.message import InFlight, Message, Minibatch, StashedFlight, gradient_of
from syngrad.methods import late
from syngrad.methods.actor import Actor
from syngrad.methods.synthetic import Synthetic
from syngrad.tree import leaves_at


class Corrected(Synthetic):
    """θ ← θ − α (J_tᵀ δ̂_t + J_{t−d}ᵀ (g − δ̂)_{t−d})."""

    takes = "minibatches"
    options: ClassVar[Mapping[str, float]] = {"every": 4, "weight": 1.0}
    two_answers = True

    def on_message(self, actor: Actor, message: Message, now: Minibatch) -> Tensor | None:
        """Run, pass on, update by δ̂, and keep what the way back with the truth will need."""
        if not actor.training.policy.corrects(now.step):
            return super().on_message(actor, message, now)
        training, batch = actor.training, now.batch
        at_once = not actor.last and self._at_once(actor, now.step)
        h, flight = late.forward(actor, message, now, late.stash(actor) if at_once else {})
        if actor.last:
            loss = training.loss(h, batch)
            training.back(loss)
            late.gather(actor, flight)
            actor.answer(now.step)
            actor.tell(now.step, [gradient_of(leaf) for leaf in flight.inputs])
            return loss.detach()
        flight.sent = leaves_at(h, actor.leaving)
        flight.leaves = [leaf.detach() for leaf in flight.sent]
        flight.context, flight.scale, flight.sampled = batch.target, batch.scale, now.sampling
        flight.at_once = at_once
        actor.sends.send(InFlight(now.step, scale=batch.scale), h, batch.target, actor.leaving)
        actor.flights.append(flight)
        actor.sends.truths.append(flight)
        if flight.updates and flight.sent and not actor.interface.silent:
            flight.wanted = not at_once  # what the estimators remember is of use within the minibatch alone
            flight.estimates = actor.estimate(flight, flight.leaves, now, flight.wanted)
            if at_once:
                late.back(actor, flight, flight.estimates, again=True)
                late.gather(actor, flight)
        hold((flight.leaves, flight.estimates, flight.stash), flight)
        actor.answer(now.step)
        return None

    def on_feedback(self, actor: Actor, flight: InFlight, now: Minibatch) -> None:
        """A truth stands in line for its turn; of the other minibatches estimators learn as `synthetic`'s do."""
        if not isinstance(flight, StashedFlight):
            super().on_feedback(actor, flight, now)
            return
        # where it comes at any time: δ̂ has been used, and a record tells by the minibatch that g was not there yet
        late.stand_in_line(actor, flight, now, free=flight.step + 1)

    def await_feedback(self, actor: Actor, now: Minibatch) -> None:
        """Truths in their turn too, where their delay is fixed."""
        training, fitted = actor.training, now.step - actor.training.policy.feedback_delay
        if training.free or any(flight.wanted and flight.step <= fitted for flight in actor.sends.outstanding):
            super().await_feedback(actor, now)
        if not training.free:
            actor.sends.until(now.step - late.reach(actor), truth=True)

    def settle(self, actors: Sequence[Actor], now: Minibatch) -> None:
        """Go back, from the last stage to the first, with the truths whose turn it is; then fit what has waited."""
        for actor, flight in late.in_turn(self, actors, now):
            self._go_back(actor, flight)
        if not now.ending:
            super().settle(actors, now)

    def _go_back(self, actor: Actor, flight: StashedFlight) -> None:
        training, truth, estimates = actor.training, flight.received or [], flight.estimates
        missed = truth
        if estimates and flight.at_once:
            missed = [g - e for g, e in zip(truth, estimates, strict=True)]
        late.back(actor, flight, missed)
        late.gather(actor, flight, training.policy.method.weight)
        if estimates and flight.sampled:
            training.measure(actor.index, flight)
        if flight.updates and actor.interface.wants_feedback and training.policy.fits(flight.step):
            actor.interface.fit(flight.leaves, flight.context, truth, flight.scale, flight.kept)
        actor.tell(flight.step, [gradient_of(leaf) for leaf in flight.inputs])

    def _at_once(self, actor: Actor, step: int) -> bool:
        """Whether a stage updates by δ̂ where a truth comes; where that comes in the same minibatch δ̂ is only fitted."""
        training = actor.training
        if training.replay is not None:
            return late.recorded(actor, step) > step
        return not (training.free and training.ends_here)
