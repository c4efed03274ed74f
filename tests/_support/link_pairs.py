"""Pairs of links, opened in one process, for the tests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import zmq

from syngrad.links import LINKS, process_group, zeromq
from syngrad.links.auth import Key, set_credentials
from syngrad.links.link import Link, LinkRequest
from syngrad.links.world import World
from syngrad.links.zeromq import ZeromqLink

TOKEN, WAIT_S = b"a token", 20.0
LATER, EARLIER = "stage '2' (rank 1)", "stage '0' (rank 0)"
SECRET = b"a secret that is long enough"
HOST = "127.0.0.1"
QUICK: dict[str, Any] = {"heartbeat_ms": 100, "silence_ms": 500}


class Aside:
    """A call in a thread of its own; its result, or what it raised."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self.value: Any = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, args=(call,))
        self._thread.start()

    def _run(self, call: Callable[[], Any]) -> None:
        try:
            self.value = call()
        except BaseException as error:
            self.error = error

    def result(self) -> Any:
        self._thread.join(60)
        task = Path(f"/proc/self/task/{self._thread.native_id}")
        while not self._thread.is_alive() and task.exists():  # the kernel's part of it ends a moment later
            time.sleep(0.001)
        if self.error is not None:
            raise self.error
        return self.value


def zeromq_pair(key: Key | None = None, address: str = "127.0.0.1", **options: Any) -> tuple[Link, Link]:
    """(earlier, later) ends."""
    listener = zeromq.listen(address, None, TOKEN, key, EARLIER, **options)
    aside = Aside(lambda: listener.accept(WAIT_S))
    earlier, later = zeromq.connect(listener.address, TOKEN, key, LATER, WAIT_S, **options), aside.result()
    earlier.exact = later.exact = True
    return earlier, later


@contextmanager
def pair(**options: object) -> Iterator[tuple[ZeromqLink, ZeromqLink]]:
    earlier, later = zeromq_pair(**options)  # type: ignore[arg-type]
    assert isinstance(earlier, ZeromqLink)
    assert isinstance(later, ZeromqLink)
    try:
        yield earlier, later
    finally:
        earlier.close()
        later.close()


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def address_of(later: ZeromqLink) -> str:
    return later._socket.getsockopt_string(zmq.LAST_ENDPOINT)


@contextmanager
def foreign_socket(
    address: str, identity: bytes | None = None, token: bytes | None = None
) -> Iterator[zmq.Socket[bytes]]:
    """identity: its routing id. token: what it shows; None: it does not know that it is asked."""
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    if identity is not None:
        dealer.routing_id = identity
    if token is not None:
        set_credentials(dealer, None, token)
    dealer.connect(address)
    try:
        yield dealer
    finally:
        dealer.close(1000)
        context.term()


def group_pair(**options: Any) -> tuple[Link, Link]:
    """(earlier, later) ends over gloo, whose two members are in one process here."""
    store = dist.HashStore()
    aside = Aside(lambda: process_group.join(store, True, TOKEN, EARLIER, WAIT_S, address="127.0.0.1", **options))
    earlier = process_group.join(store, False, TOKEN, LATER, WAIT_S, address="127.0.0.1", **options)
    return earlier, aside.result()


class ThreadRendezvous:
    """A rendezvous of workers that are threads of one process: what links use of it, without a store."""

    session = "0.00112233445566778899"

    def __init__(self, rank: int, size: int, posted: dict[str, Any], changed: threading.Condition) -> None:
        self.world = World(rank, size, rank, size, 0, "run", "here")
        self._posted, self._changed = posted, changed

    def post(self, key: str, value: Any) -> None:
        with self._changed:
            self._posted[key] = value
            self._changed.notify_all()

    def wait(self, key: str, timeout_s: float, who: str) -> Any:
        with self._changed:
            assert self._changed.wait_for(lambda: key in self._posted, timeout_s), who
            return self._posted[key]

    def at_store(self, name: str, call: Callable[[Any], Any], timeout_s: float) -> Any:
        with self._changed:
            store = self._posted.setdefault(f"store/{name}", dist.HashStore())
        return call(store)

    def check(self) -> None:
        """Nobody fails here."""

    def own_address(self) -> str:
        return HOST


def registered_pair(kind: str) -> tuple[Link, Link]:
    """(earlier, later) ends as two workers make them by what is registered under this name."""
    posted: dict[str, Any] = {}
    changed = threading.Condition()

    def request(rank: int) -> LinkRequest:
        rendezvous: Any = ThreadRendezvous(rank, 2, posted, changed)
        return LinkRequest(rendezvous, lambda other: (EARLIER, LATER)[other], WAIT_S, lambda link, error: None)

    aside = Aside(lambda: LINKS[kind](request(1)))
    nothing, earlier = LINKS[kind](request(0))
    later, nothing_either = aside.result()
    assert nothing is None
    assert nothing_either is None
    return earlier, later


#: every registered kind as a run makes it, and what else there is of them
OPEN: dict[str, Callable[[], tuple[Link, Link]]] = {
    **{kind: partial(registered_pair, kind) for kind in LINKS},
    "zeromq, encrypted": lambda: zeromq_pair(Key(SECRET)),
    # gloo in place of NCCL, and the CPU in place of a GPU
    "process_group, from device to device": lambda: group_pair(device=torch.device("cpu"), backend="gloo"),
}
