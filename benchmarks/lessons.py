"""Runs of recurrent experiments by row and seed, as `syngrad compare` makes them; each is kept once it is done.

Shared by the benchmarks of recurrent nets. A run that is in the results file already is not made again.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import write

from syngrad.compare import RecurrentComparison
from syngrad.experiments import load_any
from syngrad.recurrent import RecurrentExperiment

Run = dict[str, Any]


def run(group: str, experiment: str, row: str, seed: int, changes: dict[str, Any]) -> Run:
    """One run on one thread: the metric's course, its last value, and how good estimates were."""
    made = load_any(experiment)
    assert isinstance(made, RecurrentExperiment)
    options = {**made.options, **changes.pop("options", {})}
    comparison = RecurrentComparison(replace(made, options=options, **changes), [row], seed=seed, timing_s=0.0)
    (done,) = comparison.run()
    boundary = [{key: each[key] for key in ("cosine", "true_cosine", "norm_ratio")} for each in done.interfaces]
    return {
        "group": group,
        "row": row,
        "seed": seed,
        "status": done.status,
        "value": done.value,
        "history": [list(point) for point in done.history],
        "train_s": done.train_s,
        "saved_bytes": done.saved_activation_bytes,
        "boundary": boundary[0] if boundary else None,
    }


def medians(runs: Sequence[Run]) -> dict[str, dict[str, Any]]:
    """Group and row → median, all values, and the median of the true cosine."""
    found: dict[str, dict[str, Any]] = {}
    for each in sorted(runs, key=lambda r: r["seed"]):
        values = found.setdefault(each["group"], {}).setdefault(
            each["row"], {"values": [], "cosines": [], "train_s": []}
        )
        values["values"].append(each["value"])
        values["train_s"].append(each["train_s"])
        if each["boundary"] is not None and each["boundary"]["true_cosine"] is not None:
            values["cosines"].append(each["boundary"]["true_cosine"])
    for rows in found.values():
        for values in rows.values():
            values["median"] = statistics.median(values["values"])
            cosines, seconds = values.pop("cosines"), values.pop("train_s")
            values["true_cosine"] = statistics.median(cosines) if cosines else None
            values["train_s"] = statistics.median(seconds)
    return found


def main(
    claim: str,
    cells: Sequence[tuple[str, str, str, dict[str, Any]]],
    description: str,
    summary: Callable[[dict[str, dict[str, Any]]], Any] = lambda medians: None,
) -> None:
    """The command line of such a benchmark. cells: (group, experiment, row, what stands instead of its own)."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--groups", nargs="+", help="only these")
    parser.add_argument("--ways", nargs="+", help="only rows that begin with one of these, as bptt")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--processes", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--out", default=str(Path(__file__).parent / claim / "results" / f"{claim}.json"))
    options = parser.parse_args()
    path = Path(options.out)

    def known() -> list[Run]:
        found: list[Run] = json.loads(path.read_text())["runs"] if path.exists() else []
        return found

    def keep(new: list[Run]) -> dict[str, dict[str, Any]]:
        """Beside what the file has by now: another process may have written to it meanwhile."""
        runs = [*known(), *new]
        found = medians(runs)
        write(path, {"claim": claim, "medians": found, "summary": summary(found), "runs": runs})
        return found

    have = {(each["group"], each["row"], each["seed"]) for each in known()}
    with ProcessPoolExecutor(options.processes) as pool:
        futures = [
            pool.submit(run, group, experiment, row, seed, dict(changes))
            for seed in options.seeds
            for group, experiment, row, changes in cells
            if (options.groups is None or group in options.groups)
            and (options.ways is None or row.startswith(tuple(options.ways)))
            and (group, row, seed) not in have
        ]
        for future in as_completed(futures):
            done = future.result()
            keep([done])
            said = f"{done['value']:.4g}" if done["status"] == "ok" else done["status"]
            seconds = f"{done['train_s']:.0f} s" if done["train_s"] else ""
            print(f"{done['group']:12s} {done['row']:30s} seed {done['seed']}  {said}  {seconds}", flush=True)
    for group, rows in keep([]).items():
        for row, values in rows.items():
            each = ", ".join(f"{value:.4g}" for value in values["values"])
            print(f"{group:12s} {row:30s} {values['median']:.4g}  ({each})")
