"""CIFAR-10, a small residual net with one interface in its middle. See README.md."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
from experiments import Rows, main

ROWS: Rows = {
    "backprop": (None, {"method": "backprop"}),
    "default, 1 interface": (None, {}),
    "default, 3 interfaces": (["block2", "block3", "head"], {}),
    "local, 1 interface": (None, {"estimator": "local"}),
    "corrected, 1 interface": (None, {"method": "corrected(1)"}),
    "corrected:local, 1 interface": (None, {"method": "corrected(1)", "estimator": "local"}),
}

if __name__ == "__main__":
    main("resnet", "resnet", ROWS, __doc__)
