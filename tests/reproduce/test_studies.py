"""Every published experiment: its cases can be trained at each scale, and what is quoted says where it is from."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from syngrad.data import TensorBatches
from syngrad.errors import ConfigError
from syngrad.reproduce import SCALES, PublishedFigure
from syngrad.reproduce.one_run import train
from syngrad.reproduce.recipes import FullyConnected, Updates
from syngrad.reproduce.scales import PAPER, QUICK, STANDARD, told
from syngrad.reproduce.studies.registry import STUDIES, study

NAMES = (
    "fcn fcn-cifar10 cnn depth one-interface sporadic unlock delayed feedback bootstrapped bp-lambda online-bp-lambda "
    "copy repeat-copy characters two-clocks estimator-cost"
)
ONE_STEP = replace(QUICK, steps=1, batch=8, conv_steps=1, conv_batch=2, windows=1)


def test_the_studies_are_these() -> None:
    assert list(STUDIES) == NAMES.split()
    with pytest.raises(ConfigError, match="unknown published experiment 'fnc'"):
        study("fnc")


@pytest.mark.parametrize("name", STUDIES)
def test_every_row_takes_a_step_and_so_does_the_last_place(name: str) -> None:
    cases = STUDIES[name].cases(ONE_STEP)
    first = {case.row: case for case in reversed(cases)}
    for case in [*first.values(), max(cases, key=lambda case: case.x or 0.0)]:
        row = train(case, 0)
        assert row.ok, (case.row, case.x, row.status)
        assert row.value is not None
        assert math.isfinite(STUDIES[name].metric.made(row.value))


@pytest.mark.parametrize("name", STUDIES)
def test_cases_are_told_apart_and_have_a_base_at_every_scale(name: str) -> None:
    for scale in SCALES.values():
        cases = STUDIES[name].cases(scale)
        assert len({(case.row, case.x) for case in cases}) == len(cases)
        assert any(case.row == STUDIES[name].base for case in cases)
        assert all((case.x is None) == (STUDIES[name].axis in ("", "time")) for case in cases)
        assert STUDIES[name].about_s(scale) > 0


@pytest.mark.parametrize("name", STUDIES)
def test_what_is_published_names_its_source_and_a_row_that_is_run(name: str) -> None:
    rows = {case.row for case in STUDIES[name].cases(STANDARD)}
    for figure in STUDIES[name].published:
        assert figure.source
        assert figure.row in rows
        assert figure.note.startswith(figure.source)
    quoted = any(figure.value is not None or figure.said for figure in STUDIES[name].published)
    assert quoted or "could be checked" in STUDIES[name].differs or "can be quoted" in STUDIES[name].differs


def test_a_figure_without_a_source_is_refused() -> None:
    for source, grade, value in (("", "L", 1.0), ("a log", "X", 1.0), ("a log", "L", None)):
        with pytest.raises(ConfigError):
            PublishedFigure("row", None, value, source, grade)


def test_the_quick_scale_takes_minutes_and_the_paper_s_is_the_published_training() -> None:
    assert sum(each.about_s(QUICK) for each in STUDIES.values()) < 10 * 60
    assert (PAPER.steps, PAPER.rate, PAPER.batch) == (500_000, 3e-5, 256)
    assert "smoke test" in told(QUICK, {"Sequence"})
    assert "5,000 updates of batch 256" in told(STANDARD, {"FullyConnected"})


def test_the_published_layer() -> None:
    recipe = FullyConnected.at(STANDARD, 4)
    model = recipe.model()
    assert [type(part) for part in model[1]] == [nn.Linear, nn.BatchNorm1d, nn.ReLU]
    assert recipe.cuts() == ["layer2", "layer3", "head"]
    assert replace(recipe, layers=50, middle=True).cuts() == ["layer26"]
    assert sum(isinstance(part, nn.Linear) for part in model.modules()) == 4


def test_updates_go_on_where_the_last_epoch_ended() -> None:
    x = torch.arange(6)
    loader = Updates(TensorBatches(x, batch_size=2), 2)
    seen = [[batch.tolist() for (batch,) in loader] for _ in range(3)]
    assert seen == [[[0, 1], [2, 3]], [[4, 5], [0, 1]], [[2, 3], [4, 5]]]
    assert len(loader) == 2
