"""Training runs of a built-in experiment by several methods and seeds, paired with back-propagation seed by seed.

Shared by the benchmarks of one experiment each. A run that is in the results file already is not made again.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import shutil
import statistics
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from common import interleaved, paired, write
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import syngrad
from syngrad.experiments import load
from syngrad.runtime.option_fields import override
from syngrad.trainer.options import Options

#: two-sided 95 % quantiles of Student's t by degrees of freedom
T95 = {1: 12.71, 2: 4.303, 3: 3.182, 4: 2.776}

#: minibatches between the states that are kept of a run
SAVE_EVERY = 200

#: row → where it is cut (None: as the experiment is) and the Trainer's options
Rows = dict[str, tuple[list[str] | None, dict[str, Any]]]


def trainer_of(experiment: syngrad.Experiment, row: tuple[list[str] | None, dict[str, Any]], seed: int) -> Any:
    """The experiment's own recipe with a row's cuts and options; the same initial weights for every row of a seed."""
    cuts, options = row
    options = dict(options)
    optimizer = options.pop("optimizer", experiment.optimizer)
    torch.manual_seed(seed)
    return syngrad.Trainer(
        syngrad.decouple(experiment.model(), cuts=cuts or experiment.cuts),
        loss=experiment.loss,
        metric=experiment.metric,
        optimizer=optimizer,
        scheduler=experiment.scheduler,
        seed=seed,
        progress=False,
        **override(Options, experiment.options, options),
    )


def run(
    experiment_name: str, name: str, row: Any, seed: int, epochs: int | None, saved: Path | None = None
) -> dict[str, Any]:
    """One training run on one thread; the metric after every epoch, the last of which counts.

    With a folder its state is saved there every so often, and a run that was interrupted goes on from it.
    """
    torch.set_num_threads(1)
    experiment = load(experiment_name, epochs=epochs)
    trainer = trainer_of(experiment, row, seed)
    train, test = experiment.data(experiment.batch_size, seed)
    kept: dict[str, Any] = {}
    if saved is not None:
        plain = re.sub(r"\W+", "-", f"{name} {seed}").strip("-")
        kept = {"save": saved / plain, "save_every": SAVE_EVERY, "keep": 1, "resume": "auto"}
    history = trainer.fit(train, experiment.epochs, validate=test, **kept)
    if saved is not None:
        shutil.rmtree(kept["save"])
    values = [value for _, _, value in history.values()]
    return {
        "row": name,
        "seed": seed,
        "epochs": experiment.epochs,
        "value": values[-1],
        "history": values,
        "interfaces": [{key: each[key] for key in ("cut", "cosine", "norm_ratio")} for each in history.interfaces],
        "train_s": history.train_s,
    }


def aggregate(runs: list[dict[str, Any]], rows: Rows) -> list[dict[str, Any]]:
    """Mean of every row, and the paired difference to back-propagation with its 95 % interval (Student's t)."""
    exact = {r["seed"]: r["value"] for r in runs if r["row"] == "backprop"}
    table = []
    for name in rows:
        values = {r["seed"]: r["value"] for r in runs if r["row"] == name}
        if not values:
            continue
        gaps = [values[s] - exact[s] for s in sorted(values.keys() & exact.keys())]
        half = T95.get(len(gaps) - 1, 1.96) * statistics.stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else None
        table.append(
            {
                "row": name,
                "seeds": len(values),
                "mean": statistics.mean(values.values()),
                "gap": statistics.mean(gaps) if gaps else None,
                "gap_95": half,
                "cosine": [
                    each["cosine"] for r in runs if r["row"] == name and r["seed"] == 0 for each in r["interfaces"]
                ],
            }
        )
    return table


def step_time(experiment_name: str, rows: Rows, rounds: int) -> dict[str, Any]:
    """Milliseconds of a step of every row, taking turns, and the ratio to back-propagation pair by pair.

    Four steps are one measurement, as feedback is asked for on every fourth minibatch.
    """
    torch.set_num_threads(1)
    experiment = load(experiment_name)
    train, _ = experiment.data(experiment.batch_size, 0)
    batches = [batch for _, batch in zip(range(4), train, strict=False)]
    calls = {}
    for name, row in rows.items():
        trainer = trainer_of(experiment, (row[0], {**row[1], "quality_every": 0}), 0)

        def call(trainer: Any = trainer) -> None:
            for batch in batches:
                trainer.step(batch)

        calls[name] = call
    times = interleaved(calls, rounds, warmup=2)
    return paired({name: [t / len(batches) for t in row] for name, row in times.items()}, "backprop")


class Operations(TorchDispatchMode):
    """Counts floating-point operations; PyTorch's own counter follows modules, which does not go with autograd.grad."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (count := flop_registry.get(func._overloadpacket)) is not None:
            self.total += count(*args, **(kwargs or {}), out_val=out)
        return out


def arithmetic(experiment_name: str, rows: Rows, steps: int = 8) -> dict[str, float]:
    """Floating-point operations of a step of every row, forward, backward and fit, as a multiple of back-propagation's.

    Counted by PyTorch's own formulas: matrix products and convolutions. The first steps are left out, until what is in
    flight has filled up.
    """
    experiment = load(experiment_name)
    train, _ = experiment.data(experiment.batch_size, 0)
    batches = [batch for _, batch in zip(range(steps), train, strict=False)]
    counts = {}
    for name, row in rows.items():
        trainer = trainer_of(experiment, (row[0], {**row[1], "quality_every": 0, "true_every": 0}), 0)
        for batch in batches * (1 + (trainer.policy.method.delay > 1)):
            trainer.step(batch)
        with Operations() as counter:
            for batch in batches:
                trainer.step(batch)
        counts[name] = counter.total
    return {name: count / counts["backprop"] for name, count in counts.items()}


def main(claim: str, experiment: str, rows: Rows, description: str, timing: bool = False) -> None:
    """The command line of a benchmark: train what is missing, or with --timing measure the step times."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rows", nargs="+", default=list(rows), choices=list(rows))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, help="instead of the experiment's own")
    parser.add_argument("--arithmetic", action="store_true", help="count operations instead")
    parser.add_argument("--checkpoints", type=Path, metavar="DIR", help="keep there what a stopped run goes on from")
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--out", default=str(Path(__file__).parent / claim / "results" / f"{claim}.json"))
    if timing:
        parser.add_argument(
            "--timing", type=int, metavar="ROUNDS", help="measure step times instead, on a quiet machine"
        )
    options = parser.parse_args()

    def known() -> dict[str, Any]:
        return json.loads(Path(options.out).read_text()) if Path(options.out).exists() else {}

    def save(runs: list[dict[str, Any]], **more: Any) -> list[dict[str, Any]]:
        """Add to what the file has by now: another process may have written to it meanwhile."""
        before = known()
        runs = [*before.get("runs", []), *runs]
        kept = {key: before[key] for key in ("step_time", "arithmetic") if key in before}
        write(options.out, {"claim": claim, **kept, **more, "aggregate": aggregate(runs, rows), "runs": runs})
        return runs

    if timing and options.timing:
        save([], step_time=step_time(experiment, {name: rows[name] for name in options.rows}, options.timing))
        return
    if options.arithmetic:
        save([], arithmetic=arithmetic(experiment, {name: rows[name] for name in options.rows}))
        return
    have = {(r["row"], r["seed"]) for r in known().get("runs", [])}
    wanted = [(name, seed) for seed in options.seeds for name in options.rows if (name, seed) not in have]
    with ProcessPoolExecutor(options.processes) as pool:
        futures = [
            pool.submit(run, experiment, name, rows[name], seed, options.epochs, options.checkpoints)
            for name, seed in wanted
        ]
        for future in as_completed(futures):
            result = future.result()
            save([result])
            print(
                f"{result['row']:24s} seed {result['seed']}  {result['value']:.4f}  {result['train_s']:.0f} s",
                flush=True,
            )
    for row in aggregate(known().get("runs", []), rows):
        gap = f"{row['gap']:+.4f}" if row["gap"] is not None else ""
        half = f" ± {row['gap_95']:.4f}" if row["gap_95"] is not None else ""
        print(f"{row['row']:24s} {row['mean']:.4f}  {gap}{half}  ({row['seeds']} seeds)")
