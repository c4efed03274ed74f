"""Links over TCP by ZeroMQ: framing, queues and heartbeats are its own.

The next worker listens (ROUTER), the previous one connects (DEALER) with a routing id that only the processes of this
run know. Each tells the other its version of the wire. Nobody else is let in (auth.py), and a connection that is lost
is lost for good: frames may be missing, so there is no going on with another.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NoReturn

import zmq

from syngrad.errors import LinkError, first_line
from syngrad.links.auth import Key
from syngrad.links.frame_format import VERSION, decode, encode, session
from syngrad.links.link import Frame, Kind, LinkRequest, Links
from syngrad.links.monitored_socket import (
    HEARTBEAT_MS,
    LIMIT_BYTES,
    PART_BYTES,
    SILENCE_MS,
    MonitoredSocket,
    join_split,
    split_large,
)
from syngrad.links.world import port_range

#: milliseconds that the last frames get to leave when a link is closed
LINGER_MS = 3_000
#: seconds between two checks of the run while a link is being made
CHECK_EVERY_S = 0.5
_MORE = zmq.DONTWAIT | zmq.SNDMORE
_HELLO, _OTHER_TOKEN = b"syngrad link ", b"syngrad another token"
_GONE = "is gone: its process has ended, its connection is cut, or it was silent for too long"


def link_neighbours(request: LinkRequest) -> Links:
    """This worker's links: it listens for the previous one, and connects to the next one."""
    rendezvous, previous, following = request.rendezvous, request.previous, request.next
    key = Key.from_file(request.key_file) if request.key_file is not None else None
    listener: Listener | None = None
    to_previous: ZeromqLink | None = None
    to_next: ZeromqLink | None = None
    try:
        if previous is not None:
            address, ports = rendezvous.own_address(), port_range()
            listener = listen(address, ports, request.token, key, request.peer(previous))
            rendezvous.post(f"address/{request.rank}", listener.address)
        if following is not None:
            peer = request.peer(following)
            address = str(rendezvous.wait(f"address/{following}", request.timeout_s, peer))
            to_next = connect(address, request.token, key, peer, request.timeout_s, check=rendezvous.check)
        if listener is not None:
            to_previous = listener.accept(request.timeout_s, check=rendezvous.check)
    except BaseException as error:
        if to_next is not None:
            request.report(to_next, error)
        for each in (to_next, listener):
            if each is not None:
                each.close()
        raise
    for link in filter(None, (to_previous, to_next)):
        link.exact = request.exact
    return to_previous, to_next


def _no_check() -> None:
    """There is no run to check."""


