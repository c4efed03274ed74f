"""Links over TCP by ZeroMQ: framing, queues and heartbeats are its own, in a thread of its own outside Python.

The upper process listens (ROUTER), the lower one connects (DEALER) with a routing id that only the processes of this
run know; what comes from anybody else is dropped. (The port stays open: ZeroMQ ends a listener's connections with it.)
A connection that is lost once the two have shaken hands is lost for good: frames may be missing, so there is no
reconnecting.

ZeroMQ's own limits on queued messages are off: the number of minibatches under way is counted above
(execution/ends.py), and a limit here could only block a process in the middle of a send.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import zmq
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

from syngrad.errors import ConfigError, LinkError, warn
from syngrad.links.link import Frame, Kind
from syngrad.links.message import VERSION, decode, encode, session

#: milliseconds between two signs of life, and of silence after which the peer counts as lost
HEARTBEAT_MS, SILENCE_MS = 2_000, 10_000
#: milliseconds that the last frames get to leave when a link is closed
LINGER_MS = 3_000
#: bytes of one tensor; larger frames are refused by the transport before memory is taken for them
LIMIT_BYTES = 1 << 33
_HELLO = b"syngrad link "
_LOST = zmq.EVENT_DISCONNECTED
_REFUSED = zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH
_SHORTEST_SECRET = 16


class Key:
    """The key pair that all processes of a run derive from one secret.

    CURVE encrypts and authenticates: who connects must know the listener's public key, which only the secret gives,
    and never crosses the wire.
    """

    def __init__(self, secret: bytes) -> None:
        self.secret = z85.encode(hashlib.sha256(b"syngrad link key" + secret).digest())
        self.public = zmq.curve_public(self.secret)

    @classmethod
    def from_file(cls, path: str) -> Key:
        """The key of a file that holds a secret of 16 bytes or more, the same on every host.

        Raises ConfigError for a file that cannot be read or holds less, and where this ZeroMQ has no CURVE.
        """
        try:
            secret = Path(path).read_bytes().strip()
        except OSError as error:
            raise ConfigError(
                f"link_key {path!r} cannot be read: {error.strerror}; name a file with a secret"
            ) from error
        if len(secret) < _SHORTEST_SECRET:
            raise ConfigError(
                f"link_key {path!r} holds {len(secret)} bytes, and a secret needs {_SHORTEST_SECRET}; make one with "
                f"head -c 32 /dev/urandom | base64 > {path}"
            )
        if not zmq.has("curve"):
            raise ConfigError("link_key needs a ZeroMQ built with CURVE; install pyzmq from a wheel")
        return cls(secret)


class ZeromqLink:
    """One end; see :class:`syngrad.links.link.Link`. It owns its socket and its ZeroMQ context."""

    def __init__(self, wire: Wire, peer: str, token: bytes, to: bytes | None) -> None:
        self.peer = peer
        self.sent_bytes = self.received_bytes = 0
        self._wire, self._token, self._to = wire, session(token), to
        self._sequence = self._due = 0
        self._lost: str | None = None
        self._closed = False

    def send(self, frame: Frame) -> None:
        """See :class:`syngrad.links.link.Link`."""
        if self._lost is not None or self._closed:
            self.check()
        parts: list[Any] = encode(frame, self._sequence, self._token)
        self._sequence += 1
        self.sent_bytes += sum(map(len, parts))
        try:
            self._wire.socket.send_multipart(parts if self._to is None else [self._to, *parts], flags=zmq.DONTWAIT)
        except zmq.ZMQError as error:
            self._lose(f"is gone ({error.strerror or error})")

    def receive(self, timeout_s: float | None = None) -> Frame | None:
        """See :class:`syngrad.links.link.Link`."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            if self._closed:
                self.check()
            frame = self._take()
            if frame is not None:
                return frame
            if self._lost is not None:
                raise LinkError(f"{self.peer} {self._lost}")
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return None
            if self._wire.wait(left) and (frame := self._take()) is None and self._wire.lost():
                self._lost = "is gone: its connection was lost, or it was silent for too long"
            elif frame is not None:
                return frame

    def check(self) -> None:
        """See :class:`syngrad.links.link.Link`."""
        if self._closed:
            raise LinkError(f"the link to {self.peer} is closed")
        if self._lost is None and self._wire.lost():
            self._lost = "is gone: its connection was lost, or it was silent for too long"
        if self._lost is not None:
            raise LinkError(f"{self.peer} {self._lost}")

    def close(self) -> None:
        """See :class:`syngrad.links.link.Link`."""
        if self._closed:
            return
        if self._lost is None:
            try:
                self.send(Frame(Kind.BYE))
            except LinkError:
                self._lost = "is gone"
        self._closed = True
        self._wire.close(LINGER_MS if self._lost is None else 0)

    def _take(self) -> Frame | None:
        """The next frame that is here already."""
        while True:
            try:
                parts = self._wire.socket.recv_multipart(flags=zmq.DONTWAIT, copy=False)
            except zmq.Again:
                return None
            buffers = [part.buffer for part in parts]
            if self._to is not None and bytes(buffers.pop(0)) != self._to:
                self._wire.foreign()
                continue
            self.received_bytes += sum(map(len, buffers))
            try:
                frame = decode(buffers, self._due, self._token, self.peer)
            except LinkError as error:
                self._lost = f"is not understood any more ({error})"
                raise
            self._due += 1
            if frame.kind == Kind.BYE:
                self._lost = "has ended its link"
                raise LinkError(f"{self.peer} {self._lost}")
            return frame

    def _lose(self, why: str) -> None:
        self._lost = why
        raise LinkError(f"{self.peer} {why}")


