"""A replica's place among the others: what the lighthouse answers, and what is left of it when it leaves."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from tests._support.training import one_line
from tests._support.worker_programs import await_

from syngrad.errors import ConfigError, LinkError
from syngrad.launch.lighthouse import lighthouse
from syngrad.links.world import LOOPBACK
from syngrad.replicas.membership import Membership
from syngrad.replicas.place import Place
from syngrad.replicas.quorum import Quorum

pytest.importorskip("torchft")
pytestmark = pytest.mark.distributed

#: seconds that an answer may take on a busy machine
LONG_S = 30.0


@contextmanager
def members(*identities: dict[str, Any], dead_ms: int = 1500) -> Iterator[list[Membership]]:
    with lighthouse(LOOPBACK, join_ms=500, dead_ms=dead_ms) as meeting:
        made = [
            Membership(Place(index, len(identities), meeting.address), identity, f"127.0.0.1:{index + 1}")
            for index, identity in enumerate(identities)
        ]
        try:
            yield made
        finally:
            for each in made:
                each.close()


def met(*those: Membership) -> list[Quorum]:
    """What each is answered, where all ask; the first of them may be alone with itself to begin with."""
    found: dict[int, Quorum] = {}
    deadline = time.monotonic() + LONG_S
    while len(found) < len(those):
        assert time.monotonic() < deadline, "they have not met"
        for place, each in enumerate(those):
            if place not in found:
                each.ask()
                quorum = each.quorum(0.05)
                if quorum is not None and len(quorum.participants) == len(those):
                    found[place] = quorum
    return [found[place] for place in range(len(those))]


def test_all_that_live_meet_in_the_order_of_their_numbers() -> None:
    with members({"seed": 0}, {"seed": 0}, {"seed": 0}) as those:
        for step in (0, 1):
            found = met(*those)
            assert len({quorum.key for quorum in found}) == 1
            assert [quorum.rank for quorum in found] == [0, 1, 2]
            assert [each.store for each in found[0].participants] == [f"127.0.0.1:{port}" for port in (1, 2, 3)]
            assert found[0].step == step
            assert (found[0].source, found[0].healing) == (0, [1, 2] if step == 0 else [])
            for each in those:
                each.step, each.last = step + 1, found[0].own_key


def test_one_that_is_behind_takes_the_state_of_one_that_is_not() -> None:
    with members({}, {}, {}) as those:
        met(*those)
        for each in those[1:]:
            each.step, each.last = 7, "the seventh"
        found = met(*those)
        assert (found[0].step, found[0].source, found[0].healing) == (7, 1, [0])


def test_nobody_answers_until_the_others_have_asked() -> None:
    with members({}, {}) as (one, two):
        met(one, two)
        one.ask()
        assert one.quorum(0.3) is None
        assert one.asking
        two.ask()
        assert one.quorum(LONG_S) is not None
        assert not one.asking


def test_one_that_is_gone_is_waited_for_no_longer() -> None:
    with members({}, {}) as (one, two):
        met(one, two)
        two.close()
        (alone,) = met(one)
        assert len(alone.participants) == 1


def test_a_group_is_kept_where_all_still_hold_it() -> None:
    with members({}, {}) as (one, two):
        met(one, two)
        first, _ = met(one, two)
        assert not first.kept
        one.group = two.group = first.own_key
        second, _ = met(one, two)
        assert second.kept
        two.group = ""  # it has lost somebody
        third, _ = met(one, two)
        assert not third.kept


def test_another_one_is_told_and_the_others_do_not_notice() -> None:
    with members({"seed": 0}, {"seed": 0}, {"seed": 4}) as (one, two, other):
        met(one, two)
        other.ask()
        found = met(one, two)
        with pytest.raises(ConfigError) as caught:
            other.quorum(LONG_S)
        assert "replica 0002 has another seed than replica 0000: 4 instead of 0" in one_line(caught)
        assert [each.rank for each in found] == [0, 1]


def test_a_lighthouse_that_is_not_there_is_one_line() -> None:
    with pytest.raises(
        LinkError, match=r"replica 0000 does not reach the lighthouse at http://127\.0\.0\.1:1 "
    ) as caught:
        Membership(Place(0, 2, "http://127.0.0.1:1"), {}, "")
    one_line(caught)


def test_so_is_one_that_is_lost() -> None:
    with lighthouse(LOOPBACK) as meeting:
        one = Membership(Place(0, 1, meeting.address), {}, "")
    try:
        one.ask()
        with pytest.raises(LinkError, match="is lost") as caught:
            one.quorum(LONG_S)
        one_line(caught)
    finally:
        one.close()


def test_they_meet_again_at_one_that_was_started_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the client that each has: it finds the new one at the same address."""
    monkeypatch.setattr("syngrad.launch.lighthouse.AGAIN_S", 0.0)
    with lighthouse(LOOPBACK, join_ms=500, dead_ms=1500) as meeting:
        one, two = (Membership(Place(index, 2, meeting.address), {}, "") for index in range(2))
        try:
            met(one, two)
            one.ask()
            assert not meeting.again()
            os.kill(meeting.pid, signal.SIGKILL)
            with pytest.raises(LinkError, match="is lost"):
                one.quorum(LONG_S)
            address = meeting.address
            await_(meeting.again)
            assert meeting.address == address
            assert [each.rank for each in met(one, two)] == [0, 1]
        finally:
            one.close()
            two.close()


def test_a_client_that_was_killed_is_started_again() -> None:
    with members({}, {}) as (one, two):
        met(one, two)
        one.ask()
        one._client.kill()
        with pytest.raises(LinkError, match="its client has ended"):
            one.quorum(LONG_S)
        assert [each.rank for each in met(one, two)] == [0, 1]
        one._client.kill()  # as it leaves


def answered(until: Callable[[Quorum], bool], one: Membership, *others: Membership) -> Quorum:
    """What one of several that ask again and again is answered, once that is so."""
    deadline = time.monotonic() + LONG_S
    while time.monotonic() < deadline:
        for each in (one, *others):
            each.ask()
        found, *_ = [each.quorum(0.05) for each in (one, *others)]
        if found is not None and until(found):
            return found
    raise AssertionError("they have not met")


def test_one_that_has_ended_is_there_for_those_that_come_back_and_not_for_those_that_train() -> None:
    with members({}, {}, {}) as (one, two, three):
        met(one, two, three)
        for each in (one, two):
            each.step, each.last = 7, "the seventh"
            each.ask()
            each.end()  # what it has asked before is taken back
        found = answered(lambda quorum: len(quorum.participants) == 3 and len(quorum.ended) == 2, three, one, two)
        assert found.over
        assert (found.source, found.healing, found.ended) == (0, [2], {0, 1})
        three.step, three.last = 8, "the eighth"
        found = answered(lambda quorum: quorum.step == 8 and len(quorum.ended) == 2, three, one, two)
        assert [each.index for each in found.participants] == [2]
        assert not found.over


def test_one_that_has_waited_long_enough_begins_for_all() -> None:
    with members({}, {}) as (one, two):
        found = met(one, two)
        assert not any(each.may_begin(3) for each in found)
        two.late = True
        found = met(one, two)
        assert all(each.may_begin(3) for each in found)
