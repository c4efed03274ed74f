"""Runs of several replicas, each a process of its own: a small model in float64, and what every one of them leaves.

`python -m tests._support.replica_runs FOLDER SETTINGS` is one of them.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tests._support.options import keywords
from torch import Tensor, nn
from torch.nn import functional as F

import syngrad
from syngrad.callbacks import Callback
from syngrad.launch.replica_launcher import launch_replicas
from syngrad.replicas.place import place

#: seconds without a sign of life after which a replica counts as dead, and for which others wait for one that lives
DEAD_MS, JOIN_MS = 1500, 1500


def batches(count: int, size: int = 8) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(count * size, 6, generator=generator).double()
    return list(zip(x.split(size), x[:, :3].argmax(1).split(size), strict=True))


def model() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 3)]
    return nn.Sequential(*layers).double()


def unnormed() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 3)).double()


def trainer(settings: dict[str, Any]) -> syngrad.Trainer:
    """What the settings ask for; `replicas` are the options of `Replicas`."""
    given: dict[str, Any] = {
        "loss": F.cross_entropy,
        "metric": "accuracy",
        "optimizer": lambda p: torch.optim.SGD(p, settings.get("rate", 0.05)),
        "progress": False,
        "quality_every": 0,
        "true_every": 0,
        "replicas": syngrad.Replicas(**settings.get("replicas", {})),
        **settings.get("options", {}),
    }
    plain = settings.get("unnormed", False)
    net = syngrad.decouple(unnormed() if plain else model(), cuts=["2", "4"] if plain else ["3", "5"])
    return syngrad.Trainer(net, **keywords(**given))


class KilledLate(Callback):
    """Ends a replica's first process with the end of an epoch: all of it is averaged and measured, nothing is saved."""

    whole, everywhere = False, True

    def __init__(self, epoch: int | None) -> None:
        self._epoch = epoch

    def on_epoch(self, trainer: syngrad.Trainer, record: Any) -> None:
        found = place()
        if record.epoch == self._epoch and found is not None and found.attempt == 0:
            os.kill(os.getpid(), signal.SIGKILL)


class Loader:
    """The minibatches, some of which are slow, or end the replica, in one of the replicas alone."""

    def __init__(self, settings: dict[str, Any], folder: Path) -> None:
        self._settings, self._folder = settings, folder
        self._batches = batches(settings.get("batches", 12))
        self._seen = 0

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        index, attempt = os.environ.get("REPLICA_GROUP_ID", "0"), os.environ.get("SYNGRAD_REPLICA_ATTEMPT", "0")
        for batch in self._batches:
            time.sleep(self._settings.get("slow", {}).get(index, 0.0))
            self._seen += 1
            killed = self._settings.get("killed", {}).get(index)
            if attempt == "0" and self._seen == killed:
                os.kill(os.getpid(), signal.SIGKILL)
            if self._seen == self._settings.get("noted", {}).get(index):
                (self._folder / f"noted.{index}").touch()
            yield batch


def run(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What a run leaves."""
    made = trainer(settings)
    data, loader = batches(4), Loader(settings, folder)
    began = time.monotonic()
    late = KilledLate(settings.get("killed_late", {}).get(os.environ.get("REPLICA_GROUP_ID")))
    fit = {"callbacks": [late], **settings.get("fit", {})}
    history = made.fit(loader, settings.get("epochs", 2), validate=data, **fit)
    return {
        "model": dict(made.model.state_dict()),
        "estimators": dict(made.net.estimators.state_dict()),
        "metrics": [each.metrics for each in history.epochs],
        "samples": [each.samples for each in history.epochs],
        "replica": history.replica,
        "minibatches": made.minibatches,
        "seconds": time.monotonic() - began,
    }


def launched(folder: Path, replicas: int, settings: dict[str, Any], **more: Any) -> tuple[list[Any], list[str]]:
    """What each of so many replicas has left, and what the launcher has said."""
    command = [sys.executable, "-m", "tests._support.replica_runs", str(folder), json.dumps(settings)]
    said: list[str] = []
    launch_replicas(
        command, replicas, **{"say": said.append, "dead_ms": DEAD_MS, "join_ms": JOIN_MS, "grace_s": 5.0, **more}
    )
    left = [folder / f"{index}" for index in range(replicas)]
    return [torch.load(each) if each.exists() else None for each in left], said


def same(one: dict[str, Any], other: dict[str, Any], part: str = "model") -> bool:
    """Whether two of them have left the same tensors."""
    return all(torch.equal(value, other[part][name]) for name, value in one[part].items())


def main() -> None:
    """Be one of them."""
    torch.set_num_threads(1)
    from syngrad.launch.parent_death import die_with_parent
    from syngrad.links.world import world

    die_with_parent()
    folder, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
    index = os.environ["REPLICA_GROUP_ID"]
    if index in json.loads(sys.argv[2]).get("killed_early", []) and os.environ["SYNGRAD_REPLICA_ATTEMPT"] == "0":
        os.kill(os.getpid(), signal.SIGKILL)
    settings = {**settings, **settings.get("differs", {}).get(index, {})}
    try:
        left = run(settings, folder)
        if world().rank == 0:
            torch.save(left, folder / index)
    except syngrad.SyngradError:
        sys.exit(2)  # its launcher has been told


if __name__ == "__main__":
    main()
