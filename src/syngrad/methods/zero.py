"""`zero`: nothing comes back. Only the last stage learns; what that reaches is the floor of every comparison."""

from __future__ import annotations

import torch
from torch import Tensor

from syngrad.core.message import InFlight, Message, Minibatch
from syngrad.methods.actor import Actor
from syngrad.methods.base import UpdateRule


class Zero(UpdateRule):
    """δ̂ = 0."""

    def on_message(self, actor: Actor, message: Message, now: Minibatch) -> Tensor | None:
        """Run and pass on; the last stage goes back from the loss."""
        # a graph in the last stage alone, the only one that a gradient reaches
        with torch.set_grad_enabled(actor.last and now.updates(actor.index)):
            h, _ = actor.run(message, feedback=False)
        loss = None
        if actor.last:
            loss = actor.training.loss(h, now.batch)
            actor.training.back(loss)
        else:
            actor.sends.send(InFlight(now.step), h, now.batch.target, actor.leaving)
        actor.answer(now.step)
        return loss.detach() if loss is not None else None

    def await_feedback(self, actor: Actor, now: Minibatch) -> None:
        """No wait: how many minibatches may be under way bounds what is in flight."""
