"""What the trainers of recurrent cores have in common: their options, what the first window makes of them, and that a
window or step that fails leaves nothing behind.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from syngrad.checks import check_callable, check_positive, check_seed
from syngrad.core.interface import Interface
from syngrad.errors import ConfigError, MessageError, SyngradError, TrainingError, first_line
from syngrad.estimators import GradientEstimator
from syngrad.estimators.losses import count_targets, token_cross_entropy
from syngrad.estimators.regressors import Regressor
from syngrad.optim.clipping import Clipping
from syngrad.optim.groups import GroupOptions, OptimizerFactory, check_groups
from syngrad.optim.guard import Guard, check_bound
from syngrad.recurrent.auxiliary import Auxiliary
from syngrad.recurrent.checks import check_factor, check_least
from syngrad.recurrent.core import Core
from syngrad.recurrent.evaluating import evaluate, predict
from syngrad.recurrent.parts import Parts
from syngrad.recurrent.saving import load_state_dict, state_dict
from syngrad.recurrent.traceable import Traceable
from syngrad.recurrent.unfit import carried
from syngrad.runtime.options import check_device
from syngrad.runtime.precision import Precision
from syngrad.runtime.quality import Quality
from syngrad.targets import scalar

#: a factor, or a function of what was trained so far
Schedule = float | Callable[[int], float]


class Learner:
    """Options as :class:`syngrad.TruncatedBPTT` explains them. interface: where the estimator of the state stands."""

    auxiliary: Auxiliary
    precision: Precision

    def __init__(
        self,
        core: nn.Module,
        interface: Interface,
        *,
        readout: nn.Module | None,
        batch_first: bool | None,
        loss: Callable[[Any, Any], Tensor] | None,
        loss_count: Callable[[Any], float] | None,
        inject: Schedule,
        optimizer: OptimizerFactory,
        estimator_lr: float,
        groups: GroupOptions | None,
        scheduler: Callable[[Any], Any] | None,
        clip_norm: float | None,
        guard: float | None,
        seed: int,
        device: str | torch.device | None,
        quality_every: int,
    ) -> None:
        self.core, self.interface = Core(core, batch_first), interface
        if readout is not None and not isinstance(readout, nn.Module):
            raise ConfigError(f"readout must be a module, got {type(readout).__name__}")
        self._inject = inject if callable(inject) else check_factor("inject", inject)
        for name, given in (("loss", loss), ("loss_count", loss_count)):
            if given is not None:
                check_callable(name, given, "(output, target)")
        check_callable("optimizer", optimizer, "(output, target)")
        check_groups(groups or {})
        self.loss: Callable[..., Tensor] = loss or token_cross_entropy
        self._count = loss_count or (count_targets if loss is None else None)
        self.optimizer, self.groups, self.scheduler = optimizer, dict(groups or {}), scheduler
        self.estimator_lr = check_positive("estimator_lr", estimator_lr)
        self.clipping = None if clip_norm is None else Clipping(check_positive("clip_norm", clip_norm), "model")
        bound = check_bound(guard)
        self.guard = None if bound is None else Guard(bound)
        self.seed = check_seed(seed)
        parameter = next(core.parameters(), None)
        self.device = check_device(device) or (parameter.device if parameter is not None else torch.device("cpu"))
        self.readout = readout
        for module in (core, readout):
            if module is not None:
                module.to(self.device)
        self.quality = Quality.of_stream(interface.name)
        self.quality_every = check_least("quality_every", quality_every, 0)
        #: windows, or steps, trained so far
        self.count = 0
        self.state: Any = None
        #: samples that start anew with the next window or step
        self.reset: Tensor | None = None
        #: (n,), the window or step since which a sample's state has not been finite, −1 where it is; None where all are
        self.unfit: Tensor | None = None
        self._parts: Parts | None = None

    @property
    def inject(self) -> float:
        """The factor of the estimate as it stands."""
        return check_factor("inject", self._inject(self.count)) if callable(self._inject) else self._inject

    @property
    def parts(self) -> Parts:
        """What the first window or step has decided: see :class:`Parts`."""
        if self._parts is None:
            raise ConfigError("nothing has been trained yet; call step(), run() or bind() first")
        return self._parts

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimiser of core, readout and estimator; none before the first window or step."""
        return self._parts.updates.optimizers if self._parts is not None else []

    @property
    def estimator(self) -> GradientEstimator | None:
        """The estimator; None before the first window or step."""
        return self.interface.heads[0] if self._parts is not None else None

    @property
    def guarded(self) -> dict[str, int]:
        """How many updates were skipped, by part."""
        return dict(self.guard.counts) if self.guard is not None else {}

    def spoilt(self, what: str, reset: Tensor | None) -> str | None:
        """Why a loss is not finite, where that lies in the state that was carried on: see unfit.py."""
        return carried(self.unfit, reset, what, self.parts.stage.parameters)

    def scores(self, outputs: Any) -> Any:
        """What the loss is given: the outputs, or what the readout makes of them."""
        return outputs if self.readout is None else _called("readout", self.readout, outputs)

    def price(self, scores: Any, targets: Any, *known: float) -> Tensor:
        """The loss, a scalar. known: what the default one averages over, where that is known already."""
        return scalar(_called("loss", self.loss, scores, targets, *known))

    def evaluate(self, inputs: Any, targets: Any) -> Tensor:
        """The loss over whole sequences, without learning; with the default loss, or one that averages over what
        `loss_count` says, memory does not grow with their length.
        """
        return evaluate(self, inputs, targets)

    def predict(self, inputs: Any) -> Any:
        """What the loss would be given for whole sequences from their beginning, in evaluation mode."""
        return predict(self, inputs)

    @property
    def labels_counted(self) -> bool:
        """Whether `count_losses` gives the default loss's own count, so that it need not count once more."""
        return self.loss is token_cross_entropy and self._count is count_targets

    @property
    def counted(self) -> bool:
        """Whether it is known what the loss averages over, and not only taken to be all steps."""
        return self._count is not None

    def count_losses(self, targets: Any, otherwise: int) -> float:
        """The number of losses that the loss averages over; 0 where there are none."""
        if self._count is None:
            return otherwise
        made = _called("loss_count", self._count, targets)
        try:
            count = float(made)
        except (TypeError, ValueError):
            count = math.nan
        if not 0 <= count < math.inf:
            raise TrainingError(f"loss_count gave {made!r:.40}; it must be the number of losses, 0 or more")
        return count

    def state_dict(self) -> dict[str, Any]:
        """All that decides how the next window or step goes, but for the weights of core and readout."""
        return state_dict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; call `bind` first where nothing has been trained yet."""
        load_state_dict(self, state)

    def _seen(self, context: Any) -> None:
        """Refuse a context that the estimator was not bound to and would not look at."""
        head = self.estimator
        if context is None or not isinstance(head, Regressor | Traceable) or not head.context or head.binding is None:
            return
        if head.binding.context.kind == "none":
            raise MessageError(
                "a context is given now, and none was when the estimator was bound; give it from the first window on, "
                "or to bind()"
            )

    @contextmanager
    def _whole(self, what: str) -> Iterator[None]:
        """Inside it one of `what` is trained; where that fails, weights, buffers and generators are as they were."""
        parts = self.parts
        parts.buffers.note()
        randomness = parts.stage.randomness.save()
        try:
            yield
        except BaseException as error:
            parts.updates.clear_all()
            parts.buffers.put_back()
            parts.stage.randomness.load(randomness)
            if isinstance(error, Exception) and not isinstance(error, SyngradError | Warning):
                raise TrainingError(f"{what} {self.count} failed: {first_line(error)}") from error
            raise


def _called(name: str, function: Callable[..., Any], *given: Any) -> Any:
    """What the user's own function gives; what it raises is said in one line that names it."""
    try:
        return function(*given)
    except (SyngradError, Warning):
        raise
    except Exception as error:
        raise TrainingError(f"the {name} raised {first_line(error)}") from error
