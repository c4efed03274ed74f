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
from typing import Any

import torch
from torch import Tensor, nn

from syngrad.checks import check_choice
from syngrad.core.interface import Interface
from syngrad.errors import ConfigError
from syngrad.estimators import GradientEstimator
from syngrad.optim.groups import GroupOptions, OptimizerFactory
from syngrad.recurrent.auxiliary import Auxiliary
from syngrad.recurrent.checks import check_factor, check_least, check_rows, check_time
from syngrad.recurrent.jacobian import Jacobian
from syngrad.recurrent.learner import Learner, Schedule
from syngrad.recurrent.online_step import train, update
from syngrad.recurrent.parts import make, windows
from syngrad.recurrent.traceable import Traceable, template
from syngrad.recurrent.traces import Traces
from syngrad.recurrent.window import Window, either
from syngrad.runtime.precision import Precision
from syngrad.targets import check_lambda
from syngrad.trainer import default_optimizer
from syngrad.tree import to_device

UPDATES = ("step", "call")


class OnlineBPLambda(Learner):
    """Trains a recurrent core step by step; what lies behind a step is predicted, and the predictor learns by traces.

        online = OnlineBPLambda(core, "linear", lam=0.9)
        loss = online.step(inputs, targets)          # one step of time, or several, one after the other
        loss = online.run(inputs, targets, lengths)  # whole sequences, from their first step to their last

    core, readout, batch_first, loss, loss_count, optimizer, estimator_lr, groups, scheduler, clip_norm, guard, seed,
    device: as for :class:`syngrad.TruncatedBPTT`; loss_count may be 0 at a step, whose loss is then not asked for.
    estimator: "linear", "low_rank(rank=16)", "low_rank(rank=16, outputs=16)", "features(width=64)", "zero", or a
    :class:`Traceable` of your own. For a state of F numbers a sample `linear` keeps F·F·(F+1) of them a sample, F·F·17
    are kept for rank 16, F·16·17 for 16 outputs too; a step multiplies F times as many.
    lam: λ in [0, 1]; 0 keeps no trace. gamma: γ, the discount of what is a step further away.
    inject: factor of the estimate where it enters the core, a number or a function of the steps trained so far. Where
    the loss falls at first and then stays high, the core follows errors of the estimator: give a smaller factor (0.3),
    or a smaller estimator_lr (0.2).
    update: weights move at every "step", or at the end of every "call" of step() or run() by the mean over its steps.
    trace_limit: bytes that the traces may take. classes: number of labels where the context is labels.

    Memory does not depend on how long a sequence is.

    Raises ConfigError at construction for what cannot be used, and for traces beyond the limit; MessageError and
    TrainingError, one line each, while training. A step that fails leaves weights, state, traces and estimator as they
    were before it; with update="call" what the call has gathered is dropped.
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
        super().__init__(
            core,
            Interface(template(estimator), classes=classes, name="state"),
            readout=readout,
            batch_first=batch_first,
            loss=loss,
            loss_count=loss_count,
            inject=inject,
            optimizer=optimizer,
            estimator_lr=estimator_lr,
            groups=groups,
            scheduler=scheduler,
            clip_norm=clip_norm,
            guard=guard,
            seed=seed,
            device=device,
            quality_every=quality_every,
        )
        self.lam, self.gamma = check_lambda(lam), check_gamma(gamma)
        check_choice("update", update, UPDATES)
        self.update, self.trace_limit = update, check_least("trace_limit", trace_limit, 0)
        # what windows have and steps have not: an auxiliary task, and a lower precision
        self.auxiliary, self.precision = Auxiliary(0.0), Precision(None)
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

        inputs, targets: with a dimension of time, of length 1 for one step: (n, 1, …) or (1, n, …). context: what the
        estimator may look at beside the state after each step, with time too, numbers or labels. reset: of bool, (n,)
        for samples that start anew with the first step, or (n, t). ends: of bool, (n,) for samples whose sequence ends
        with the last step, or (n, t): nothing is injected there, and the next step starts them anew.

        Returns the mean loss, detached.
        """
        inputs, targets, context = (to_device(each, self.device) for each in (inputs, targets, context))
        n, steps = self.core.size(inputs), self.core.steps(inputs)
        reset = check_rows("reset", reset, n, self.device, steps)
        ends = check_rows("ends", ends, n, self.device, steps)
        self._check_time(targets, context, steps)
        return self._learn(self._steps(inputs, targets, context, reset, ends))

    def run(self, inputs: Any, targets: Any, lengths: Any = None, *, context: Any = None) -> Tensor:
        """Learn from whole sequences, step by step, from their first to their last.

        lengths: (n,), the steps of each sequence where they are unequal; targets behind a sequence's end are the loss's
        affair (−100 for the default one). context: as for :meth:`step`.

        Returns the mean loss, detached.
        """
        inputs, targets, context = (to_device(each, self.device) for each in (inputs, targets, context))
        self._check_time(targets, context, self.core.steps(inputs))
        self.restart()
        loss = self._learn(windows(self, inputs, targets, lengths, context))
        self.restart()
        return loss

    def restart(self) -> None:
        """Begin new sequences with the next step: neither state nor traces are carried on."""
        self.state = self.reset = self.unfit = None
        if self.traces is not None:
            self.traces.clear()

    def bind(self, inputs: Any, context: Any = None) -> None:
        """Make estimator, traces and optimiser for inputs like these; the first step does so by itself."""
        self._bind(inputs, self.core.at(context, 0))

    @property
    def jacobian(self) -> Jacobian:
        """Makes the Jacobian of a step."""
        assert self._jacobian is not None
        return self._jacobian

    def _steps(
        self, inputs: Any, targets: Any, context: Any, reset: Tensor | None, ends: Tensor | None
    ) -> Iterator[Window]:
        steps = self.core.steps(inputs)
        for k in range(steps):
            fresh = _at(reset, k, 0)
            if self.reset is not None and (fresh is None or len(self.reset) == len(fresh)):
                fresh = either(self.reset, fresh)
            yield Window(
                self.core.part(inputs, k, k + 1),
                self.core.part(targets, k, k + 1),
                [self.core.at(context, k)],
                fresh,
                _at(ends, k, steps - 1),
            )

    def _check_time(self, targets: Any, context: Any, steps: int) -> None:
        check_time("targets", targets, self.core.time, steps)
        check_time("context", context, self.core.time, steps)

    def _bind(self, inputs: Any, context: Any) -> None:
        if self._parts is None:
            self._parts = make(self, inputs, context)
            self._jacobian = Jacobian(self._parts.layout, self.device)
            if isinstance(self.estimator, Traceable):
                self.traces = Traces(self.estimator, self.lam * self.gamma, self.trace_limit)

    def _learn(self, pieces: Iterable[Window]) -> Tensor:
        total, weight, steps = torch.zeros((), device=self.device), 0.0, 0
        for piece in pieces:
            loss, count = self._train(piece)
            total, weight, steps = total + loss * count, weight + count, steps + 1
        if self.update == "call":
            try:
                update(self, steps)
            except BaseException:
                self.parts.updates.clear_all()
                raise
        return total / weight if weight else total

    def _train(self, window: Window) -> tuple[Tensor, float]:
        self._bind(window.inputs, window.contexts[-1])
        self._seen(window.contexts[-1])
        with self._whole("step"):
            return train(self, window)


def check_gamma(value: Any) -> float:
    """A discount, from 0 to 1."""
    number = check_factor("gamma", value)
    if number > 1:
        raise ConfigError(f"gamma must lie in [0, 1], got {value!r:.40}: the discount of what is a step further away")
    return number


def _at(rows: Tensor | None, step: int, only: int) -> Tensor | None:
    """What is said of one step: its column of (n, t); (n,) is said of step `only`."""
    if rows is None or rows.dim() == 2:
        return None if rows is None else rows[:, step]
    return rows if step == only else None
