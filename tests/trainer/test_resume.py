"""A run that is stopped anywhere and resumed takes the very steps that it would have taken: bit for bit."""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.models import CASES, Case, adam, assert_same, momentum, tensors_of
from tests.training import one_line
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import syngrad
from syngrad.callbacks import Callback, EarlyStopping
from syngrad.data import TensorBatches
from syngrad.errors import CheckpointError, ConfigError, TrainingWarning
from syngrad.history import History

EPOCHS = 3


class StopError(Exception):
    """A crash between two minibatches."""


class Crash(Callback):
    """Crashes after so many minibatches."""

    def __init__(self, at: int) -> None:
        self.at = at

    def on_step(self, trainer: syngrad.Trainer, loss: Tensor) -> None:
        if trainer.minibatches == self.at:
            raise StopError


def loader_of(case: Case, kind: str = "batches") -> Any:
    parts = list(zip(*case.batches(5), strict=True))
    tensors = [torch.cat(part) for part in parts]
    if kind == "batches":
        return TensorBatches(*tensors, batch_size=7, shuffle=True, seed=3)
    if kind == "generator":
        return DataLoader(TensorDataset(*tensors), 7, shuffle=True, generator=torch.Generator().manual_seed(4))
    if kind == "global":
        return DataLoader(Noisy(*tensors), 7, shuffle=True)
    return case.batches(5)


class Noisy(Dataset[Any]):
    """Draws from the global generators for every sample, as augmentation does."""

    def __init__(self, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        noise = torch.rand(()).item() + np.random.rand() + random.random()
        return self.x[index] * (1 + 0.1 * noise), self.y[index]


def run(case: Case, options: dict[str, Any], kind: str, **fit: Any) -> tuple[dict[str, Tensor], History, Any]:
    """A whole run, or what a crash leaves of it."""
    torch.manual_seed(11)
    np.random.seed(11)
    random.seed(11)
    model = case.model()
    net = syngrad.decouple(model, cuts=case.cuts)
    given = {"loss": case.loss, "loss_count": case.count, "optimizer": adam, "quality_every": 3, "true_every": 4}
    trainer = syngrad.Trainer(net, progress=False, **{**given, **options})
    history = History()
    with contextlib.suppress(StopError):
        history = trainer.fit(loader_of(case, kind), EPOCHS, validate=case.batches(2), **fit)
    estimators = {f"estimators.{k}": v for k, v in tensors_of(trainer.net.estimators).items()}
    return tensors_of(model) | estimators, history, trainer


def compare(case: Case, options: dict[str, Any], kind: str, tmp_path: Path, at: int, every: int | None = 2) -> None:
    want, history, _ = run(case, options, kind)
    run(case, options, kind, save=tmp_path, save_every=every, callbacks=[Crash(at)])
    torch.manual_seed(999)  # another process: nothing of the first is left
    np.random.seed(999)
    random.seed(999)
    got, resumed, _ = run_resumed(case, options, kind, tmp_path)
    assert_same(got, want)
    assert [e.metrics for e in resumed.epochs] == [e.metrics for e in history.epochs]
    assert [e.train_loss for e in resumed.epochs] == [e.train_loss for e in history.epochs]
    assert [e.samples for e in resumed.epochs] == [e.samples for e in history.epochs]
    assert json.dumps(resumed.interfaces) == json.dumps(history.interfaces)


def run_resumed(case: Case, options: dict[str, Any], kind: str, tmp_path: Path) -> Any:
    model = case.model()
    with torch.no_grad():
        for parameter in model.parameters():  # whatever it starts from, the checkpoint decides
            parameter.add_(1)
    net = syngrad.decouple(model, cuts=case.cuts)
    given = {"loss": case.loss, "loss_count": case.count, "optimizer": adam, "quality_every": 3, "true_every": 4}
    trainer = syngrad.Trainer(net, progress=False, **{**given, **options})
    history = trainer.fit(
        loader_of(case, kind), EPOCHS, validate=case.batches(2), save=tmp_path, save_every=2, resume=True
    )
    estimators = {f"estimators.{k}": v for k, v in tensors_of(trainer.net.estimators).items()}
    return tensors_of(model) | estimators, history, trainer


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


def test_callbacks_go_on_where_they_were(tmp_path: Path) -> None:
    case = CASES["mlp"]

    def fit(patience: int, **more: Any) -> EarlyStopping:
        early = EarlyStopping(patience, least=10.0)  # nothing is ever that much better
        trainer = syngrad.Trainer(syngrad.decouple(case.model(), cuts=case.cuts), loss=case.loss, progress=False)
        more["callbacks"] = [early, *more.pop("others", [])]
        try:
            history = trainer.fit(case.batches(2), 10, validate=case.batches(1), save=tmp_path, **more)
            assert len(history.epochs) == 4
        except StopError:
            assert early.waited == 1
        return early

    fit(3, others=[Crash(5)])
    assert fit(3, resume=True).waited == 3


def test_two_callbacks_of_one_class_take_each_their_own(tmp_path: Path) -> None:
    case = CASES["mlp"]

    def fit(epochs: int, **more: Any) -> list[EarlyStopping]:
        both = [EarlyStopping(50), EarlyStopping(50, least=10.0)]
        trainer = syngrad.Trainer(syngrad.decouple(case.model(), cuts=case.cuts), loss=case.loss, progress=False)
        trainer.fit(case.batches(2), epochs, validate=case.batches(1), save=tmp_path, callbacks=both, **more)
        return both

    first = fit(3)
    assert first[0].state_dict() != first[1].state_dict()
    again = fit(3, resume=True)
    assert [each.state_dict() for each in again] == [each.state_dict() for each in first]


class Stream(IterableDataset[Any]):
    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)


