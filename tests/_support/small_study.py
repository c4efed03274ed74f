"""A made-up study of two cases that takes milliseconds, with what is published of it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import nn
from torch.nn import functional as F

from syngrad import Experiment
from syngrad.data import TensorBatches
from syngrad.errors import ConfigError
from syngrad.reproduce import Case, PublishedFigure, Scale, Study
from syngrad.reproduce.scales import QUICK
from syngrad.reproduce.study import ACCURACY, BASE

TINY = replace(QUICK, steps=1, seeds=2)
HOSTILE = "</script><b>[bold]a reader's log[/bold]"


@dataclass(frozen=True)
class Tiny:
    """A net of two layers on forty made-up points."""

    steps: int = 1
    there: bool = True

    @property
    def dataset(self) -> str:
        return "made-up points"

    def read(self) -> None:
        if not self.there:
            raise ConfigError("points is not here; run 'syngrad data fetch points'")

    def experiment(self) -> Experiment:
        x = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
        y = (x.sum(1) > 0).long()

        def loaders(batch: int, seed: int) -> tuple[TensorBatches, TensorBatches]:
            train = TensorBatches(x, y, batch_size=batch, shuffle=True, seed=seed)
            return train, TensorBatches(x, y, batch_size=batch)

        return Experiment(
            name="tiny",
            dataset=self.dataset,
            model=lambda: nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)),
            data=loaders,
            loss=F.cross_entropy,
            cuts=["2"],
            batch_size=20,
            epochs=self.steps,
        )

    def seconds(self) -> float:
        return 0.1


def cases(scale: Scale) -> list[Case]:
    recipe = Tiny(scale.steps)
    return [Case(BASE, recipe, "backprop", 2), Case("estimated", recipe, "synthetic", 2, "linear")]


STUDY = Study(
    name="tiny",
    title="two layers, of which one has its gradient estimated",
    setting="Points on two sides of a plane, and a net of two layers with an interface between them.",
    differs="Everything.",
    axis="layers",
    metric=ACCURACY,
    published=(
        PublishedFigure(BASE, 2, 99.5, HOSTILE, "L", "of a longer training than anybody would want to wait for"),
        PublishedFigure("estimated", 2, None, HOSTILE, "I", "trains"),
        PublishedFigure("estimated", 50, 12.25, "another's log", "L"),
    ),
    cases=cases,
)
