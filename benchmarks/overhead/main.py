"""What watching costs: guard, quality, probe and `fit` itself, as by default, against none of it. See README.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import syngrad
from syngrad.data import TensorBatches
from syngrad.experiments.fashion_mlp import fashion_mlp
from syngrad.experiments.image_data import fashion_images
from syngrad.runtime.options import override
from syngrad.trainer.options import Options

sys.path.insert(0, str(Path(__file__).parents[1]))
from common import interleaved, paired, write

#: steps a turn: a whole period of the probe, so that every row pays its whole share in each
STEPS, BATCH = 200, 256
OFF: dict[str, Any] = {"guard": None, "quality_every": 0, "true_every": 0}
ROWS: dict[str, dict[str, Any]] = {
    "bare": OFF,
    "bare, again": OFF,
    "guard": {**OFF, "guard": 100.0},
    "guard and quality": {**OFF, "guard": 100.0, "quality_every": 50},
    "guard, quality and probe": {},
}


def trainer(**options: Any) -> syngrad.Trainer:
    experiment = fashion_mlp()
    torch.manual_seed(0)
    net = syngrad.decouple(experiment.model(), cuts=experiment.cuts)
    return syngrad.Trainer(
        net,
        loss=experiment.loss,
        optimizer=experiment.optimizer,
        metric="accuracy",
        progress=False,
        **override(Options, {}, options),
    )


def steps(options: dict[str, Any], batches: list[Any]) -> Callable[[], None]:
    """STEPS calls of `trainer.step` in a plain loop that reads each loss, as `fit` does."""
    made = trainer(**options)

    def turn() -> None:
        for k in range(STEPS):
            made.step(batches[k % len(batches)]).item()

    return turn


def fit(batches: list[Any]) -> Callable[[], None]:
    """The same through `fit`, everything as by default."""
    made = trainer()
    epoch = [batches[k % len(batches)] for k in range(STEPS)]
    return lambda: made.fit(epoch, 1) and None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", default=str(Path(__file__).parent / "results" / "overhead.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    loader = TensorBatches(*fashion_images(True), batch_size=BATCH, shuffle=True)
    batches = [batch for batch in loader if len(batch[1]) == BATCH]
    rows = {name: steps(how, batches) for name, how in ROWS.items()}
    rows["fit, all as by default"] = fit(batches)
    results = paired(interleaved(rows, options.rounds, warmup=1), "bare")
    for name, row in results.items():
        ratio = row["ratio"]
        step = row["ms"]["median"] / STEPS
        print(f"  {name:28s} {step:6.3f} ms a step  ×{ratio['median']:.4f} [{ratio['q1']:.4f}, {ratio['q3']:.4f}]")
    write(options.out, {"claim": "overhead", "steps": STEPS, "rounds": options.rounds, "results": results})


if __name__ == "__main__":
    main()
