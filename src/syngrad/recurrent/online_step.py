"""One step of online BP(λ): forward, one backward pass, the estimator's error along its traces, the update."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from syngrad.core.batch import Batch, finite
from syngrad.estimators.base import add_grad
from syngrad.recurrent.jacobian import unfused
from syngrad.recurrent.traceable import Traceable
from syngrad.recurrent.unfit import since, unfit
from syngrad.recurrent.window import Window, begin, either, restarted
from syngrad.runtime.applying import apply

if TYPE_CHECKING:
    from syngrad.recurrent.online import OnlineBPLambda


def train(run: OnlineBPLambda, window: Window) -> tuple[Tensor, float]:
    """Learn from one step of time, gathering gradients or updating at once; (the loss, what it averages over)."""
    core, layout, traces = run.core, run.parts.layout, run.traces
    n = core.size(window.inputs)
    count = run.count_losses(window.targets, n)
    if run.state is None and traces is not None:
        traces.prepare(n)
    state, came = begin(run, n, traces is not None)
    with run.parts.stage.randomness.swapped():
        if window.reset is not None and bool(window.reset.any()):
            state = restarted(run, state, window.reset)
        with unfused() if traces is not None and traces.decay > 0 else nullcontext():
            outputs, state = core.run(window.inputs, state)
        loss = layout.leaves(state, n)[0].new_zeros(())
        if count > 0:
            made = run.price(run.scores(outputs), window.targets)
            batch = Batch((window.inputs,), {}, window.targets, 1.0 / n, n)
            loss = finite(made, batch, f"at step {run.count}", otherwise=lambda: run.spoilt("step", window.reset))

    leaves = layout.leaves(state, n)
    vector = layout.vector([leaf.detach() for leaf in leaves])
    gone, bad = either(window.ends, window.dead), unfit(layout, leaves)
    spoilt = since(run.unfit, bad, gone, run.count)
    if bad is not None:
        gone, vector = either(gone, bad), vector.masked_fill(bad.unsqueeze(1), 0.0)
    estimator = run.estimator
    features, estimate = None, torch.zeros_like(vector)
    if isinstance(estimator, Traceable):
        features = estimator.features(vector, window.contexts[-1])
        with torch.no_grad():
            estimate = estimator.predict(features).to(vector.dtype)
        if gone is not None:
            estimate = estimate.masked_fill(gone.unsqueeze(1), 0.0)
    received, jacobian = back(run, loss, count / n, leaves, estimate, came, n)
    if bad is not None:
        received = None if received is None else received.masked_fill(bad.unsqueeze(1), 0.0)
        jacobian = None if jacobian is None else jacobian.masked_fill(bad.view(-1, 1, 1), 0.0)

    if traces is not None and isinstance(estimator, Traceable) and traces.features is not None:
        assert received is not None
        with torch.no_grad():
            before = estimator.predict(traces.features)
        delta = received.to(before.dtype) - before
        add_grad(estimator.weight, traces.gradient(delta).mul_(-2.0 / n))
        if run.quality_every and run.count % run.quality_every == run.quality_every - 1:
            run.quality.add(run.count, before / n, received / n, 1.0 / n)
    if run.update == "step":
        update(run)
    if traces is not None and features is not None:
        traces.advance(jacobian, features, gone)
    run.state = layout.cut(state, False)[0]
    run.reset, run.unfit = window.ends, spoilt
    run.count += 1
    return loss.detach(), count


def back(
    run: OnlineBPLambda,
    loss: Tensor,
    weight: float,
    leaves: list[Tensor],
    estimate: Tensor,
    came: list[Tensor],
    n: int,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of core and readout; what a sample hears at the state before, (n, F); and J where traces want it.

        core       weight·∂L_t/∂θ + (1/n)·c·γ·ĝ(s_t)·∂s_t/∂θ
        received   ∂(sum of the losses of step t)/∂s_{t−1} + γ·ĝ(s_t)·J_t

    One backward pass gives the core's part and, where c = 1, what was received; the rest goes back once more.
    """
    layout, traces = run.parts.layout, run.traces
    reached = [k for k, leaf in enumerate(leaves) if leaf.requires_grad]
    ends = [leaves[k] for k in reached]
    jacobian = run.jacobian(leaves, came) if traces is not None and traces.decay > 0 and came else None
    rest = run.gamma * (1.0 - run.inject)
    more = None
    if came and rest != 0.0:
        if jacobian is not None:
            more = torch.bmm(estimate.unsqueeze(1), jacobian).squeeze(1) * rest
        elif ends:
            wanted = layout.apart(estimate * rest, leaves)
            found = torch.autograd.grad(ends, came, [wanted[k] for k in reached], retain_graph=True, allow_unused=True)
            more = layout.vector([torch.zeros_like(c) if g is None else g for c, g in zip(came, found, strict=True)])
    injected = layout.apart(estimate * (run.inject * run.gamma / n), leaves)
    roots, gradients = list(ends), [injected[k] for k in reached]
    if loss.requires_grad:
        roots.append(loss)
        gradients.append(torch.full_like(loss, weight))
    if roots:
        torch.autograd.backward(roots, gradients)
    if not came:
        return None, None
    received = layout.vector([torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in came]) * n
    return received if more is None else received + more, jacobian


def update(run: OnlineBPLambda, steps: int = 1) -> None:
    """Let the optimiser take what has gathered over some steps, their mean."""
    updates = run.parts.updates
    # a step whose loss is not asked for has a gradient of 0 all the same: an optimiser with a memory moves on
    for p in run.readout.parameters() if run.readout is not None else ():
        if p.grad is None and p.requires_grad:
            p.grad = torch.zeros_like(p)
    gathered = updates.gathered()
    if steps > 1 and gathered:
        torch._foreach_mul_(gathered, 1.0 / steps)
    apply(updates, run.precision)
    for scheduler in updates.schedulers:
        scheduler.step()
