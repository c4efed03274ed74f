"""Accuracy on full Fashion-MNIST against depth, several seeds, paired with back-propagation. See README.md."""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

import syngrad
from syngrad.data import TensorBatches, fashion_mnist

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import every_layer, fused_adam, mlp, write

BATCH, LAST = 256, 3

#: name → options of the Trainer; "batch norm" in a name puts it into the network, as the paper's layers have it
METHODS: dict[str, dict[str, Any]] = {
    "backprop": {"method": "backprop"},
    "default": {},
    "local": {"estimator": "local"},
    "sobolev": {"estimator": "sobolev"},
    "linear": {"estimator": "linear"},
    "mlp": {"estimator": "mlp"},
    "zero": {"method": "zero"},
    "corrected": {"method": "corrected(1)"},
    "corrected:local": {"method": "corrected(1)", "estimator": "local"},
    "linear, true feedback": {"estimator": "linear", "feedback": "true"},
    "batch norm: backprop": {"method": "backprop"},
    "batch norm: default": {},
    "batch norm: linear": {"estimator": "linear"},
    "batch norm: linear, true feedback": {"estimator": "linear", "feedback": "true"},
    "batch norm: mlp, true feedback": {"estimator": "mlp", "feedback": "true"},
}
NORMED = "batch norm: "


def reference(name: str) -> str:
    """Back-propagation in the same network."""
    return f"{NORMED}backprop" if name.startswith(NORMED) else "backprop"


#: two-sided 95 % quantiles of Student's t by degrees of freedom
T95 = {1: 12.71, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}


def run(root: str, name: str, layers: int, seed: int, epochs: int, he: bool) -> dict[str, Any]:
    """One training run; the metric of every epoch."""
    torch.set_num_threads(1)
    x, y = fashion_mnist(train=True, root=root)
    test = TensorBatches(*fashion_mnist(train=False, root=root), batch_size=1000)
    train = TensorBatches(x.flatten(1), y, batch_size=BATCH, shuffle=True, seed=seed)
    test = TensorBatches(test.tensors[0].flatten(1), test.tensors[1], batch_size=1000)
    normed = name.startswith(NORMED)
    net = syngrad.decouple(mlp(layers, seed=seed, he=he, batch_norm=normed), cuts=every_layer(layers, normed))
    trainer = syngrad.Trainer(
        net,
        loss=F.cross_entropy,
        optimizer=fused_adam,
        metric="accuracy",
        scheduler=lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(train)),
        scheduler_every="step",
        seed=seed,
        progress=False,
        **METHODS[name],
    )
    history = trainer.fit(train, epochs=epochs, validate=test)
    values = [value for _, _, value in history.values()]
    return {
        "method": name,
        "layers": layers,
        "seed": seed,
        "epochs": epochs,
        "he": he,
        "value": statistics.mean(values[-LAST:]),
        "history": values,
        "cosine": [row["cosine"] for row in history.interfaces],
        "train_s": history.train_s,
    }


def aggregate(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and spread of every row, and the paired difference to back-propagation in points with its 95 % interval."""
    rows = []
    for he, layers in sorted({(r["he"], r["layers"]) for r in runs}):
        group = [r for r in runs if r["layers"] == layers and r["he"] == he]
        for name in METHODS:
            exact = {r["seed"]: r["value"] for r in group if r["method"] == reference(name)}
            values = {r["seed"]: r["value"] for r in group if r["method"] == name}
            if not values:
                continue
            gaps = [100 * (values[s] - exact[s]) for s in sorted(values.keys() & exact.keys())]
            several = len(gaps) > 1
            rows.append(
                {
                    "he": he,
                    "layers": layers,
                    "method": name,
                    "seeds": len(values),
                    "mean": statistics.mean(values.values()),
                    "stdev": statistics.stdev(values.values()) if len(values) > 1 else None,
                    "gap_points": statistics.mean(gaps) if gaps else None,
                    "gap_95": T95.get(len(gaps) - 1, 1.96) * statistics.stdev(gaps) / math.sqrt(len(gaps))
                    if several
                    else None,
                }
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True, help="directory with the four Fashion-MNIST idx files")
    parser.add_argument("--layers", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--initial", nargs="+", default=["default", "he"], choices=["default", "he"])
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "accuracy.json"))
    options = parser.parse_args()
    done: list[dict[str, Any]] = []
    if Path(options.out).exists():
        done = json.loads(Path(options.out).read_text())["runs"]
    have = {(r["method"], r["layers"], r["seed"], r["epochs"], r["he"]) for r in done}
    wanted = [
        (name, layers, seed, options.epochs, initial == "he")
        for seed in range(options.seeds)
        for layers in options.layers
        for initial in options.initial
        for name in options.methods
    ]
    with ProcessPoolExecutor(options.processes) as pool:
        futures = [pool.submit(run, options.root, *key) for key in wanted if key not in have]
        for future in as_completed(futures):
            result = future.result()
            done.append(result)
            print(
                f"{result['layers']:3d} {'he' if result['he'] else '  '} {result['method']:10s} "
                f"seed {result['seed']}  {result['value']:.4f}  {result['train_s']:.0f} s",
                flush=True,
            )
            write(
                options.out,
                {"claim": "accuracy", "batch": BATCH, "last": LAST, "aggregate": aggregate(done), "runs": done},
            )
    write(options.out, {"claim": "accuracy", "batch": BATCH, "last": LAST, "aggregate": aggregate(done), "runs": done})
    for row in aggregate(done):
        gap = f"{row['gap_points']:+.2f}" if row["gap_points"] is not None else ""
        half = f" ± {row['gap_95']:.2f}" if row["gap_95"] is not None else ""
        name = f"{row['layers']:3d} {'he' if row['he'] else '  '} {row['method']:34s}"
        print(f"{name} {100 * row['mean']:.2f}  {gap}{half}  ({row['seeds']} seeds)")


if __name__ == "__main__":
    main()
