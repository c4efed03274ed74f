"""Which replica this process belongs to among how many, and where they meet, as the environment says.

The variables are those of torchft and its own examples: TORCHFT_LIGHTHOUSE, REPLICA_GROUP_ID and NUM_REPLICA_GROUPS.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from syngrad.errors import ConfigError
from syngrad.links.world import LOOPBACK, own_address

LIGHTHOUSE, INDEX, COUNT = "TORCHFT_LIGHTHOUSE", "REPLICA_GROUP_ID", "NUM_REPLICA_GROUPS"
#: the variable in which our own launcher says how often it has started this replica again; torchrun has another
ATTEMPT = "SYNGRAD_REPLICA_ATTEMPT"
#: more than anybody starts
MOST = 4096
_REMEDY = "start the replicas by `syngrad train --replicas R`, or give each its number from 0 on in REPLICA_GROUP_ID"


@dataclass(frozen=True)
class Place:
    """This replica's place.

    Attributes:
        index: 0 … count − 1.
        count: replicas that the run is divided among, of which some may be away.
        lighthouse: the address at which they meet, as in "http://host:29510".
        attempt: how often this one has been started again.
        launched: whether one launcher starts all of them, here, and ends the run when the first has ended.
    """

    index: int
    count: int
    lighthouse: str
    attempt: int = 0
    launched: bool = False

    @property
    def address(self) -> str:
        """This host's address, as the other replicas reach it; loopback where the lighthouse is there too."""
        host = urlsplit(self.lighthouse).hostname or LOOPBACK
        return own_address(host, host in (LOOPBACK, "localhost", "::1"))

    @property
    def name(self) -> str:
        """How errors and torchft call it; in order of their numbers also as text."""
        return f"replica {self.index:04d}"


def place() -> Place | None:
    """This process's place; None where nothing says that there are replicas.

    Raises:
        ConfigError: for an environment that says half of it, or nonsense.
    """
    address = os.environ.get(LIGHTHOUSE, "")
    if not address:
        count = _whole(os.environ, COUNT, 1)
        if count > 1:
            raise ConfigError(
                f"{COUNT} is {count}, and {LIGHTHOUSE} does not say where the replicas meet; set it to the address "
                "that `torchft_lighthouse` listens at, as in http://host:29510"
            )
        return None
    if not re.fullmatch(r"https?://[^\s/:]+:\d{1,5}/?|https?://\[[0-9a-fA-F:]+\]:\d{1,5}/?", address):
        raise ConfigError(f"{LIGHTHOUSE} is {address!r:.80}, no address; write it as in http://host:29510")
    count, index = _whole(os.environ, COUNT, 0), _whole(os.environ, INDEX, -1)
    if count < 1 or index < 0:
        raise ConfigError(f"{LIGHTHOUSE} is set, but not both {INDEX} and {COUNT}; {_REMEDY}")
    if index >= count:
        raise ConfigError(f"{INDEX} is {index}, and {COUNT} {count}: replicas count from 0 to {count - 1}; {_REMEDY}")
    attempt = _whole(os.environ, ATTEMPT, 0) + _whole(os.environ, "TORCHELASTIC_RESTART_COUNT", 0)
    return Place(index, count, address.rstrip("/"), attempt, bool(os.environ.get(ATTEMPT)))


def _whole(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name, "")
    if not text:
        return default
    if not text.isascii() or not text.isdigit() or int(text[:9]) > MOST or len(text) > 9:
        raise ConfigError(f"{name} is {text!r:.40}, no whole number up to {MOST}; {_REMEDY}")
    return int(text)
