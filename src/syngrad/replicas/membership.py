"""This replica among the others: the lighthouse of torchft is asked, which knows which replicas live.

torchft's own `Manager` and its `LocalSGD` and `DiLoCo` are not used. Those wrap one model and one optimiser, wait
for the others before they go on, and hand a joiner its state as a pickle. Here every stage has an optimiser of its own,
a replica trains on while it waits, and nothing that crosses a network is unpickled. So this rests on what torchft
offers for that, its client of the lighthouse (`torchft.coordination`) and its process group, which can be made anew.

    ask        of the lighthouse: it answers once all that live have asked, or those that come later have had time
               enough; training may go on meanwhile
    quorum     its answer, the same for all who are in it: who, in which order, at which averaging each is

The client is a process of its own, which is told every quarter of a second that this one lives: a request may be open
for hours, and neither Python nor torchft has a way to end a thread that waits for one.
"""

from __future__ import annotations

import json
import subprocess
import threading
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYetError
from typing import Any

from syngrad.errors import ConfigError, LinkError, clean, first_line
from syngrad.replicas.native_library import ended, started
from syngrad.replicas.place import Place
from syngrad.replicas.quorum import Participant, Quorum

#: seconds between two signs of life, after as many of which as the lighthouse says (5 s) a replica counts as dead
HEARTBEAT_S = 0.25
#: seconds to reach the lighthouse
CONNECT_S = 10

Client = subprocess.Popen[bytes]
#: the client: a line "beat" is a sign of life, any other asks; every answer is a line
_CLIENT = """
address, name, connect_s = sys.argv[2], sys.argv[3], int(sys.argv[4])
printing = threading.Lock()
def say(answer):
    with printing:
        print(json.dumps(answer), flush=True)
def ask(number, step, store, data):
    try:
        found = client.quorum(replica_id=name, timeout=timedelta(days=1), address=store, store_address=store,
                              step=step, world_size=1, shrink_only=False, data=data)
        key = f"{found.quorum_id}.{found.created.seconds}.{found.created.nanos}."
        those = [[m.replica_id, m.step, m.store_address, m.data] for m in found.participants]
        say({"number": number, "key": key, "found": those})
    except BaseException as error:
        say({"number": number, "error": str(error)})
try:
    client = torchft.LighthouseClient(address, connect_timeout=timedelta(seconds=connect_s))
    say({"connected": True})
except BaseException as error:
    say({"error": str(error)})
    os._exit(1)
for line in sys.stdin:
    given = json.loads(line)
    if given == "beat":
        try:
            client.heartbeat(name, timeout=timedelta(seconds=1))
        except BaseException:
            pass
    else:
        threading.Thread(target=ask, args=given, daemon=True).start()
os._exit(0)
"""