class ZeromqLink:
    """One end; see :class:`syngrad.links.link.Link`. It owns its socket and its ZeroMQ context.

    Frames that arrived before a loss are still received; then, and on sending at once, a LinkError says who is lost.
    So it does after the peer's BYE: "… has ended its link". `exact` is :class:`.link.LinkRequest`'s.
    """

    def __init__(self, monitored: MonitoredSocket, peer: str, token: bytes, to: bytes | None) -> None:
        self.peer = peer
        self.sent_bytes = self.received_bytes = 0
        self._monitored, self._socket = monitored, monitored.socket
        self._token, self._to = session(token), to
        self._sequence = self._due = 0
        self._lost: str | None = None
        self._closed = self.exact = False

    def send(self, frame: Frame) -> None:
        """See :class:`syngrad.links.link.Link`.

        Raises:
            MessageError: for a body that is neither plain nor tensors.
        """
        if self._closed or self._lost is not None or self._monitored.lost_lately():
            self.check()
        parts: list[Any] = encode(frame, self._sequence, self._token)
        largest, size = max(map(len, parts)), sum(map(len, parts))
        if largest > self._monitored.limit_bytes:
            raise LinkError(
                f"{largest} bytes in one tensor for {self.peer} are more than its link carries "
                f"({self._monitored.limit_bytes}); send smaller ones"
            )
        if largest > PART_BYTES:
            parts = split_large(parts, self.peer)
        try:
            if self._to is not None:
                self._socket.send(self._to, _MORE)
            # Copied: without a copy pyzmq keeps the tensor alive by a Python thread of its own, which costs more.
            for part in parts[:-1]:
                self._socket.send(part, _MORE)
            self._socket.send(parts[-1], zmq.DONTWAIT)
        except zmq.ZMQError as error:
            self._lose(_GONE, error)
        self._sequence += 1
        self.sent_bytes += size

    def receive(self, timeout_s: float | None = None) -> Frame | None:
        """See :class:`syngrad.links.link.Link`."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            frame = None if self._closed else self._take()
            if frame is not None:
                return frame
            if self._closed or self._lost is not None:
                self.check()
            if self._monitored.lost_lately() if timeout_s == 0 else self._monitored.lost():
                frame = self._take()  # what came before the loss is here by now
                if frame is None:
                    self._lose(_GONE)
                return frame
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return None
            self._monitored.wait(left)

    def check(self) -> None:
        """See :class:`syngrad.links.link.Link`."""
        if self._closed:
            raise LinkError(f"the link to {self.peer} is closed")
        if self._lost is not None:
            raise LinkError(f"{self.peer} {self._lost}")
        if self._monitored.lost():
            raise LinkError(f"{self.peer} {_GONE}")

    def close(self) -> None:
        """See :class:`syngrad.links.link.Link`. It waits for LINGER_MS at most."""
        if self._closed:
            return
        linger_ms = 0
        if self._lost is None and not self._monitored.lost():
            try:
                self.send(Frame(Kind.BYE))
                linger_ms = LINGER_MS
            except LinkError:
                self._lost = _GONE
        self._closed = True
        self._monitored.close(linger_ms)

    def _take(self) -> Frame | None:
        """The next frame that is here already."""
        while self._lost is None or self._lost == _GONE:
            try:
                part = self._socket.recv(zmq.DONTWAIT, copy=False)
            except zmq.Again:
                return None
            parts = [part]
            while part.more:
                parts.append(part := self._socket.recv(copy=False))
            if self._to is not None and parts.pop(0).bytes != self._to:
                self._monitored.stranger()
                continue
            buffers: list[Any] = [part.buffer for part in parts]
            self.received_bytes += sum(map(len, buffers))
            try:
                if len(buffers) > 1 and (self.exact or PART_BYTES in map(len, buffers)):
                    buffers = join_split(buffers, self.peer)
                frame = decode(buffers, self._due, self._token, self.peer)
            except LinkError as error:
                self._lost = f"is not understood any more: {error}"
                raise
            self._due += 1
            if frame.kind == Kind.BYE:
                self._lose("has ended its link")
            return frame
        return None

    def _lose(self, why: str, error: Exception | None = None) -> NoReturn:
        self._lost = why
        raise LinkError(f"{self.peer} {why}") from error


class Listener:
    """The end that listens, before its peer has come to its `address`, as in tcp://127.0.0.1:5555."""

    def __init__(self, monitored: MonitoredSocket, address: str, token: bytes, peer: str, keyed: bool) -> None:
        self.address, self._keyed = address, keyed
        self._monitored, self._token, self._peer = monitored, token, peer
        self._others = 0

    def accept(self, timeout_s: float, check: Callable[[], None] = _no_check) -> ZeromqLink:
        """The link, once the peer has shaken hands. The listener is done with then, whatever happens.

        Args:
            timeout_s: how long that may take.
            check: called now and then meanwhile; it may raise, where there is no use in waiting any more.

        Raises:
            LinkError: where the peer has not come in time, or speaks another version.
        """
        try:
            return self._accept(time.monotonic() + timeout_s, timeout_s, check)
        except BaseException:
            self._monitored.close(LINGER_MS if self._others else 0)
            raise

    def _accept(self, deadline: float, timeout_s: float, check: Callable[[], None]) -> ZeromqLink:
        monitored, expected = self._monitored, _routing_id(self._token)
        while (left := deadline - time.monotonic()) > 0:
            monitored.wait(min(left, CHECK_EVERY_S))
            check()
            monitored.answer()
            monitored.lost()
            try:
                parts = monitored.socket.recv_multipart(flags=zmq.DONTWAIT, copy=False)
            except zmq.Again:
                continue
            sender, hello = parts[0].bytes, parts[-1].bytes[:64]
            if len(parts) != 2 or not hello.startswith(_HELLO):
                monitored.stranger()
                continue
            right = sender == expected
            try:
                monitored.socket.send_multipart(
                    [sender, _HELLO + b"%d" % VERSION if right else _OTHER_TOKEN], zmq.DONTWAIT
                )
            except zmq.ZMQError:  # it has gone again
                continue
            if not right:
                self._others += 1
                continue
            if hello != _HELLO + b"%d" % VERSION:
                self._others += 1
                raise LinkError(_other_version(self._peer, hello))
            monitored.settle(int(parts[1].get(zmq.SRCFD)))
            return ZeromqLink(monitored, self._peer, self._token, sender)
        rejected = monitored.authenticator.refused if monitored.authenticator is not None else 0
        others, refused = self._others, monitored.refusals
        if self._keyed:
            refused += rejected
        else:
            others += rejected
        said = [f"{others} of another run or attempt did"] if others else []
        if refused:
            hint = "" if self._keyed else ", and there is none here"
            said.append(f"{refused} were refused: the key of all processes must be the same{hint}")
        raise LinkError(
            f"{self._peer} has not connected to {self.address} within {timeout_s:g} s"
            + (f" ({'; '.join(said)})" if said else "")
        )

    def close(self) -> None:
        """Give up, if it has not accepted."""
        if self._monitored.descriptor is None:
            self._monitored.close(0)


