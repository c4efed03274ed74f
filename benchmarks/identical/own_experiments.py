"""Experiments as a user's file has them, for the command line: `own_experiments.py:rings`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import syngrad
from syngrad.data import TensorBatches
from syngrad.recurrent import Course, Piece, RecurrentExperiment


def points(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Points of the plane, and which of three rings they lie in."""
    made = torch.randn(samples, 2, generator=torch.Generator().manual_seed(seed))
    radius = made.norm(dim=1)
    return made, (radius > 0.8).long() + (radius > 1.5).long()


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))


def data(batch_size: int, seed: int) -> tuple[TensorBatches, TensorBatches]:
    train = TensorBatches(*points(400, seed=1), batch_size=batch_size, shuffle=True, seed=seed)
    return train, TensorBatches(*points(100, seed=2), batch_size=100)


def rings(epochs: int = 3, batch_size: int = 20, **more: Any) -> syngrad.Experiment:
    given: dict[str, Any] = {
        "name": "rings",
        "dataset": "made up",
        "model": model,
        "data": data,
        "loss": F.cross_entropy,
        "metric": "accuracy",
        "cuts": ["2", "4"],
        "optimizer": lambda groups: torch.optim.Adam(groups, 3e-3),
        "scheduler": lambda optimizer: torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=max(epochs, 1)),
        "batch_size": batch_size,
        "epochs": epochs,
        "options": {"clip_norm": 5.0},
    }
    return syngrad.Experiment(**{**given, **more})


def halves() -> syngrad.Experiment:
    """Two stages, which can be laid over two processes in one way alone, and nothing that a rival does not know."""
    return rings(cuts=["2"], options={}, scheduler=None)


class Echo(Course):
    """What was said two steps before."""

    def __init__(self, n: int, seed: int) -> None:
        self.n = n
        self.generator = torch.Generator().manual_seed(seed)

    def take(self) -> Piece:
        said = torch.randint(3, (self.n, 8), generator=self.generator)
        targets = torch.full_like(said, -100)
        targets[:, 2:] = said[:, :-2]
        return Piece(F.one_hot(said, 3).float(), targets)

    def heard(self, loss: float, piece: Piece) -> None:
        pass

    def examine(self, student: Any) -> float:
        piece = Echo(16, 99).take()
        return float(student.evaluate(piece.inputs, piece.targets))

    def probe(self) -> Piece:
        return Echo(4, 98).take()


def echo() -> RecurrentExperiment:
    return RecurrentExperiment(
        model=lambda: (nn.GRU(3, 6, batch_first=True), nn.Linear(6, 3)),
        course=Echo,
        metric="loss",
        higher_is_better=False,
        window=2,
        online="linear",
        rows=("bptt", "synthetic", "auxiliary", "online", "zero"),
        batch_size=4,
        steps=24,
        epochs=2,
        name="echo",
        dataset="made up",
    )


def raises() -> Any:
    raise ValueError("of mine\nand more")


def nothing() -> None:
    pass


def needs(path: str) -> None:
    pass


def exits() -> Any:
    raise SystemExit("bye")


def wrong() -> syngrad.Experiment:
    return rings(batch_size=0)


def badcut() -> syngrad.Experiment:
    return rings(cuts=["nope"])


def modelexits() -> syngrad.Experiment:
    return rings(model=exits)


def dataexits() -> syngrad.Experiment:
    return rings(data=lambda b, s: exits())


def onelist() -> syngrad.Experiment:
    return rings(data=lambda b, s: [points(4, 1)])


def odd() -> syngrad.Experiment:
    return rings(options={"lr": 1})
