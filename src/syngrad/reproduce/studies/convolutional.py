"""The paper's convolutional net on CIFAR-10 (App. C.1), with and without labels, and with heads."""

from __future__ import annotations

from syngrad.reproduce.recipes import Convolutional
from syngrad.reproduce.study import ACCURACY, BASE, Case, PublishedFigure, Scale, Study

LOGS = "logs of the decoupled greedy learning repository"
#: row → method, estimator, times back-propagation, and what is published: best of about 2,000 epochs, at about 100
ROWS = {
    BASE: ("backprop", None, 1.0, 85.72, 76.4),
    "default": ("synthetic", "default", 1.2, None, None),
    "local head": ("synthetic", "local", 1.2, 85.64, 77.1),
    "labels, convolutions": ("synthetic", "conv(hidden=2,width=128,kernel=5)", 3.5, 84.15, 72.5),
    "no labels, convolutions": ("synthetic", "conv(hidden=2,width=128,kernel=5,context=False)", 3.5, 65.16, 46.0),
    "zero": ("zero", None, 0.8, None, None),
}
BEST = "best of about 2,000 epochs at Adam 3e-5"


def _published() -> tuple[PublishedFigure, ...]:
    made = []
    for row, (_, _, _, best, hundred) in ROWS.items():
        if best is not None:
            made.append(PublishedFigure(row, None, best, LOGS, "L", BEST))
            made.append(PublishedFigure(row, None, hundred, LOGS, "L", "at about epoch 100"))
    return tuple(made)


def cases(scale: Scale) -> list[Case]:
    """A case a row."""
    recipe = Convolutional.at(scale)
    return [
        Case(row, recipe, method, None, estimator, dearer=dearer)
        for row, (method, estimator, dearer, _, _) in ROWS.items()
    ]


CNN = Study(
    name="cnn",
    title="the paper's convolutional net on CIFAR-10, 3 interfaces",
    setting=(
        "CIFAR-10, crop and flip; three blocks of 128 convolutions 5×5, batch norm, ReLU and a 3×3 pool (max first, "
        "average after); regressors of 2 × (128 convolutions 5×5, batch norm, ReLU) and a last convolution."
    ),
    differs=(
        "Accuracy at the end, where the logs have the best, or that of epoch 100. Labels enter the first "
        "convolution as constant planes. Below paper scale a small part of the training, and smaller minibatches."
    ),
    axis="",
    metric=ACCURACY,
    published=_published(),
    cases=cases,
)
