"""torchrun's key-value store, as a run uses it: no wait without an end, and no entry but the run's own.

The store asks nobody for a password: whoever reaches its port reads, writes and removes every entry. With a secret each
entry carries a code that only the run's processes can make (secret.py); one without it is as if it were not there, and
what somebody has written over or removed is written again by whoever has posted it.
"""

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
from syngrad.links.secret import Seal

T = TypeVar("T")

#: Seconds after which a store that does not answer is lost. It answers within a millisecond, but looks up the name of
#: everybody who connects, and answers nobody meanwhile: for seconds each, where the name server does not reply.
ANSWER_S = 60.0
#: seconds between two attempts to connect
RETRY_S = 0.1
#: seconds that a store may take to listen which is known to be open: one that does not is gone, with who held it
OPENED_S = 5.0
#: what no entry is: compared with it, a store says what it has without a wait for what it has not
_NOTHING = b"\0syngrad: no entry\0"


class Store:
    """A connection to it: one that is gone or frozen is a LinkError, never a hang.

    Its calls have no time-out of their own where the other end is frozen, so a thread of its own makes them.

    Attributes:
        hosting: whether it is this process that holds the store.
        seal: what marks the run's own entries; None where it has no secret, and every entry counts.
        foreign: the names under which there was something that the run has not put there.
    """

    def __init__(self, host: str, port: int, hosting: bool, timeout_s: float, opened: bool = False) -> None:
        """Opens it, or connects to it once it listens; if it is `opened`, it is known to.

        Raises:
            LinkError: when nothing listens at host:port within `timeout_s` seconds, or the port is taken.
        """
        self.name = f"the meeting point at {host}:{port}"
        self.hosting = hosting
        self.seal: Seal | None = None
        self.foreign: set[str] = set()
        self._own: dict[str, bytes] = {}
        if not hosting:
            _await_listener(host, port, self.name, timeout_s, opened)
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
        """What the run has kept under `key`, or None; does not wait for it."""
        return self._opened(key, self._raw(key))

    def set(self, key: str, value: bytes) -> None:
        """Keep `value` under `key`."""
        if self.seal is not None:
            value = self._own[key] = self.seal.close(key, value)
        self._put(key, value)

    def set_first(self, key: str, value: str) -> None:
        """Keep `value` under `key` unless the run has kept something there."""
        found, content = self._raw(key), value.encode()
        if self._opened(key, found) is None:
            sealed = content if self.seal is None else self.seal.close(key, content)
            self._call(lambda store: store.compare_set(key, found or b"", sealed))

    def restore(self) -> None:
        """Write again what this process has kept, with a secret, and somebody else has removed or written over."""
        for key, value in self._own.items():
            if self._raw(key) != value:
                self._put(key, value)

    def forget(self) -> None:
        """What was kept until now need not be there any more."""
        self._own.clear()
        self.foreign.clear()

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

    def _put(self, key: str, value: bytes) -> None:
        self._call(lambda store: store.set(key, value))

    def _raw(self, key: str) -> bytes | None:
        found = self._call(lambda store: bytes(store.compare_set(key, _NOTHING, _NOTHING)))
        return None if found == _NOTHING else found

    def _opened(self, key: str, found: bytes | None) -> bytes | None:
        if found is None or self.seal is None:
            return found
        value = self.seal.open(key, found)
        if value is None:
            self.foreign.add(key)
        return value

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


#: the stores that this process holds for others, by host and port. They stay as long as it lives: a script may fit more
#: than once, and who comes to the next fit must not find the store of the last one, just closing
_held: dict[tuple[str, int], Store] = {}


def held(host: str, port: int, timeout_s: float) -> Store:
    """The store that this process holds there, opened by the first call."""
    store = _held.get((host, port))
    if store is None:
        store = _held[host, port] = Store(host, port, True, timeout_s)
    return store


def _await_listener(host: str, port: int, name: str, timeout_s: float, opened: bool) -> None:
    """Until something listens there: the store's own connecting prints a warning for each attempt that fails."""
    deadline = time.monotonic() + (min(timeout_s, OPENED_S) if opened else timeout_s)
    while True:
        try:
            socket.create_connection((host, port), timeout=max(1.0, min(5.0, timeout_s))).close()
            return
        except (OSError, UnicodeError) as error:
            if time.monotonic() >= deadline:
                said = "is lost, and who held it" if opened else f"has not opened within {timeout_s:g} s"
                raise LinkError(f"{name} {said} ({first_line(error)})") from error
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
