"""What the benchmark of recurrent costs makes of its figures, by hand on made-up ones."""

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
NAMES = ("common", "characters", "main")


@pytest.fixture
def modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    monkeypatch.syspath_prepend(str(BENCHMARKS / "recurrent_cost"))
    yield {name: importlib.import_module(name) for name in NAMES}
    for name in NAMES:
        sys.modules.pop(name, None)


def test_ratios_are_paired_and_medians_are_of_repeats(modules: dict[str, Any]) -> None:
    plain, synthetic = [(1.0, 1.0, 3), (2.0, 1.0, 3), (4.0, 1.0, 3)], [(1.1, 2.0, 7), (2.4, 2.0, 7), (5.2, 2.0, 7)]
    first = {"plain": plain, "synthetic": synthetic}
    second = {"plain": [(1.0, 1.0, 3)], "synthetic": [(1.4, 4.0, 7)]}
    found = modules["main"].compared([first, second])["synthetic"]
    assert found["clock"]["to plain"]["median"] == pytest.approx((1.2 + 1.4) / 2)
    assert found["processor"]["to plain"]["median"] == pytest.approx(3.0)
    assert found["processor"]["ms"]["median"] == pytest.approx(2000.0)
    assert found["faults"]["median"] == 7
    assert "to hand-written" not in found["clock"]


def test_a_window_of_the_plain_row_is_the_hand_written_one(modules: dict[str, Any]) -> None:
    characters = modules["characters"]
    step = characters.hand_written()
    bptt, stream = characters.trainer(characters.ROWS["plain"]), characters.random_windows()
    for _ in range(3):
        assert float(bptt.step(*next(stream))) == pytest.approx(step(), rel=1e-5)


def test_the_stream_is_the_same_at_every_call(modules: dict[str, Any]) -> None:
    (a, b), (c, _) = next(modules["characters"].random_windows()), next(modules["characters"].random_windows())
    assert torch.equal(a, c)
    assert torch.equal(a[:, 1:], b[:, :-1])
    assert a.shape == (32, 8)
