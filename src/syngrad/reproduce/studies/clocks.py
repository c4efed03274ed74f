"""Two nets that tick at two rates, decoupled by synthetic gradients."""

from __future__ import annotations

from syngrad.experiments.two_clocks import PERIOD
from syngrad.reproduce.recipes import Sequence
from syngrad.reproduce.study import WRONG, Case, Scale, Study

WHOLE = "through both, 16 steps"


def cases(scale: Scale) -> list[Case]:
    """Exactly, truncated, and with estimates."""
    recipe = Sequence("two-clocks", PERIOD, scale.windows, scale.evaluations)
    return [
        Case(WHOLE, recipe, f"bptt({PERIOD**2})", dearer=3.0),
        Case("truncated to 4", recipe, f"bptt({PERIOD})", dearer=3.0),
        Case("synthetic, 4 steps", recipe, f"synthetic({PERIOD})", dearer=4.0),
    ]


TWO_CLOCKS = Study(
    name="two-clocks",
    title="two nets at two time-scales, decoupled",
    setting="A hierarchical system of two nets that tick at two rates, asked for counts of digits.",
    differs=(
        "Counts are classes of a cross-entropy, and the nets are small. Digits are MNIST's where they have been "
        "fetched, else Fashion-MNIST's bundled images. The paper shows curves, of which no figure could be checked."
    ),
    axis="",
    metric=WRONG,
    published=(),
    cases=cases,
    base=WHOLE,
)
