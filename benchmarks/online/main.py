"""Online BP(λ) against synthetic gradients over n steps, at equal steps: digits by rows, and copy. See README.md."""

import sys
from pathlib import Path
from typing import Any

from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from lessons import main

from syngrad.experiments.copying import BITS

DIGITS = (
    "bptt(28)",
    "bptt(4)",
    "synthetic(1)",
    "synthetic(2)",
    "synthetic(4)",
    "online(0)",
    "online(0.9)",
    "online(1)",
)
COPY = ("bptt(4)", "synthetic(1)", "synthetic(2)", "synthetic(4)", "online(0.9)")
#: units of the net that copies: a linear estimator's trace has as many numbers a sample, cubed
HIDDEN = 40


def model() -> tuple[nn.Module, nn.Module]:
    return nn.GRU(BITS + 2, HIDDEN, batch_first=True), nn.Linear(HIDDEN, BITS)


#: the estimate enters the core by so much, in a second group
LESS: dict[str, Any] = {"steps": 28 * 100, "epochs": 4, "options": {"inject": 0.3}}
CELLS: list[tuple[str, str, str, dict[str, Any]]] = [
    *(("row-mnist", "row-mnist", row, {"steps": 28 * 100, "epochs": 4}) for row in DIGITS),
    *(
        ("row-mnist, injected at 0.3", "row-mnist", row, LESS)
        for row in ("synthetic(1)", "synthetic(2)", "online(0.9)")
    ),
    *(("copy", "copy", row, {"model": model, "online": "linear", "steps": 1_200, "epochs": 10}) for row in COPY),
]

if __name__ == "__main__":
    main("online", CELLS, __doc__)
