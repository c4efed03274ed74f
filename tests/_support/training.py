"""What tests of training share: a trainer in one line, and descent written by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests._support.models import CASES, Case, adam, momentum, tensors_of
from tests._support.options import keywords
from torch import Tensor, nn
from torch.nn import functional as F

import syngrad


def trainer_of(model: nn.Module | None = None, cuts: list[str] | None = None, **options: Any) -> syngrad.Trainer:
    """A trainer of this model, or of the small MLP, cut there; Adam and cross-entropy unless told otherwise.

    Options are given by their flat names, as flags have them.
    """
    model = CASES["mlp"].model() if model is None else model
    options = {"loss": F.cross_entropy, "optimizer": adam, "progress": False, **options}
    return syngrad.Trainer(syngrad.decouple(model, cuts=cuts or CASES["mlp"].cuts), **keywords(**options))


def momentum_trainer(model: nn.Module | None = None, cuts: list[str] | None = None, **options: Any) -> syngrad.Trainer:
    """The same, with momentum (what :class:`Descent` does by hand) and no sampling."""
    return trainer_of(model, cuts, **{"optimizer": momentum, "quality_every": 0, "true_every": 0, **options})


def case_trainer(case: Case, model: nn.Module, **options: Any) -> syngrad.Trainer:
    """A trainer of this model as the case has it: its cuts, its loss."""
    net = syngrad.decouple(model, cuts=case.cuts)
    options.setdefault("quality_every", 0)
    options.setdefault("true_every", 0)
    return syngrad.Trainer(net, loss=case.loss, loss_count=case.count, **keywords(**{"progress": False, **options}))


def trained(case: Case, steps: int = 20, **options: Any) -> tuple[dict[str, Tensor], syngrad.Trainer]:
    """Every tensor of the case's model after some steps, and the trainer."""
    model = case.model()
    trainer = case_trainer(case, model, **options)
    for batch in case.batches(steps):
        trainer.step(batch)
    return tensors_of(model), trainer


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    """The error's text, which is one line and not empty."""
    text = str(error.value)
    assert text
    assert "\n" not in text
    return text


LR, BETA = 0.02, 0.9


class Descent:
    """SGD with momentum by hand; a parameter without a gradient stands still, momentum and all."""

    def __init__(self) -> None:
        self.velocity: dict[int, Tensor] = {}

    @torch.no_grad()
    def step(self, parameters: list[Tensor], gradients: list[Tensor | None]) -> None:
        for p, g in zip(parameters, gradients, strict=True):
            if g is not None:
                v = self.velocity.get(id(p))
                self.velocity[id(p)] = g.clone() if v is None else BETA * v + g
                p -= LR * self.velocity[id(p)]
