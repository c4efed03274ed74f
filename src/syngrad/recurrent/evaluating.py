"""The loss of a recurrent net over whole sequences, without learning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from syngrad.tree import to_device

if TYPE_CHECKING:
    from syngrad.recurrent.learner import Learner


@torch.no_grad()
def evaluate(run: Learner, inputs: Any, targets: Any) -> Tensor:
    """The loss in evaluation mode; the modules are put back into the mode that they were in, each of them."""
    inputs, targets = to_device(inputs, run.device), to_device(targets, run.device)
    parts = [module for module in (run.core.module, run.readout) if module is not None]
    modules = [(module, module.training) for part in parts for module in part.modules()]
    try:
        for part in parts:
            part.eval()
        outputs, _ = run.core.run(inputs, None)
        return run.loss(outputs if run.readout is None else run.readout(outputs), targets)
    finally:
        for module, was in modules:
            module.training = was
