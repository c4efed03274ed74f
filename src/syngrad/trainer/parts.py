"""What belongs to the stages of one process, taken out of a Trainer and put into another one.

The same form goes both ways: process 0 hands every process its part when a run begins or goes on, and takes them all
back where the whole is wanted: for a checkpoint, and at the end. So a checkpoint is the same however many processes
have made it, and any number of them goes on from it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from syngrad.core.pending import Pending, Staleness
from syngrad.methods.delayed import Line
from syngrad.methods.unlocked import Target
from syngrad.runtime.runner import Sequential
from syngrad.tree import map_tensors

if TYPE_CHECKING:
    from syngrad.trainer.trainer import Trainer

Span = tuple[int, int]


def take(trainer: Trainer, span: Span) -> dict[str, Any]:
    """Everything that training moves in the stages `span` = (first, last + 1): tensors, not copied, and plain data."""
    execution = running(trainer)
    lo, hi = span
    whole, record = execution.state_dict(), execution.record
    names = [f"{stage.name}{kind}" for stage in trainer.stages[lo:hi] for kind in ("", " (estimator)")]
    guard = trainer.guard.state_dict() if trainer.guard is not None else {}
    return {
        "span": [lo, hi],
        "weights": [
            {name: tensor.detach() for name, tensor in _tensors(stage.segment)} for stage in trainer.stages[lo:hi]
        ],
        "estimators": [
            dict(stage.interface.state_dict()) if stage.interface is not None else {} for stage in trainer.stages[lo:hi]
        ],
        "moments": [_moments(trainer, parameter) for parameter in parameters(trainer, span)],
        "options": options(trainer),
        "schedulers": [scheduler.state_dict() for scheduler in trainer.schedulers],
        "randomness": [stage.randomness.save() for stage in trainer.stages[lo:hi]],
        "execution": {name: whole[name] for name in ("count", "next_sample", "generator", "precision")},
        "inputs": [dict(s.predictor.state_dict()) if s.predictor is not None else {} for s in trainer.stages[lo:hi]],
        "pending": whole["pending"][lo:hi],
        "targets": whole["targets"][lo:hi],
        "clock": whole["delayed"]["clock"] if whole["delayed"] is not None else 0,
        "lines": whole["delayed"]["lines"][lo:hi] if whole["delayed"] is not None else [],
        "staleness": [vars(each) for each in execution.staleness[lo:hi]],
        "record": [[i, list(record.applied[i].items())] for i in recorded(trainer, span)] if record is not None else [],
        "guard": {key: {n: kept[n] for n in names if n in kept} for key, kept in guard.items()},
        "quality": [quality.state_dict() for quality in trainer.quality[lo:hi]],
        "extras": extras(trainer, span),
        "loss": dict(trainer.loss.state_dict()) if isinstance(trainer.loss, nn.Module) and atop(trainer, span) else {},
    }


def put(trainer: Trainer, part: dict[str, Any]) -> None:
    """Put a part in its place; all else in the Trainer stays as it is."""
    execution = running(trainer)
    lo, hi = (int(each) for each in part["span"])
    with torch.no_grad():
        for saved in part["weights"]:
            for name, value in saved.items():
                _copy(trainer.model, name, value)
    for stage, saved in zip(trainer.stages[lo:hi], part["estimators"], strict=True):
        if stage.interface is not None:
            stage.interface.load_state_dict(saved)
    for stage, saved in zip(trainer.stages[lo:hi], part["inputs"], strict=True):
        if stage.predictor is not None:
            stage.predictor.load_state_dict(saved)
    for (optimizer, parameter), moments in zip(parameters(trainer, (lo, hi)), part["moments"], strict=True):
        if moments:
            beside = _counts_beside(optimizer, parameter)
            optimizer.state[parameter] = {n: _placed(value, parameter, beside) for n, value in moments.items()}
        else:
            optimizer.state.pop(parameter, None)
    for stage, saved in zip(trainer.stages[lo:hi], part["randomness"], strict=True):
        stage.randomness.load(saved)
    for index, queue in enumerate(part["pending"], lo):
        execution.pending[index] = deque(Pending(**map_tensors(lambda t: _here(t, trainer), p)) for p in queue)
    for index, queue in enumerate(part["targets"], lo):
        execution.targets[index] = deque(Target(**map_tensors(lambda t: _here(t, trainer), each)) for each in queue)
    if execution.delayed is not None and part["lines"]:
        lines: list[Any] = [{"flights": [], "coming": []} for _ in trainer.stages]
        lines[lo:hi] = map_tensors(lambda t: _here(t, trainer), part["lines"])
        kept, execution.delayed.lines = execution.delayed.lines, [Line() for _ in trainer.stages]
        execution.delayed.load_state_dict({"clock": part["clock"], "lines": lines})
        execution.delayed.lines = [*kept[:lo], *execution.delayed.lines[lo:hi], *kept[hi:]]
    execution.staleness[lo:hi] = [Staleness(**each) for each in part["staleness"]]
    if execution.record is not None:
        for index, each in part["record"]:
            execution.record.applied[int(index)] = {int(a): int(b) for a, b in each}
    if trainer.guard is not None:
        for key, kept in part["guard"].items():
            getattr(trainer.guard, key).update(kept)
    for quality, saved in zip(trainer.quality[lo:hi], part["quality"], strict=True):
        quality.load_state_dict(saved)
    for name, value in part["extras"].items():
        trainer.model.get_submodule(name).set_extra_state(value)
    if isinstance(trainer.loss, nn.Module) and atop(trainer, (lo, hi)):
        trainer.loss.load_state_dict(part["loss"])


def put_common(trainer: Trainer, part: dict[str, Any]) -> None:
    """What is the same in every process: counters, schedules and their rates."""
    execution = running(trainer)
    common = part["execution"]
    execution.count, execution._next_sample = int(common["count"]), int(common["next_sample"])
    execution.generator.set_state(common["generator"].cpu())
    execution.precision.load_state_dict(common["precision"])
    for scheduler, saved in zip(trainer.schedulers, part["schedulers"], strict=True):
        scheduler.load_state_dict(saved)
    put_options(trainer, part["options"])


def options(trainer: Trainer) -> dict[str, Any]:
    """The groups' options as they stand, and which weights are trained: a callback may change both."""
    return {
        "groups": [[_options(group) for group in optimizer.param_groups] for optimizer in trainer.optimizers],
        "trained": [p.requires_grad for p in trainer.model.parameters()],
    }


