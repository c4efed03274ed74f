"""Online BP(λ): a recurrent core that learns at every step of time, without going back through any but the last.

Let s_t be the core's whole state after step t as a vector of F numbers, L_t the loss of step t (of one sample),
J_t = ∂s_t/∂s_{t−1}, and ĝ(s) = W·φ(s) the estimate of all that is still to come. Discounted by γ a step, that is

    G_t = ∂/∂s_t Σ_{j>t} γ^{j−t−1}·L_j = (∂L_{t+1}/∂s_{t+1} + γ·G_{t+1})·J_{t+1}            (row vectors)

so γ enters once for every step further away than the next, and once more where the core uses it, below. The λ-target
puts the estimate in the place of a part of it,

    G^λ_t = [∂L_{t+1}/∂s_{t+1} + γ·((1−λ)·ĝ(s_{t+1}) + λ·G^λ_{t+1})]·J_{t+1}

and the error G^λ_t − ĝ(s_t) is a sum over the future that can be had as the future comes: with

    δ_{t+1} = ∂L_{t+1}/∂s_t + γ·ĝ(s_{t+1})·J_{t+1} − ĝ(s_t)         (the first term through the whole step)

it is G^λ_t − ĝ(s_t) = Σ_{u>t} (γλ)^{u−t−1}·δ_u·J_{u−1}·…·J_{t+1}. With the sums exchanged,

    Σ_t (G^λ_t − ĝ(s_t))·∂ĝ(s_t)/∂W = Σ_u δ_u·e_{u−1},      e_t = γλ·J_t·e_{t−1} + ∂ĝ(s_t)/∂W

and e is the trace. So, at step t, in this order:

    1. forward from s_{t−1}, cut from its graph, to s_t and L_t
    2. core       θ moves along  ∂L_t/∂θ + c·γ·ĝ(s_t)·∂s_t/∂θ              c: `inject`
    3. estimator  W moves along  δ_t·e_{t−1}                               both estimates by W as it is before the move
    4. trace      e_t = γλ·J_t·e_{t−1} + ∂ĝ(s_t)/∂W                        by the Jacobian of the step just made

Where a sequence ends, at s_T, ĝ(s_T) counts as 0 and the trace becomes 0; the state before the first step is a constant
and nothing is learnt for it. A stream whose samples start anew unannounced (`reset`) has no losses behind the state
before, so its target is 0 and its Jacobian too, by the same formulas.

λ = 0 is the bootstrap over one step, which needs no trace: a window of one step of `TruncatedBPTT`. With λ = 1 the
targets are those of full back-propagation. Equality with the offline targets is exact where the weights stand still
(`update="call"`); where they move at every step it holds up to that movement, as in TD(λ).

Units are those of one sample, and the estimator's step is that of a squared error averaged over samples, 2·δ·e/n, as
everywhere in this package. At each step the core follows (1/n)·Σ of the losses that count there, so that a step without
targets weighs no more than others.

Source: Pemberton & Costa 2024 (arXiv 2401.07044, TMLR), accumulate BP(λ). Deviations: ∂L_t is taken at s_{t−1} through
the whole step, which is the same where the loss looks at s_t alone, and right where the output does not lie in the
state; any optimiser, instead of W ← W + α·δ·e with its norm held below 1 (`guard` and `clip_norm` are here instead);
estimates that δ compares are made by the same W; estimators that shorten the trace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from syngrad.core.batch import Batch, finite
from syngrad.core.interface import Interface
from syngrad.estimators import GradientEstimator
from syngrad.estimators.base import add_grad
from syngrad.grad_mode import training
from syngrad.optim.factory import default_optimizer
from syngrad.optim.groups import GroupOptions, OptimizerFactory
from syngrad.recurrent.learner import Learner
from syngrad.recurrent.options import OnlineOptions, Schedule
from syngrad.recurrent.traceable import Traceable, template
from syngrad.recurrent.traces import Jacobian, Traces, unfused
from syngrad.recurrent.window import Window, check_flags, either, nonfinite, nonfinite_since, windows
from syngrad.tree import to_device


class OnlineBPLambda(Learner):
    """Trains a recurrent core step by step; what lies behind a step is predicted, and the predictor learns by traces.

        online = OnlineBPLambda(core, "linear", lam=0.9)
        loss = online.step(inputs, targets)          # one step of time, or several, one after the other
        loss = online.run(inputs, targets, lengths)  # whole sequences, from their first step to their last

    Memory does not depend on how long a sequence is. A step that fails leaves weights, state, traces and estimator as
    they were before it; with update="call" what the call has gathered is dropped. Options that are not named here mean
    what they do for `syngrad.TruncatedBPTT`.

    Args:
        core: as for `syngrad.TruncatedBPTT`.
        estimator: "linear", "low_rank(rank=16)", "low_rank(rank=16, outputs=16)", "features(width=64)", "zero", or a
            `Traceable` of your own. For a state of F numbers a sample `linear` keeps F·F·(F+1) of them a sample,
            F·F·17 are kept for rank 16, F·16·17 for 16 outputs too; a step multiplies F times as many.
        lam: λ in [0, 1]; 0 keeps no trace.
        gamma: γ in [0, 1], the discount of what is a step further away.
        loss_count: may be 0 at a step, whose loss is then not asked for.
        inject: factor of the estimate where it enters the core, a number or a function of the steps trained so far.
            Where the loss falls at first and then stays high, the core follows errors of the estimator: give a smaller
            factor (0.3), or a smaller estimator_lr (0.2).
        update: weights move at every "step", or at the end of every "call" of step() or run() by the mean over its
            steps.
        trace_limit: bytes that the traces may take.

    Raises:
        ConfigError: at construction, for what cannot be used; with the first step, for traces beyond the limit.
        MessageError: while training, in one line, for inputs that do not fit.
        TrainingError: while training, in one line, for a loss that is not finite and what the user's own parts raise.
    """

    # a step is a window of one, for what cuts sequences into windows
    window = horizon = 1

    def __init__(
        self,
        core: nn.Module,
        estimator: str | GradientEstimator | type[Traceable] = "linear",
        *,
        lam: float = 0.9,
        gamma: float = 1.0,
        readout: nn.Module | None = None,
        batch_first: bool | None = None,
        loss: Callable[[Any, Any], Tensor] | None = None,
        loss_count: Callable[[Any], float] | None = None,
        inject: Schedule = 1.0,
        update: str = "step",
        classes: int | None = None,
        optimizer: OptimizerFactory = default_optimizer,
        estimator_lr: float = 1.0,
        groups: GroupOptions | None = None,
        scheduler: Callable[[Any], Any] | None = None,
        clip_norm: float | None = None,
        guard: float | None = 100.0,
        seed: int = 0,
        device: str | torch.device | None = None,
        trace_limit: int = 2**30,
        quality_every: int = 50,
    ) -> None:
        options = OnlineOptions.of(locals())
        super().__init__(core, Interface(template(estimator), classes=classes, name="state"), options)
        self.gamma, self.update, self.trace_limit = options.gamma, options.update, options.trace_limit
        #: of the estimator; None before the first step, and where it does not learn
        self.traces: Traces | None = None
        self._jacobian: Jacobian | None = None

    def step(
        self,
        inputs: Any,
        targets: Any,
        *,
        context: Any = None,
        reset: Tensor | None = None,
        ends: Tensor | None = None,
    ) -> Tensor:
        """Learn from one step of time or several, one by one, going on from where the last call stopped.

        Args:
            inputs: with a dimension of time, of length 1 for one step: (n, 1, …) or (1, n, …).
            targets: of the same steps.
            context: what the estimator may look at beside the state after each step, with time too, numbers or labels.
            reset: of bool, (n,) for samples that start anew with the first step, or (n, t).
            ends: of bool, (n,) for samples whose sequence ends with the last step, or (n, t): nothing is injected
                there, and the next step starts them anew.

        Returns:
            The mean loss, detached.
        """
        inputs, targets, context = (to_device(each, self.device) for each in (inputs, targets, context))
        n, steps = self.core.size(inputs), self.core.steps(inputs)
        reset = check_flags("reset", reset, n, self.device, steps)
        ends = check_flags("ends", ends, n, self.device, steps)
        self.core.check_time("targets", targets, steps)
        self.core.check_time("context", context, steps)
        return self._learn(self._steps(inputs, targets, context, reset, ends))

    def run(self, inputs: Any, targets: Any, lengths: Any = None, *, context: Any = None) -> Tensor:
        """Learn from whole sequences, step by step, from their first to their last.

        What is given is as for `syngrad.TruncatedBPTT.run`, but `context`, which is as for `step`.

        Returns:
            The mean loss, detached.
        """
        core = self.core
        inputs, targets, context = (to_device(each, self.device) for each in (inputs, targets, context))
        core.check_time("targets", targets, core.steps(inputs))
        core.check_time("context", context, core.steps(inputs))
        self.restart()
        loss = self._learn(windows(core, inputs, targets, lengths, context, window=1, horizon=1, device=self.device))
        self.restart()
        return loss

    def restart(self) -> None:
        """Begin new sequences with the next step: neither state nor traces are carried on."""
        self.state = self.reset = self.nonfinite_since = None
        if self.traces is not None:
            self.traces.clear()

    def bind(self, inputs: Any, context: Any = None) -> None:
        """Make estimator, traces and optimiser for inputs like these; the first step does so by itself."""
        self._bind(inputs, self.core.at(context, 0))

    def _bind(self, inputs: Any, context: Any) -> None:
        if self._parts is None:
            with training():
                self._parts = self._make_parts(inputs, context)
            self._jacobian = Jacobian(self._parts.layout, self.device)
            if isinstance(self.estimator, Traceable):
                self.traces = Traces(self.estimator, self.lam * self.gamma, self.trace_limit)

    def _own_state(self) -> dict[str, Any]:
        return {"traces": self.traces.state_dict() if self.traces is not None else None}

    def _load_own_state(self, state: dict[str, Any]) -> None:
        if (state["traces"] is None) != (self.traces is None):
            raise ValueError("one of the two has an estimator that learns, the other has none")
        if self.traces is not None:
            self.traces.load_state_dict(state["traces"])

    def _steps(
        self, inputs: Any, targets: Any, context: Any, reset: Tensor | None, ends: Tensor | None
    ) -> Iterator[Window]:
        """Each step as a window of one; who ended with the last one starts anew with the next."""
        core, steps = self.core, self.core.steps(inputs)
        for k in range(steps):
            fresh = _at(reset, k, 0)
            if self.reset is not None and (fresh is None or len(self.reset) == len(fresh)):
                fresh = either(self.reset, fresh)
            x, y = (core.part(each, k, k + 1) for each in (inputs, targets))
            yield Window(x, y, [core.at(context, k)], fresh, _at(ends, k, steps - 1))

    def _learn(self, steps: Iterable[Window]) -> Tensor:
        total, weight, count = torch.zeros((), device=self.device), 0.0, 0
        for window in steps:
            self._bind(window.inputs, window.contexts[-1])
            self._check_context(window.contexts[-1])
            with self._whole("step"):
                loss, losses = self._learn_step(window)
            total, weight, count = total + loss * losses, weight + losses, count + 1
        if self.update == "call":
            try:
                self._apply(count)
            except BaseException:
                self.parts.updates.clear_all()
                raise
        return total / weight if weight else total

    def _learn_step(self, window: Window) -> tuple[Tensor, float]:
        """Learn from one step of time, gathering gradients or updating at once; (the loss, what it averages over)."""
        core, layout, traces, estimator = self.core, self.parts.layout, self.traces, self.estimator
        n = core.size(window.inputs)
        count = self.count_losses(window.targets, n)
        if self.state is None and traces is not None:
            traces.prepare(n)
        # 1. forward, from a state that is cut from its graph
        state, came = self._begin(n, traces is not None)
        with self.parts.stage.randomness.swapped():
            if window.reset is not None and bool(window.reset.any()):
                state = self._restarted(state, window.reset)
            with unfused() if traces is not None and traces.decay > 0 else nullcontext():
                outputs, state = core.run(window.inputs, state)
            loss = layout.leaves(state, n)[0].new_zeros(())
            if count > 0:
                made = self.price(self.scores(outputs), window.targets)
                batch = Batch((window.inputs,), {}, window.targets, 1.0 / n, n)
                where = f"at step {self.count}"
                loss = finite(made, batch, where, otherwise=lambda: self._blame("step", window.reset))

        leaves = layout.leaves(state, n)
        vector = layout.vector([leaf.detach() for leaf in leaves])
        gone, bad = either(window.ends, window.dead), nonfinite(layout, leaves)
        since = nonfinite_since(self.nonfinite_since, bad, gone, self.count)
        if bad is not None:
            gone, vector = either(gone, bad), vector.masked_fill(bad.unsqueeze(1), 0.0)
        features, estimate = None, torch.zeros_like(vector)
        if isinstance(estimator, Traceable):
            features = estimator.features(vector, window.contexts[-1])
            with torch.no_grad():
                estimate = estimator.predict(features).to(vector.dtype)
            if gone is not None:
                estimate = estimate.masked_fill(gone.unsqueeze(1), 0.0)
        # 2. the core's gradient; what comes back at s_{t−1} is G_{t−1} bootstrapped by ĝ(s_t)
        received, jacobian = self._backward(loss, count / n, leaves, estimate, came, n)
        if bad is not None:
            received = None if received is None else received.masked_fill(bad.unsqueeze(1), 0.0)
            jacobian = None if jacobian is None else jacobian.masked_fill(bad.view(-1, 1, 1), 0.0)

        # 3. the estimator: δ along the traces as they were before this step
        if traces is not None and isinstance(estimator, Traceable) and traces.features is not None:
            assert received is not None
            with torch.no_grad():
                before = estimator.predict(traces.features)
            delta = received.to(before.dtype) - before
            add_grad(estimator.weight, traces.gradient(delta).mul_(-2.0 / n))
            if self.quality_every and self.count % self.quality_every == self.quality_every - 1:
                self.quality.add(self.count, before / n, received / n, 1.0 / n)
        if self.update == "step":
            self._apply(1)
        # 4. the traces move on by the Jacobian of the step just made
        if traces is not None and features is not None:
            traces.advance(jacobian, features, gone)
        self.state = layout.cut(state, False)[0]
        self.reset, self.nonfinite_since = window.ends, since
        self.count += 1
        return loss.detach(), count

    def _backward(
        self, loss: Tensor, weight: float, leaves: list[Tensor], estimate: Tensor, came: list[Tensor], n: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of core and readout; what a sample hears at the state before, (n, F); and J where traces want it.

            core       weight·∂L_t/∂θ + (1/n)·c·γ·ĝ(s_t)·∂s_t/∂θ
            received   ∂(sum of the losses of step t)/∂s_{t−1} + γ·ĝ(s_t)·J_t

        One backward pass gives the core's part and, where c = 1, what was received; the rest goes back once more.
        """
        layout, traces = self.parts.layout, self.traces
        reached = [k for k, leaf in enumerate(leaves) if leaf.requires_grad]
        ends = [leaves[k] for k in reached]
        jacobian = None
        if traces is not None and traces.decay > 0 and came:
            assert self._jacobian is not None
            jacobian = self._jacobian(leaves, came)
        inject = self.inject
        rest = self.gamma * (1.0 - inject)
        more = None
        if came and rest != 0.0:
            if jacobian is not None:
                more = torch.bmm(estimate.unsqueeze(1), jacobian).squeeze(1) * rest
            elif ends:
                wanted = [each for k, each in enumerate(layout.apart(estimate * rest, leaves)) if k in reached]
                found = torch.autograd.grad(ends, came, wanted, retain_graph=True, allow_unused=True)
                more = layout.vector(
                    [torch.zeros_like(c) if g is None else g for c, g in zip(came, found, strict=True)]
                )
        injected = layout.apart(estimate * (inject * self.gamma / n), leaves)
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

    def _apply(self, steps: int) -> None:
        """Let the optimiser take what has gathered over some steps, their mean."""
        updates = self.parts.updates
        # a step whose loss is not asked for has a gradient of 0 all the same: an optimiser with a memory moves on
        for p in self.readout.parameters() if self.readout is not None else ():
            if p.grad is None and p.requires_grad:
                p.grad = torch.zeros_like(p)
        gathered = updates.gathered()
        if steps > 1 and gathered:
            torch._foreach_mul_(gathered, 1.0 / steps)
        self.precision.apply(updates)
        for scheduler in updates.schedulers:
            scheduler.step()


def _at(flags: Tensor | None, step: int, only: int) -> Tensor | None:
    """What is said of one step: its column of (n, t); (n,) is said of step `only`."""
    if flags is None or flags.dim() == 2:
        return None if flags is None else flags[:, step]
    return flags if step == only else None
