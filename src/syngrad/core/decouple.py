"""`decouple`: a model, cut into stages, with an interface on every cut. The model stays the user's own object."""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from syngrad.checks import check_whole
from syngrad.core.input_predictor import InputSpec, make
from syngrad.core.interface import Interface
from syngrad.errors import ConfigError, CutError, SyngradError, TrainingError, first_line, unknown
from syngrad.estimators.base import Binding, Context
from syngrad.estimators.registry import EstimatorSpec
from syngrad.estimators.regressors import Regressor
from syngrad.partition import Segment, check_names, split
from syngrad.preserve_state import preserve_state
from syngrad.tree import batch_size, differentiable, map_tensors, positions, tensors


class DecoupledNetwork:
    """A model, where it is to be cut, and, once bound to a batch, its stages and interfaces.

    Attributes:
        model: the user's own object; it is trained in place and its state dict keeps its keys.
        estimators: one :class:`Interface` a cut, by the cut's name; they are no part of the model.
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

        Raises:
            CutError: for a message that has no batch as its first dimension, and whatever cutting itself refuses.
        """
        batch = batch_size((args, kwargs))

        def interface(name: str, message: Any, context: Context, output: torch.Size | None) -> Interface:
            made = Interface(estimator, loss=loss, name=name)
            leaves = differentiable(message)
            for leaf in leaves if estimator != "zero" else []:
                if leaf.shape[:1] != (batch,):
                    raise CutError(
                        f"cannot cut at {name!r}: a tensor of shape {tuple(leaf.shape)} crosses it, whose first "
                        f"dimension is not the batch of {batch}; use batch_first=True, or cut elsewhere"
                    )
            bindings = [Binding(h.shape[1:], h.dtype, h.device, context, output, loss, count) for h in leaves]
            made.bind_leaves(bindings, positions(message))
            return made

        if not self.segments:
            described: list[tuple[Context, torch.Size | None]] = []

            def cost(message: Any) -> float:
                if not described:
                    _, whole = trace_shapes([self.model], args, kwargs)
                    described.append(describe(whole, target, batch))
                try:
                    return seconds(interface("candidate", message, *described[0]), message, target)
                except ConfigError:
                    return float("inf")

            self.segments = split(
                self.model,
                cuts=self.requested_cuts,
                stages=self.requested_stages,
                example=(args, kwargs),
                interface_cost=cost if self.requested_stages else None,
            )
        messages, output = trace_shapes(self.segments, args, kwargs)
        context, single = describe(output, target, batch)
        if isinstance(estimator, Mapping):
            for name in estimator:
                if name != "default" and name not in self.cuts:
                    raise unknown("cut in estimator=", name, [*self.cuts, "default"])
        self.interfaces = [interface(n, m, context, single) for n, m in zip(self.cuts, messages, strict=True)]
        self.estimators = nn.ModuleDict(
            {module_key(name): made for name, made in zip(self.cuts, self.interfaces, strict=True)}
        )
        if inputs is not None:
            predictors = [make(inputs, args, kwargs, m, n) for n, m in zip(self.cuts, messages, strict=True)]
            self.inputs = nn.ModuleDict({module_key(each.cut): each for each in predictors})
        unseen = [e for made in self.interfaces for e in made.heads if isinstance(e, Regressor) and e.context]
        if context.kind == "other" and unseen:
            warnings.warn(
                "the targets could not be matched to the model's output as labels, so estimators do not see them; give "
                "an estimator of your own if they should",
                stacklevel=2,
            )

    def __repr__(self) -> str:
        where = (
            self.cuts or self.requested_cuts or f"{self.requested_stages} stages, balanced when the first batch comes"
        )
        return f"DecoupledNetwork({type(self.model).__name__}, cuts={where})"


