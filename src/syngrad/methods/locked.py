"""`backprop` and `mixed(λ)`: forward through all stages first, and back after. True feedback and the warm-up too.

    on message t:    h = stage_k(m), passed on
    on feedback t:   g = λ·received + (1−λ)·scale·δ̂       δ̂ = estimator_k(h, context), fitted to what was received
                     h.backward(g); answer ∂/∂m

A worker whose last stage has others after it waits in the middle of the minibatch until its gradient has come back.
Source: Jaderberg et al. 2016 (arXiv 1608.05343), BP(λ).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from syngrad.core.message import InFlight, Message, Minibatch, gradient_of
from syngrad.errors import TrainingError
from syngrad.methods.actor import Actor
from syngrad.methods.base import UpdateRule
from syngrad.targets import mixed
from syngrad.tree import backward, leaves_at


class Locked(UpdateRule):
    """One minibatch, all of whose stages wait for their gradients."""

    waits = sums = True
    #: whether the graph is cut at every interface, or only where another worker goes on
    cuts: ClassVar[bool] = True

    def on_message(self, actor: Actor, message: Message, now: Minibatch) -> Tensor | None:
        """Run and pass on, keeping what the way back needs; the last stage goes back from the loss at once."""
        inputs: list[Tensor] = []
        # uncut, the message brings its graph along, and the loss's own backward goes through all stages
        if actor.previous is not None and (self.cuts or not actor.previous.local):
            h, inputs = actor.run(message, feedback=True)
        else:
            args, message.args = message.args, ()
            h = actor.stage.run(*args, **message.kwargs)
            del args
        if actor.last:
            loss = actor.training.loss(h, now.batch)
            if not loss.requires_grad:
                raise TrainingError(
                    "the loss has no gradient: the model's output is cut from its graph; do not detach it"
                )
            actor.training.back(loss)
            actor.answer(now.step, [gradient_of(leaf) for leaf in inputs])
            return loss.detach()
        sent = leaves_at(h, actor.leaving) if self.cuts or not actor.sends.local else []
        leaves = [leaf.detach() for leaf in sent]
        flight = InFlight(now.step, True, leaves, now.batch.target, now.batch.scale, sent=sent, inputs=inputs)
        actor.sends.send(flight, h, now.batch.target, actor.leaving)
        return None

    def await_feedback(self, actor: Actor, now: Minibatch) -> None:
        """The gradient of this very minibatch."""
        actor.sends.until(now.step)

    def settle(self, actors: Sequence[Actor], now: Minibatch) -> None:
        """Stages that take no part in the updates forget what came to them."""
        for actor in actors:
            if not now.updates(actor.index):
                actor.drop_gradients()
        super().settle(actors, now)


class Backprop(Locked):
    """∂L/∂θ. In one process autograd itself carries the gradient through all stages: nothing is cut."""

    cuts = False

    def on_feedback(self, actor: Actor, flight: InFlight, now: Minibatch) -> None:
        """Go back with what another worker has sent; within this one the loss's own backward has."""
        if flight.sent and flight.received:
            # what later workers say of shared parameters goes first into one sum, as it does in one graph
            shared = [(p, g) for p, g in zip(actor.passes, flight.shared, strict=False) if g is not None]
            backward([*flight.sent, *(p for p, _ in shared)], [*flight.received, *(g for _, g in shared)])
        actor.answer(flight.step, [gradient_of(leaf) for leaf in flight.inputs])


class Mixed(Locked):
    """λ·∂L/∂h + (1−λ)·scale·δ̂, which at every interface goes further back."""

    takes = "λ"
    estimates = True

    def on_feedback(self, actor: Actor, flight: InFlight, now: Minibatch) -> None:
        """Estimate, learn from what was received, go back with the mixture, answer."""
        received, sent, inputs = flight.received or [], flight.sent, flight.inputs
        actor.add_shared(flight)
        policy = actor.training.policy
        if not sent:  # h has no differentiable leaf
            actor.answer(flight.step, [gradient_of(leaf) for leaf in inputs])
            return
        estimates = actor.estimate(flight, flight.leaves, now, now.asked and policy.feedback_delay == 0)
        actor.training.measure(actor.index, flight)
        if now.asked and now.updates(actor.index) and now.updates(actor.index + 1):
            actor.learn(flight, now)
        lam = policy.lam(now.step)
        mixture = [mixed(g, e, lam) for g, e in zip(received, estimates, strict=True)]
        # with true feedback earlier estimators are to learn from ∂L/∂h itself, not from what this stage updates by
        if policy.feedback == "true" and lam < 1.0:
            gradients = self._past(actor, flight, received, mixture)
        else:
            backward(sent, mixture)
            gradients = [gradient_of(leaf) for leaf in inputs]
        flight.sent, flight.inputs, flight.estimates = (
            [],
            [],
            [],
        )  # it may wait for its turn, and then without its graph
        actor.answer(flight.step, gradients)

    def _past(self, actor: Actor, flight: InFlight, received: list[Tensor], mixture: list[Tensor]) -> list[Tensor]:
        """The real gradient goes through the stage to the estimators before it; its weights get the mixture."""
        graph = [(h, g, m) for h, g, m in zip(flight.sent, received, mixture, strict=True) if h.requires_grad]
        parts = [h for h, _, _ in graph]
        passed: tuple[Tensor | None, ...] = ()
        if flight.inputs:
            passed = torch.autograd.grad(
                parts, flight.inputs, [g for _, g, _ in graph], retain_graph=True, allow_unused=True
            )
        trained = [p for p in actor.stage.used if p.requires_grad]
        if trained and parts:
            torch.autograd.backward(parts, [m for _, _, m in graph], inputs=trained)
        return [torch.zeros_like(h) if g is None else g for g, h in zip(passed, flight.inputs, strict=True)]
