"""One minibatch through the stages that a process runs, by `synthetic` or `zero`.

With `synthetic` and bootstrapped feedback it goes, stage by stage,

    m_k = h_{k-1} cut from its graph         it requires a gradient only if feedback was asked for
    h_k = stage_k(m_k)                       sent on at once where the next stage runs in another process
    h_k.backward(scale·δ̂_k)                  δ̂_k = estimator_k(h_k, context); the last stage uses the loss
    fit estimator_{k-1} to ∂/∂m_k            where asked for; what was received goes back down at once

and a stage's activations are gone before the next stage runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from syngrad.core.batch import Batch
from syngrad.core.interface import Interface
from syngrad.core.memory import hold
from syngrad.core.pending import Kept, Pending, gradient_of
from syngrad.pipeline.neighbours import Sent
from syngrad.tree import backward, detach, leaves_at

if TYPE_CHECKING:
    from syngrad.runtime.runner import Sequential


def synthetic(run: Sequential, batch: Batch, t: int, sampling: bool, active: list[bool] | None) -> Tensor | None:
    """Every stage by its own estimate; the loss, detached, where the last stage is among them."""
    asked, scale, context = run.policy.wants_feedback(t), batch.scale, batch.target
    keep = asked and run.policy.feedback_delay == 0 and run.replay is None
    lo, hi, below_end, above_end = run.ends.lo, run.ends.hi, run.ends.below, run.ends.above
    below: Interface | None = run.stages[lo - 1].interface if lo else None
    where: list[int] = below.positions if below is not None else []
    out: Any = batch.args[0] if lo else None
    kept = Kept()
    estimates: list[Tensor] = []
    loss = None
    for k in range(lo, hi):
        stage = run.stages[k]
        takes_part = active is None or active[k]
        wanted = batch.wanted if k == lo else takes_part and bool(kept) and wanted_by(below, asked, sampling)
        with torch.set_grad_enabled(takes_part):
            if k == 0:
                inputs: list[Tensor] = []
                out = stage.run(*batch.args, **batch.kwargs)
            else:
                message, inputs = detach(out, where, wanted)
                out = stage.run(message)
                del message
        new_kept = Kept()
        new_estimates: list[Tensor] = []
        if stage.interface is None:
            loss = run.top(out, batch)
            run.back(loss)
        else:
            sent = leaves_at(out, stage.interface.positions)
            outer = above_end if k == hi - 1 else None
            going = Sent(t)
            if outer is not None:
                next_active = active is None or active[k + 1]
                wish = takes_part and next_active and bool(sent) and wanted_by(stage.interface, asked, sampling)
                going = Sent(t, wish, [h.detach() for h in sent] if wish else [], context if wish else None, scale)
                outer.send(going, out, context, stage.interface.positions)
            if takes_part and sent:
                memo = keep and not (outer is not None and run.ends.free)
                with stage.randomness.swapped():
                    detached = [h.detach() for h in sent]
                    new_estimates, kept_now = stage.interface.estimate(detached, context, scale, memo)
                new_kept.extend(kept_now)
                hold((sent, kept_now), new_kept)
                backward(sent, new_estimates)
                if going.wanted and memo:
                    going.kept = kept_now
                if going.wanted and sampling:
                    going.estimates = new_estimates
                if not sampling:  # an estimate as large as h need not outlive its own backward
                    new_estimates = []
        if k == lo and below_end is not None:
            below_end.done(t, [gradient_of(leaf) for leaf in inputs] if wanted else None)
        elif wanted and below is not None:
            received = [gradient_of(leaf) for leaf in inputs]
            pending = Pending(t, inputs, context, received, scale, kept)
            run.learn(k - 1, below, pending, estimates, asked)
            del received, pending
        kept, estimates, below = new_kept, new_estimates, stage.interface
        where = below.positions if below is not None else []
    return loss.detach() if loss is not None else None


def zero(run: Sequential, batch: Batch, t: int, active: list[bool] | None) -> Tensor | None:
    """Only the last stage learns; below it nothing comes."""
    last = len(run.stages) - 1
    out: Any = batch.args[0] if run.ends.lo else None
    for k in range(run.ends.lo, run.ends.hi):
        stage = run.stages[k]
        with torch.set_grad_enabled(k == last and (active is None or active[k])):
            out = stage.run(out) if k else stage.run(*batch.args, **batch.kwargs)
    loss = None
    interface = run.stages[run.ends.hi - 1].interface
    if run.ends.above is not None and interface is not None:
        run.ends.above.send(Sent(t), out, batch.target, interface.positions)
    else:
        loss = run.top(out, batch)
        run.back(loss)
    if run.ends.below is not None:
        run.ends.below.done(t)
    return loss.detach() if loss is not None else None


def wanted_by(interface: Interface | None, asked: bool, sampling: bool) -> bool:
    """Whether what comes back at this interface is of use: to its estimator, or to the sample of its quality."""
    return interface is not None and (sampling or (asked and interface.wants_feedback))
