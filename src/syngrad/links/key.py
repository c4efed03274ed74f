"""The key pair by which the processes of a run know each other, where the network between them is not trusted."""

from __future__ import annotations

import hashlib
from pathlib import Path

import zmq
from zmq.utils import z85

from syngrad.errors import ConfigError

SHORTEST_SECRET_BYTES = 16


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

        Raises ConfigError for a file that cannot be read or holds less, and where this ZeroMQ has no CURVE.
        """
        try:
            secret = Path(path).read_bytes().strip()
        except OSError as error:
            raise ConfigError(
                f"link_key {path!r} cannot be read: {error.strerror}; name a file with a secret"
            ) from error
        if len(secret) < SHORTEST_SECRET_BYTES:
            raise ConfigError(
                f"link_key {path!r} holds {len(secret)} bytes, and a secret needs {SHORTEST_SECRET_BYTES}; make one "
                f"with head -c 32 /dev/urandom | base64 > {path}"
            )
        if not zmq.has("curve"):
            raise ConfigError("link_key needs a ZeroMQ built with CURVE; install pyzmq from a wheel")
        return cls(secret)
