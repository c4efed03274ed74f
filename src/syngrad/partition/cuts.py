"""Which cuts can be made: what the module tree alone tells, before anything runs, and then the order of execution."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Protocol

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from syngrad.errors import CutError
from syngrad.partition.segment import FIRST, Segment, find_tensor, owner_of

_SHOWN = 8
#: wrappers around wrappers that are looked into for places
DEPTHS = 4
_WALKED_BY_TORCH = (
    *(nn.Sequential, nn.ModuleList, nn.ModuleDict),
    *(nn.Transformer, nn.TransformerEncoder, nn.TransformerDecoder),
)


def check_names(model: nn.Module, cuts: Sequence[str], alone: bool = False) -> None:
    """Refuse, before any tracing, cuts that no route could make; the error says what to name instead.

    Args:
        model: the user's.
        cuts: the names.
        alone: whether the model's own forward may run, with the hooks of its modules.
    """
    if isinstance(cuts, str):
        raise CutError(f"cuts={cuts!r} is a string, which reads as single letters: write cuts=[{cuts!r}]")
    if not cuts:
        raise CutError(f"cuts is empty: name where a stage starts ({suggest(model)}) or give stages=1")
    modules = dict(model.named_modules(remove_duplicate=False))
    seen: dict[nn.Module, str] = {}
    for cut in cuts:
        if cut not in modules or not cut:
            raise _unknown(model, cut, modules)
        module = modules[cut]
        if module in seen:
            also = "" if seen[module] == cut else f", as {seen[module]!r},"
            raise CutError(f"cut {cut!r} is named twice{also} in {list(cuts)}: name each stage's start once")
        seen[module] = cut
        if not is_called(module):
            inside = next((f"{cut}.{name}" for name, child in module.named_children() if is_called(child)), None)
            remedy = f"name an element, as {inside!r}" if inside else suggest(model, near=cut)
            raise CutError(f"cut {cut!r} is a {type(module).__name__}, which is never called itself: {remedy}")
        _check_ancestors(modules, cut, alone)
        if _is_first(modules, cut):
            raise CutError(f"cut {cut!r} is the first module, nothing comes before it: {suggest(model, near=cut)}")


def ancestors(name: str) -> list[str]:
    """The names of the modules around a module, the root (``""``) first."""
    parts = name.split(".")
    return [".".join(parts[:i]) for i in range(len(parts))]


def is_chain(module: nn.Module) -> bool:
    """Whether a module does nothing but call its children one after the other."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def is_called(module: nn.Module) -> bool:
    """Whether a module has a forward; a ModuleList or a ParameterList has none and only holds others."""
    return type(module).forward is not nn.Module.forward or "forward" in vars(module)  # a compiled one has its own


def has_hooks(module: nn.Module) -> bool:
    """Whether calling the module does more than its forward."""
    return any(
        getattr(module, table)
        for table in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    )


def candidates(model: nn.Module, depth: int = 0) -> list[str]:
    """The modules a stage may start at when the user only says how many stages: children of Sequentials, elements of
    ModuleLists, direct children of the model, in the order they are registered in.

    Args:
        model: the user's.
        depth: how many wrappers to look into beside: modules around a ModuleList or a Sequential of several.
    """
    return list(_units(model, "", depth)) if not has_hooks(model) else []


def wraps(module: nn.Module) -> bool:
    """Whether a module is one around others that are run in a row: it holds lists of modules, or one that does so."""
    if is_chain(module) or not is_called(module) or type(module).__module__.startswith("torch.nn."):
        return False
    return any(
        wraps(child) or (isinstance(child, nn.ModuleList | nn.Sequential) and len(child) > 1)
        for child in module.children()
    )


def suggest(model: nn.Module, *, near: str | None = None) -> str:
    """What to name instead, as part of an error: the candidates with parameters, the nearest first."""
    modules = dict(model.named_modules(remove_duplicate=False))
    listed: list[str] = []
    for depth in range(DEPTHS + 1):  # inside wrappers where there are none outside
        listed = listed or [
            name
            for name in candidates(model, depth)
            if name != near and not _is_first(modules, name) and any(True for _ in modules[name].parameters())
        ]
    return f"name {shown(listed, near)}" if listed else "this model has no other place for a cut; give stages=1"


