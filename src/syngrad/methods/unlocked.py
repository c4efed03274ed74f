"""`synthetic` on predicted inputs: all stages start together, and none waits for those before it.

    on minibatch t:    m̂ = I_k(x)                          no previous stage has to have run
                       h = stage_k(m̂);  h.backward(scale·δ̂)
                       pass h on, answer ∂/∂m̂
    on message t:      fit I_k to h_{k−1}
    on feedback t:     fit estimator_k to ∂/∂m̂_{k+1}

What comes from another worker is not waited for (under a fixed delay d: not for what is of the last d minibatches).
Source: Jaderberg et al. 2016 (arXiv 1608.05343), section 3.3, complete unlock. The gradient is that at m̂_k, and stands
for the one at h_{k−1}, as in the paper.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from syngrad.core.batch import Batch
from syngrad.core.message import AwaitedInput, Message, Minibatch, gradient_of
from syngrad.methods.actor import Actor
from syngrad.methods.synthetic import Synthetic
from syngrad.tree import leaves_at, tensors

#: elements of each tensor that stand for a minibatch
SAMPLE = 16


class Unlocked(Synthetic):
    """θ ← θ − α δ̂ ∂h/∂θ at h = stage(I(x))."""

    def on_message(self, actor: Actor, message: Message, now: Minibatch) -> Tensor | None:
        """Run on the prediction, pass on, update by δ̂, answer; the message is what the predictor learns from."""
        stage, batch, k = actor.stage, now.batch, actor.index
        updates, loss, before = now.updates(k), None, actor.before
        # no message says whether feedback is wanted: the previous stage decides it from the same draws
        of_use = before is not None and (now.sampling or (now.asked and before.wants_feedback))
        wanted = of_use and updates and now.updates(k - 1)
        inputs: list[Tensor] = []
        with torch.set_grad_enabled(updates):
            if stage.predictor is None:
                h = stage.run(*batch.args, **batch.kwargs)
            else:
                # no graph: the predictor is fitted to what is really sent, whenever that comes
                with torch.no_grad(), stage.randomness.swapped():
                    predicted = stage.predictor(batch.args, batch.kwargs)
                inputs = [predicted.detach().requires_grad_(wanted or stage.needs_gradient)]
                h = stage.run_on(inputs[0], actor.arriving)
        at_edge = actor.previous is not None and not actor.previous.local
        if at_edge:  # the runner takes it in when it has come
            actor.awaited.append(AwaitedInput(now.step, batch.args, batch.kwargs, None, self._mark(now)))
        elif k > 0:
            (came,) = leaves_at(message.args[0], actor.arriving)
            actor.awaited.append(AwaitedInput(now.step, batch.args, batch.kwargs, came.detach()))
        message.args = ()
        if actor.last:
            loss = actor.training.loss(h, batch)
            actor.training.back(loss)
        else:
            context = batch.target if actor.sends.local else self._mark(now)
            self.send_and_update(actor, h, context, now, updates)
        actor.answer(now.step, [gradient_of(leaf) for leaf in inputs] if wanted else None)
        return loss.detach() if loss is not None else None

    def _mark(self, now: Minibatch) -> Tensor:
        """What goes with h to another worker, which reads the data itself: by it both see that they read the same."""
        if now.mark is None:
            now.mark = fingerprint(now.batch)
        return now.mark

    def settle(self, actors: Sequence[Actor], now: Minibatch) -> None:
        """Inputs' predictors first, then the estimators."""
        for actor in actors:
            actor.use_awaited_inputs(now.step)
        super().settle(actors, now)


def fingerprint(batch: Batch) -> Tensor:
    """A few numbers of every tensor of a minibatch: two workers that see the same data have the same."""
    parts = []
    for tensor in tensors((batch.args, batch.kwargs, batch.target)):
        flat = tensor.detach().reshape(-1)
        step = max(flat.numel() // SAMPLE, 1)
        parts.append(flat[::step][:SAMPLE].double().cpu())
    return torch.cat(parts).nan_to_num() if parts else torch.zeros(0)
