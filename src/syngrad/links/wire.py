"""A ZeroMQ socket with what its monitor says of it: who has come, who has gone, and why a handshake failed.

Every link has a context of its own, so that closing one can neither wait for nor disturb another. ZeroMQ works in a
thread of its own outside Python: heartbeats go on while a process computes.
"""

from __future__ import annotations

import time

import zmq
from zmq.utils.monitor import recv_monitor_message

from syngrad.errors import LinkError, first_line, warn
from syngrad.links.door import Door, knock
from syngrad.links.key import Key

#: milliseconds between two signs of life; a silence of SILENCE_MS counts as the loss of the peer
HEARTBEAT_MS, SILENCE_MS = 2_000, 10_000
#: milliseconds that a connection may take to say who it is before it is closed
HANDSHAKE_MS = 10_000
#: seconds between two looks at the monitor where there is much else to do
LOOK_S = 0.1
#: bytes of one tensor
LIMIT_BYTES = 1 << 32
#: bytes of one part. A larger one ends its connection before memory is taken for it, also in a handshake, where nobody
#: knows yet who it is; so tensors that are larger travel in pieces
PIECE_BYTES = 1 << 25

_ARRIVED = zmq.EVENT_ACCEPTED | zmq.EVENT_CONNECTED
_REFUSED = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
_MONITOR = "inproc://monitor"


class Wire:
    """The socket of one end of a link.

    descriptor: the file descriptor of the peer's connection, once there is one; a listening socket may hold others'
    too. refusals: handshakes that failed; where the other end's door did so, turned_away says it. strangers: those that
    came when the peer was in already.
    """

    def __init__(self, kind: int, limit_bytes: int, heartbeat_ms: int, silence_ms: int) -> None:
        self.limit_bytes = limit_bytes
        self.descriptor: int | None = None
        self.refusals = self.strangers = 0
        self.turned_away = False
        self.door: Door | None = None
        self._gone: set[int] = set()
        self._looked = 0.0
        self._context = zmq.Context()
        try:
            self._open(kind, limit_bytes, heartbeat_ms, silence_ms)
        except zmq.ZMQError as error:
            self._context.destroy(0)
            raise LinkError(f"ZeroMQ cannot open a link ({first_line(error)}); are too many files open?") from error

    def _open(self, kind: int, limit_bytes: int, heartbeat_ms: int, silence_ms: int) -> None:
        self.socket: zmq.Socket[bytes] = self._context.socket(kind)
        for option, value in (
            (zmq.MAXMSGSIZE, min(limit_bytes, PIECE_BYTES)),
            # No limits on queued messages. Those under way are counted by whoever sends (pipeline/), and nobody but the
            # peer is let in (door.py). A limit on sending would block a process in the middle of a send, or drop a
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
        self.socket.monitor(_MONITOR, _ARRIVED | zmq.EVENT_DISCONNECTED | _REFUSED | zmq.EVENT_HANDSHAKE_FAILED_AUTH)
        self._monitor: zmq.Socket[bytes] = self._context.socket(zmq.PAIR)
        self._monitor.rcvhwm = 0  # with a limit ZeroMQ's thread would wait for us to look, signs of life and all
        self._monitor.connect(_MONITOR)
        self._poller = zmq.Poller()
        self._poller.register(self.socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)

    def guard(self, key: Key | None, token: bytes, *, listens: bool) -> None:
        """Let in nobody but the peer, encrypted if there is a key; to be called before the socket binds or connects."""
        if listens:
            self.door = Door.of(self.socket, key, token)
            self._poller.register(self.door.socket, zmq.POLLIN)
        else:
            knock(self.socket, key, token)

    def wait(self, seconds: float | None) -> None:
        """Until something comes, on the socket or from its monitor, or the time has passed."""
        self._poller.poll(None if seconds is None else max(1, round(seconds * 1000)))

    def answer(self) -> None:
        """Let in those at the door who belong here."""
        if self.door is not None:
            self.door.answer()

    def settle(self, descriptor: int) -> None:
        """This is the peer's connection; nobody else comes in from now on."""
        self.lost()
        self.descriptor = descriptor
        if self.door is not None:
            self._poller.unregister(self.door.socket)
            self.door.close()

    def lost(self) -> bool:
        """Whether the peer's connection, once settled, has gone."""
        while _readable(self._monitor):
            said = recv_monitor_message(self._monitor)
            event, descriptor = int(said["event"]), int(said["value"])
            if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
                self.turned_away = True
            elif event & _REFUSED:
                self.refusals += 1
                if self.descriptor is not None and self.door is not None:
                    self.stranger()
            elif event == zmq.EVENT_DISCONNECTED:
                self._gone.add(descriptor)
            elif self.descriptor is None:  # a new connection may have the number of one that went before it
                self._gone.discard(descriptor)
        self._looked = time.monotonic()
        return self.descriptor in self._gone

    def lost_lately(self) -> bool:
        """The same for those who ask often: the monitor itself is looked at ten times a second."""
        return self.lost() if time.monotonic() - self._looked > LOOK_S else self.descriptor in self._gone

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
        self._monitor.close(0)
        if self.door is not None:
            self.door.close()
        self.socket.close(linger_ms)
        self._context.destroy(0)


def _readable(socket: zmq.Socket[bytes]) -> bool:
    """The same as polling it for no time, at a fifth of the cost."""
    return bool(int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)