def shown(names: Sequence[str], near: str | None = None) -> str:
    """A list of names for an error: the nearest first, a few of them, and how many there are."""
    ranked = list(names)
    if near is not None:
        ranked.sort(key=lambda name: -difflib.SequenceMatcher(None, near, name).ratio())
    more = f", … ({len(ranked)} in all)" if len(ranked) > _SHOWN else ""
    return ", ".join(repr(name) for name in ranked[:_SHOWN]) + more


def _units(module: nn.Module, prefix: str, depth: int = 0) -> Iterator[str]:
    for name, child in module.named_children():
        path = f"{prefix}{name}"
        opened = (is_chain(child) and len(child._modules) > 0) or isinstance(child, nn.ModuleList | nn.ModuleDict)
        around = depth > 0 and wraps(child)
        if (opened or around) and not has_hooks(child):
            yield from _units(child, f"{path}.", depth - around)
        elif is_called(child):
            yield path


def _unknown(model: nn.Module, cut: object, modules: dict[str, nn.Module]) -> CutError:
    tensors = {name for name, _ in model.named_parameters()} | {name for name, _ in model.named_buffers()}
    if cut in tensors:
        owner = str(cut).rpartition(".")[0]
        remedy = f"name its module, {owner!r}" if owner else suggest(model)
        return CutError(f"cut {cut!r} is a parameter or buffer, not a module: {remedy}")
    listed = [name for name, module in modules.items() if name and is_called(module)]
    names = shown(listed, str(cut)) if listed else "none, the model has no submodules"
    return CutError(f"cut {cut!r} is not a module of the model; valid names: {names}")


def _check_ancestors(modules: dict[str, nn.Module], cut: str, alone: bool) -> None:
    for name in ancestors(cut):
        around = modules[name]
        label = f"module {name!r}" if name else "the model"
        if has_hooks(around) and is_called(around) and not alone:
            remedy = f"remove them, or name {name!r} itself" if name else "remove them, or put them on a submodule"
            raise CutError(f"cut {cut!r} would take {label} apart, whose hooks then would not run: {remedy}")
        opaque = type(around).__module__.startswith("torch.nn.") and not isinstance(around, _WALKED_BY_TORCH)
        if opaque and name:
            kind = type(around).__name__
            raise CutError(f"cut {cut!r} lies inside {name!r}, an nn.{kind}, which runs as one piece: name {name!r}")


def _is_first(modules: dict[str, nn.Module], cut: str) -> bool:
    return all(
        is_chain(modules[around]) and next(iter(modules[around]._modules)) == part
        for around, part in zip(ancestors(cut), cut.split("."), strict=True)
    )


class Program(Protocol):
    """A model in execution order. Cuts are given as names, sorted by :meth:`position`."""

    def position(self, cut: str) -> int:
        """The step the named module begins at; raises :class:`PlaceError` where no stage can start."""
        ...

    def uses(self, cuts: Sequence[str]) -> list[list[str]]:
        """For each stage the names of the tensors it uses, spelled as at the place of use."""
        ...

    def segments(self, cuts: Sequence[str]) -> list[Segment]:
        """The stages, one more than there are cuts."""
        ...

    def closed(self, cut: str) -> bool:
        """Whether all that comes from before the named module, and is used after, can be handed over there."""
        ...


class RouteError(Exception):
    """A route cannot express this model; another may. What it says becomes part of the final error."""


class PlaceError(Exception):
    """No stage can start at a module; says why, as the end of a sentence that begins with its name."""


def in_order(model: nn.Module, program: Program, cuts: Sequence[str], sharing: bool = False) -> list[str]:
    """The cuts in the order the model runs them, each at a place of its own."""
    at: dict[int, str] = {}
    for cut in cuts:
        try:
            position = program.position(cut)
        except PlaceError as error:
            raise CutError(f"cut {cut!r} {error}: {remedy(model, program, cut, sharing)}") from None
        if position in at:
            raise CutError(f"cuts {at[position]!r} and {cut!r} start at the same place: name one of them")
        at[position] = cut
    return [at[position] for position in sorted(at)]


def trains(model: nn.Module, used: Sequence[str]) -> bool:
    """Whether a stage that uses these tensors has anything to learn."""
    return any(find_tensor(model, name).requires_grad for name in used if _is_state(model, name))


