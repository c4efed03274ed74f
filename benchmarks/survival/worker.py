"""One process of a replica that is killed now and then: `worker.py SPEC FOLDER`, started by main.py.

What main.py reads in FOLDER, so that it knows whom to kill, and what became of it:

    pid.INDEX.RANK   the attempt, and the process's id: written first of all, so that a kill may fall into the start
    log.INDEX        a line an event of the replica: its name, the time, the attempt, and a number:
                     trained    a minibatch is over, the number is its own
                     averaged   an averaging is done: 1 where what this replica has learnt is in it, 0 where not
    out.json         the final metric
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

INDEX, RANK = int(os.environ.get("REPLICA_GROUP_ID", "0")), int(os.environ.get("RANK", "0"))
ATTEMPT = int(os.environ.get("SYNGRAD_REPLICA_ATTEMPT", "0"))


def note(folder: Path, name: str, text: str) -> None:
    """In one piece."""
    (folder / f"{name}.new").write_text(text)
    os.replace(folder / f"{name}.new", folder / name)


if __name__ == "__main__":
    note(Path(sys.argv[2]), f"pid.{INDEX}.{RANK}", f"{ATTEMPT} {os.getpid()}")

import dataclasses  # noqa: E402
import functools  # noqa: E402
import json  # noqa: E402
import time  # noqa: E402
from typing import Any  # noqa: E402

HERE = Path(__file__).resolve().parent
sys.path.insert(1, str(HERE.parent))

import long_epochs  # noqa: E402
from launched_worker import work  # noqa: E402

from syngrad.callbacks import Callback  # noqa: E402
from syngrad.compare.step_costs import threads  # noqa: E402
from syngrad.compare.training import Training  # noqa: E402
from syngrad.experiments.fashion_mlp import fashion_mlp  # noqa: E402
from syngrad.replicas.averaging import Averaging  # noqa: E402


class Told(Callback):
    """Notes every minibatch, and has each take a given time at least, as if it had been computed elsewhere."""

    whole, everywhere = False, True

    def __init__(self, log: int, pace_s: float) -> None:
        self._log, self._pace_s = log, pace_s
        self._next = 0.0
        self.late = 0

    def event(self, name: str, number: int) -> None:
        os.write(self._log, f"{name} {time.time():.4f} {ATTEMPT} {number}\n".encode())

    def on_step(self, trainer: Any, loss: Any) -> None:
        now = time.monotonic()
        if now < self._next:
            time.sleep(self._next - now)
        self._next = max(now, self._next) + self._pace_s
        self.event("trained", trainer.minibatches)


def told(averaging: type[Averaging], telling: Told) -> None:
    """Have every averaging noted, and whether what this replica has learnt is in it."""
    average, conclude = averaging._average, averaging._conclude

    def averaged(self: Averaging, quorum: Any, *given: Any, **more: Any) -> bool:
        vars(self)["counts"] = quorum.rank not in quorum.healing
        return average(self, quorum, *given, **more)

    def concluded(self: Averaging, **given: Any) -> bool:
        done = conclude(self, **given)
        if done:
            telling.event("averaged", int(vars(self)["counts"]))
        return done

    averaging._average = averaged  # type: ignore[method-assign]
    averaging._conclude = concluded  # type: ignore[method-assign]


def main(spec: dict[str, Any], where: str) -> None:
    folder = Path(where)
    telling = Told(os.open(folder / f"log.{INDEX}", os.O_WRONLY | os.O_APPEND | os.O_CREAT), spec["pace_s"])
    told(Averaging, telling)
    experiment = dataclasses.replace(
        fashion_mlp(spec["epochs"], spec["batch_size"]),
        cuts=["5"],
        data=functools.partial(long_epochs.images, spec["minibatches"]),
    )
    options = {"quality_every": 0, "true_every": 0, "replicas_every": spec["every"]}
    made = Training(experiment, seed=spec["seed"], options=options, progress=False)
    with threads(1):
        train, test = made.source.loaders(spec["seed"])
        history = made.trainer.fit(train, experiment.epochs, validate=test, callbacks=[telling])
    if RANK == 0 and INDEX == 0:
        out = {"value": history.value, "minibatches": made.trainer.minibatches, "replica": history.replica}
        note(folder, "out.json", json.dumps(out))


if __name__ == "__main__":
    work(main)
