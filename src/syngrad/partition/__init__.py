"""Cutting the user's model into stages: by name, or by count and balanced by measured cost.

Three routes, tried in order: a chain of modules by name; ``torch.fx``, which follows the forwards around the cuts and
keeps every other module whole; ``torch.export``, which needs an example. Whichever is taken, the segments run on the
user's own parameters and buffers, and follow ``train()`` and ``eval()`` of the user's model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from syngrad.errors import ConfigError, CutError, SyngradError, first_line
from syngrad.partition.balance import balanced, choose
from syngrad.partition.chain import Chain, is_chain_of
from syngrad.partition.cuts import (
    PlaceError,
    Program,
    RouteError,
    ancestors,
    candidates,
    check_names,
    check_stages,
    has_hooks,
    in_order,
    is_called,
    shown,
)
from syngrad.partition.example import Example, Inputs, UnitError, check_runs, verify
from syngrad.partition.segment import FIRST, Segment, compose, segment_parameters, unused_parameters

__all__ = ["Segment", "balanced", "check_names", "compose", "segment_parameters", "split", "unused_parameters"]

_REASON_LENGTH = 160


def split(
    model: nn.Module,
    *,
    cuts: Sequence[str] | None = None,
    stages: int | None = None,
    example: tuple[tuple[Any, ...], dict[str, Any]] | None = None,
    interface_cost: Callable[[Any], float] | None = None,
) -> list[Segment]:
    """Cut a model into segments that together compute what it computes, bit for bit, forward and backward.

    Nothing is left changed: no parameter, buffer, gradient, mode or random state.

    Args:
        model: the user's own; it is trained in place.
        cuts: the modules that start a stage, in any order: the order of execution decides.
        stages: how many there are to be, in place of `cuts`, chosen so that the slowest is as fast as possible: each
            unit's forward and backward is timed on `example`. Times differ from process to process: let one of them
            choose, and the others cut by its segments' names.
        example: ``(args, kwargs)`` of one call, a real batch of two samples or more. It is needed for `stages` and for
            models that only ``torch.export`` can follow; given for any traced model, it is also used to check the
            segments against the model.
        interface_cost: message → seconds that are added to the stage that sends it.

    Raises:
        CutError: where the model cannot be cut so, naming what to write instead.
        ConfigError: for options that do not fit together.
        TrainingError: where the model itself raises on the example.
    """
    if (cuts is None) == (stages is None):
        given = "neither" if cuts is None else f"cuts={list(cuts)} and stages={stages}"
        raise ConfigError(f"give either cuts= or stages=, not {given}")
    if example is not None and not (
        isinstance(example, tuple)
        and len(example) == 2
        and isinstance(example[0], tuple)
        and isinstance(example[1], dict)
    ):
        raise ConfigError(f"example={type(example).__name__} is not (args, kwargs): for model(x) give ((x,), {{}})")
    if cuts is not None:
        check_names(model, cuts)
        return _by_name(model, list(cuts), example)
    assert stages is not None
    if isinstance(stages, bool) or not isinstance(stages, int) or stages < 1:
        raise ConfigError(f"stages={stages!r} is no number of stages: give an integer of 1 or more")
    if stages == 1:
        names = [name for name, _ in model.named_parameters()] + [name for name, _ in model.named_buffers()]
        return [Segment(FIRST, model, route="whole", model=model, tensor_names=names)]
    if example is None:
        raise ConfigError(f"stages={stages} is balanced by measuring: give a batch, example=(args, kwargs), or cuts=")
    return _by_count(model, stages, example, interface_cost)


def _by_name(model: nn.Module, cuts: list[str], example: Example | None) -> list[Segment]:
    def segments(program: Program) -> list[Segment]:
        ordered = in_order(model, program, cuts)
        check_stages(model, program, ordered)
        return program.segments(ordered)

    return _first_route(model, cuts, example, segments)


def _by_count(
    model: nn.Module, stages: int, example: Example, interface_cost: Callable[[Any], float] | None
) -> list[Segment]:
    units = candidates(model)
    if has_hooks(model):
        raise CutError(f"stages={stages} would take the model apart, whose hooks then would not run: remove them")

    def segments(program: Program) -> list[Segment]:
        at: dict[int, str] = {}
        for unit in units:
            try:
                at.setdefault(program.position(unit), unit)
            except PlaceError:
                continue  # a candidate of ours that is no place for a cut: never called, called twice, or the first
        places = [at[position] for position in sorted(at)]
        chosen = choose(model, program, places, stages, example, interface_cost)
        check_stages(model, program, chosen)
        return program.segments(chosen)

    return _first_route(model, units, example, segments)


def _first_route(
    model: nn.Module, names: list[str], example: Example | None, segments: Callable[[Program], list[Segment]]
) -> list[Segment]:
    """The segments from the first route that can express the model; the error of all of them if none can."""
    if is_chain_of(model, names):
        return segments(Chain(model, names))
    reasons: list[str] = []
    for route in ("torch.fx", "torch.export"):
        try:
            made = segments(_traced(model, route, names, example))
            if example is not None:
                verify(model, made, example)
            return made
        except Exception as error:  # whatever a forward raises when given stand-ins for tensors
            if isinstance(error, SyngradError) and not isinstance(error, RouteError | UnitError):
                raise
            reason = str(error) if isinstance(error, RouteError) else first_line(error)
            reasons.append(f"{route}: {reason[:_REASON_LENGTH]}")
    if example is not None:
        check_runs(model, example)
    where = "cannot cut at " + ", ".join(map(repr, names[:8])) + (", …" if len(names) > 8 else "")
    around = {name for cut in names for name in ancestors(cut) if name and is_called(model.get_submodule(name))}
    if example is None:
        instead = "give a batch, example=(args, kwargs)"
    elif around:
        instead = f"name what is around it, {shown(sorted(around))}"
    else:
        instead = "take that out of the model's forward, or make the model an nn.Sequential of its parts"
    raise CutError(f"{where}; {'; '.join(reasons)}; {instead}")


def _traced(model: nn.Module, route: str, names: list[str], example: Example | None) -> Program:
    # Here and not above: only a model that has to be traced pays for these imports.
    from syngrad.partition import recording
    from syngrad.partition.traced import Traced

    if route == "torch.fx":
        inputs = Inputs(model, example)
        return Traced(model, route, inputs, lambda: recording.record_by_fx(model, names, inputs))
    if example is None:
        raise RouteError("needs an example")
    inputs = Inputs(model, example)
    return Traced(model, route, inputs, lambda: recording.record_by_export(model, inputs))
