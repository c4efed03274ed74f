"""A recurrent net over whole sequences without learning: its loss, or what it says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from syngrad.tree import to_device

if TYPE_CHECKING:
    from syngrad.recurrent.learner import Learner


@torch.no_grad()
def evaluate(run: Learner, inputs: Any, targets: Any) -> Tensor:
    """The loss in evaluation mode."""
    return run.loss(predict(run, inputs), to_device(targets, run.device))


@torch.no_grad()
def predict(run: Learner, inputs: Any) -> Any:
    """What the loss would be given, in evaluation mode."""
    with evaluating([module for module in (run.core.module, run.readout) if module is not None]):
        outputs, _ = run.core.run(to_device(inputs, run.device), None)
        return outputs if run.readout is None else run.readout(outputs)


@contextmanager
def evaluating(modules: list[nn.Module]) -> Iterator[None]:
    """In evaluation mode inside, and outside each part in the mode in which it was."""
    every = [each for module in modules for each in module.modules()]
    training = [each.training for each in every]
    try:
        for module in modules:
            module.eval()
        yield
    finally:
        for each, was in zip(every, training, strict=True):
            each.training = was
