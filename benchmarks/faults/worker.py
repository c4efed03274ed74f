"""One process of a run that is killed again and again: `worker.py SPEC FOLDER`, started by a launcher.

What main.py reads in FOLDER, so that it knows whom to kill and when, and what became of it:

    pid.RANK   the attempt, and the process's id: written first of all, so that a kill may fall into the start as well
    place      the attempt, and the last minibatch whose loss process 0 has seen
    log        a line an event of process 0: its name, minibatch, attempt and time; "going" is the first loss of a
               minibatch that went forward after a start, or after another process was started again

An attempt is how often processes were started again by then, one or all.
    out.json   the final metric
"""

from __future__ import annotations

import json
import os
import struct
import sys
import time
from pathlib import Path
from typing import Any

FOLDER = Path(sys.argv[2])
RANK, ATTEMPT = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
PLACE = struct.Struct("<qq")


def note(name: str, text: str) -> None:
    """In one piece."""
    (FOLDER / f"{name}.new").write_text(text)
    os.replace(FOLDER / f"{name}.new", FOLDER / name)


def main() -> None:
    import torch

    from syngrad.callbacks import Callback
    from syngrad.compare.training import Training
    from syngrad.experiments.registry import load
    from syngrad.pipeline import restarts
    from syngrad.pipeline.leader import Leader
    from syngrad.runtime import checkpoint

    log = os.open(FOLDER / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    place = os.open(FOLDER / "place", os.O_WRONLY | os.O_CREAT)

    def event(name: str, minibatch: int) -> None:
        os.write(log, f"{name} {minibatch} {telling.attempt} {time.time()}\n".encode())

    class Telling(Callback):
        whole = False
        going, attempt, since = False, ATTEMPT, 0

        def on_start(self, trainer: Any) -> None:
            event("begun", trainer.minibatches)
            self.since = trainer.minibatches

        def on_step(self, trainer: Any, loss: Any) -> None:
            if not self.going and trainer.minibatches > self.since:
                event("going", trainer.minibatches)
                self.going = True
            os.pwrite(place, PLACE.pack(self.attempt, trainer.minibatches), 0)

    telling, enter = Telling(), Leader.enter

    def entered(leader: Leader) -> None:
        enter(leader)
        telling.going, telling.attempt, telling.since = False, restarts.starts(), leader.runner.count

    Leader.enter = entered
    save = checkpoint.save

    def saved(root: Any, model: Any, state: dict[str, Any], keep: int = 2) -> Path:
        path = save(root, model, state, keep)
        event("saved", state["stages"]["count"])
        return path

    checkpoint.save = saved
    torch.set_num_threads(1)
    spec = json.loads(sys.argv[1])
    experiment = load("fashion-mlp", epochs=spec["epochs"], batch_size=spec["batch_size"])
    training = Training(
        experiment,
        seed=spec["seed"],
        options={"quality_every": 0, "true_every": 0},
        fit={"save": str(FOLDER / "checkpoints"), "save_every": spec["save_every"], "resume": "auto"},
        callbacks=[telling],
        progress=False,
    )
    row = training.run()
    if RANK == 0:
        note("out.json", json.dumps({"value": row.value, "minibatches": training.trainer.minibatches}))


if __name__ == "__main__":
    note(f"pid.{RANK}", f"{ATTEMPT} {os.getpid()}")
    main()
