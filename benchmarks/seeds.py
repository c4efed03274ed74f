"""Training runs by row and seed, each written down when it is done, so that a stop loses the run under way alone."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from rows import HERE, PIPELINES, started
from turns import entries, put

from syngrad.compare.rivals import RivalRun, run_rival
from syngrad.errors import SyngradError
from syngrad.experiments import registry
from syngrad.launch.emulated_link import EmulatedHost
from syngrad.results import environment

Run = dict[str, Any]


def train(
    label: str,
    experiment: str,
    seed: int,
    epochs: int,
    *,
    threads: int = 1,
    validations: int = 1,
    options: dict[str, Any] | None = None,
    target: float | None = None,
    most_s: float | None = None,
    hosts: Sequence[EmulatedHost] | None = None,
) -> Run:
    """One run of a row: a rival's name, or `method[:estimator]` over two processes.

    experiment: the name of a function in nets.py. validations: an epoch. target: where it may end. most_s: seconds of
    training after which a rival ends all the same.
    """
    method, _, estimator = label.partition(":")
    if method.partition("(")[0] in ("synthetic", "delayed", "corrected"):
        spec = {
            "experiment": experiment,
            "epochs": epochs,
            "method": method,
            "estimator": estimator or None,
            "seed": seed,
            "threads": threads,
            "options": options or {},
            "validations": validations,
            "target": target,
        }
        return started(HERE / "trained.py", spec, hosts)
    name = f"{HERE / 'nets.py'}:{experiment}"
    place = registry.load(name).cuts if label in PIPELINES else None
    run = RivalRun(
        label,
        name,
        seed=seed,
        threads=threads,
        epochs=epochs,
        place=place,
        validations=validations,
        target=target,
        most_s=most_s,
    )
    alone = label == "plain"
    found = run_rival(run, 1 if alone else 2, hosts=None if alone else hosts, timeout_s=7200)
    kept = {key: found[key] for key in ("train_s", "samples_per_s", "bytes_sent", "microbatches")}
    return {"history": found["metric"]["history"], "peak_memory_bytes": [found["peak_memory_bytes"]], **kept}


def train_missing(
    path: Path,
    claim: str,
    name: str,
    settings: dict[str, Any],
    wanted: Sequence[tuple[str, int]],
    call: Callable[[str, int, list[Run]], Run],
    summary: Callable[[list[Run]], Any],
    *,
    again: bool = False,
    alike: Sequence[str] = (),
) -> None:
    """Train what the entry has not: (row, seed) in this order, and two at a time those rows whose times do not count.

    alike: such rows, each run of one thread. call: given the row, the seed, and all runs so far.
    """
    known = entries(path).get(name)
    fresh = again or known is None or known["settings"] != settings
    runs: list[Run] = [] if fresh or known is None else known["runs"]
    have = {(run["row"], run["seed"]) for run in runs}
    entry = {"settings": settings, "environment": environment(threads=torch.get_num_threads())}

    def one(row: str, seed: int) -> Run:
        begin = time.perf_counter()
        run = call(row, seed, runs)
        return {"row": row, "seed": seed, **run, "took_s": time.perf_counter() - begin}

    def done(run: Run) -> None:
        runs.append(run)
        put(path, claim, name, {**entry, "summary": summary(runs), "runs": runs})
        value = run["history"][-1][2] if run["history"] else float("nan")
        said = f"{run['train_s']:.0f} s of training, took {run['took_s']:.0f} s"
        print(f"{name}: {run['row']:24s} seed {run['seed']}  {value:.4f}  {said}", flush=True)

    missing = [key for key in wanted if key not in have]
    with ThreadPoolExecutor(2) as pool:
        for future in as_completed([pool.submit(one, *key) for key in missing if key[0] in alike]):
            try:
                done(future.result())
            except SyngradError as error:
                print(f"{name}: failed: {error}", flush=True)
    for row, seed in missing:
        if row in alike:
            continue
        try:
            done(one(row, seed))
        except SyngradError as error:
            print(f"{name}: {row}, seed {seed}: failed: {error}", flush=True)
