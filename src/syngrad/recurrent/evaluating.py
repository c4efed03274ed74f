"""The loss of a recurrent net over whole sequences, without learning.

A long sequence is run in pieces of time, the state carried from one to the next, so that memory does not grow with its
length. That needs a loss that is a mean over what is counted: the default one, or one whose `loss_count` of the whole
is the sum of those of the pieces. Any other is given all outputs at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from syngrad.errors import MessageError
from syngrad.recurrent.checks import check_time
from syngrad.recurrent.losses import count_targets, token_cross_entropy
from syngrad.tree import to_device

if TYPE_CHECKING:
    from syngrad.recurrent.learner import Learner

#: steps of a piece
PIECE = 1024


@torch.no_grad()
def evaluate(run: Learner, inputs: Any, targets: Any) -> Tensor:
    """The loss in evaluation mode; the modules are put back into the mode that they were in, each of them."""
    inputs, targets = to_device(inputs, run.device), to_device(targets, run.device)
    parts = [module for module in (run.core.module, run.readout) if module is not None]
    modules = [(module, module.training) for part in parts for module in part.modules()]
    try:
        for part in parts:
            part.eval()
        return _loss(run, inputs, targets)
    finally:
        for module, was in modules:
            module.training = was


def _loss(run: Learner, inputs: Any, targets: Any) -> Tensor:
    core, steps = run.core, run.core.steps(inputs)
    counts = _counts(run, targets, steps, core.size(inputs)) if steps > PIECE else []
    if not counts:
        outputs, _ = core.run(inputs, None)
        return run.loss(outputs if run.readout is None else run.readout(outputs), targets)
    state: Any = None
    total, weight = torch.zeros((), device=run.device), sum(counts)
    for start, count in zip(range(0, steps, PIECE), counts, strict=True):
        stop = min(start + PIECE, steps)
        outputs, state = core.run(core.part(inputs, start, stop), state)
        if count > 0:
            scores = outputs if run.readout is None else run.readout(outputs)
            total = total + run.loss(scores, core.part(targets, start, stop)) * count
    return total / weight if weight else total


def _counts(run: Learner, targets: Any, steps: int, n: int) -> list[float]:
    """What the loss averages over, piece by piece; none where it cannot be taken in pieces."""
    try:
        check_time("targets", targets, run.core.time, steps)
    except MessageError:
        return []  # the loss says what it thinks of them
    bounds = [(start, min(start + PIECE, steps)) for start in range(0, steps, PIECE)]
    pieces = [(run.core.part(targets, a, b), n * (b - a)) for a, b in bounds]
    if run.loss is token_cross_entropy:
        return [count_targets(piece) for piece, _ in pieces]
    counts = [run.count_losses(piece, otherwise) for piece, otherwise in pieces]
    return counts if run.counted and sum(counts) == run.count_losses(targets, n * steps) else []
