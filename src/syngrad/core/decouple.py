"""`decouple`: a model, cut into stages, with an interface on every cut. The model stays the user's own object."""

from __future__ import annotations

import inspect
import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from syngrad.checks import check_whole
from syngrad.core.batch import TARGET_KEYS, keeping_target, unpack
from syngrad.core.binding import Bound, Crossing, bind_to_loss, check_closed
from syngrad.core.input_predictor import InputSpec, make
from syngrad.core.interface import Interface
from syngrad.core.places import estimable
from syngrad.core.task import Task, carried, check_estimated, estimates, interface
from syngrad.core.trainable import check_not_compiled, check_not_scripted
from syngrad.errors import ConfigError, CutError, SyngradError, unknown
from syngrad.estimators.registry import EstimatorSpec
from syngrad.estimators.regressors import Regressor
from syngrad.partition import Segment, check_names, split
from syngrad.partition.segment import FORWARD
from syngrad.tree import batch_size, differentiable, positions


class DecoupledNetwork:
    """A model, where it is to be cut, and, once bound to a batch, its stages and interfaces.

    Attributes:
        model: the user's own object; it is trained in place and its state dict keeps its keys.
        estimators: one `Interface` a cut, by the cut's name; they are no part of the model.
    """

    def __init__(self, model: nn.Module, cuts: Sequence[str] | None, stages: int | None) -> None:
        self.model, self.requested_cuts, self.requested_stages = model, cuts, stages
        self.segments: list[Segment] = []
        self.interfaces: list[Interface] = []
        self.estimators = nn.ModuleDict()
        #: one predictor of a stage's input a cut, where they are asked for
        self.inputs = nn.ModuleDict()

    @property
    def cuts(self) -> list[str]:
        """The names that start a new stage, in the order of execution; known once the model is split."""
        return [segment.name for segment in self.segments[1:]]

    def bind(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        target: Any,
        estimator: EstimatorSpec,
        loss: Callable[[Any, Any], Tensor],
        count: Callable[[Any], float] | None,
        inputs: InputSpec | None = None,
        *,
        alone: bool = False,
        as_several: bool = False,
        uncut: bool = False,
        rested_on: bool = False,
    ) -> None:
        """Cut the model (once), and make every interface anew from one run without data, for the shapes alone.

        Args:
            args: of the model, from the first batch.
            kwargs: of the model.
            target: of the loss.
            estimator: what is made for every interface.
            loss: the user's own, which heads differentiate.
            count: target → the number of sample losses whose mean the loss is.
            inputs: what predicts every stage's input, None where none does.
            alone: whether all stages run in this process, one after the other.
            as_several: whether this process is to compute, to the last bit, what several would: then it cuts as they do
                wherever they can, and messages lie in memory as if they had crossed a link. A library that sees itself
                recorded may take other kernels than its own forward does, and so may PyTorch for another layout.
            uncut: whether gradients go through all stages as if there were no cuts.
            rested_on: whether stages learn from estimates alone.

        Raises:
            CutError: for a cut that a differentiated value goes round, or of all that crosses which no estimate can be
                made, and whatever cutting itself refuses.
        """
        if not self.segments:
            alone = alone and inputs is None
            self.segments = self._split(args, kwargs, target, estimator, loss, count, alone, as_several)
        for segment, following in pairwise(self.segments):
            segment.send_without(None, following)  # what another loss had no use for
            segment.row_by_row = as_several and segment.route != FORWARD
        bound = bind_to_loss(self.model, self.segments, args, kwargs, target, loss)
        if not uncut:
            check_closed(bound.crossings, self.cuts)
        for (segment, following), crossing in zip(pairwise(self.segments), bound.crossings, strict=True):
            if segment.leave_out(crossing.dead):
                crossing.leave_out_dead()
            elif crossing.ignored:
                segment.send_without(crossing.leave_out_ignored(), following)
        if isinstance(estimator, Mapping):
            for name in estimator:
                if name != "default" and name not in self.cuts:
                    raise unknown("cut in estimator=", name, [*self.cuts, "default"])
        task = Task.of(bound, args, kwargs, target, loss, count)
        self.interfaces = [
            interface(name, crossing, estimator, task)
            for name, crossing in zip(self.cuts, bound.crossings, strict=True)
        ]
        for made, crossing in zip(self.interfaces, bound.crossings, strict=True):
            if estimates(estimator, made.name):
                elsewhere = partial(estimable, self.model, args, kwargs, target, loss, estimator, task, alone)
                check_estimated(made, crossing, task, elsewhere if rested_on else None)
        self.estimators = nn.ModuleDict(
            {module_key(name): made for name, made in zip(self.cuts, self.interfaces, strict=True)}
        )
        if inputs is not None:
            predictors = [
                make(inputs, args, kwargs, crossing.message, name)
                for name, crossing in zip(self.cuts, bound.crossings, strict=True)
            ]
            self.inputs = nn.ModuleDict({module_key(each.cut): each for each in predictors})
        unseen = [e for made in self.interfaces for e in made.heads if isinstance(e, Regressor) and e.context]
        if task.context.kind == "other" and unseen:
            warnings.warn(
                "the targets could not be matched to the model's output as labels, so estimators do not see them; give "
                "an estimator of your own if they should",
                stacklevel=2,
            )

    def _split(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        target: Any,
        estimator: EstimatorSpec,
        loss: Callable[[Any, Any], Tensor],
        count: Callable[[Any], float] | None,
        alone: bool,
        as_several: bool,
    ) -> list[Segment]:
        whole: list[Bound] = []

        def outcome() -> Bound:
            if not whole:
                whole.append(bind_to_loss(self.model, [self.model], args, kwargs, target, loss))
            return whole[0]

        def cost(message: Any) -> float:
            crossing = Crossing(message, positions(message))
            try:
                made = interface(
                    "candidate", crossing, estimator, Task.of(outcome(), args, kwargs, target, loss, count)
                )
                if estimates(estimator, "candidate") and len(carried(made, crossing)) == len(crossing.leaves):
                    return float("inf")
                return interface_seconds(made, message, target)
            except (ConfigError, CutError):
                return float("inf")

        made = partial(
            split,
            self.model,
            cuts=self.requested_cuts,
            stages=self.requested_stages,
            example=(args, kwargs),
            interface_cost=cost if self.requested_stages else None,
            unread=lambda: outcome().unread,
        )
        if alone and as_several:
            with suppress(ConfigError, CutError):  # several would be refused, and one process has a way of its own
                return made(alone=False)
        return made(alone=alone)

    def __repr__(self) -> str:
        where = (
            self.cuts or self.requested_cuts or f"{self.requested_stages} stages, balanced when the first batch comes"
        )
        return f"DecoupledNetwork({type(self.model).__name__}, cuts={where})"


