"""What a checkpoint of a Trainer holds, whether it fits another Trainer, and how it is put back.

The model's and the optimisers' own state dicts stand in it as PyTorch makes them; everything else that a run changes is
one part of all stages, as workers exchange it (runtime/state.py).
"""

from __future__ import annotations

import difflib
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from syngrad.core.batch import example_batch
from syngrad.errors import CheckpointError, ConfigError, SyngradError, first_line, warn
from syngrad.methods.registry import parse as parse_method
from syngrad.partition.segment import FORWARD
from syngrad.runtime import checkpoint
from syngrad.runtime import state as run_state
from syngrad.runtime.part_checks import described
from syngrad.trainer.fit_arguments import AUTO, FitArguments
from syngrad.trainer.options import RESUMED
from syngrad.trainer.session import Session

#: of what a checkpoint holds; one of another form is refused
FORM = 2


def capture(session: Session) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(the model's state dict, everything else), the tensors not copied."""
    runner = session.runner
    if runner is None:
        raise CheckpointError("there is nothing to save before the first minibatch")
    runner.check_in_flight()
    model = session.model.state_dict()
    dense = {name: t for name, t in model.items() if isinstance(t, Tensor) and t.layout == torch.strided}
    return dense, {
        "form": FORM,
        "configuration": session.configuration(),
        "torch": torch.__version__,
        "kinds": [type(optimizer).__name__ for optimizer in session.optimizers],
        "options": runner.updates.options,
        "cuts": session.net.cuts,
        "example": runner.example,
        "printed": session.printed,
        "model": {name: value for name, value in model.items() if name not in dense},
        "buffers": run_state.transient(session.model),
        "optimizers": [optimizer.state_dict() for optimizer in session.optimizers],
        "stages": run_state.take(runner, (0, len(runner.stages)), whole=True),
        "train_s": session.progress.train_s,
        "epochs_done": session.progress.epochs,
    }


def write(session: Session, root: Any, keep: int, **more: Any) -> Path:
    """Save a Trainer, and what `fit` knows, as the newest checkpoint in a folder; returns its path.

    Minibatches in flight are a part of it, to be gone forward with again. Where stages are stretches of the model's own
    forward that cannot be done, and they end before it is written.
    """
    if session.runner is not None and any(stage.segment.route == FORWARD for stage in session.stages):
        session.runner.flush()
    model, state = capture(session)
    return checkpoint.save(root, model, {**state, **more}, keep)


def restore(
    session: Session, model: dict[str, Tensor], state: dict[str, Any], where: str, *, trained: bool = False
) -> None:
    """Put a captured state into a Trainer of the same configuration; what does not fit is refused beforehand.

    Args:
        model, state: as :func:`capture` gave them.
        where: the checkpoint's path, for errors.
        trained: whether a weight stands still where it did then: for a run that goes on, not for a loop of one's own,
            in which that is the user's choice.

    Raises:
        CheckpointError: for another form, configuration, cuts or model, naming both values.
    """
    if state.get("form") != FORM:
        raise CheckpointError(
            f"checkpoint {where!r} was written by an earlier version of Syngrad; finish its run with that version, or "
            "begin a new one from the weights in its model.safetensors"
        )
    try:
        _check(session, model, state, where)
        _bind(session, state, where)
        _put(session, model, state, where, trained)
    except SyngradError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError, IndexError, AttributeError) as error:
        raise CheckpointError(
            f"checkpoint {where!r} does not fit this Trainer ({first_line(error):.160}); resume with the model, data "
            "and options that it was made with"
        ) from error


def _check(session: Session, model: dict[str, Tensor], state: dict[str, Any], where: str) -> None:
    own, saved = session.configuration(), state["configuration"]
    for name in RESUMED:
        if name in saved and own.get(name) != saved[name] and not _same_method(session, name, saved[name]):
            raise CheckpointError(
                f"checkpoint {where!r} was made with {name}={saved[name]!r}, and this Trainer has {own.get(name)!r}; "
                "give it the same"
            )
    now = {name: value for name, value in session.model.state_dict().items() if isinstance(value, Tensor)}
    then = {**model, **{name: value for name, value in state["model"].items() if isinstance(value, Tensor)}}
    for name in now.keys() ^ then.keys():
        has, lacks = ("this model", "the checkpoint") if name in now else ("the checkpoint", "this model")
        raise CheckpointError(f"checkpoint {where!r} is of another model: {has} has {name!r}, {lacks} does not")
    for name, tensor in now.items():
        if tensor.shape != then[name].shape or tensor.dtype != then[name].dtype:
            raise CheckpointError(
                f"checkpoint {where!r} is of another model: {name!r} is {described(then[name])} there and "
                f"{described(tensor)} here"
            )
    for name, buffer in state["buffers"].items():
        owner, _, attribute = name.rpartition(".")
        now_there = session.model.get_submodule(owner)._buffers.get(attribute)
        if not isinstance(buffer, Tensor) or (now_there is not None and now_there.dtype != buffer.dtype):
            raise CheckpointError(f"checkpoint {where!r} is of another model: its buffer {name!r:.60} is another")


def _same_method(session: Session, name: str, saved: Any) -> bool:
    """Whether both are one method, but for how late gradients come over several workers: a run may go on so or so."""
    try:
        return name == "method" and parse_method(saved) == session.method
    except ConfigError:
        return False


