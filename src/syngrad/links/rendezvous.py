"""Where processes meet before they are linked: what each posts, the others wait for.

torchrun restarts all processes when one is lost, and its store lives on, with everything the lost attempt has posted.
The number of the attempt would tell them apart on one host; launchers on several hosts count for themselves, and one
that restarts because another did does not count at all. So rank 0 opens a session per attempt, under a name made on
the spot, and lets in whoever asks for it *now*: all keys of an attempt begin with the name of its session. A script may
fit several times: FIT is which time this is, 0, 1, …, so that a fit that failed is not held against the next.

    RUN/FIT/refused              why no attempt of this fit can succeed
    RUN/FIT/asks/RANK            a nonce made on the spot, by a rank that wants to be let in
    RUN/FIT/let in/NONCE         rank 0's answer to it: the name of the session
    RUN/FIT/SESSION/here/NONCE   who asked so is in
    RUN/FIT/SESSION/failed       why this attempt is over
    RUN/FIT/SESSION/at/KEY       what was posted
    RUN/FIT/SESSION/group/NAME/… what the members of a process group tell each other
    RUN/FIT/SESSION/left/RANK    that rank needs the store no more

With a secret, only what the run's own processes have written there counts (store.py).
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from typing import Any, TypeVar

from syngrad.errors import ConfigError, LinkError, MessageError, clean
from syngrad.links.secret import Seal
from syngrad.links.store import Store, held
from syngrad.links.world import World, agent_hosts_store, master, own_address, world
from syngrad.tagged_json import PlainError, decode, encode

T = TypeVar("T")

#: seconds between two looks at the store: the first, and the longest
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.001, 0.05
#: seconds that rank 0 holds its own store open for those who still use it
LEAVING_S = 5.0
NONCE_BYTES = 8
#: seconds between two times that a rank which waits writes again what a stranger has removed
RESTORE_S = 0.5


class Rendezvous:
    """One attempt's rendezvous, joined by every rank. It belongs to one thread.

    Attributes:
        world: this process's place.
        session: the attempt's name, the same on every rank.
        attempt: its number, as rank 0 knew it.
    """

    def __init__(self, store: Store, world: World, fit: int = 0, starts: Callable[[], int] | None = None) -> None:
        self.world = world
        self.session = ""
        self.attempt = world.attempt
        self._starts = starts
        self._store = store
        self._stays = False
        self._run = f"syngrad/{world.run_id}/{fit}"
        self._master = ""
        self._restored = time.monotonic()

    @classmethod
    def join(
        cls,
        timeout_s: float = 120.0,
        fit: int = 0,
        seal: Seal | None = None,
        starts: Callable[[], int] | None = None,
    ) -> Rendezvous:
        """Connects as torchrun's environment says, and returns once rank 0 has let this rank in; rank 0, once it has
        let all in.

        Args:
            timeout_s: the longest wait for the others.
            fit: the number of times that this process, and every other, has joined before.
            seal: of the run's secret, if it has one.
            starts: how often the launcher has started workers again, where it may start one alone. An attempt is over
                when that goes up; the others come to the next one.

        Raises:
            LinkError: naming who has not come, after `timeout_s` seconds.
            ConfigError: with the line that an earlier attempt left behind, where no attempt can succeed.
        """
        place, (host, port), deadline = world(), master(), time.monotonic() + timeout_s
        opened = agent_hosts_store()
        hosts = place.rank == 0 and not opened
        store = held(host, port, timeout_s) if hosts else Store(host, port, False, timeout_s, opened)
        rendezvous = cls(store, place, fit, starts)
        rendezvous._stays = hosts
        rendezvous._begin(host, deadline, timeout_s, seal)
        return rendezvous

    @classmethod
    def at(
        cls,
        host: str,
        port: int,
        world: World,
        hosting: bool,
        timeout_s: float,
        opened: bool = False,
        seal: Seal | None = None,
        starts: Callable[[], int] | None = None,
    ) -> Rendezvous:
        """Joins where nothing is left to the environment.

        Args:
            host: of the store.
            port: likewise.
            world: this process's place.
            hosting: whether this process opens the store itself.
            timeout_s: the longest wait for the others.
            opened: whether another process has opened it already.
            seal: of the run's secret, if it has one.
            starts: as in :meth:`join`.
        """
        deadline = time.monotonic() + timeout_s
        rendezvous = cls(Store(host, port, hosting, timeout_s, opened), world, starts=starts)
        rendezvous._begin(host, deadline, timeout_s, seal)
        return rendezvous

    def _begin(self, host: str, deadline: float, timeout_s: float, seal: Seal | None) -> None:
        self._master, self._store.seal = host, seal
        self._store.forget()
        try:
            (self._let_all_in if self.world.rank == 0 else self._get_in)(deadline, timeout_s)
        except BaseException:
            self.close()
            raise

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

    @property
    def over(self) -> bool:
        """Whether a worker was started again since this attempt began: then nothing will come of it."""
        return self._starts is not None and self._starts() > self.attempt

    def check(self) -> None:
        """Raises what :meth:`wait` does where a rank has failed; for waits elsewhere."""
        self._raise_failure()
        self._restore()

    def fail(self, text: str, for_good: bool = False) -> bool:
        """Tell every rank that waits, or will wait, why this attempt is over; the first to fail is heard.

        Args:
            text: why.
            for_good: a restart would not help, so later attempts end with the same line too.

        Returns:
            Whether the store has it: where it is gone there is nobody left to tell.
        """
        line = clean(text) or "a process has failed"
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
        if not self._stays:
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
        session = ""
        nonces: dict[int, bytes] = {}
        missing = set[int]()

        def look() -> bool | None:
            nonlocal session
            if not session or self.over:
                self.attempt = self.world.attempt if self._starts is None else self._starts()
                session = f"{self.attempt}.{secrets.token_hex(NONCE_BYTES)}"
                nonces.clear()
                missing.update(range(1, self.world.size))
            self._raise_failure()
            for rank in range(1, self.world.size):
                nonce = self._store.get(asks := f"{self._run}/asks/{rank}")
                if nonce is not None and len(nonce) != 2 * NONCE_BYTES:  # it is marked, and this rank has no key
                    self._store.foreign.add(asks)
                    continue
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
            text = f"{who} not come within {timeout_s:g} s: see what their host says, and start again{self._doubt()}"
            self.fail(text)
            raise LinkError(text)

    def _get_in(self, deadline: float, timeout_s: float) -> None:
        rank, nonce = self.world.rank, secrets.token_hex(NONCE_BYTES)
        self._store.set(f"{self._run}/asks/{rank}", nonce.encode())

        def look() -> bytes | None:
            self._raise_failure()
            return self._store.get(f"{self._run}/let in/{nonce}")

        session = self._poll(look, deadline)
        if session is None:
            said = f"rank 0 has not come within {timeout_s:g} s: see what its host says, and start again"
            raise LinkError(said + self._doubt())
        self.session = _text(session)
        if self._starts is not None:
            number = self.session.partition(".")[0]
            self.attempt = int(number) if number.isdecimal() else self.attempt
        self._store.set(self._key("here", nonce), self.world.host.encode())

    def _raise_failure(self) -> None:
        refused = self._store.get(f"{self._run}/refused")
        if refused is not None:
            raise ConfigError(clean(_text(refused)))
        failed = self._store.get(self._key("failed")) if self.session else None
        if failed is not None:
            raise LinkError(clean(_text(failed)))
        if self.over and self.session:  # asked in any case: whoever counts may say that nobody is to be waited for
            raise LinkError("another process was started again meanwhile")

    def _doubt(self) -> str:
        """What may be wrong where somebody has come, but not with this run's secret."""
        if not self._store.foreign:
            return ""
        return "; somebody without this run's key has come: the key of all processes must be the same"

    def _restore(self) -> None:
        if (now := time.monotonic()) - self._restored > RESTORE_S:
            self._restored = now
            self._store.restore()

    def _poll(self, look: Callable[[], T | None], deadline: float) -> T | None:
        """What `look` finds, or None when it has found nothing by then; between two looks the process sleeps."""
        pause = FIRST_PAUSE_S
        while (found := look()) is None:
            self._restore()
            left = deadline - time.monotonic()
            if left <= 0:
                return None
            time.sleep(min(pause, left))
            pause = min(2 * pause, LONGEST_PAUSE_S)
        return found


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")
