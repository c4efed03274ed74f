"""A digit shown row by row, 28 steps; what it is is asked after the last.

Estimators see the label and the step beside the state. MNIST where `syngrad data fetch mnist` has brought it, otherwise
the bundled part of Fashion-MNIST.

Source: Pemberton & Costa 2024 (arXiv 2401.07044), sequential MNIST. Deviations: a GRU, and what estimators see.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from syngrad.experiments.experiment import adam
from syngrad.experiments.image_data import digits
from syngrad.recurrent.curriculum import Curriculum, LearnerAdapter, SequenceBatch
from syngrad.recurrent.recurrent_experiment import RecurrentExperiment

ROWS, CLASSES, HIDDEN, RATE = 28, 10, 32, 2e-3
EXAMINED = 2_000


def unrolled(pictures: Tensor, labels: Tensor) -> SequenceBatch:
    """Rows (n, 28, 28), the label at the last step and −100 before, and what an estimator sees: label and step."""
    n = len(labels)
    targets = torch.full((n, ROWS), -100)
    targets[:, -1] = labels
    label = F.one_hot(labels, CLASSES).float().unsqueeze(1).expand(n, ROWS, CLASSES)
    step = torch.eye(ROWS).expand(n, ROWS, ROWS)
    return SequenceBatch(pictures.reshape(n, ROWS, ROWS), targets, torch.cat([label, step], 2))


class Rows(Curriculum):
    """Images drawn as the seed says."""

    def __init__(self, n: int, seed: int) -> None:
        self.n = n
        self.pictures, self.labels, _ = digits(True)
        self.held_out = digits(False)
        self.generator = torch.Generator().manual_seed(seed)

    def take(self) -> SequenceBatch:
        """So many images."""
        drawn = torch.randint(len(self.labels), (self.n,), generator=self.generator)
        return unrolled(self.pictures[drawn], self.labels[drawn])

    def examine(self, student: LearnerAdapter) -> float:
        """The share of test images that are named rightly."""
        pictures, labels, _ = self.held_out
        piece = unrolled(pictures[:EXAMINED], labels[:EXAMINED])
        scores = student.predict(piece.inputs)[:, -1]
        return float((scores.argmax(1) == piece.targets[:, -1]).double().mean())

    def sample(self) -> SequenceBatch:
        """The first images."""
        return unrolled(self.pictures[: self.n], self.labels[: self.n])

    def probe(self) -> SequenceBatch:
        """Test images."""
        pictures, labels, _ = self.held_out
        return unrolled(pictures[:32], labels[:32])


def row_mnist() -> RecurrentExperiment:
    """The whole recipe."""
    return RecurrentExperiment(
        name="row-mnist",
        dataset=f"{digits(True)[2]}, row by row",
        model=lambda: (nn.GRU(ROWS, HIDDEN, batch_first=True), nn.Linear(HIDDEN, CLASSES)),
        course=Rows,
        metric="accuracy",
        higher_is_better=True,
        window=4,
        estimator="linear",
        online="linear",
        rows=("bptt(28)", "bptt(4)", "synthetic(4)", "auxiliary(4)", "online", "zero"),
        optimizer=adam(RATE),
        batch_size=32,
        steps=28 * 200,
        epochs=5,
        options={"estimator_lr": 0.2},
    )
