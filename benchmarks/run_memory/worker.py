"""One process of two whose memory is looked at from inside: `worker.py SPEC OUT`; each rank writes to SPEC's folder.

SPEC is JSON: experiment, batch_size, threads, options, minibatches, `every` how many memory is looked at, and the rank
that is slow with the seconds that it sleeps a minibatch.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from syngrad.runtime.option_fields import override
from syngrad.trainer.options import Options

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from launched_worker import work
from worker import Epochs

import syngrad
from syngrad.core.memory import SavedBytes
from syngrad.experiments import registry
from syngrad.tree import tensors

#: the minibatch whose saved activations are counted; later, so that feedback is under way
COUNTED = 20


def resident(kind: str = "VmRSS") -> int:
    """Bytes of this process that are in memory now, or have been at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(kind))


def size(held: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors(held))


class Watched(syngrad.Trainer):
    """Looks at this process's memory every so many minibatches."""

    every = 500
    sleep_s = 0.0
    samples: list[list[int]]
    saved_bytes = 0
    message_bytes = 0

    def train(self, batch: Any) -> Tensor | None:
        if self.sleep_s:
            time.sleep(self.sleep_s)
        if self.minibatches == COUNTED:
            with SavedBytes(self.model, self.net.estimators, but=tensors(batch.args)) as meter:
                loss = super().train(batch)
            self.saved_bytes, self.message_bytes = meter.peak_bytes, size((batch.args, batch.target))
        else:
            loss = super().train(batch)
        if self.minibatches % self.every == 0:
            self.samples.append([self.minibatches, resident(), resident("VmHWM")])
        return loss

    def share(self, rank: int, depth: int) -> dict[str, int]:
        """What this process has to hold, counted from its tensors. queues: as many messages as may be under way."""
        stage = self.stages[rank]
        own = sum(size(p) for p in (*stage.parameters, *stage.estimator_parameters))
        return {
            "weights": sum(size(p) for p in stage.parameters),
            "estimators": sum(size(p) for p in stage.estimator_parameters),
            "gradients": own,
            # of Adam, two for every number
            "optimizer": 2 * own,
            "activations": self.saved_bytes,
            "queues": depth * self.message_bytes,
        }


def used_once(experiment: Any) -> None:
    """What any such program takes, whatever it trains: libraries that are loaded, or make room, on first use."""
    import torch.distributed

    import syngrad.links.zeromq

    net = syngrad.decouple(torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 10)), stages=2)
    trainer = syngrad.Trainer(
        net,
        loss=experiment.loss,
        optimizer=experiment.optimizer,
        progress=False,
        feedback=syngrad.Feedback(true_every=0),
    )
    for _ in range(8):
        trainer.step((torch.randn(16, 8), torch.zeros(16, dtype=torch.int64)))


def main(spec: dict[str, Any], out: str) -> None:
    torch.set_num_threads(spec["threads"])
    rank = int(os.environ["RANK"])
    experiment = registry.load(spec["experiment"], batch_size=spec["batch_size"])
    train, _ = experiment.data(experiment.batch_size, 0)
    used_once(experiment)
    gc.collect()
    before = resident()
    torch.manual_seed(0)
    trainer = Watched(
        syngrad.decouple(experiment.model(), cuts=experiment.cuts),
        loss=experiment.loss,
        optimizer=experiment.optimizer,
        progress=False,
        **override(Options, {}, {"true_every": 0, **spec["options"]}),
    )
    trainer.every, trainer.samples = spec["every"], []
    trainer.sleep_s = spec["sleep_s"] if spec["slow"] == rank else 0.0
    whole = size(list(trainer.model.parameters()))
    trainer.fit(Epochs(train, experiment.batch_size, [spec["minibatches"]]), 1)
    share = trainer.share(rank, trainer.options.queue_depth)
    result = {
        "before_bytes": before,
        "samples": trainer.samples,
        "peak_bytes": resident("VmHWM"),
        "whole_weights_bytes": whole,
        "share": share,
    }
    Path(spec["folder"], f"{rank}.json").write_text(json.dumps(result))
    if rank == 0:
        Path(out).write_text("{}")


if __name__ == "__main__":
    work(main)
