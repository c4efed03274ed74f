"""The true gradient that a boundary's estimate stands for, by a long unroll from that boundary on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from syngrad.errors import MessageError
from syngrad.preserve_state import preserve_state
from syngrad.recurrent.course import Piece

if TYPE_CHECKING:
    from syngrad.recurrent.learner import Learner


def probe(run: Learner, piece: Piece, at: int) -> None:
    """Hold the estimate at the state after `at` steps of whole sequences against

        G = ∂ Σ_{t ≥ at} L_t / ∂s_at                    (n, features), of each sample's own losses

    found by going through all of the steps behind it at once; the sample joins `run.quality`. Nothing is learnt, and
    nothing of the run changes. Where estimates are discounted (`inject`, `gamma`) they stand for less than G; a cosine
    tells their direction.

    Raises MessageError where there is no step behind `at`, or none before.
    """
    core, layout, steps = run.core, run.parts.layout, run.core.steps(piece.inputs)
    if not 0 < at < steps:
        raise MessageError(f"a boundary after {at} steps does not lie inside sequences of {steps}")
    parts = [module for module in (core.module, run.readout) if module is not None]
    with preserve_state(*parts):
        with torch.no_grad():
            _, state = core.run(core.part(piece.inputs, 0, at), None)
        state, leaves = layout.cut(state, True)
        outputs, _ = core.run(core.part(piece.inputs, at, steps), state)
        targets = core.part(piece.targets, at, steps)
        loss = run.price(run.scores(outputs), targets)
        count = run.count_losses(targets, core.size(piece.inputs) * (steps - at))
        found: list[Tensor | None] = [None] * len(leaves)
        if loss.requires_grad:
            found = list(torch.autograd.grad(loss * count, leaves, allow_unused=True))
    true = layout.vector([torch.zeros_like(a) if b is None else b for a, b in zip(leaves, found, strict=True)])
    vector = layout.vector([leaf.detach() for leaf in leaves])
    with torch.no_grad():
        estimate = run.interface.estimate([vector], core.at(piece.context, at - 1), 1.0, keep=False)[0][0]
    run.quality.add_true(run.count, estimate, true)
