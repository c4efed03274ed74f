"""What the harness that holds two commits against each other takes for the same, and what not."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks" / "identical"
NAMES = ("masks", "snapshot", "expected", "matrix", "float64_models")


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    monkeypatch.syspath_prepend(str(FOLDER))
    yield {name: importlib.import_module(name) for name in NAMES}
    for name in NAMES:
        sys.modules.pop(name, None)


def test_one_unit_in_the_last_place_is_a_difference(modules: dict[str, Any], tmp_path: Path) -> None:
    snapshot = modules["snapshot"]
    a = torch.ones(3, dtype=torch.float64)
    b = a.clone()
    b[1] = torch.nextafter(b[1], torch.tensor(2.0, dtype=torch.float64))
    left = {"model": {"w": a}, "losses": [0.1, float("nan")], "none": None, "no": []}
    snapshot.write(tmp_path / "a", left)
    snapshot.write(tmp_path / "b", {**left, "model": {"w": b}})
    one, other = snapshot.read(tmp_path / "a"), snapshot.read(tmp_path / "b")
    assert one.keys() == other.keys() == {"/model/w", "/losses/0", "/losses/1", "/none", "/no"}
    found = {path: off for path in one if (off := snapshot.difference(one[path], other[path])) is not None}
    assert found == {"/model/w": "largest difference 2.22e-16 in 1 of 3 numbers"}
    assert snapshot.difference(a, a.float()) is not None
    assert snapshot.difference(torch.tensor(0.0), torch.tensor(-0.0)) is not None
    assert snapshot.difference(1, 1.0) is not None


def test_wording_may_be_expected_and_numbers_never(modules: dict[str, Any]) -> None:
    rule = modules["expected"].Rule(r"\bthe stage above\b", "the next stage", "one arrow", "errors / *")
    expected = modules["expected"].Expected([rule])
    assert expected("errors / cuts", "/a", "the stage above\nis gone", "the next stage is gone")
    assert rule.used == {"errors / cuts"}
    assert not expected("errors / cuts", "/a", "the stage above is gone", "the next stage has gone")
    assert not expected("errors / cuts", "/a", "the next stage", "the next stages")
    assert not expected("help", "/a", "the stage above", "the next stage")
    assert not expected("errors / cuts", "/a", 1.0, 2.0)


def test_every_expected_difference_has_its_reason(modules: dict[str, Any]) -> None:
    for rule in modules["expected"].Expected.read().rules:
        assert rule.reason


def test_times_are_masked_and_figures_are_not(modules: dict[str, Any]) -> None:
    masks = modules["masks"]
    row = {"train_s": 1.5, "metric": {"value": 0.5, "history": [(1.0, 2.0, 0.5)]}, "peak_memory_bytes": None}
    quality = {"history": [[4, 0.5, 1.0]], "norm_ratio": 1.5}
    assert masks.masked(row) == {
        "train_s": masks.MASK,
        "metric": {"value": 0.5, "history": [[1.0, masks.MASK, 0.5]]},
        "peak_memory_bytes": None,
    }
    assert masks.masked(quality) == quality
    assert masks.printed("epoch 1/3  loss 1.08  0.1 s") == "epoch 1/3  loss 1.08  · s"


def test_scenarios_have_names_of_their_own(modules: dict[str, Any]) -> None:
    names = [each["name"] for each in modules["matrix"].feedforward() + modules["matrix"].free()]
    assert len(set(names)) == len(names)
