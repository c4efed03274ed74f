"""Experiments by name and by path; what can go wrong with a user's file is in test_bad_input."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from syngrad.compare import contenders
from syngrad.experiments import BUILT_IN, load

FILE = """
import torch
from torch import nn
from syngrad import Experiment
import {beside}

def mine(epochs=3):
    return Experiment(
        model=lambda: nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)),
        data=lambda batch_size, seed: ([], []),
        loss=nn.functional.cross_entropy,
        cuts=["1"],
        epochs=epochs,
        name=f"made for {{epochs}}" + {beside}.SAID,
        batch_size=7,
    )
"""


@pytest.fixture
def file(tmp_path: Path) -> Iterator[Path]:
    paths, modules = list(sys.path), set(sys.modules)
    (tmp_path / "beside_it.py").write_text("SAID = '!'\n", encoding="utf-8")
    path = tmp_path / "mine.py"
    path.write_text(FILE.format(beside="beside_it"), encoding="utf-8")
    yield path
    sys.path[:] = paths
    for name in set(sys.modules) - modules:
        if name in ("beside_it", "syngrad_experiment_mine"):
            del sys.modules[name]


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_a_built_in_experiment_is_complete(name: str) -> None:
    experiment = load(name)
    assert experiment.name == name
    assert experiment.dataset
    train, test = experiment.data(experiment.batch_size, 0)
    (images, labels), (again, _) = next(iter(train)), next(iter(experiment.data(experiment.batch_size, 0)[0]))
    assert torch.equal(images, again)
    assert images.shape[1:] == (1, 28, 28)
    assert experiment.model()(images[:2]).shape == (2, 10)
    assert labels.dtype == torch.int64
    assert next(iter(test))[0].shape[1:] == (1, 28, 28)


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_the_schedule_follows_the_epochs(name: str) -> None:
    experiment = load(name, epochs=2, batch_size=8)
    assert (experiment.epochs, experiment.batch_size) == (2, 8)
    optimizer = experiment.optimizer([torch.nn.Parameter(torch.zeros(1))])
    assert experiment.scheduler is not None
    scheduler = experiment.scheduler(optimizer)
    for _ in range(2):
        optimizer.step()
        scheduler.step()
    assert scheduler.get_last_lr()[0] == pytest.approx(0.0, abs=1e-12)


def test_a_users_file_runs_as_a_script_would(file: Path) -> None:
    experiment = load(f"{file}:mine")
    assert (experiment.name, experiment.epochs, experiment.batch_size) == ("made for 3!", 3, 7)


def test_what_the_function_does_not_take_is_set_on_its_result(file: Path) -> None:
    experiment = load(f"{file}:mine", epochs=5, batch_size=9)
    assert (experiment.name, experiment.epochs, experiment.batch_size) == ("made for 5!", 5, 9)


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_published_figures_name_rows_one_can_run(name: str) -> None:
    published = importlib.import_module(BUILT_IN[name][0]).PUBLISHED
    assert published
    for each in published:
        assert each.source
        assert [c.label for c in contenders(list(each.values))] == list(each.values)
