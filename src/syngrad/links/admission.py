"""How many may be at a listening socket before it is known who they are: a few, whatever strangers do.

Every connection takes a file descriptor of this process before its first byte is read, and a process that has none left
can neither save nor read data. ZeroMQ accepts whoever comes, in a thread of its own. So a thread here hears from the
socket's monitor who comes and goes, at once, also while the process computes. With more than MOST strangers there, the
oldest are cut off; once the peer is in and nobody else is expected, the kernel drops whoever comes until it is calm.
"""

from __future__ import annotations

import ctypes
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import zmq
from zmq.utils.monitor import parse_monitor_message

from syngrad.errors import LinkError, first_line

#: strangers that may be there at once, and how many stay when there are more
MOST, FEWER = 32, 16
#: so many that nobody waits to hear whether some have gone again
MANY = 256
#: milliseconds without anybody who comes or goes after which the kernel lets strangers come again
CALM_MS = 500

_EVENTS = "inproc://events"
#: Linux's options for a filter on a socket, and the one instruction of a filter that keeps nothing of any packet
_ATTACH, _DETACH = 26, 27
_KEEP_NOTHING = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))


class Admission:
    """Stands between a listening socket's monitor and who reads it, and passes everything on.

    Attributes:
        events: what the monitor says, to be read in the monitor's place.
        peer: the descriptor of the one who belongs here, once there is one.
    """

    def __init__(self, context: zmq.Context[Any], monitor: zmq.Socket[bytes]) -> None:
        self.peer: int | None = None
        self.events: zmq.Socket[bytes] = _pair(context)
        self.events.bind(_EVENTS)
        self._monitor, self._out = monitor, _pair(context)
        self._out.connect(_EVENTS)
        #: those who have come and are still there, the oldest first
        self._there: dict[int, None] = {}
        self._listening: int | None = None
        self._port = 0
        self._shut = False
        self._thread = threading.Thread(target=self._watch, name="syngrad-admission", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:  # no thread is to be had
            raise LinkError(f"a link cannot be watched ({first_line(error)})") from error

    def close(self) -> None:
        """Wait until the thread has seen that the monitor has stopped, which it has to by then."""
        self._thread.join(5.0)

    def _watch(self) -> None:
        try:
            while self._next():
                continue
        except zmq.ContextTerminated:
            return
        finally:
            self._monitor.close(0)
            self._out.close(0)

    def _next(self) -> bool:
        """Deal with the monitor's next word; whether another will come."""
        if self._shut and not self._monitor.poll(CALM_MS):
            self._filter(shut=False)
            return True
        said = self._monitor.recv_multipart()
        event = parse_monitor_message(said)
        kind, descriptor = int(event["event"]), int(event["value"])
        if kind == zmq.EVENT_MONITOR_STOPPED:
            return False
        if kind == zmq.EVENT_LISTENING:
            self._listening, self._port = descriptor, _port(descriptor)
        elif kind == zmq.EVENT_ACCEPTED:
            self._there[descriptor] = None
        elif kind == zmq.EVENT_DISCONNECTED:
            self._there.pop(descriptor, None)
        self._out.send_multipart(said)
        # those who have gone again are among the monitor's next words
        if len(self._there) > MOST and (len(self._there) > MANY or not self._monitor.poll(0)):
            self._limit()
        return True

    def _limit(self) -> None:
        strangers = [each for each in self._there if each != self.peer]
        if len(strangers) <= MOST:
            return
        if self.peer is not None and not self._shut:
            self._filter(shut=True)
        for each in strangers[:-FEWER]:
            del self._there[each]
            _cut(each, self._port)

    def _filter(self, shut: bool) -> None:
        """Have the kernel drop the packets of all who come, of which it keeps nothing; or no longer. Only Linux can."""
        if self._listening is None or not sys.platform.startswith("linux"):
            return
        program = struct.pack("HP", 1, ctypes.addressof(_KEEP_NOTHING))
        with _borrowed(self._listening) as end:
            try:
                end.setsockopt(socket.SOL_SOCKET, _ATTACH if shut else _DETACH, program if shut else 0)
                self._shut = shut
            except OSError:  # this kernel does not: cutting off has to do
                self._shut = False


def _pair(context: zmq.Context[Any]) -> zmq.Socket[bytes]:
    """One end of a queue between two threads; with a limit, one would wait for the other."""
    made: zmq.Socket[bytes] = context.socket(zmq.PAIR)
    made.sndhwm = made.rcvhwm = 0
    return made


@contextmanager
def _borrowed(descriptor: int) -> Iterator[socket.socket]:
    """ZeroMQ's own socket of that number, which stays open afterwards; no other descriptor is needed for it."""
    end = socket.socket(fileno=descriptor)
    try:
        yield end
    finally:
        end.detach()


def _port(descriptor: int) -> int:
    with _borrowed(descriptor) as end:
        return int(end.getsockname()[1])


def _cut(descriptor: int, port: int) -> bool:
    """End a connection that has come to that port; ZeroMQ sees it and closes. Not what has its number by now."""
    try:
        with _borrowed(descriptor) as end:
            if end.family not in (socket.AF_INET, socket.AF_INET6) or end.getsockname()[1] != port:
                return False
            end.shutdown(socket.SHUT_RDWR)
    except OSError:  # it has gone already
        return False
    return True
