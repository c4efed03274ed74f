"""A ZeroMQ socket with what its monitor says of it: who has come, who has gone, and why a handshake failed.

Every link has a context of its own, so that closing one can neither wait for nor disturb another. ZeroMQ works in a
thread of its own outside Python: heartbeats go on while a process computes.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import zmq
from zmq.utils.monitor import recv_monitor_message

from syngrad.errors import LinkError, first_line, warn
from syngrad.links.admission import Admission
from syngrad.links.auth import Key, ZapAuthenticator, set_credentials
from syngrad.links.frame_format import Buffer, aligned, part_sizes

#: milliseconds between two signs of life; a silence of SILENCE_MS counts as the loss of the peer
HEARTBEAT_MS, SILENCE_MS = 2_000, 10_000
#: milliseconds that a connection may take to say who it is before it is closed
HANDSHAKE_MS = 10_000
#: seconds between two readings of the monitor where there is much else to do
MONITOR_EVERY_S = 0.1
#: bytes of one tensor
LIMIT_BYTES = 1 << 32
#: bytes of one part. A larger one ends its connection before memory is taken for it, also in a handshake, where nobody
#: knows yet who it is; so larger tensors travel as several parts
PART_BYTES = 1 << 25

_ARRIVED = zmq.EVENT_ACCEPTED | zmq.EVENT_CONNECTED
_REFUSED = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
_HEARD = (
    _ARRIVED
    | _REFUSED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_LISTENING
    | zmq.EVENT_MONITOR_STOPPED
)
_MONITOR = "inproc://monitor"


class MonitoredSocket:
    """The socket of one end of a link.

    Attributes:
        descriptor: the file descriptor of the peer's connection, once there is one; a listening socket may hold others'
            too.
        refusals: handshakes that failed for another reason than an authenticator's word.
        rejected: whether the other end's authenticator has sent this one away.
        strangers: those that came when the peer was in already.
    """

    def __init__(self, kind: int, limit_bytes: int, heartbeat_ms: int, silence_ms: int) -> None:
        self.limit_bytes = limit_bytes
        self.descriptor: int | None = None
        self.refusals = self.strangers = 0
        self.rejected = False
        self.authenticator: ZapAuthenticator | None = None
        self._admission: Admission | None = None
        self._gone: set[int] = set()
        self._monitored = 0.0
        self._context = zmq.Context()
        try:
            self._open(kind, limit_bytes, heartbeat_ms, silence_ms)
        except zmq.ZMQError as error:
            self._context.destroy(0)
            raise LinkError(f"ZeroMQ cannot open a link ({first_line(error)}); are too many files open?") from error

    def _open(self, kind: int, limit_bytes: int, heartbeat_ms: int, silence_ms: int) -> None:
        self.socket: zmq.Socket[bytes] = self._context.socket(kind)
        for option, value in (
            (zmq.MAXMSGSIZE, min(limit_bytes, PART_BYTES)),
            # No limits on queued messages. Those under way are counted by whoever sends (pipeline/), and nobody but the
            # peer is let in (auth.py). A limit on sending would block a process in the middle of a send, or drop a
            # frame; one on receiving stops ZeroMQ from reading at all, the peer's signs of life included, and its
            # time-out then ends the process (libzmq issue 4767).
            (zmq.SNDHWM, 0),
            (zmq.RCVHWM, 0),
            (zmq.HEARTBEAT_IVL, heartbeat_ms),
            (zmq.HEARTBEAT_TIMEOUT, silence_ms),
            (zmq.HEARTBEAT_TTL, silence_ms),
            # A stopped peer whose buffers are full keeps our own heartbeat from leaving: the kernel watches that.
            (zmq.TCP_MAXRT, silence_ms),
            (zmq.TCP_KEEPALIVE, 1),
            (zmq.HANDSHAKE_IVL, HANDSHAKE_MS),
            (zmq.LINGER, 0),
        ):
            self.socket.setsockopt(option, value)
        self.socket.monitor(_MONITOR, _HEARD)
        self._monitor: zmq.Socket[bytes] = self._context.socket(zmq.PAIR)
        self._monitor.rcvhwm = 0  # with a limit ZeroMQ's thread would wait for us to look, signs of life and all
        self._monitor.connect(_MONITOR)
        self._poller = zmq.Poller()
        self._poller.register(self.socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)

    def authenticate(self, key: Key | None, token: bytes, *, listens: bool) -> None:
        """Let in nobody but the peer, encrypted if there is a key; to be called before the socket binds or connects."""
        if listens:
            self._poller.unregister(self._monitor)
            self._admission = Admission(self._context, self._monitor)
            self._monitor = self._admission.events
            self._poller.register(self._monitor, zmq.POLLIN)
            self.authenticator = ZapAuthenticator(self.socket, key, token)
            self._poller.register(self.authenticator.socket, zmq.POLLIN)
        else:
            set_credentials(self.socket, key, token)

    def wait(self, seconds: float | None) -> None:
        """Until something comes, on the socket or from its monitor, or the time has passed."""
        self._poller.poll(None if seconds is None else max(1, round(seconds * 1000)))

    def answer(self) -> None:
        """Let in those who wait and belong here."""
        if self.authenticator is not None:
            self.authenticator.answer()

    def settle(self, descriptor: int) -> None:
        """This is the peer's connection; nobody else comes in from now on."""
        self.lost()  # first what the monitor still has to say of those who came and went before
        self.descriptor = descriptor
        if self._admission is not None:
            self._admission.peer = descriptor
        if self.authenticator is not None:
            self._poller.unregister(self.authenticator.socket)
            self.authenticator.close()  # with nobody to answer, ZeroMQ itself sends later ones away

    def lost(self) -> bool:
        """Whether the peer's connection, once settled, has gone."""
        while _readable(self._monitor):
            said = recv_monitor_message(self._monitor)
            event, descriptor = int(said["event"]), int(said["value"])
            if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                self.rejected = True
            elif event & _REFUSED:
                self.refusals += 1
                if self.descriptor is not None and self.authenticator is not None:
                    self.stranger()
            elif event == zmq.EVENT_DISCONNECTED:
                self._gone.add(descriptor)
            elif self.descriptor is None:  # a new connection may have the number of one that went before it
                self._gone.discard(descriptor)
        self._monitored = time.monotonic()
        return self.descriptor in self._gone

    def lost_lately(self) -> bool:
        """Whether it has gone, for those who ask often: the monitor itself is looked at ten times a second."""
        return self.lost() if time.monotonic() - self._monitored > MONITOR_EVERY_S else self.descriptor in self._gone

    def stranger(self) -> None:
        """Somebody else has come, or sent something; the first time it is said."""
        self.strangers += 1
        if self.strangers == 1:
            warn("somebody outside this run has come to one of its links; they are sent away, and so are others")

    def close(self, linger_ms: int) -> None:
        """Give everything back; what was sent last gets so long to leave. Twice is once."""
        if self.socket.closed:
            return
        self.socket.disable_monitor()
        if self._admission is not None:
            self._admission.close()
        self._monitor.close(0)
        if self.authenticator is not None:
            self.authenticator.close()
        self.socket.close(linger_ms)
        self._context.destroy(0)


