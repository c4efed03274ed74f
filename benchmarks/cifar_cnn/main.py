"""CIFAR-10, the small CNN: accuracy with three interfaces and with one, and the time of a step. See README.md."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from experiments import Rows, main

ROWS: Rows = {
    "backprop": (None, {"method": "backprop"}),
    "default, 3 interfaces": (None, {}),
    "default, 1 interface": (["block3"], {}),
    "local, 3 interfaces": (None, {"estimator": "local"}),
    "corrected, 3 interfaces": (None, {"method": "corrected(1)"}),
    "corrected:local, 3 interfaces": (None, {"method": "corrected(1)", "estimator": "local"}),
}

if __name__ == "__main__":
    main("cifar_cnn", "cifar-cnn-small", ROWS, __doc__, timing=True)
