"""Processes that live on meet again with one that was started anew: in a session of its own, whoever knows of it first.

The ranks are threads here; real processes do so in test_alone.py.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import TCPStore

from syngrad.errors import LinkError
from syngrad.links.rendezvous import Rendezvous
from syngrad.links.world import World

pytestmark = pytest.mark.distributed

LONG_S, SHORT_S = 60.0, 0.2


class Launcher:
    """A store, and how often it has started somebody again."""

    def __init__(self, port: int, pool: ThreadPoolExecutor) -> None:
        self.port, self.pool, self.count = port, pool, 0

    def join(self, rank: int, size: int = 3) -> Future[Rendezvous]:
        place = World(rank, size, rank, size, 0, "r", "here")
        return self.pool.submit(Rendezvous.at, "127.0.0.1", self.port, place, False, LONG_S, starts=lambda: self.count)

    def all_join(self) -> list[Rendezvous]:
        return [each.result() for each in [self.join(rank) for rank in range(3)]]


@pytest.fixture
def launcher() -> Iterator[Launcher]:
    store = TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=LONG_S), wait_for_workers=False)
    with ThreadPoolExecutor(4) as pool:
        yield Launcher(store.port, pool)
    del store


def test_an_attempt_is_over_once_somebody_is_started_again(launcher: Launcher) -> None:
    points = launcher.all_join()
    assert [point.over for point in points] == [False] * 3
    waiting = launcher.pool.submit(points[1].wait, "plan", LONG_S, "rank 0")
    time.sleep(SHORT_S)
    launcher.count = 1
    with pytest.raises(LinkError, match="started again"):
        waiting.result()
    for point in points:
        assert point.over
        with pytest.raises(LinkError, match="started again"):
            point.check()
        point.close()
    again = launcher.all_join()
    assert {point.attempt for point in again} == {1}
    assert len({point.session for point in again}) == 1
    again[0].post("plan", "new")
    assert [point.wait("plan", LONG_S, "rank 0") for point in again] == ["new"] * 3
    for point in again:
        point.close()


def test_the_first_opens_another_session_where_one_dies_while_it_lets_the_others_in(launcher: Launcher) -> None:
    first, early = launcher.join(0), launcher.join(1).result()
    assert early.attempt == 0
    assert not first.done(), "rank 2 is missing: it has died"
    launcher.count = 1
    early.close()
    second, third = launcher.join(1).result(), launcher.join(2).result()
    points = [first.result(), second, third]
    assert {point.session for point in points} == {points[0].session}
    assert {point.attempt for point in points} == {1}
    for point in points:
        point.close()


def test_one_that_is_started_again_several_times_is_met_in_the_end(launcher: Launcher) -> None:
    def lives_on(rank: int) -> Rendezvous:
        while True:
            point = launcher.join(rank).result()
            try:
                point.wait("done", LONG_S, "rank 2")
            except LinkError:
                point.close()
            else:
                return point

    found: dict[int, Rendezvous] = {}

    def kept(rank: int) -> Callable[[], None]:
        return lambda: found.update({rank: lives_on(rank)})

    others = [threading.Thread(target=kept(rank)) for rank in (0, 1)]
    for each in others:
        each.start()
    for count in range(4):
        launcher.count = count
        launcher.join(2).result().close()  # let in, and killed
    launcher.count = 4
    last = launcher.join(2).result()
    last.post("done", True)
    for each in others:
        each.join(LONG_S)
    assert {found[0].session, found[1].session} == {last.session}
    for point in (*found.values(), last):
        point.close()
