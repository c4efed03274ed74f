"""Tied weights over two workers: what averaging copies costs in held-out loss, and in bytes. See README.md."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1] / "src"), str(HERE.parent)]

import torch  # noqa: E402
from common import write  # noqa: E402
from torch import nn  # noqa: E402

import syngrad  # noqa: E402
from syngrad.data import TensorBatches  # noqa: E402
from syngrad.experiments import char_gpt  # noqa: E402
from syngrad.launch.launcher import launch  # noqa: E402
from syngrad.links.world import world  # noqa: E402
from syngrad.results import interval  # noqa: E402

BATCH, WINDOWS, TEST, DELAY = 16, 4096, 1000, 1
#: row → (workers, whether the head has a weight of its own, minibatches between two averagings)
ROWS: OrderedDict[str, tuple[int, bool, int]] = OrderedDict(
    {
        "one process, tied": (1, False, 1),
        "two workers, untied": (2, True, 1),
        **{f"two workers, averaged every {n}": (2, False, n) for n in (1, 4, 16, 64)},
    }
)
REFERENCE = next(iter(ROWS))


def network(seed: int) -> nn.Sequential:
    """char-gpt whose output layer has the table of embeddings for its weights."""
    torch.manual_seed(seed)
    net = char_gpt.network(char_gpt.text()[1])
    assert isinstance(net, nn.Sequential)
    table = net.get_submodule("embedding").weight
    nn.init.normal_(table, std=0.05)
    net.get_submodule("head.1").weight = table
    return net


def train(row: str, seed: int, windows: int) -> dict[str, Any]:
    """Held-out bits per character, and what two workers have sent."""
    torch.set_num_threads(1)
    _, untie, every = ROWS[row]
    (inputs, targets), (test, wanted) = char_gpt.windows()
    steps = windows // BATCH
    trainer = syngrad.Trainer(
        syngrad.decouple(network(seed), cuts=["block3"], untie=untie),
        loss=char_gpt.loss,
        loss_count=char_gpt.positions,
        metric="bits per character",
        optimizer=lambda groups: torch.optim.Adam(groups, char_gpt.RATE, fused=True),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda s: char_gpt.share(s, steps)),
        scheduler_every="step",
        feedback=syngrad.Feedback(delay=DELAY, true_every=0),
        distributed=syngrad.Distributed(share_every=every),
        seed=seed,
        progress=False,
    )
    data = TensorBatches(inputs[:windows], targets[:windows], batch_size=BATCH, shuffle=True, seed=seed, drop_last=True)
    history = trainer.fit(data, validate=TensorBatches(test[:TEST], wanted[:TEST], batch_size=200))
    return {
        "row": row,
        "seed": seed,
        "bits": history.value,
        "train_s": history.train_s,
        "bytes_a_minibatch": sum(each["bytes_sent"] for each in history.processes) / steps,
        "shared_bytes": sum(each[1] for process in history.processes for each in process["shared"]),
    }


def summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row each: the mean, and seed by seed the difference to one process that is tied."""
    bits = {(run["row"], run["seed"]): run["bits"] for run in runs}
    made = []
    for row in ROWS:
        own = [run for run in runs if run["row"] == row]
        gaps = [run["bits"] - bits[REFERENCE, run["seed"]] for run in own if (REFERENCE, run["seed"]) in bits]
        if own:
            made.append(
                {
                    "row": row,
                    "seeds": len(own),
                    "bits": statistics.mean(run["bits"] for run in own),
                    "gap": statistics.mean(gaps) if gaps and row != REFERENCE else None,
                    "gap_95": interval(gaps) if len(gaps) > 1 and row != REFERENCE else None,
                    "bytes_a_minibatch": statistics.mean(run["bytes_a_minibatch"] for run in own),
                    "shared_bytes": own[0]["shared_bytes"],
                }
            )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--windows", type=int, default=WINDOWS, help="fewer for a quick look; needs --out")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "shared_weights.json")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # row, seed and file: one process of a run
    options = parser.parse_args()
    if options.one is not None:
        row, seed, file = options.one
        made = train(row, int(seed), options.windows)
        if world().rank == 0:
            Path(file).write_text(json.dumps(made))
        return
    runs: list[dict[str, Any]] = []
    for seed in range(options.seeds):
        for row, (workers, *_) in ROWS.items():
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / "run.json"
                command = [
                    sys.executable,
                    __file__,
                    "--windows",
                    str(options.windows),
                    "--one",
                    row,
                    str(seed),
                    str(file),
                ]
                launch(command, workers, restarts=0)
                runs.append(json.loads(file.read_text()))
            print(f"{row:40s} seed {seed}  {runs[-1]['bits']:.4f}  {runs[-1]['train_s']:.0f} s", flush=True)
            settings = {"batch_size": BATCH, "windows": options.windows, "feedback_delay": DELAY}
            write(options.out, {"settings": settings, "results": summary(runs), "runs": runs})


if __name__ == "__main__":
    main()
