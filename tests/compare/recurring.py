"""A small recurrent experiment, and as a user's file would have it."""

from __future__ import annotations

import torch
from torch import nn

from syngrad.recurrent import Course, Piece, RecurrentExperiment
from syngrad.recurrent.curriculum import LearnerAdapter


class Echo(Course):
    """What was said two steps before."""

    def __init__(self, n: int, seed: int, stream: bool = False) -> None:
        self.n, self.stream = n, stream
        self.generator = torch.Generator().manual_seed(seed)
        self.losses: list[float] = []

    def take(self) -> Piece:
        said = torch.randint(3, (self.n, 8), generator=self.generator)
        inputs = nn.functional.one_hot(said, 3).float()
        targets = torch.full_like(said, -100)
        targets[:, 2:] = said[:, :-2]
        return Piece(inputs, targets, stream=self.stream)

    def heard(self, loss: float, piece: Piece) -> None:
        self.losses.append(loss)

    def examine(self, student: LearnerAdapter) -> float:
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
