"""Whether a part of a run, out of a file or from another worker, fits the stages that it is for: before it is used.

Every tensor is held against the shape, the dtype and the name of what it is to become, and all plain data is read once.
So what does not fit is told in one line, and nothing has been moved yet.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from syngrad.core.batch import EXAMPLE
from syngrad.core.interface import Interface
from syngrad.core.message import AwaitedInput, InFlight, Staleness
from syngrad.errors import SyngradError, first_line
from syngrad.methods.actor import Actor
from syngrad.runtime.quality import Sample, TrueSample
from syngrad.runtime.runner import Runner
from syngrad.tree import leaves_at, map_tensors, tensors

#: of what a guard counts
_GUARDED = ("counts", "references", "updates")
#: what is kept of a minibatch that is in flight
FLIGHT = (
    "step",
    "args",
    "kwargs",
    "randomness",
    "stash",
    "updates",
    "context",
    "scale",
    "estimates",
    "sampled",
    "at_once",
)
_WAITING = InFlight(0).waiting_state().keys()
_COPIES = {"span", "values", "moments", "pending"}
_AWAITED = {each.name for each in fields(AwaitedInput)}

#: where minibatches are in flight
_QUEUES = ("waiting", "awaited", "flights", "due")

#: (an optimiser, its options for the parameter, the parameter, its name)
Held = tuple[torch.optim.Optimizer, Mapping[str, Any], nn.Parameter, str]


def check_part(runner: Runner, part: Mapping[str, Any], held: Sequence[Held]) -> None:
    """Refuse a part that is not of these stages, before any of it is put in its place.

    Args:
        runner: that it is for.
        part: as :func:`syngrad.runtime.state.take` makes it.
        held: of every parameter of its stages that an optimiser holds.

    Raises:
        ValueError: naming the first thing that does not fit.
    """
    try:
        lo, hi = (_whole(each, "span") for each in part["span"])
        if not 0 <= lo < hi <= len(runner.stages):
            raise ValueError(f"it is of stages {lo} to {hi}, and there are {len(runner.stages)}")
        actors = runner.actors[lo:hi]
        _weights(actors, part["weights"], runner.net.model)
        if part["moments"]:
            for (optimizer, group, parameter, name), moments in zip(held, part["moments"], strict=True):
                runner.updates.moments.check(optimizer, group, parameter, name, moments)
        _modules(actors, part)
        for name in (*_QUEUES, "randomness", "staleness"):
            if len(part[name]) != len(actors):
                raise ValueError(f"{name!r} is of {len(part[name])} stages, and there are {len(actors)}")
        for index, actor in enumerate(actors):
            _randomness(part["randomness"][index], actor.stage.randomness.save())
            _in_flight(runner, actor, {name: part[name][index] for name in _QUEUES})
            Staleness(**part["staleness"][index])
        _plain(runner, part, lo, hi)
        _copies(runner, part.get("copies", ()))
        if isinstance(runner.loss, nn.Module) and hi == len(runner.stages):
            check_tensors(runner.loss.state_dict(), part["loss"], "the loss")
        _common(runner, part)
    except (KeyError, TypeError, IndexError, AttributeError, RuntimeError, OverflowError, SyngradError) as error:
        raise ValueError(str(error) if isinstance(error, SyngradError) else first_line(error)) from error


def check_tensors(own: Mapping[str, Any], given: Mapping[str, Any], what: str) -> None:
    """Refuse tensors under other names than one's own, of another shape or another dtype.

    Raises:
        ValueError: naming the first.
    """
    mine = {name: value for name, value in own.items() if isinstance(value, Tensor)}
    theirs = {name: value for name, value in given.items() if isinstance(value, Tensor)}
    for name in sorted(mine.keys() ^ theirs.keys()):
        raise ValueError(f"{what} has {'no' if name in mine else 'a tensor too many,'} {name!r:.60}")
    for name, value in theirs.items():
        _same(value, mine[name], f"{name!r:.60} of {what}")


def _same(value: Any, expected: Tensor, what: str) -> None:
    if not isinstance(value, Tensor):
        raise ValueError(f"{what} is no tensor")
    if value.shape != expected.shape or value.dtype != expected.dtype:
        raise ValueError(f"{what} is {described(value)}, and has to be {described(expected)}")


def described(tensor: Tensor) -> str:
    """Shape and dtype, for errors."""
    return f"{tuple(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"


def _whole(value: Any, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{what} is {value!r:.20}, which is no whole number")
    return value


def _weights(actors: Sequence[Actor], weights: Sequence[Mapping[str, Any]], model: nn.Module) -> None:
    """Parameters have to be the same; a buffer may be made on first use, or grow."""
    parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    for actor, saved in zip(actors, weights, strict=True) if weights else ():
        segment: Any = actor.stage.segment
        for name in segment.parameter_names:
            _same(saved.get(name), parameters[name], repr(name))
        for name in saved.keys() - set(segment.parameter_names):
            now, value = buffers.get(name), saved[name]
            if name in parameters or not isinstance(value, Tensor):
                raise ValueError(f"{name!r:.60} is no buffer of stage {actor.stage.name!r}")
            if now is None:
                model.get_submodule(name.rpartition(".")[0])
            elif now.dtype != value.dtype:
                raise ValueError(f"{name!r} is {described(value)}, and has to be {described(now)}")


def _modules(actors: Sequence[Actor], part: Mapping[str, Any]) -> None:
    for actor, estimators, inputs in zip(actors, part["estimators"], part["inputs"], strict=True):
        stage = actor.stage
        for own, saved, what in (
            (stage.interface, estimators, "the estimators"),
            (stage.predictor, inputs, "the input's predictor"),
        ):
            check_tensors(own.state_dict() if own is not None else {}, saved, f"{what} of stage {stage.name!r}")


def _randomness(saved: Mapping[str, Any], own: Mapping[str, Tensor]) -> None:
    for name in {"cpu", *own.keys()} & {"cpu", *saved.keys()}:
        _generator(saved[name], own[name], name)


def _generator(saved: Any, own: Tensor, name: str = "cpu") -> None:
    _same(saved, own, "a generator's state")
    if name == "cpu":
        torch.Generator().set_state(saved.cpu())  # it refuses what is none


def _in_flight(runner: Runner, actor: Actor, kept: Mapping[str, Any]) -> None:
    """Minibatches that were on their way: messages, what came back, inputs, stashed weights."""
    stage, steps = actor.stage, []
    for each in kept["waiting"]:
        _keys(each, _WAITING)
        _message(stage.interface, each["leaves"])
        _returned(each["received"], each["leaves"])
        _like_example(runner, each["context"], "target")
        float(each["scale"])
    for each in kept["awaited"]:
        _keys(each, _AWAITED)
        _like_example(runner, (each["args"], each["kwargs"]), "inputs")
        if each["h"] is not None:
            if stage.predictor is None or each["h"].shape[1:] != stage.predictor.shape:
                raise ValueError(f"an awaited input of stage {stage.name!r} has another shape")
            _floating(each["h"])
        if each["mark"] is not None:
            _floating(each["mark"])
    for each in kept["flights"]:
        _keys(each, set(FLIGHT))
        steps.append(_whole(each["step"], "a minibatch"))
        if actor.index:
            (message,) = each["args"]
            _message(actor.before, leaves_at(message, actor.arriving))
        else:
            _like_example(runner, (each["args"], each["kwargs"]), "inputs")
        _randomness(each["randomness"], stage.randomness.save())
        for name, value in each["stash"].items():
            _same(value, actor.named[name], f"{name!r:.60} of stage {stage.name!r}")
        if each["estimates"]:
            _message(stage.interface, each["estimates"])
            _like_example(runner, each["context"], "target")
        float(each["scale"])
    for step, turn, received, *shared in kept["due"]:
        if _whole(step, "a minibatch") not in steps:
            raise ValueError(f"a gradient came for minibatch {step}, which is not in flight")
        _whole(turn, "a minibatch")
        _message(stage.interface, list(received))
        for gradients in shared:
            for gradient, parameter in zip(gradients, actor.passes, strict=True) if gradients else ():
                if gradient is not None:
                    _same(gradient, parameter, "a gradient of what stages share")


def _copies(runner: Runner, copies: Sequence[Mapping[str, Any]]) -> None:
    """Workers' own copies of parameters that stages share."""
    shared = {each.name: each.parameter for each in runner.shared}
    groups = {p: (o, group) for o in runner.updates.optimizers for group in o.param_groups for p in group["params"]}
    for each in copies:
        if each.keys() != _COPIES or len([_whole(at, "a stage") for at in each["span"]]) != 2:
            raise ValueError("a worker's copies are of another form")
        for step, corrections in [[0, each["values"]], *each["pending"]]:
            _whole(step, "a minibatch")
            for name, value in corrections.items():
                _same(value, shared[name], f"the copy of {name!r:.60}")
        for name, moments in each["moments"].items():
            optimizer, group = groups[shared[name]]
            runner.updates.moments.check(optimizer, group, shared[name], name, moments)


