"""A run that something happens to: `python -m tests._support.fault_injection FOLDER SPEC`, one process of it.

SPEC is JSON: `options` of the Trainer and `fit`, beside those of worker_runs.py; `validated`, whether it is;
`silence_ms` of the links; and `faults`, each {"attempt", "rank", "what", "at", "module"}: what befalls that rank in the
forward of that module with minibatch `at`, in training, or where it says "evaluating", in evaluation; or, for "torn
write" and "full disk", in the writing of the `at`-th checkpoint of that attempt. One that is started again alone and
is "unmet" does not find the others.

What it notes in FOLDER: `pid.RANK.ATTEMPT`, once the process is in `fit`; `log`, a line a checkpoint ("saved", with its
minibatch) and a line a start ("begun", with the minibatch it goes on from); `left.RANK`, what the run has left.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tests._support.worker_runs import batches, left, trainer
from torch import Tensor

import syngrad
from syngrad.callbacks import Callback
from syngrad.errors import LinkError
from syngrad.links import zeromq
from syngrad.links.rendezvous import Rendezvous
from syngrad.links.world import World, world
from syngrad.pipeline import neighbours, restarts
from syngrad.runtime import checkpoint

#: longer than any test waits
FOR_EVER_S = 600.0


def note(folder: Path, name: str, text: str) -> None:
    """In one piece: the test may read it at any moment."""
    (folder / f"{name}.new").write_text(text)
    (folder / f"{name}.new").rename(folder / name)


def add(folder: Path, event: str, minibatch: int) -> None:
    """One more line, written before anything else happens."""
    with (folder / "log").open("a") as file:
        file.write(f"{event} {minibatch}\n")


class Begun(Callback):
    """Notes from where an attempt goes on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_start(self, trainer: syngrad.Trainer) -> None:
        add(self.folder, "begun", trainer.minibatches)


class Until(Callback):
    """Raises after so many minibatches, or waits there for Ctrl-C."""

    def __init__(self, at: int, folder: Path | None = None) -> None:
        self.at, self.folder = at, folder

    def on_step(self, trainer: syngrad.Trainer, loss: Tensor) -> None:
        if trainer.minibatches < self.at:
            return
        if self.folder is None:
            raise RuntimeError("the callback is tired")
        handler: Any = signal.getsignal(signal.SIGINT)
        deadline = time.monotonic() + FOR_EVER_S
        note(self.folder, "ready", "")
        while handler.__self__.asked is None and time.monotonic() < deadline:
            time.sleep(0.01)


def strike(what: str, amount: float = 0.0, folder: Path | None = None) -> None:
    """What can happen to a process at work; "note" only says that it is there."""
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "kill two" and folder is not None:  # the other one has never been started again
        os.kill(int((folder / f"pid.{amount:.0f}.0").read_text()), signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "stop":
        os.kill(os.getpid(), signal.SIGSTOP)
    elif what == "raise":
        raise ValueError("the model is broken")
    elif what == "sleep":
        time.sleep(amount)
    elif what == "note" and folder is not None:
        note(folder, "ready", "")


def arm(made: syngrad.Trainer, fault: dict[str, Any], folder: Path) -> None:
    """Have it happen in the forward of a module; a fault without "at" on every minibatch."""
    module, training = made.model.get_submodule(fault["module"]), not fault.get("evaluating", False)

    def hook(*_: Any) -> None:
        if module.training != training or made.runner is None:
            return
        if made.minibatches == fault.get("at", made.minibatches):
            strike(fault["what"], fault.get("amount", 0.0), folder)

    module.register_forward_pre_hook(hook)


def spoil(fault: dict[str, Any]) -> None:
    """Have it happen while the `at`-th checkpoint is written."""
    write, count = checkpoint._write, [0]

    def spoilt(path: Path, content: bytes) -> None:
        count[0] += 1
        if count[0] != fault["at"]:
            write(path, content)
            return
        write(path, content[: len(content) // 2])
        if fault["what"] == "torn write":
            strike("kill")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    checkpoint._write = spoilt


def watch(folder: Path) -> None:
    """Note every checkpoint that is written."""
    save: Callable[..., Path] = checkpoint.save

    def noted(root: Any, model: Any, state: dict[str, Any], keep: int = 2) -> Path:
        path = save(root, model, state, keep)
        add(folder, "saved", state["stages"]["count"])
        return path

    checkpoint.save = noted


def lose_the_others(*_: Any) -> Rendezvous:
    raise LinkError("rank 0 has not come within 1 s")


class Load:
    """The most that is under way to the next worker, and how this process's memory grows from the 10th message on."""

    def __init__(self) -> None:
        self.most, self.sent = 0, 0
        self.first_bytes = self.most_bytes = 0
        send = neighbours.Next.send

        def counted(following: neighbours.Next, *args: Any, **more: Any) -> None:
            send(following, *args, **more)
            self.sent += 1
            self.most = max(self.most, len(following.outstanding))
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
            self.first_bytes = resident if self.sent <= 10 else self.first_bytes
            self.most_bytes = max(self.most_bytes, resident)

        neighbours.Next.send = counted  # type: ignore[method-assign]


def prepare(spec: dict[str, Any], place: World) -> list[dict[str, Any]]:
    """What goes for the whole process; its own faults of this attempt."""
    torch.set_num_threads(1)
    if "silence_ms" in spec:
        quick = {"heartbeat_ms": spec["silence_ms"] // 4, "silence_ms": spec["silence_ms"]}
        for function in (zeromq.listen, zeromq.connect):
            function.__kwdefaults__.update(quick)  # type: ignore[attr-defined]
    return [
        fault
        for fault in spec.get("faults", ())
        if fault["rank"] == place.rank and fault.get("attempt", place.attempt) == place.attempt
    ]


def main(where: str, text: str) -> None:
    """One process of the run."""
    folder, spec, place = Path(where), json.loads(text), world()
    own = prepare(spec, place)
    if any(fault["what"] == "never starts" for fault in own):
        note(folder, f"pid.{place.rank}.{place.attempt}", str(os.getpid()))
        time.sleep(FOR_EVER_S)
    unmet = any(fault["what"] == "unmet" for fault in own)
    if unmet and restarts.started_alone():
        Rendezvous.join = lose_the_others  # type: ignore[assignment]
    watch(folder)
    load = Load()
    made = trainer(**spec.get("options", {}))
    for fault in own if not unmet else ():
        (arm(made, fault, folder) if "module" in fault else spoil(fault))
    callbacks: list[Callback] = [Begun(folder)]
    if "interrupted at" in spec:
        callbacks.append(Until(spec["interrupted at"], folder))
    note(folder, f"pid.{place.rank}.{place.attempt}", str(os.getpid()))
    data = batches(**spec.get("data", {}))
    fit = {"epochs": 2, "callbacks": callbacks, **({"validate": data} if spec.get("validated") else {})}
    fit |= spec.get("fit", {})
    try:
        history = made.fit(data, **fit)
    except KeyboardInterrupt as interrupt:
        note(folder, f"interrupted.{place.rank}", str(interrupt))
        sys.exit(130)
    torch.save({**left(made, history), "load": vars(load)}, folder / f"left.{place.rank}")


if __name__ == "__main__":
    main(*sys.argv[1:])
