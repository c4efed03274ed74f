"""The three scales at which a study is run: whether it runs at all, what can be said on a CPU, and as published."""

from __future__ import annotations

from syngrad.reproduce.study import Scale

QUICK = Scale(
    "quick", steps=10, rate=1e-3, batch=64, conv_steps=2, conv_batch=4, samples=1_000, tested=50, windows=20, seeds=1,
    whole=False,
)  # fmt: skip
STANDARD = Scale(
    "standard", steps=10_000, rate=3e-4, batch=256, conv_steps=800, conv_batch=128, samples=None, tested=None, windows=12_000,
    seeds=3, evaluations=5,
)  # fmt: skip
PAPER = Scale(
    "paper", steps=500_000, rate=3e-5, batch=256, conv_steps=500_000, conv_batch=256, samples=None, tested=None,
    windows=500_000, seeds=3, evaluations=100,
)  # fmt: skip

#: name → scale, from the shortest on
SCALES = {scale.name: scale for scale in (QUICK, STANDARD, PAPER)}


def told(scale: Scale) -> str:
    """What a scale is, in a sentence."""
    samples = "all training images" if scale.samples is None else f"{scale.samples:,} training images"
    said = (
        f"{scale.steps:,} updates at Adam {scale.rate:g} with batch {scale.batch}, {scale.conv_steps:,} of a convolutional net "
        f"with batch {scale.conv_batch}, {scale.windows:,} of a recurrent one; {samples}"
    )
    if scale.name == "quick":
        return f"quick, a smoke test: {said}. Its figures say that it runs, and nothing else."
    return f"{scale.name}: {said}."
