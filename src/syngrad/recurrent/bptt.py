"""Truncated back-propagation through time with an estimate of what the truncation cuts off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from syngrad.core.batch import Batch, finite
from syngrad.core.interface import Interface, check_spec
from syngrad.core.memory import hold
from syngrad.errors import MessageError, TrainingError
from syngrad.estimators.registry import EstimatorSpec
from syngrad.estimators.regressors import Zero
from syngrad.grad_mode import training
from syngrad.optim.factory import default_optimizer
from syngrad.optim.groups import GroupOptions, OptimizerFactory
from syngrad.recurrent.boundary import InnerBoundary, Pending
from syngrad.recurrent.learner import Learner
from syngrad.recurrent.options import Schedule, WindowOptions
from syngrad.recurrent.window import Window, check_flags, either, nonfinite, nonfinite_since, windows
from syngrad.runtime.precision import ForwardOverflowError
from syngrad.tree import to_device


class TruncatedBPTT(Learner):
    """Trains a recurrent core window by window; the gradient from behind a window's end is predicted.

        bptt = syngrad.TruncatedBPTT(core, "linear", window=8)
        loss = bptt.step(inputs, targets)          # one window; the state is carried on from the last one
        loss = bptt.run(inputs, targets, lengths)  # whole sequences, from their first step to their last

    A window that fails leaves weights, state and estimator as they were. What is not named here (optimizer,
    estimator_lr, groups, guard, seed, autocast) is as for `syngrad.Trainer`.

    Args:
        core: `nn.LSTM`, `nn.GRU`, `nn.RNN`, a cell, or a module (inputs, state) → (outputs, state) of the user's own,
            whose state is any nested structure of tensors.
        estimator: of ∂(all losses behind the window)/∂(state), for the state as one vector a sample; a name, a module
            or a function. "zero" is plain truncated back-propagation, and a window as long as the sequence the full
            one.
        window: steps.
        readout: outputs → what the loss is given.
        batch_first: whether inputs are (n, t, …) or (t, n, …); the core's own unless given.
        loss: (outputs, targets) → scalar; mean cross-entropy over the last dimension unless given.
        loss_count: targets → the number of losses that it averages over: all that are not −100 for the default loss,
            and n·t otherwise.
        horizon: windows that are trained together, in one step of the optimiser, with λ-targets between them.
        lam: their λ. Where it is 1, gradients go through all of them as if they were one window.
        inject: factor of the estimate where it enters the core, a number or a function of the windows trained so far.
        discount: its factor in the estimator's own target; `inject` where None, which costs nothing, see boundary.py.
        auxiliary: weight of predicting the next boundary's estimate from the window's first output, see auxiliary.py.
        classes: number of labels, where the context is labels.
        scheduler: optimiser → scheduler, which steps with every update.
        clip_norm: the largest norm of the gradient of core and readout together.
        device: where to train; where the core is unless given.
        quality_every: windows from one sample of the estimates' quality to the next; 0 for none.

    Raises:
        ConfigError: at construction, for what cannot be used.
        MessageError: while training, in one line, for inputs that do not fit.
        TrainingError: while training, in one line, for a loss that is not finite and what the user's own parts raise.
    """

    def __init__(
        self,
        core: nn.Module,
        estimator: EstimatorSpec = "linear",
        window: int = 8,
        *,
        readout: nn.Module | None = None,
        batch_first: bool | None = None,
        loss: Callable[[Any, Any], Tensor] | None = None,
        loss_count: Callable[[Any], float] | None = None,
        horizon: int = 1,
        lam: float = 0.0,
        inject: Schedule = 1.0,
        discount: float | None = None,
        auxiliary: float = 0.0,
        classes: int | None = None,
        optimizer: OptimizerFactory = default_optimizer,
        estimator_lr: float = 1.0,
        groups: GroupOptions | None = None,
        scheduler: Callable[[Any], Any] | None = None,
        clip_norm: float | None = None,
        guard: float | None = 100.0,
        seed: int = 0,
        device: str | torch.device | None = None,
        autocast: str | torch.dtype | None = None,
        quality_every: int = 50,
    ) -> None:
        options = WindowOptions.of(locals())
        check_spec(estimator)
        super().__init__(core, Interface(estimator, classes=classes, name="boundary"), options)
        self.window, self.horizon, self.discount = options.window, options.horizon, options.discount
        self.pending: Pending | None = None

    @property
    def silent(self) -> bool:
        """Whether nothing is ever injected nor learnt at a boundary: its work is then left out."""
        return isinstance(self.estimator, Zero) and not self.auxiliary.weight

    def step(
        self,
        inputs: Any,
        targets: Any,
        *,
        context: Any = None,
        reset: Tensor | None = None,
        ends: Tensor | None = None,
    ) -> Tensor:
        """Train on one window, or with a horizon on a span of them, going on from where the last one stopped.

        Args:
            inputs: with time, as many steps as the window (or the span) has, or fewer.
            targets: of the same steps.
            context: what the estimator may look at beside the state at the window's end, (n, …): the time to go, the
                target; with a horizon a list of these, one a window.
            reset: (n,) or (n, t) of bool, samples that start anew with the window, or with a step of it.
            ends: (n,) of bool, samples whose sequence ends with this window: nothing is injected there, the estimator
                is fitted to 0, and the next window starts them anew.

        Returns:
            The loss, detached.
        """
        inputs, targets, context = (to_device(each, self.device) for each in (inputs, targets, context))
        n, steps = self.core.size(inputs), self.core.steps(inputs)
        if steps > self.window * self.horizon:
            raise MessageError(
                f"{steps} steps do not fit a window of {self.window}"
                + (f" times {self.horizon}" if self.horizon > 1 else "")
                + "; give fewer at a time, or whole sequences to run()"
            )
        contexts = self._contexts(context, steps)
        reset = check_flags("reset", reset, n, self.device, steps)
        ends = check_flags("ends", ends, n, self.device)
        if self.reset is not None and len(self.reset) == n:  # those that ended with the window before
            if reset is None or reset.dim() == 1:
                reset = either(self.reset, reset)
            else:
                reset = reset.clone()
                reset[:, 0] |= self.reset
        loss = self._train(Window(inputs, targets, contexts, reset, ends))
        self.reset = ends
        return loss

    def run(self, inputs: Any, targets: Any, lengths: Any = None, *, context: Any = None) -> Tensor:
        """Train on whole sequences, window by window, from their first step to their last.

        Args:
            inputs: with time, of any number of steps.
            targets: of the same steps; those behind a sequence's end are the loss's affair (−100 for the default one).
            lengths: (n,), the steps of each sequence where they are unequal.
            context: as for `step`, with time where the inputs have it, (n, t, …): the estimator sees that of
                each window's last step.

        Returns:
            The mean of the windows' losses, weighted by what they average over, detached.
        """
        core = self.core
        inputs, targets, context = (to_device(each, self.device) for each in (inputs, targets, context))
        steps = core.steps(inputs)
        core.check_time("targets", targets, steps)
        core.check_time("context", context, steps)
        self.restart()
        total, weight = torch.zeros((), device=self.device), 0.0
        spans = windows(
            core, inputs, targets, lengths, context, window=self.window, horizon=self.horizon, device=self.device
        )
        for span in spans:
            loss = self._train(span)
            count = self.count_losses(span.targets, core.size(span.inputs) * core.steps(span.inputs))
            total, weight = total + loss * count, weight + count
        self.restart()
        return total / weight if weight else total

    def restart(self) -> None:
        """Begin new sequences with the next window: no state is carried on, and nothing is learnt across."""
        self.state = self.pending = self.reset = self.nonfinite_since = None

    def bind(self, inputs: Any, context: Any = None) -> None:
        """Make estimator and optimiser for inputs like these; the first window does so by itself."""
        if self._parts is None:
            with training():
                self._parts = self._make_parts(inputs, context)

    def _contexts(self, context: Any, steps: int) -> list[Any]:
        """One context a window of the span."""
        count = -(-steps // self.window)
        if self.horizon == 1:
            return [context]
        if context is None:
            return [None] * count
        if not isinstance(context, list | tuple) or len(context) != count:
            got = len(context) if isinstance(context, list | tuple) else type(context).__name__
            raise MessageError(f"a span of {count} windows needs a list of so many contexts, got {got}")
        return list(context)

    def _own_state(self) -> dict[str, Any]:
        return {"pending": self.pending.state_dict() if self.pending is not None else None}

    def _load_own_state(self, state: dict[str, Any]) -> None:
        if state["traces"] is not None:
            raise ValueError("one of the two has an estimator that learns, the other has none")
        self.pending = None if state["pending"] is None else Pending(**state["pending"])

    def _train(self, window: Window) -> Tensor:
        self.bind(window.inputs, window.contexts[-1])
        self._check_context(window.contexts[-1])
        try:
            with self._whole("window"):
                return self._learn(window)
        except ForwardOverflowError as overflow:  # what it would have carried on is no number: sequences begin anew
            self.restart()
            self.count += 1
            self.precision.lose(overflow.loss, self.parts.updates)
            return overflow.loss

    def _learn(self, window: Window) -> Tensor:
        """Forward, one backward pass from loss and boundary at once, the estimator's fit, the update."""
        core, layout, interface, pending = self.core, self.parts.layout, self.interface, self.pending
        steps, n = core.steps(window.inputs), core.size(window.inputs)
        # without labels a window's estimate weighs what it does elsewhere
        count = float(self.count_losses(window.targets, n * steps))
        scale = self.precision.factor / (count or float(n * steps))
        due = self.count % interface.heads[0].feedback_every == 0
        wanted = pending is not None and interface.wants_feedback and due
        # forward: where feedback is wanted, `came` are the leaves at which it will have come back
        state, came = self._begin(n, wanted)
        with self.parts.stage.randomness.swapped(), self.precision.autocast(self.device):
            outputs, state = self._forward(window, state, scale)
            known = (count,) if self.labels_counted else ()
            loss = self.price(self.scores(outputs), window.targets, *known)
        batch = Batch((window.inputs,), {}, window.targets, scale, n)
        self.precision.check_forward(loss, batch)
        loss = finite(loss, batch, f"at window {self.count}", otherwise=lambda: self._blame("window", window.reset))

        # the boundary: the state is cut here, and from here on Ĝ stands for all that comes later. Nothing does for a
        # sequence that has ended, nor for a sample whose state is no number any more
        leaves, context = layout.leaves(state, n), window.contexts[-1]
        after, cut = layout.cut(state, False)
        gone, bad = either(window.ends, window.dead), nonfinite(layout, cut)
        since = nonfinite_since(self.nonfinite_since, bad, gone, self.count)
        vector, estimate, kept = None, None, None
        if not self.silent:
            vector = layout.vector(cut)
            if bad is not None:
                gone, vector = either(gone, bad), vector.masked_fill(bad.unsqueeze(1), 0.0)
            estimate, kept = self._estimate(vector, context, scale, wanted)
            if gone is not None:
                estimate = estimate.masked_fill(gone.unsqueeze(1), 0.0)
        roots, gradients = [loss], [torch.full_like(loss, self.precision.factor)]
        if not loss.requires_grad:
            if count:
                raise TrainingError(
                    "the loss depends on nothing that is trained; it is a function of the outputs that are given to "
                    "it, without detach() or item()"
                )
            roots, gradients = [], []  # that of a window without labels may be a constant
        # the auxiliary task: its gradient joins at the window's first output, in the same backward pass
        if self.auxiliary.head is not None and estimate is not None:
            first = self.auxiliary.first(outputs, core.time)
            root, gradient = self.auxiliary.fit(first, estimate / scale, self.precision.factor)
            if root.requires_grad:
                roots.append(root)
                gradients.append(gradient)
        received = self._backward(roots, gradients, leaves, estimate, came)

        # what came back at the state before is what the estimator should have said there
        if wanted and pending is not None:
            assert received is not None
            if pending.estimate is not None:
                self.quality.add(self.count, pending.estimate * scale, received, scale)
            pending.fit(interface, received, scale, kept)
        if window.ends is not None and interface.wants_feedback and vector is not None:
            Pending(vector, context, window.ends).fit(interface, torch.zeros_like(vector), scale)
        self.precision.apply(self.parts.updates)
        for scheduler in self.parts.updates.schedulers:
            scheduler.step()
        sampled = self.quality_every and self.count % self.quality_every == self.quality_every - 1
        self.pending = None
        if vector is not None and estimate is not None:
            rows = None if gone is None else ~gone
            self.pending = Pending(vector, context, rows, estimate / scale if sampled else None)
            hold((vector, self.pending.estimate), self.pending)
        self.state, self.nonfinite_since = after, since
        self.count += 1
        return loss.detach()

    def _forward(self, window: Window, state: Any, scale: float) -> tuple[Any, Any]:
        """(outputs, state) over the whole span, with a boundary between every two windows."""
        core, layout, steps = self.core, self.parts.layout, self.core.steps(window.inputs)
        outputs = []
        for k, start in enumerate(range(0, steps, self.window)):
            stop = min(start + self.window, steps)
            if start and self.lam < 1.0:
                leaves = layout.leaves(state)
                vector = layout.vector(leaves)
                left = window.left
                gone, rows = (None, None) if left is None else (left <= start, left >= start)
                pending = Pending(vector.detach(), window.contexts[k - 1], rows)
                given = (self.lam, self.inject, scale)
                made: Any = InnerBoundary.apply(vector, pending, self.interface, given, gone)  # type: ignore[no-untyped-call]
                state = layout.put(state, layout.apart(made, leaves))
            reset = window.reset
            if reset is not None and reset.dim() == 2:
                reset = reset[:, start:stop]
            elif start:
                reset = None
            part = core.part(window.inputs, start, stop) if stop - start < steps else window.inputs
            output, state = self._run_window(part, state, reset)
            outputs.append(output)
        return core.joined(outputs), state

    def _run_window(self, inputs: Any, state: Any, reset: Tensor | None) -> tuple[Any, Any]:
        """One window; the core runs over all of its steps at once, but for places at which samples start anew."""
        core = self.core
        if reset is None or not bool(reset.any()):
            return core.run(inputs, state)
        if reset.dim() == 1:
            return core.run(inputs, self._restarted(state, reset))
        steps = core.steps(inputs)
        starts = [0, *(t for t in range(1, steps) if bool(reset[:, t].any()))]
        outputs = []
        for start, stop in zip(starts, [*starts[1:], steps], strict=True):
            state = self._restarted(state, reset[:, start])
            output, state = core.run(core.part(inputs, start, stop), state)
            outputs.append(output)
        return core.joined(outputs), state

    def _estimate(self, vector: Tensor, context: Any, scale: float, wanted: bool) -> tuple[Tensor, list[Tensor] | None]:
        """scale·Ĝ at this window's end; and what is to be fitted at the boundary before, as the estimator has it now.

        Both with one pass over the estimator's weights where that gives the same: those of a wide state are larger than
        a processor's cache.
        """
        interface, before = self.interface, self.pending
        if not (wanted and before is not None and before.rows is None and interface.heads[0].rowwise):
            return interface.estimate([vector], context, scale, keep=False)[0][0], None
        if isinstance(context, Tensor) and isinstance(before.context, Tensor) and context.shape == before.context.shape:
            context = torch.cat([before.context, context])
        elif context is not None or before.context is not None:
            return interface.estimate([vector], context, scale, keep=False)[0][0], None
        estimates, kept = interface.estimate([torch.cat([before.vector, vector])], context, scale, keep=True)
        n = len(vector)
        return estimates[0][n:], [kept[0][:n]]

    def _backward(
        self,
        roots: list[Tensor],
        gradients: list[Tensor],
        leaves: list[Tensor],
        estimate: Tensor | None,
        came: list[Tensor],
    ) -> Tensor | None:
        """The backward pass; what came back at the state before, (n, features), where that is wanted.

        Args:
            roots: losses, and what else a gradient enters at beside the boundary.
            gradients: what enters there.
            leaves: of the state at the window's end, in their graph.
            estimate: scale·Ĝ there; None where nothing is injected.
            came: leaves of the state before; none where what comes back at them is not wanted.
        """
        if estimate is None:
            if roots:
                torch.autograd.backward(roots, gradients)
            return None
        layout, inject = self.parts.layout, self.inject
        discount = inject if self.discount is None else self.discount
        more = bool(came) and discount != inject
        reached = [k for k, leaf in enumerate(leaves) if leaf.requires_grad]
        ends = [leaves[k] for k in reached]
        injected = layout.apart(estimate * inject if inject != 1.0 else estimate, leaves)
        if roots or ends:
            torch.autograd.backward([*roots, *ends], [*gradients, *(injected[k] for k in reached)], retain_graph=more)
        if not came:
            return None
        found = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in came]
        if more and ends:  # the target discounts the estimate otherwise than it is injected: the difference, once more
            rest = layout.apart(estimate * (discount - inject), leaves)
            extra = torch.autograd.grad(ends, came, [rest[k] for k in reached], allow_unused=True)
            found = [a if b is None else a + b for a, b in zip(found, extra, strict=True)]
        return layout.vector(found)
