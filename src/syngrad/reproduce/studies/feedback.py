"""What comes back: how late, how often, and whether it is the true gradient or made by the next estimator."""

from __future__ import annotations

from syngrad.reproduce.recipes import FullyConnected
from syngrad.reproduce.study import BASE, ERROR, Case, Scale, Study

LINEAR = "labels, linear"
DELAYS, INTERVALS, LAYERS = (1, 2, 4, 8), (1, 2, 4, 8, 16), (3, 6, 11, 21)
UNPUBLISHED = (
    "No published figure of it could be checked, so none is quoted. Fewer updates at a higher rate below paper scale."
)


def delayed(scale: Scale) -> list[Case]:
    """True gradients late; and estimates at once, whose estimator learns as late."""
    recipe = FullyConnected.at(scale, 4)
    made = [Case(BASE, recipe, "backprop", 0, dearer=1.0), Case(LINEAR, recipe, "synthetic", 0, "linear")]
    for delay in scale.some(DELAYS):
        late = {"feedback_delay": delay}
        made.append(Case("true gradients, late", recipe, f"delayed({delay})", delay, dearer=1.5))
        made.append(Case(LINEAR, recipe, "synthetic", delay, "linear", late))
        made.append(Case("corrected late", recipe, f"corrected({delay})", delay, "local", dearer=1.8))
    return made


DELAYED = Study(
    name="delayed",
    title="gradients that come late, by how many minibatches an interface, on MNIST",
    setting="Delayed gradients (arXiv 1804.10574): true gradients are applied so many minibatches late.",
    differs=(
        "A net of 4 layers of 256 on MNIST, where the papers have residual nets on CIFAR-10; and what late feedback "
        f"does to estimates is beside it. {UNPUBLISHED}"
    ),
    axis="minibatches late",
    metric=ERROR,
    published=(),
    cases=delayed,
)


def interval(scale: Scale) -> list[Case]:
    """Feedback for every n-th minibatch."""
    recipe = FullyConnected.at(scale, 4)
    made = [Case(BASE, recipe, "backprop", 1, dearer=1.0)]
    for every in scale.some(INTERVALS):
        for row, estimator in ((LINEAR, "linear"), ("sobolev head", "sobolev")):
            made.append(Case(row, recipe, "synthetic", every, estimator, {"feedback_every": every}))
    return made


FEEDBACK = Study(
    name="feedback",
    title="feedback for every n-th minibatch alone, on MNIST",
    setting="Estimators are fitted to the gradient that comes back, which need not come back for every minibatch.",
    differs=f"A net of 4 layers of 256 on MNIST. {UNPUBLISHED}",
    axis="n",
    metric=ERROR,
    published=(),
    cases=interval,
)


def bootstrapped(scale: Scale) -> list[Case]:
    """Both kinds of target, by depth."""
    made = []
    for layers in scale.some(LAYERS):
        recipe = FullyConnected.at(scale, layers)
        made.append(Case(BASE, recipe, "backprop", layers, dearer=1.0))
        made += [
            Case(f"{kind} targets", recipe, "synthetic", layers, "linear", {"feedback": kind}, dearer=1.6)
            for kind in ("bootstrapped", "true")
        ]
    return made


BOOTSTRAPPED = Study(
    name="bootstrapped",
    title="estimators fitted to bootstrapped or to true gradients, by depth, on MNIST",
    setting=(
        "The target of an estimator is the gradient that the next module sends back, made with that module's own "
        "estimate; only the last one's is the true gradient of the loss."
    ),
    differs=f"A linear estimator that sees the labels; true targets keep every activation. {UNPUBLISHED}",
    axis="layers",
    metric=ERROR,
    published=(),
    cases=bootstrapped,
)
