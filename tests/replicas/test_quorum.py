"""Who takes whose state, and when a run begins: the same for all who are in a quorum."""

from __future__ import annotations

import pytest

from syngrad.replicas.quorum import Participant, Quorum


def quorum(*given: tuple[int, str], begins: bool = True, late: bool = False) -> Quorum:
    """Of replicas that are at these averagings, the last of which was of that name."""
    those = [
        Participant(f"replica {i}:x", step, "", "", {}, last, begins, late) for i, (step, last) in enumerate(given)
    ]
    return Quorum("key", those, 0, 0.0)


def test_before_the_first_averaging_all_take_the_firsts_state() -> None:
    assert quorum((0, ""), (0, ""), (0, "")).healing == [1, 2]


def test_one_that_has_missed_the_last_averaging_takes_anothers_state() -> None:
    found = quorum((6, "six"), (7, "seven"), (7, "seven"))
    assert (found.source, found.healing) == (1, [0])


def test_as_many_averagings_apart_from_each_other_are_none_together() -> None:
    """After a lighthouse was lost, say: each has averaged alone, and goes on from elsewhere."""
    found = quorum((7, "mine"), (7, "yours"), (7, "yours"))
    assert (found.source, found.healing) == (0, [1, 2])


def test_what_goes_to_other_workers_says_so_too() -> None:
    found = quorum((7, "mine"), (7, "yours"))
    assert Quorum.from_plain(found.to_plain()).healing == [1]


@pytest.mark.parametrize(
    ("step", "count", "begins", "late", "ready"),
    [
        (0, 2, True, False, True),
        (0, 3, True, False, False),  # one is to come yet
        (0, 3, True, True, True),
        (0, 3, False, True, False),  # all were started again, and whoever has a state is gone
        (0, 2, False, False, False),
        (4, 3, False, False, True),
    ],
)
def test_a_run_begins_when_all_have_come_or_one_has_waited_long_enough(
    step: int, count: int, begins: bool, late: bool, ready: bool
) -> None:
    assert quorum((step, ""), (step, ""), begins=begins, late=late).may_begin(count) is ready


def test_a_run_is_over_once_all_that_have_a_state_have_ended() -> None:
    """Whoever comes back takes it from the first of those that have come furthest, and none of those from another."""

    def found(*ended: bool) -> Quorum:
        steps = [(7, "mine"), (8, "yours"), (0, "")]
        those = [
            Participant(f"replica 000{i}:x", step, "", "", {}, last, ended=each)
            for i, ((step, last), each) in enumerate(zip(steps, ended, strict=True))
        ]
        return Quorum("key", those, 0, 0.0)

    assert found(True, True, False).over
    assert (found(True, True, False).source, found(True, True, False).healing) == (1, [2])
    assert not found(False, True, False).over
    assert not quorum((0, ""), (0, "")).over
    assert [each.index for each in found(True, True, True).participants] == [0, 1, 2]
