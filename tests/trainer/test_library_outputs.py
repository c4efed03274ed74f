"""Models that return what libraries do, and losses and metrics that take it for a tensor: told at once, in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests._support.training import one_line, trainer_of
from torch import Tensor, nn
from torch.nn import functional as F

import syngrad
from syngrad.errors import ConfigError

BATCHES = [(torch.randn(6, 3), torch.randint(5, (6,))) for _ in range(2)]


class Returns(nn.Module):
    """One layer after another; its forward looks at a value, so that it runs as it is and is not recorded."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.first, self.last = kind, nn.Linear(3, 4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Any:
        if x.shape[0] > 100:
            raise ValueError("too many")
        hidden = self.first(x).relu()
        scores = self.last(hidden)
        return (scores, hidden) if self.kind == "tuple" else {"logits": scores, "hidden": hidden}


def logits(output: Any, target: Tensor) -> Tensor:
    return F.cross_entropy(output["logits"], target)


@pytest.mark.parametrize("loss", [F.cross_entropy, lambda output, target: logits(output, target.float())])
def test_a_loss_that_raises_on_the_output_is_told_with_what_it_was_given(loss: Any) -> None:
    made = trainer_of(Returns("mapping"), ["last"], loss=loss)
    with pytest.raises(ConfigError, match=r"the loss, given dict \(logits, hidden\) .*, raised") as told:
        made.fit(BATCHES)
    one_line(told)


def test_pytorch_logs_no_pages_meanwhile(capfd: pytest.CaptureFixture[str]) -> None:
    made = trainer_of(Returns("mapping"), ["last"], loss=lambda output, target: logits(output, target.float()))
    with pytest.raises(ConfigError):
        made.fit(BATCHES)
    assert capfd.readouterr().err == ""


def test_a_named_metric_reads_the_logits() -> None:
    history = trainer_of(Returns("mapping"), ["last"], loss=logits, metric="accuracy").fit(BATCHES, validate=BATCHES)
    assert history.value is not None


def test_a_metric_that_cannot_measure_the_output_is_told_before_training() -> None:
    made = trainer_of(Returns("tuple"), ["last"], loss=lambda o, t: F.cross_entropy(o[0], t), metric="accuracy")
    with pytest.raises(ConfigError, match=r"metric 'accuracy' needs one tensor.*returns tuple") as told:
        made.fit(BATCHES, validate=BATCHES)
    one_line(told)
    assert made.minibatches == 0
    assert made.fit(BATCHES).epochs  # nobody measures anything


def test_what_is_measured_is_the_output_in_evaluation_mode() -> None:
    def loss(output: Any, target: Tensor) -> Tensor:
        return F.cross_entropy(output[0] if isinstance(output, tuple) else output, target)

    class Auxiliary(Returns):
        def forward(self, x: Tensor) -> Any:
            scores = self.last(self.first(x).relu())
            return (scores, x) if self.training else scores

    made = trainer_of(Auxiliary(""), ["last"], loss=loss, metric="accuracy")
    assert made.fit(BATCHES, validate=BATCHES).value is not None
    assert made.model.training


def test_a_resume_with_another_metric_has_a_value_of_that(tmp_path: Path) -> None:
    def made(metric: str) -> syngrad.Trainer:
        return trainer_of(Returns("mapping"), ["last"], loss=logits, metric=metric)

    made("accuracy").fit(BATCHES, validate=BATCHES, save=tmp_path)
    again = made("bits per character").fit(BATCHES, 2, validate=BATCHES, save=tmp_path, resume=True)
    assert again.value == again.epochs[-1].metrics["bits per character"]


class Conv1D(nn.Module):
    """As GPT-2 has it: the recorded operation takes the bias first."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(3, 3)), nn.Parameter(torch.zeros(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks, self.last = nn.ModuleList(Conv1D() for _ in range(3)), nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 100:
            raise ValueError("too many")
        for block in self.blocks:
            x = block(x).relu()
        return self.last(x)  # type: ignore[no-any-return]


def test_an_optimiser_has_the_parameters_in_the_model_s_order_recorded_or_not() -> None:
    order, routes = [], set()
    for delay in (0, None):
        trainer = trainer_of(Blocks(), ["blocks.1"], feedback_delay=delay)
        trainer.bind(BATCHES[0])
        routes.add(trainer.net.segments[0].route)
        names = {id(p): name for name, p in trainer.model.named_parameters()}
        order.append([names.get(id(p)) for group in trainer.optimizers[0].param_groups for p in group["params"]])
    assert order[0] == order[1]
    assert len(routes) == 2
