"""torchrun's key-value store, with an end to every wait: one that is gone or frozen is a LinkError, never a hang."""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from datetime import timedelta
from typing import Any, TypeVar

from syngrad.errors import LinkError, first_line

T = TypeVar("T")

#: Seconds after which a store that does not answer is lost. It answers within a millisecond, but looks up the name of
#: everybody who connects, and answers nobody meanwhile: for seconds each, where the name server does not reply.
ANSWER_S = 60.0
#: seconds between two attempts to connect
RETRY_S = 0.1


class Store:
    """A TCPStore, held by this process (`hosting`) or by another one.

    Its calls have no time-out of their own where the other end is frozen, so a thread of its own makes them.
    """

    def __init__(self, host: str, port: int, hosting: bool, timeout_s: float, opened: bool = False) -> None:
        """Raises LinkError when nothing listens at host:port within `timeout_s` seconds, or the port is taken.

        opened: whether it is known to listen already.
        """
        self.name = f"the meeting point at {host}:{port}"
        self.hosting = hosting
        if not hosting and not opened:
            _await_listener(host, port, self.name, timeout_s)
        self._calls: queue.SimpleQueue[tuple[Future[Any], Callable[[Any], Any]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = threading.Thread(
            target=_serve, args=(self._calls, host, port, hosting, timeout_s), name="syngrad-meeting", daemon=True
        )
        self._thread.start()
        try:
            self._call(lambda store: store.check([""]), ANSWER_S + timeout_s)
        except BaseException:
            self.close()
            raise

    def get(self, key: str) -> bytes | None:
        """What is kept under `key`, or None; does not wait for it."""
        return self._call(lambda store: bytes(store.get(key)) if store.check([key]) else None)

    def set(self, key: str, value: bytes) -> None:
        """Keep `value` under `key`."""
        self._call(lambda store: store.set(key, value))

    def set_first(self, key: str, value: str) -> None:
        """Keep `value` under `key` unless something is kept there."""
        self._call(lambda store: store.compare_set(key, "", value))

    def within(self, prefix: str, call: Callable[[Any], T], timeout_s: float) -> T:
        """What `call` makes of the store, all keys below `prefix`; this thread waits for it so long, and ANSWER_S."""
        from torch.distributed.distributed_c10d import PrefixStore

        return self._call(lambda store: call(PrefixStore(prefix, store)), timeout_s + ANSWER_S)

    def close(self) -> None:
        """Give the connection back; twice is once. A thread that the store has frozen is left to itself."""
        if self._thread is not None:
            self._calls.put(None)
            self._thread.join(1.0)
            self._thread = None

    def _call(self, call: Callable[[Any], T], most_s: float | None = None) -> T:
        most_s = ANSWER_S if most_s is None else most_s
        if self._thread is None:
            raise LinkError(f"{self.name} has been left already")
        answer: Future[T] = Future()
        self._calls.put((answer, call))
        try:
            return answer.result(most_s)
        except FutureTimeout as error:
            raise LinkError(f"{self.name} has not answered for {most_s:g} s") from error
        except RuntimeError as error:  # what every error of torch.distributed is
            lost = "cannot be opened; is the port taken?" if self.hosting else "is lost"
            raise LinkError(f"{self.name} {lost} ({first_line(error)})") from error


def _await_listener(host: str, port: int, name: str, timeout_s: float) -> None:
    """Until something listens there: the store's own connecting prints a warning for each attempt that fails."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            socket.create_connection((host, port), timeout=max(1.0, min(5.0, timeout_s))).close()
            return
        except (OSError, UnicodeError) as error:
            if time.monotonic() >= deadline:
                raise LinkError(f"{name} has not opened within {timeout_s:g} s ({first_line(error)})") from error
        time.sleep(RETRY_S)


def _serve(calls: queue.SimpleQueue[Any], *where: Any) -> None:
    store: Any = None
    while (item := calls.get()) is not None:
        answer, call = item
        try:
            if store is None:
                store = _connect(*where)
            answer.set_result(call(store))
        except BaseException as error:
            # without its frames, which would keep the connection open for as long as the error is remembered
            answer.set_exception(error.with_traceback(None))
        del answer, call, item


def _connect(host: str, port: int, hosting: bool, timeout_s: float) -> Any:
    from torch._C._distributed_c10d import TCPStore

    # as torch.distributed's own env:// does, but without its count of who has come: others may use this store too
    return TCPStore(
        host,
        port,
        is_master=hosting,
        timeout=timedelta(seconds=max(timeout_s, 1.0)),
        wait_for_workers=False,
        multi_tenant=hosting,
    )
