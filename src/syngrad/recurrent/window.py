"""One window, or a span of them: forward, loss, one backward pass, the estimator's fit, and the update."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from syngrad.core.batch import Batch, finite
from syngrad.core.memory import hold
from syngrad.errors import MessageError, TrainingError
from syngrad.recurrent.boundary import Inner, Pending
from syngrad.recurrent.unfit import since, unfit
from syngrad.runtime.applying import apply

if TYPE_CHECKING:
    from syngrad.recurrent.bptt import TruncatedBPTT
    from syngrad.recurrent.online import OnlineBPLambda


@dataclass
class Window:
    """What one call trains on. contexts: one a window of the span. reset: (n,) or (n, t), samples that start anew
    before this step (the first). ends: (n,), whose sequence ends with the last step; dead: whose has ended earlier.
    left: (n,), the steps that each sequence still has from the first on, where some end in the span.
    """

    inputs: Any
    targets: Any
    contexts: list[Any]
    reset: Tensor | None = None
    ends: Tensor | None = None
    dead: Tensor | None = None
    left: Tensor | None = None


def train(run: TruncatedBPTT, window: Window) -> Tensor:
    """Forward, backward, fit, update; the loss, detached."""
    core, layout, interface = run.core, run.parts.layout, run.interface
    steps, n = core.steps(window.inputs), core.size(window.inputs)
    # without labels a window's estimate weighs what it does elsewhere
    count = float(run.count_losses(window.targets, n * steps))
    scale = run.precision.factor / (count or float(n * steps))
    wanted = run.pending is not None and interface.wants_feedback and run.count % run.parts.feedback_every == 0
    state, came = begin(run, n, wanted)
    with run.parts.stage.randomness.swapped(), run.precision.autocast(run.device):
        outputs, state = forward(run, window, state, scale)
        known = (count,) if run.labels_counted else ()
        loss = run.price(run.scores(outputs), window.targets, *known)
    batch = Batch((window.inputs,), {}, window.targets, scale, n)
    checked = finite(loss, batch, f"at window {run.count}", otherwise=lambda: run.spoilt("window", window.reset))

    leaves, context = layout.leaves(state, n), window.contexts[-1]
    after, cut = layout.cut(state, False)
    gone, bad = either(window.ends, window.dead), unfit(layout, cut)
    spoilt = since(run.unfit, bad, gone, run.count)
    vector, estimate, kept = None, None, None
    if not run.silent:
        vector = layout.vector(cut)
        if bad is not None:
            gone, vector = either(gone, bad), vector.masked_fill(bad.unsqueeze(1), 0.0)
        estimate, kept = estimated(run, vector, context, scale, wanted)
        if gone is not None:
            estimate = estimate.masked_fill(gone.unsqueeze(1), 0.0)
    roots, gradients = [checked], [torch.full_like(checked, run.precision.factor)]
    if not checked.requires_grad:
        if count:
            raise TrainingError(
                "the loss depends on nothing that is trained; it is a function of the outputs that are given to it, "
                "without detach() or item()"
            )
        roots, gradients = [], []  # that of a window without labels may be a constant
    if run.auxiliary.head is not None and estimate is not None:
        root, gradient = run.auxiliary.fit(
            run.auxiliary.first(outputs, core.time), estimate / scale, run.precision.factor
        )
        if root.requires_grad:
            roots.append(root)
            gradients.append(gradient)
    received = back(run, roots, gradients, leaves, estimate, came)

    if wanted and run.pending is not None:
        assert received is not None
        if run.pending.estimate is not None:
            run.quality.add(run.count, run.pending.estimate * scale, received, scale)
        run.pending.fit(interface, received, scale, kept)
    if window.ends is not None and interface.wants_feedback and vector is not None:
        Pending(vector, context, window.ends).fit(interface, torch.zeros_like(vector), scale)
    apply(run.parts.updates, run.precision)
    for scheduler in run.parts.updates.schedulers:
        scheduler.step()
    sampled = run.quality_every and run.count % run.quality_every == run.quality_every - 1
    run.pending = None
    if vector is not None and estimate is not None:
        rows = None if gone is None else ~gone
        run.pending = Pending(vector, context, rows, estimate / scale if sampled else None)
        hold((vector, run.pending.estimate), run.pending)
    run.state, run.unfit = after, spoilt
    run.count += 1
    return checked.detach()


def begin(run: TruncatedBPTT | OnlineBPLambda, n: int, wanted: bool) -> tuple[Any, list[Tensor]]:
    """The state to go on from, cut from its graph, and its leaves where what comes back at them is wanted."""
    if run.state is None:
        return None, []
    held = run.parts.layout.samples(run.state)
    if held != n:
        raise MessageError(
            f"a window of {n} samples cannot go on from a state of {held}; call restart() where new sequences begin"
        )
    return run.parts.layout.cut(run.state, True) if wanted else (run.state, [])


def forward(run: TruncatedBPTT, window: Window, state: Any, scale: float) -> tuple[Any, Any]:
    """(outputs, state) over the whole span, with a boundary between every two windows."""
    core, steps = run.core, run.core.steps(window.inputs)
    outputs = []
    for k, start in enumerate(range(0, steps, run.window)):
        stop = min(start + run.window, steps)
        if start and run.lam < 1.0:
            leaves = run.parts.layout.leaves(state)
            vector = run.parts.layout.vector(leaves)
            left = window.left
            gone, rows = (None, None) if left is None else (left <= start, left >= start)
            pending = Pending(vector.detach(), window.contexts[k - 1], rows)
            given = (run.lam, run.inject, scale)
            made: Any = Inner.apply(vector, pending, run.interface, given, gone)  # type: ignore[no-untyped-call]
            state = run.parts.layout.put(state, run.parts.layout.apart(made, leaves))
        reset = window.reset
        if reset is not None and reset.dim() == 2:
            reset = reset[:, start:stop]
        elif start:
            reset = None
        piece = core.part(window.inputs, start, stop) if stop - start < steps else window.inputs
        output, state = run_piece(run, piece, state, reset)
        outputs.append(output)
    return core.joined(outputs), state


def run_piece(run: TruncatedBPTT, inputs: Any, state: Any, reset: Tensor | None) -> tuple[Any, Any]:
    """One window; the core runs over all of its steps at once, but for places at which samples start anew."""
    core = run.core
    if reset is None or not bool(reset.any()):
        return core.run(inputs, state)
    if reset.dim() == 1:
        return core.run(inputs, restarted(run, state, reset))
    steps = core.steps(inputs)
    starts = [0, *(t for t in range(1, steps) if bool(reset[:, t].any()))]
    outputs = []
    for start, stop in zip(starts, [*starts[1:], steps], strict=True):
        state = restarted(run, state, reset[:, start])
        output, state = core.run(core.part(inputs, start, stop), state)
        outputs.append(output)
    return core.joined(outputs), state


def restarted(run: TruncatedBPTT | OnlineBPLambda, state: Any, which: Tensor) -> Any:
    """The state with some samples at their beginning again."""
    return None if state is None else run.parts.layout.where(which, run.core.initial(state, len(which)), state)


def estimated(
    run: TruncatedBPTT, vector: Tensor, context: Any, scale: float, wanted: bool
) -> tuple[Tensor, list[Tensor] | None]:
    """scale·Ĝ at this window's end; and what is to be fitted at the boundary before, as the estimator has it now.

    Both with one pass over the estimator's weights where that gives the same: those of a wide state are larger than a
    processor's cache.
    """
    interface, before = run.interface, run.pending
    if not (wanted and before is not None and before.rows is None and interface.heads[0].rowwise):
        return interface.estimate([vector], context, scale, keep=False)[0][0], None
    if isinstance(context, Tensor) and isinstance(before.context, Tensor) and context.shape == before.context.shape:
        context = torch.cat([before.context, context])
    elif context is not None or before.context is not None:
        return interface.estimate([vector], context, scale, keep=False)[0][0], None
    estimates, kept = interface.estimate([torch.cat([before.vector, vector])], context, scale, keep=True)
    n = len(vector)
    return estimates[0][n:], [kept[0][:n]]


def back(
    run: TruncatedBPTT,
    roots: list[Tensor],
    gradients: list[Tensor],
    leaves: list[Tensor],
    estimate: Tensor | None,
    came: list[Tensor],
) -> Tensor | None:
    """The backward pass, from losses and boundary at once; what came back at the state before, where that is wanted.

    estimate: scale·Ĝ, None where nothing is injected. Where the target discounts it otherwise than it is injected, the
    difference goes back once more.
    """
    if estimate is None:
        if roots:
            torch.autograd.backward(roots, gradients)
        return None
    inject = run.inject
    discount = inject if run.discount is None else run.discount
    more = bool(came) and discount != inject
    reached = [k for k, leaf in enumerate(leaves) if leaf.requires_grad]
    ends = [leaves[k] for k in reached]
    injected = run.parts.layout.apart(estimate * inject if inject != 1.0 else estimate, leaves)
    if roots or ends:
        torch.autograd.backward([*roots, *ends], [*gradients, *(injected[k] for k in reached)], retain_graph=more)
    if not came:
        return None
    found = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in came]
    if more and ends:
        rest = run.parts.layout.apart(estimate * (discount - inject), leaves)
        extra = torch.autograd.grad(ends, came, [rest[k] for k in reached], allow_unused=True)
        found = [a if b is None else a + b for a, b in zip(found, extra, strict=True)]
    return run.parts.layout.vector(found)


def either(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """Samples that are in one of the two."""
    return a | b if a is not None and b is not None else (b if a is None else a)
