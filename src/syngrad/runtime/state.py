"""Everything that a run changes, stage by stage: the one serialisation of a run.

A leader hands every worker its stages in this form when a run begins or goes on, takes them all back in it where the
whole is wanted, and writes it into checkpoints. So a checkpoint is the same however many workers have made it, and any
number of them goes on from it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from syngrad.core.message import AwaitedInput, InFlight, Staleness, StashedFlight
from syngrad.core.sharing import SharedParameter
from syngrad.core.stage import Stage, undisturbed
from syngrad.errors import MessageError
from syngrad.methods.actor import Actor
from syngrad.methods.late import restored
from syngrad.runtime.part_checks import FLIGHT, Held, check_options, check_part, check_tensors
from syngrad.runtime.runner import Runner
from syngrad.tree import map_tensors

Span = tuple[int, int]


def take(runner: Runner, span: Span, *, whole: bool = False) -> dict[str, Any]:
    """What training moves in some stages, as tensors that are not copied and plain data.

    Args:
        span: (first, last + 1) of the stages.
        whole: for a checkpoint, where PyTorch's own state dicts of the model and the optimisers stand beside it: then
            weights and moments are left out.
    """
    lo, hi = span
    actors, stages = runner.actors[lo:hi], runner.stages[lo:hi]
    guard = runner.updates.guard
    names = guarded_names(stages)
    kept = guard.state_dict() if guard is not None else {}
    return {
        "span": [lo, hi],
        "weights": [] if whole else [{n: t.detach() for n, t in _tensors(stage.segment)} for stage in stages],
        "moments": [] if whole else [dict(o.state.get(p, {})) for o, p in parameters(runner, span)],
        "estimators": [dict(s.interface.state_dict()) if s.interface is not None else {} for s in stages],
        "inputs": [dict(s.predictor.state_dict()) if s.predictor is not None else {} for s in stages],
        "randomness": [stage.randomness.save() for stage in stages],
        "waiting": [[flight.waiting_state() for flight in actor.waiting] for actor in actors],
        "awaited": [[vars(each) for each in actor.awaited] for actor in actors],
        "clock": runner.clock,
        "flights": [[_flight(flight) for flight in actor.flights] for actor in actors],
        "due": [
            [[flight.step, flight.due, flight.received, list(flight.shared)] for flight in actor.due]
            for actor in actors
        ],
        "staleness": [vars(actor.staleness) for actor in actors],
        "record": [[i, list(runner.record.applied[i].items())] for i in recorded(runner, span)]
        if runner.record is not None
        else [],
        "guard": {key: {n: values[n] for n in names if n in values} for key, values in kept.items()},
        "quality": [quality.state_dict() for quality in runner.quality[lo:hi]],
        "extras": {} if whole else extras(runner, span),
        "loss": _loss_state(runner) if hi == len(runner.stages) else {},
        "copies": [each for each in runner.copies if lo <= each["span"][0] and each["span"][1] <= hi],
        **take_common(runner),
    }  # fmt: skip


def take_common(runner: Runner) -> dict[str, Any]:
    """What is alike in every worker: counters, the optimisers' options as they stand, schedules."""
    return {
        "count": runner.count,
        "next_sample": runner.next_sample,
        "next_probe": runner.probe.next if runner.probe is not None else 0,
        "generator": runner.generator.get_state(),
        "precision": runner.precision.state_dict(),
        "options": options(runner),
        "schedulers": [scheduler.state_dict() for scheduler in runner.updates.schedulers],
    }


def check(runner: Runner, part: dict[str, Any]) -> None:
    """Refuse a part that does not fit, by a ValueError that says what; nothing is moved."""
    check_part(runner, part, held(runner, part["span"]))