def _keys(each: Mapping[str, Any], known: AbstractSet[str]) -> None:
    if each.keys() != known:
        raise ValueError(f"what is in flight has {', '.join(sorted(map(str, each.keys() ^ known))):.80}")
    _whole(each["step"], "a minibatch")


def _message(interface: Interface | None, leaves: Sequence[Any]) -> None:
    if interface is None:
        raise ValueError("a message is in flight where no stage follows")
    for leaf in leaves:
        _floating(leaf)
    interface.check(list(leaves))


def _floating(value: Any) -> None:
    if not isinstance(value, Tensor) or not value.is_floating_point():
        raise ValueError("what is in flight holds something else than tensors of floating numbers")


def _returned(received: Any, leaves: Sequence[Tensor]) -> None:
    for gradient, leaf in zip(received, leaves, strict=True) if received is not None else ():
        _floating(gradient)
        if gradient.shape != leaf.shape:
            raise ValueError(f"a gradient of {described(gradient)} came back for a message of {described(leaf)}")


def _like_example(runner: Runner, tree: Any, what: str) -> None:
    """A minibatch may have other lengths than the first, and more tensors; they are of dtypes and dimensions it has."""
    if runner.example is None:
        return
    args, kwargs, target = runner.example
    expected: set[tuple[int, Any]] = set()

    def note(shape: Iterable[int], dtype: Any) -> None:
        expected.add((len(list(shape)), dtype))

    _examples((args, kwargs) if what == "inputs" else target, note)
    if not expected.issuperset((tensor.dim(), tensor.dtype) for tensor in tensors(tree)):
        raise ValueError(f"the {what} of a minibatch in flight are not what this run's are")


