"""A comparison over workers for the report's tests, made up: rows, and what every worker says of its time."""

from __future__ import annotations

import math
from typing import Any

from tests.report import made

from syngrad.report.measured import NEXT, PREVIOUS, measured
from syngrad.report.verdict import verdict
from syngrad.results import Row, document, environment, finite, time_to_target

ROWS = ("alone", "alone(threads)", "ddp", "ddp:periodic", "gpipe", "delayed", "synthetic:local", "synthetic")
OWN = ("delayed", "synthetic", "mixed", "zero")
RATES = {"alone": 20000.0, "alone(threads)": 26000.0, "ddp": 15000.0, "ddp:periodic": 25000.0, "gpipe": 22000.0,
         "delayed": 33000.0, "synthetic:local": 36000.0, "synthetic": 35000.0}  # fmt: skip
FAILURE = (
    "failed: row 'gpipe' over 2 workers: process 1 failed: the pipeline cannot be cut at the module 'encoder.layer.7', "
    "which is used twice; name other cuts with --cuts"
)


def row(label: str, seed: int = 0, rate: float | None = None, top: float = 0.86, **more: Any) -> Row:
    method, _, estimator = label.partition(":")
    method = "backprop" if method == "alone" else method
    alone = label.startswith("alone")
    rate = rate if rate is not None else RATES.get(label, 30000.0)
    row = Row(method, estimator, seed, processes=1 if alone else 2, metric="accuracy", higher_is_better=True)
    row.samples_per_s, row.train_s = rate * (1 + 0.01 * seed), 5 * 10000 / rate
    row.history = [(k / 4, k / 20 * row.train_s, top - 0.5 * math.exp(-k / 4) + 0.002 * seed) for k in range(1, 21)]
    row.peak_memory_bytes = 350 * 2**20
    if not alone:
        row.bytes_sent = 200 * 3 * 2**18  # of 195 minibatches, about
    if method in OWN:
        row.interfaces = [
            {"cut": cut, "cosine": 0.7, "norm_ratio": 0.9, "estimator_loss": 0.1, "staleness": stale}
            for cut, stale in (("3", 0.0), ("5", 1.25))
        ]
    for name, value in more.items():
        setattr(row, name, value)
    return row


def spans(rank: int, minibatches: int = 60, pace_s: float = 0.005, every: int = 20) -> list[list[Any]]:
    """Of one worker: the first works all the time and sends within; the next one waits a third. After `every`
    minibatches there is an evaluation.
    """
    told: list[list[Any]] = []
    now = 1000.0 + 0.001 * rank
    for t in range(minibatches):
        if rank:
            told.append([PREVIOUS, t - 1, now, now + pace_s / 3])
            told.append(["work", t, now + pace_s / 3, now + pace_s * 0.99])
        else:
            told.append(["send", t, now + pace_s * 0.5, now + pace_s * 0.6])
            told.append(["work", t, now, now + pace_s * 0.95])
        now += pace_s
        if t % every == every - 1:
            told.append(["evaluate", t, now, now + 0.02])
            now += 0.02
    return told


def account(rank: int, pace_s: float = 0.005, waits: float = 0.0, **more: Any) -> dict[str, Any]:
    kinds = {"work": 1 - waits - 0.02, "send": 0.02, PREVIOUS if rank else NEXT: waits}
    seconds = {name: 6.0 * part for name, part in kinds.items()} | {"evaluate": 3.0, "orders": 1.0}
    lo, hi = (0, 2) if rank == 0 else (2, 3)
    told = {"rank": rank, "host": "here", "stages": [lo, hi], "seconds": seconds, "spans": spans(rank, pace_s=pace_s)}
    return {**told, **more}


def accounts(rows: list[Row]) -> dict[tuple[str, int], list[dict[str, Any]]]:
    return {
        (f"{row.method}:{row.estimator}" if row.estimator else row.method, row.seed): [
            account(0, 160 / (row.samples_per_s or 1), 0.031),
            account(1, 160 / (row.samples_per_s or 1), 0.25),
        ]
        for row in rows
        if row.method in OWN and row.ok
    }


def rows(seeds: int = 1, failed: bool = True) -> list[Row]:
    told = [row(label, seed) for label in ROWS for seed in range(seeds)]
    if failed:
        told = [Row(each.method, each.estimator, each.seed, status=FAILURE, metric="accuracy", higher_is_better=True)
                if each.method == "gpipe" else each for each in told]  # fmt: skip
    return told


def whole(
    told: list[Row], target: float | None = None, own: dict[Any, Any] | None = None, **more: Any
) -> dict[str, Any]:
    """The document of these rows. own: the workers' accounts, which only the verdict takes from here."""
    if target is not None:
        for each in told:
            each.time_to_target_s = time_to_target(each.history, target, True)
    experiment = {
        **made.whole([])["experiment"],
        "batch_size": 256,
        "target": target,
        "seeds": len({each.seed for each in told}),
        **more,
    }
    config = {"command": "compare", "experiment": experiment["name"], "workers": 2, "target": target}
    whole: dict[str, Any] = finite(document(environment(1), experiment, told, None, config))
    whole["verdict"] = verdict(measured(whole, own)).to_dict()
    return whole


def hostile() -> tuple[dict[str, Any], dict[tuple[str, int], list[dict[str, Any]]]]:
    """Everything that a user names is an attack."""
    told = rows()
    for each in told:
        each.metric = made.HOSTILE
        if each.method == "synthetic":
            each.estimator = made.HOSTILE + each.estimator
        if not each.ok:
            each.status = f"failed: {made.HOSTILE}"
    whole_ = whole(told, name=made.HOSTILE, dataset=made.HOSTILE)
    whole_["verdict"]["text"], whole_["verdict"]["reasons"] = made.HOSTILE, [made.HOSTILE]
    whole_["environment"]["cpu"] = whole_["environment"]["link"] = made.HOSTILE
    return whole_, accounts(told)
