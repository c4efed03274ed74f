"""A recurrent net over whole sequences without learning: its loss, or what it says.

For the loss a long sequence is run in pieces of time, the state carried from one to the next, so that memory does not
grow with its length. That needs a loss that is a mean over what is counted: the default one, or one whose `loss_count`
of the whole is the sum of those of the pieces. Any other is given all outputs at once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from syngrad.errors import MessageError
from syngrad.estimators.losses import count_targets, token_cross_entropy
from syngrad.recurrent.checks import check_time
from syngrad.tree import to_device

if TYPE_CHECKING:
    from syngrad.recurrent.learner import Learner

#: steps of a piece
PIECE = 1024


@torch.no_grad()
def evaluate(run: Learner, inputs: Any, targets: Any) -> Tensor:
    """The loss in evaluation mode."""
    with evaluating(modules(run)):
        return _loss(run, to_device(inputs, run.device), to_device(targets, run.device))


@torch.no_grad()
def predict(run: Learner, inputs: Any) -> Any:
    """What the loss would be given, in evaluation mode."""
    with evaluating(modules(run)):
        outputs, _ = run.core.run(to_device(inputs, run.device), None)
        return run.scores(outputs)


def modules(run: Learner) -> list[nn.Module]:
    """Core and readout."""
    return [module for module in (run.core.module, run.readout) if module is not None]


@contextmanager
def evaluating(parts: list[nn.Module]) -> Iterator[None]:
    """In evaluation mode inside, and outside each part in the mode in which it was."""
    every = [each for part in parts for each in part.modules()]
    training = [each.training for each in every]
    try:
        for part in parts:
            part.eval()
        yield
    finally:
        for each, was in zip(every, training, strict=True):
            each.training = was


def _loss(run: Learner, inputs: Any, targets: Any) -> Tensor:
    core, steps = run.core, run.core.steps(inputs)
    counts = _counts(run, targets, steps, core.size(inputs)) if steps > PIECE else []
    if not counts:
        outputs, _ = core.run(inputs, None)
        return run.price(run.scores(outputs), targets)
    state: Any = None
    total, weight = torch.zeros((), device=run.device), sum(counts)
    for start, count in zip(range(0, steps, PIECE), counts, strict=True):
        stop = min(start + PIECE, steps)
        outputs, state = core.run(core.part(inputs, start, stop), state)
        if count > 0:
            total = total + run.price(run.scores(outputs), core.part(targets, start, stop)) * count
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
