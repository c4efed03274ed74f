"""What the benchmark of kills makes of what replicas have noted: by hand, on made-up lines."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from tests._support.benchmark_modules import imported

NAMES = ("account", "killer")


@pytest.fixture
def modules() -> Iterator[dict[str, Any]]:
    with imported(NAMES, "survival") as found:
        yield found


def trained(*at: float, attempt: int = 0) -> list[tuple[str, float, int, int]]:
    return [("trained", each, attempt, 1) for each in at]


def test_what_counts_is_in_an_averaging(modules: dict[str, Any]) -> None:
    first = [*trained(1, 2), ("averaged", 2.5, 0, 1), *trained(3), ("averaged", 3.5, 0, 0), *trained(4)]
    # what was trained before a kill is lost, and so is what comes before it has another one's state
    second = [*trained(1, 2, 3), ("averaged", 5, 1, 0), *trained(6, 7, attempt=1), ("averaged", 8, 1, 1)]
    assert modules["account"].counted([first]) == 2
    assert modules["account"].counted([second]) == 2
    assert modules["account"].counted([first, second]) == 4


def test_silence_is_that_of_all_at_once(modules: dict[str, Any]) -> None:
    account = modules["account"]
    assert account.longest_silence([trained(1, 2, 9), trained(5)]) == 4
    assert account.span([trained(2, 9), trained(1)]) == (1, 9)


def test_a_replica_is_back_when_its_next_process_trains(modules: dict[str, Any]) -> None:
    log = [*trained(1, 2, 4.5), *trained(7, 8, attempt=1)]
    assert modules["account"].recovered(log, 4.0) == 3
    assert modules["account"].recovered(log, 8.0) is None


def test_kills_are_of_all_and_none_comes_at_the_very_end(modules: dict[str, Any]) -> None:
    killer = modules["killer"]
    kills = killer.planned(60, 1000, 3, 2, random.Random(0))
    assert len(kills) == 60
    assert {kill.victim for kill in kills} == {killer.LIGHTHOUSE, 0, 1, 2}
    assert {kill.rank for kill in kills} == {0, 1}
    places = [kill.minibatch for kill in kills if kill.minibatch is not None]
    assert places == sorted(places)
    assert max(places) < 1000
    in_a_start = [(before, kill) for before, kill in pairwise(kills) if kill.minibatch is None]
    assert in_a_start
    assert all(before.victim == kill.victim != killer.LIGHTHOUSE for before, kill in in_a_start)
