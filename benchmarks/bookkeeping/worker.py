"""One process of two: trains in blocks, and between them runs the same stage by a bare loop, as many steps.

Both processes do, so that a bare step has as busy a neighbour as a step of the run has. Only the last process is
timed: it is the busiest, and what it computes is a plain net with a loss, which anybody would write like this.
"""

from __future__ import annotations

import copy
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from launched_worker import work
from worker import Epochs

import syngrad
from syngrad.experiments import registry
from syngrad.runtime.runner import Runner

#: minibatches of a block, and those at its beginning that are not timed: the queue fills again. The rest are whole
#: periods of feedback, which is asked for on every 4th
BLOCK, SKIPPED, PERIOD = 48, 8, 4
#: steps of the first process for one of the last: it costs less, and is to be busy all the time
FIRST_PER_LAST = 1.4


class Alternating:
    """Before a block of minibatches it runs so many bare steps. Seconds a step: bare and in the run, a pair a block.

    It stands in the place of `Runner.step`.
    """

    def __init__(self, last: bool, loss: Any) -> None:
        self.last, self.loss, self.whole = last, loss, Runner.step
        self.bare_s: list[float] = []
        self.run_s: list[float] = []
        self._loop: Any = None
        self._begin = 0.0

    def step(self, runner: Runner, batch: Any) -> Tensor | None:
        place = runner.count % BLOCK
        if place == 0 and runner.count:
            self._bare(runner, batch)
        elif place == SKIPPED:
            self._begin = time.perf_counter()
        loss = self.whole(runner, batch)
        if place == BLOCK - 1 and runner.count > BLOCK:
            self.run_s.append((time.perf_counter() - self._begin) / (BLOCK - SKIPPED))
        return loss

    def _bare(self, runner: Runner, batch: Any) -> None:
        step = self._loop = self._loop or self._made(runner, batch)
        steps = BLOCK - SKIPPED if self.last else math.ceil((BLOCK - SKIPPED) * FIRST_PER_LAST)
        for i in range(PERIOD):
            step(i)
        begin = time.perf_counter()
        for i in range(steps):
            step(i)
        self.bare_s.append((time.perf_counter() - begin) / steps)

    def _made(self, runner: Runner, batch: Any) -> Any:
        """The loop one writes by hand for this process's stage, on weights of its own."""
        stage = copy.deepcopy(runner.stages[1 if self.last else 0].segment)
        optimizer = torch.optim.Adam(stage.parameters(), 1e-3, fused=True)
        message, target, loss = batch.args[0].detach().clone(), batch.target.clone(), self.loss
        gradient: Tensor | None = None

        def step(i: int) -> None:
            nonlocal gradient
            given = message.detach().requires_grad_(self.last and i % PERIOD == 0)
            out = stage(given)
            if self.last:
                loss(out, target).backward()
            else:
                gradient = torch.randn_like(out) * 1e-6 if gradient is None else gradient
                out.backward(gradient)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return step


def main(spec: dict[str, Any], out: str) -> None:
    torch.set_num_threads(spec["threads"])
    experiment = registry.load(spec["experiment"])
    torch.manual_seed(0)
    trainer = syngrad.Trainer(
        syngrad.decouple(experiment.model(), cuts=experiment.cuts),
        loss=experiment.loss,
        optimizer=experiment.optimizer,
        progress=False,
    )
    rank = int(os.environ["RANK"])
    alternating = Alternating(rank == 1, experiment.loss)
    Runner.step = lambda runner, batch: alternating.step(runner, batch)  # type: ignore[method-assign]
    train, _ = experiment.data(experiment.batch_size, 0)
    trainer.fit(Epochs(train, experiment.batch_size, [BLOCK * (spec["blocks"] + 1)]), 1)
    if rank == 1:
        result = {"bare_s": alternating.bare_s, "run_s": alternating.run_s}
        Path(spec["folder"], "last.json").write_text(json.dumps(result))
    else:
        Path(out).write_text("{}")


if __name__ == "__main__":
    work(main)
