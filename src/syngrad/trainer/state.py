"""What a checkpoint of a Trainer holds, and how it is put back."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from syngrad.core.batch import Batch
from syngrad.errors import CheckpointError, SyngradError, first_line
from syngrad.runtime import checkpoint
from syngrad.tagged_json import PlainError, encode
from syngrad.trainer.options import RESUMED
from syngrad.tree import map_tensors

if TYPE_CHECKING:
    from syngrad.trainer.trainer import Trainer

EXAMPLE = "shape and dtype"


def capture(trainer: Trainer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(the model's state dict, everything else), the tensors not copied."""
    if trainer.execution is None:
        raise CheckpointError("there is nothing to save before the first minibatch")
    model = trainer.model.state_dict()
    return {name: value for name, value in model.items() if isinstance(value, Tensor)}, {
        "configuration": trainer.configuration(),
        "torch": torch.__version__,
        "kinds": [type(optimizer).__name__ for optimizer in trainer.optimizers],
        "options": trainer.execution.updates.options,
        "cuts": trainer.net.cuts,
        "example": trainer.example,
        "model": {name: value for name, value in model.items() if not isinstance(value, Tensor)},
        "buffers": transient(trainer.model),
        "loss": dict(trainer.loss.state_dict()) if isinstance(trainer.loss, nn.Module) else None,
        "estimators": dict(trainer.net.estimators.state_dict()),
        "inputs": dict(trainer.net.inputs.state_dict()),
        "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "schedulers": [scheduler.state_dict() for scheduler in trainer.schedulers],
        "randomness": [stage.randomness.save() for stage in trainer.stages],
        "execution": trainer.execution.state_dict(),
        "guard": trainer.guard.state_dict() if trainer.guard is not None else None,
        "quality": [quality.state_dict() for quality in trainer.quality],
        "train_s": trainer.train_s,
        "epochs_done": trainer.epochs_done,
    }


def restore(trainer: Trainer, model: dict[str, Tensor], state: dict[str, Any], where: str) -> None:
    """Put a captured state into a Trainer of the same configuration; what does not fit is refused beforehand.

    Raises CheckpointError for another configuration, cuts or model, naming both values.
    """
    try:
        _check(trainer, model, state, where)
        _bind(trainer, state, where)
        _put(trainer, model, state, where)
    except SyngradError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
        raise CheckpointError(
            f"checkpoint {where!r} does not fit this Trainer ({first_line(error):.160}); resume with the model, data "
            "and options that it was made with"
        ) from error


def _check(trainer: Trainer, model: dict[str, Tensor], state: dict[str, Any], where: str) -> None:
    own, saved = trainer.configuration(), state["configuration"]
    for name in RESUMED:
        if name in saved and own.get(name) != saved[name]:
            raise CheckpointError(
                f"checkpoint {where!r} was made with {name}={saved[name]!r}, and this Trainer has {own.get(name)!r}; "
                "give it the same"
            )
    now = {name: value for name, value in trainer.model.state_dict().items() if isinstance(value, Tensor)}
    for name in now.keys() ^ model.keys():
        has, lacks = ("this model", "the checkpoint") if name in now else ("the checkpoint", "this model")
        raise CheckpointError(f"checkpoint {where!r} is of another model: {has} has {name!r}, {lacks} does not")
    for name, tensor in now.items():
        if tensor.shape != model[name].shape or tensor.dtype != model[name].dtype:
            raise CheckpointError(
                f"checkpoint {where!r} is of another model: {name!r} is {_describe(model[name])} there and "
                f"{_describe(tensor)} here"
            )


def _bind(trainer: Trainer, state: dict[str, Any], where: str) -> None:
    cuts = list(state["cuts"])
    if trainer.execution is None:
        if state["example"] is None:
            raise CheckpointError(
                f"checkpoint {where!r} does not describe its minibatches; call trainer.bind(batch) before resuming"
            )
        if trainer.net.requested_cuts is None and not trainer.net.segments:
            trainer.net.requested_cuts, trainer.net.requested_stages = (cuts, None) if cuts else (None, 1)
        trainer.bind_to(made(state["example"]))
    if trainer.net.cuts != cuts:
        raise CheckpointError(f"checkpoint {where!r} was cut at {cuts}, and this network at {trainer.net.cuts}")


