"""Where a model can be cut: every place that is listed works, and the table of them fits a terminal."""

from __future__ import annotations

import functools
import warnings
from unittest import mock

import pytest
import torch
from tests._support.any_models import FAMILIES
from typer.testing import CliRunner

import syngrad
from syngrad.cli import app
from syngrad.core.places import Place, list_places
from syngrad.errors import CutError
from syngrad.partition import recording
from syngrad.report.places_table import places_table


@functools.cache
def looked_for(name: str) -> tuple[list[Place], int]:
    """The places of a family's model, and how often it was exported to find them."""
    family = FAMILIES[name]
    torch.manual_seed(0)
    *inputs, target = family.batch()
    with mock.patch.object(recording, "record_by_export", wraps=recording.record_by_export) as export:
        return list_places(family.model().double(), tuple(inputs), {}, target, family.loss), export.call_count


def listed(name: str) -> list[Place]:
    """The places of a family's model."""
    return looked_for(name)[0]


@pytest.mark.parametrize("name", ["language_model", "two_heads", "translation", "states", "around"])
def test_every_place_that_is_listed_trains(name: str) -> None:
    family = FAMILIES[name]
    batch = family.batch()
    assert listed(name)
    for place in listed(name):
        again = family.model().double()
        net = syngrad.decouple(again, cuts=[place.name])
        trainer = syngrad.Trainer(net, loss=family.loss, estimator="linear", progress=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.step(batch)
        assert len(trainer.net.segments) == 2


def test_a_model_is_exported_once_a_mode_however_many_places_it_has() -> None:
    found, exports = looked_for("language_model")
    assert sum(place.recorded for place in found) > 1
    assert exports == 2


def test_what_is_shared_crosses_between_workers_and_is_shown() -> None:
    found = {each.name: each for each in listed("language_model")}
    assert found["blocks.1"].recorded
    assert found["blocks.1"].shared == (("embed.weight", 23 * 16 * 8),)
    lines = places_table(list(found.values()), 6)
    assert "² shared embed.weight: 3 KiB each way between workers" in lines
    assert max(map(len, lines)) <= 80


def test_the_table_fits_a_terminal_and_begins_with_the_most_even() -> None:
    found = listed("two_heads")
    lines = places_table(found, 6)
    assert max(map(len, lines)) <= 80
    assert lines[2].startswith(min(found, key=lambda each: each.larger).name)


def test_the_command_lists_a_built_in_experiment() -> None:
    result = CliRunner().invoke(app, ["cuts", "fashion-mlp", "--batch-size", "16"])
    assert result.exit_code == 0, result.output
    assert "a stage may start at" in result.output


def test_a_chain_with_nothing_to_cut_is_refused_in_one_line() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.ReLU())
    with pytest.raises(CutError, match="no place for a cut: at most one module of Sequential"):
        list_places(model, (torch.ones(4, 2),), {}, torch.ones(4, 2), torch.nn.functional.mse_loss)


def test_a_place_says_whether_anything_is_trained_before_it() -> None:
    layers = (torch.nn.Linear(2, 2), torch.nn.ReLU(), torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    found = list_places(
        torch.nn.Sequential(*layers), (torch.ones(4, 2),), {}, torch.ones(4, 2), torch.nn.functional.mse_loss
    )
    assert {each.name: each.trains for each in found} == {"1": True, "2": False, "3": True}