def put(runner: Runner, part: dict[str, Any], *, borrowed: bool = True) -> None:
    """Put stages' state in its place; everything else in the runner stays as it is.

    Args:
        runner: that it is for.
        part: as :func:`take` makes it.
        borrowed: whether weights that these stages use and an earlier one owns are put in their place too.

    Raises:
        MessageError: for a part that does not fit; nothing has been moved then.
    """
    try:
        check(runner, part)
    except (ValueError, KeyError, TypeError) as error:
        raise _foreign(error) from error
    lo, hi = (int(each) for each in part["span"])
    actors, stages = runner.actors[lo:hi], runner.stages[lo:hi]
    model = runner.net.model
    elsewhere = set() if borrowed else {s.name for s in runner.shared if s.users[0] < lo}
    with torch.no_grad():
        for saved in part["weights"]:
            for name, value in saved.items():
                if name not in elsewhere:
                    _copy(model, name, value)
    for stage, estimators, predictor, randomness in zip(
        stages, part["estimators"], part["inputs"], part["randomness"], strict=True
    ):
        if stage.interface is not None:
            stage.interface.load_state_dict(estimators)
        if stage.predictor is not None:
            stage.predictor.load_state_dict(predictor)
        stage.randomness.load(randomness)
    for (optimizer, parameter), moments in zip(parameters(runner, (lo, hi)), part["moments"], strict=False):
        _put_moments(optimizer, parameter, moments)
    for index, actor in enumerate(actors):
        waiting, awaited = _here(part["waiting"][index], runner), _here(part["awaited"][index], runner)
        actor.waiting = deque(InFlight(**each) for each in waiting)
        actor.awaited = deque(AwaitedInput(**each) for each in awaited)
        actor.staleness = Staleness(**part["staleness"][index])
    _put_flights(runner, actors, part)
    others = [each for each in runner.copies if not lo <= each["span"][0] < hi]
    runner.copies = sorted([*others, *part.get("copies", ())], key=lambda each: list(each["span"]))
    if runner.record is not None:
        for index, each in part["record"]:
            runner.record.applied[int(index)] = {int(a): int(b) for a, b in each}
    if runner.updates.guard is not None:
        for key, kept in part["guard"].items():
            own = getattr(runner.updates.guard, key)
            for name in guarded_names(stages):  # what the part does not count is not counted any more
                own.pop(name, None)
            own.update(kept)
    for quality, saved in zip(runner.quality[lo:hi], part["quality"], strict=True):
        quality.load_state_dict(saved)
    for name, value in part["extras"].items():
        model.get_submodule(name).set_extra_state(value)
    if isinstance(runner.loss, nn.Module) and hi == len(runner.stages):
        runner.loss.load_state_dict(part["loss"])


def put_common(runner: Runner, part: dict[str, Any], *, trained: bool = True) -> None:
    """Take over what is alike in every worker; `trained`: which weights are trained, too."""
    runner.count, runner.next_sample = int(part["count"]), int(part["next_sample"])
    if runner.probe is not None:
        runner.probe.next = int(part["next_probe"])
    runner.generator.set_state(part["generator"].cpu())
    runner.precision.load_state_dict(part["precision"])
    for scheduler, saved in zip(runner.updates.schedulers, part["schedulers"], strict=True):
        scheduler.load_state_dict(saved)
    for optimizer in runner.updates.optimizers if runner.count else ():
        vars(optimizer)["_opt_called"] = True  # in the process before this one: PyTorch's schedulers warn otherwise
    put_options(runner, part["options"], trained=trained)


