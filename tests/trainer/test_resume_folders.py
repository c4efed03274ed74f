"""Where a run saves and goes on from: folders that move, copies, links, damage, and other runs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tests._support.models import CASES, assert_same, tensors_of
from tests._support.training import one_line, trainer_of
from torch import nn
from torch.nn import functional as F

import syngrad
from syngrad.callbacks import Callback
from syngrad.errors import CheckpointError, TrainingWarning
from syngrad.runtime import checkpoint
from syngrad.trainer.history import Epoch

pytestmark = pytest.mark.usefixtures("forked_programs")

CASE = CASES["mlp"]


def fit(save: Any, epochs: int, **more: Any) -> syngrad.Trainer:
    made = trainer_of(CASE.model())
    made.fit(CASE.batches(3), epochs, save=save, **more)
    return made


class Moves(Callback):
    def on_epoch(self, trainer: syngrad.Trainer, record: Epoch) -> None:
        os.chdir(os.path.dirname(os.getcwd()))


def test_a_folder_is_where_it_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a callback or a library does to the working directory."""
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b" / "c")
    fit("run", 3, callbacks=[Moves()])
    assert Path.cwd() == tmp_path
    assert [path.name for path in checkpoint.found(tmp_path / "a" / "b" / "c" / "run")] == ["000002", "000003"]
    assert not list(tmp_path.glob("run")) + list(tmp_path.glob("a/run"))


def test_a_copy_and_a_link_are_gone_on_from(tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole", 3)
    fit(tmp_path / "run", 1)
    shutil.copytree(tmp_path / "run" / "000001", tmp_path / "run" / "best")
    (tmp_path / "latest").symlink_to(tmp_path / "run" / "000001")
    fit(tmp_path / "run", 2, resume=True)
    for name in ("run/best", "latest"):
        again = fit(tmp_path / "run", 3, resume=tmp_path / name, keep=9)
        assert_same(tensors_of(again.model), tensors_of(whole.model))
    made = trainer_of(CASE.model())
    made.load(tmp_path / "run" / "best")
    assert made.minibatches == 3


def damage(path: Path) -> None:
    content = bytearray((path / "training.safetensors").read_bytes())
    content[-3] ^= 1
    (path / "training.safetensors").write_bytes(content)


def test_auto_falls_back_to_the_one_before_a_damaged_one(tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole", 4)
    fit(tmp_path / "run", 3, keep=3)
    damage(tmp_path / "run" / "000003")
    with pytest.raises(CheckpointError, match=r"000003' is damaged.*resume from .*000002'"):
        fit(tmp_path / "run", 4, resume=True)
    damage(tmp_path / "run" / "000002")
    with pytest.warns(TrainingWarning, match=r"00000\d' is damaged .*; the run goes on from the one before it") as said:
        again = fit(tmp_path / "run", 4, resume="auto", keep=9)
    assert [str(each.message)[-7:-1] for each in said] == ["000002", "000001"]
    assert_same(tensors_of(again.model), tensors_of(whole.model))
    assert checkpoint.found(tmp_path / "run")[-1].name == "000006"


def test_auto_does_not_begin_anew_where_all_are_damaged(tmp_path: Path) -> None:
    fit(tmp_path, 1)
    damage(tmp_path / "000001")
    with pytest.raises(CheckpointError, match="is damaged") as caught:
        fit(tmp_path, 2, resume="auto")
    one_line(caught)


# --- two runs

OTHER = """
import os, sys, time
import torch, torch.nn.functional as F
from torch import nn
import syngrad
from syngrad.callbacks import Callback

class Waits(Callback):
    def on_step(self, trainer, loss):
        if trainer.minibatches == 5:
            print("trains", flush=True)
            time.sleep(60)

net = syngrad.decouple(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)), cuts=["2"])
data = [(torch.ones(2, 4), torch.tensor([0, 1]))] * 3
made = syngrad.Trainer(net, loss=F.cross_entropy, progress=False)
made.fit(data, 3, save=sys.argv[1], resume="auto", callbacks=[Waits()] if sys.argv[2] == "waits" else [])
print("done", made.minibatches)
"""


def other(root: Path, word: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", OTHER, str(root), word], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_second_run_is_refused_while_one_saves_there_and_goes_on_when_it_is_killed(tmp_path: Path) -> None:
    first = other(tmp_path, "waits")
    try:
        assert first.stdout is not None
        assert first.stdout.readline() == "trains\n"
        net = syngrad.decouple(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)), cuts=["2"])
        made = syngrad.Trainer(net, loss=F.cross_entropy, progress=False)
        data = [(torch.ones(2, 4), torch.tensor([0, 1]))] * 3
        for do in (lambda: made.fit(data, 3, save=tmp_path, resume="auto"), lambda: made.save(tmp_path)):
            made.bind(data[0])
            with pytest.raises(
                CheckpointError, match=rf"saved into by another run \(process {first.pid} on "
            ) as caught:
                do()
            one_line(caught)
        assert made.minibatches == 0
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    made.fit(data, 3, save=tmp_path, resume="auto")
    assert made.minibatches == 9
    assert sorted(path.name for path in tmp_path.iterdir()) == ["000002", "000003"]


# --- another model of the same shapes


def changed(activation: nn.Module, dropout: float) -> syngrad.Trainer:
    torch.manual_seed(0)
    layers = [nn.Linear(4, 8), activation, nn.Dropout(dropout), nn.Linear(8, 3)]
    return syngrad.Trainer(syngrad.decouple(nn.Sequential(*layers), cuts=["3"]), loss=F.cross_entropy, progress=False)


@pytest.mark.parametrize(
    ("activation", "dropout", "said"),
    [
        (nn.ReLU(), 0.1, r"had '\(1\): Tanh\(\)' it has '\(1\): ReLU\(\)'"),
        (
            nn.Tanh(),
            0.5,
            r"had '\(2\): Dropout\(p=0\.1, inplace=False\)' it has '\(2\): Dropout\(p=0\.5, inplace=False\)'",
        ),
    ],
)
def test_another_activation_or_dropout_is_warned_of(
    activation: nn.Module, dropout: float, said: str, tmp_path: Path
) -> None:
    data = [(torch.randn(4, 4), torch.tensor([0, 1, 2, 0]))] * 2
    changed(nn.Tanh(), 0.1).fit(data, 1, save=tmp_path)
    changed(nn.Tanh(), 0.1).fit(data, 2, save=tmp_path, resume=True)
    with pytest.warns(TrainingWarning, match=f"the model is not the one that was saved: where it {said}") as caught:
        changed(activation, dropout).fit(data, 3, save=tmp_path, resume=True)
    assert "\n" not in str(caught[0].message)


# --- which weights are trained


class Unfreeze(Callback):
    def on_epoch(self, trainer: syngrad.Trainer, record: Epoch) -> None:
        if record.epoch == 1:
            trainer.model[0].requires_grad_(True)


def test_what_a_callback_has_unfrozen_stays_so(tmp_path: Path) -> None:
    def run(save: Path, epochs: int, **more: Any) -> syngrad.Trainer:
        made = trainer_of(CASE.model(), freeze=["0"])
        made.fit(CASE.batches(3), epochs, save=save, callbacks=[Unfreeze()], **more)
        return made

    whole = run(tmp_path / "whole", 4)
    run(tmp_path / "run", 2)
    again = run(tmp_path / "run", 4, resume=True)
    assert whole.model[0].weight.requires_grad
    assert again.model[0].weight.requires_grad
    assert_same(tensors_of(again.model), tensors_of(whole.model))
