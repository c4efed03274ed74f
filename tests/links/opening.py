"""Pairs of links, opened in one process, for the tests."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

from syngrad.links import local, process_group, zeromq
from syngrad.links.link import Link
from syngrad.links.zeromq import Key

TOKEN, WAIT_S = b"a token", 20.0
UPPER, LOWER = "stage '2' (rank 1)", "stage '0' (rank 0)"
SECRET = b"a secret that is long enough"


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
