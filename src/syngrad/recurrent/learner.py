"""What the trainers of recurrent cores have in common: what the first window makes of their options, where they stand
between two windows and how that is saved, evaluation, and that a window or step that fails leaves nothing behind.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from syngrad.checks import check_not_negative
from syngrad.core.interface import Interface, infer_context
from syngrad.core.stage import Stage
from syngrad.errors import CheckpointError, ConfigError, MessageError, SyngradError, TrainingError, first_line
from syngrad.estimators import GradientEstimator
from syngrad.estimators.base import Binding
from syngrad.estimators.losses import count_targets, token_cross_entropy
from syngrad.estimators.regressors import Regressor
from syngrad.grad_mode import training
from syngrad.optim.groups import check_patterns, names_of
from syngrad.optim.guard import Guard
from syngrad.optim.updates import Clipping, Updates
from syngrad.preserve_state import Buffers, preserve_state
from syngrad.recurrent.auxiliary import Auxiliary
from syngrad.recurrent.core import Core, evaluating
from syngrad.recurrent.layout import Layout, find_layout
from syngrad.recurrent.options import RecurrentOptions
from syngrad.recurrent.traceable import Traceable
from syngrad.recurrent.window import blame_state
from syngrad.runtime.precision import ForwardOverflowError, Precision
from syngrad.runtime.quality import Quality
from syngrad.targets import scalar
from syngrad.tree import map_tensors, to_device

#: steps of a piece in which a long sequence is evaluated
PIECE = 1024


@dataclass(frozen=True)
class Parts:
    """What the first window or step decides."""

    layout: Layout  # of the core's state
    stage: Stage  # core, readout and auxiliary head, with their randomness
    updates: Updates  # the optimiser of these and of the estimator
    buffers: Buffers  # to be put back where a window fails


class Learner(ABC):
    """A core, the interface at which the estimator of its state stands, and where training stands.

    Args:
        core: see :class:`syngrad.TruncatedBPTT`.
        interface: unbound.
        options: of either trainer, checked.
    """

    def __init__(self, core: nn.Module, interface: Interface, options: RecurrentOptions) -> None:
        self.core, self.interface = Core(core, options.batch_first), interface
        self.loss: Callable[..., Tensor] = options.loss or token_cross_entropy
        self._count = options.loss_count or (count_targets if options.loss is None else None)
        #: whether `count_losses` gives the default loss's own count, so that it need not count once more
        self.labels_counted = self.loss is token_cross_entropy and self._count is count_targets
        self._inject = options.inject
        self.optimizer, self.groups, self.scheduler = options.optimizer, dict(options.groups or {}), options.scheduler
        self.estimator_lr, self.lam = options.estimator_lr, options.lam
        self.clipping = None if options.clip_norm is None else Clipping(options.clip_norm, "model")
        self.guard = None if options.guard is None else Guard(options.guard)
        self.precision, self.auxiliary = Precision(options.autocast), Auxiliary(options.auxiliary)
        self.seed = options.seed
        parameter = next(core.parameters(), None)
        self.device = options.device or (parameter.device if parameter is not None else torch.device("cpu"))
        self.readout = options.readout
        for module in self.modules:
            module.to(self.device)
        self.quality = Quality.of_stream(interface.name)
        self.quality_every = options.quality_every
        #: windows, or steps, trained so far
        self.count = 0
        self.state: Any = None
        #: samples that start anew with the next window or step
        self.reset: Tensor | None = None
        #: (n,), the window or step since which a sample's state has not been finite, −1 where it is; None where all are
        self.nonfinite_since: Tensor | None = None
        self._parts: Parts | None = None

    @property
    def inject(self) -> float:
        """The factor of the estimate as it stands."""
        return check_not_negative("inject", self._inject(self.count)) if callable(self._inject) else self._inject

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

    # What the user's functions say.

    def scores(self, outputs: Any) -> Any:
        """What the loss is given: the outputs, or what the readout makes of them."""
        return outputs if self.readout is None else _called("readout", self.readout, outputs)

    def price(self, scores: Any, targets: Any, *known: float) -> Tensor:
        """The loss, a scalar; `known` is what the default one averages over, where that is known already."""
        return scalar(_called("loss", self.loss, scores, targets, *known))

    def count_losses(self, targets: Any, otherwise: int) -> float:
        """The number of losses that the loss averages over; 0 where there are none, `otherwise` where nobody says."""
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

    # Without learning.

    @torch.no_grad()
    def evaluate(self, inputs: Any, targets: Any) -> Tensor:
        """The loss over whole sequences, without learning; with the default loss, or one that averages over what
        `loss_count` says, memory does not grow with their length.
        """
        inputs, targets = to_device(inputs, self.device), to_device(targets, self.device)
        core, steps = self.core, self.core.steps(inputs)
        with evaluating(self.modules):
            counts = self._counts(targets, steps, core.size(inputs)) if steps > PIECE else []
            if not counts:
                return self.price(self.scores(core.run(inputs, None)[0]), targets)
            state: Any = None
            total, weight = torch.zeros((), device=self.device), sum(counts)
            for start, count in zip(range(0, steps, PIECE), counts, strict=True):
                stop = min(start + PIECE, steps)
                outputs, state = core.run(core.part(inputs, start, stop), state)
                if count > 0:
                    total = total + self.price(self.scores(outputs), core.part(targets, start, stop)) * count
            return total / weight if weight else total

    @torch.no_grad()
    def predict(self, inputs: Any) -> Any:
        """What the loss would be given for whole sequences from their beginning, in evaluation mode."""
        with evaluating(self.modules):
            outputs, _ = self.core.run(to_device(inputs, self.device), None)
            return self.scores(outputs)

    def _counts(self, targets: Any, steps: int, n: int) -> list[float]:
        """What the loss averages over, piece by piece; none where it cannot be taken in pieces."""
        try:
            self.core.check_time("targets", targets, steps)
        except MessageError:
            return []  # the loss says what it thinks of them
        bounds = [(start, min(start + PIECE, steps)) for start in range(0, steps, PIECE)]
        pieces = [(self.core.part(targets, a, b), n * (b - a)) for a, b in bounds]
        if self.loss is token_cross_entropy:
            return [count_targets(piece) for piece, _ in pieces]
        counts = [self.count_losses(piece, otherwise) for piece, otherwise in pieces]
        # a loss that is no mean over what is counted is not the weighted mean of its pieces
        whole = self._count is not None and sum(counts) == self.count_losses(targets, n * steps)
        return counts if whole else []

    @property
    def modules(self) -> list[nn.Module]:
        """What is trained for good: core and readout."""
        return [module for module in (self.core.module, self.readout) if module is not None]

    # Where training stands, saved and restored.

    def state_dict(self) -> dict[str, Any]:
        """All that decides how the next window or step goes, but for the weights of core and readout."""
        parts = self.parts
        return {
            "count": self.count,
            "state": pytree.tree_leaves(self.state) if self.state is not None else None,
            "pending": None,
            "traces": None,
            "reset": self.reset,
            "unfit": self.nonfinite_since,
            "estimator": dict(self.interface.state_dict()),
            "auxiliary": dict(self.auxiliary.state_dict()),
            "optimizers": [optimizer.state_dict() for optimizer in parts.updates.optimizers],
            "schedulers": [scheduler.state_dict() for scheduler in parts.updates.schedulers],
            "randomness": parts.stage.randomness.save(),
            "precision": self.precision.state_dict(),
            "guard": self.guard.state_dict() if self.guard is not None else None,
            "quality": self.quality.state_dict(),
        } | self._own_state()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; call `bind` first where nothing has been trained yet.

        Raises:
            CheckpointError: for a state of another trainer.
        """
        parts = self.parts
        try:
            self._load_own_state(state)
            self.interface.load_state_dict(state["estimator"])
            self.auxiliary.load_state_dict(state["auxiliary"])
            for optimizer, saved in zip(parts.updates.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            for scheduler, saved in zip(parts.updates.schedulers, state["schedulers"], strict=True):
                scheduler.load_state_dict(saved)
            held = state["state"]
            self.state = None if held is None else pytree.tree_unflatten(held, parts.layout.spec)
            parts.stage.randomness.load(state["randomness"])
            self.precision.load_state_dict(state["precision"])
            if self.guard is not None and state["guard"] is not None:
                self.guard.load_state_dict(state["guard"])
            self.quality.load_state_dict(state["quality"])
            self.count, self.reset = int(state["count"]), state["reset"]
            self.nonfinite_since = state.get("unfit")  # none in those of before it was kept
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"this state is of another trainer ({first_line(error):.160}); give it the same"
            ) from error

    @abstractmethod
    def _own_state(self) -> dict[str, Any]:
        """What one kind of trainer keeps beside what both have."""

    @abstractmethod
    def _load_own_state(self, state: dict[str, Any]) -> None:
        """Take it out of a whole state; a ValueError says why it is not of this trainer."""

    # For the trainers' own steps.

    def _make_parts(self, inputs: Any, context: Any) -> Parts:
        """Find the state's layout, bind the estimator, make the optimiser."""
        core, interface = self.core, self.interface
        layout = find_layout(core, inputs)
        with preserve_state(core.module), torch.no_grad(), self.precision.autocast(self.device):
            one = map_tensors(lambda leaf: leaf.narrow(core.time, 0, 1), inputs)
            outputs, state = core.run(one, None)
        leaf = layout.leaves(state)[0]
        kind = infer_context(context, interface.classes)
        binding = Binding(torch.Size((layout.features,)), leaf.dtype, leaf.device, kind)
        with torch.random.fork_rng(devices=[leaf.device] if leaf.is_cuda else []):
            torch.manual_seed(self.seed)
            if not interface.bound:  # it is where what follows has failed before
                interface.bind_leaves([binding], [0])
            if self.auxiliary.weight:
                self.auxiliary.build(self.auxiliary.first(outputs, core.time), layout.features)
        modules = {"core": core.module, "readout": self.readout, "auxiliary": self.auxiliary.head}
        whole = nn.ModuleDict({name: module for name, module in modules.items() if module is not None})
        stage = Stage("core", whole, interface, self.seed, self.device)
        check_patterns("groups", list(self.groups), whole)
        updates = Updates(
            [stage],
            self.optimizer,
            "model",
            self.estimator_lr,
            self.scheduler,
            names=names_of(whole),
            groups=self.groups,
            guard=self.guard,
            clipping=self.clipping,
        )
        return Parts(layout, stage, updates, Buffers([whole, interface]))

    def _begin(self, n: int, wanted: bool) -> tuple[Any, list[Tensor]]:
        """The state to go on from, cut from its graph, and its leaves where what comes back at them is wanted."""
        if self.state is None:
            return None, []
        layout = self.parts.layout
        held = layout.samples(self.state)
        if held != n:
            raise MessageError(
                f"a window of {n} samples cannot go on from a state of {held}; call restart() where new sequences begin"
            )
        return layout.cut(self.state, True) if wanted else (self.state, [])

    def _restarted(self, state: Any, which: Tensor) -> Any:
        """The state with some samples at their beginning again."""
        return None if state is None else self.parts.layout.where(which, self.core.initial(state, len(which)), state)

    def _blame(self, what: str, reset: Tensor | None) -> str | None:
        """Why a loss is not finite, where that lies in the state that was carried on."""
        return blame_state(self.nonfinite_since, reset, what, self.parts.stage.parameters)

    def _check_context(self, context: Any) -> None:
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
            with training():
                yield
        except BaseException as error:
            parts.updates.clear_all()
            parts.buffers.put_back()
            parts.stage.randomness.load(randomness)
            if isinstance(error, Exception) and not isinstance(error, SyngradError | Warning | ForwardOverflowError):
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
