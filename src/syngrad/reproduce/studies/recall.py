"""Copy and Repeat Copy: the longest output that a net learns to give, by the window that it is trained in."""

from __future__ import annotations

from syngrad.reproduce.recipes import Sequence
from syngrad.reproduce.study import LENGTH, Case, PublishedFigure, Scale, Study

WINDOWS = (2, 3, 4, 5, 8)
PLAIN, SYNTHETIC = "truncated", "synthetic"
#: row → method, estimator, times truncated back-propagation
ROWS: dict[str, tuple[str, str | None, float]] = {
    PLAIN: ("bptt({})", None, 1.0),
    SYNTHETIC: ("synthetic({})", None, 1.5),
    "and the auxiliary task": ("auxiliary({})", None, 1.7),
    "synthetic, state alone": ("synthetic({})", "linear(context=False)", 1.5),
}


def cases(name: str, scale: Scale) -> list[Case]:
    """Every row at every window, with equally many updates."""
    made = []
    for window in scale.some(WINDOWS):
        recipe = Sequence(name, window, scale.windows, scale.evaluations)
        for row, (method, estimator, dearer) in ROWS.items():
            made.append(Case(row, recipe, method.format(window), window, estimator, dearer=dearer))
    return made


def _study(name: str, what: str) -> Study:
    claims = tuple(
        PublishedFigure(SYNTHETIC, window, None, "a reader's notes on Jaderberg et al. 2016", "I", "≥ 2 × truncated")
        for window in WINDOWS
    )
    return Study(
        name=name,
        title=f"{what}: the longest output solved, by the window T",
        setting=(
            f"{what} of 8-bit vectors; an LSTM trained in windows of T steps; the task gets longer when the loss falls "
            "under 0.15 bits."
        ),
        differs=(
            "An LSTM of 128, minibatches of one length, and estimators that see the vectors to come, where the paper's "
            "see the state alone, which is the last row."
        ),
        axis="T",
        metric=LENGTH,
        published=claims,
        cases=lambda scale: cases(name, scale),
        base=PLAIN,
    )


COPY = _study("copy", "Copy")
REPEAT_COPY = _study("repeat-copy", "Repeat Copy")
