"""A ZeroMQ socket with what its monitor says of it: who has come, who has gone, and why a handshake failed.

Every link has a context of its own, so that closing one can neither wait for nor disturb another. ZeroMQ works in a
thread of its own outside Python: heartbeats go on while a process computes.
"""

from __future__ import annotations

import time

import zmq
from zmq.utils.monitor import recv_monitor_message

from syngrad.errors import warn
from syngrad.links.key import Key

#: milliseconds between two signs of life; a silence of SILENCE_MS counts as the loss of the peer
HEARTBEAT_MS, SILENCE_MS = 2_000, 10_000
#: milliseconds that a connection may take to say who it is before it is closed
HANDSHAKE_MS = 10_000
#: seconds between two looks at the monitor where there is much else to do
LOOK_S = 0.1
#: bytes of one tensor: a larger part ends its connection before memory is taken for it
LIMIT_BYTES = 1 << 32

_ARRIVED = zmq.EVENT_ACCEPTED | zmq.EVENT_CONNECTED
_REFUSED = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH
_ZAP = "inproc://zeromq.zap.01"


class Wire:
    """The socket of one end of a link.

    descriptor: the file descriptor of the peer's connection, once there is one; a listening socket may hold others'
    too. refusals: handshakes that failed. strangers: messages of others that were dropped.
    """

    def __init__(self, kind: int, limit_bytes: int, heartbeat_ms: int, silence_ms: int) -> None:
        self.limit_bytes = limit_bytes
        self.descriptor: int | None = None
        self.refusals = self.strangers = 0
        self._gone: set[int] = set()
        self._looked = 0.0
        self._key: Key | None = None
        self._door: zmq.Socket[bytes] | None = None
        self._context = zmq.Context()
        self.socket: zmq.Socket[bytes] = self._context.socket(kind)
        for option, value in (
            (zmq.MAXMSGSIZE, limit_bytes),
            # No limits on queued messages. Those under way are counted above (execution/ends.py). A limit on sending
            # would block a process in the middle of a send, or drop a frame; one on receiving stops ZeroMQ from
            # reading at all, the peer's signs of life included.
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
        self._monitor = self.socket.get_monitor_socket(_ARRIVED | zmq.EVENT_DISCONNECTED | _REFUSED)
        self._poller = zmq.Poller()
        self._poller.register(self.socket, zmq.POLLIN)
        self._poller.register(self._monitor, zmq.POLLIN)

    def lock(self, key: Key, *, listens: bool) -> None:
        """Encrypt, and let in nobody without this key; to be called before the socket binds or connects."""
        self.socket.curve_secretkey, self.socket.curve_publickey = key.secret, key.public
        if not listens:
            self.socket.curve_serverkey = key.public
            return
        self.socket.curve_server = True
        self.socket.zap_domain = b"syngrad"
        # ZeroMQ asks here about everyone who connects (ZAP, RFC 27). It is answered while the peer is awaited; whoever
        # comes later gets no answer, and is not in.
        self._key, self._door = key, self._context.socket(zmq.REP)
        self._door.bind(_ZAP)
        self._poller.register(self._door, zmq.POLLIN)

    def wait(self, seconds: float | None) -> None:
        """Until something comes, on the socket or from its monitor, or the time has passed."""
        self._poller.poll(None if seconds is None else max(1, round(seconds * 1000)))

    def answer(self) -> None:
        """Let in those at the door who have the key."""
        while self._door is not None and _readable(self._door):
            version, request, *_, mechanism, credential = self._door.recv_multipart()
            known = self._key is not None and (mechanism, credential) == (b"CURVE", self._key.raw_public)
            status = [b"200", b"OK"] if known else [b"400", b"another key"]
            self._door.send_multipart([version, request, *status, b"", b""])

    def settle(self, descriptor: int) -> None:
        """This is the peer's connection; whoever comes from now on is not looked at."""
        self.lost()
        self.descriptor = descriptor
        if self._door is not None:
            self._poller.unregister(self._door)

    def lost(self) -> bool:
        """Whether the peer's connection, once settled, has gone."""
        while _readable(self._monitor):
            said = recv_monitor_message(self._monitor)
            event, descriptor = int(said["event"]), int(said["value"])
            if event & _REFUSED:
                self.refusals += 1
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
        """Somebody else has sent something; it is dropped, and the first time said."""
        self.strangers += 1
        if self.strangers == 1:
            warn("somebody outside this run has sent something to one of its links; it is dropped, and so is the rest")

    def close(self, linger_ms: int) -> None:
        """Give everything back; what was sent last gets so long to leave. Twice is once."""
        if self.socket.closed:
            return
        self.socket.disable_monitor()
        self._monitor.close(0)
        if self._door is not None:
            self._door.close(0)
        self.socket.close(linger_ms)
        self._context.term()


def _readable(socket: zmq.Socket[bytes]) -> bool:
    """The same as polling it for no time, at a fifth of the cost."""
    return bool(int(socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)
