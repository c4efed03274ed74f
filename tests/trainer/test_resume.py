"""A run that is stopped anywhere and resumed takes the very steps that it would have taken: bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests._support.models import CASES, assert_same, momentum, tensors_of
from tests._support.resuming import compare, loader_of
from torch import nn

import syngrad
from syngrad.trainer.history import History

METHODS: dict[str, dict[str, Any]] = {
    "default": {},
    "linear": {"estimator": "linear"},
    "mlp": {"estimator": "mlp", "update_probability": 0.6},
    "late feedback": {"estimator": "linear", "feedback_delay": 2},
    "true": {"estimator": "linear", "feedback": "true", "feedback_every": 2},
    "mixed": {"method": "mixed(0.5)", "warmup": 4},
    "backprop": {"method": "backprop", "clip_norm": 0.5},
    "delayed": {"method": "delayed(2)"},
    "stages": {"optimizer_scope": "stage", "optimizer": momentum},
    "schedule": {
        "scheduler": lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 3e-3, total_steps=18),
        "scheduler_every": "step",
    },
    "plateau": {"scheduler": lambda o: torch.optim.lr_scheduler.ReduceLROnPlateau(o, patience=0)},
    "sequence of schedules": {
        "scheduler": lambda o: torch.optim.lr_scheduler.SequentialLR(
            o, [torch.optim.lr_scheduler.LinearLR(o), torch.optim.lr_scheduler.MultiStepLR(o, [2])], [1]
        )
    },
    "zero": {"method": "zero"},
}


@pytest.mark.parametrize("at", [3, 7, 14])
@pytest.mark.parametrize("method", METHODS)
def test_any_method_goes_on_bit_for_bit(method: str, at: int, tmp_path: Path) -> None:
    compare(CASES["dropout"], METHODS[method], "batches", tmp_path, at)


@pytest.mark.parametrize("method", ["default", "delayed", "late feedback"])
@pytest.mark.parametrize("name", ["cnn", "gpt", "residual"])
def test_any_model_goes_on_bit_for_bit(name: str, method: str, tmp_path: Path) -> None:
    if name == "gpt" and method == "default":
        method = "linear"
    compare(CASES[name], METHODS[method], "list", tmp_path, 8)


@pytest.mark.parametrize("at", [2, 4, 5, 6, 11])
@pytest.mark.parametrize("kind", ["batches", "generator", "global", "list"])
def test_any_loader_goes_on_where_it_stood(kind: str, at: int, tmp_path: Path) -> None:
    compare(CASES["dropout"], {}, kind, tmp_path, at, every=1)


def test_between_epochs_alone(tmp_path: Path) -> None:
    compare(CASES["dropout"], {}, "batches", tmp_path, 9, every=None)


def test_the_cuts_of_balanced_stages_come_from_the_checkpoint(tmp_path: Path) -> None:
    case = CASES["mlp"]

    def trainer() -> syngrad.Trainer:
        net = syngrad.decouple(case.model(), stages=2)
        return syngrad.Trainer(net, loss=case.loss, progress=False)

    first = trainer()
    first.fit(case.batches(3), 1, save=tmp_path)
    second = trainer()
    second.load(tmp_path)
    assert second.net.cuts == first.net.cuts
    assert second.minibatches == 3


def test_a_loop_of_ones_own_saves_and_loads(tmp_path: Path) -> None:
    case = CASES["dropout"]
    batches = case.batches(6)

    def trainer(model: nn.Module) -> syngrad.Trainer:
        return syngrad.Trainer(syngrad.decouple(model, cuts=case.cuts), loss=case.loss, progress=False)

    whole, halved = case.model(), case.model()
    once = trainer(whole)
    for batch in batches:
        once.step(batch)
    first = trainer(halved)
    for batch in batches[:3]:
        first.step(batch)
    path = first.save(tmp_path)
    again = case.model()
    second = trainer(again)
    second.load(path)
    for batch in batches[3:]:
        second.step(batch)
    assert_same(tensors_of(again), tensors_of(whole))


def test_the_model_loads_without_syngrad(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    case = CASES["cnn"]
    model = case.model()
    trainer = syngrad.Trainer(syngrad.decouple(model, cuts=case.cuts), loss=case.loss, progress=False)
    trainer.fit(case.batches(2), 1, save=tmp_path)
    plain = case.model()
    plain.load_state_dict(load_file(next(tmp_path.iterdir()) / "model.safetensors"))
    assert_same(tensors_of(plain), tensors_of(model))


def test_a_finished_run_is_resumed_as_it_is_and_can_be_made_longer(tmp_path: Path) -> None:
    case = CASES["dropout"]

    def fit(epochs: int, **more: Any) -> tuple[nn.Module, History]:
        model = case.model()
        trainer = syngrad.Trainer(syngrad.decouple(model, cuts=case.cuts), loss=case.loss, progress=False)
        return model, trainer.fit(loader_of(case), epochs, validate=case.batches(1), **more)

    want, _ = fit(4)
    done, history = fit(2, save=tmp_path)
    same, again = fit(2, save=tmp_path, resume=True)
    assert_same(tensors_of(same), tensors_of(done))
    assert again == history
    longer, whole = fit(4, save=tmp_path, resume="auto")
    assert_same(tensors_of(longer), tensors_of(want))
    assert [e.epoch for e in whole.epochs] == [1, 2, 3, 4]
