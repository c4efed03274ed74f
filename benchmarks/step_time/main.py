"""Step time against a hand-written loop, interleaved, one thread. See README.md beside this file."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

import syngrad
from syngrad.runtime.options import override
from syngrad.trainer.options import Options

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import every_layer, fused_adam, interleaved, mlp, paired, write

LAYERS, BATCH = 5, 256

ROWS: dict[str, dict[str, Any]] = {
    "backprop": {"method": "backprop"},
    "default": {},
    "default, one optimiser a stage": {"optimizer_scope": "stage"},
    "default, feedback every minibatch": {"feedback_every": 1},
    "local, linear head": {"estimator": "local"},
    "local, hidden 64": {"estimator": "local(hidden=1)"},
    "sobolev, linear head, every minibatch": {"estimator": "sobolev"},
    "linear cDNI": {"estimator": "linear"},
    "linear cDNI, every 4th": {"estimator": "linear", "feedback_every": 4},
    "mlp, hidden 256": {"estimator": "mlp(batch_norm=False)"},
    "low_rank 16": {"estimator": "low_rank"},
}


def hand_written(width: int, x: torch.Tensor, y: torch.Tensor, fused: bool = True) -> Callable[[], None]:
    """The loop a person would write, with fused or with PyTorch's default Adam."""
    net = mlp(LAYERS, width)
    optimizer = fused_adam(net.parameters()) if fused else torch.optim.Adam(net.parameters(), 1e-3)

    def step() -> None:
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()

    return step


def syngrad_step(width: int, x: torch.Tensor, y: torch.Tensor, options: dict[str, Any]) -> Callable[[], object]:
    net = syngrad.decouple(mlp(LAYERS, width), cuts=every_layer(LAYERS))
    trainer = syngrad.Trainer(net, loss=F.cross_entropy, optimizer=fused_adam, **override(Options, {}, options))
    return lambda: trainer.step((x, y))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--widths", type=int, nargs="+", default=[256, 1024])
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "step_time.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, y = torch.randn(BATCH, 784), torch.randint(0, 10, (BATCH,))
    results: dict[str, Any] = {}
    for width in options.widths:
        rows: dict[str, Callable[[], object]] = {
            "hand-written": hand_written(width, x, y),
            "hand-written, default Adam": hand_written(width, x, y, fused=False),
        }
        rows |= {name: syngrad_step(width, x, y, how) for name, how in ROWS.items()}
        rounds = max(12, options.rounds * 256 // width) if width > 256 else options.rounds
        # four steps a turn, so that estimators fitted every 4th minibatch pay their whole share in each
        times = interleaved(rows, rounds, warmup=4, repeats=4)
        results[str(width)] = paired(times, "hand-written")
        print(f"784-{width}×{LAYERS - 1}-10, batch {BATCH}, interfaces at every layer, {rounds} rounds of 4 steps")
        for name, row in results[str(width)].items():
            ratio = row["ratio"]
            print(
                f"  {name:40s} {row['ms']['median']:7.2f} ms  ×{ratio['median']:.3f} [{ratio['q1']:.3f}, "
                f"{ratio['q3']:.3f}]"
            )
    write(options.out, {"claim": "step time", "layers": LAYERS, "batch": BATCH, "threads": 1, "results": results})


if __name__ == "__main__":
    main()
