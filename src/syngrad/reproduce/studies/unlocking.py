"""Layers that are not kept in step: each updates with probability p, or works on predicted inputs as well."""

from __future__ import annotations

from syngrad.reproduce.recipes import FullyConnected
from syngrad.reproduce.study import ACCURACY, BASE, ERROR, Case, PublishedFigure, Scale, Study

PROBABILITIES = (0.05, 0.1, 0.2, 0.5, 1.0)
LINEAR = "labels, linear"
HEAD = "default"
SOURCE = "nitarshan's reproduction"
RECIPE = "3 × 256 and the output, 500,000 updates"


def sporadic(scale: Scale) -> list[Case]:
    """Four layers, at every p; back-propagation is locked, and so has p = 1 alone."""
    recipe = FullyConnected.at(scale, 4)
    made = [
        Case(row, recipe, "synthetic", p, estimator, {"update_probability": p})
        for p in scale.some(PROBABILITIES)
        for row, estimator in ((LINEAR, "linear"), (HEAD, "default"))
    ]
    return [*made, Case(BASE, recipe, "backprop", 1.0, dearer=1.0)]


SPORADIC = Study(
    name="sporadic",
    title="layers that update with probability p, on MNIST",
    setting="MNIST; 3 layers of 256 with batch norm and ReLU, and the output; each layer updates with probability p.",
    differs="Fewer updates at a higher rate below paper scale.",
    axis="p",
    metric=ACCURACY,
    published=(
        PublishedFigure(BASE, 1.0, 97.64, SOURCE, "L", RECIPE),
        PublishedFigure(LINEAR, 0.2, 96.95, SOURCE, "L", RECIPE),
    ),
    cases=sporadic,
)

LAYERS = (3, 4, 5, 6)
#: row → options of the Trainer
UNLOCKED = {
    LINEAR: {},
    "and inputs, linear": {"inputs": "linear"},
    "and inputs, 1×256": {"inputs": "mlp(width=256)"},
}


def unlock(scale: Scale) -> list[Case]:
    """Gradients predicted, and inputs too, at every depth."""
    made = []
    for layers in scale.some(LAYERS):
        recipe = FullyConnected.at(scale, layers)
        made.append(Case(BASE, recipe, "backprop", layers, dearer=1.0))
        for row, options in UNLOCKED.items():
            made.append(Case(row, recipe, "synthetic", layers, "linear", options, dearer=2.5 if options else 1.4))
    return made


UNLOCK = Study(
    name="unlock",
    title="complete unlock: inputs predicted as well as gradients, on MNIST",
    setting=(
        "MNIST; each layer's input is predicted from the net's input, fitted to the real one by L2, beside synthetic "
        "gradients from a linear estimator that sees the labels."
    ),
    differs=(
        "In one process and with every update, where the paper has layers update at random. No published figure of it "
        "could be checked, so none is quoted. Fewer updates at a higher rate below paper scale."
    ),
    axis="layers",
    metric=ERROR,
    published=(),
    cases=unlock,
)
