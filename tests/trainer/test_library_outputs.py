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
    with pytest.raises(ConfigError, match=r"the loss, given dict \(logits, hidden\) as the model returns it, raised") as e:
        made.fit(BATCHES)
    one_line(e)


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
    with pytest.raises(ConfigError, match=r"metric 'accuracy' needs one tensor of scores.*the model returns tuple") as e:
        made.fit(BATCHES, validate=BATCHES)
    one_line(e)
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
