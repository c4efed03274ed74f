"""`decouple`: a model, cut into stages, with an interface on every cut. The model stays the user's own object."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from syngrad.errors import ConfigError, SyngradError, TrainingError, first_line
from syngrad.estimators.base import Binding, Context
from syngrad.estimators.registry import EstimatorSpec
from syngrad.interface import Interface
from syngrad.partition import Segment, check_names, split
from syngrad.tree import batch_size, differentiable, map_tensors, positions


class DecoupledNetwork:
    """A model, where it is to be cut, and, once bound to a batch, its stages and interfaces.

    model: the user's own object; it is trained in place and its state dict keeps its keys. estimators: one
    :class:`Interface` a cut, by the cut's name; they are no part of the model.
    """

    def __init__(self, model: nn.Module, cuts: Sequence[str] | None, stages: int | None) -> None:
        self.model, self.requested_cuts, self.requested_stages = model, cuts, stages
        self.segments: list[Segment] = []
        self.interfaces: list[Interface] = []
        self.estimators = nn.ModuleDict()

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
    ) -> None:
        """Cut the model (once), and make every interface anew from one fake run: shapes are computed, nothing is."""

        def interface(name: str, message: Any, context: Context, output: torch.Size | None) -> Interface:
            made = Interface(estimator, loss=loss, name=name)
            leaves = differentiable(message)
            bindings = [Binding(h.shape[1:], h.dtype, h.device, context, output, loss, count) for h in leaves]
            made.bind_leaves(bindings, positions(message))
            return made

        if not self.segments:
            described: list[tuple[Context, torch.Size | None]] = []

            def cost(message: Any) -> float:
                if not described:
                    _, whole = trace_shapes([self.model], args, kwargs)
                    described.append(describe(whole, target))
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
        context, single = describe(output, target)
        self.interfaces = [interface(n, m, context, single) for n, m in zip(self.cuts, messages, strict=True)]
        self.estimators = nn.ModuleDict(
            {name.replace(".", "/"): made for name, made in zip(self.cuts, self.interfaces, strict=True)}
        )

    def __repr__(self) -> str:
        where = (
            self.cuts or self.requested_cuts or f"{self.requested_stages} stages, balanced when the first batch comes"
        )
        return f"DecoupledNetwork({type(self.model).__name__}, cuts={where})"


def decouple(model: nn.Module, cuts: Sequence[str] | None = None, *, stages: int | None = None) -> DecoupledNetwork:
    """Cut `model` into stages, each of which will update by an estimate of the gradient that is still on its way.

    cuts: qualified names of modules (as in `model.named_modules()`); each starts a new stage. stages: or their number,
    balanced by measured cost, estimators included, when the first batch is seen. Works for `nn.Sequential`, nested
    modules, and models whose own `forward` chains blocks; the model object itself is trained in place.

    Raises CutError or ConfigError, in one line, for a name that is not there, a cut that cannot be made, parameters
    shared across a cut, or a number of stages that the model has no room for. What needs an example batch to be found
    out is raised when the first one comes.
    """
    if not isinstance(model, nn.Module):
        raise ConfigError(f"decouple needs a torch.nn.Module, got {type(model).__name__}")
    if (cuts is None) == (stages is None):
        raise ConfigError("decouple needs either cuts=[names] or stages=N, not both and not neither")
    if stages is not None and (isinstance(stages, bool) or not isinstance(stages, int) or stages < 1):
        raise ConfigError(f"stages must be a whole number of at least 1, got {stages!r}")
    if cuts is not None:
        if isinstance(cuts, str):
            raise ConfigError(f"cuts must be a list of names, got the string {cuts!r}; write cuts=[{cuts!r}]")
        cuts = list(cuts)
        check_names(model, cuts)
    return DecoupledNetwork(model, cuts, stages)


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
    """The message at every cut and the output, as tensors without data; nothing of the model or its buffers moves.

    A model that cannot run on fake tensors (it looks at values) is run for real, in evaluation mode.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode

    randomness = torch.default_generator.get_state()
    # batch norm counts the minibatches it has seen even in a run without data
    buffers = [(buffer, buffer.detach().clone()) for segment in segments for buffer in segment.buffers()]
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) as mode, torch.enable_grad():
            fake_args, fake_kwargs = map_tensors(mode.from_tensor, (args, kwargs))
            return chain(segments, fake_args, fake_kwargs)
    except Exception:
        return _run_for_shapes(segments, args, kwargs)
    finally:
        torch.default_generator.set_state(randomness)
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


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


def describe(output: Any, target: Any) -> tuple[Context, torch.Size | None]:
    """What the targets are to an estimator, and the shape of one sample's output where that is a single tensor.

    Integer targets are class labels (or token labels); their number of classes is the output's last dimension, or its
    second where the output is (n, classes, …) as cross-entropy has it.
    """
    single = output.shape[1:] if isinstance(output, Tensor) and output.dim() > 0 else None
    if not isinstance(target, Tensor):
        return Context("other" if target is not None else "none"), single
    if target.is_floating_point() or target.is_complex():
        return Context("vector", target[0].numel() if target.dim() else 1), single
    if not isinstance(output, Tensor) or target.dim() == 0:
        return Context("other"), single
    kind = "labels" if target.dim() == 1 else "tokens"
    if output.shape[:-1] == target.shape:
        return Context(kind, output.shape[-1]), single
    if output.dim() == target.dim() + 1 and output.shape[2:] == target.shape[1:]:
        return Context(kind, output.shape[1]), single
    return Context("other"), single
