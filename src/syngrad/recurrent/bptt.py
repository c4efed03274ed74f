"""Truncated back-propagation through time with an estimate of what the truncation cuts off."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from syngrad.core.interface import Interface, check_spec
from syngrad.errors import MessageError
from syngrad.estimators.registry import EstimatorSpec
from syngrad.estimators.regressors import Zero
from syngrad.optim.groups import GroupOptions, OptimizerFactory
from syngrad.recurrent.auxiliary import Auxiliary
from syngrad.recurrent.boundary import Pending
from syngrad.recurrent.checks import check_factor, check_least, check_rows, check_time
from syngrad.recurrent.learner import Learner, Schedule
from syngrad.recurrent.parts import make, started, windows
from syngrad.recurrent.window import Window, train
from syngrad.runtime.precision import Precision, parse_dtype
from syngrad.targets import check_lambda
from syngrad.trainer import default_optimizer
from syngrad.tree import to_device


class TruncatedBPTT(Learner):
    """Trains a recurrent core window by window; the gradient from behind a window's end is predicted.

        bptt = syngrad.TruncatedBPTT(core, "linear", window=8)
        loss = bptt.step(inputs, targets)          # one window; the state is carried on from the last one
        loss = bptt.run(inputs, targets, lengths)  # whole sequences, from their first step to their last

    core: `nn.LSTM`, `nn.GRU`, `nn.RNN`, a cell, or a module (inputs, state) → (outputs, state) of the user's own, whose
    state is any nested structure of tensors. readout: outputs → what the loss is given. batch_first: inputs are
    (n, t, …) or (t, n, …); the core's own unless given.
    estimator: of ∂(all losses behind the window)/∂(state), for the state as one vector a sample; a name, a module or a
    function. "zero" is plain truncated back-propagation, and a window as long as the sequence the full one.
    window: steps. horizon: windows that are trained together, in one step of the optimiser, with λ-targets between
    them; lam: their λ. Where it is 1, gradients go through all of them as if they were one window.
    inject: factor of the estimate where it enters the core, a number or a function of the windows trained so far.
    discount: its factor in the estimator's own target; `inject` where None, which costs nothing, see boundary.py.
    auxiliary: weight of predicting the next boundary's estimate from the window's first output, see auxiliary.py.
    loss: (outputs, targets) → scalar; mean cross-entropy over the last dimension unless given. loss_count: targets →
    the number of losses that it averages over: all that are not −100 for the default loss, and n·t otherwise.
    optimizer, estimator_lr, groups, scheduler, clip_norm, guard, seed, device, autocast: as for the Trainer; the
    scheduler steps with every update.

    Raises ConfigError at construction for what cannot be used; MessageError and TrainingError, one line each, while
    training. A window that fails leaves weights, state and estimator as they were.
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
        check_spec(estimator)
        super().__init__(
            core,
            Interface(estimator, classes=classes, name="boundary"),
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
        self.window = check_least("window", window, 1)
        self.horizon = check_least("horizon", horizon, 1)
        self.lam = check_lambda(lam)
        self.discount = None if discount is None else check_factor("discount", discount)
        self.precision = Precision(parse_dtype(autocast))
        self.auxiliary = Auxiliary(check_factor("auxiliary", auxiliary))
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

        inputs, targets: as many steps as that, or fewer. context: what the estimator may look at beside the state at
        the window's end, (n, …): the time to go, the target; with a horizon a list of these, one a window. reset: (n,)
        or (n, t) of bool, samples that start anew with the window, or with a step of it. ends: (n,) of bool, samples
        whose sequence ends with this window: nothing is injected there, the estimator is fitted to 0, and the next
        window starts them anew.

        Returns the loss, detached.
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
        reset = check_rows("reset", reset, n, self.device, steps)
        ends = check_rows("ends", ends, n, self.device)
        if self.reset is not None and len(self.reset) == n:
            reset = started(self.reset, reset)
        loss = self._train(Window(inputs, targets, contexts, reset, ends))
        self.reset = ends
        return loss

    def run(self, inputs: Any, targets: Any, lengths: Any = None, *, context: Any = None) -> Tensor:
        """Train on whole sequences, window by window, from their first step to their last.

        lengths: (n,), the steps of each sequence where they are unequal; targets behind a sequence's end are the loss's
        affair (−100 for the default one). context: as for :meth:`step`, with time where the inputs have it, (n, t, …):
        the estimator sees that of each window's last step.

        Returns the mean of the windows' losses, weighted by what they average over, detached.
        """
        inputs, targets, context = (to_device(each, self.device) for each in (inputs, targets, context))
        steps = self.core.steps(inputs)
        check_time("targets", targets, self.core.time, steps)
        check_time("context", context, self.core.time, steps)
        self.restart()
        total, weight = torch.zeros((), device=self.device), 0.0
        for window in windows(self, inputs, targets, lengths, context):
            loss = self._train(window)
            count = self.count_losses(window.targets, self.core.size(window.inputs) * self.core.steps(window.inputs))
            total, weight = total + loss * count, weight + count
        self.restart()
        return total / weight if weight else total

    def restart(self) -> None:
        """Begin new sequences with the next window: no state is carried on, and nothing is learnt across."""
        self.state = self.pending = self.reset = self.unfit = None

    def bind(self, inputs: Any, context: Any = None) -> None:
        """Make estimator and optimiser for inputs like these; the first window does so by itself."""
        if self._parts is None:
            self._parts = make(self, inputs, context)

    def _contexts(self, context: Any, steps: int) -> list[Any]:
        count = -(-steps // self.window)
        if self.horizon == 1:
            return [context]
        if context is None:
            return [None] * count
        if not isinstance(context, list | tuple) or len(context) != count:
            got = len(context) if isinstance(context, list | tuple) else type(context).__name__
            raise MessageError(f"a span of {count} windows needs a list of so many contexts, got {got}")
        return list(context)

    def _train(self, window: Window) -> Tensor:
        self.bind(window.inputs, window.contexts[-1])
        self._seen(window.contexts[-1])
        with self._whole("window"):
            return train(self, window)
