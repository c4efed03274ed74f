"""BP(λ): mixtures of what came back and what was foretold, layer by layer, and step by step online."""

from __future__ import annotations

from syngrad.reproduce.recipes import FullyConnected, Sequence
from syngrad.reproduce.study import ACCURACY, BASE, ERROR, Case, PublishedFigure, Scale, Study

LAMBDAS = (0.0, 0.25, 0.5, 0.75, 1.0)
MIXED = "mixture"


def mixed(scale: Scale) -> list[Case]:
    """From synthetic gradients alone to back-propagation."""
    recipe = FullyConnected.at(scale, 6)
    made = [Case(MIXED, recipe, f"mixed({lam})", lam, "linear", dearer=1.5) for lam in scale.some(LAMBDAS)]
    return [*made, Case(BASE, recipe, "backprop", 1.0, dearer=1.0)]


BP_LAMBDA = Study(
    name="bp-lambda",
    title="BP(λ): each layer passes a mixture of gradient and estimate on, on MNIST",
    setting=(
        "Each layer mixes the gradient that came back with its estimate, and the mixture goes further; λ = 1 is "
        "back-propagation, λ = 0 synthetic gradients alone."
    ),
    differs=(
        "A net of 6 layers of 256 on MNIST, linear estimators that see the labels. No published figure of it could be "
        "checked, so none is quoted. Fewer updates at a higher rate below paper scale."
    ),
    axis="λ",
    metric=ERROR,
    published=(
        PublishedFigure(MIXED, 1.0, None, "Jaderberg et al. 2016 (arXiv 1608.05343)", "P", "is back-propagation"),
    ),
    cases=mixed,
)  # fmt: skip

ROWS, STEPS = "row-mnist", 28
FULL = "bptt over 28 steps"


def online(scale: Scale) -> list[Case]:
    """λ of the online algorithm, and truncated back-propagation with and without synthetic gradients."""
    stepwise = Sequence(ROWS, 1, scale.windows * 4, scale.evaluations)
    made = [
        Case("online", stepwise, f"online({lam:g})", lam, "linear", dearer=3.0)
        for lam in scale.some((0.0, 0.5, 0.9, 1.0))
    ]
    four = Sequence(ROWS, 4, scale.windows, scale.evaluations)
    whole = Sequence(ROWS, STEPS, max(scale.windows * 4 // STEPS, 1), scale.evaluations)
    made.append(Case("windows of 4", four, "bptt(4)", 0.0))
    made.append(Case("windows of 4, synthetic", four, "synthetic(4)", 0.0, dearer=1.5))
    made.append(Case(FULL, whole, "bptt(28)", 1.0))
    return made


ONLINE = Study(
    name="online-bp-lambda",
    title="online BP(λ) on digits that are shown row by row",
    setting="Sequential digits, a row a step (Pemberton & Costa 2024, arXiv 2401.07044), a linear estimator.",
    differs=(
        "A GRU of 32, and estimators that see the label and the step. Digits are MNIST's where they have been fetched, "
        "else Fashion-MNIST's bundled images. No published figure of it could be checked, so none is quoted."
    ),
    axis="λ",
    metric=ACCURACY,
    published=(),
    cases=online,
    base=FULL,
)
