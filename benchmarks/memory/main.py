"""Saved-activation bytes and peak memory of a step, against back-propagation and checkpointing. See README.md."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint_sequential

import syngrad
from syngrad.core.memory import SavedBytes

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import fused_adam, interleaved, paired, write


def net(stages: int, layers: int, width: int) -> tuple[nn.Sequential, list[str]]:
    """`stages` equal stages of `layers` × (Linear, ReLU), an output layer at the end; and where it is cut."""
    torch.manual_seed(0)
    parts: list[nn.Module] = []
    for _ in range(stages * layers):
        parts += [nn.Linear(width, width), nn.ReLU()]
    return nn.Sequential(*parts, nn.Linear(width, 10)), [str(2 * layers * k) for k in range(1, stages)]


def trainer(method: str, stages: int, layers: int, width: int) -> syngrad.Trainer:
    model, cuts = net(stages, layers, width)
    return syngrad.Trainer(
        syngrad.decouple(model, cuts=cuts),
        loss=F.cross_entropy,
        optimizer=fused_adam,
        method=method,
        feedback=syngrad.Feedback(every=1, quality_every=0),
    )


def saved(method: str, stages: int, layers: int, width: int, batch: tuple[torch.Tensor, torch.Tensor]) -> int:
    """The peak of saved bytes over a step in which feedback comes back at every interface."""
    made = trainer(method, stages, layers, width)
    made.step(batch)
    with SavedBytes(made.model, made.net.estimators) as meter:
        made.step(batch)
    return meter.peak_bytes


def checkpointed(stages: int, layers: int, width: int) -> Any:
    """One step of back-propagation with each stage recomputed in the backward pass."""
    model, _ = net(stages, layers, width)
    optimizer = fused_adam(model.parameters())

    def step(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        optimizer.zero_grad()
        x = batch[0].detach().requires_grad_()
        F.cross_entropy(checkpoint_sequential(model, stages, x, use_reentrant=False), batch[1]).backward()
        optimizer.step()

    return model, step


def peak(method: str, stages: int, layers: int, width: int, batch_size: int) -> int:
    """Bytes by which a process's peak memory grows over a few steps, after everything else is in place."""
    torch.set_num_threads(1)
    batch = torch.randn(batch_size, width), torch.randint(0, 10, (batch_size,))
    small = batch[0][:8], batch[1][:8]
    step: Any
    if method == "checkpoint":
        _, step = checkpointed(stages, layers, width)
    else:
        step = trainer(method, stages, layers, width).step
    step(small)
    step(small)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
    before = status("VmHWM")
    for _ in range(2):
        step(batch)
    return status("VmHWM") - before


def status(field: str) -> int:
    """A figure of this process from Linux's /proc, in bytes."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def peak_of_process(method: str, shape: dict[str, int], settings: dict[str, str]) -> int:
    """:func:`peak` in a fresh process."""
    numbers = [str(shape[name]) for name in ("stages", "layers", "width", "batch")]
    command = [sys.executable, __file__, "--peak", method, *numbers]
    run = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **settings})
    return int(run.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--peak", nargs=5, metavar=("METHOD", "STAGES", "LAYERS", "WIDTH", "BATCH"))
    parser.add_argument("--parts", nargs="+", default=["saved", "peak", "speed"], choices=["saved", "peak", "speed"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "memory.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak:
        method, *numbers = options.peak
        print(peak(method, *map(int, numbers)))
        return
    width, size = 256, 1024
    batch = torch.randn(size, width), torch.randint(0, 10, (size,))
    kept = json.loads(Path(options.out).read_text())["results"] if Path(options.out).exists() else {}
    results: dict[str, Any] = {**kept, **{part: [] for part in options.parts}}
    for layers in (1, 4) if "saved" in options.parts else ():
        for stages in (4, 8, 16):
            ours, theirs = (saved(m, stages, layers, width, batch) for m in ("synthetic", "backprop"))
            bar = (1.3 if layers >= 4 else 2.0) / stages
            row = {
                "stages": stages,
                "layers": layers,
                "synthetic": ours,
                "backprop": theirs,
                "ratio": ours / theirs,
                "times_stages": ours / theirs * stages,
                "bar": bar,
            }
            results["saved"].append(row)
            print(
                f"saved: K={stages:2d}, {layers} layers a stage: {ours:>10,} of {theirs:>11,} bytes = "
                f"{row['times_stages']:.3f}/K (bar {bar * stages:.1f}/K)"
            )
    for stages in (4, 8, 16) if "peak" in options.parts else ():
        row = {"stages": stages, "layers": 4, "width": 256, "batch": 8192}
        for method in ("backprop", "synthetic", "checkpoint"):
            row[method] = peak_of_process(method, row, {})
            row[f"{method}_mapped"] = peak_of_process(method, row, {"MALLOC_MMAP_THRESHOLD_": "1048576"})
        results["peak"].append(row)
        print(f"peak: K={stages:2d}: " + json.dumps(row))
    for stages in (4, 8, 16) if "speed" in options.parts else ():
        ours_step = trainer("synthetic", stages, 4, width).step
        plain_step = trainer("backprop", stages, 4, width).step
        model, checkpoint_step = checkpointed(stages, 4, width)
        with SavedBytes(model) as meter:
            checkpoint_step(batch)
        with SavedBytes() as ours_meter:
            ours_step(batch)
        rows = {
            "checkpoint": lambda f=checkpoint_step: f(batch),
            "synthetic": lambda f=ours_step: f(batch),
            "backprop": lambda f=plain_step: f(batch),
        }
        row = {
            "stages": stages,
            "layers": 4,
            "checkpoint_bytes": meter.peak_bytes,
            "synthetic_bytes": ours_meter.peak_bytes,
            **paired(interleaved(rows, options.rounds, 3), "checkpoint"),
        }
        results["speed"].append(row)
        print(
            f"speed: K={stages:2d}: synthetic ×{row['synthetic']['ratio']['median']:.3f} of checkpointing, "
            f"back-propagation ×{row['backprop']['ratio']['median']:.3f}; "
            f"bytes {ours_meter.peak_bytes:,} against {meter.peak_bytes:,}"
        )
    write(options.out, {"claim": "memory", "threads": 1, "results": results})


if __name__ == "__main__":
    main()
