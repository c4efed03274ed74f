"""What the routes have in common: a model laid out as steps in the order they run, ready to be cut between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from syngrad.errors import CutError
from syngrad.partition.names import candidates, shown
from syngrad.partition.segment import FIRST, Segment, find_tensor, owner_of


class Program(Protocol):
    """A model in execution order. Cuts are given as names, sorted by :meth:`position`."""

    @property
    def route(self) -> str:
        """What :attr:`Segment.route` will say."""
        ...

    def position(self, cut: str) -> int:
        """The step the named module begins at; raises :class:`PlaceError` where no stage can start."""
        ...

    def uses(self, cuts: Sequence[str]) -> list[list[str]]:
        """For each stage the names of the tensors it uses, spelled as at the place of use."""
        ...

    def segments(self, cuts: Sequence[str]) -> list[Segment]:
        """The stages, one more than there are cuts."""
        ...


class RouteError(Exception):
    """A route cannot express this model; another may. What it says becomes part of the final error."""


class PlaceError(Exception):
    """No stage can start at a module; says why, as the end of a sentence that begins with its name."""


def in_order(model: nn.Module, program: Program, cuts: Sequence[str]) -> list[str]:
    """The cuts in the order the model runs them, each at a place of its own."""
    at: dict[int, str] = {}
    for cut in cuts:
        try:
            position = program.position(cut)
        except PlaceError as error:
            raise CutError(f"cut {cut!r} {error}: {remedy(model, program, cut)}") from None
        if position in at:
            raise CutError(f"cuts {at[position]!r} and {cut!r} start at the same place: name one of them")
        at[position] = cut
    return [at[position] for position in sorted(at)]


def trains(model: nn.Module, used: Sequence[str]) -> bool:
    """Whether a stage that uses these tensors has anything to learn."""
    return any(find_tensor(model, name).requires_grad for name in used if _is_state(model, name))


def shared(model: nn.Module, uses: Sequence[Sequence[str]]) -> list[tuple[int, str, int, str]]:
    """Tensors that two stages would both write: (first stage, name there, last stage, name there), one per tensor.

    Parameters, and the running statistics of norms. A constant buffer, a mask say, may be read anywhere.
    """
    places: dict[int, list[tuple[int, str]]] = {}
    for stage, names in enumerate(uses):
        for name in names:
            if _is_state(model, name):
                places.setdefault(id(find_tensor(model, name)), []).append((stage, name))
    return [(*found[0], *found[-1]) for found in places.values() if found[0][0] != found[-1][0]]


def remedy(model: nn.Module, program: Program, near: str) -> str:
    """What to name instead of a cut, as part of an error: the candidates at which this very model can be cut."""

    def works(name: str) -> bool:
        try:
            program.position(name)
            uses = program.uses([name])
        except PlaceError:
            return False
        return all(trains(model, used) for used in uses) and not shared(model, uses)

    names = [name for name in candidates(model) if name != near and works(name)]
    return f"name {shown(names, near)}" if names else "this model has no other place for a cut; give stages=1"


def check_stages(model: nn.Module, program: Program, cuts: Sequence[str]) -> None:
    """Refuse stages that share a parameter, and stages that have nothing to train."""
    uses = program.uses(cuts)
    stages = [FIRST, *cuts]
    for first, first_name, last, last_name in shared(model, uses):
        what = "parameter" if isinstance(find_tensor(model, first_name), nn.Parameter) else "running statistic"
        together = f"cut so that both are in one stage (leave out {', '.join(map(repr, cuts[first:last]))})"
        start = f"{what} {first_name!r} (stage {stages[first]!r})"
        if first_name == last_name:
            raise CutError(
                f"{start} is used again in stage {stages[last]!r}: give that stage a module of its own, or {together}"
            )
        copy = f"nn.Parameter(model.{_spelled(last_name)}.clone())" if what == "parameter" else "a copy of its own"
        raise CutError(
            f"{start} and {last_name!r} (stage {stages[last]!r}) are one tensor: "
            f"untie them, model.{_spelled(last_name)} = {copy}, or {together}"
        )
    for index, used in enumerate(uses):
        if trains(model, used):
            continue
        if not cuts:
            raise CutError("the model has no trainable parameter, so no stage has anything to learn")
        drop = cuts[max(index - 1, 0)]
        where = f"before cut {cuts[index]!r}" if index < len(cuts) else "to the end"
        instead = f"leave out {drop!r}" if len(cuts) > 1 else remedy(model, program, drop)
        raise CutError(f"stage {stages[index]!r} ({where}) has no trainable parameter, nothing to learn: {instead}")


def _is_state(model: nn.Module, name: str) -> bool:
    owner, attribute = owner_of(model, name)
    value: object = getattr(owner, attribute)
    return isinstance(value, nn.Parameter) or (isinstance(value, Tensor) and isinstance(owner, _NormBase))


def _spelled(name: str) -> str:
    """A qualified name as one would type it: ``blocks.0.weight`` is ``blocks[0].weight``."""
    return "".join(f"[{part}]" if part.isdigit() else f".{part}" for part in name.split(".")).removeprefix(".")
