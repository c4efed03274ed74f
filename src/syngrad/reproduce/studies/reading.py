"""Text, character by character, trained in short windows with estimates of what each cuts off."""

from __future__ import annotations

from syngrad.reproduce.recipes import Sequence
from syngrad.reproduce.study import BITS, Case, Scale, Study

WINDOWS = (2, 4, 8, 20)
PLAIN = "truncated"
ROWS = {PLAIN: ("bptt({})", 1.0), "synthetic": ("synthetic({})", 1.4), "and the auxiliary task": ("auxiliary({})", 1.6)}


def cases(scale: Scale) -> list[Case]:
    """Every row at every window, over equally much text."""
    made = []
    for window in scale.some(WINDOWS):
        updates = max(scale.windows * WINDOWS[1] // window, 1)
        recipe = Sequence("char-lm", window, updates, scale.evaluations, patience=3)
        for row, (method, dearer) in ROWS.items():
            made.append(Case(row, recipe, method.format(window), window, dearer=dearer))
    return made


CHARACTERS = Study(
    name="characters",
    title="a language model of characters, by the window T",
    setting="Penn Treebank by characters, bits per character, early stopping, no learning-rate decay.",
    differs=(
        "Books from Project Gutenberg, since there is no copy of Penn Treebank here; an LSTM of 128; estimators that "
        "see the next characters. No published figure can be quoted for other text."
    ),
    axis="T",
    metric=BITS,
    published=(),
    cases=cases,
    base=PLAIN,
)
