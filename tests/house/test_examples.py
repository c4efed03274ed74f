"""Every example runs, on little data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests._support.loading import load

from syngrad.cli import main as command

FOLDER = Path(__file__).parents[2] / "examples"


class Expected(NamedTuple):
    """What an example is given, what it has to reach, and a word that it prints."""

    given: dict[str, Any]
    reached: Callable[[float], bool]
    said: str


def above_chance(accuracy: float) -> bool:
    """Ten classes: chance is 0.1."""
    return accuracy > 0.3


SCRIPTS = {
    "quickstart": Expected({"epochs": 2, "samples": 2000}, above_chance, "accuracy"),
    "dict_batches": Expected({"epochs": 2, "samples": 1500}, above_chance, "accuracy"),
    "regression": Expected({"epochs": 12, "samples": 2000}, lambda left: left < 0.5, "unexplained"),
    # as many bits as letters that come equally often would need, and more
    "char_gpt": Expected({"epochs": 2, "samples": 1000}, lambda bits: bits < 3.0, "bits per character"),
    "own_loop": Expected({"epochs": 2, "samples": 2000}, above_chance, "accuracy"),
    "own_estimator": Expected({"epochs": 2, "samples": 2000}, above_chance, "accuracy"),
    "resume": Expected({"epochs": 2, "samples": 2000}, above_chance, "the same weights to the last bit"),
    "early_stopping": Expected({"epochs": 30, "samples": 500}, above_chance, "ended after"),
    "without_syngrad": Expected({"epochs": 2, "samples": 2000}, above_chance, "accuracy"),
}


def test_every_example_is_tested() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == {*SCRIPTS, "experiment"}


@pytest.mark.parametrize("name", SCRIPTS)
def test_it_runs_and_learns(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    expected = SCRIPTS[name]
    assert expected.reached(load(FOLDER / f"{name}.py").main(**expected.given))
    assert expected.said in capsys.readouterr().out


def test_early_stopping_ends_before_the_last_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    load(FOLDER / "early_stopping.py").main(epochs=30, samples=300)
    assert "ended after 30 of 30" not in capsys.readouterr().out


def test_the_interrupted_example_says_where_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    load(FOLDER / "resume.py").main(epochs=1, samples=2000)
    assert "interrupted after minibatch 10" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [["compare", "--methods", "backprop,synthetic", "--no-progress"], ["train", "--no-progress"]],
    ids=lambda w: w[0],
)
def test_the_command_line_takes_the_experiment(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    name, *options = words
    assert command([name, f"{FOLDER / 'experiment.py'}:experiment", "--epochs", "1", *options]) == 0
    assert "accuracy" in capsys.readouterr().out