def split_large(parts: Sequence[Buffer], peer: str) -> list[Buffer]:
    """The parts of a frame, those of more than PART_BYTES cut into views of so many bytes each.

    Raises:
        LinkError: where the first part is larger, which holds the structure and all small tensors.
    """
    if len(parts[0]) > PART_BYTES:
        raise LinkError(
            f"{len(parts[0])} bytes of structure and small tensors for {peer} are more than its link carries "
            f"({PART_BYTES}); put small tensors together into larger ones"
        )
    return [part[at : at + PART_BYTES] for part in parts for at in range(0, max(len(part), 1), PART_BYTES)]


def join_split(buffers: Sequence[Any], source: str) -> list[Any]:
    """What :func:`split_large` was given, in memory as :func:`.frame_format.aligned` takes it, as much as has come.

    What does not add up is left as it is: :func:`syngrad.links.frame_format.decode` refuses it.
    """
    made, at = [buffers[0]], 1
    for size in part_sizes(buffers[0], source):
        count = -(-size // PART_BYTES)
        found = buffers[at : at + count]
        if sum(map(len, found)) == size:
            found = [aligned(found)]
        made += found
        at += count
    return [*made, *buffers[at:]]


def _readable(socket: zmq.Socket[bytes]) -> bool:
    """Whether a message waits: as polling for no time tells, at a fifth of the cost."""
    return bool(int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)