def _bind(session: Session, state: dict[str, Any], where: str) -> None:
    cuts = list(state["cuts"])
    if session.runner is None:
        if state["example"] is None:
            raise CheckpointError(
                f"checkpoint {where!r} does not describe its minibatches; call trainer.bind(batch) before resuming"
            )
        session.bind_to(example_batch(state["example"]), cuts if session.net.requested_cuts is None else None)
    if session.net.cuts != cuts:
        raise CheckpointError(f"checkpoint {where!r} was cut at {cuts}, and this network at {session.net.cuts}")


def _fits(session: Session, state: dict[str, Any], where: str) -> None:
    """Refuse other optimisers, groups or estimators before anything is moved."""
    runner = session.runner
    assert runner is not None
    kinds = [type(optimizer).__name__ for optimizer in session.optimizers]
    if state["kinds"] != kinds:
        raise CheckpointError(
            f"checkpoint {where!r} was made with optimizers {state['kinds']}, and this Trainer has {kinds}; give it "
            "the same"
        )
    schedulers = len(state["stages"]["schedulers"])
    if schedulers != len(session.schedulers):
        raise CheckpointError(
            f"checkpoint {where!r} has {schedulers} schedulers, and this Trainer {len(session.schedulers)}"
        )
    for own, saved in zip(runner.updates.options, state["options"], strict=True):
        for mine, its in zip_longest(own, saved, fillvalue={"name": "nothing"}):
            for name in sorted(mine.keys() | its.keys()):
                if mine.get(name) != its.get(name):
                    raise CheckpointError(
                        f"checkpoint {where!r} was made with {name}={its.get(name)!r} for {its.get('name')}, and this "
                        f"Trainer has {mine.get(name)!r}; give it the same"
                    )
    for optimizer, saved in zip(session.optimizers, state["optimizers"], strict=True):
        sizes = [len(group["params"]) for group in saved["param_groups"]]
        if sizes != [len(group["params"]) for group in optimizer.param_groups]:
            raise CheckpointError(f"checkpoint {where!r} has groups of {sizes} parameters; give this Trainer the same")
        try:
            _check_moments(session, optimizer, saved)
        except ValueError as error:
            raise _misfit(where, error) from error
    shapes = [{n: t.shape for n, t in i.state_dict().items()} for i in session.net.interfaces]
    if shapes != [{n: t.shape for n, t in each.items()} for each in state["stages"]["estimators"][:-1]]:
        raise CheckpointError(f"checkpoint {where!r} has other estimators; give this Trainer the same")
    try:
        run_state.check(runner, state["stages"])
    except ValueError as error:
        raise _misfit(where, error) from error


def _check_moments(session: Session, optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """A ValueError for moments that are not those of the parameter that they would be given to."""
    known = {id(p): (group, name) for _, group, p, name in run_state.held(session.bound, (0, len(session.stages)))}
    ids = [index for group in saved["param_groups"] for index in group["params"]]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    if ids != list(range(len(parameters))):
        raise ValueError("its optimizer's parameters are not numbered one by one")
    options = [group for group in saved["param_groups"] for _ in group["params"]]
    for index, moments in saved["state"].items():
        if isinstance(index, int):
            if not 0 <= index < len(ids):
                raise ValueError(f"it has moments of parameter {index}, and there are {len(ids)}")
            if not isinstance(moments, dict):
                raise ValueError(f"the moments of parameter {index} are no mapping")
            group, name = known.get(id(parameters[index]), ({}, f"parameter {index}"))
            session.bound.updates.moments.check(
                optimizer, {**group, **options[index]}, parameters[index], name, moments
            )


def _misfit(where: str, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"checkpoint {where!r} does not fit this Trainer: {error}; resume with the model, data and options that it was "
        "made with"
    )


def _warn_of_another_text(session: Session, then: Any) -> None:
    """Say where the model prints otherwise than it did: an activation or a dropout rate is in no state dict."""
    now = session.printed
    if not isinstance(then, str) or now == then:
        return
    lines = list(difflib.ndiff(then.splitlines(), now.splitlines()))
    was, is_ = (next((line[2:].strip() for line in lines if line.startswith(sign)), "") for sign in ("- ", "+ "))
    warn(
        f"the model is not the one that was saved: where it had {was or 'nothing'!r:.60} it has "
        f"{is_ or 'nothing'!r:.60}; the run goes on with it as it is now"
    )


def _put(session: Session, model: dict[str, Tensor], state: dict[str, Any], where: str, trained: bool) -> None:
    _fits(session, state, where)
    session.model.load_state_dict({**model, **state["model"]})
    run_state.put_transient(session.model, state["buffers"])
    for optimizer, saved in zip(session.optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
        as_saved(optimizer, saved)
    run_state.put(session.bound, state["stages"])
    run_state.put_common(session.bound, state["stages"], trained=trained)
    _warn_of_another_text(session, state.get("printed"))
    session.progress.train_s, session.progress.epochs = float(state["train_s"]), int(state["epochs_done"])


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
            dense = found.layout == torch.strided and found.shape == parameter.shape
            if dense and found.stride() != parameter.stride():
                now[name] = torch.empty_like(parameter, dtype=found.dtype, device=found.device).copy_(found)


def whole_checkpoint(plan: FitArguments, path: Path) -> tuple[Path, Any, Any]:
    """(its path, the model's tensors, the rest); for "auto" of the newest that is not damaged."""
    while True:
        try:
            return path, *checkpoint.load(path)
        except CheckpointError as error:
            there = checkpoint.found(plan.save) if plan.resume == AUTO and plan.save else []
            before = [each for each in there if error.damage and int(each.name) < int(path.name)]
            if not before:
                raise
            warn(f"{error.damage}; the run goes on from the one before it, {str(before[-1])!r}")
            path = before[-1]
