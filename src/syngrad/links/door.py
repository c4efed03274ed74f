"""Who is let in to a listening socket: ZeroMQ asks about everyone who connects (ZAP, RFC 27) before it reads on.

Whoever is not let in cannot send a message, so that nothing of a stranger's is ever queued. With a key the two ends
prove themselves by it (CURVE); without one the lower end shows the token of this attempt (PLAIN, RFC 24), which crosses
the wire in the clear.
"""

from __future__ import annotations

import hmac

import zmq

from syngrad.links.key import Key

_ADDRESS = "inproc://zeromq.zap.01"
_USER = b"syngrad"


class Door:
    """Of one context. turned_away: those that showed something else."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], expected: list[bytes]) -> None:
        self.turned_away = 0
        self._expected = b"\0".join(expected)
        self.socket: zmq.Socket[bytes] = context.socket(zmq.REP)
        self.socket.bind(_ADDRESS)

    @classmethod
    def of(cls, socket: zmq.Socket[bytes], key: Key | None, token: bytes) -> Door:
        """The door of a socket that has not been bound yet."""
        socket.zap_domain = b"syngrad"
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # where there is no door any more, nobody comes in
        if key is None:
            socket.plain_server = True
            return cls(socket.context, [b"PLAIN", _USER, _password(token)])
        socket.curve_secretkey, socket.curve_publickey, socket.curve_server = key.secret, key.public, True
        return cls(socket.context, [b"CURVE", key.raw_public])

    def answer(self) -> None:
        """Let in those who wait and are expected, and send the rest away."""
        while self.socket.poll(0):
            version, request, _domain, _address, _identity, *credentials = self.socket.recv_multipart()
            shown = b"\0".join(credentials)
            known = hmac.compare_digest(shown, self._expected)
            self.turned_away += not known
            status = [b"200", b"OK"] if known else [b"400", b"another run"]
            self.socket.send_multipart([version, request, *status, b"", b""])

    def close(self) -> None:
        """Shut: whoever comes from now on is sent away by ZeroMQ itself, and so is who waits. Twice is once."""
        self.socket.close(0)


def knock(socket: zmq.Socket[bytes], key: Key | None, token: bytes) -> None:
    """What a socket that has not connected yet shows at the door."""
    if key is None:
        socket.plain_username, socket.plain_password = _USER, _password(token)
    else:
        socket.curve_secretkey, socket.curve_publickey, socket.curve_serverkey = key.secret, key.public, key.public


def _password(token: bytes) -> bytes:
    return token.hex().encode()
