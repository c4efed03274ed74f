"""Processes meet at torchrun's store: what one posts the others get, of this attempt alone, and nobody waits for ever.

The ranks are threads here, each with a connection of its own; real processes meet in test_torchrun.py.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import torch
from torch.distributed import TCPStore

from syngrad.errors import ConfigError, LinkError, MessageError
from syngrad.links import store as store_module
from syngrad.links.rendezvous import Rendezvous
from syngrad.links.world import World

pytestmark = pytest.mark.distributed

LONG_S = 60.0
SHORT_S = 0.3


@pytest.fixture
def port() -> Iterator[int]:
    """A store as the launcher holds it: it outlives attempts."""
    store = TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=LONG_S), wait_for_workers=False)
    yield store.port
    del store


def join(
    port: int, rank: int, size: int = 2, attempt: int = 0, timeout_s: float = LONG_S, run: str = "r"
) -> Rendezvous:
    return Rendezvous.at("127.0.0.1", port, World(rank, size, rank, size, attempt, run, "here"), False, timeout_s)


def together(*ranks: Callable[[], Any]) -> list[Any]:
    """What each returns, or the error it raises, run at the same time."""

    def run(rank: Callable[[], Any]) -> Any:
        try:
            return rank()
        except (LinkError, ConfigError) as error:
            return error

    with ThreadPoolExecutor(len(ranks)) as pool:
        return list(pool.map(run, ranks))


def all_join(port: int, size: int, attempts: list[int] | None = None) -> list[Rendezvous]:
    of = attempts or [0] * size
    return together(*[lambda rank=rank: join(port, rank, size, of[rank]) for rank in range(size)])


def close(points: list[Rendezvous]) -> None:
    for rendezvous in points:
        rendezvous.close()
        rendezvous.close()


def test_what_is_posted_is_what_the_others_get(port: int) -> None:
    value = {"address": ("10.0.0.1", 5000), "key": b"\x00\xff", "scale": float("inf"), "none": None, "list": [1, "é"]}
    points = all_join(port, 3)
    assert len({rendezvous.session for rendezvous in points}) == 1
    points[2].post("end", value)
    assert [rendezvous.wait("end", LONG_S, "rank 2") for rendezvous in points] == [value] * 3
    close(points)


def test_who_waits_gets_what_comes_later(port: int) -> None:
    points = all_join(port, 2)

    def late() -> None:
        time.sleep(0.2)
        points[0].post("a", 1)

    assert together(late, lambda: points[1].wait("a", LONG_S, "rank 0")) == [None, 1]
    close(points)


@pytest.mark.parametrize("attempts", [[1, 1], [1, 0], [0, 1]], ids=str)
def test_nothing_of_a_lost_attempt_is_seen(port: int, attempts: list[int]) -> None:
    """Also where the launchers of two hosts do not agree about the number of the attempt."""
    lost = all_join(port, 2)
    for rank, rendezvous in enumerate(lost):
        rendezvous.post(f"address {rank}", "stale")
        rendezvous.fail("lost")
    # they end without leaving, as killed processes do: the store keeps what they asked for and posted
    for rendezvous in lost:
        rendezvous._store.close()
    new = all_join(port, 2, attempts)
    with pytest.raises(LinkError, match=r"rank 1 has not come within 0\.3 s"):
        new[0].wait("address 1", SHORT_S, "rank 1")
    new[1].post("address 1", "fresh")
    assert new[0].wait("address 1", LONG_S, "rank 1") == "fresh"
    close(new)


def test_rank_0_lets_in_whoever_comes_again(port: int) -> None:
    """A rank that is lost while rank 0 still waits for another one: its launcher may be the first to start anew."""
    rank_0 = threading.Thread(target=lambda: found.append(join(port, 0, 3)))
    found: list[Rendezvous] = []
    rank_0.start()
    join(port, 1, 3)._store.close()
    again, last = join(port, 1, 3, attempt=1), join(port, 2, 3)
    rank_0.join()
    assert {found[0].session, again.session, last.session} == {found[0].session}
    close([found[0], again, last])


def test_two_runs_do_not_see_each_other(port: int) -> None:
    first, second = join(port, 0, 1, run="a"), join(port, 0, 1, run="b")
    first.post("key", 1)
    first.fail("no", for_good=True)
    with pytest.raises(LinkError):
        second.wait("key", SHORT_S, "rank 0")
    close([first, second])


def test_who_never_comes_is_named(port: int) -> None:
    with pytest.raises(LinkError, match=r"^ranks 1, 2 have not come within 0\.3 s"):
        join(port, 0, 3, timeout_s=SHORT_S)
    with pytest.raises(LinkError, match=r"^rank 0 has not come within 0\.3 s"):
        join(port, 2, 3, timeout_s=SHORT_S)


def test_the_others_hear_who_has_not_come(port: int) -> None:
    # both are connected before the time runs: a connection may take seconds where names are looked up slowly
    places = [World(rank, 3, rank, 3, 0, "r", "here") for rank in range(2)]
    points = [Rendezvous(store_module.Store("127.0.0.1", port, False, LONG_S), place) for place in places]
    now = time.monotonic()

    def wait() -> None:
        points[1]._get_in(now + LONG_S, LONG_S)
        points[1].wait("a", LONG_S, "rank 0")

    # rank 0 lets rank 1 in and waits for rank 2, which nobody has started
    said = together(lambda: points[0]._let_all_in(now + 1.0, 1.0), wait)
    close(points)
    assert [type(error) for error in said] == [LinkError, LinkError]
    assert str(said[0]) == str(said[1])
    assert str(said[0]).startswith("rank 2 has not come within 1 s")


def test_a_failure_ends_every_wait_at_once_and_the_first_is_heard(port: int) -> None:
    points = all_join(port, 3)
    waiting = [lambda rendezvous=rendezvous: rendezvous.wait("a", LONG_S, "rank 2") for rendezvous in points[:2]]

    def fail() -> list[bool]:
        time.sleep(0.2)
        return [points[2].fail("the data\n are gone"), points[2].fail("and so am I")]

    *heard, told = together(*waiting, fail)
    assert [(type(error), str(error)) for error in heard] == [(LinkError, "the data are gone")] * 2
    assert told == [True, True]
    close(points)


def test_what_was_posted_before_a_failure_is_still_had(port: int) -> None:
    points = all_join(port, 2)
    points[1].post("a", 1)
    points[1].fail("later")
    assert points[0].wait("a", LONG_S, "rank 1") == 1
    close(points)


def test_after_a_failure_for_good_no_attempt_is_made(port: int) -> None:
    points = all_join(port, 2)
    points[1].fail("batch_size is 0", for_good=True)
    with pytest.raises(ConfigError, match=r"^batch_size is 0$"):
        points[0].wait("a", LONG_S, "rank 1")
    close(points)
    for rank in range(2):
        with pytest.raises(ConfigError, match=r"^batch_size is 0$"):
            join(port, rank, 2, attempt=1)


def test_what_cannot_be_posted_is_refused(port: int) -> None:
    rendezvous = join(port, 0, 1)
    with pytest.raises(MessageError, match="'a' cannot be posted: it holds a tensor"):
        rendezvous.post("a", [torch.zeros(1)])
    with pytest.raises(MessageError, match=r"'a' cannot be posted: b\.0 is a object"):
        rendezvous.post("a", {"b": [object()]})
    rendezvous.close()


@pytest.mark.parametrize("text", [b"", b"{", b'{"tensor": "t0"}', b"\xff", b"[" * 100_000])
def test_foreign_values_are_refused(port: int, text: bytes) -> None:
    rendezvous = join(port, 0, 1)
    rendezvous._store.set(rendezvous._key("at", "a"), text)
    with pytest.raises(LinkError, match="what rank 1 has posted as 'a' cannot be read"):
        rendezvous.wait("a", LONG_S, "rank 1")
    rendezvous.close()


def test_a_wait_sleeps(port: int) -> None:
    rendezvous = join(port, 0, 1)
    before = time.process_time()
    with pytest.raises(LinkError):
        rendezvous.wait("a", 1.0, "rank 1")
    assert time.process_time() - before < 0.5  # processor time, which a busy machine does not lengthen
    rendezvous.close()


def test_rank_0_may_hold_the_store_and_leaves_last(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    worlds = [World(rank, 2, rank, 2, 0, "r", "here") for rank in range(2)]

    def run(rank: int) -> Any:
        rendezvous = Rendezvous.at("127.0.0.1", port, worlds[rank], rank == 0, LONG_S)
        rendezvous.post(str(rank), rank)
        got = rendezvous.wait(str(1 - rank), LONG_S, f"rank {1 - rank}")
        if rank == 1:
            time.sleep(0.3)
            rendezvous.post("last", 1)  # rank 0 is closing by now
        rendezvous.close()
        return got

    assert together(lambda: run(0), lambda: run(1)) == [1, 0]
    assert together(lambda: run(0), lambda: run(1)) == [1, 0]  # and the port is free again


def test_a_port_taken_is_said(port: int) -> None:
    with pytest.raises(LinkError, match=rf"the meeting point at 127.0.0.1:{port} cannot be opened; is the port taken"):
        Rendezvous.at("127.0.0.1", port, World(0, 2, 0, 2, 0, "r", "here"), True, SHORT_S)


def test_a_store_that_never_opens_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(LinkError, match=r"the meeting point at 127.0.0.1:9 has not opened within 0\.3 s"):
        join(9, 1, timeout_s=SHORT_S)
    assert capfd.readouterr() == ("", "")
    with pytest.raises(LinkError, match=r"the meeting point at 127.0.0.1:9 is lost"):
        Rendezvous.at("127.0.0.1", 9, World(1, 2, 1, 2, 0, "r", "here"), False, SHORT_S, opened=True)


HOLD = """
import time
from datetime import timedelta
from torch.distributed import TCPStore
store = TCPStore("127.0.0.1", 0, None, True, timedelta(seconds=60), wait_for_workers=False)
print(store.port, flush=True)
time.sleep(600)
"""


def test_a_store_that_is_frozen_or_gone_is_an_error_and_not_a_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD], stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            port = int(holder.stdout.readline())
            rendezvous, other = join(port, 0, 1), join(port, 0, 1, run="other")
            monkeypatch.setattr(store_module, "ANSWER_S", 0.5)
            holder.send_signal(signal.SIGSTOP)
            with pytest.raises(LinkError, match=r"has not answered for 0\.5 s"):
                rendezvous.wait("a", LONG_S, "rank 1")
        finally:
            holder.kill()
    with pytest.raises(LinkError, match=rf"the meeting point at 127.0.0.1:{port} is lost"):
        other.wait("a", LONG_S, "rank 1")
    assert not other.fail("nobody hears it")
    close([rendezvous, other])


def test_nothing_is_left_open(port: int) -> None:
    def opened() -> int:
        return len(os.listdir("/proc/self/fd"))

    before, threads = opened(), threading.active_count()
    points = all_join(port, 2)
    assert opened() > before
    close(points)
    with pytest.raises(LinkError, match="has been left already"):
        points[0].post("a", 1)
    assert threading.active_count() == threads
    deadline = time.monotonic() + LONG_S
    while opened() > before and time.monotonic() < deadline:  # the store's own ends close once it has noticed
        time.sleep(0.01)
    assert opened() == before
