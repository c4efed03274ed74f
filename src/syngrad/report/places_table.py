"""The table of places at which a model can be cut, the most even first."""

from __future__ import annotations

from collections.abc import Sequence

from syngrad.core.places import Place

#: of a name; a longer one loses its beginning
NAME = 32
#: of the shapes that cross
SHAPES = 22


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
        alone = "" if place.recorded else " ¹"
        share = f"{before} : {100 - before} %"
        lines.append(f"{name:<{NAME}} {share:>14} {place.bytes / 1024:>7.0f}  {shapes}{alone}")
    lines.append(f"time of forward and backward passes of {batch} samples; as much comes back")
    if not all(place.recorded for place in places):
        lines.append("¹ in one process only: several workers need a part of the model that runs by itself")
    return lines