def _examples(tree: Any, note: Any) -> None:
    """Every tensor that a minibatch's description stands for, in the order of :func:`syngrad.tree.tensors`."""
    if isinstance(tree, Mapping) and tree.keys() == {EXAMPLE}:
        note(*tree[EXAMPLE])
    elif isinstance(tree, Mapping):
        for each in tree.values():
            _examples(each, note)
    elif isinstance(tree, list | tuple):
        for each in tree:
            _examples(each, note)


def _plain(runner: Runner, part: Mapping[str, Any], lo: int, hi: int) -> None:
    for index, applied in part["record"]:
        if runner.record is not None and not 0 <= _whole(index, "an interface") < len(runner.record.applied):
            raise ValueError(f"there is no interface {index}")
        for step, at in applied:
            int(step), int(at)
    for key, kept in part["guard"].items():
        if key not in _GUARDED or not all(isinstance(value, int | float) for value in kept.values()):
            raise ValueError(f"{key!r:.20} is nothing that the guard counts")
    for saved in part["quality"]:
        kinds: list[Any] = [Sample, TrueSample]
        for kind, name in zip(kinds, ("history", "true"), strict=True):
            for sample in saved[name]:
                kind(*map(float, sample))
    for name in part["extras"]:
        runner.net.model.get_submodule(name)
    if len(part["quality"]) != len(runner.quality[lo:hi]):
        raise ValueError("the samples of quality are of other interfaces")
    _whole(part["clock"], "a minibatch")


def _common(runner: Runner, part: Mapping[str, Any]) -> None:
    for name in ("count", "next_sample", "next_probe"):
        _whole(part[name], name)
    _generator(part["generator"], runner.generator.get_state())
    for value in part["precision"].values():
        float(value)
    check_options(runner, part["options"])
    if len(part["schedulers"]) != len(runner.updates.schedulers):
        raise ValueError("it has another number of schedulers")


def check_options(runner: Runner, given: Mapping[str, Any]) -> None:
    """Refuse options of other groups, and any that would put other parameters into one.

    Raises:
        ValueError: naming what it is.
    """
    for optimizer, groups in zip(runner.updates.optimizers, given["groups"], strict=True):
        for _, own in zip(optimizer.param_groups, groups, strict=True):
            if "params" in own:
                raise ValueError("a group's options name parameters")
            map_tensors(_number, own)
    if len(given["trained"]) != len(list(runner.net.model.parameters())):
        raise ValueError("it says of another number of weights which are trained")


def _number(tensor: Tensor) -> Tensor:
    if tensor.numel() != 1:
        raise ValueError(f"an option of a group is a tensor of {described(tensor)}")
    return tensor
