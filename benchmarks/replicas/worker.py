"""One process of a replica, or of a pipeline alone: `worker.py SPEC OUT`, started by main.py.

SPEC is JSON: recipe (a function here) and its length, method, seed, options of the Trainer by their flat names, and the
minibatches before the clock starts. Each replica's first process writes what came of it to OUT.INDEX.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(1, str(HERE.parent))

import long_epochs  # noqa: E402
import nets  # noqa: E402
from launched_worker import work  # noqa: E402

from syngrad import Experiment  # noqa: E402
from syngrad.callbacks import Callback  # noqa: E402
from syngrad.compare.step_costs import threads  # noqa: E402
from syngrad.compare.training import Training  # noqa: E402
from syngrad.experiments.fashion_mlp import fashion_mlp  # noqa: E402


def fashion(epochs: int) -> Experiment:
    """fashion-mlp with one cut in its middle, minibatches of 64."""
    return dataclasses.replace(fashion_mlp(epochs, 64), cuts=["5"])


def characters(epochs: int) -> Experiment:
    """char-gpt, shortened, with one cut in its middle."""
    return nets.shortened(epochs)


def steady(minibatches: int) -> Experiment:
    """784-560×6-10, so many minibatches of 128 as one epoch: for times alone."""
    data = functools.partial(long_epochs.images, minibatches)
    return dataclasses.replace(nets.balanced(1), data=data)


RECIPES: dict[str, Callable[[int], Experiment]] = {"fashion": fashion, "characters": characters, "steady": steady}


class Clock(Callback):
    """When each minibatch was over."""

    whole, everywhere = False, True

    def __init__(self) -> None:
        self.at: list[float] = []

    def on_step(self, trainer: Any, loss: Any) -> None:
        self.at.append(time.perf_counter())


def main(spec: dict[str, Any], out: str) -> None:
    clock, seed = Clock(), spec["seed"]
    experiment = RECIPES[spec["recipe"]](spec["length"])
    options = {"quality_every": 0, "true_every": 0, **spec["options"]}
    made = Training(experiment, spec["method"], seed=seed, options=options, progress=False)
    trainer = made.trainer
    with threads(1):
        train, test = made.source.loaders(seed)
        history = trainer.fit(train, experiment.epochs, validate=test, callbacks=[clock])
    if os.environ.get("RANK", "0") != "0":
        return
    found = {
        "value": history.value,
        "history": [value for _, _, value in history.values()],
        "minibatches": trainer.minibatches,
        "parameters": sum(each.numel() for each in trainer.model.parameters()),
        "estimators": sum(each.numel() for each in trainer.net.estimators.parameters()),
        "replica": history.replica,
        "train_s": history.train_s,
    }
    first = spec.get("warm_up", 0)
    if len(clock.at) > first + 1:
        found["minibatch_s"] = (clock.at[-1] - clock.at[first]) / (len(clock.at) - 1 - first)
    Path(f"{out}.{os.environ.get('REPLICA_GROUP_ID', '0')}").write_text(json.dumps(found))


if __name__ == "__main__":
    work(main)