def decouple(model: nn.Module, cuts: Sequence[str] | None = None, *, stages: int | None = None) -> DecoupledNetwork:
    """Cut `model` into stages, each of which will update by an estimate of the gradient that is still on its way.

    Works for `nn.Sequential`, nested modules, and models whose own `forward` chains blocks; the model object itself is
    trained in place. What needs an example batch to be found out is raised when the first one comes.

    Args:
        model: any `nn.Module`.
        cuts: qualified names of modules (as in `model.named_modules()`); each starts a new stage.
        stages: or their number, balanced by measured cost, estimators included, when the first batch is seen.

    Returns:
        The model and its cuts, for a `Trainer`.

    Raises:
        CutError: for a name that is not there, a cut that cannot be made, or parameters shared across a cut.
        ConfigError: for options that do not fit together, or a number of stages that the model has no room for.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"decouple needs a torch.nn.Module, got {type(model).__name__}")
    if (cuts is None) == (stages is None):
        raise ConfigError("decouple needs either cuts=[names] or stages=N, not both and not neither")
    if stages is not None:
        stages = check_whole("stages", stages, 1)
    if cuts is not None:
        if isinstance(cuts, str) or not isinstance(cuts, Sequence):
            raise ConfigError(f"cuts must be a list of names, got {cuts!r}; write cuts=['{cuts}']")
        cuts = list(cuts)
        check_names(model, cuts)
    return DecoupledNetwork(model, cuts, stages)


def module_key(cut: str) -> str:
    """A cut's name as a key of `estimators`: modules' keys have no dots and are not the names of a dict's methods."""
    key = cut.replace(".", "/")
    return f"cut/{key}" if hasattr(nn.ModuleDict, key) else key


def seconds(interface: Interface, message: Any, context: Any, repeats: int = 3) -> float:
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


def trace_shapes(segments: Sequence[nn.Module], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], Any]:
    """The message at every cut and the output, as tensors without data.

    A model that cannot run on fake tensors (it looks at values) is run for real, in evaluation mode. Either way
    generators, buffers and plain attributes are afterwards what they were, so that a cache filled on the way is filled
    again, with numbers, by the first minibatch. Hooks of the model do run, as its output may depend on them: they see
    tensors without data, and what they do outside the model stays done.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    try:
        with preserve_state(*segments):
            try:
                with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.enable_grad():
                    fake_args, fake_kwargs = map_tensors(mode.from_tensor, (args, kwargs))
                    return chain(segments, fake_args, fake_kwargs)
            except Exception:  # whatever fake tensors cannot do; what is wrong with the model itself raises again there
                return _run_for_shapes(segments, args, kwargs)
    finally:
        torch.clear_autocast_cache()  # of casts made from tensors without data


def _run_for_shapes(segments: Sequence[nn.Module], args: Any, kwargs: Any) -> tuple[list[Any], Any]:
    modes = [(module, module.training) for segment in segments for module in segment.modules()]
    try:
        for segment in segments:
            segment.eval()
        return chain(segments, args, kwargs)
    except SyngradError:
        raise
    except Exception as error:
        raise TrainingError(f"the model raised on the first batch: {first_line(error)}") from error
    finally:
        for module, training in modes:
            module.training = training


def chain(segments: Sequence[nn.Module], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], Any]:
    """Run the segments one after the other: what crosses every cut, and the output."""
    messages: list[Any] = []
    out = segments[0](*args, **kwargs)
    for segment in segments[1:]:
        messages.append(out)
        out = segment(out)
    return messages, out


def describe(output: Any, target: Any, batch: int) -> tuple[Context, torch.Size | None]:
    """What the targets are to an estimator, and the shape of one sample's output where that is a single tensor.

    Integer targets are class labels (or token labels); their number of classes is the output's last dimension, or its
    second where the output is (n, classes, …) as cross-entropy has it. Where the model returns several tensors, the
    first that fits the labels tells. Integers for an output of one number a sample are amounts, and no labels.
    """
    single = output.shape[1:] if isinstance(output, Tensor) and output.shape[:1] == (batch,) else None
    if not isinstance(target, Tensor):
        return Context("other" if target is not None else "none"), single
    if target.is_floating_point() or target.is_complex():
        return Context("vector", target[0].numel() if target.dim() else 1), single
    kind = "labels" if target.dim() == 1 else "tokens"
    for scores in tensors(output) if target.dim() else []:
        classes = 0
        if scores.shape[:-1] == target.shape:
            classes = scores.shape[-1]
        elif scores.dim() == target.dim() + 1 and scores.shape[2:] == target.shape[1:]:
            classes = scores.shape[1]
        if classes > 1:
            return Context(kind, classes), single
        if classes == 1 or scores.shape == target.shape:
            return Context("vector", target[0].numel()), single
    return Context("other"), single
