"""The probe looks at copies: a model or a loss that writes into what it is given is trained on what it was given."""

from __future__ import annotations

import pytest
import torch
from tests._support.models import CLASSES, assert_same, tensors_of
from tests._support.training import trainer_of
from torch import Tensor, nn
from torch.nn import functional as F


class Normalise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sub_(3.0).mul_(2.0)


class Unequal(nn.Module):
    """Takes something beside its input that is not as long, so that a minibatch cannot be divided."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        return self.body(x.add_(shift))


def own_loss(output: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(output, target.mul_(0.5))


def batches(whole: bool) -> list[tuple[Tensor, ...]]:
    generator = torch.Generator().manual_seed(0)
    made = []
    for _ in range(6):
        x, y = (torch.randn(8, n, generator=generator, dtype=torch.float64) for n in (6, CLASSES))
        made.append((x, torch.ones(6, dtype=torch.float64), y) if whole else (x, y))
    return made


@pytest.mark.parametrize("whole", [False, True])
def test_training_does_not_know_of_it(whole: bool) -> None:
    def run(every: int) -> dict[str, Tensor]:
        torch.manual_seed(1)
        body = nn.Sequential(Normalise(), nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, CLASSES)).double()
        model = Unequal(body) if whole else body
        cuts = ["body.3"] if whole else ["3"]
        trainer = trainer_of(model, cuts, loss=own_loss, estimator="linear", true_every=every)
        for batch in batches(whole):
            trainer.step(batch)
        assert len(trainer.quality[0].true) == (6 if every else 0)
        return tensors_of(model)

    assert_same(run(1), run(0))
