"""Where processes meet before they are linked: what each posts, the others wait for.

torchrun restarts all processes when one is lost, and its store lives on, with everything the lost attempt has posted.
The number of the attempt would tell them apart on one host; launchers on several hosts count for themselves, and one
that restarts because another did does not count at all. So rank 0 opens a session per attempt, under a name made on
the spot, and lets in whoever asks for it *now*: all keys of an attempt begin with the name of its session.

    RUN/refused              why no attempt of this run can succeed
    RUN/asks/RANK            a nonce made on the spot, by a rank that wants to be let in
    RUN/let in/NONCE         rank 0's answer to it: the name of the session
    RUN/SESSION/here/NONCE   who asked so is in
    RUN/SESSION/failed       why this attempt is over
    RUN/SESSION/at/KEY       what was posted
    RUN/SESSION/group/NAME/… what the members of a process group tell each other
    RUN/SESSION/left/RANK    that rank needs the store no more
"""

from __future__ import annotations

import json
import queue
import secrets
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from datetime import timedelta
from typing import Any, TypeVar

from syngrad.errors import ConfigError, LinkError, MessageError, first_line
from syngrad.links.world import World, agent_hosts_store, master, own_address, world
from syngrad.tagged_json import PlainError, decode, encode

T = TypeVar("T")

#: seconds between two looks at the store: the first, and the longest
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.001, 0.05
#: seconds that rank 0 holds its own store open for those who still use it
LEAVING_S = 5.0
#: characters of an error that are kept
MOST = 2000
#: Seconds after which a store that does not answer is lost. It answers within a millisecond, but looks up the name of
#: everybody who connects, and answers nobody meanwhile: for seconds each, where the name server does not reply.
ANSWER_S = 60.0
#: seconds between two attempts to connect
RETRY_S = 0.1


