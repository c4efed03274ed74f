"""One tree's step times: `python steps.py ROUNDS`, run with that tree's source; prints seconds a row as JSON."""

from __future__ import annotations

import json
import statistics
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

#: row → (width, flat options)
ROWS: dict[str, tuple[int, dict[str, Any]]] = {
    "backprop, width 256": (256, {"method": "backprop"}),
    "synthetic, width 256": (256, {"method": "synthetic"}),
    "synthetic, width 1024": (1024, {"method": "synthetic"}),
    "synthetic, feedback every minibatch": (256, {"method": "synthetic", "feedback_every": 1}),
    "synthetic, local": (256, {"method": "synthetic", "estimator": "local"}),
    "synthetic, predicted inputs": (256, {"method": "synthetic", "inputs": "linear"}),
    "mixed(0.5)": (256, {"method": "mixed(0.5)"}),
    "delayed(1)": (256, {"method": "delayed(1)"}),
    "zero": (256, {"method": "zero"}),
    "synthetic, narrow: 8 stages of 32": (32, {"method": "synthetic"}),
}


def model(width: int) -> tuple[nn.Module, list[str]]:
    torch.manual_seed(0)
    hidden = 8 if width == 32 else 4
    layers: list[nn.Module] = [nn.Linear(784, width), nn.ReLU()]
    for _ in range(hidden - 1):
        layers += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 10)), [str(2 * k) for k in range(1, hidden + 1)]


def main() -> None:
    rounds = int(sys.argv[1])
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(256, 784, generator=generator), torch.randint(10, (256,), generator=generator)
    trainers = {}
    for name, (width, flat) in ROWS.items():
        net, cuts = model(width)
        if flat["method"] == "backprop" or "inputs" not in flat:
            given = syngrad.decouple(net, cuts=cuts)
        else:
            given = syngrad.decouple(net, cuts=cuts[1:3])
        trainers[name] = adapter.trainer(given, {"loss": F.cross_entropy, "progress": False, **flat})
        for _ in range(20):
            trainers[name].step((x, y))
    seconds: dict[str, list[float]] = {name: [] for name in trainers}
    for _ in range(rounds):
        for name, trainer in trainers.items():
            start = time.perf_counter()
            trainer.step((x, y))
            seconds[name].append(time.perf_counter() - start)
    print(json.dumps({name: statistics.median(each) for name, each in seconds.items()}))


if __name__ == "__main__":
    main()
