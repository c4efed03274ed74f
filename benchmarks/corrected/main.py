"""True gradients that come late, alone and as what corrects an estimate, on the small GPT. See README.md."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
from experiments import Rows, main

RATE = 3e-3


def nadam(parameters: Any) -> torch.optim.Optimizer:
    """A momentum long enough that a few minibatches' delay is little beside it (arXiv 2505.01099)."""
    return torch.optim.NAdam(parameters, RATE, betas=(0.99, 0.999), momentum_decay=1e-8)


ROWS: Rows = {
    "backprop": (None, {"method": "backprop"}),
    "backprop, NAdam": (None, {"method": "backprop", "optimizer": nadam}),
    "local": (None, {"estimator": "local"}),
    "default": (None, {}),
    "delayed(1)": (None, {"method": "delayed(1)"}),
    "delayed(1), NAdam": (None, {"method": "delayed(1)", "optimizer": nadam}),
    "delayed(4), NAdam": (None, {"method": "delayed(4)", "optimizer": nadam}),
    "corrected(1)": (None, {"method": "corrected(1)"}),
    "corrected(1):local": (None, {"method": "corrected(1)", "estimator": "local"}),
    "corrected(4)": (None, {"method": "corrected(4)"}),
    "corrected(4):local": (None, {"method": "corrected(4)", "estimator": "local"}),
    "corrected(1, every=2):local": (None, {"method": "corrected(1, every=2)", "estimator": "local"}),
    "corrected(1, every=8):local": (None, {"method": "corrected(1, every=8)", "estimator": "local"}),
    "corrected(1, every=4, weight=2):local": (None, {"method": "corrected(1, weight=2)", "estimator": "local"}),
    "corrected(1, every=1):local": (None, {"method": "corrected(1, every=1)", "estimator": "local"}),
    "corrected(1, every=1):local, NAdam": (
        None,
        {"method": "corrected(1, every=1)", "estimator": "local", "optimizer": nadam},
    ),
}

if __name__ == "__main__":
    main("corrected", "char-gpt", ROWS, __doc__)