class Rendezvous:
    """One attempt's rendezvous, joined by every rank. It belongs to one thread.

    world: this process's place. session: the attempt's name, the same on every rank.
    """

    def __init__(self, store: Store, world: World) -> None:
        self.world = world
        self.session = ""
        self._store = store
        self._run = f"syngrad/{world.run_id}"
        self._master = ""

    @classmethod
    def join(cls, timeout_s: float = 120.0) -> Rendezvous:
        """Connects as torchrun's environment says, and returns once rank 0 has let this rank in; rank 0, once it has
        let all in.

        Raises:
            LinkError: naming who has not come, after `timeout_s` seconds.
            ConfigError: with the line that an earlier attempt left behind, where no attempt can succeed.
        """
        place, (host, port) = world(), master()
        opened = agent_hosts_store()
        return cls.at(host, port, place, place.rank == 0 and not opened, timeout_s, opened)

    @classmethod
    def at(
        cls, host: str, port: int, world: World, hosting: bool, timeout_s: float, opened: bool = False
    ) -> Rendezvous:
        """Joins where nothing is left to the environment.

        Args:
            host: of the store.
            port: likewise.
            world: this process's place.
            hosting: whether this process opens the store itself.
            timeout_s: the longest wait for the others.
            opened: whether another process has opened it already.
        """
        deadline = time.monotonic() + timeout_s
        rendezvous = cls(Store(host, port, hosting, timeout_s, opened), world)
        rendezvous._master = host
        try:
            if world.rank == 0:
                rendezvous._let_all_in(deadline, timeout_s)
            else:
                rendezvous._get_in(deadline, timeout_s)
        except BaseException:
            rendezvous.close()
            raise
        return rendezvous

    def post(self, key: str, value: Any) -> None:
        """Keep plain data (numbers, texts, bytes, None, lists, tuples, dictionaries) for all ranks of this attempt.

        Raises:
            MessageError: for a value of another kind.
        """
        tensors: dict[str, Any] = {}
        try:
            plain = encode(value, tensors)
        except PlainError as error:
            raise MessageError(f"{key!r} cannot be posted: {error}") from error
        if tensors:
            raise MessageError(f"{key!r} cannot be posted: it holds a tensor, and tensors travel over links")
        self._store.set(self._key("at", key), json.dumps(plain).encode())

    def wait(self, key: str, timeout_s: float, who: str) -> Any:
        """What was posted under `key`, once it is there.

        Args:
            key: as in :meth:`post`.
            timeout_s: the longest wait for it.
            who: whoever should post it, for the error.

        Raises:
            LinkError: where it has not come in time, or with the text of the rank that failed meanwhile.
            ConfigError: where that was for good.
        """

        def look() -> bytes | None:
            found = self._store.get(self._key("at", key))
            if found is None:
                self._raise_failure()
            return found

        found = self._poll(look, time.monotonic() + timeout_s)
        if found is None:
            raise LinkError(f"{who} has not come within {timeout_s:g} s: nothing was posted as {key!r}")
        try:
            return decode(json.loads(found), {})
        except (PlainError, ValueError, RecursionError) as error:
            raise LinkError(f"what {who} has posted as {key!r} cannot be read ({error!s:.80})") from error

    def check(self) -> None:
        """Raises what :meth:`wait` does where a rank has failed; for waits elsewhere."""
        self._raise_failure()

    def fail(self, text: str, for_good: bool = False) -> bool:
        """Tell every rank that waits, or will wait, why this attempt is over; the first to fail is heard.

        Args:
            text: why.
            for_good: a restart would not help, so later attempts end with the same line too.

        Returns:
            Whether the store has it: where it is gone there is nobody left to tell.
        """
        line = " ".join(text.split())[:MOST] or "a process has failed"
        try:
            self._store.set_first(f"{self._run}/refused" if for_good else self._key("failed"), line)
        except LinkError:
            return False
        return True

    def at_store(self, name: str, call: Callable[[Any], T], timeout_s: float) -> T:
        """What `call` makes of a store of torch.distributed's kind, in which `name` and this attempt have a place of
        their own; what is made by it, as a process group is, meets nobody of another attempt.

        Args:
            name: of the place.
            call: store → anything; what it raises comes out.
            timeout_s: more than the call takes.

        Raises:
            LinkError: where the store is gone.
        """
        return self._store.within(self._key("group", name), call, timeout_s)

    def own_address(self) -> str:
        """Where the other ranks reach this host; see :func:`syngrad.links.world.own_address`."""
        return own_address(self._master, self.world.on_one_host)

    def close(self) -> None:
        """Leave; twice is once. A rank 0 that holds the store itself waits a little until all others have left."""
        if self.session:
            try:
                self._leave()
            except LinkError:
                self.session = ""  # the store is gone, and everybody with it
        self.session = ""
        self._store.close()

    def _key(self, *parts: str) -> str:
        return "/".join((self._run, self.session, *parts))

    def _leave(self) -> None:
        if not self._store.hosting:
            self._store.set(self._key("left", str(self.world.rank)), b"1")
            return
        others = {str(rank) for rank in range(1, self.world.size)}

        def look() -> bool | None:
            others.difference_update([rank for rank in others if self._store.get(self._key("left", rank)) is not None])
            return None if others else True

        self._poll(look, time.monotonic() + LEAVING_S)

    def _let_all_in(self, deadline: float, timeout_s: float) -> None:
        session = f"{self.world.attempt}.{secrets.token_hex(8)}"
        nonces: dict[int, bytes] = {}
        missing = set(range(1, self.world.size))

        def look() -> bool | None:
            self._raise_failure()
            for rank in range(1, self.world.size):
                nonce = self._store.get(f"{self._run}/asks/{rank}")
                if nonce is not None and nonce != nonces.get(rank):
                    # Perhaps a nonce of the lost attempt, which nobody waits for any more: then another will follow.
                    # A rank that was in already asks again where its launcher has started it anew by itself.
                    self._store.set(f"{self._run}/let in/{_text(nonce)}", session.encode())
                    nonces[rank] = nonce
                    missing.add(rank)
                elif nonce is not None and self._store.get(f"{self._run}/{session}/here/{_text(nonce)}") is not None:
                    missing.discard(rank)
            return None if missing else True

        arrived = self._poll(look, deadline)
        self.session = session
        if arrived is None:
            ranks = ", ".join(str(rank) for rank in sorted(missing))
            who = f"rank {ranks} has" if len(missing) == 1 else f"ranks {ranks} have"
            text = f"{who} not come within {timeout_s:g} s: see what their host says, and start again"
            self.fail(text)
            raise LinkError(text)

    def _get_in(self, deadline: float, timeout_s: float) -> None:
        rank, nonce = self.world.rank, secrets.token_hex(8)
        self._store.set(f"{self._run}/asks/{rank}", nonce.encode())

        def look() -> bytes | None:
            self._raise_failure()
            return self._store.get(f"{self._run}/let in/{nonce}")

        session = self._poll(look, deadline)
        if session is None:
            raise LinkError(f"rank 0 has not come within {timeout_s:g} s: see what its host says, and start again")
        self.session = _text(session)
        self._store.set(self._key("here", nonce), self.world.host.encode())

    def _raise_failure(self) -> None:
        refused = self._store.get(f"{self._run}/refused")
        if refused is not None:
            raise ConfigError(_text(refused))
        failed = self._store.get(self._key("failed")) if self.session else None
        if failed is not None:
            raise LinkError(_text(failed))

    @staticmethod
    def _poll(look: Callable[[], T | None], deadline: float) -> T | None:
        """What `look` finds, or None when it has found nothing by then; between two looks the process sleeps."""
        pause = FIRST_PAUSE_S
        while (found := look()) is None:
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            time.sleep(min(pause, left))
            pause = min(2 * pause, LONGEST_PAUSE_S)
        return found


class Store:
    """torchrun's key-value store, with an end to every wait: one that is gone or frozen is a LinkError, never a hang.

    Its calls have no time-out of their own where the other end is frozen, so a thread of its own makes them.
    """

    def __init__(self, host: str, port: int, hosting: bool, timeout_s: float, opened: bool = False) -> None:
        """Opens it, or connects to it once it listens; if it is `opened`, it is known to.

        Raises:
            LinkError: when nothing listens at host:port within `timeout_s` seconds, or the port is taken.
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


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
