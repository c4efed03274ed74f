"""The true gradient behind a boundary, against autograd over the whole sequence."""

from __future__ import annotations

import pytest
import torch
from tests.recurrent import small
from torch import Tensor

from syngrad import GradientEstimator, TruncatedBPTT
from syngrad.errors import MessageError
from syngrad.recurrent.curriculum import Piece, probe


class Told(GradientEstimator):
    """Says what it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = torch.zeros(0)
        self.seen = torch.zeros(0)

    def forward(self, h: Tensor, context: Tensor | None = None) -> Tensor:
        self.seen = h
        return self.answer if len(self.answer) else torch.zeros_like(h)


def test_the_oracle_is_found_exactly() -> None:
    core, readout = small.lstm()
    inputs, targets = small.data()
    run = TruncatedBPTT(core, Told(), 4, readout=readout, optimizer=small.sgd)
    run.bind(inputs)
    estimator = run.estimator
    assert isinstance(estimator, Told)
    at = 4
    # what stands behind the boundary, of each sample's own losses, by hand
    _, state = core(inputs[:, :at])
    h, c = (each.detach().requires_grad_() for each in state)
    outputs, _ = core(inputs[:, at:], (h, c))
    scores = readout(outputs).flatten(0, 1)
    torch.nn.functional.cross_entropy(scores, targets[:, at:].flatten(), reduction="sum").backward()
    assert h.grad is not None
    assert c.grad is not None
    core.zero_grad()
    estimator.answer = torch.cat([h.grad[0], c.grad[0]], 1)
    before = {name: value.clone() for name, value in core.state_dict().items()}
    probe(run, Piece(inputs, targets), at)
    (sample,) = run.quality.true
    assert sample.cosine == pytest.approx(1.0, abs=1e-12)
    assert sample.norm_ratio == pytest.approx(1.0, abs=1e-12)
    torch.testing.assert_close(estimator.seen, torch.cat([h[0], c[0]], 1).detach())
    assert all(torch.equal(value, before[name]) for name, value in core.state_dict().items())
    assert all(p.grad is None for p in core.parameters())


@pytest.mark.parametrize("at", [0, small.STEPS, small.STEPS + 3])
def test_a_boundary_lies_inside(at: int) -> None:
    core, readout = small.lstm()
    inputs, targets = small.data()
    run = TruncatedBPTT(core, "linear", 4, readout=readout)
    run.bind(inputs)
    with pytest.raises(MessageError, match=f"after {at} steps does not lie inside sequences of {small.STEPS}"):
        probe(run, Piece(inputs, targets), at)
