"""`synthetic`: every stage updates at once by its own estimate of the gradient.

    on message t:    m = h_{k−1}, cut from its graph      it requires a gradient only if feedback was asked for
                     h = stage_k(m)                       passed on at once
                     h.backward(scale·δ̂)                  δ̂ = estimator_k(h, context); the last stage uses the loss
                     answer ∂/∂m                          where it was asked for
    on feedback t:   fit estimator_k to ∂L/∂h

and a stage's activations are gone before the next stage runs.
Source: Jaderberg et al. 2016 (arXiv 1608.05343), section 2. Deviation: what comes back was made with the next stage's
own δ̂ (bootstrapped) without λ; see `mixed`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from syngrad.core.memory import hold
from syngrad.core.message import InFlight, Message, Minibatch, gradient_of
from syngrad.methods.actor import Actor
from syngrad.methods.base import UpdateRule
from syngrad.tree import backward, leaves_at


class Synthetic(UpdateRule):
    """θ ← θ − α δ̂ ∂h/∂θ."""

    estimates = True

    def on_message(self, actor: Actor, message: Message, now: Minibatch) -> Tensor | None:
        """Run, pass on, update by δ̂, answer."""
        updates, loss = now.updates(actor.index), None
        with torch.set_grad_enabled(updates):
            h, inputs = actor.run(message, message.wanted)
        if actor.last:
            loss = actor.training.loss(h, now.batch)
            actor.training.back(loss)
        else:
            self.send_and_update(actor, h, now.batch.target, now, updates)
        actor.answer(now.step, [gradient_of(leaf) for leaf in inputs] if message.wanted else None)
        return loss.detach() if loss is not None else None

    def send_and_update(self, actor: Actor, h: Any, context: Any, now: Minibatch, updates: bool) -> None:
        """Pass h on, and go back through the stage with scale·δ̂ without waiting for anybody.

        context: what is to travel with h.
        """
        batch, sent = now.batch, leaves_at(h, actor.leaving)
        leaves = [leaf.detach() for leaf in sent]
        flight = InFlight(now.step, scale=batch.scale)
        if updates and sent and now.updates(actor.index + 1) and actor.wants(now):
            flight.wanted, flight.leaves, flight.context = True, leaves, batch.target
        actor.sends.send(flight, h, context, actor.leaving)
        if updates and sent:
            estimates = self.estimate(actor, flight, leaves, now)
            if actor.sends.local:
                hold((sent, flight.kept), flight)
            backward(sent, estimates)

    def estimate(self, actor: Actor, flight: InFlight, leaves: list[Tensor], now: Minibatch) -> list[Tensor]:
        """scale·δ̂, as the stage updates by it."""
        return actor.estimate(flight, leaves, now, self._fitted_within(actor, now))

    def _fitted_within(self, actor: Actor, now: Minibatch) -> bool:
        """Whether the estimators are fitted before the minibatch ends, and so may keep their run for it."""
        training = actor.training
        soon = training.policy.feedback_delay == 0 and training.replay is None
        return now.asked and soon and not (training.free and not actor.sends.local)
