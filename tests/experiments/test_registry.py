"""Experiments by name and by path; what can go wrong with a user's file is in test_bad_input."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from syngrad.compare import contenders
from syngrad.experiments import BUILT_IN, char_gpt, load

NOTHING_PUBLISHED = ("char-gpt", "regression")

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
    assert experiment.model().training
    train, test = experiment.data(8, 0)
    batches, again = list(train), list(experiment.data(8, 0)[0])
    assert len(batches) == len(train) == len(again)  # type: ignore[arg-type]
    for batch, same in zip(batches, again, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(batch, same, strict=True))
    other = next(iter(experiment.data(8, 1)[0]))
    assert not torch.equal(batches[0][0], other[0])
    assert next(iter(test))[0].shape[1:] == batches[0][0].shape[1:]


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_the_schedule_follows_the_epochs(name: str) -> None:
    experiment = load(name, epochs=2, batch_size=20)
    assert (experiment.epochs, experiment.batch_size) == (2, 20)
    optimizer = experiment.optimizer([torch.nn.Parameter(torch.zeros(1))])
    assert experiment.scheduler is not None
    first = optimizer.param_groups[0]["lr"]
    scheduler = experiment.scheduler(optimizer)
    per_step = experiment.options.get("scheduler_every") == "step"
    for _ in range(2 * (char_gpt.TRAINING // 20 if per_step else 1)):
        optimizer.step()
        scheduler.step()
    share = 0.01 if name == "cifar-cnn" else 0.0  # the paper's falls by tens
    assert scheduler.get_last_lr()[0] == pytest.approx(share * first, abs=1e-12)


def test_a_users_file_runs_as_a_script_would(file: Path) -> None:
    experiment = load(f"{file}:mine")
    assert (experiment.name, experiment.epochs, experiment.batch_size) == ("made for 3!", 3, 7)


def test_what_the_function_does_not_take_is_set_on_its_result(file: Path) -> None:
    experiment = load(f"{file}:mine", epochs=5, batch_size=9)
    assert (experiment.name, experiment.epochs, experiment.batch_size) == ("made for 5!", 5, 9)


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_published_figures_name_rows_one_can_run(name: str) -> None:
    published = importlib.import_module(BUILT_IN[name][0]).PUBLISHED
    assert bool(published) is (name not in NOTHING_PUBLISHED)
    for each in published:
        assert each.source
        assert [c.label for c in contenders(list(each.values))] == list(each.values)
