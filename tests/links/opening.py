"""Pairs of links, opened in one process, for the tests."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import zmq

from syngrad.links import local, process_group, zeromq
from syngrad.links.door import knock
from syngrad.links.link import Link
from syngrad.links.zeromq import Key, ZeromqLink

TOKEN, WAIT_S = b"a token", 20.0
UPPER, LOWER = "stage '2' (rank 1)", "stage '0' (rank 0)"
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
        if self.error is not None:
            raise self.error
        return self.value


def zeromq_pair(key: Key | None = None, address: str = "127.0.0.1", **options: Any) -> tuple[Link, Link]:
    """(lower, upper) ends."""
    listener = zeromq.listen(address, None, TOKEN, key, LOWER, **options)
    aside = Aside(lambda: listener.accept(WAIT_S))
    lower = zeromq.connect(listener.address, TOKEN, key, UPPER, WAIT_S, **options)
    return lower, aside.result()


@contextmanager
def pair(**options: object) -> Iterator[tuple[ZeromqLink, ZeromqLink]]:
    lower, upper = zeromq_pair(**options)  # type: ignore[arg-type]
    assert isinstance(lower, ZeromqLink)
    assert isinstance(upper, ZeromqLink)
    try:
        yield lower, upper
    finally:
        lower.close()
        upper.close()


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def address_of(upper: ZeromqLink) -> str:
    return upper._socket.getsockopt_string(zmq.LAST_ENDPOINT)


@contextmanager
def foreign_socket(
    address: str, identity: bytes | None = None, token: bytes | None = None
) -> Iterator[zmq.Socket[bytes]]:
    """identity: its routing id. token: what it shows at the door; None: it does not know that there is one."""
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    if identity is not None:
        dealer.routing_id = identity
    if token is not None:
        knock(dealer, None, token)
    dealer.connect(address)
    try:
        yield dealer
    finally:
        dealer.close(1000)
        context.term()


def group_pair(**options: Any) -> tuple[Link, Link]:
    """(lower, upper) ends over gloo, whose two members are in one process here."""
    store = dist.HashStore()
    aside = Aside(lambda: process_group.join(store, True, TOKEN, LOWER, WAIT_S, address="127.0.0.1", **options))
    lower = process_group.join(store, False, TOKEN, UPPER, WAIT_S, address="127.0.0.1", **options)
    return lower, aside.result()


OPEN: dict[str, Callable[[], tuple[Link, Link]]] = {
    "local": lambda: local.pair(LOWER, UPPER),
    "zeromq": zeromq_pair,
    "zeromq, encrypted": lambda: zeromq_pair(Key(SECRET)),
    "process group": group_pair,
    # gloo in place of NCCL, and the CPU in place of a GPU
    "process group, from device to device": lambda: group_pair(device=torch.device("cpu"), backend="gloo"),
}