def options(runner: Runner) -> dict[str, Any]:
    """The groups' options as they stand, and which weights are trained: a callback may change both."""
    return {
        "groups": [
            [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
            for optimizer in runner.updates.optimizers
        ],
        "trained": [p.requires_grad for p in runner.net.model.parameters()],
    }


def put_options(runner: Runner, given: dict[str, Any], *, trained: bool = True) -> None:
    """Take them over; `trained`: which weights are trained, too."""
    try:
        check_options(runner, given)
    except (ValueError, KeyError, TypeError) as error:
        raise _foreign(error) from error
    for optimizer, groups in zip(runner.updates.optimizers, given["groups"], strict=True):
        for group, own in zip(optimizer.param_groups, groups, strict=True):
            group.update(own)
    for parameter, moves in zip(runner.net.model.parameters(), given["trained"], strict=True):
        if trained:
            parameter.requires_grad_(moves)


def take_copies(runner: Runner, span: Span, values: dict[str, Tensor], pending: list[Any]) -> dict[str, Any]:
    """A worker's copies of what it shares with others, with the moments of those that another worker owns.

    Args:
        runner: its.
        span: its stages.
        values: by name.
        pending: what is still to be added to them.
    """
    moments = {each.name: dict(optimizer.state.get(each.parameter, {})) for each, optimizer in _copies(runner, span)}
    return {"span": list(span), "values": values, "moments": moments, "pending": pending}


def put_copies(runner: Runner, span: Span, moments: dict[str, Any]) -> None:
    """Put the moments of copies of what another worker owns in their place; those that are not given begin anew."""
    for each, optimizer in _copies(runner, span):
        _put_moments(optimizer, each.parameter, moments.get(each.name))


def _copies(runner: Runner, span: Span) -> Iterator[tuple[SharedParameter, torch.optim.Optimizer]]:
    held = {p: o for o in runner.updates.optimizers for group in o.param_groups for p in group["params"]}
    copies = {p for stage in runner.stages[slice(*span)] for p in stage.copies}
    return ((each, held[each.parameter]) for each in runner.shared if each.parameter in copies.intersection(held))


def release(runner: Runner, span: Span) -> None:
    """Forget what this worker keeps of stages that others run: moments, and minibatches on their way."""
    lo, hi = span
    for others in ((0, lo), (hi, len(runner.stages))):
        for optimizer, parameter in parameters(runner, others):
            optimizer.state.pop(parameter, None)
        for actor in runner.actors[slice(*others)]:
            for queue in (actor.waiting, actor.awaited, actor.flights, actor.due):
                queue.clear()


def abandon(runner: Runner) -> None:
    """Forget what is on its way to other workers and back: one of them is lost, and its answers with it."""
    for actor in runner.actors:
        actor.flights.clear()
        actor.due.clear()
    runner.losses, runner.broken_off = [], False


def extras(runner: Runner, span: Span) -> dict[str, Any]:
    """The extra state of those modules of these stages that have one, by the modules' names."""
    inside = {id(module) for stage in runner.stages[slice(*span)] for module in stage.segment.modules()}
    return {
        name: module.get_extra_state()
        for name, module in runner.net.model.named_modules()
        if id(module) in inside and type(module).get_extra_state is not nn.Module.get_extra_state
    }


def guarded_names(stages: list[Stage]) -> list[str]:
    """What the guard counts of these stages: their updates, and their estimators'."""
    return [f"{stage.name}{kind}" for stage in stages for kind in ("", " (estimator)")]


def recorded(runner: Runner, span: Span) -> list[int]:
    """Where a worker's interfaces stand in a record, and after all interfaces the inputs of its stages."""
    lo, hi, cuts = *span, len(runner.stages) - 1
    inputs = range(cuts + max(lo, 1) - 1, cuts + hi - 1) if runner.unlocked else ()
    return [*range(lo, min(hi, cuts)), *inputs]


def parameters(runner: Runner, span: Span) -> Iterator[tuple[torch.optim.Optimizer, nn.Parameter]]:
    """Every parameter that an optimiser holds of these stages and their estimators, in a fixed order, with it.

    What these are copies of stands with the stage that owns it.
    """
    owner = {p: o for o in runner.updates.optimizers for group in o.param_groups for p in group["params"]}
    for stage in runner.stages[slice(*span)]:
        copies = set(stage.copies)
        for parameter in (*stage.parameters, *stage.estimator_parameters):
            if parameter in owner and parameter not in copies:
                yield owner[parameter], parameter


def held(runner: Runner, span: Span) -> list[Held]:
    """These parameters, each with its optimiser, the options it has there, and its name."""
    groups = {p: group for o in runner.updates.optimizers for group in o.param_groups for p in group["params"]}
    names = {p: name for name, p in runner.net.estimators.named_parameters()}
    names |= {p: name for name, p in runner.net.model.named_parameters()}
    return [(o, groups[p], p, names.get(p, "an input's predictor")) for o, p in parameters(runner, span)]


def put_model(model: nn.Module, tensors: dict[str, Any], buffers: dict[str, Tensor]) -> None:
    """Put a whole trained model in its place.

    Raises:
        MessageError: for tensors of another model; nothing has been moved then.
    """
    try:
        check_tensors(model.state_dict(), tensors, "the model")
    except ValueError as error:
        raise _foreign(error) from error
    model.load_state_dict(tensors)
    put_transient(model, buffers)


def _foreign(error: Exception) -> MessageError:
    return MessageError(
        f"what another worker has handed over does not fit here: {error}; run one script, one version and one set of "
        "options everywhere"
    )


def transient(model: nn.Module) -> dict[str, Tensor]:
    """The buffers that are no part of the model's state dict, and belong to a run all the same."""
    persistent = model.state_dict()
    return {name: buffer for name, buffer in model.named_buffers() if name not in persistent}


def put_transient(model: nn.Module, buffers: dict[str, Tensor]) -> None:
    """Put them back; one of another shape, or that is made on first use, takes the saved one's place."""
    for name, saved in buffers.items():
        path, _, attribute = name.rpartition(".")
        owner = model.get_submodule(path)
        now = owner._buffers.get(attribute)
        if now is not None and now.shape == saved.shape:
            now.copy_(saved)
        else:
            first = next(model.parameters(), saved)
            owner.register_buffer(attribute, saved.to(first.device), persistent=False)


def _loss_state(runner: Runner) -> dict[str, Any]:
    """Of a loss that is a module; it belongs to the last stage."""
    return dict(runner.loss.state_dict()) if isinstance(runner.loss, nn.Module) else {}


def _flight(flight: StashedFlight) -> dict[str, Any]:
    return {**{name: getattr(flight, name) for name in FLIGHT}, "args": list(flight.args)}


def _put_flights(runner: Runner, actors: list[Actor], part: dict[str, Any]) -> None:
    """Send the minibatches in flight forward again, as they went; generators and buffers stay where they are."""
    flights, due = _here(part["flights"], runner), _here(part["due"], runner)
    for actor in actors:
        actor.flights, actor.due = deque(), deque()
        if actor.next is not None:  # of a run that was broken off
            actor.next.arrived.clear()
    # copying everything that a forward might disturb is worth it only where something goes forward again
    with undisturbed(runner.stages) if any(flights) else nullcontext(), torch.enable_grad(), runner.autocast():
        for actor, saved, came in zip(actors, flights, due, strict=True):
            actor.flights = deque(restored(actor, each) for each in saved)
            by_step = {flight.step: flight for flight in actor.flights}
            actor.due = deque()
            for step, turn, received, *shared in came:  # the last is not in checkpoints of before
                flight = by_step[int(step)]
                flight.due, flight.received = int(turn), list(received)
                flight.shared = list(shared[0]) if shared else ()
                actor.due.append(flight)
    runner.clock, runner.broken_off = int(part["clock"]), False
    runner.expect()


def _tensors(segment: Any) -> Iterator[tuple[str, Tensor]]:
    for name in (*segment.parameter_names, *segment.buffer_names):
        yield name, segment.tensor(name)


def _copy(model: nn.Module, name: str, value: Tensor) -> None:
    path, _, attribute = name.rpartition(".")
    owner = model.get_submodule(path)
    now = getattr(owner, attribute)
    if now.shape == value.shape:
        # a mask, say, that several stages use: minibatches in flight may go back through it if nobody writes into it
        kept = not isinstance(now, nn.Parameter) and now.dtype == value.dtype and torch.equal(now, value.to(now.device))
        if not kept:
            now.copy_(value)
    else:  # a buffer that grows, or is made on first use
        owner.register_buffer(attribute, value.to(now.device), persistent=name in model.state_dict())


def _put_moments(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, moments: dict[str, Any] | None) -> None:
    if not moments:
        optimizer.state.pop(parameter, None)
        return
    beside = _counts_beside(optimizer, parameter)
    optimizer.state[parameter] = {n: _placed(value, parameter, beside) for n, value in moments.items()}


def _counts_beside(optimizer: torch.optim.Optimizer, parameter: nn.Parameter) -> bool:
    """Whether the optimiser keeps its count of steps on the parameter's device."""
    group = next(g for g in optimizer.param_groups if any(p is parameter for p in g["params"]))
    return bool(group.get("fused") or group.get("capturable"))


def _placed(value: Any, parameter: nn.Parameter, beside: bool) -> Any:
    """A copy of a moment, on its parameter's device and laid out as it, as a fused optimiser needs it."""
    if not isinstance(value, Tensor):
        return value
    if value.layout == torch.strided and value.shape == parameter.shape and value.dim():
        return torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    device = parameter.device if beside or value.dim() else torch.device("cpu")
    return value.to(device, copy=True)


def _here(tree: Any, runner: Runner) -> Any:
    """The structure with its tensors where the model is."""
    first = next(runner.net.model.parameters(), None)
    return tree if first is None else map_tensors(lambda t: t.to(first.device), tree)
