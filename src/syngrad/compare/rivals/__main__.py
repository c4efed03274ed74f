"""One worker of a rival's run, started by :func:`run_rival` or by torchrun: it trains, and the first one times it.

    torchrun --nproc-per-node 2 -m syngrad.compare.rivals --row ddp --experiment fashion-mlp --out FILE

The first worker writes the row: of a number of minibatches, or of epochs with validation in between. What goes wrong is
left to the launcher and printed in one line; the exit code is 2 for what the user can mend, 1 for the rest.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from syngrad.compare.base import metric_named
from syngrad.compare.rivals.data_parallel import WHOLE_STEPS, DataParallel
from syngrad.compare.rivals.recipe import GlooGroup, Recipe, RivalWorker
from syngrad.compare.rivals.rival_row import Rival
from syngrad.compare.rivals.rival_run import OTHER_ERROR, USER_ERROR, RivalRun, read
from syngrad.core.memory import peak_memory_bytes
from syngrad.errors import LinkError, SyngradError, TrainingError, first_line
from syngrad.launch.parent_death import die_with_parent
from syngrad.pipeline.failures import report_failure
from syngrad.results.rows import Row
from syngrad.trainer.loaders import length

#: parts that a measurement falls into; what is told is the median over them
WINDOWS = 7


class Training:
    """One worker's part in a run; the row is complete on the first worker.

    Its `samples_per_s` is the median over windows where minibatches are timed, and the mean over the run where epochs
    are trained; `bytes_sent` is of what `train_s` is of, all workers together, tensors' contents alone;
    `peak_memory_bytes` is that of the largest worker.
    """

    def __init__(self, run: RivalRun, group: GlooGroup) -> None:
        self.run, self.group = run, group
        self.experiment = run.check(group.size)
        rival = run.rival
        self.recipe = Recipe(self.experiment, run.seed)
        self.row = Row(rival.kind, rival.estimator, run.seed, processes=group.size, threads=run.threads)
        self.row.metric, self.row.higher_is_better = metric_named(self.experiment)
        self.worker = worker_of(rival, self.recipe, group, run)

    def train(self) -> Row:
        """The whole run; every worker takes part."""
        run, recipe, row, worker = self.run, self.recipe, self.row, self.worker
        recipe.model.train()
        worker.prepare(next(recipe.endless()))
        self._begin_anew()
        if run.minibatches is not None:
            self._throughput(run.minibatches)
        else:
            self._epochs()
        row.optimizer = type(recipe.optimizer).__name__
        row.placement, row.microbatches = worker.placement, worker.microbatches
        row.peak_memory_bytes = max((p for p in self.group.all(peak_memory_bytes()) if p is not None), default=None)
        if run.state is not None:
            worker.collect()
            if self.group.first:
                _write_state(recipe, run.state)
        return row

    def _begin_anew(self) -> None:
        """Give every run the data from its beginning, whatever has been read of it before."""
        self.recipe.train, _ = self.experiment.data(self.experiment.batch_size, self.run.seed)

    def _throughput(self, minibatches: int) -> None:
        """Time so many minibatches after a warm-up, in windows that hold whole periods where models are averaged.

        Nobody meets between two windows: over a long delay the next message would be asked for late, once a window.
        """
        run, row, worker, batches = self.run, self.row, self.worker, self.recipe.endless()
        every = run.rival.period * (self.group.size if run.rival.kind == "diloco" else 1)
        before = WHOLE_STEPS if run.rival.variant == "powersgd" else every
        size = max(minibatches // WINDOWS // every, 1) * every
        for _ in range(max(run.warm_up, before)):
            worker.step(next(batches))
        sent, spent = worker.sent_bytes, 0.0
        rates: list[float] = []
        self.group.barrier()
        start = time.perf_counter()
        while len(rates) * size < minibatches:
            for _ in range(size):
                worker.step(next(batches))
            end = time.perf_counter()
            spent += end - start
            rates.append(size * self.experiment.batch_size / (end - start))
            start = end
            if run.most_s is not None:
                if self.group.agree(self._over(spent)):
                    break
                start = time.perf_counter()
        row.samples_per_s, row.train_s = statistics.median(rates), spent
        row.bytes_sent = worker.sent_bytes - sent

    def _epochs(self) -> None:
        """Train, validating at least so many times an epoch; seconds count training alone."""
        recipe, row, worker = self.recipe, self.row, self.worker
        whole = length(recipe.train) or sum(1 for _ in recipe.train)
        self._begin_anew()
        every = max(whole // self.run.validations, 1)
        samples, spent, over = 0, 0.0, False
        row.train_s = 0.0
        for epoch in range(self.experiment.epochs):
            done = 0
            self.group.barrier()
            start = time.perf_counter()
            for batch in recipe.batches():
                worker.step(batch)
                samples, done = samples + batch.size, done + 1
                if done % every and done != whole:
                    continue
                spent += time.perf_counter() - start
                if done == whole:
                    recipe.end_epoch()
                self._validate(epoch + done / whole, spent)
                over = self.group.agree(self._over(spent) or self._reached())
                if over:
                    break
                start = time.perf_counter()
            if not done:
                raise TrainingError(f"experiment {self.experiment.name!r}: the training loader yields no batch")
            if over:
                break
        row.train_s, row.bytes_sent = spent, worker.sent_bytes
        row.samples_per_s = samples / spent if spent > 0 else None

    def _over(self, spent: float) -> bool:
        return self.run.most_s is not None and spent >= self.run.most_s

    def _reached(self) -> bool:
        target, better, history = self.run.target, self.row.higher_is_better, self.row.history
        if target is None or better is None or not history:
            return False
        value = history[-1][2]
        return value >= target if better else value <= target

    def _validate(self, epoch: float, spent: float) -> None:
        """Take the metric on the first worker while the others wait."""
        self.worker.collect()
        if self.group.first:
            self.row.history.append((float(epoch), spent, self.recipe.validate()))
        self.worker.release()
        self.group.barrier()


def worker_of(rival: Rival, recipe: Recipe, group: GlooGroup, run: RivalRun) -> RivalWorker:
    """The rival at work in this process."""
    if rival.kind == "diloco":
        from syngrad.compare.rivals.local_steps import LocalSteps

        return LocalSteps(rival, recipe, group)
    if not rival.pipelined:
        return DataParallel(rival, recipe, group)
    from syngrad.compare.rivals.microbatch_pipeline import MicrobatchPipeline  # half a second to import

    return MicrobatchPipeline(rival, recipe, group, run.place, run.microbatches)


def _write_state(recipe: Recipe, file: str) -> None:
    from safetensors.torch import save_file

    with torch.no_grad():
        save_file({name: value.detach().clone() for name, value in recipe.model.state_dict().items()}, file)


def main(argv: list[str]) -> None:
    """Take part in the run."""
    run, out = read(argv)
    torch.set_num_threads(run.threads)
    group = GlooGroup.join()
    row = Training(run, group).train()
    if group.first:
        partial = Path(f"{out}.{os.getpid()}")
        partial.write_text(json.dumps(row.to_dict()), encoding="utf-8")
        partial.replace(out)
    group.leave()


def fail(error: Exception) -> int:
    """Leave an error to the launcher, and print it for who has started this with torchrun; the exit code."""
    # gloo has no error of its own for a peer that is gone; whose end it is a consequence of says more
    lost = isinstance(error, dist.DistError) or "gloo/transport" in str(error)
    report_failure(LinkError(first_line(error)) if lost else error)
    known = isinstance(error, SyngradError)
    print(f"syngrad-worker: {error if known else first_line(error)}", file=sys.stderr)
    return USER_ERROR if known else OTHER_ERROR


if __name__ == "__main__":
    die_with_parent()
    code = 0
    try:
        main(sys.argv[1:])
    except Exception as error:
        code = fail(error)
    sys.stdout.flush()
    sys.stderr.flush()
    # at once: a process group whose peer is gone may wait for it where Python would tidy up
    os._exit(code)