def listen(
    address: str,
    ports: tuple[int, int] | None,
    token: bytes,
    key: Key | None,
    peer: str,
    *,
    limit_bytes: int = LIMIT_BYTES,
    heartbeat_ms: int = HEARTBEAT_MS,
    silence_ms: int = SILENCE_MS,
) -> Listener:
    """Listen for the peer that knows `token`.

    Args:
        address: this host's, an IPv4 or IPv6 one.
        ports: (first, last), of which the first free one is taken; None: any free one.
        token: what only the processes of this attempt know.
        key: for traffic that is encrypted; None: it is not.
        peer: who is to come, for errors.
        limit_bytes: of one tensor.
        heartbeat_ms: between two signs of life.
        silence_ms: until silence counts as loss.

    Raises:
        LinkError: where the port, or every one of them, is taken, or the address is not this host's.
    """
    monitored = MonitoredSocket(zmq.ROUTER, limit_bytes, heartbeat_ms, silence_ms)
    try:
        monitored.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # sending to a peer that is gone is an error
        monitored.socket.setsockopt(zmq.IPV6, int(":" in address))
        monitored.authenticate(key, token, listens=True)
        _bind(monitored.socket, address, ports)
    except zmq.ZMQError as error:
        monitored.close(0)
        raise LinkError(f"cannot listen at {address} ({first_line(error)})") from error
    except BaseException:
        monitored.close(0)
        raise
    return Listener(monitored, monitored.socket.getsockopt_string(zmq.LAST_ENDPOINT), token, peer, key is not None)


def _bind(socket: zmq.Socket[bytes], address: str, ports: tuple[int, int] | None) -> None:
    host = f"[{address}]" if ":" in address else address
    problem: zmq.ZMQError | None = None
    for port in ["*"] if ports is None else range(ports[0], ports[1] + 1):
        try:
            socket.bind(f"tcp://{host}:{port}")
            return
        except zmq.ZMQError as error:
            problem = error
    where = "" if ports is None else f" port {ports[0]}" if ports[0] == ports[1] else f" ports {ports[0]}–{ports[1]}"
    said = "taken" if problem is not None and problem.errno == zmq.EADDRINUSE else f"{problem}" if problem else "empty"
    raise LinkError(f"cannot listen at {address}{where} ({said}); free a port, or give others in SYNGRAD_PORTS")


def connect(
    address: str,
    token: bytes,
    key: Key | None,
    peer: str,
    timeout_s: float,
    *,
    check: Callable[[], None] = _no_check,
    limit_bytes: int = LIMIT_BYTES,
    heartbeat_ms: int = HEARTBEAT_MS,
    silence_ms: int = SILENCE_MS,
) -> ZeromqLink:
    """The link to the peer that listens at `address`, once it has answered; it may begin to listen later.

    Args:
        address: as the listener says it.
        token: what only the processes of this attempt know.
        key: its own must be the same.
        peer: who is there, for errors.
        timeout_s: how long it may take to answer.
        check: as in :meth:`Listener.accept`.
        limit_bytes: of one tensor.
        heartbeat_ms: between two signs of life.
        silence_ms: until silence counts as loss.

    Raises:
        LinkError: where it does not answer in time, has another key or token, or speaks another version.
    """
    monitored = MonitoredSocket(zmq.DEALER, limit_bytes, heartbeat_ms, silence_ms)
    try:
        monitored.socket.setsockopt(zmq.ROUTING_ID, _routing_id(token))
        monitored.socket.setsockopt(zmq.IPV6, int("[" in address))
        monitored.authenticate(key, token, listens=False)
        monitored.socket.connect(address)
        monitored.socket.send(_HELLO + b"%d" % VERSION)
        return _answered(monitored, address, token, peer, timeout_s, check)
    except zmq.ZMQError as error:
        monitored.close(0)
        raise LinkError(f"{peer} cannot be reached at {address!r:.80}: {first_line(error)}") from error
    except BaseException:
        monitored.close(0)
        raise


def _answered(
    monitored: MonitoredSocket, address: str, token: bytes, peer: str, timeout_s: float, check: Callable[[], None]
) -> ZeromqLink:
    deadline = time.monotonic() + timeout_s
    other = f"{peer} at {address} belongs to another run or attempt; start all processes anew"
    while (left := deadline - time.monotonic()) > 0:
        monitored.wait(min(left, CHECK_EVERY_S))
        check()
        monitored.lost()
        if monitored.rejected:
            raise LinkError(other)
        try:
            answer = monitored.socket.recv(flags=zmq.DONTWAIT, copy=False)
        except zmq.Again:
            continue
        if answer.bytes == _OTHER_TOKEN:
            raise LinkError(other)
        if answer.bytes != _HELLO + b"%d" % VERSION:
            raise LinkError(_other_version(peer, answer.bytes[:64]))
        monitored.settle(int(answer.get(zmq.SRCFD)))
        return ZeromqLink(monitored, peer, token, None)
    said = " (it refuses this end: the key of all processes must be the same)" if monitored.refusals else ""
    raise LinkError(f"{peer} has not answered at {address} within {timeout_s:g} s{said}")


def _routing_id(token: bytes) -> bytes:
    return b"S" + token


def _other_version(peer: str, hello: bytes) -> str:
    its = hello.removeprefix(_HELLO).decode("ascii", "replace")
    return f"{peer} speaks version {its!r:.20} of the wire, and this Syngrad {VERSION}; use the same everywhere"
