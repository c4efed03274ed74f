"""One minibatch forward through all stages first, and down after: back-propagation, `mixed`, true feedback, warm-up.

At every interface λ·received + (1−λ)·estimate goes further down. A process whose last stage has others above it waits
in the middle of the minibatch until its gradient has come back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from syngrad.core.batch import Batch
from syngrad.core.pending import Pending, gradient_of
from syngrad.errors import TrainingError
from syngrad.pipeline.neighbours import Sent
from syngrad.targets import mixed
from syngrad.tree import backward, detach, leaves_at

if TYPE_CHECKING:
    from syngrad.runtime.runner import Sequential


def locked(run: Sequential, batch: Batch, t: int, sampling: bool, active: list[bool] | None) -> Tensor | None:
    """Forward through all, then down; the loss, detached, where the last stage is among them."""
    estimating = run.policy.method.estimates
    lo, hi = run.ends.lo, run.ends.hi
    inputs: dict[int, list[Tensor]] = {}
    outputs: dict[int, list[Tensor]] = {}
    out: Any = batch.args[0] if lo else None
    for k in range(lo, hi):
        stage = run.stages[k]
        if k and (estimating or k == lo):
            below = run.stages[k - 1].interface
            out, inputs[k] = detach(out, below.positions if below is not None else [], feedback=True)
        out = stage.run(out) if k else stage.run(*batch.args, **batch.kwargs)
        if stage.interface is not None and (estimating or k == hi - 1):
            outputs[k] = leaves_at(out, stage.interface.positions)
    loss = None
    interface = run.stages[hi - 1].interface
    if run.ends.above is None or interface is None:
        loss = run.top(out, batch)
        if not loss.requires_grad:
            raise TrainingError("the loss has no gradient: the model's output is cut from its graph; do not detach it")
        run.back(loss)
        received = [gradient_of(leaf) for leaf in inputs.get(hi - 1, [])]
    else:
        leaves = [h.detach() for h in outputs[hi - 1]]
        sent = Sent(t, True, leaves, batch.target, batch.scale)
        run.ends.above.send(sent, out, batch.target, interface.positions)
        run.ends.above.until(t)
        run.ends.above.arrived.pop()
        received = sent.gradients or []
    if estimating:
        received = _down(run, batch, t, sampling, inputs, outputs, received, active)
    else:
        if loss is None:
            backward(outputs[hi - 1], received)
        received = [gradient_of(leaf) for leaf in inputs.get(lo, [])]
    if run.ends.below is not None:
        run.ends.below.done(t, received)
    for k in range(lo, hi):
        if active is not None and not active[k]:
            for parameter in [*run.stages[k].parameters, *run.stages[k].estimator_parameters]:
                parameter.grad = None
    return loss.detach() if loss is not None else None


def _down(
    run: Sequential,
    batch: Batch,
    t: int,
    sampling: bool,
    inputs: dict[int, list[Tensor]],
    outputs: dict[int, list[Tensor]],
    received: list[Tensor],
    active: list[bool] | None,
) -> list[Tensor]:
    """Down through the stages that end at an interface; what is received at the lowest one's input."""
    asked, lam = run.policy.wants_feedback(t), run.policy.lam(t)
    true_feedback = run.policy.feedback == "true"
    keep = asked and run.policy.feedback_delay == 0
    for k in range(max(outputs, default=-1), run.ends.lo - 1, -1):
        interface, sent = run.stages[k].interface, outputs[k]
        below = inputs.get(k, [])
        if interface is None or not sent:
            received = [gradient_of(leaf) for leaf in below]
            continue
        leaves = [h.detach() for h in sent]
        with run.stages[k].randomness.swapped():
            estimates, kept = interface.estimate(leaves, batch.target, batch.scale, keep)
        pending = Pending(t, leaves, batch.target, received, batch.scale, kept)
        takes_part = active is None or (active[k] and active[k + 1])
        run.learn(k, interface, pending, estimates if sampling else [], asked and takes_part)
        down = [mixed(g, e, lam) for g, e in zip(received, estimates, strict=True)]
        if true_feedback and lam < 1.0:
            # the real gradient passes through the stage for the estimators below; its weights get the mixture
            parts = [h for h in sent if h.requires_grad]
            passed: tuple[Tensor, ...] = ()
            if below:
                true = [g for g, h in zip(received, sent, strict=True) if h.requires_grad]
                passed = torch.autograd.grad(parts, below, true, retain_graph=True, allow_unused=True)
            trained = [p for p in run.stages[k].parameters if p.requires_grad]
            if trained and parts:
                mixture = [d for d, h in zip(down, sent, strict=True) if h.requires_grad]
                torch.autograd.backward(parts, mixture, inputs=trained)
            received = [torch.zeros_like(h) if g is None else g for g, h in zip(passed, below, strict=True)]
        else:
            backward(sent, down)
            received = [gradient_of(leaf) for leaf in below]
    return received
