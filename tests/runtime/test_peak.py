"""Nothing of a stage outlives the run of the next one: two messages at a time, however many stages there are."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import syngrad
from syngrad.core.memory import SavedBytes

N, WIDTH = 64, 100


@pytest.mark.parametrize("stages", [4, 8])
@pytest.mark.parametrize("inputs", [None, "linear"])
def test_a_message_is_gone_when_the_stage_after_the_next_runs(stages: int, inputs: str | None) -> None:
    layers: list[nn.Module] = []
    cuts = []
    for k in range(stages):
        cuts += [str(2 * k)] if k else []
        layers += [nn.Linear(WIDTH, WIDTH), nn.ReLU()]
    net = syngrad.decouple(nn.Sequential(*layers, nn.Linear(WIDTH, 10)), cuts=cuts)
    trainer = syngrad.Trainer(
        net,
        loss=F.cross_entropy,
        progress=False,
        inputs=inputs,
        feedback=syngrad.Feedback(every=1, quality_every=0, true_every=0),
    )
    x, y = torch.randn(N, WIDTH), torch.randint(10, (N,))
    message = 4 * N * WIDTH
    for step in range(4):
        with SavedBytes(trainer.model, but=[x, y]) as meter:
            trainer.step((x, y))
        # that which came, and that which goes on; predicted inputs are a third. On the first minibatch alone so is the
        # copy on which it is found what a stage does with its message
        assert meter.peak_bytes < (3 if inputs is None and step else 4) * message
        assert meter.live_bytes == 0
