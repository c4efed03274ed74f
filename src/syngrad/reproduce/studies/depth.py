"""How deep a net may be: an interface after every layer up to 21, and 50 layers with one in the middle."""

from __future__ import annotations

from syngrad.reproduce.recipes import FullyConnected
from syngrad.reproduce.study import ACCURACY, BASE, Case, PublishedFigure, Scale, Study

LAYERS, MIDDLE = (4, 8, 16, 21), (10, 20, 50)
LINEAR = "labels, linear"
REGRESSOR = "no labels, 2×1024"
#: row → estimator, times back-propagation
ROWS = {"default": ("default", 1.4), "local head": ("local", 1.4), LINEAR: ("linear", 1.4)}
ONE = {"default": ("default", 1.1), LINEAR: ("linear", 1.1), REGRESSOR: ("mlp(hidden=2,width=1024,context=False)", 1.6)}
FEW = "jacobdineen's reproduction"
SMALLER = "with 5,000 samples and its own estimator"


def cases(scale: Scale, places: tuple[int, ...], rows: dict[str, tuple[str, float]], middle: bool) -> list[Case]:
    """Every row at every depth."""
    made = []
    for layers in scale.some(places):
        recipe = FullyConnected.at(scale, layers, middle=middle)
        made.append(Case(BASE, recipe, "backprop", layers, dearer=1.0))
        for row, (estimator, dearer) in rows.items():
            made.append(Case(row, recipe, "synthetic", layers, estimator, dearer=dearer))
    return made


DEPTH = Study(
    name="depth",
    title="up to 21 layers on MNIST, an interface after every one",
    setting="MNIST; layers of Linear 256, batch norm and ReLU, an interface after every hidden one.",
    differs=(
        "All training images, where the figures with a value are of 5,000 samples. The heads are not in the paper. "
        "Fewer updates at a higher rate below paper scale."
    ),
    axis="layers",
    metric=ACCURACY,
    published=(
        PublishedFigure(BASE, 4, 97.5, FEW, "L", SMALLER),
        PublishedFigure(LINEAR, 4, 95.5, FEW, "L", SMALLER),
        PublishedFigure(BASE, 8, 98.0, FEW, "L", SMALLER),
        PublishedFigure(LINEAR, 8, 92.0, FEW, "L", SMALLER),
        PublishedFigure(LINEAR, 21, None, "Jaderberg et al. 2016 (arXiv 1608.05343)", "I", "trains"),
    ),
    cases=lambda scale: cases(scale, LAYERS, ROWS, middle=False),
)

ONE_INTERFACE = Study(
    name="one-interface",
    title="up to 50 layers on MNIST, one interface in the middle",
    setting="Nets of up to 50 layers with batch norm, and one estimator in the middle.",
    differs="Layers of 256 on MNIST, as in fcn. The paper compares the layers' representations too; here they are not.",
    axis="layers",
    metric=ACCURACY,
    published=(
        PublishedFigure(
            REGRESSOR, 50, None, "Czarnecki et al. 2017 (arXiv 1703.00522)", "I", "reaches BP's function"
        ),
    ),
    cases=lambda scale: cases(scale, MIDDLE, ONE, middle=True),
)  # fmt: skip
