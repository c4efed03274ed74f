"""Who averages together this time: the lighthouse of torchft is asked, which knows which replicas live.

torchft's own `Manager` and its `LocalSGD` and `DiLoCo` are not used. Those wrap one model and one optimiser, wait
for the others before they go on, and hand a joiner its state as a pickle. Here every stage has an optimiser of its own,
a replica trains on while it waits, and nothing that crosses a network is unpickled. So this rests on what torchft
offers for that, its client of the lighthouse (`torchft.coordination`) and its process group, which can be made anew.

    ask        of the lighthouse, in a thread: returns once all that live have asked, or those that come later have
               had time enough; training may go on meanwhile
    quorum    the same for all who are in it: who, in which order, at which averaging each is, who heals from whom
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYetError
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from syngrad.errors import ConfigError, LinkError, clean, first_line
from syngrad.replicas.background import in_background
from syngrad.replicas.place import Place

#: seconds between two signs of life, after as many of which as the lighthouse says (5 s) a replica counts as dead
HEARTBEAT_S = 0.25
#: seconds to reach the lighthouse
CONNECT_S = 10.0
#: seconds for which the lighthouse may take to answer: a day, as others may be that slow
_LONG = timedelta(days=1)
INSTALL = "replicas need the package torchft: pip install 'syngrad[replicas]'"


def library(part: str) -> Any:
    """A module of torchft.

    Raises:
        ConfigError: where it is not installed, with what to type.
    """
    import importlib

    try:
        with silenced():
            return importlib.import_module(f"torchft.{part}")
    except ImportError as error:
        raise ConfigError(f"{INSTALL} ({first_line(error):.80})") from error


@contextmanager
def silenced() -> Iterator[None]:
    """Inside it nothing reaches standard error: torchft logs there, whatever one tells it."""
    try:
        kept = os.dup(2)
    except OSError:  # there is none
        yield
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@dataclass(frozen=True)
class Participant:
    """A replica in a quorum.

    Args:
        name: as the lighthouse knows it.
        step: averagings that it has taken part in, as all have counted them.
        store: host and port of its store.
        group: the quorum whose process group it still holds, "" for none.
        identity: what has to be the same in all.
    """

    name: str
    step: int
    store: str
    group: str
    identity: dict[str, Any]


@dataclass(frozen=True)
class Quorum:
    """The replicas that average together, the same for each of them.

    Args:
        key: told by no other quorum.
        participants: in the order of their numbers.
        rank: this replica's place among them.
        at: when this one heard of it, by the monotonic clock.
    """

    key: str
    participants: list[Participant]
    rank: int
    at: float

    @property
    def step(self) -> int:
        """The averagings that there have been."""
        return max(participant.step for participant in self.participants)

    @property
    def source(self) -> int:
        """The place of the one that others heal from."""
        return next(place for place, participant in enumerate(self.participants) if participant.step == self.step)

    @property
    def healing(self) -> list[int]:
        """The places of those that take its state: they are behind; before the first averaging, all others."""
        return [
            place
            for place, participant in enumerate(self.participants)
            if place != self.source and (participant.step < self.step or self.step == 0)
        ]

    @property
    def kept(self) -> bool:
        """Whether all hold the process group of one earlier quorum, of the same participants."""
        groups = {participant.group for participant in self.participants}
        return len(groups) == 1 and "" not in groups and groups.pop().endswith(self._who())

    @property
    def own_key(self) -> str:
        """What a participant says it holds after this quorum."""
        return self.key + self._who()

    def _who(self) -> str:
        names = ",".join(participant.name for participant in self.participants)
        return hashlib.blake2b(names.encode(), digest_size=8).hexdigest()


class Membership:
    """This replica among the others.

    Args:
        place: which it is.
        identity: what has to be the same in all, as plain data.
        store: host and port at which others reach this one's store.

    Raises:
        ConfigError: where torchft is not installed.
        LinkError: where the lighthouse cannot be reached.
    """

    def __init__(self, place: Place, identity: Mapping[str, Any], store: str) -> None:
        self.place, self.identity, self.store = place, dict(identity), store
        self.name = f"{place.name}:{uuid.uuid4().hex}"
        #: averagings that it has taken part in, as all have counted them
        self.step = 0
        #: the quorum whose process group it holds
        self.group = ""
        self._client = self._connect()
        self._asked: Future[Any] | None = None
        self._heard_at = 0.0
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._send_heartbeats, name="signs of life", daemon=True)
        self._heart.start()

    def _connect(self) -> Any:
        client = library("coordination").LighthouseClient
        try:
            with silenced():
                return client(self.place.lighthouse, connect_timeout=timedelta(seconds=CONNECT_S))
        except Exception as error:  # of Rust's own kinds
            raise LinkError(
                f"{self.place.name} does not reach the lighthouse at {self.place.lighthouse} "
                f"({first_line(error):.100}); start it with `torchft_lighthouse --min_replicas 1`"
            ) from error

    def _send_heartbeats(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            try:
                self._client.heartbeat(self.name, timeout=timedelta(seconds=CONNECT_S))
            except Exception:  # whoever asks the lighthouse is told
                continue

    @property
    def asking(self) -> bool:
        """Whether an answer is waited for."""
        return self._asked is not None

    def ask(self) -> None:
        """Say that this replica is ready to average."""
        if self._asked is None:
            step, group = self.step, self.group
            self._asked = in_background(lambda: self._request(step, group), "asks the lighthouse")

    def _request(self, step: int, group: str) -> Any:
        # the client has no room for nested data of every kind, and a text is any
        data = {"group": group, "identity": json.dumps(self.identity, sort_keys=True)}
        found = self._client.quorum(
            replica_id=self.name, timeout=_LONG, address=self.store, store_address=self.store, step=step,
            world_size=1, shrink_only=False, data=data,
        )  # fmt: skip
        self._heard_at = time.monotonic()
        return found

    def quorum(self, wait_s: float) -> Quorum | None:
        """Who averages together; None where that is not known within so many seconds.

        Raises:
            LinkError: where the lighthouse is lost.
            ConfigError: where this replica would train something else than the others do.
        """
        assert self._asked is not None
        if wait_s <= 0 and not self._asked.done():
            return None
        try:
            found = self._asked.result(wait_s)
        except NotYetError:
            return None
        except Exception as error:
            self._asked = None
            raise LinkError(f"the lighthouse at {self.place.lighthouse} is lost ({first_line(error):.100})") from error
        self._asked = None
        participants = sorted(
            (self._participant(each) for each in found.participants), key=lambda participant: participant.name
        )
        key = f"{found.quorum_id}.{found.created.seconds}.{found.created.nanos}."
        whole = Quorum(key, participants, 0, self._heard_at)
        theirs = participants[whole.source].identity
        check_alike(self.place, self.identity, theirs, participants[whole.source].name.partition(":")[0])
        alike = [
            participant for participant in participants if participant.identity == theirs
        ]  # others are told so themselves
        rank = next(place for place, participant in enumerate(alike) if participant.name == self.name)
        return Quorum(key, alike, rank, self._heard_at)

    @staticmethod
    def _participant(found: Any) -> Participant:
        data = found.data or {}
        try:
            identity = json.loads(data.get("identity", "{}"))
        except (TypeError, ValueError):
            identity = {}
        return Participant(
            found.replica_id, int(found.step), str(found.store_address), str(data.get("group", "")), identity
        )

    def close(self) -> None:
        """Leave: the lighthouse hears no more of it."""
        self._ended.set()
        self._heart.join()


def check_alike(place: Place, own: Mapping[str, Any], theirs: Mapping[str, Any], source: str) -> None:
    """Refuse a replica that would train something else than the others do.

    Raises:
        ConfigError: naming the first difference and both values.
    """
    for name in dict.fromkeys([*own, *theirs]):
        mine, its = own.get(name), theirs.get(name)
        if mine != its:
            raise ConfigError(
                f"{place.name} has another {clean(name, 80)} than {clean(source, 40)}: {mine!r:.80} instead of "
                f"{its!r:.80}; run one script, one version and one set of options everywhere"
            )
