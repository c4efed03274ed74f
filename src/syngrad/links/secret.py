"""The secret that all processes of a run share, and the code by which they know each other's entries in the store."""

from __future__ import annotations

import hashlib
import hmac
from pathlib import Path

from syngrad.errors import ConfigError

SHORTEST_SECRET_BYTES = 16
_CODE_BYTES = 32


def read_secret(path: str) -> bytes:
    """What a file of 16 bytes or more holds, the same on every host.

    Raises:
        ConfigError: for a file that cannot be read or holds less.
    """
    try:
        secret = Path(path).read_bytes().strip()
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        said = getattr(error, "strerror", None) or error
        raise ConfigError(f"link_key {path!r} cannot be read: {said}; name a file with a secret") from error
    if len(secret) < SHORTEST_SECRET_BYTES:
        raise ConfigError(
            f"link_key {path!r} holds {len(secret)} bytes, and a secret needs {SHORTEST_SECRET_BYTES}; make one "
            f"with head -c 32 /dev/urandom | base64 > {path}"
        )
    return secret


class Seal:
    """Marks what is kept under a name with a code over both, which nobody makes without the secret: HMAC-SHA256."""

    def __init__(self, secret: bytes) -> None:
        self._key = hashlib.sha256(b"syngrad store key" + secret).digest()

    def close(self, name: str, value: bytes) -> bytes:
        """The value with its code in front."""
        return self._code(name, value) + value

    def open(self, name: str, sealed: bytes) -> bytes | None:
        """The value, or None for what has another code: of somebody else, or of another name."""
        code, value = sealed[:_CODE_BYTES], sealed[_CODE_BYTES:]
        return value if hmac.compare_digest(code, self._code(name, value)) else None

    def _code(self, name: str, value: bytes) -> bytes:
        path = name.encode()
        return hmac.digest(self._key, len(path).to_bytes(4, "big") + path + value, "sha256")