def test_a_stream_is_read_again_and_that_is_said(tmp_path: Path) -> None:
    case = CASES["mlp"]
    batches = case.batches(5)

    def fit(**more: Any) -> nn.Module:
        model = case.model()
        trainer = syngrad.Trainer(syngrad.decouple(model, cuts=case.cuts), loss=case.loss, progress=False)
        with contextlib.suppress(StopError):
            trainer.fit(DataLoader(Stream(batches), batch_size=None), 1, **more)
        return model

    want = fit()
    fit(save=tmp_path, save_every=1, callbacks=[Crash(3)])
    with pytest.warns(TrainingWarning, match="first 2 minibatches are read again") as said:
        got = fit(save=tmp_path, resume=True)
    assert "\n" not in str(said[0].message)
    assert_same(tensors_of(got), tensors_of(want))


def test_a_schedule_made_for_fewer_epochs_is_warned_of(tmp_path: Path) -> None:
    case = CASES["mlp"]

    def fit(epochs: int, **more: Any) -> None:
        net = syngrad.decouple(case.model(), cuts=case.cuts)
        options = {"scheduler": lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 1), "progress": False}
        syngrad.Trainer(net, loss=case.loss, **options).fit(case.batches(2), epochs, save=tmp_path, **more)

    fit(1)
    fit(1, resume=True)
    with pytest.warns(TrainingWarning, match="begun for 1 epochs and is now to have 3; its schedule"):
        fit(3, resume=True)


# --- refusals