class Listener:
    """The upper end before its peer has come. address: where to connect, as in tcp://127.0.0.1:5555."""

    def __init__(self, wire: Wire, address: str, token: bytes, peer: str) -> None:
        self.address = address
        self._wire, self._token, self._peer = wire, token, peer

    def accept(self, timeout_s: float) -> ZeromqLink:
        """The link, once the peer has shaken hands.

        Raises LinkError where it has not within `timeout_s` seconds, or speaks another version.
        """
        deadline = time.monotonic() + timeout_s
        routing_id = b"S" + self._token
        wire = self._wire
        while (left := deadline - time.monotonic()) > 0:
            wire.wait(left)
            wire.lost()
            try:
                parts = wire.socket.recv_multipart(flags=zmq.DONTWAIT, copy=False)
            except zmq.Again:
                continue
            if parts[0].bytes != routing_id or len(parts) != 2 or not parts[1].bytes.startswith(_HELLO):
                wire.foreign()
                continue
            wire.descriptor = parts[1].get(zmq.SRCFD)
            wire.socket.send_multipart([routing_id, _greeting()])
            version = parts[1].bytes.removeprefix(_HELLO)
            if version != str(VERSION).encode():
                self.close()
                raise LinkError(_other_version(self._peer, version))
            return ZeromqLink(wire, self._peer, self._token, routing_id)
        said = f" ({wire.refused})" if wire.refused else ""
        self.close()
        raise LinkError(f"{self._peer} has not connected to {self.address} within {timeout_s:g} s{said}")

    def close(self) -> None:
        """Give up; not once it has accepted."""
        self._wire.close(0)


def listen(
    address: str,
    ports: tuple[int, int] | None,
    token: bytes,
    key: Key | None,
    peer: str,
    *,
    limit_bytes: int = LIMIT_BYTES,
    silence_ms: int = SILENCE_MS,
) -> Listener:
    """Listen at this host's `address` for the peer that knows `token`; ports: (first, last), None for any free one.

    Raises LinkError where the port, or every one of them, is taken.
    """
    wire = Wire(zmq.ROUTER, limit_bytes, silence_ms)
    socket = wire.socket
    socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
    if key is not None:
        socket.curve_server = True
        socket.curve_secretkey, socket.curve_publickey = key.secret, key.public
    host = f"[{address}]" if ":" in address else address
    socket.setsockopt(zmq.IPV6, int(":" in address))
    error: zmq.ZMQError | None = None
    for port in range(ports[0], ports[1] + 1) if ports is not None else ["*"]:
        try:
            socket.bind(f"tcp://{host}:{port}")
            return Listener(wire, socket.getsockopt_string(zmq.LAST_ENDPOINT), token, peer)
        except zmq.ZMQError as problem:
            error = problem
    wire.close(0)
    where = f"{address} port {ports[0]} to {ports[1]}" if ports is not None else address
    raise LinkError(
        f"cannot listen at {where}: {error.strerror if error is not None else 'no port'}; free a port, or give "
        "others in SYNGRAD_PORTS"
    )


