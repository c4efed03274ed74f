"""What cannot be resumed, or saved into, is refused in one line, and nothing is moved."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tests._support.models import CASES, adam, assert_same, momentum, tensors_of
from tests._support.options import keywords
from tests._support.training import one_line
from torch import nn

import syngrad
from syngrad.errors import CheckpointError, ConfigError
from syngrad.trainer.history import History


def test_another_runs_folder_is_not_saved_into(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours", tmp_path / "theirs"
    saved(ours)
    saved(theirs)
    case = CASES["mlp"]
    trainer = syngrad.Trainer(syngrad.decouple(case.model(), cuts=case.cuts), loss=case.loss, progress=False)
    with pytest.raises(CheckpointError, match=r"theirs' holds checkpoints of another run than .*ours") as caught:
        trainer.fit(case.batches(3), 2, save=theirs, resume=ours)
    one_line(caught)
    trainer.fit(case.batches(3), 2, save=ours, resume=ours / "000001")


@pytest.mark.parametrize("given", [{"save": 5}, {"save": ""}, {"save": "a\0b"}, {"resume": None}, {"resume": 2.0}])
def test_folders_are_folders(given: dict[str, Any]) -> None:
    case = CASES["mlp"]
    trainer = syngrad.Trainer(syngrad.decouple(case.model(), cuts=case.cuts), loss=case.loss, progress=False)
    with pytest.raises(ConfigError, match=r"(save|resume) must be a folder or") as caught:
        trainer.fit(case.batches(1), 1, **given)
    one_line(caught)


def saved(tmp_path: Path, **options: Any) -> Path:
    case = CASES["mlp"]
    trainer = syngrad.Trainer(
        syngrad.decouple(case.model(), cuts=case.cuts), loss=case.loss, progress=False, **keywords(**options)
    )
    trainer.fit(case.batches(3), 1, save=tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "backprop"}, r"method='synthetic', and this Trainer has 'backprop'"),
        ({"estimator": "linear"}, r"estimator='default', and this Trainer has 'linear'"),
        ({"seed": 5}, r"seed=0, and this Trainer has 5"),
        ({"clip_norm": 1.0}, r"clip_norm=None, and this Trainer has 1\.0"),
        (
            {"optimizer": lambda p: torch.optim.Adam(p, 1e-5)},
            r"made with lr=0\.003 for weights, and this Trainer has 1e-05",
        ),
        ({"groups": {"0": {"lr": 0.1}}}, r"made with groups=\{\}, and this Trainer has"),
        ({"freeze": ["0"]}, r"made with freeze=\[\], and this Trainer has \['0'\]"),
        ({"optimizer": momentum}, r"made with optimizers \['Adam'\], and this Trainer has \['SGD'\]"),
        (
            {"scheduler": lambda o: torch.optim.lr_scheduler.StepLR(o, 1)},
            r"scheduler=None, and this .* '<lambda>'",
        ),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_another_configuration_is_refused(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    case = CASES["mlp"]
    model = case.model()
    before = tensors_of(model)
    trainer = syngrad.Trainer(
        syngrad.decouple(model, cuts=case.cuts),
        loss=case.loss,
        progress=False,
        **keywords(**{"optimizer": adam, **options}),
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

    from tests._support.models import mlp

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
