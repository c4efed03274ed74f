"""What a minibatch that fails leaves behind, and what its error says."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from tests._support.models import CASES, CLASSES, assert_same, tensors_of
from tests._support.training import momentum_trainer, one_line
from torch import Tensor, nn
from torch.nn import functional as F

from syngrad.errors import SyngradError, TrainingError

CASE = CASES["mlp"]


class Fragile(nn.Module):
    """Raises when it is told to."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.broken = inner, False

    def forward(self, x: Tensor) -> Tensor:
        if self.broken:
            raise ValueError("the disk is full\nand a second line")
        return self.inner(x)


RUNS: dict[str, dict[str, Any]] = {
    "backprop": {"method": "backprop"},
    "default": {"estimator": "default"},
    "linear": {"estimator": "linear"},
    "linear late": {"estimator": "linear", "feedback_delay": 2},
    "sobolev": {"estimator": "sobolev"},
    "sobolev late": {"estimator": "sobolev", "feedback_delay": 1},
    "mlp": {"estimator": "mlp"},
    "local": {"estimator": "local"},
    "true": {"estimator": "linear", "feedback": "true"},
    "mixed": {"estimator": "linear", "method": "mixed(0.5)"},
    "mixed late": {"estimator": "linear", "method": "mixed(0.5)", "feedback_delay": 1},
    "warmup": {"estimator": "linear", "warmup": 20},
    "delayed": {"method": "delayed(1)"},
    "zero": {"method": "zero"},
    "sporadic": {"estimator": "linear", "update_probability": 0.5},
}
FAULTS = ["stage 1 raises", "stage 3 raises", "NaN in the input", "label out of range", "the loss raises", "no scalar"]
BROKEN = ("the loss raises", "no scalar")


def fragile() -> nn.Module:
    model = CASE.model()
    model[1] = nn.Sequential(nn.BatchNorm1d(12, dtype=torch.float64), nn.Tanh(), nn.Dropout(0.2))
    model[2], model[6] = Fragile(model[2]), Fragile(model[6])
    return model


def breakable(own: bool) -> tuple[Any, list[str]]:
    """The loss, one of the user's own or PyTorch's, and what is wrong with it now."""
    wrong: list[str] = []

    def loss(output: Tensor, y: Tensor) -> Tensor:
        if wrong == ["the loss raises"]:
            raise RuntimeError("no such loss")
        return F.cross_entropy(output, y, reduction="none" if wrong == ["no scalar"] else "mean")

    return (loss if own else F.cross_entropy), wrong


@functools.cache
def without_a_fault(run: str, scope: str, own_loss: bool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The model and the estimators of a run that meets no fault."""
    model = fragile()
    trainer = momentum_trainer(model, loss=breakable(own_loss)[0], optimizer_scope=scope, **RUNS[run])
    for batch in CASE.batches(8):
        trainer.step(batch)
    return tensors_of(model), tensors_of(trainer.net.estimators)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize(
    ("run", "scope"),
    [(run, scope) for run in RUNS for scope in ("model", "stage") if (run, scope) != ("mlp", "stage")],
)
def test_a_failed_step_changes_nothing_and_training_goes_on(run: str, fault: str, scope: str) -> None:
    model, loss, wrong = fragile(), *breakable(fault in BROKEN)
    trainer = momentum_trainer(model, loss=loss, optimizer_scope=scope, **RUNS[run])
    batches = CASE.batches(8)
    for batch in batches[:5]:
        trainer.step(batch)
    before, fitted = tensors_of(model), tensors_of(trainer.net.estimators)
    randomness = [stage.randomness.save()["cpu"].clone() for stage in trainer.stages]
    x, y = (t.clone() for t in batches[5])
    if fault == "NaN in the input":
        x[0, 0] = float("nan")
    elif fault == "label out of range":
        y[1] = CLASSES + 3
    elif fault in BROKEN:
        wrong.append(fault)
    else:
        (model[2] if fault == "stage 1 raises" else model[6]).broken = True
    with pytest.raises(SyngradError) as caught:
        trainer.step((x, y))
    one_line(caught)
    assert_same(tensors_of(model), before)
    assert_same(tensors_of(trainer.net.estimators), fitted)
    assert all(torch.equal(s.randomness.state, was) for s, was in zip(trainer.stages, randomness, strict=True))
    assert all(p.grad is None for p in [*model.parameters(), *trainer.net.estimators.parameters()])
    wrong.clear()
    model[2].broken = model[6].broken = False
    for batch in batches[5:]:
        assert trainer.step(batch).isfinite()
    undisturbed = without_a_fault(run, scope, fault in BROKEN)
    assert_same(tensors_of(model), undisturbed[0])
    assert_same(tensors_of(trainer.net.estimators), undisturbed[1])
    assert all(bool(v.isfinite().all()) for v in tensors_of(trainer.net.estimators).values())


@pytest.mark.parametrize("run", ["backprop", "default", "linear", "local"])
def test_errors_while_training_name_the_cause(run: str) -> None:
    x, y = CASE.batches(1)[0]
    trainer = momentum_trainer(CASE.model(), **RUNS[run])
    bad = x.clone()
    bad[0] = float("inf")
    with pytest.raises(TrainingError, match="input holds NaN or infinity"):
        trainer.step((bad, y))
    with pytest.raises(SyngradError, match=rf"label( {CLASSES})? is outside the model's {CLASSES} outputs") as caught:
        trainer.step((x, torch.full_like(y, CLASSES)))
    one_line(caught)
    with pytest.raises(TrainingError, match="stage 'input' raised"):
        trainer.step((x[:, :3], y))


def test_a_gradient_that_is_not_finite_does_not_end_a_heads_derivative_fit() -> None:
    """The lower stages fit to it before the loss at the top shows that the minibatch fails."""
    trainer = momentum_trainer(CASE.model(), estimator="sobolev", feedback_every=1)
    batches = CASE.batches(6)
    for batch in batches[:5]:
        trainer.step(batch)
    heads = [interface.heads[0] for interface in trainer.net.interfaces]
    before = [head.power.clone() for head in heads]
    x, y = batches[5]
    for value in (float("nan"), float("inf")):
        with pytest.raises(TrainingError, match="input holds NaN or infinity"):
            trainer.step((torch.full_like(x, value), y))
        assert all(bool(b > 0) and torch.equal(head.power, b) for head, b in zip(heads, before, strict=True))
    assert trainer.step((x, y)).isfinite()
    assert all(not torch.equal(head.power, b) for head, b in zip(heads, before, strict=True))


class Normalised(nn.Module):
    """A forward of its own with batch norm in both stages: a model that has to be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, CLASSES)
        self.norm1, self.norm2 = nn.BatchNorm1d(8), nn.BatchNorm1d(8)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.norm1(self.first(x)))
        return self.head(torch.tanh(self.norm2(self.second(h))) + h)


def test_running_statistics_of_a_traced_model_do_not_keep_a_nan() -> None:
    trainer = momentum_trainer(Normalised().double(), ["second"], estimator="mlp", true_every=1)
    batches = CASE.batches(3)
    trainer.step(batches[0])
    before = [tensors_of(module) for module in (trainer.model, trainer.net.estimators)]
    with pytest.raises(TrainingError, match="input holds NaN"):
        trainer.step((batches[1][0] * float("nan"), batches[1][1]))
    assert_same(tensors_of(trainer.model), before[0])
    assert_same(tensors_of(trainer.net.estimators), before[1])
    assert len(trainer.quality[0].true) == 1
    assert trainer.step(batches[2]).isfinite()
