"""One tree's rows: reads a row's name a line, runs a few of its steps, and answers with their seconds.

Run with that tree's source; main.py lets two of these take turns.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "identical"))

import adapter

import syngrad

#: row → (width, layers, cuts of them all or two, flat options)
ROWS: dict[str, tuple[int, int, bool, dict[str, Any]]] = {
    "backprop, width 256": (256, 4, True, {"method": "backprop"}),
    "synthetic, width 256": (256, 4, True, {"method": "synthetic"}),
    "synthetic, width 1024": (1024, 4, True, {"method": "synthetic"}),
    "synthetic, feedback every minibatch": (256, 4, True, {"method": "synthetic", "feedback_every": 1}),
    "synthetic, local": (256, 4, True, {"method": "synthetic", "estimator": "local"}),
    "synthetic, predicted inputs": (256, 4, False, {"method": "synthetic", "inputs": "linear"}),
    "mixed(0.5)": (256, 4, True, {"method": "mixed(0.5)"}),
    "delayed(1)": (256, 4, True, {"method": "delayed(1)"}),
    "zero": (256, 4, True, {"method": "zero"}),
    "synthetic, 8 stages of width 32": (32, 8, True, {"method": "synthetic"}),
}
#: steps between two looks at the clock
STEPS = 4


def made(name: str) -> Any:
    """The row's trainer, warm."""
    width, hidden, everywhere, flat = ROWS[name]
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Linear(784, width), nn.ReLU()]
    for _ in range(hidden - 1):
        layers += [nn.Linear(width, width), nn.ReLU()]
    cuts = [str(2 * k) for k in range(1, hidden + 1)]
    net = syngrad.decouple(nn.Sequential(*layers, nn.Linear(width, 10)), cuts=cuts if everywhere else cuts[1:3])
    return adapter.trainer(net, {"loss": F.cross_entropy, "progress": False, **flat})


def main() -> None:
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    batch = torch.randn(256, 784, generator=generator), torch.randint(10, (256,), generator=generator)
    trainers: dict[str, Any] = {}
    for line in sys.stdin:
        name = line.strip()
        if name not in trainers:
            trainers[name] = made(name)
            for _ in range(12):
                trainers[name].step(batch)
        trainer = trainers[name]
        start = time.perf_counter()
        for _ in range(STEPS):
            trainer.step(batch)
        print((time.perf_counter() - start) / STEPS, flush=True)


if __name__ == "__main__":
    main()
