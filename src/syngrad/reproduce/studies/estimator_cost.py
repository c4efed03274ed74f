"""What an estimator costs against what it buys: estimators from the cheapest to the published one, on one net."""

from __future__ import annotations

from syngrad.reproduce.recipes import FullyConnected
from syngrad.reproduce.study import ACCURACY, BASE, Case, Scale, Study

#: row → estimator, times back-propagation, about
ESTIMATORS = {
    "local head": ("local", 1.4),
    "default": ("default", 1.4),
    "sobolev head": ("sobolev", 1.6),
    "low rank 4": ("low_rank(rank=4)", 1.3),
    "low rank 16": ("low_rank(rank=16)", 1.4),
    "linear": ("linear", 1.4),
    "1×256": ("mlp(hidden=1,width=256)", 2.0),
    "1×1024": ("mlp(hidden=1,width=1024)", 4.0),
    "2×1024": ("mlp(hidden=2,width=1024)", 8.0),
}


def cases(scale: Scale) -> list[Case]:
    """A case an estimator; all see the labels."""
    recipe = FullyConnected.at(scale, 4)
    made = [Case(BASE, recipe, "backprop", dearer=1.0), Case("zero", recipe, "zero", dearer=1.0)]
    return made + [
        Case(row, recipe, "synthetic", None, estimator, dearer=dearer)
        for row, (estimator, dearer) in ESTIMATORS.items()
    ]


ESTIMATOR_COST = Study(
    name="estimator-cost",
    title="an estimator's cost against the accuracy that it buys, on MNIST",
    setting="An estimator may be anything; published ones have 0 to 3 hidden layers.",
    differs=(
        "A net of 4 layers of 256 on MNIST; cost is the time of the whole training in one process, as a multiple of "
        "back-propagation's, of one machine. No published figure of it could be checked, so none is quoted."
    ),
    axis="time",
    metric=ACCURACY,
    published=(),
    cases=cases,
)