class Membership:
    """See above.

    Args:
        place: which replica it is.
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
        #: the quorum of the last of them, and the one whose process group it holds
        self.last = self.group = ""
        #: whether it has waited long enough for all to come
        self.late = False
        #: whether it may begin a run where nobody has a state
        self.begins = place.attempt == 0
        #: whether it has done all that it was to do
        self.ended = False
        self._asked: Future[dict[str, Any]] | None = None
        #: of the question that is waited for: the answer to one that was taken back says the same at another time
        self._number = 0
        self._writing, self._closed = threading.Lock(), threading.Event()
        self._client, self._hearing = self._connected()
        self._beating = threading.Thread(target=self._send_heartbeats, name="signs of life", daemon=True)
        self._beating.start()

    def _connected(self) -> tuple[Client, threading.Thread]:
        """A client that has reached the lighthouse, and what hears its answers."""
        client, place = started(_CLIENT, self.place.lighthouse, self.name, str(CONNECT_S)), self.place
        said = _line(client)
        if "error" in said:
            ended(client)
            raise LinkError(
                f"{place.name} does not reach the lighthouse at {place.lighthouse} ({_why(said)}); start it with "
                "`torchft_lighthouse --min_replicas 1`"
            )
        hearing = threading.Thread(target=self._hear, args=(client,), name="answers of the lighthouse", daemon=True)
        hearing.start()
        return client, hearing

    def _reconnect(self) -> None:
        """Have another client where that one was lost, as a machine that is out of memory may end it."""
        self._hearing.join()
        with self._writing:
            ended(self._client)
            self._client, self._hearing = self._connected()

    def _write(self, given: Any) -> None:
        assert self._client.stdin is not None
        with self._writing:
            self._client.stdin.write(json.dumps(given).encode() + b"\n")
            self._client.stdin.flush()

    def _send_heartbeats(self) -> None:
        while not self._closed.wait(HEARTBEAT_S):
            try:
                self._write("beat")
            except (OSError, ValueError):  # the client is lost: whoever asks next starts another
                continue

    def _hear(self, client: Client) -> None:
        while True:
            said = {**_line(client), "at": time.monotonic()}
            asked = self._asked
            if asked is not None and not asked.done() and said.get("number", self._number) == self._number:
                asked.set_result(said)
            if "ended" in said:
                return

    @property
    def asking(self) -> bool:
        """Whether an answer is waited for."""
        return self._asked is not None

    def ask(self) -> None:
        """Say that this replica is ready to average."""
        if self._asked is not None:
            return
        self._number += 1
        self._asked = Future()
        # the client has no room for nested data of every kind, and a text is any
        own = {"identity": self.identity, "last": self.last, "begins": self.begins, "late": self.late}
        own["ended"] = self.ended
        data = {"group": self.group, **{name: json.dumps(value, sort_keys=True) for name, value in own.items()}}
        try:
            if self._client.poll() is not None:
                self._reconnect()
            self._write([self._number, self.step, self.store, data])
        except (OSError, LinkError) as error:
            if not self._asked.done():  # its end has been heard of
                self._asked.set_result({"error": str(error)})

    def end(self) -> None:
        """Say that this replica has ended, also where it has asked before; it stays for those that come back."""
        self.ended, self._asked = True, None
        self.ask()

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
            said = self._asked.result(wait_s)
        except NotYetError:
            return None
        self._asked = None
        if "error" in said:
            raise LinkError(f"the lighthouse at {self.place.lighthouse} is lost ({_why(said)})")
        participants = sorted(map(_participant, said["found"]), key=lambda participant: participant.name)
        found = Quorum(str(said["key"]), participants, 0, float(said["at"]))
        theirs = participants[found.source].identity
        check_alike(self.place, self.identity, theirs, found.name_of(found.source))
        alike = [participant for participant in participants if participant.identity == theirs]  # others are told so
        ended = frozenset(participant.index for participant in alike if participant.ended)
        if not self.ended and any(participant.step and not participant.ended for participant in alike):
            alike = [participant for participant in alike if not participant.ended]  # some train on, and average
        rank = next(place for place, participant in enumerate(alike) if participant.name == self.name)
        return Quorum(found.key, alike, rank, found.at, ended)

    def close(self) -> None:
        """Leave: the lighthouse hears no more of it; twice is once."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._beating.join()
        self._client.kill()
        self._hearing.join()
        ended(self._client)


def _line(client: Client) -> dict[str, Any]:
    """The client's next answer."""
    assert client.stdout is not None
    line = client.stdout.readline()
    return dict(json.loads(line)) if line else {"error": "its client has ended", "ended": True}


def _participant(found: Any) -> Participant:
    name, step, store, data = found
    try:
        given = dict(data or {})
        identity = dict(json.loads(given.get("identity", "{}")))
        last, *said = (json.loads(given.get(key, "0")) for key in ("last", "begins", "late", "ended"))
    except (TypeError, ValueError):
        given, identity, last, said = {}, {}, "", [False, False, False]
    group = str(given.get("group", ""))
    return Participant(str(name), int(step), str(store), group, identity, str(last or ""), *map(bool, said))


def _why(said: Mapping[str, Any]) -> str:
    return f"{clean(first_line(Exception(str(said['error']))), 120)}"


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
