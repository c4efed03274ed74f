"""English, character by character, with an LSTM: windows of 8 with estimates against windows of 20. See README.md."""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
from lessons import main

ROWS = ("bptt(8)", "bptt(20)", "synthetic(8)", "auxiliary(8)")
CELLS: list[tuple[str, str, str, dict[str, Any]]] = [
    ("char-lm", "char-lm", row, {"patience": None, "steps": 3_000, "epochs": 20}) for row in ROWS
]

if __name__ == "__main__":
    main("char_lm", CELLS, __doc__)
