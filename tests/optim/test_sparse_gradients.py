"""Sparse gradients and the fused form, which PyTorch's optimisers do not take together."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import syngrad
from syngrad.errors import ConfigError, TrainingError
from syngrad.optim.factory import default_optimizer, parse_optimizer


class Words(nn.Module):
    """Looks up a sparse embedding, by its module or by a function."""

    def __init__(self, function: bool) -> None:
        super().__init__()
        self.function = function
        self.e, self.b, self.c = nn.Embedding(20, 6, sparse=not function), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, ids: Tensor) -> Tensor:
        """(n, t) → (n, 3)."""
        found = F.embedding(ids, self.e.weight, sparse=True) if self.function else self.e(ids)
        return self.c(self.b(found.mean(1)).relu())  # type: ignore[no-any-return]


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randint(20, (4, 5), generator=generator), torch.randint(3, (4,), generator=generator)) for _ in range(3)
    ]


def trainer_of(model: nn.Module, optimizer: Any, **options: Any) -> syngrad.Trainer:
    given = {"loss": F.cross_entropy, "optimizer": optimizer, "progress": False, **options}
    return syngrad.Trainer(syngrad.decouple(model, cuts=["b"]), **given)


@pytest.mark.filterwarnings("ignore:Sparse invariant checks")
@pytest.mark.parametrize("function", [False, True])
@pytest.mark.parametrize("text", ["sgd(lr=0.1)", "sgd(lr=0.1, momentum=0.9)", "adagrad(lr=0.1)"])
def test_an_optimiser_by_name_is_fused_only_where_it_can_be(text: str, function: bool) -> None:
    torch.manual_seed(0)
    model = Words(function)
    plain = copy.deepcopy(model)
    made = {"sgd": torch.optim.SGD, "adagrad": torch.optim.Adagrad}[text.partition("(")[0]]
    optimizer = made(plain.parameters(), lr=0.1, **({"momentum": 0.9} if "momentum" in text else {}))
    trainer = trainer_of(model, parse_optimizer(text), method="backprop", guard=None)
    for ids, y in batches():
        trainer.step((ids, y))
        optimizer.zero_grad()
        F.cross_entropy(plain(ids), y).backward()
        optimizer.step()
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_the_other_stages_stay_fused() -> None:
    trainer = trainer_of(Words(False), parse_optimizer("sgd(lr=0.1)"), optimizer_scope="stage")
    trainer.step(batches()[0])
    fused = [
        [group["fused"] for group in each.param_groups if "weights" in group["name"]] for each in trainer.optimizers
    ]
    assert fused == [[None], [True]]


def test_the_fused_form_that_was_asked_for_is_refused_before_training() -> None:
    for optimizer in (parse_optimizer("sgd(fused=True)"), lambda groups: torch.optim.SGD(groups, 0.1, fused=True)):
        trainer = trainer_of(Words(False), optimizer)
        with pytest.raises(
            ConfigError, match=r"'e\.weight' of the model has sparse gradients, which SGD with fused=True"
        ):
            trainer.bind(batches()[0])


def test_an_optimiser_that_takes_none_at_all_is_named_with_the_parameter() -> None:
    for optimizer in (parse_optimizer("adam"), default_optimizer):
        trainer = trainer_of(Words(False), optimizer)
        with pytest.raises(TrainingError, match=r"does not support sparse.*'e\.weight' has sparse gradients: use sgd"):
            trainer.step(batches()[0])
