"""A rival's run, timed on its first process: a number of minibatches, or epochs with validation in between."""

from __future__ import annotations

import statistics
import time

import torch

from syngrad.compare.contenders import readable
from syngrad.compare.rivals.names import Rival
from syngrad.compare.rivals.plan import Plan
from syngrad.compare.rivals.recipe import Recipe
from syngrad.compare.rivals.replicas import Replica, Runner
from syngrad.compare.rivals.world import World
from syngrad.core.memory import peak_memory_bytes
from syngrad.errors import TrainingError
from syngrad.metrics import higher_is_better
from syngrad.results.rows import Row
from syngrad.trainer.loaders import length

#: parts that a measurement falls into; what is told is the median over them
WINDOWS = 7


def train(plan: Plan, world: World) -> Row:
    """The row, complete on the first process; every process takes part.

    samples_per_s is the median over windows where minibatches are timed, and the mean over the run where epochs are
    trained; bytes_sent is of what train_s is of, all processes together, tensors' contents alone; peak_memory_bytes
    that of the largest process.
    """
    experiment, rival = plan.check(world.size), plan.rival
    recipe = Recipe(experiment, plan.seed)
    row = Row(rival.kind, rival.estimator, plan.seed, processes=world.size, threads=plan.threads)
    row.metric = readable(recipe.metric[0]) if recipe.metric is not None else "loss"
    row.higher_is_better = higher_is_better(recipe.metric)
    runner = made(rival, recipe, world, plan)
    recipe.model.train()
    runner.prepare(next(recipe.endless()))
    recipe.train, _ = experiment.data(experiment.batch_size, plan.seed)  # from its beginning again
    if plan.minibatches is not None:
        _throughput(plan, plan.minibatches, row, runner, recipe, world)
    else:
        _epochs(plan, row, runner, recipe, world)
    row.optimizer = type(recipe.optimizer).__name__
    row.placement, row.microbatches = runner.placement, runner.microbatches
    peaks = [peak for peak in world.all(peak_memory_bytes()) if peak is not None]
    row.peak_memory_bytes = max(peaks, default=None)
    if plan.state is not None:
        runner.collect()
        if world.first:
            _write_state(recipe, plan.state)
    return row


def made(rival: Rival, recipe: Recipe, world: World, plan: Plan) -> Runner:
    """The rival at work in this process."""
    if not rival.pipelined:
        return Replica(rival, recipe, world)
    from syngrad.compare.rivals.pipeline import Pipeline  # half a second to import

    return Pipeline(rival, recipe, world, plan.place, plan.microbatches)


def _throughput(plan: Plan, minibatches: int, row: Row, runner: Runner, recipe: Recipe, world: World) -> None:
    """Time so many minibatches after a warm-up, in windows that hold whole periods where models are averaged."""
    batches = recipe.endless()
    every = plan.rival.every if plan.rival.variant == "periodic" else 1
    size = max(minibatches // WINDOWS // every, 1) * every
    for _ in range(max(plan.warm_up, every) if every > 1 else plan.warm_up):
        runner.step(next(batches))
    sent = runner.sent_bytes
    rates: list[float] = []
    spent = 0.0
    while True:
        world.barrier()
        start = time.perf_counter()
        for _ in range(size):
            runner.step(next(batches))
        took = time.perf_counter() - start
        spent += took
        rates.append(size * recipe.experiment.batch_size / took)
        if world.agree(len(rates) * size >= minibatches or _over(plan, spent)):
            break
    row.samples_per_s, row.train_s = statistics.median(rates), spent
    row.bytes_sent = runner.sent_bytes - sent


def _epochs(plan: Plan, row: Row, runner: Runner, recipe: Recipe, world: World) -> None:
    """Train, validating at least so many times an epoch; seconds count training alone."""
    whole = length(recipe.train) or sum(1 for _ in recipe.train)
    recipe.train, _ = recipe.experiment.data(recipe.experiment.batch_size, plan.seed)
    every = max(whole // plan.validations, 1)
    samples, spent, over = 0, 0.0, False
    row.train_s = 0.0
    for epoch in range(recipe.experiment.epochs):
        done = 0
        world.barrier()
        start = time.perf_counter()
        for batch in recipe.batches():
            runner.step(batch)
            samples, done = samples + batch.size, done + 1
            if done % every and done != whole:
                continue
            spent += time.perf_counter() - start
            if done == whole:
                recipe.end_epoch()
            _validate(row, epoch + done / whole, spent, runner, recipe, world)
            over = world.agree(_over(plan, spent) or _reached(plan, row))
            if over:
                break
            start = time.perf_counter()
        if not done:
            raise TrainingError(f"experiment {recipe.experiment.name!r}: the training loader yields no batch")
        if over:
            break
    row.train_s, row.bytes_sent = spent, runner.sent_bytes
    row.samples_per_s = samples / spent if spent > 0 else None


def _over(plan: Plan, spent: float) -> bool:
    return plan.most_s is not None and spent >= plan.most_s


def _reached(plan: Plan, row: Row) -> bool:
    if plan.target is None or row.higher_is_better is None or not row.history:
        return False
    value = row.history[-1][2]
    return value >= plan.target if row.higher_is_better else value <= plan.target


def _validate(row: Row, epoch: float, spent: float, runner: Runner, recipe: Recipe, world: World) -> None:
    """Take the metric on the first process while the others wait."""
    runner.collect()
    if world.first:
        row.history.append((float(epoch), spent, recipe.validate()))
    runner.release()
    world.barrier()


def _write_state(recipe: Recipe, file: str) -> None:
    from safetensors.torch import save_file

    with torch.no_grad():
        save_file({name: value.detach().clone() for name, value in recipe.model.state_dict().items()}, file)
