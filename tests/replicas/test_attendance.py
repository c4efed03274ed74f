"""For whom a replica that has ended stays."""

from __future__ import annotations

from typing import Any

import pytest

from syngrad.replicas.attendance import Attendance
from syngrad.replicas.place import Place
from syngrad.replicas.quorum import Participant, Quorum

MOST_S = 60.0


class Meetings:
    """What one of three replicas knows after these came to meet it, each at a second."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, index: int, **more: Any) -> None:
        self.now = 0.0
        monkeypatch.setattr("syngrad.replicas.attendance.time.monotonic", lambda: self.now)
        self.attendance = Attendance(Place(index, 3, "http://head:1", **more), MOST_S)

    def at(self, second: float, *here: int, ended: tuple[int, ...] = ()) -> bool:
        """Whether it stays then."""
        self.now = second
        those = [Participant(f"replica 000{index}:x", 1, "", "", {}) for index in here]
        self.attendance.note(Quorum("key", those, 0, second, frozenset(ended)))
        return self.attendance.stays()


def test_the_first_stays_for_those_that_were_lost_lately(monkeypatch: pytest.MonkeyPatch) -> None:
    meet = Meetings(monkeypatch, 0)
    assert not meet.at(0.0, 0, 1, 2), "who lives is on its way"
    assert meet.at(1.0, 0, 1)
    assert meet.at(30.0, 0, 1)
    assert not meet.at(31.0, 0, 1, 2), "it is back"
    assert meet.at(32.0, 0, 1)
    assert not meet.at(32.0 + MOST_S + 1.0, 0, 1), "it is not coming"
    assert not meet.at(200.0, 0, ended=(1, 2)), "they have ended"


def test_every_other_stays_until_the_first_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    meet = Meetings(monkeypatch, 1)
    assert meet.at(0.0, 0, 1)
    assert meet.at(1.0, 1, 2)
    assert meet.at(1.0 + MOST_S, 1, 2)
    assert not meet.at(2.0 + MOST_S, 1, 2), "the first is not coming"
    assert meet.at(100.0, 0, 1), "it has come after all"
    assert not meet.at(101.0, 1, ended=(0,))
    assert meet.at(102.0, 0, 1), "it was started again, and has not ended yet"


def test_where_one_launcher_starts_all_the_first_stays_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not Meetings(monkeypatch, 0, launched=True).at(0.0, 0)
    assert Meetings(monkeypatch, 1, launched=True).at(0.0, 1)
