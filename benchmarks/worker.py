"""One process of a row of Syngrad's own, timed: `worker.py SPEC OUT`, started by rows.py.

SPEC is JSON: experiment, batch_size, threads, options of the Trainer, the minibatches before the clock starts and those
that are timed. Both are an epoch each, and an epoch ends when every process is done with it: so every process has done
the timed minibatches within the time, and nothing else. Process 0 writes to OUT.
"""

from __future__ import annotations

import json
import os
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from launched_worker import work

import syngrad
from syngrad.experiments import registry
from syngrad.runtime.option_fields import override
from syngrad.trainer.options import Options


class Epochs:
    """Epochs of so many minibatches each, all of them full; the data begins anew where it ends."""

    def __init__(self, loader: Any, size: int, lengths: Sequence[int]) -> None:
        self._endless = self._all(loader, size)
        self._lengths = iter(lengths)

    @staticmethod
    def _all(loader: Any, size: int) -> Iterator[Any]:
        while True:
            yield from (batch for batch in loader if len(batch[0]) == size)

    def __iter__(self) -> Iterator[Any]:
        return islice(self._endless, next(self._lengths))


def crossed(trainer: syngrad.Trainer) -> int:
    """Bytes that have crossed the link to the next worker so far, both ways, headers included."""
    following = trainer.runner.neighbours.next if trainer.runner is not None else None
    return following.link.sent_bytes + following.link.received_bytes if following is not None else 0


def shares(process: dict[str, Any], first: int) -> dict[str, float]:
    """Of a process's time from its work on minibatch `first` to its last work: the share of each kind.

    What lies inside a work, a wait for room or a sending, counts for itself.
    """
    spans = sorted(process["spans"], key=lambda span: span[2])
    work = [(begin, end) for name, minibatch, begin, end in spans if name == "work" and minibatch >= first]
    start, until = work[0][0], work[-1][1]
    seconds = {"work": sum(end - begin for begin, end in work)}
    begins = [begin for begin, _ in work]
    for name, _, begin, end in spans:
        if name == "work" or begin < start or end > until:
            continue
        seconds[name] = seconds.get(name, 0.0) + end - begin
        if end <= work[bisect_right(begins, begin) - 1][1]:
            seconds["work"] -= end - begin
    return {name: each / (until - start) for name, each in seconds.items()}


def idle(found: Sequence[dict[str, float]]) -> float:
    """The share of its time that the busiest process waits, the one with the largest share of work."""
    busiest = max(found, key=lambda each: each["work"])
    return sum(share for name, share in busiest.items() if name.startswith("wait"))


def main(spec: dict[str, Any], out: str) -> None:
    torch.set_num_threads(spec["threads"])
    experiment = registry.load(spec["experiment"], batch_size=spec["batch_size"])
    torch.manual_seed(0)
    trainer = syngrad.Trainer(
        syngrad.decouple(experiment.model(), cuts=experiment.cuts),
        loss=experiment.loss,
        optimizer=experiment.optimizer,
        scheduler=experiment.scheduler,
        progress=False,
        **override(Options, experiment.options, {"trace": True, **spec["options"]}),
    )
    lengths = spec["warm_up"], spec["minibatches"]
    train, _ = experiment.data(experiment.batch_size, 0)
    bytes_at: list[int] = []

    def count(_: Any) -> None:
        bytes_at.append(crossed(trainer))

    count.whole = False  # type: ignore[attr-defined]  # the model need not be brought together for it
    history = trainer.fit(Epochs(train, experiment.batch_size, lengths), 2, on_epoch=count)
    if os.environ.get("RANK", "0") != "0":
        return
    train_s = history.epochs[1].train_s - history.epochs[0].train_s
    found = [shares(each, lengths[0]) for each in history.processes]
    result = {
        "samples_per_s": lengths[1] * experiment.batch_size / train_s,
        "train_s": train_s,
        "minibatches": lengths[1],
        "bytes_a_minibatch": (bytes_at[1] - bytes_at[0]) / lengths[1],
        "staleness": [each["staleness"] for each in history.interfaces],
        "shares": found,
        "idle": idle(found),
        "peak_memory_bytes": [each["peak_memory_bytes"] for each in history.processes],
    }
    Path(out).write_text(json.dumps(result))


if __name__ == "__main__":
    work(main)
