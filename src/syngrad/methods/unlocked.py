"""One minibatch through stages that all start together: each runs on a prediction of its input (core.input_predictor).

    m̂_k = I_k(x)                             no stage below has to have run
    h_k = stage_k(m̂_k);  h_k.backward(scale·δ̂_k)
    h_k goes up, where I_{k+1} is fitted to it; ∂/∂m̂_k goes down, where the estimator of h_{k−1} is fitted to it

Nothing that comes from elsewhere is waited for (under a fixed delay d: nothing of the last d minibatches). Source:
Jaderberg et al. 2016 (arXiv 1608.05343), complete unlock. The gradient is that at m̂_k, and stands for the one at
h_{k−1}, as in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from syngrad.core.batch import Batch
from syngrad.core.pending import Kept, Pending, gradient_of
from syngrad.methods.synthetic import wanted_by
from syngrad.pipeline.neighbours import Sent
from syngrad.tree import backward, leaves_at, tensors

if TYPE_CHECKING:
    from syngrad.runtime.runner import Sequential

#: elements of each tensor that stand for a minibatch
SAMPLE = 16


@dataclass
class Target:
    """What the stage below has sent for a minibatch, and what its prediction was made from.

    h: None until it has come. of: the minibatch's fingerprint, where it is to come from another process.
    """

    step: int
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    h: Tensor | None = None
    of: Tensor | None = None


def unlocked(run: Sequential, batch: Batch, t: int, sampling: bool, active: list[bool] | None) -> Tensor | None:
    """Every stage by its own prediction and estimate; the loss, detached, where the last stage is among them."""
    asked, scale, context = run.policy.wants_feedback(t), batch.scale, batch.target
    keep = asked and run.policy.feedback_delay == 0 and run.replay is None
    lo, hi, below_end, above_end = run.ends.lo, run.ends.hi, run.ends.below, run.ends.above
    mark = fingerprint(batch) if below_end is not None or above_end is not None else None
    kept = Kept()
    estimates: list[Tensor] = []
    leaves: list[Tensor] = []
    loss = None
    for k in range(lo, hi):
        stage = run.stages[k]
        takes_part = active is None or active[k]
        wanted = k > 0 and takes_part and (active is None or active[k - 1])
        wanted = wanted and wanted_by(run.stages[k - 1].interface, asked, sampling)
        with torch.set_grad_enabled(takes_part):
            if stage.predictor is None:
                inputs: list[Tensor] = []
                out = stage.run(*batch.args, **batch.kwargs)
            else:
                with torch.no_grad(), stage.randomness.swapped():
                    message = stage.predictor(batch.args, batch.kwargs)
                inputs = [message.detach().requires_grad_(wanted)]
                out = stage.run(inputs[0])
        if k > lo:
            run.targets[k].append(Target(t, batch.args, batch.kwargs, leaves[0]))
        elif k > 0:
            run.targets[k].append(Target(t, batch.args, batch.kwargs, None, mark))
        new_kept = Kept()
        new_estimates: list[Tensor] = []
        new_leaves: list[Tensor] = []
        if stage.interface is None:
            loss = run.top(out, batch)
            run.back(loss)
        else:
            sent = leaves_at(out, stage.interface.positions)
            new_leaves = [h.detach() for h in sent]
            outer = above_end if k == hi - 1 else None
            going = Sent(t)
            if outer is not None:
                wish = takes_part and (active is None or active[k + 1]) and wanted_by(stage.interface, asked, sampling)
                going = Sent(t, wish, new_leaves if wish else [], context if wish else None, scale)
                outer.send(going, out, mark, stage.interface.positions)
            if takes_part:
                memo = keep and not (outer is not None and run.ends.free)
                with stage.randomness.swapped():
                    new_estimates, kept_now = stage.interface.estimate(new_leaves, context, scale, memo)
                new_kept.extend(kept_now)
                backward(sent, new_estimates)
                if going.wanted and memo:
                    going.kept = kept_now
                if going.wanted and sampling:
                    going.estimates = new_estimates
                if not sampling:
                    new_estimates = []
        if k == lo and below_end is not None:
            below_end.done(t, [gradient_of(leaf) for leaf in inputs] if wanted else None)
        elif wanted and (below := run.stages[k - 1].interface) is not None:
            received = [gradient_of(leaf) for leaf in inputs]
            run.learn(k - 1, below, Pending(t, leaves, context, received, scale, kept), estimates, asked)
        kept, estimates, leaves = new_kept, new_estimates, new_leaves
    return loss.detach() if loss is not None else None


def fingerprint(batch: Batch) -> Tensor:
    """A few numbers of every tensor of a minibatch: two processes that see the same data have the same."""
    parts = []
    for tensor in tensors((batch.args, batch.kwargs, batch.target)):
        flat = tensor.detach().reshape(-1)
        step = max(flat.numel() // SAMPLE, 1)
        parts.append(flat[::step][:SAMPLE].double().cpu())
    return torch.cat(parts).nan_to_num() if parts else torch.zeros(0)
