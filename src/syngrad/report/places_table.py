"""The table of places at which a model can be cut, the most even first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from syngrad.core.places import Place

#: of a name; a longer one loses its beginning
NAME = 32
#: of the shapes that cross
SHAPES = 20


def places_table(places: Sequence[Place], batch: int) -> list[str]:
    """Lines of at most 80 characters.

    Args:
        places: as they were found.
        batch: samples of the minibatch they were tried with.
    """
    if not places:
        return ["nothing that the loss differentiates crosses between two modules: this model has no place for a cut"]
    lines = [f"{'a stage may start at':<{NAME}} {'before : after':>14} {'KiB':>7}  crosses", "─" * 80]
    for place in sorted(places, key=lambda each: each.larger):
        whole = place.before_s + place.after_s
        before = round(100 * place.before_s / whole)
        name = place.name if len(place.name) <= NAME else "…" + place.name[1 - NAME :]
        shapes = " ".join("×".join(map(str, shape)) for shape in place.crosses)
        shapes = shapes if len(shapes) <= SHAPES else shapes[: SHAPES - 1] + "…"
        alone = ("" if place.recorded else " ¹") + ("²" if place.shared else "")
        share = f"{before} : {100 - before} %"
        lines.append(f"{name:<{NAME}} {share:>14} {place.bytes / 1024:>7.0f}  {shapes}{alone}")
    lines.append(f"time of forward and backward passes of {batch} samples; as much comes back")
    if not all(place.recorded for place in places):
        lines.append("¹ in one process only: several workers need a part of the model that runs by itself")
    shared = {each: None for place in places if place.recorded for each in place.shared}
    for name, size in shared:
        short = name if len(name) <= NAME else "…" + name[1 - NAME :]
        lines.append(f"² shared {short}: {size / 1024:,.0f} KiB each way between workers")
    if shared:
        lines.append("  with every minibatch, or every share_every-th where gradients are estimated")
    return lines


def what_was_shared(processes: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each parameter that several workers have used.

    Args:
        processes: as `History.processes`.
    """
    found = {tuple(each): None for process in processes for each in process.get("shared", ())}
    return [
        f"shared {name}: {size / 1024:,.0f} KiB each way, every {'minibatch' if every == 1 else f'{every} minibatches'}"
        for name, size, every in found
    ]
