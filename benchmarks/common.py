"""What the benchmarks share: the environment beside every figure, medians with their spread, the nets."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import nn

from syngrad.results import environment


def write(path: str | Path, document: dict[str, Any]) -> None:
    """The document with its environment, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"environment": environment(threads=torch.get_num_threads()), **document}, indent=1)
    partial = path.with_suffix(".partial")
    partial.write_text(text + "\n")
    os.replace(partial, path)


def interleaved(
    rows: dict[str, Callable[[], object]], rounds: int, warmup: int, repeats: int = 1
) -> dict[str, list[float]]:
    """Seconds of one call of each row, `rounds` times, taking turns, so that all share the machine's moods."""
    times: dict[str, list[float]] = {name: [] for name in rows}
    for i in range(rounds + warmup):
        for name, call in rows.items():
            start = time.perf_counter()
            for _ in range(repeats):
                call()
            if i >= warmup:
                times[name].append((time.perf_counter() - start) / repeats)
    return times


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    if len(values) == 1:
        return dict.fromkeys(("median", "q1", "q3"), float(values[0]))
    low, middle, high = statistics.quantiles(values, n=4)
    return {"median": middle, "q1": low, "q3": high}


def paired(times: dict[str, list[float]], reference: str) -> dict[str, dict[str, Any]]:
    """For every row its milliseconds, and its ratio to the reference pair by pair."""
    return {
        name: {
            "ms": spread([t * 1e3 for t in row]),
            "ratio": spread([a / b for a, b in zip(row, times[reference], strict=True)]),
        }
        for name, row in times.items()
    }


def mlp(
    layers: int, width: int = 256, seed: int = 0, inputs: int = 784, he: bool = False, batch_norm: bool = False
) -> nn.Sequential:
    """inputs-width×(layers−1)-10 with ReLU, and batch norm before it if wished.

    he: Kaiming-normal weights and zero biases instead of PyTorch's default.
    """
    torch.manual_seed(seed)
    sizes = [inputs] + [width] * (layers - 1)
    parts: list[nn.Module] = []
    for a, b in pairwise(sizes):
        parts += [nn.Linear(a, b), *([nn.BatchNorm1d(b)] if batch_norm else []), nn.ReLU()]
    net = nn.Sequential(*parts, nn.Linear(sizes[-1], 10))
    if he:
        for layer in net:
            if isinstance(layer, nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)
    return net


def every_layer(layers: int, batch_norm: bool = False) -> list[str]:
    """The names of the cuts that put an interface after every hidden layer of :func:`mlp`."""
    return [str((3 if batch_norm else 2) * k) for k in range(1, layers)]


def fused_adam(params: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(params, 1e-3, fused=True)