def put_options(trainer: Trainer, given: dict[str, Any]) -> None:
    """Take them over."""
    for optimizer, groups in zip(trainer.optimizers, given["groups"], strict=True):
        for group, own in zip(optimizer.param_groups, groups, strict=True):
            group.update(own)
    for parameter, trained in zip(trainer.model.parameters(), given["trained"], strict=True):
        parameter.requires_grad_(trained)


def release(trainer: Trainer, span: Span) -> None:
    """Forget what a process keeps of stages that others run: moments, and minibatches on their way."""
    execution = running(trainer)
    lo, hi = span
    for others in ((0, lo), (hi, len(trainer.stages))):
        for optimizer, parameter in parameters(trainer, others):
            optimizer.state.pop(parameter, None)
        for index in range(*others):
            execution.targets[index] = deque()
            if index < len(execution.pending):
                execution.pending[index] = deque()
            if execution.delayed is not None:
                execution.delayed.lines[index] = Line()


def extras(trainer: Trainer, span: Span) -> dict[str, Any]:
    """The extra state of those modules of these stages that have one, by the modules' names."""
    inside = {id(module) for stage in trainer.stages[span[0] : span[1]] for module in stage.segment.modules()}
    return {
        name: module.get_extra_state()
        for name, module in trainer.model.named_modules()
        if id(module) in inside and type(module).get_extra_state is not nn.Module.get_extra_state
    }


def atop(trainer: Trainer, span: Span) -> bool:
    """Whether the last stage is among them, and with it the loss."""
    return span[1] == len(trainer.stages)


def recorded(trainer: Trainer, span: Span) -> list[int]:
    """Where a process's interfaces stand in a record, and after all interfaces the inputs of its stages."""
    lo, hi, cuts = *span, len(trainer.stages) - 1
    inputs = range(cuts + max(lo, 1) - 1, cuts + hi - 1) if trainer.inputs is not None else ()
    return [*range(lo, min(hi, cuts)), *inputs]


def running(trainer: Trainer) -> Sequential:
    """The execution, once it is bound."""
    assert trainer.execution is not None
    return trainer.execution


def parameters(trainer: Trainer, span: Span) -> Iterator[tuple[torch.optim.Optimizer, nn.Parameter]]:
    """Every parameter that an optimiser holds of these stages and their estimators, in a fixed order, with it."""
    owner = {p: o for o in trainer.optimizers for group in o.param_groups for p in group["params"]}
    for stage in trainer.stages[span[0] : span[1]]:
        for parameter in (*stage.parameters, *stage.estimator_parameters):
            if parameter in owner:
                yield owner[parameter], parameter


def _moments(trainer: Trainer, held: tuple[torch.optim.Optimizer, nn.Parameter]) -> dict[str, Any]:
    optimizer, parameter = held
    return dict(optimizer.state.get(parameter, {}))


def _options(group: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}


def _tensors(segment: Any) -> Iterator[tuple[str, Tensor]]:
    for name in (*segment.parameter_names, *segment.buffer_names):
        yield name, segment.tensor(name)


def _copy(model: nn.Module, name: str, value: Tensor) -> None:
    path, _, attribute = name.rpartition(".")
    owner = model.get_submodule(path)
    now = getattr(owner, attribute)
    if now.shape == value.shape:
        now.copy_(value)
    else:  # a buffer that grows, or is made on first use
        owner.register_buffer(attribute, value.to(now.device), persistent=name in model.state_dict())


def _counts_beside(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> bool:
    """Whether the optimiser keeps its count of steps on the parameter's device."""
    group = next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))
    return bool(group.get("fused") or group.get("capturable"))


def _placed(value: Any, parameter: nn.Parameter, beside: bool) -> Any:
    """A copy of a moment, on its parameter's device and laid out as it, as a fused optimiser needs it."""
    if not isinstance(value, Tensor):
        return value
    if value.shape == parameter.shape and value.dim():
        return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    device = parameter.device if beside or value.dim() else torch.device("cpu")
    return value.to(device, copy=True)


def _here(value: Tensor, trainer: Trainer) -> Tensor:
    first = next(trainer.model.parameters(), value)
    return value.to(first.device)
