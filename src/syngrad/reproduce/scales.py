"""The three scales at which a study is run: whether it runs at all, what can be said on a CPU, and as published."""

from __future__ import annotations

from collections.abc import Collection

from syngrad.reproduce.study import Scale

QUICK = Scale(
    "quick", steps=10, rate=1e-3, batch=64, conv_steps=2, conv_batch=4, samples=1_000, tested=50, windows=20, seeds=1,
    whole=False,
)  # fmt: skip
STANDARD = Scale(
    "standard", steps=5_000, rate=3e-4, batch=256, conv_steps=400, conv_batch=128, samples=None, tested=None,
    windows=12_000, seeds=3, evaluations=5,
)  # fmt: skip
PAPER = Scale(
    "paper", steps=500_000, rate=3e-5, batch=256, conv_steps=500_000, conv_batch=256, samples=None, tested=None,
    windows=500_000, seeds=3, evaluations=100,
)  # fmt: skip

#: name → scale, from the shortest on
SCALES = {scale.name: scale for scale in (QUICK, STANDARD, PAPER)}


def told(scale: Scale, kinds: Collection[str]) -> str:
    """What a scale is for nets of these kinds, in a sentence or two.

    Args:
        kinds: class names of recipes.
    """
    samples = "all training images" if scale.samples is None else f"{scale.samples:,} training images"
    said = {
        "FullyConnected": f"{scale.steps:,} updates of batch {scale.batch} at Adam {scale.rate:g}, {samples}",
        "Convolutional": f"{scale.conv_steps:,} updates of batch {scale.conv_batch} at Adam {scale.rate:g}, {samples}",
        "Sequence": f"about {scale.windows:,} updates",
    }
    parts = "; ".join(text for kind, text in said.items() if kind in kinds)
    if scale.name == "quick":
        return f"Scale quick, a smoke test: {parts}. Its figures say that it runs, and nothing else."
    return f"Scale {scale.name}: {parts}."
