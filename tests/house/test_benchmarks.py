"""What the benchmarks over processes make of what was measured: by hand, on made-up spans and runs."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests._support.benchmark_modules import imported

from syngrad.errors import TrainingError

NAMES = ("common", "worker", "turns")


@pytest.fixture
def modules() -> Iterator[dict[str, Any]]:
    with imported(NAMES) as found:
        yield found


def test_what_lies_inside_a_work_counts_for_itself(modules: dict[str, Any]) -> None:
    spans = [
        ("work", 0, 0.0, 5.0),  # before the first that counts
        ("wait for previous", 0, 5.0, 9.0),
        ("send", 1, 11.0, 12.0),
        ("work", 1, 10.0, 14.0),
        ("wait for previous", 1, 14.0, 15.0),
        ("wait for next", 2, 16.0, 18.0),
        ("work", 2, 15.0, 20.0),
        ("wait for next", 2, 20.0, 30.0),  # after the last work: the run is over
    ]
    found = modules["worker"].shares({"spans": spans}, 1)
    assert found == pytest.approx({"work": 0.6, "send": 0.1, "wait for previous": 0.1, "wait for next": 0.2})
    assert modules["worker"].idle([found, {"work": 0.5, "wait for previous": 0.5}]) == pytest.approx(0.3)


def test_epochs_have_full_minibatches_alone(modules: dict[str, Any]) -> None:
    loader = [([0, 0],), ([1, 1],), ([2],)]
    epochs = modules["worker"].Epochs(loader, 2, [3, 2])
    assert [[batch[0][0] for batch in epochs] for _ in range(2)] == [[0, 1, 0], [1, 0]]


def test_ratios_are_of_the_same_round(modules: dict[str, Any]) -> None:
    rates = {"a": (4, 8), "b": (2, 2), "c": (1, 8)}
    runs = {name: [{"samples_per_s": v} for v in values] for name, values in rates.items()}
    found = modules["turns"].rates(runs, ["a"], ["b", "c"])
    assert found["ratios"]["a"]["b"]["median"] == 3.0
    assert found["ratios"]["a"]["best of them"]["median"] == pytest.approx((4 / 2 + 8 / 8) / 2)


def test_turns_go_on_where_they_were_stopped(modules: dict[str, Any], tmp_path: Path) -> None:
    path, called = tmp_path / "results.json", []
    stop = 3

    def call(row: str, earlier: list[Any]) -> dict[str, Any]:
        if len(called) == stop:
            raise KeyboardInterrupt
        called.append((row, len(earlier)))
        if row == "b" and not failing.pop("b", True):
            raise TrainingError("once")
        return {"samples_per_s": 1.0}

    failing: dict[str, bool] = {}

    def turns(name: str, rounds: int = 2) -> None:
        modules["turns"].take_turns(
            path, "claim", name, {"n": 1}, ["a", "b"], rounds, call, lambda runs: {row: len(runs[row]) for row in runs}
        )

    modules["turns"].busy = lambda: 0.0
    with pytest.raises(KeyboardInterrupt):
        turns("one")
    assert called == [("a", 0), ("b", 0), ("b", 1)]
    stop = 100
    turns("one")
    assert called == [("a", 0), ("b", 0), ("b", 1), ("a", 1)]
    turns("two", rounds=1)
    entries = json.loads(path.read_text())["entries"]
    assert {name: entry["summary"] for name, entry in entries.items()} == {
        "one": {"a": 2, "b": 2},
        "two": {"a": 1, "b": 1},
    }
    failing["b"] = False
    turns("three", rounds=1)
    assert json.loads(path.read_text())["entries"]["three"]["summary"] == {"a": 1, "b": 0}
    turns("three", rounds=1)
    assert json.loads(path.read_text())["entries"]["three"]["summary"] == {"a": 1, "b": 1}
