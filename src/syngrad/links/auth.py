"""Who may connect to a listening socket: ZeroMQ asks about everyone who does (ZAP, RFC 27) before it reads on.

Whoever is refused cannot send a message, so that nothing of a stranger's is ever queued. With a key the two ends
prove themselves by it (CURVE); without one the end that connects shows the token of this attempt (PLAIN, RFC 24), which
crosses the wire in the clear.
"""

from __future__ import annotations

import hashlib
import hmac

import zmq
from zmq.utils import z85

from syngrad.errors import ConfigError
from syngrad.links.secret import read_secret

_ADDRESS = "inproc://zeromq.zap.01"
_USER = b"syngrad"


class Key:
    """The CURVE key pair that all processes of a run derive from one secret; both ends of a link have the same.

    Who connects must know the listener's public key, and the listener lets nobody in who has another one. The public
    key, too, is known from the secret alone: it never crosses the wire in the clear.
    """

    def __init__(self, secret: bytes) -> None:
        self.secret = z85.encode(hashlib.sha256(b"syngrad link key" + secret).digest())
        self.public = zmq.curve_public(self.secret)
        self.raw_public: bytes = z85.decode(self.public)

    @classmethod
    def from_file(cls, path: str) -> Key:
        """The key of a file that holds a secret of 16 bytes or more, the same on every host.

        Raises:
            ConfigError: for a file that cannot be read or holds less, and where this ZeroMQ has no CURVE.
        """
        secret = read_secret(path)
        if not zmq.has("curve"):
            raise ConfigError("link_key needs a ZeroMQ built with CURVE; install pyzmq from a wheel")
        return cls(secret)


class ZapAuthenticator:
    """Answers ZeroMQ's questions for the one listening socket of a context.

    refused: how many showed other credentials than the peer's.
    """

    def __init__(self, socket: zmq.Socket[bytes], key: Key | None, token: bytes) -> None:
        """Take the socket's questions over, before it is bound.

        Args:
            socket: the one that will listen.
            key: of the run; None where the peer shows the token alone.
            token: what only the processes of this attempt know.
        """
        socket.zap_domain = b"syngrad"
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # once this is closed, nobody is let in any more
        if key is None:
            socket.plain_server = True
            expected = [b"PLAIN", _USER, _password(token)]
        else:
            socket.curve_secretkey, socket.curve_publickey, socket.curve_server = key.secret, key.public, True
            expected = [b"CURVE", key.raw_public]
        self.refused = 0
        self._expected = b"\0".join(expected)
        self.socket: zmq.Socket[bytes] = socket.context.socket(zmq.REP)
        self.socket.bind(_ADDRESS)

    def answer(self) -> None:
        """Let in those who wait and are expected, and send the rest away."""
        while self.socket.poll(0):
            version, request, _domain, _address, _identity, *credentials = self.socket.recv_multipart()
            known = hmac.compare_digest(b"\0".join(credentials), self._expected)
            self.refused += not known
            status = [b"200", b"OK"] if known else [b"400", b"another run"]
            self.socket.send_multipart([version, request, *status, b"", b""])

    def close(self) -> None:
        """Whoever comes from now on is sent away by ZeroMQ itself, and so is who waits. Twice is once."""
        self.socket.close(0)


def set_credentials(socket: zmq.Socket[bytes], key: Key | None, token: bytes) -> None:
    """What a socket that has not connected yet will show to the one that listens."""
    if key is None:
        socket.plain_username, socket.plain_password = _USER, _password(token)
    else:
        socket.curve_secretkey, socket.curve_publickey, socket.curve_serverkey = key.secret, key.public, key.public


def _password(token: bytes) -> bytes:
    return token.hex().encode()