def saved(tmp_path: Path, **options: Any) -> Path:
    case = CASES["mlp"]
    trainer = syngrad.Trainer(syngrad.decouple(case.model(), cuts=case.cuts), loss=case.loss, progress=False, **options)
    trainer.fit(case.batches(3), 1, save=tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "backprop"}, r"method='synthetic', and this Trainer has 'backprop'"),
        ({"estimator": "linear"}, r"estimator='default', and this Trainer has 'linear'"),
        ({"seed": 5}, r"seed=0, and this Trainer has 5"),
        ({"clip_norm": 1.0}, r"clip_norm=None, and this Trainer has 1\.0"),
        ({"optimizer": momentum}, r"made with optimizers \['Adam'\], and this Trainer has \['SGD'\]"),
        ({"scheduler": lambda o: torch.optim.lr_scheduler.StepLR(o, 1)}, r"has 0 schedulers, and this Trainer 1"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_configuration_is_refused(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    case = CASES["mlp"]
    model = case.model()
    before = tensors_of(model)
    trainer = syngrad.Trainer(
        syngrad.decouple(model, cuts=case.cuts), loss=case.loss, progress=False, **{"optimizer": adam, **options}
    )
    with pytest.raises(CheckpointError, match=said) as caught:
        trainer.fit(case.batches(3), 2, save=saved(tmp_path, optimizer=adam), resume=True)
    one_line(caught)
    assert_same(tensors_of(model), before)


def test_another_model_other_cuts_and_another_loader_are_refused(tmp_path: Path) -> None:
    case = CASES["mlp"]
    saved(tmp_path)

    def resume(model: nn.Module, cuts: list[str], batches: int = 3) -> None:
        trainer = syngrad.Trainer(syngrad.decouple(model, cuts=cuts), loss=case.loss, progress=False)
        trainer.fit(case.batches(batches), 2, save=tmp_path, resume=True)

    from tests.models import mlp

    for given, said in (
        ((mlp(width=13), case.cuts), r"another model: '0.weight' is \(12, 6\) of float64 there and \(13, 6\)"),
        ((mlp(depth=5), case.cuts), r"another model: this model has '.*', the checkpoint does not"),
        ((case.model(), case.cuts[:-1]), r"was cut at .* and this network at"),
        ((case.model(), case.cuts, 4), r"loader has 4 minibatches an epoch, .* one of 3"),
    ):
        with pytest.raises(CheckpointError, match=said) as caught:
            resume(*given)
        one_line(caught)


def test_nothing_to_resume_and_something_in_the_way(tmp_path: Path) -> None:
    case = CASES["mlp"]

    def fit(**options: Any) -> History:
        trainer = syngrad.Trainer(syngrad.decouple(case.model(), cuts=case.cuts), loss=case.loss, progress=False)
        return trainer.fit(case.batches(2), 1, **options)

    with pytest.raises(CheckpointError, match=r"nothing to resume from.*does not exist") as caught:
        fit(save=tmp_path / "none", resume=True)
    one_line(caught)
    (tmp_path / "file").write_text("x")
    with pytest.raises(CheckpointError, match=r"nothing to resume from.*is no folder"):
        fit(resume=tmp_path / "file")
    with pytest.raises(CheckpointError, match=r"no checkpoint could be written to .*file'") as caught:
        fit(save=tmp_path / "file")
    one_line(caught)
    fit(save=tmp_path, resume="auto")
    with pytest.raises(CheckpointError, match="holds checkpoints of an earlier run; go on with resume=True"):
        fit(save=tmp_path)
    for given, said in (
        ({"resume": True}, "resume=True needs save="),
        ({"save_every": 2}, "save_every needs save="),
        ({"save": tmp_path / "new", "save_every": 0}, "save_every must be a whole number of at least 1, got 0"),
        ({"save": tmp_path / "new", "keep": 0}, "keep must be a whole number of at least 1, got 0"),
        ({"validate_every": 2}, "validate_every=2 needs validate="),
        ({"callbacks": [print]}, "must derive from syngrad.callbacks.Callback, got builtin"),
    ):
        with pytest.raises(ConfigError, match=said):
            fit(**given)


def test_a_checkpoint_of_trainer_save_is_for_load(tmp_path: Path) -> None:
    case = CASES["mlp"]
    trainer = syngrad.Trainer(syngrad.decouple(case.model(), cuts=case.cuts), loss=case.loss, progress=False)
    with pytest.raises(CheckpointError, match="nothing to save before the first minibatch"):
        trainer.save(tmp_path)
    trainer.step(case.batches(1)[0])
    trainer.save(tmp_path)
    with pytest.raises(CheckpointError, match=r"made by trainer.save, outside fit; take it with trainer.load"):
        trainer.fit(case.batches(2), 1, save=tmp_path, resume=True)
