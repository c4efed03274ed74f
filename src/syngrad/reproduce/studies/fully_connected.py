"""Fully connected nets of 3 to 6 layers, an interface after every hidden one, with estimators of every kind."""

from __future__ import annotations

from syngrad.reproduce.recipes import FullyConnected
from syngrad.reproduce.study import BASE, ERROR, Case, PublishedFigure, Scale, Study

LAYERS = (3, 4, 5, 6)
LINEAR = "labels, linear"
TWO_HIDDEN = "no labels, 2×1024"
#: row → estimator, and about how many times as long as back-propagation it takes
ESTIMATORS = {
    "no labels, linear": ("linear(context=False)", 1.4),
    "no labels, 1×1024": ("mlp(hidden=1,width=1024,context=False)", 4.0),
    TWO_HIDDEN: ("mlp(hidden=2,width=1024,context=False)", 8.0),
    "no labels, 3×1024": ("mlp(hidden=3,width=1024,context=False)", 12.0),
    LINEAR: ("linear", 1.4),
    "labels, low rank": ("low_rank", 1.4),
    "local head": ("local", 1.4),
    "sobolev head": ("sobolev", 1.6),
}
SETTING = (
    "{data}; layers of Linear 256, batch norm and ReLU, an interface after every hidden one; Adam 3e-5, divided by 10 "
    "at 300,000 and 400,000 of 500,000 updates of batch 256."
)
DIFFERS = (
    "An estimator's loss is summed over features and averaged over samples (published: L2, without the reduction). "
    "{more}Fewer updates at a higher rate below paper scale."
)
SOURCE = "kbullaughey's reproduction"


def cases(data: str, scale: Scale) -> list[Case]:
    """Every row at every depth."""
    made = []
    for layers in scale.some(LAYERS):
        recipe = FullyConnected.at(scale, layers, data)
        made += [Case(BASE, recipe, "backprop", layers, dearer=1.0), Case("zero", recipe, "zero", layers, dearer=1.0)]
        made += [
            Case(row, recipe, "synthetic", layers, estimator, dearer=dearer)
            for row, (estimator, dearer) in ESTIMATORS.items()
        ]
    return made


FCN = Study(
    name="fcn",
    title="fully connected nets of 3 to 6 layers on MNIST, by estimator",
    setting=SETTING.format(data="MNIST"),
    differs=DIFFERS.format(more="The heads and low rank are not in the paper. "),
    axis="layers",
    metric=ERROR,
    published=(
        PublishedFigure(BASE, 3, 2.0, SOURCE, "L"),
        PublishedFigure(LINEAR, 3, 2.0, SOURCE, "L"),
        PublishedFigure(TWO_HIDDEN, 3, 2.7, SOURCE, "L"),
    ),
    cases=lambda scale: cases("MNIST", scale),
)

FCN_CIFAR10 = Study(
    name="fcn-cifar10",
    title="the same nets on CIFAR-10",
    setting=SETTING.format(data="CIFAR-10"),
    differs=DIFFERS.format(more="No published figure of it could be checked, so none is quoted. "),
    axis="layers",
    metric=ERROR,
    published=(),
    cases=lambda scale: cases("CIFAR-10", scale),
)
