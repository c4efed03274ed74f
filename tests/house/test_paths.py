"""A reader's path must be short: from `Trainer.fit` to an estimator's fit, counted on a minibatch as it runs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import syngrad
from syngrad.estimators.heads import Head

SOURCE = Path(syngrad.__file__).parent

FRAMES, FILES = 9, 10


def own_frames() -> list[tuple[str, str]]:
    """(file, function) of every frame of Syngrad's own that is on the stack, the outermost first."""
    found: list[tuple[str, str]] = []
    frame: Any = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(SOURCE):
            found.append((path.relative_to(SOURCE).as_posix(), frame.f_code.co_name))
        frame = frame.f_back
    return found[::-1]


@pytest.mark.parametrize("method", ["synthetic", "mixed(0.5)"])
def test_from_fit_to_an_estimators_fit(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    walks: list[list[tuple[str, str]]] = []
    fit = Head.fit

    def noted(self: Head, *given: Any, **more: Any) -> None:
        walks.append([*own_frames(), ("estimators/heads.py", "fit")])
        fit(self, *given, **more)

    monkeypatch.setattr(Head, "fit", noted)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    trainer = syngrad.Trainer(
        syngrad.decouple(model, cuts=["2", "4"]), loss=F.cross_entropy, method=method, progress=False
    )
    trainer.fit([(torch.randn(6, 4), torch.tensor([0, 1, 2, 0, 1, 2]))] * 3)
    assert walks
    longest = max(walks, key=len)
    assert longest[0] == ("trainer/trainer.py", "fit")
    assert len(longest) <= FRAMES, longest
    assert len({file for file, _ in longest}) <= FILES, longest
