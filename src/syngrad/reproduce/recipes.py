"""How the nets of the published experiments are made and trained, but for the method.

A fully connected layer is Linear 256, batch norm, ReLU; training is Adam at a constant rate that is divided by ten
after three fifths and again after four fifths of the updates, batch 256. Source: Jaderberg et al. 2016 (arXiv
1608.05343), App. C, as its implementers have it. What is counted is updates, as there, and not passes over the data.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from syngrad.data import TensorBatches, cifar10, mnist
from syngrad.experiments import cifar_cnn, registry
from syngrad.experiments.experiment import Experiment, adam
from syngrad.experiments.image_data import CropAndFlip
from syngrad.recurrent import RecurrentExperiment
from syngrad.reproduce.study import Scale

WIDTH, CLASSES, TEST_BATCH = 256, 10, 1_000
SETS = {"MNIST": (mnist, 28 * 28), "CIFAR-10": (cifar10, 3 * 32 * 32)}
#: seconds, about, on one core: of an update by back-propagation for a layer of 256 with batch 256; of a sample of the
#: paper's convolutional net; of a step of time with batch 32; of an image that is tested; and of a run's beginning
LAYER_S, CONV_S, TIME_S, TESTED_S, BEGIN_S = 1.6e-3, 2e-2, 4e-4, 3e-5, 0.5


@cache
def images(dataset: str, train: bool) -> tuple[Tensor, Tensor]:
    """A whole set, read once a process."""
    return SETS[dataset][0](train=train)


class Updates:
    """Minibatches of a set without end, `count` an epoch: published runs are as long as their updates are many."""

    def __init__(self, batches: TensorBatches, count: int) -> None:
        self.batches, self.count = batches, count
        self._flow: Iterator[tuple[Tensor, ...]] = iter(())

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        """The next `count`."""
        for _ in range(self.count):
            taken = next(self._flow, None)
            if taken is None:
                self._flow = iter(self.batches)
                taken = next(self._flow)
            yield taken


def divided(steps: int) -> Any:
    """Optimiser → its rate, divided by ten after three fifths and after four fifths of the updates."""
    places = [max(round(share * steps), 1) for share in (0.6, 0.8)]
    return lambda optimizer: torch.optim.lr_scheduler.MultiStepLR(optimizer, places)


@dataclass(frozen=True)
class FeedForward(ABC):
    """What both kinds of feed-forward nets have in common. A run is tested at its end."""

    data: str
    steps: int
    rate: float
    samples: int | None
    tested: int | None
    batch: int

    @property
    def dataset(self) -> str:
        """The data in words."""
        return self.data

    def read(self) -> None:
        """Both sets."""
        for train in (True, False):
            images(self.data, train)

    @abstractmethod
    def model(self) -> nn.Module:
        """The net."""

    @abstractmethod
    def cuts(self) -> list[str]:
        """Where the interfaces are."""

    def loaders(self, batch: int, seed: int) -> tuple[Updates, TensorBatches]:
        """Training minibatches in an order that the seed decides, and the test images."""
        held_out = [each[: self.tested] for each in images(self.data, False)]
        return Updates(self.training_set(batch, seed), self.steps), TensorBatches(*held_out, batch_size=TEST_BATCH)

    def training_set(self, batch: int, seed: int) -> TensorBatches:
        """The training images as they are."""
        taken = [each[: self.samples] for each in images(self.data, True)]
        return TensorBatches(*taken, batch_size=batch, shuffle=True, seed=seed)

    def experiment(self) -> Experiment:
        """The whole of it."""
        return Experiment(
            name=type(self).__name__,
            dataset=self.dataset,
            model=self.model,
            data=self.loaders,
            loss=F.cross_entropy,
            metric="accuracy",
            cuts=self.cuts(),
            optimizer=adam(self.rate),
            scheduler=divided(self.steps),
            batch_size=self.batch,
            epochs=1,
            options={"scheduler_every": "step"},
        )


@dataclass(frozen=True)
class FullyConnected(FeedForward):
    """Layers of 256 with batch norm, and a linear one at the end.

    Args:
        layers: with the last one.
        middle: one interface in the middle, instead of one after every hidden layer.
    """

    layers: int
    middle: bool = False

    @classmethod
    def at(cls, scale: Scale, layers: int, data: str = "MNIST", **more: Any) -> FullyConnected:
        """At a scale."""
        made = (data, scale.steps, scale.rate, scale.samples, scale.tested, scale.batch)
        return cls(*made, layers, **more)

    def model(self) -> nn.Module:
        """PyTorch's own initialisation."""
        sizes = [SETS[self.data][1]] + [WIDTH] * (self.layers - 1)
        blocks: OrderedDict[str, nn.Module] = OrderedDict(flat=nn.Flatten())
        for k in range(1, self.layers):
            blocks[f"layer{k}"] = nn.Sequential(nn.Linear(sizes[k - 1], WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU())
        blocks["head"] = nn.Linear(sizes[-1], CLASSES)
        return nn.Sequential(blocks)

    def cuts(self) -> list[str]:
        """After every hidden layer, or after half of them."""
        if self.middle:
            return [f"layer{self.layers // 2 + 1}"]
        return [*(f"layer{k}" for k in range(2, self.layers)), "head"]

    def seconds(self) -> float:
        """From the number of layers; the first one of 784 or 3,072 is as much as three more, or twelve."""
        tested = 10_000 if self.tested is None else self.tested
        update = LAYER_S * (self.layers + SETS[self.data][1] / WIDTH) * self.batch / 256
        return self.steps * update + tested * TESTED_S + BEGIN_S


@dataclass(frozen=True)
class Convolutional(FeedForward):
    """The paper's net for CIFAR-10 (App. C.1), with an interface after each of its three blocks; crop and flip."""

    @classmethod
    def at(cls, scale: Scale) -> Convolutional:
        """At a scale."""
        made = ("CIFAR-10", scale.conv_steps, scale.rate, scale.samples, scale.tested, scale.conv_batch)
        return cls(*made)

    @property
    def dataset(self) -> str:
        """With what is done to the images."""
        return "CIFAR-10, crop and flip"

    def model(self) -> nn.Module:
        """`cifar-cnn`'s."""
        return cifar_cnn.model()

    def cuts(self) -> list[str]:
        """After each block."""
        return ["block2", "block3", "head"]

    def training_set(self, batch: int, seed: int) -> TensorBatches:
        """Shifted and mirrored anew each time."""
        taken = [each[: self.samples] for each in images(self.data, True)]
        return CropAndFlip(*taken, batch_size=batch, shuffle=True, seed=seed)

    def seconds(self) -> float:
        """By the samples; a third of that for one that is tested."""
        tested = 10_000 if self.tested is None else self.tested
        return (self.steps * self.batch + tested / 3) * CONV_S + BEGIN_S


@dataclass(frozen=True)
class Sequence:
    """One of the experiments with recurrent nets, for so many windows of so many steps.

    Args:
        name: as `syngrad compare` has it.
        window: steps of time between two updates.
        windows: updates.
        parts: how often it is examined.
        patience: of those, without a better one, after which it ends with the best; None for never.
    """

    name: str
    window: int
    windows: int
    parts: int
    patience: int | None = None

    @property
    def dataset(self) -> str:
        """The data that are there."""
        return self.experiment().dataset

    def read(self) -> None:
        """What the net's size follows from, which is all that there may be to read."""
        self.experiment().model()

    def experiment(self) -> RecurrentExperiment:
        """The built-in one, as long as this says."""
        made = registry.load_any(self.name)
        assert isinstance(made, RecurrentExperiment)
        steps = max(self.windows * self.window // self.parts, 1)
        return replace(made, steps=steps, epochs=self.parts, window=self.window, patience=self.patience)

    def seconds(self) -> float:
        """By the steps of time."""
        return self.windows * self.window * TIME_S + self.parts + BEGIN_S
