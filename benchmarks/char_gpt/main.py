"""English characters, a small GPT with three interfaces and with one: bits per character. See README.md."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from experiments import Rows, main

ROWS: Rows = {
    "backprop": (None, {"method": "backprop"}),
    "default, 1 interface": (["block3"], {}),
    "default, 3 interfaces": (None, {}),
    "local, 3 interfaces": (None, {"estimator": "local"}),
}

if __name__ == "__main__":
    main("char_gpt", "char-gpt", ROWS, __doc__)