def connect(
    address: str,
    token: bytes,
    key: Key | None,
    peer: str,
    timeout_s: float,
    *,
    limit_bytes: int = LIMIT_BYTES,
    silence_ms: int = SILENCE_MS,
) -> ZeromqLink:
    """The link to the peer that listens at `address`, once it has answered.

    Raises LinkError where it does not within `timeout_s` seconds, has another key, or speaks another version.
    """
    wire = Wire(zmq.DEALER, limit_bytes, silence_ms)
    socket = wire.socket
    socket.setsockopt(zmq.ROUTING_ID, b"S" + token)
    socket.setsockopt(zmq.IPV6, int("[" in address))
    if key is not None:
        socket.curve_serverkey = key.public
        socket.curve_secretkey, socket.curve_publickey = key.secret, key.public
    try:
        socket.connect(address)
        socket.send(_greeting())
        deadline = time.monotonic() + timeout_s
        while (left := deadline - time.monotonic()) > 0:
            wire.wait(left)
            wire.lost()
            try:
                answer = socket.recv(flags=zmq.DONTWAIT)
            except zmq.Again:
                continue
            if answer != _greeting():
                raise LinkError(_other_version(peer, answer.removeprefix(_HELLO)))
            socket.setsockopt(zmq.RECONNECT_IVL, -1)
            wire.went = False
            return ZeromqLink(wire, peer, token, None)
        said = f" ({wire.refused})" if wire.refused else ""
        raise LinkError(f"{peer} has not answered at {address} within {timeout_s:g} s{said}")
    except zmq.ZMQError as error:
        wire.close(0)
        raise LinkError(f"{peer} cannot be reached at {address!r:.80}: {error.strerror}") from error
    except BaseException:
        wire.close(0)
        raise


class Wire:
    """A socket, and what its monitor has said of it.

    descriptor: of the peer's connection, where others may have connected too. refused: why a handshake failed.
    """

    def __init__(self, kind: int, limit_bytes: int, silence_ms: int) -> None:
        self.context = zmq.Context()
        self.socket: zmq.Socket[bytes] = self.context.socket(kind)
        for option, value in (
            (zmq.MAXMSGSIZE, limit_bytes),
            (zmq.SNDHWM, 0),
            (zmq.RCVHWM, 0),
            (zmq.HEARTBEAT_IVL, min(HEARTBEAT_MS, silence_ms // 3)),
            (zmq.HEARTBEAT_TIMEOUT, silence_ms),
            (zmq.HEARTBEAT_TTL, silence_ms),
            (zmq.TCP_KEEPALIVE, 1),
            (zmq.LINGER, 0),
        ):
            self.socket.setsockopt(option, value)
        self.monitor = self.socket.get_monitor_socket(_LOST | _REFUSED)
        self.poller = zmq.Poller()
        self.poller.register(self.socket, zmq.POLLIN)
        self.poller.register(self.monitor, zmq.POLLIN)
        self.descriptor: int | None = None
        self.went = False
        self.refused = ""
        self._strangers = 0

    def wait(self, seconds: float | None) -> bool:
        """Until something comes, on the socket or from its monitor."""
        return bool(self.poller.poll(None if seconds is None else max(1, round(seconds * 1000))))

    def lost(self) -> bool:
        """Whether the peer's connection has gone."""
        while self.monitor.poll(0):
            event = recv_monitor_message(self.monitor)
            if event["event"] == _LOST:
                self.went = self.went or self.descriptor is None or event["value"] == self.descriptor
            else:
                self.refused = "a handshake failed: is the key, and the version, the same on both hosts?"
        return self.went

    def foreign(self) -> None:
        """Somebody else has sent something; it is dropped, and the first time said."""
        self._strangers += 1
        if self._strangers == 1:
            warn("somebody outside this run has sent something to its link; it is dropped, and so is what follows")

    def close(self, linger_ms: int) -> None:
        """Give everything back."""
        if self.socket.closed:
            return
        self.socket.disable_monitor()
        self.monitor.close(0)
        self.socket.close(linger_ms)
        self.context.term()


def _greeting() -> bytes:
    return _HELLO + str(VERSION).encode()


def _other_version(peer: str, version: bytes) -> str:
    return f"{peer} speaks version {version.decode('ascii', 'replace')!s:.20} of the wire, and this Syngrad {VERSION}"