def shared_statistics(model: nn.Module, uses: Sequence[Sequence[str]]) -> list[tuple[int, str, int, str]]:
    """Running statistics that two stages would both move: (first stage, name there, last stage, name there), one each.

    A parameter may be used anywhere: its first stage updates it. So may a constant buffer, a mask say.
    """
    places: dict[int, list[tuple[int, str]]] = {}
    for stage, names in enumerate(uses):
        for name in names:
            if _is_statistic(model, name):
                places.setdefault(id(find_tensor(model, name)), []).append((stage, name))
    return [(*found[0], *found[-1]) for found in places.values() if found[0][0] != found[-1][0]]


def remedy(model: nn.Module, program: Program, near: str, sharing: bool = False) -> str:
    """What to name instead of a cut, as part of an error: the places at which this very model can be cut, the best
    balanced first.
    """
    names = [name for name in places(model, program, sharing) if name != near]
    return f"name {shown(names)}" if names else "this model has no other place for a cut; give stages=1"


def places(model: nn.Module, program: Program, sharing: bool = False) -> list[str]:
    """The candidates at which a model can be cut in two, each tried; first those that divide its parameters evenly.

    Args:
        model: the user's.
        program: it, in execution order.
        sharing: whether stages may share running statistics: in one process.
    """
    found: dict[str, int] = {}
    for depth in range(DEPTHS + 1):
        for name in candidates(model, depth):
            if name not in found and (off := _imbalance(model, program, name, sharing)) is not None:
                found[name] = off
    return sorted(found, key=found.__getitem__)


def _imbalance(model: nn.Module, program: Program, name: str, sharing: bool) -> int | None:
    """By how many parameters the stages before and after a cut differ; None where it cannot be made."""
    try:
        program.position(name)
        uses = program.uses([name])
    except PlaceError:
        return None
    if not all(trains(model, used) for used in uses) or (not sharing and shared_statistics(model, uses)):
        return None
    if not program.closed(name):
        return None
    first, second = (sum(find_tensor(model, each).numel() for each in used) for used in uses)
    return abs(first - second)


def check_stages(model: nn.Module, program: Program, cuts: Sequence[str], sharing: bool = False) -> None:
    """Refuse stages that have nothing to train, and, unless that is allowed, stages that share running statistics."""
    uses = program.uses(cuts)
    stages = [FIRST, *cuts]
    for first, first_name, last, last_name in [] if sharing else shared_statistics(model, uses):
        together = (
            f"cut so that both are in one stage (leave out {', '.join(map(repr, cuts[first:last]))}), or train in one "
            "process, where stages may share them"
        )
        start = f"running statistic {first_name!r} (stage {stages[first]!r})"
        if first_name == last_name:
            raise CutError(
                f"{start} is used again in stage {stages[last]!r}: give that stage a module of its own, or {together}"
            )
        raise CutError(
            f"{start} and {last_name!r} (stage {stages[last]!r}) are one tensor: give model.{_spelled(last_name)} a "
            f"copy of its own, or {together}"
        )
    for index, used in enumerate(uses):
        if trains(model, used):
            continue
        if not cuts:
            raise CutError("the model has no trainable parameter, so no stage has anything to learn")
        drop = cuts[max(index - 1, 0)]
        where = f"before cut {cuts[index]!r}" if index < len(cuts) else "to the end"
        instead = f"leave out {drop!r}" if len(cuts) > 1 else remedy(model, program, drop, sharing)
        raise CutError(f"stage {stages[index]!r} ({where}) has no trainable parameter, nothing to learn: {instead}")


def _is_state(model: nn.Module, name: str) -> bool:
    owner, attribute = owner_of(model, name)
    value: object = getattr(owner, attribute)
    return isinstance(value, nn.Parameter) or _is_statistic(model, name)


def _is_statistic(model: nn.Module, name: str) -> bool:
    owner, attribute = owner_of(model, name)
    value: object = getattr(owner, attribute)
    return isinstance(value, Tensor) and not isinstance(value, nn.Parameter) and isinstance(owner, _NormBase)


def _spelled(name: str) -> str:
    """A qualified name as one would type it: ``blocks.0.weight`` is ``blocks[0].weight``."""
    return "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in name.split(".")).removeprefix(".")
