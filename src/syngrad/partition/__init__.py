"""Cutting the user's model into stages: by name, or by count and balanced by measured cost.

Routes, tried in order: a chain of modules by name; ``torch.fx``, which follows the forwards around the cuts and keeps
every other module whole; in one process the user's own forward, which stands still at the cuts; for several
``torch.export``. The last two need an example. Whichever is taken, the segments run on the user's own parameters and
buffers, and follow ``train()`` and ``eval()`` of the user's model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import nn

from syngrad.errors import ConfigError, CutError, SyngradError, first_line
from syngrad.partition.balance import balanced, choose
from syngrad.partition.chain import Chain, is_chain_of
from syngrad.partition.cuts import (
    DEPTHS,
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
    places,
    shown,
)
from syngrad.partition.example import Example, Inputs, UnitError, check_runs, verify
from syngrad.partition.segment import FIRST, Segment, compose, segment_parameters, unused_parameters

__all__ = [
    "Segment",
    "balanced",
    "check_names",
    "compose",
    "recordable",
    "segment_parameters",
    "split",
    "unused_parameters",
    "working_places",
]

_REASON_LENGTH = 160


def split(
    model: nn.Module,
    *,
    cuts: Sequence[str] | None = None,
    stages: int | None = None,
    example: tuple[tuple[Any, ...], dict[str, Any]] | None = None,
    interface_cost: Callable[[Any], float] | None = None,
    unread: Callable[[], Sequence[int]] | None = None,
    alone: bool = False,
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
        unread: the positions in the flattened output of what nobody reads, which a recording leaves out; None for none.
        alone: whether the segments are always run one after the other in one process: then they may be parts of the
            user's own forward, and share running statistics. Parameters may be shared anyhow.

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
    way = _Way(model, example, unread, alone)
    if cuts is not None:
        check_names(model, cuts, alone)
        return way.by_name(list(cuts))
    assert stages is not None
    if isinstance(stages, bool) or not isinstance(stages, int) or stages < 1:
        raise ConfigError(f"stages={stages!r} is no number of stages: give an integer of 1 or more")
    if stages == 1:
        names = [name for name, _ in model.named_parameters()] + [name for name, _ in model.named_buffers()]
        return [Segment(FIRST, model, route="whole", model=model, tensor_names=names)]
    if example is None:
        raise ConfigError(f"stages={stages} is balanced by measuring: give a batch, example=(args, kwargs), or cuts=")
    return way.by_count(stages, interface_cost)


@dataclass(frozen=True)
class WorkingPlaces:
    """The places at which a model can be cut in two, in the order of execution, and its segments with all of them."""

    names: list[str]
    segments: list[Segment]


def working_places(model: nn.Module, example: Example, unread: Callable[[], Sequence[int]]) -> WorkingPlaces:
    """Every place that works in one process, each tried on the example.

    Args:
        model: the user's.
        example: ``(args, kwargs)`` of one call.
        unread: the positions of what nobody reads in the flattened output.

    Raises:
        CutError: where there is none.
    """
    way = _Way(model, example, unread, alone=True)

    def segments(program: Program) -> list[Segment]:
        found = sorted(places(model, program, sharing=True), key=program.position)
        if not found:
            raise RouteError("there is no place for a cut")
        return program.segments(found)

    units = [name for depth in range(DEPTHS + 1) for name in candidates(model, depth)]
    try:
        made = way.first_route(list(dict.fromkeys(units)), segments)
    except RouteError as error:  # of a chain, which is asked alone
        raise CutError(f"{error}: at most one module of {type(model).__name__} has anything to train") from None
    return WorkingPlaces([segment.name for segment in made[1:]], made)


def recordable(
    model: nn.Module, names: Sequence[str], example: Example, unread: Callable[[], Sequence[int]]
) -> set[str]:
    """Those of the places at which the model can be cut in two for several workers, each tried on the example.

    Args:
        model: the user's.
        names: of modules that can start a stage in one process.
        example: ``(args, kwargs)`` of one call.
        unread: the positions of what nobody reads in the flattened output.
    """
    way, found = _Way(model, example, unread, alone=False), set()
    for name in names:
        try:
            way.by_name([name])
        except SyngradError:
            continue
        found.add(name)
    return found


@dataclass(frozen=True)
class _Way:
    """What is common to all attempts to cut one model; see :func:`split`."""

    model: nn.Module
    example: Example | None
    unread: Callable[[], Sequence[int]] | None
    alone: bool

    @cached_property
    def _exported(self) -> Program | Exception:
        """The whole model exported, the same whatever the cuts, or why it cannot be: either takes seconds."""
        try:
            return _program(self.model, "torch.export", [], self.example, self._left)
        except Exception as error:  # whatever a forward raises when given stand-ins for tensors
            return error

    @cached_property
    def _unread(self) -> Sequence[int]:
        """What nobody reads, which takes a run of the model and its loss to know."""
        return self.unread() if self.unread is not None else ()

    def _left(self) -> Sequence[int]:
        return self._unread

    def program(self, route: str, names: list[str]) -> Program:
        """The model laid out by one route."""
        if route != "torch.export":
            return _program(self.model, route, names, self.example, self._left)
        if isinstance(self._exported, Exception):
            raise self._exported.with_traceback(None)
        return self._exported

    def by_name(self, cuts: list[str]) -> list[Segment]:
        def segments(program: Program) -> list[Segment]:
            ordered = in_order(self.model, program, cuts, self.alone)
            check_stages(self.model, program, ordered, self.alone)
            return program.segments(ordered)

        return self.first_route(cuts, segments)

    def by_count(self, stages: int, interface_cost: Callable[[Any], float] | None) -> list[Segment]:
        if has_hooks(self.model) and not self.alone:
            raise CutError(f"stages={stages} would take the model apart, whose hooks then would not run: remove them")
        units = candidates(self.model)
        for depth in range(1, DEPTHS + 1):
            try:
                return self._balanced(units, stages, interface_cost)
            except (ConfigError, CutError):
                inside = candidates(self.model, depth)
                if inside == units:
                    raise
                units = inside
        return self._balanced(units, stages, interface_cost)

    def _balanced(self, units: list[str], stages: int, interface_cost: Callable[[Any], float] | None) -> list[Segment]:
        assert self.example is not None
        model, example = self.model, self.example

        def segments(program: Program) -> list[Segment]:
            at: dict[int, str] = {}
            for unit in units:
                try:
                    at.setdefault(program.position(unit), unit)
                except PlaceError:
                    continue  # a candidate of ours that is no place for a cut: never called, called twice, or the first
            places = [at[position] for position in sorted(at) if program.closed(at[position])]
            chosen = choose(model, program, places, stages, example, interface_cost, self.alone)
            check_stages(model, program, chosen, self.alone)
            return program.segments(chosen)

        return self.first_route(units, segments)

    def first_route(self, names: list[str], segments: Callable[[Program], list[Segment]]) -> list[Segment]:
        """The segments from the first route that can express the model; the error of all of them if none can."""
        model, example = self.model, self.example
        if is_chain_of(model, names):
            return segments(Chain(model, names))
        reasons: list[str] = []
        forward = ("forward",) if self.alone and example is not None else ()
        for route in ("torch.fx", *forward, "torch.export"):
            try:
                made = segments(self.program(route, names))
                if example is not None and route != "forward":
                    verify(model, made, example, self._unread)
                return made
            except Exception as error:  # whatever a forward raises when given stand-ins for tensors
                another = (
                    isinstance(error, CutError) and forward and route == "torch.fx"
                )  # what it calls, fx may not see
                if isinstance(error, SyngradError) and not (isinstance(error, RouteError | UnitError) or another):
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
        if example is not None and not self.alone:
            where += " for several workers, each of which needs a part of the model that runs by itself"
            instead += "; or train it in one process, which runs the model's own forward"
        raise CutError(f"{where}; {'; '.join(reasons)}; {instead}")


def _program(
    model: nn.Module, route: str, names: list[str], example: Example | None, unread: Callable[[], Sequence[int]]
) -> Program:
    # Here and not above: only a model that has to be traced pays for these imports.
    from syngrad.partition import recording
    from syngrad.partition.survey import Survey
    from syngrad.partition.traced import Traced

    if route == "forward":
        assert example is not None
        return Survey(model, example, unread)
    if route == "torch.fx":
        hooked = [cut for cut in names if any(has_hooks(model.get_submodule(each)) for each in ancestors(cut))]
        if hooked:
            raise RouteError(f"what is around {hooked[0]!r} has hooks, which would not run")
        inputs = Inputs(model, example)
        followed = [around for cut in names for around in ancestors(cut)]
        return Traced(model, route, inputs, lambda: recording.record_by_fx(model, names, inputs, unread), followed)
    if example is None:
        raise RouteError("needs an example")
    inputs = Inputs(model, example)
    return Traced(model, route, inputs, lambda: recording.record_by_export(model, inputs, unread()))