def _fits(trainer: Trainer, state: dict[str, Any], where: str) -> None:
    """Refuse other optimisers, groups or estimators before anything is moved."""
    execution = trainer.execution
    assert execution is not None
    kinds = [type(optimizer).__name__ for optimizer in trainer.optimizers]
    if state["kinds"] != kinds:
        raise CheckpointError(
            f"checkpoint {where!r} was made with optimizers {state['kinds']}, and this Trainer has {kinds}; give it "
            "the same"
        )
    if len(state["schedulers"]) != len(trainer.schedulers):
        raise CheckpointError(
            f"checkpoint {where!r} has {len(state['schedulers'])} schedulers, and this Trainer "
            f"{len(trainer.schedulers)}"
        )
    for own, saved in zip(execution.updates.options, state["options"], strict=True):
        for mine, its in zip_longest(own, saved, fillvalue={"name": "nothing"}):
            for name in sorted(mine.keys() | its.keys()):
                if mine.get(name) != its.get(name):
                    raise CheckpointError(
                        f"checkpoint {where!r} was made with {name}={its.get(name)!r} for {its.get('name')}, and this "
                        f"Trainer has {mine.get(name)!r}; give it the same"
                    )
    for optimizer, saved in zip(trainer.optimizers, state["optimizers"], strict=True):
        sizes = [len(group["params"]) for group in saved["param_groups"]]
        if sizes != [len(group["params"]) for group in optimizer.param_groups]:
            raise CheckpointError(f"checkpoint {where!r} has groups of {sizes} parameters; give this Trainer the same")
    shapes = {name: tensor.shape for name, tensor in trainer.net.estimators.state_dict().items()}
    if shapes != {name: tensor.shape for name, tensor in state["estimators"].items()}:
        raise CheckpointError(f"checkpoint {where!r} has other estimators; give this Trainer the same")


def _put(trainer: Trainer, model: dict[str, Tensor], state: dict[str, Any], where: str) -> None:
    execution = trainer.execution
    assert execution is not None
    _fits(trainer, state, where)
    trainer.net.estimators.load_state_dict(state["estimators"])
    trainer.net.inputs.load_state_dict(state.get("inputs", {}))
    trainer.model.load_state_dict({**model, **state["model"]})
    put_transient(trainer.model, state["buffers"])
    if isinstance(trainer.loss, nn.Module) and state["loss"] is not None:
        trainer.loss.load_state_dict(state["loss"])
    for optimizer, saved in zip(trainer.optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
        as_saved(optimizer, saved)
    for scheduler, saved in zip(trainer.schedulers, state["schedulers"], strict=True):
        scheduler.load_state_dict(saved)
    for stage, saved in zip(trainer.stages, state["randomness"], strict=True):
        stage.randomness.load(saved)
    device = next(trainer.model.parameters()).device
    execution.load_state_dict(map_tensors(lambda t: t.to(device), state["execution"]))  # a generator takes its own back
    if trainer.guard is not None and state["guard"] is not None:
        trainer.guard.load_state_dict(state["guard"])
    for quality, saved in zip(trainer.quality, state["quality"], strict=True):
        quality.load_state_dict(saved)
    trainer.train_s, trainer.epochs_done = float(state["train_s"]), int(state["epochs_done"])


def as_saved(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Put back what PyTorch's own loading changes: dtypes, which it casts to the parameter's, and layouts.

    A fused optimiser walks over memory, so a moment has to lie in memory as its parameter does (channels last, say).
    """
    ids = [index for group in saved["param_groups"] for index in group["params"]]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, parameter in zip(ids, parameters, strict=True):
        kept, now = saved["state"].get(index, {}), optimizer.state.get(parameter, {})
        for name, value in kept.items():
            if not isinstance(value, Tensor) or not isinstance(now.get(name), Tensor):
                continue
            found = now[name]
            if found.dtype != value.dtype:
                found = now[name] = value.to(found.device)
            if found.shape == parameter.shape and found.stride() != parameter.stride():
                now[name] = torch.empty_like(parameter, dtype=found.dtype, device=found.device).copy_(found)


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


def _describe(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} of {str(tensor.dtype).removeprefix('torch.')}"


def example_of(batch: Batch) -> Any:
    """A minibatch's structure, shapes and dtypes as plain data; None where it holds anything but tensors and that."""
    trees = [list(batch.args), dict(batch.kwargs), batch.target]
    shapes = map_tensors(lambda t: {EXAMPLE: [list(t.shape), t.dtype]}, trees)
    try:
        encode(shapes, {})
    except PlainError:
        return None
    return shapes


def made(example: Any) -> Batch:
    """A minibatch of zeros of that description, to bind estimators with: they look at shapes and dtypes alone."""
    args, kwargs, target = _zeros(example)
    return Batch(tuple(args), kwargs, target, 1.0, 1)


def _zeros(tree: Any) -> Any:
    if isinstance(tree, Mapping):
        if tree.keys() == {EXAMPLE}:
            shape, dtype = tree[EXAMPLE]
            return torch.zeros(shape, dtype=dtype)
        return {key: _zeros(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree)(map(_zeros, tree))
    return tree


def write(trainer: Trainer, root: Any, keep: int, **more: Any) -> Any:
    """Save a Trainer, and what `fit` knows, as the newest checkpoint in a folder; returns its path."""
    model, state = capture(trainer)
    return checkpoint.save(root, model, {**state, **more}, keep)
