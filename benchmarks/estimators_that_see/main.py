"""Heads that see more of what later stages need, on the small GPT. See README.md."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from experiments import Rows, main
from trials import attention, following, mixture

SEEING = partial(attention, inner=32)
BY_LABEL = partial(mixture, by_label=True)
ROWS: Rows = {
    "backprop": (None, {"method": "backprop"}),
    "local": (None, {"estimator": "local"}),
    "default": (None, {}),
    "corrected(1):local": (None, {"method": "corrected(1)", "estimator": "local"}),
    "a: attention 32": (None, {"estimator": SEEING}),
    "a: attention 32, derivative": (
        None,
        {"estimator": partial(SEEING, derivative=1.0, feedback_every=4)},
    ),
    "a, d: attention 32, true feedback": (
        None,
        {"estimator": partial(SEEING, derivative=1.0, feedback_every=4), "feedback": "true"},
    ),
    "b: next attention, followed": (None, {"estimator": following(0.5, half=True)}),
    "b: next block, followed": (None, {"estimator": following(0.5)}),
    "c: next attention, trained along": (None, {"estimator": following(0.0, half=True)}),
    "c: next block, trained along": (None, {"estimator": following(0.0)}),
    "d: default, true feedback": (None, {"feedback": "true"}),
    "e: mean residual": (None, {"estimator": partial(mixture, by_label=False)}),
    "e: mean residual by label": (None, {"estimator": BY_LABEL}),
    "e: mean residual by label, true feedback": (
        None,
        {"estimator": BY_LABEL, "feedback": "true"},
    ),
}

if __name__ == "__main__":
    main("estimators_that_see", f"{Path(__file__).with_name('shorter.py')}:half", ROWS, __doc__)