def decouple(
    model: nn.Module | Sequence[nn.Module],
    cuts: Sequence[str] | None = None,
    *,
    stages: int | None = None,
    untie: bool = False,
) -> DecoupledNetwork:
    """Cut `model` into stages, each of which will update by an estimate of the gradient that is still on its way.

    Works for `nn.Sequential`, nested modules, and models whose own `forward` chains blocks; the model object itself is
    trained in place. What needs an example batch to be found out is raised when the first one comes.

    Args:
        model: any `nn.Module`; or a list of modules (a list, a tuple, an `nn.ModuleList`), each of which is a stage and
            gets what the one before returns.
        cuts: qualified names of modules (as in `model.named_modules()`); each starts a new stage.
        stages: or their number, balanced by measured cost, estimators included, when the first batch is seen.
        untie: give each module a parameter of its own where several have had one in common, with the same values. Tied
            ones may stay so: over several workers what is shared crosses between them, see `Distributed(share_every=)`.

    Returns:
        The model and its cuts, for a `Trainer`.

    Raises:
        CutError: for a name that is not there, a cut that cannot be made, or, over several workers, running statistics
            shared across a cut.
        ConfigError: for options that do not fit together, or a number of stages that the model has no room for.
    """
    if isinstance(model, nn.ModuleList) and len(model):
        model = list(model)
    if isinstance(model, list | tuple) and model and all(isinstance(stage, nn.Module) for stage in model):
        if cuts is not None or stages is not None:
            raise ConfigError(
                "a list of modules, an nn.ModuleList too, is a list of stages: give neither cuts= nor stages= with it, "
                "or give the model that calls them"
            )
        model = nn.Sequential(*model)
        cuts, stages = (list(map(str, range(1, len(model)))), None) if len(model) > 1 else (None, 1)
    if not isinstance(model, nn.Module):
        raise ConfigError(f"decouple needs a torch.nn.Module or a list of them, got {type(model).__name__}")
    check_not_scripted(model)
    check_not_compiled(model, cuts, stages)
    if untie:
        untie_parameters(model)
    if (cuts is None) == (stages is None):
        raise ConfigError("decouple needs either cuts=[names] or stages=N, not both and not neither")
    if stages is not None:
        stages = check_whole("stages", stages, 1)
    if cuts is not None:
        if isinstance(cuts, str) or not isinstance(cuts, Sequence):
            raise ConfigError(f"cuts must be a list of names, got {cuts!r}; write cuts=['{cuts}']")
        cuts = list(cuts)
        check_names(model, cuts, alone=True)
    return DecoupledNetwork(model, cuts, stages)


def untie_parameters(model: nn.Module) -> None:
    """Give every module but the first a copy of a parameter that several have in common."""
    seen: set[int] = set()
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None and id(parameter) in seen:
                setattr(module, name, nn.Parameter(parameter.detach().clone(), parameter.requires_grad))
            elif parameter is not None:
                seen.add(id(parameter))


def wants_target(model: nn.Module, batch: Any, loss: Callable[[Any, Any], Tensor]) -> bool:
    """Whether the loss reads what the model makes of its labels: it can be had of the output with them alone."""
    if not isinstance(batch, Mapping):
        return False
    key = next((key for key in batch if key in TARGET_KEYS), None)
    if key is None or key not in inspect.signature(model.forward).parameters:
        return False

    def can_be_had(taken: tuple[tuple[Any, ...], dict[str, Any], Any]) -> bool:
        args, kwargs, target = taken
        try:
            return bind_to_loss(model, [model], args, kwargs, target, loss).read is not None
        except SyngradError:
            return False

    return not can_be_had(unpack(batch)) and can_be_had(keeping_target(batch))


def module_key(cut: str) -> str:
    """A cut's name as a key of `estimators`: modules' keys have no dots and are not the names of a dict's methods."""
    key = cut.replace(".", "/")
    return f"cut/{key}" if hasattr(nn.ModuleDict, key) else key


def interface_seconds(interface: Interface, message: Any, context: Any, repeats: int = 3) -> float:
    """What one estimate and one fit cost on this message: the median of a few runs after one that is not counted."""
    leaves = [leaf.detach() for leaf in differentiable(message)]
    scale = 1.0 / batch_size(leaves)
    times = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        estimates, kept = interface.estimate(leaves, context, scale, keep=True)
        interface.fit(leaves, context, estimates, scale, kept)
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])
